// Package detach moves a running process tree from one file system to local files, in one switch.
//
// Before it, every file that the tree uses is on a file system which is to go away (lazyfs, named by its device number); after it, no
// descriptor, mapping, executable, directory, lock, watch, socket or mount of the tree refers to that one any more.
//
// # The switch
//
//	stop      every thread is seized and interrupted (ptrace), until no new one shows
//	survey    what refers to the old file system? anything that can't be moved ends it here
//	reach     what the new root needs of the old one to take its place is opened (oldroot.go), and what stays on it
//	settle    the caller brings the last bytes over and names the local file of each inode
//	mount     the new root and its binds, over the old root; /proc, /dev, /sys … moved there
//	open      each open file description once, with the flags, offset, flock and OFD locks of the old one; FIFOs with what is in them (fifo.go)
//	prepare   in each process: descriptors received at free numbers, mappings made at free addresses, modified private
//	          pages copied there, directories entered, sockets listening. All of it can be undone
//	pivot     the new root becomes the root: from here it is finished, not undone
//	commit    in each process: mremap over the old mappings, dup3 over the old descriptors, the numbers by which SQLite knows its files, executable,
//	          POSIX locks, epoll
//	release   registers, masks and signals as they were; the old root is unmounted
//
// Whatever fails before the pivot leaves the tree as it was.
//
// Standard streams that go through a process of ours to a file or socket of this host are replaced by that (Options.Streams, stream.go).
//
// A directory may stay on the old file system on purpose (Options.Remote, remote.go): it is mounted in the new root, and what is in it is not moved.
//
// # A process of its own
//
// Ptrace ties a stopped tree to its tracer, so the switch has a process of its own (Apart, Main), started before the stop: it holds nothing of the old
// file system, needs its agent until the files are settled and nobody from then on. When all is in its place it leaves an outcome, a file,
// before anything runs, and whoever comes next finds that.
//
//	killed                          before settled                         mounts … commit                        released
//	agent                           undone, the tree goes on               it comes to its end                    it is at its end
//	the switch                      the kernel lets the tree go on         the tree dies as a whole               the tree lives
//	whoever serves the old files    undone                                 not needed                             not needed
//
// A tree that is half on new files must not run one instruction, and nobody can take a tracee over from a tracer that is dead: so from the first
// change on (stopped.bind) it is bound to the process by PTRACE_O_EXITKILL. The outcome is written while it is bound: a tree that
// dies in that moment is known to have been on its local files. Threads are set free one after the other; a kill in just these microseconds takes those processes
// that were not yet.
//
// # System calls in a tracee
//
// A thread of each process runs a table of system calls: code and table are mapped into it for the time being (inject.go), so
// that hundreds of calls take one stop. Whatever needs privileges that the process does not have is done here and passed by
// SCM_RIGHTS; seccomp filters are suspended for the time being (PTRACE_O_SUSPEND_SECCOMP). What a system call that was interrupted
// returns is left to the kernel: its registers come back as they were, and it restarts.
//
// # Trust boundary
//
// The tree may be hostile: what is read from its memory is only its own bytes and numbers of its own descriptors. Paths come from
// the caller and are resolved below the new root.
//
// # Locks
//
// None: Switch runs on one thread, as ptrace wants it, and a second one (fsthread.go) that lives in the tree's mount namespace.
package detach
