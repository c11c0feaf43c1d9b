package wire

import (
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Silence is how long a peer may say nothing, not even that it got something, before its connection counts as lost.
const Silence = 5 * time.Second

// NoticeSilence makes the kernel give a connection up after Silence, whether something is on its way (TCP_USER_TIMEOUT) or not
// (keepalive): a lane that is cut without a word is noticed, and dialed again.
func NoticeSilence(nc *net.TCPConn) error {
	const every = time.Second
	err := nc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: every, Interval: every, Count: int(Silence / every)})
	if err != nil {
		return fmt.Errorf("set keepalive: %w", err)
	}
	rc, err := nc.SyscallConn()
	if err != nil {
		return fmt.Errorf("set timeout of connection: %w", err)
	}
	var serr error
	err = rc.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(Silence.Milliseconds()))
	})
	if err == nil {
		err = serr
	}
	if err != nil {
		return fmt.Errorf("set timeout of connection: %w", err)
	}
	return nil
}
