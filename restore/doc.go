// Package restore makes the capsule in which a migrated tree lives on the target, restores the tree into it with
// CRIU, and keeps it fed with memory.
//
// # Processes
//
//	agent (this package's API), or who starts processes for it (Free)
//	  ├── guardian    PID 1 of new PID, mount, UTS and IPC namespaces; holds the userfaultfds (package restore/memory)
//	  │     ├── criu swrk     restores, held at post-restore, gone after the release
//	  │     └── the tree      children of PID 1, same PIDs as at the source
//	  └── handler     TLS lanes to the source; brings page bytes to the guardian through shared memory; may die at any time
//
// Guardian and handler are this program's hidden subcommands GuardianArg and HandlerArg: GuardianMain and HandlerMain.
//
// # Who dies, and what then
//
//	agent        before the question: all of this is taken away; later the next one takes over (Adopt)
//	handler      the next is started, by the agent; who waits for pages waits
//	guardian     the tree dies with it, on purpose (below); the agent sees the end
//	criu         before the release: the restore has failed. It is gone after it
//	carrier      package migrate: the agent starts the next with what the guardian keeps for it (kept.go)
//	switch       package restore/detach: the tree goes on, or dies as a whole; never a half of it. The agent starts the next
//	FUSE daemon  package migrate: its keeper starts the next. The keeper: the agent starts both
//
// # From Start to the end
//
//	Start          cgroups; guardian stage 1: PID window (see pidWindow), exec; stage 2: root mounted, pivoted, ready
//	StartHandler   handler process; lanes are given to it as they are dialed
//	Restore        CRIU restores with lazy pages; returns when it is held at post-restore: not one instruction has run; shared
//	               memory, which CRIU has made empty, is taken hold of then (share.go)
//	Finish         after the grant: criu goes on to its last step before the first instruction
//	Outlive        when the question is on disk: the guardian no longer ends with the agent. The next one takes over by Adopt
//	Release        lets go
//	Hot            which pages are pushed first
//	StartDrain     large regions are surveyed, then all pages are pushed; event Drained
//	Leave          the tree needs nobody any more: the guardian becomes a bare init (bareinit.go), the handler ends
//	Kill, Close    the tree first, then the guardian
//
// # Why the tree is killed before its guardian
//
// When the last copy of a userfaultfd is closed, missing pages read as zeros. A guardian that dies first would let the
// tree run on zeros until the kernel has killed its namespace, and a write(2) that waits for a page would put zeros into a
// file. So the tree has a cgroup of its own, which is killed as a whole and empty before the guardian gets its signal. And
// because a guardian may be killed by others, see holder.go.
//
// # Trust boundary
//
// Agent, guardian and handler trust each other, but the guardian checks what a handler says (slots, lengths, runs): it may
// have been killed in the middle. The tree runs as what it is, often root, in the capsule: it can reach its PID 1.
// Images and page bytes come from the source, which is authenticated by TLS and trusted with the contents of the tree.
//
// # Locks
//
// Handler.mu, Capsule.mu and eventQueue.mu are leaves of the agent's side, none is held with another. In the guardian the engine
// calls link.Ask under its own lock: link.mu, early.mu below that. hub.mu is a leaf. None of them is held while the engine is called.
package restore
