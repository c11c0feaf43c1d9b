package memory

import "golang.org/x/sys/unix"

// result is what UFFDIO_COPY, ZEROPAGE or POISON said.
type result struct {
	errno  unix.Errno
	done   int64  // the kernel's out field
	length uint64 // what was asked for
}

// action is what has to follow.
type action uint8

const (
	actDone    action = 1 // all of it is there
	actGoOn    action = 2 // a part is there: go on behind it
	actSkip    action = 3 // the next page is there already: it counts as taken, go on behind it
	actSettle  action = 4 // the mappings are changing: read events, apply them, then again
	actHalve   action = 5 // no VMA holds the whole range: try halves
	actMissing action = 6 // no registered VMA at this page: only the layout can say whether it is gone
	actDead    action = 7 // the mm is gone
	actLater   action = 8 // no memory now: the page stays missing, again later
	actFatal   action = 9 // our own fault: the page stays missing
)

// outcome is an action and the bytes that were filled before it.
type outcome struct {
	act  action
	done uint64
}

// classify is the only place where an errno of a fill gets its meaning. A partial fill comes as EAGAIN with a positive
// count; what stopped it is learned by the next call.
func classify(r result) outcome {
	if r.errno == 0 {
		return outcome{actDone, r.length}
	}
	if r.done > 0 {
		n := min(uint64(r.done), r.length) &^ (pageSize - 1)
		if n == r.length {
			return outcome{actDone, n}
		}
		if n > 0 {
			return outcome{actGoOn, n}
		}
	}
	switch r.errno {
	case unix.EAGAIN:
		return outcome{act: actSettle}
	case unix.EEXIST:
		return outcome{act: actSkip}
	case unix.ENOENT:
		return unmapped(r.length)
	case unix.ESRCH:
		return outcome{act: actDead}
	case unix.ENOMEM, unix.EINTR:
		return outcome{act: actLater}
	}
	return outcome{act: actFatal}
}
