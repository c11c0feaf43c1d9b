package unit

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"golang.org/x/sys/unix"
)

// A running service keeps the WatchdogSec that it was started with, whatever is loaded later (src/core/service.c, watchdog_original_usec, systemd 252). Only the service itself
// can change it, by a message (WATCHDOG_USEC=, sd_notify(3)). Who has CAP_SYS_ADMIN may say in a message's credentials that another process has sent it (unix(7)).

const notifySocket = "/run/systemd/notify"

// setWatchdog sets the interval, in µs, of a service that runs, and waits until systemd has it; 0: none.
func setWatchdog(ctx context.Context, c *dbus.Conn, name string, interval uint64) error {
	for sent := false; ; sent = true {
		now, err := number[uint64](ctx, c, name, "WatchdogUSec")
		if err != nil {
			return err
		}
		pid, err := number[uint32](ctx, c, name, "MainPID")
		if err != nil {
			return err
		}
		if now == interval || off(now) && off(interval) || pid == 0 { // nothing to do, or nothing runs
			return nil
		}
		if !sent {
			if err := notify(int32(pid), fmt.Sprintf("WATCHDOG_USEC=%d", interval)); err != nil {
				return err
			}
		}
		select {
		case <-time.After(10 * time.Millisecond): // nothing tells that it has been read
		case <-ctx.Done():
			return fmt.Errorf("set the watchdog of %s to %d µs, which systemd says is %d: %w", name, interval, now, ctx.Err())
		}
	}
}

// notify says something to systemd in the name of a process.
func notify(pid int32, text string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("reach systemd: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendmsg(fd, []byte(text), unix.UnixCredentials(&unix.Ucred{Pid: pid}), &unix.SockaddrUnix{Name: notifySocket}, 0); err != nil {
		return fmt.Errorf("tell systemd %s for process %d: %w", text, pid, err)
	}
	return nil
}

// off says whether there is no watchdog: systemd shows none that was ever set in another way than one that was taken away.
func off(interval uint64) bool { return interval == 0 || interval == math.MaxUint64 }
