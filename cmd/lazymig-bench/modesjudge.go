package main

import (
	"bytes"
	"fmt"
	"io"
	"math"

	"github.com/lazymig/lazymig/migrate"
)

// cellOf is one line, way to write and size.
type cellOf struct {
	line, writes string
	mb           int
}

// modeFigures are medians of a mode's moves of one cell.
type modeFigures struct {
	pauseMS, stallMS, sentMB, score float64
	runs                            int
}

// score is that of docs/modes.md, of what was measured.
func score(m *move) float64 {
	rate := 0.0
	for _, l := range lines {
		if l.name == m.line {
			rate = l.rate
		}
	}
	return migrate.Score(m.pauseMS, m.stallMS, m.sentMB*1e6, rate)
}

// medians of all cells, in the order of the file.
func medians(rows []move) (order []cellOf, cells map[cellOf]map[string]modeFigures) {
	type k struct {
		cellOf
		mode string
	}
	all := map[k][]move{}
	cells = map[cellOf]map[string]modeFigures{}
	for _, r := range rows {
		c := cellOf{r.line, r.writes, r.mb}
		if cells[c] == nil {
			cells[c] = map[string]modeFigures{}
			order = append(order, c)
		}
		all[k{c, r.mode}] = append(all[k{c, r.mode}], r)
	}
	for k, l := range all {
		middle := func(of func(*move) float64) float64 {
			var f []float64
			for i := range l {
				f = append(f, of(&l[i]))
			}
			sortFloats(f)
			return (f[len(f)/2] + f[(len(f)-1)/2]) / 2
		}
		cells[k.cellOf][k.mode] = modeFigures{
			middle(func(m *move) float64 { return m.pauseMS }), middle(func(m *move) float64 { return m.stallMS }),
			middle(func(m *move) float64 { return m.sentMB }), middle(score), len(l),
		}
	}
	return order, cells
}

// near is how much worse than the best auto's choice may be, and noise, milliseconds, how far the scores of equal moves are apart: a pause of 50 ms is one of 70 the next time.
const (
	near  = 1.10
	noise = 20.0
)

// judgeModes prints a table: of each cell the modes' figures, and whether the mode that auto chose is near the best. Judged is the choice, by the figures of the mode
// that was chosen, so that a noisy move by auto itself says nothing; that auto's own preparation costs nothing is seen in its own column.
func judgeModes(w io.Writer, path string) error {
	rows, err := readMoves(path)
	if err != nil {
		return err
	}
	order, cells := medians(rows)
	fixed := modesOfMatrix[:len(modesOfMatrix)-1]
	var out bytes.Buffer
	fmt.Fprintf(&out, "pause / stall / sent MB = score; medians\n\n| line | writes | MB |")
	for _, m := range fixed {
		fmt.Fprintf(&out, " %s |", m)
	}
	fmt.Fprint(&out, " auto's own | chose | best | chosen / best |\n|---|---|---|")
	for range len(fixed) + 4 {
		fmt.Fprint(&out, "---|")
	}
	fmt.Fprintln(&out)
	right, alike, judged := 0, 0, 0
	for _, c := range order {
		best, bestMode := math.Inf(1), ""
		fmt.Fprintf(&out, "| %s | %s | %d |", c.line, c.writes, c.mb)
		for _, m := range fixed {
			f, ok := cells[c][m]
			if !ok {
				fmt.Fprint(&out, " – |")
				continue
			}
			fmt.Fprintf(&out, " %s |", f)
			if f.score < best {
				best, bestMode = f.score, m
			}
		}
		auto, ok := cells[c][migrate.ModeAuto]
		if !ok || len(cells[c]) < 3 {
			fmt.Fprintf(&out, " – | – | %s | – |\n", bestMode)
			continue
		}
		// Each move by auto is judged by itself: it may choose differently.
		worst, said := 0.0, ""
		for i := range rows {
			r := &rows[i]
			if r.mode != migrate.ModeAuto || (cellOf{r.line, r.writes, r.mb}) != c {
				continue
			}
			ratio := cells[c][r.chosen].score / best
			judged++
			if ratio <= near {
				right++
			} else if cells[c][r.chosen].score-best <= noise {
				alike++
			}
			if ratio >= worst {
				worst, said = ratio, r.chosen
			}
		}
		fmt.Fprintf(&out, " %s | %s | %s | %.2f |\n", auto, said, bestMode, worst)
	}
	if judged > 0 {
		fmt.Fprintf(&out, "\nauto's choice is within %.0f %% of the best in %d of %d moves, and in %d more within %.0f ms, which is noise: %.0f %%\n",
			(near-1)*100, right, judged, alike, noise, 100*float64(right+alike)/float64(judged))
	}
	_, err = w.Write(out.Bytes())
	return err
}

func (f modeFigures) String() string {
	return fmt.Sprintf("%.0f / %.0f / %.0f = %.0f", f.pauseMS, f.stallMS, f.sentMB, f.score)
}
