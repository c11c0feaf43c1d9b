package migrate

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/confine"
)

// What the processes of this package may do: SECURITY.md has the reasons. Not the starter: the tree descends from it, and would inherit what it gives up.

// agentLimits are those of the agent, which reads from the network.
func agentLimits() confine.Limits {
	return confine.Limits{Keep: []int{
		unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL, unix.CAP_NET_BIND_SERVICE,
	}}
}

// agentRefuses is what the agent leaves to others: it starts no program, looks into no other process, mounts nothing and enters no namespace.
func agentRefuses() []confine.Rule {
	return append(confine.Never(), confine.Any(unix.SYS_PROCESS_VM_READV, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP)...)
}

// fuseLimits are those of the FUSE daemon, which reads from the network, and of its keeper. dir is the migration's: store, sockets, what a successor needs.
func fuseLimits(dir string) confine.Limits {
	return confine.Limits{
		Keep: []int{
			unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_MKNOD, unix.CAP_SETFCAP, unix.CAP_SYS_ADMIN,
			unix.CAP_IPC_LOCK, unix.CAP_SYS_NICE,
		},
		// The last is for the mount's readahead.
		Writable: []string{dir, "/dev/fuse", os.DevNull, "/sys/devices/virtual/bdi"},
	}
}

// fuseCalls is all that the FUSE daemon calls: it gets its connections from the agent.
func fuseCalls() []confine.Rule {
	return append(append(confine.Files(), confine.Any(unix.SYS_IOCTL)...), confine.Runtime(os.Getpid())...)
}

// carrierLimits are those of the carrier, which passes on what the network brings.
func carrierLimits() confine.Limits {
	return confine.Limits{Keep: []int{unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH}}
}

func carrierCalls() []confine.Rule {
	return append(append(confine.Files(),
		append(confine.Any(unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_ACCEPT4, unix.SYS_EVENTFD),
			confine.Equal(unix.SYS_IOCTL, 1, unix.TIOCINQ), // how much is in a pipe
			confine.Equal(unix.SYS_SOCKET, 0, unix.AF_UNIX), confine.Equal(unix.SYS_SOCKETPAIR, 0, unix.AF_UNIX))...),
		confine.Runtime(os.Getpid())...)
}

// sourceLimits are those of the source's process and of all that it starts: CRIU, keeper, warden, guest. The tree is none of them.
func sourceLimits() confine.Limits {
	return confine.Limits{Keep: []int{
		unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_MKNOD, unix.CAP_SETFCAP, unix.CAP_LEASE,
		unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_KILL, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_IPC_LOCK, unix.CAP_IPC_OWNER,
		unix.CAP_SYS_CHROOT, unix.CAP_SYS_PTRACE, unix.CAP_SYS_ADMIN, unix.CAP_SYS_NICE, unix.CAP_SYS_RESOURCE, unix.CAP_BPF, unix.CAP_PERFMON,
		unix.CAP_CHECKPOINT_RESTORE,
	}}
}

// confineServing is from the grant on: what is left to be done is to serve, and to kill the frozen tree. No program is started any more.
func (s *Source) confineServing() {
	s.warden.seal()
	if err := confine.Refuse(confine.Never()...); err != nil {
		s.log.Warn("serve without a filter of system calls", "err", err)
	}
}
