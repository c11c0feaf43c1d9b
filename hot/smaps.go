package hot

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// bySmaps takes each mapping as a whole: that of which most is in use comes first.
func (o *Options) bySmaps(ctx context.Context, all []Process) (r Result, err error) {
	if err := affordable(all); err != nil {
		return r, err
	}
	for _, p := range all {
		if err := clearBits(p.PID); err != nil && resident(p.PID) > 0 {
			return r, fmt.Errorf("clear the bits of process %d: %w", p.PID, err)
		}
	}
	if err := sleep(ctx, min(mostWait, o.Time)); err != nil {
		return r, err
	}
	var list []used
	for _, p := range all {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", p.PID))
		if err != nil {
			continue // it has ended
		}
		l, err := parseUsed(b)
		if err != nil {
			return r, fmt.Errorf("parse smaps of process %d: %w", p.PID, err)
		}
		for _, u := range l {
			u.task = p.ID
			list = append(list, u)
		}
	}
	slices.SortStableFunc(list, func(a, b used) int { return cmp.Compare(b.share(), a.share()) })
	for _, u := range list {
		r.Spans = addRange(r.Spans, u.task, u.at)
	}
	r.Rounds = 1
	return r, nil
}

// used is a mapping of which something is in use.
type used struct {
	task            uint32
	at              Range
	rss, referenced uint64
}

// share is how much of it is, in sixteenths: nearer than that is no difference.
func (u *used) share() uint64 { return 16 * u.referenced / max(u.rss, 1) }

func parseUsed(b []byte) (out []used, err error) {
	var cur *used
	for line := range bytes.Lines(b) {
		key, value, _ := strings.Cut(string(line), ":")
		if strings.ContainsRune(key, '-') { // 7f0000000000-7f0000001000 rw-p 00000000 00:00 0
			r, lazy, err := parseMapping(string(line))
			if err != nil {
				return nil, err
			}
			if cur = nil; lazy {
				out = append(out, used{at: r})
				cur = &out[len(out)-1]
			}
			continue
		}
		if cur == nil || key != "Rss" && key != "Referenced" {
			continue
		}
		f := strings.Fields(value)
		if len(f) == 0 {
			continue
		}
		n, err := strconv.ParseUint(f[0], 10, 54)
		if err != nil {
			return nil, err
		}
		if key == "Rss" {
			cur.rss = n << 10
		} else {
			cur.referenced = n << 10
		}
	}
	return slices.DeleteFunc(out, func(u used) bool { return u.share() == 0 }), nil
}
