package wire

import "fmt"

// Type numbers a message. Numbers are never reused.
type Type uint16

// Every lane.
const (
	MsgHello Type = 1 // Hello
	MsgError Type = 2 // Error: the request with this ID failed
	MsgPing  Type = 3 // heartbeat; answered by MsgPong with the same ID, its payload is forgotten
	MsgPong  Type = 4
)

// Control lane, source to target unless it says otherwise. Payloads are JSON (see package migrate).
const (
	MsgPrepare   Type = 100 // what is to come: names, sizes, options
	MsgPrepared  Type = 101 // target: ready, or why not
	MsgImages    Type = 102 // one piece of one image file
	MsgRestore   Type = 103 // all images have been sent
	MsgHeld      Type = 104 // target: restored, held before its first instruction; asks for the grant
	MsgGrant     Type = 105 // the source will never run the tree again
	MsgResumed   Type = 106 // target: the tree runs
	MsgProgress  Type = 107 // target: how far the drain is
	MsgDrained   Type = 108 // target: all memory is here
	MsgExited    Type = 109 // target: the tree has ended by itself
	MsgAbort     Type = 110 // either side, before the grant
	MsgEnd       Type = 111 // source: nothing more will be served
	MsgClock     Type = 112 // wall clock exchange
	MsgDial      Type = 115 // target: dial these lanes (again)
	MsgState     Type = 116 // opens a control connection of a migration that has begun: where its sender stands; answered alike
	MsgStream    Type = 118 // both: bytes of a standard stream; binary, as the two below (see package migrate)
	MsgStreamAck Type = 119 // both: so many bytes have been passed on
	MsgStreamEnd Type = 120 // both: no more bytes come, or are wanted
	MsgDetached  Type = 121 // target: the tree needs nothing of the source any more
	MsgStays     Type = 122 // target: the tree stays with its forwarded files, and why; or what alone it needs
	MsgFiles     Type = 123 // target: how far the files are
	MsgAhead     Type = 124 // memory of the running tree; binary, as the next (see package migrate)
	MsgAheadGood Type = 125 // which of it is as it is in the frozen tree
	MsgHot       Type = 126 // which pages of the running tree are in use, the hottest first
	MsgCheck     Type = 113 // what can the target do?
	MsgCheckAns  Type = 114
)

// Urgent and bulk lane: package pagesrv. Answers may come in another order than their requests.
//
//	MsgPages   task u32, address u64, pages u32 (1…256); FlagPrefetch on the urgent lane: nobody waits for them yet
//	MsgPaged   count u32, count × {kind u8, errno u16, pages u32}, then the bytes of the data runs in order.
//	           Kinds: 1 data, 2 zero, 3 guard, 4 poison, 5 error (errno only here). The runs cover the request exactly.
//	MsgLayout  task u32, start u64, end u64
//	MsgLaid    end u64 (how far this goes), count u32, count × {start u64, end u64}: to be fetched; all else up to end is zero.
//
// MsgError with ESRCH: the task is lost, and so are its pages.
const (
	MsgPages  Type = 200 // target: wants pages
	MsgPaged  Type = 201 // source: the pages
	MsgLayout Type = 202 // target: which pages of a range have to be fetched?
	MsgLaid   Type = 203
)

// Flags of MsgPages and MsgPaged.
const (
	FlagPrefetch uint16 = 1 // MsgPages: what was asked without it is answered first
	FlagS2       uint16 = 2 // MsgPages, bulk lane: the answer's bytes may be one block of S2; MsgPaged: they are
	FlagZstd     uint16 = 4 // the same of one frame of Zstandard
)

// Files lane: package remotefs, from 300. A reply has the number of its request plus 1.

// Lane tells what a connection is for.
type Lane uint8

// The lanes.
const (
	LaneControl Lane = 1
	LaneUrgent  Lane = 2
	LaneBulk    Lane = 3
	LaneFiles   Lane = 4
)

// MaxBulk is how many bulk lanes a migration may have: LaneBulk, and more where one connection is not enough.
const MaxBulk = 8

const moreBulk Lane = 16 // the second, and so on

// BulkLane is the n'th bulk lane, from 0 on.
func BulkLane(n int) Lane {
	if n == 0 {
		return LaneBulk
	}
	return moreBulk + Lane(n-1)
}

// Bulk says that l is one of the bulk lanes.
func (l Lane) Bulk() bool { return l == LaneBulk || l >= moreBulk && l < moreBulk+MaxBulk-1 }

func (l Lane) known() bool { return l >= LaneControl && l <= LaneFiles || l.Bulk() }

func (l Lane) String() string {
	if l.Bulk() && l != LaneBulk {
		return fmt.Sprintf("bulk %d", l-moreBulk+2)
	}
	switch l {
	case LaneControl:
		return "control"
	case LaneUrgent:
		return "urgent"
	case LaneBulk:
		return "bulk"
	case LaneFiles:
		return "files"
	}
	return fmt.Sprintf("lane %d", uint8(l))
}

// Limits of what is accepted from a peer.
const (
	Version    = 1
	HeaderSize = 16
	MaxPayload = 1<<20 + 64<<10 // bytes in one frame
)
