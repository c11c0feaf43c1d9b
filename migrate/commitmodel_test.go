package migrate

import "fmt"

// The commit protocol as a model: every state that the two hosts can be in between "the tree is frozen and its images have arrived" and
// the end, with kill -9 of each process at any point, crashes of both hosts, and a network that loses, repeats, delays and reorders
// (stronger than TCP sessions that are cut and dialed again, which it stands for). commitcheck_test.go walks all of it.
//
// What the steps stand for:
//
//	source
//	sWait             Source.untilGranted: sess.await(MsgHeld)             source.go
//	sHeld             Source.commit: dump.Check                            source.go, dump/dump.go
//	sChecked, sWrote  Record.Enter(Granted): write, fsync                  record.go (append)
//	sFail             Record.append when that failed: retract              record.go
//	sDurable          Source.commit: dump.Granted (SIGSTOPs, keeper ends)  source.go, dump/dump.go
//	sServe            Source.whileServing: MsgGrant, MsgState              sourceserve.go
//	sResume           Source.takeBack, ResumeHere: dump.Thaw               sourceserve.go, recover.go
//	sUndo …           Source.undo: dump.Abort, MsgAbort, Enter(Aborted)    source.go; tellAborted in giveup.go
//	keeper            KeeperMain after the end of its input                dump/keeper.go
//	recover, resume   `lazymig recover [--resume-source]`: what it may do
//
//	target
//	tHeld, tAskWrote  Target.restore: capsule.Restore has returned; Enter(Asked)   target.go
//	tAsked            Target.awaitGrant                                            targetrun.go
//	tGot, tGrantWrote Target.letGo: Enter(Granted)                                 target.go
//	tGranted          Target.letGo: capsule.Finish                                 target.go, restore/restoring.go
//	tFinished         Target.letGo: capsule.Release                                target.go, restore/restoring.go
//	tReleased         Target.whileRunning: Enter(Resumed)                          targetrun.go
//	tRun              Target.whileRunning                                          targetrun.go
//	tAbort, tKilled   Target.giveUp: cleanUp, then Enter(Aborted), or voidGrant    target.go
//	tIdle             an agent that was started again: goOn, sweepOne              agent.go, sweep.go
//	guardian          guardian.serve: the agent is gone                            restore/guardian.go
//
// An agent that was started again may take up what is there or find it gone: both are walked.
//
// Time is not in the model: whatever ends by a timeout may end at any moment. dump.Granted looks at the freezer and stops the tasks in one
// step here; whoever thaws the tree's cgroup by hand within that millisecond is not caught.

// state is one state of everything. It is comparable: the search keys on it.
type state struct {
	// source host
	sp     sourceStep
	tree   treeState
	sc, sd State // record as processes read it (page cache), and as a crash leaves it (disk)
	keeper keeperState
	booted bool // the host has crashed and started again
	op     bool // an operator wants the tree back: recover --resume-source
	// target host
	tp     targetStep
	cap    capsuleState
	tc, td State // "" after the state directory was lost
	// what the network may still deliver, in any order
	net messages
	// history
	sran, tran bool // has the tree executed an instruction there since it was dumped?
}

type (
	sourceStep   uint8
	targetStep   uint8
	treeState    uint8
	capsuleState uint8
	keeperState  uint8
	messages     uint16
)

const (
	sWait sourceStep = iota
	sHeld
	sChecked
	sWrote
	sFail
	sDurable
	sServe
	sUndo
	sUndone
	sTell
	sResume
	sDead
)

const (
	tHeld targetStep = iota
	tAskWrote
	tAsked
	tGot
	tGrantWrote
	tGranted
	tFinished
	tReleased
	tRun
	tAbort
	tKilled
	tIdle
	tDead
)

const (
	treeFrozen  treeState = iota
	treeStopped           // frozen, with SIGSTOPs pending
	treeRuns
	treeKilled
	treeLost // with its host's memory
)

const (
	keeperWaits  keeperState = iota
	keeperOrphan             // its input has ended without a word
	keeperGone
)

const (
	capHeld     capsuleState = iota // by criu, at post-restore
	capFinished                     // at pre-resume: the guardian no longer ends with the agent
	capRuns
	capNone
)

const (
	mHeld messages = 1 << iota
	mGrant
	mAbort
	mSourceGranted // MsgState of the source
	mSourceAborted
	mTakeBack // the question of recover --resume-source
	mTargetAsked
	mTargetGranted
	mTargetResumed
	mTargetEnded
	mTargetAborted
	mTargetLost
	mTargetUnknown
	mDrained
)

// broken is what a wrong implementation does; the zero value is ours.
type broken struct {
	noFsync       bool // the source's grant is not fsynced before it is sent
	blindKeeper   bool // the keeper thaws without reading the record
	impatient     bool // the target lets go when nobody answers for long
	emptyIsProof  bool // "no such migration" counts as proof that the tree never ran there
	noRetract     bool // a grant that could not be written is left in the record, and the tree thawed
	grantsThawed  bool // a tree that dump.Granted finds thawed is granted all the same
	goneIsEnded   bool // a granted tree that is gone counts as ended, and the source kills its own
	cachedRecover bool // recover acts on a grant that may be in the page cache only
}

// begin: frozen on the source, images restored on the target.
func begin() state {
	return state{sc: Frozen, sd: Frozen, tc: Frozen, td: Frozen}
}

// edge is one step.
type edge struct {
	what  string
	fault bool // something breaks; all other steps are certain to happen in the end
	to    state
}

// steps lists all that can happen in s.
func (b broken) steps(s state) []edge {
	var out []edge
	add := func(what string, to state) { out = append(out, edge{what, false, to}) }
	fault := func(what string, to state) { out = append(out, edge{what, true, to}) }
	b.source(s, add, fault)
	b.recover(s, add, fault)
	b.target(s, add, fault)
	b.idle(s, add)
	for m := mHeld; m <= mDrained; m <<= 1 {
		if s.net&m != 0 {
			lost := s
			lost.net &^= m
			fault("network loses "+m.String(), lost)
		}
	}
	return out
}

func (b broken) source(s state, add, fault func(string, state)) {
	n := s
	switch s.sp {
	case sWait:
		if s.net&mHeld != 0 {
			n.sp = sHeld
			add("source gets held", n)
		}
		n.sp = sUndo
		add("source gives up: timeout, lost connection, error of the target, abort", n)
	case sHeld:
		n.sp = sChecked
		if s.tree != treeFrozen {
			n.sp = sUndo
		}
		add("source checks the freeze", n)
	case sChecked:
		n.sp = sUndo
		add("source hears that the target gives up", n)
		n = s
		n.sc, n.sp = Granted, sWrote
		add("source writes granted", n)
		n.sp = sFail
		fault("source's write of granted fails", n)
	case sWrote:
		n.sp = sDurable
		if !b.noFsync {
			n.sd = Granted
		}
		add("source fsyncs granted", n)
		n.sp = sFail
		fault("source's fsync of granted fails, it is on the disk", n)
		n.sd = s.sd
		fault("source's fsync of granted fails, it is not on the disk", n)
	case sFail:
		n.sp = sUndo
		if !b.noRetract {
			n.sc, n.sd = Frozen, Frozen
		}
		add("source takes granted out of the record", n)
		n = s
		die(&n)
		fault("source can't take granted out of the record; it ends, the tree stays frozen", n)
	case sDurable:
		if s.tree == treeFrozen || b.grantsThawed {
			if s.tree == treeFrozen {
				n.tree = treeStopped
			}
			n.keeper, n.sp = keeperGone, sServe
			add("source stops the tasks, ends the keeper", n)
		} else {
			n.sp = sFail
			add("source finds the tree thawed", n)
		}
	case sServe:
		b.serve(s, add)
	case sUndo:
		n.sp = sUndone
		thaw(&n)
		add("source thaws", n)
	case sUndone:
		n.net |= mAbort
		n.sc, n.sd, n.sp = Aborted, Aborted, sTell
		add("source says abort, records it", n)
	case sTell:
		n.net |= mSourceAborted
		add("source says again that it gave up", n)
		n = s
		n.keeper = keeperGone // it has been told that all is undone
		n.sp = sDead
		add("source ends", n)
	case sResume:
		n.sp = sTell
		n.op = false
		thaw(&n)
		add("source thaws with the target's proof", n)
	}
	if s.sp != sDead {
		n = s
		die(&n)
		fault("kill -9 of the source", n)
	}
	n = s
	n.keeper = keeperGone
	if s.keeper == keeperOrphan {
		if b.blindKeeper || s.sc == Frozen {
			thaw(&n)
			add("keeper thaws", n)
		} else {
			add("keeper reads the record and lets all be", n)
		}
	}
	n = s
	n.keeper = keeperGone
	if s.keeper != keeperGone {
		fault("kill -9 of the keeper", n)
	}
	if s.tree == treeFrozen {
		n = s
		thaw(&n)
		fault("somebody thaws the tree's cgroup", n)
	}
	if !s.booted {
		n = s
		n.sp, n.keeper, n.sc, n.booted = sDead, keeperGone, s.sd, true
		if s.tree != treeKilled {
			n.tree = treeLost
		}
		fault("source host crashes", n)
	} else if s.tree == treeLost && s.sd != Granted && !s.sran {
		n = s
		n.tree, n.sran = treeRuns, true
		add("the service is started again on the source: no grant on its disk", n)
	}
}

// serve is the source after the grant.
func (b broken) serve(s state, add func(string, state)) {
	n := s
	n.net |= mGrant
	add("source says grant", n)
	n = s
	n.net |= mSourceGranted
	add("source dials again: state granted", n)
	if s.op {
		n = s
		n.net |= mTakeBack
		add("source asks for the tree back", n)
	}
	if s.net&mTargetAborted != 0 || s.op && b.emptyIsProof && s.net&mTargetUnknown != 0 {
		n = s
		n.sc, n.sd, n.sp = Aborted, Aborted, sResume
		add("source has the target's proof, records aborted", n)
	}
	if s.net&(mDrained|mTargetEnded) != 0 && s.tree == treeStopped {
		n = s
		n.tree = treeKilled
		add("source kills the frozen tree", n)
	}
	if s.net&(mTargetAborted|mTargetLost|mTargetUnknown) != 0 {
		n = s
		die(&n)
		add("source hears that the tree is not there; it ends, the tree stays frozen", n)
	}
}

func die(s *state) {
	s.sp = sDead
	if s.keeper == keeperWaits {
		s.keeper = keeperOrphan
	}
}

func thaw(s *state) {
	if s.tree == treeFrozen || s.tree == treeStopped {
		s.tree, s.sran = treeRuns, true
	}
}

// recover is what an operator, or the host's start, does with a source whose process is gone.
func (b broken) recover(s state, add, _ func(string, state)) {
	frozen := s.tree == treeFrozen || s.tree == treeStopped
	if s.sp != sDead || !frozen {
		return
	}
	n := s
	switch s.sc {
	case Granted:
		n.sp, n.tree = sServe, treeStopped
		if !b.cachedRecover {
			n.sd = Granted
		}
		add("recover: the record says granted, serves", n)
		n.op = true
		add("recover --resume-source: asks the target", n)
	case Frozen:
		n.sp = sUndo
		add("recover: no grant, gives up", n)
	case Aborted:
		n.sp = sResume
		add("recover: aborted, thaws", n)
	}
}

func (b broken) target(s state, add, fault func(string, state)) {
	n := s
	switch s.tp {
	case tHeld:
		n.tc, n.tp = Asked, tAskWrote
		add("target writes asked", n)
		n = s
		n.tp = tAbort
		add("target gives up: lost connection, abort, agent ends", n)
	case tAskWrote:
		n.td, n.tp = Asked, tAsked
		n.net |= mHeld
		add("target fsyncs asked, says held", n)
	case tAsked:
		if s.net&mGrant != 0 {
			n.tp = tGot
			add("target gets the grant", n)
		}
		if b.impatient {
			n.tp = tGot
			add("target has waited long enough", n)
		}
		if s.net&mSourceGranted != 0 {
			n = s
			n.net |= mTargetAsked | mHeld
			add("target says asked, and asks again", n)
		}
		n = s
		n.tp = tAbort
		if s.net&(mAbort|mSourceAborted) != 0 {
			add("target hears that the source gave up", n)
		}
		if s.net&mTakeBack != 0 {
			add("target is asked for proof", n)
		}
		fault("agent ends", n)
		fault("criu dies over the tree that it holds", n)
	case tGot:
		n.tc, n.tp = Granted, tGrantWrote
		add("target writes granted", n)
	case tGrantWrote:
		n.td, n.tp = Granted, tGranted
		add("target fsyncs granted", n)
		n.tc, n.td, n.tp = Asked, Asked, tAbort
		fault("target can't record the grant, agent ends", n)
	case tGranted:
		n.cap, n.tp = capFinished, tFinished
		add("target lets criu finish", n)
		n = s
		n.tp = tAbort
		fault("criu dies over the tree that it holds: the guardian proves that it never ran", n)
	case tFinished:
		n.cap, n.tran, n.tp = capRuns, true, tReleased
		add("target releases the tree", n)
	case tReleased:
		n.tc, n.td, n.tp = Resumed, Resumed, tRun
		add("target records resumed", n)
	case tRun:
		n.net |= mDrained | mTargetResumed
		add("target says resumed, drained", n)
	case tAbort:
		n.cap, n.tp = capNone, tKilled
		add("target kills what it held", n)
	case tKilled:
		n.tc, n.td, n.tp = Aborted, Aborted, tIdle
		add("target records aborted", n)
	case tDead:
		n.tp = tIdle
		add("agent is started again", n)
	}
	if s.tp != tDead {
		n = s
		n.tp = tDead
		fault("kill -9 of the agent", n)
	}
	if s.tp == tDead || s.tp == tIdle {
		if s.cap == capHeld {
			n = s
			n.cap = capNone
			add("guardian sees that its agent is gone and ends", n)
		}
	}
	if s.tp == tDead {
		n = s
		n.cap, n.tc = capNone, s.td
		fault("target host crashes", n)
		n.tc, n.td = "", ""
		fault("target host is installed anew", n)
	}
}

// idle is an agent that finds the record of an agent before it.
func (b broken) idle(s state, add func(string, state)) {
	if s.tp != tIdle {
		return
	}
	n := s
	switch {
	case s.cap == capHeld && s.tc == Asked:
		n.td, n.tp = Asked, tAsked
	case s.cap == capHeld && s.tc == Granted:
		n.td, n.tp = Granted, tGranted
	case s.cap == capFinished:
		n.tp = tFinished
	case s.cap == capRuns:
		n.tp = tReleased
	}
	if n != s {
		add("agent takes up what the agent before it left", n)
		n = s
	}
	if s.cap == capNone {
		switch s.tc {
		case Frozen, Asked:
			n.tc, n.td = Aborted, Aborted
		case Granted:
			n.tc, n.td = LostTree, LostTree // whether it ran can't be told
			if b.goneIsEnded {
				n.tc, n.td = Ended, Ended
			}
		case Resumed:
			n.tc, n.td = Ended, Ended
		}
		if n != s {
			add(fmt.Sprintf("agent finds nothing of a migration in state %s, records %s", s.tc, n.tc), n)
			return
		}
	}
	if s.net&(mSourceGranted|mSourceAborted|mTakeBack) == 0 {
		return
	}
	answer := map[State]messages{
		"": mTargetUnknown, Frozen: mTargetAsked, Asked: mTargetAsked, Granted: mTargetGranted, Resumed: mTargetResumed, Ended: mTargetEnded,
		Aborted: mTargetAborted, LostTree: mTargetLost,
	}[s.tc]
	n.net |= answer
	add("agent answers "+answer.String(), n)
}

func (m messages) String() string {
	names := [...]string{
		"held", "grant", "abort", "source's state granted", "source's state aborted", "the question for the tree", "target's state asked",
		"target's state granted", "target's state resumed", "target's state ended", "target's state aborted", "target's state lost",
		"target's state unknown", "drained",
	}
	for i, n := range names {
		if m == 1<<i {
			return n
		}
	}
	return fmt.Sprintf("messages %#x", uint16(m))
}
