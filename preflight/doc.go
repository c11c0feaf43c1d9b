// Package preflight says, before anything is frozen, whether a process tree can be migrated, whether this host can be
// its source or target, and whether one host can take over from another.
//
// # Purpose
//
// CRIU finds many obstacles only in the middle of a dump, names them poorly, and loses some properties without a word.
// Process looks at the running tree through /proc, unix_diag, kcmp and pidfd_getfd and answers with findings: what was
// seen, why it matters, what to do. A finding at level Refuse forbids the migration; options which CRIU needs and
// properties to be applied again at the target are collected in Want, nobody has to pass them by hand.
//
// # Trust boundary
//
// The tree is not trusted: its names, paths and sockets are text that it chose. All of it is parsed with bounds and only
// quoted in findings. Facts of a peer are data from another host: Compare reads them and allocates nothing by them.
//
// # Algorithm
//
// The tree is enumerated by /proc/PID/task/TID/children. Each task is read once (stat, status, namespaces, descriptors,
// smaps), then each thread. What the tree holds and others could hold too (pipes, sockets, memory, eventfds …) is put
// into one index, and all other processes of the host are then scanned once against it: who holds the other end is named
// in the finding. Tasks that end meanwhile are left out. Nothing is ever written to, no descriptor is read.
// Last, unless NoProbe is set, each process is stopped for some tens of microseconds to ask the two things that no file
// shows (see probe_linux.go).
//
// There are no locks: everything here runs in the caller's goroutine.
package preflight
