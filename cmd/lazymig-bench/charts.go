package main

import (
	"fmt"
	"math"
	"slices"
)

// charts are the plots that the rows give. A chart without lines is left out.
func (t *table) charts() map[string]*chart {
	out := map[string]*chart{
		"pause": {title: "Pause by memory", x: axis{name: "memory, MB", log: true}, y: axis{name: "pause that the process sees, ms", log: true}},
		"drain": {title: "From the resume until all memory is there, by memory", x: axis{name: "memory, MB", log: true}, y: axis{name: "MB/s", log: true}},
	}
	for name, figure := range map[string]string{"pause": "pause_ms", "drain": "drain_mb_s"} {
		for _, s := range systems {
			out[name].add(s.name, s.what, t.overSizes("paced", s.name, figure))
		}
	}
	for _, w := range []string{"uniform", "zipf", "redis", "writes", "storm"} {
		g := group{workload: w, mb: 512}
		speed := &chart{title: fmt.Sprintf("Work done, of what it was before: %s, 512 MB", w), x: axis{name: "s since the process stopped"}, y: axis{name: "of the speed before"}}
		for _, s := range systems {
			speed.add(s.name, s.what, t.speedOf(g, s.name))
		}
		out["speed-"+w] = speed
	}
	for _, rtt := range []int{0, 6} {
		g := group{workload: "uniform", mb: 512, rtt: ms(rtt)}
		name, title := "faults", "Waits for pages as the process sees them: uniform, 512 MB"
		if rtt > 0 {
			name, title = "faults-6ms", title+", 6 ms round trip"
		}
		c := &chart{title: title, x: axis{name: "µs", log: true}, y: axis{name: "of all waits are shorter"}}
		for _, s := range systems {
			c.add(s.name, s.what, t.faultsOf(g, s.name))
		}
		out[name] = c
	}
	return out
}

func (t *table) overSizes(workload, system, figure string) (pts []point) {
	for _, g := range t.groups() {
		if g != (group{workload: workload, mb: g.mb}) {
			continue
		}
		if s := t.spread(g, system, figure); s.n > 0 && s.median > 0 {
			pts = append(pts, point{float64(g.mb), s.median})
		}
	}
	slices.SortFunc(pts, func(a, b point) int { return int(a.x - b.x) })
	return pts
}

// middleRow is the row whose way back took as long as the median.
func (t *table) middleRow(g group, system, figure string) *row {
	want := t.spread(g, system, figure).median
	var best *row
	for _, r := range t.at(g, system) {
		if r.reason == "" && (best == nil || math.Abs(r.get(figure)-want) < math.Abs(best.get(figure)-want)) {
			best = r
		}
	}
	return best
}

func (t *table) speedOf(g group, system string) (pts []point) {
	r := t.middleRow(g, system, "to95_ms")
	if r == nil {
		return nil
	}
	for i, v := range r.speed {
		pts = append(pts, point{-0.5 + float64(i)*speedStep.Seconds(), v})
	}
	return pts
}

func (t *table) faultsOf(g group, system string) (pts []point) {
	r := t.middleRow(g, system, "fault_p50_us")
	if r == nil || r.get("faults") < 20 {
		return nil
	}
	for i, us := range r.faults {
		if us > 0 {
			pts = append(pts, point{us, faultQuantiles[i]})
		}
	}
	return pts
}
