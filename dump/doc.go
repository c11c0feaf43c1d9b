// Package dump freezes a process tree and makes CRIU images of it in a time that does not grow with its memory.
//
// # Algorithm
//
//	Prepare (the tree runs)
//	  tree enumerated, moved into a cgroup v2 of its own, the smaps of each process read; the keeper started;
//	  `criu swrk` started in the tree's namespaces, probed, and held at its pre-dump notification
//	Freeze
//	  cgroup.freeze (not frozen within 200 ms: thawed, again after 100 ms, up to five times, then the tree runs and the migration
//	  has failed); maps compared with the snapshot (a process whose maps differ is read again, frozen as it is);
//	  a copy of each smaps without the private anonymous mappings bound over /proc/PID/smaps; pre-dump answered;
//	  CRIU seizes, dumps what it sees, freezes again and ends; the binds go; the hidden mappings are put into the images;
//	  checked: criu ended with 0, cgroup.events says frozen 1, the tasks in the cgroup are those in the images
//	Granted      the keeper may not thaw any more; every task has a SIGSTOP pending as well
//	KillTree     cgroup.kill
//	Abort        all undone: the tree runs as before
//
// The design speaks of thawing and taking a new snapshot where maps have changed. Reading again while frozen gives the
// same certainty, costs a few milliseconds for that one process, and cannot fail to come to an end.
//
// # What is hidden
//
// A mapping that CRIU's restore would register with its userfaultfd: private, anonymous, not locked, not huge TLB, no
// shadow stack, not droppable, not device memory; stacks that grow down stay, because CRIU knows them by name.
//
// And shared memory from a megabyte on, anonymous or a memfd's, in all of its mappings or in none (shared.go): if one of them is locked, private, has guard
// pages or may not be written, or a process has the memory open as well, CRIU copies it as ever, and Result.Eager says why. (A read, a write or a new mapping through a
// descriptor would find holes where the pages are that have not come.) The images get the mappings, what makes a memfd that one, and an
// image of the memory without a page. SysV segments are not hidden: the kernel registers no attachment with a userfaultfd, and a new one (shmat), which any
// process of the tree may make at any time, would find holes, too.
//
// VmFlags may change without a change in maps. They are compared by a BPF iterator while the tree is frozen
// (vmflags.go); without one smaps is read again after the freeze, while the transfer is busy, and Check fails if a
// change would have altered a byte.
//
// # Frozen by CRIU's hand or ours
//
// CRIU thaws the cgroup once every task is seized (the parasite has to run) and freezes it again before it lets them go
// (option freeze_cgroup). It is told to leave the tree running, which in a frozen cgroup means frozen: no signal is
// sent, so that a roll-back leaves no trace, not even a SIGCONT that a handler could see. Granted sends SIGSTOP as a
// second lock, when there is no way back. CRIU removes link remaps of a tree that is left running; they are kept by a
// second name (remap.go).
//
// # Who undoes
//
// Abort, or the keeper, a process of its own, when this one is gone without a grant. Both run the same code (undo.go):
// wait until criu has ended, remove the binds, thaw, move each process back, remove the cgroup.
//
// # Trust boundary
//
// The tree is not trusted: it may fork, exit and map while it is looked at; paths and names in /proc are its own.
// Everything is keyed by pid and start time, and read from /proc only.
//
// # Locks
//
// Dump.mu guards the state; it is held for the whole of Freeze, Abort, Granted, KillTree and Close.
package dump
