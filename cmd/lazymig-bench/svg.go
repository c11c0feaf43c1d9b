package main

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
	"time"
)

// A chart is lines over two axes, as SVG: what this needs is less than any library.
type chart struct {
	title string
	x, y  axis
	lines []line
}

type axis struct {
	name string
	log  bool
}

type line struct {
	what, color, dash string
	points            []point
}

type point struct{ x, y float64 }

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// styles are those of the systems: each has its colour in all charts. Peers are dashed.
var styles = map[string][2]string{
	"lazymig": {"#1f5fbf", ""}, "cleartext": {"#6fa8dc", ""}, "one": {"#9db8e8", "2 2"}, "two": {"#5a7fc0", "4 2"}, "four": {"#0b2f6b", "1 2"}, "hybrid": {"#2e8b57", ""}, "pre": {"#8e44ad", ""}, "stop": {"#7f6a3f", ""}, "auto": {"#e0a010", ""},
	"stock": {"#c0392b", "6 3"}, "eager": {"#555555", "6 3"}, "plain": {"#999999", "2 3"},
}

func (c *chart) add(system, what string, pts []point) {
	if len(pts) == 0 {
		return
	}
	s := styles[system]
	c.lines = append(c.lines, line{what: what, color: s[0], dash: s[1], points: pts})
}

const (
	chartW, chartH            = 820, 430
	padLeft, padRight         = 70, 210
	padTop, padBottom         = 40, 50
	plotW, plotH      float64 = chartW - padLeft - padRight, chartH - padTop - padBottom
)

// scale maps values of an axis to 0…1 and says where its marks are.
type scale struct {
	log      bool
	min, max float64
	marks    []float64
}

func newScale(a axis, values []float64) (s scale) {
	s.log = a.log
	s.min, s.max = math.Inf(1), math.Inf(-1)
	for _, v := range values {
		if !a.log || v > 0 {
			s.min, s.max = min(s.min, v), max(s.max, v)
		}
	}
	if a.log {
		lo, hi := math.Floor(math.Log10(s.min)*3)/3, math.Ceil(math.Log10(s.max)*3)/3
		if hi-lo < 1 {
			hi = lo + 1
		}
		s.min, s.max = math.Pow(10, lo), math.Pow(10, hi)
		for e := math.Floor(lo); e <= hi; e++ {
			for _, m := range []float64{1, 2, 5} {
				if v := m * math.Pow(10, e); v >= s.min*0.999 && v <= s.max*1.001 && (m == 1 || hi-lo < 3.5) {
					s.marks = append(s.marks, v)
				}
			}
		}
		return s
	}
	s.min = min(s.min, 0)
	if s.max <= s.min {
		s.max = s.min + 1
	}
	step := math.Pow(10, math.Floor(math.Log10((s.max-s.min)/4)))
	for _, m := range []float64{1, 2, 5, 10} {
		if (s.max-s.min)/(step*m) <= 7 {
			step *= m
			break
		}
	}
	for v := math.Ceil(s.min/step) * step; v <= s.max+step/1000; v += step {
		s.marks = append(s.marks, v)
	}
	return s
}

func (s scale) at(v float64) float64 {
	if s.log {
		return (math.Log10(max(v, s.min)) - math.Log10(s.min)) / (math.Log10(s.max) - math.Log10(s.min))
	}
	return (v - s.min) / (s.max - s.min)
}

func mark(v float64) string {
	if a := math.Abs(v); a >= 1e6 {
		return strconv.FormatFloat(v/1e6, 'g', 4, 64) + "M"
	} else if a >= 1e4 {
		return strconv.FormatFloat(v/1e3, 'g', 4, 64) + "k"
	}
	return strconv.FormatFloat(math.Round(v*1e6)/1e6+0, 'g', 6, 64) // +0: no "-0"
}

func (c *chart) svg() string {
	var xs, ys []float64
	for _, l := range c.lines {
		for _, p := range l.points {
			xs, ys = append(xs, p.x), append(ys, p.y)
		}
	}
	x, y := newScale(c.x, xs), newScale(c.y, ys)
	px := func(v float64) float64 { return padLeft + x.at(v)*plotW }
	py := func(v float64) float64 { return padTop + (1-y.at(v))*plotH }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", chartW, chartH, chartW, chartH)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", chartW, chartH)
	text := func(x, y float64, anchor, more, s string) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s"%s fill="#222222">%s</text>`+"\n", x, y, anchor, more, html.EscapeString(s))
	}
	stroke := func(x1, y1, x2, y2 float64, color string) {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`+"\n", x1, y1, x2, y2, color)
	}
	text(padLeft, 22, "start", ` font-size="15" font-weight="bold"`, c.title)
	for _, v := range x.marks {
		stroke(px(v), padTop, px(v), padTop+plotH, "#e4e4e4")
		text(px(v), padTop+plotH+17, "middle", "", mark(v))
	}
	for _, v := range y.marks {
		stroke(padLeft, py(v), padLeft+plotW, py(v), "#e4e4e4")
		text(padLeft-7, py(v)+4, "end", "", mark(v))
	}
	fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.0f" height="%.0f" fill="none" stroke="#888888"/>`+"\n", padLeft, padTop, plotW, plotH)
	text(padLeft+plotW/2, chartH-10, "middle", "", c.x.name)
	text(18, padTop+plotH/2, "middle", fmt.Sprintf(` transform="rotate(-90 18 %.1f)"`, padTop+plotH/2), c.y.name)
	for i, l := range c.lines {
		dash := ""
		if l.dash != "" {
			dash = ` stroke-dasharray="` + l.dash + `"`
		}
		var pts []string
		for _, p := range l.points {
			pts = append(pts, fmt.Sprintf("%.1f,%.1f", px(p.x), py(p.y)))
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2" stroke-linejoin="round"%s/>`+"\n", strings.Join(pts, " "), l.color, dash)
		if len(l.points) <= 8 {
			for _, p := range l.points {
				fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`+"\n", px(p.x), py(p.y), l.color)
			}
		}
		at := float64(padTop + 12 + i*20)
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="2.5"%s/>`+"\n", padLeft+plotW+12, at-4, padLeft+plotW+38, at-4, l.color, dash)
		text(padLeft+plotW+44, at, "start", "", l.what)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
