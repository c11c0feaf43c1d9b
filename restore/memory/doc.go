// Package memory fills the memory of a migrated tree: the engine in the guardian, the only process that holds and
// touches the tree's userfaultfds. A handler, which may die at any time, only brings bytes.
//
// # Objects
//
// A region is a range of a task of the source. A page of it is taken at most once by each mm: filled with the source's
// bytes, or dropped because the process threw it away before they came. After that, missing means zero. An mm has a
// layout (which address shows which page of which region) and one bit a page that is set when the page was taken. A fork
// copies both, and a page that arrives goes into every mm of the family that misses it. Memory of no region (grown by
// mremap, left behind by MREMAP_DONTUNMAP) is zero. Where memory is short a fork waits (shortage.go).
//
// # Shared memory
//
// An object (shared.go) is a region that several mms show. Its bits are not theirs but the object's, which is filled through a mapping of
// this process that no process of the tree can change: UFFDIO_COPY there, then UFFDIO_WAKE where threads wait. The mms are registered for their
// faults and events only. Where in the object a fault belongs is a guess that can't do harm: a page is filled with the source's
// bytes for that page or not at all. So mremap, munmap and fork are followed for the sake of speed, and what they leave unknown is looked
// up in /proc/PID/maps. Only a drop has to be right: MADV_REMOVE marks pages as taken for everybody before its thread goes on, and
// MADV_DONTNEED, which has the same event, does not (scene.go). An mm is given up when it and all objects miss nothing.
//
// # Order
//
// The kernel posts the event of an munmap, mremap, madvise or fork after it has dropped the mmap lock, so the events of
// several threads can be read in another order than that in which the mappings changed. But it counts the operations
// that are under way (mmap_changing) from before they change anything until their event has been read and their thread
// has run again, and refuses every fill meanwhile. So events are collected until that count is zero: then all that have
// changed the layout have been read, and none is in the middle. The batch is applied in the order that fits the layout
// before and the memory that is registered now (order.go). Faults are looked at after that, and pages that came
// meanwhile are parked. An mm whose batch is applied is settled; only a settled mm is filled, and the kernel's count
// makes sure that it has stayed so until the fill is done.
//
// # What is asked for when
//
// A fault asks for its block at once. If it shows that a thread walks or strides (predict.go), what lies before that thread is asked for, in small pieces over
// the same lane (ahead.go). All else is pushed (bulk in wants.go): what the source has found in use (hot.go), then around the last faults, then in the order of addresses.
// What of that lies scattered is asked for many ranges at a time, so that a long line carries as much of it as of what is in one piece.
//
// # Locks
//
// One mutex is held over "read events, apply them" and over every fill, so that no page can be filled between a REMOVE
// that was read and the bits that it sets. Handlers are asked, and descriptors closed, after it is released.
//
// # Trust
//
// Addresses in events are the kernel's. Answers are a handler's: their lengths are checked against the want. Bytes are
// copied as they come, pagesrv and TLS vouch for them. Go never reads or writes registered memory.
//
// # What is not seen
//
// MADV_GUARD_INSTALL throws pages away without an event. Guards are looked for before each fill (skipGuards), but a page
// that was made a guard and is none any more when it comes gets the source's bytes, where zeros would be right. The same
// is true of a guard made in the microseconds between the look and the fill.
package memory
