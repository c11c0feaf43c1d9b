// Package lab makes two hosts, A and B, on one machine, for the demo, the tests
// and the benchmarks.
//
//	machine ─┬─ unshare(1) ── lab-init (PID 1 of A) ── commands
//	         └─ unshare(1) ── lab-init (PID 1 of B) ── commands
//	A 10.77.0.1 eth0 ═══ veth ═══ eth0 10.77.0.2 B
//
// A host is a set of namespaces: mount, PID, network, UTS, IPC and time. The
// machine's own network is not touched: the veth pair is made inside A's network
// namespace, its other end lives in B's. Both hosts see the machine's cgroup v2.
//
//   - A's root is the machine's, with private file systems on /tmp, /run, /srv,
//     /dev/shm and /var/lib/lazymig.
//   - B's root is a tmpfs of its own with the machine's /usr, /opt and what
//     Options.Share names, read-only, and a copy of /etc. It cannot see A's
//     files. Its monotonic and boot clocks are 1,000 s ahead, its PIDs start
//     elsewhere, so a number that ought to be carried over and is not shows.
//
// A host's init reaps, and serves commands on a Unix socket: each runs as a child
// of init in a session of its own, like a service and unlike a process that
// nsenter has pushed in (which has no parent there). When whoever made the lab
// ends, for whatever reason, the lifeline pipe closes, init exits, and the
// kernel kills all that ran in the host.
//
// A program that uses the lab calls [MaybeInit] first thing in main or TestMain:
// the same executable is started again as init and to run commands.
//
// Trust boundary: none; both sides of the socket are root and the same program.
package lab
