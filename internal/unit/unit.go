// Package unit keeps systemd's hands off a service whose processes are moved away: they stand still, so its watchdog would kill them, and then they are
// killed here, so Restart= would start the service a second time, on old files, and so would the next boot.
//
// It speaks D-Bus with systemd (go-systemd), so it works in a process that may start no program.
//
// Trust boundary: the unit's name comes from a process's cgroup; what is no plain name of a service is refused before it becomes part of a path.
package unit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"golang.org/x/sys/unix"
)

const (
	runtimeUnits = "/run/systemd/system" // gone after a boot
	dropIn       = "90-lazymig.conf"
	timeout      = 30 * time.Second
)

// ErrName says that it is no service.
var ErrName = errors.New("no name of a service")

// check looks at a name before it becomes a path: letters and digits of units, and what they escape with (systemd.unit(5)).
func check(name string) error {
	ok := strings.HasSuffix(name, ".service") && len(name) < 256 && !strings.HasPrefix(name, ".")
	for _, c := range name {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune(`:-_.\@`, c))
	}
	if !ok {
		return fmt.Errorf("%q: %w", name, ErrName)
	}
	return nil
}

// with calls f with a connection to systemd.
func with(name string, f func(context.Context, *dbus.Conn) error) error {
	if err := check(name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := dbus.NewWithContext(ctx)
	if err != nil {
		return fmt.Errorf("reach systemd: %w", err)
	}
	defer c.Close()
	return f(ctx, c)
}

// Watchdog is the interval, in µs, in which the running service has to say that it lives; 0: none.
func Watchdog(name string) (interval uint64, err error) {
	err = with(name, func(ctx context.Context, c *dbus.Conn) error {
		interval, err = number[uint64](ctx, c, name, "WatchdogUSec")
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("ask systemd for the watchdog of %s: %w", name, err)
	}
	if off(interval) {
		interval = 0
	}
	return interval, nil
}

// Hold sets Restart=no for as long as the host is up, turns the watchdog off, and proves that systemd knows. It tells which other units may start this one: sockets,
// timers, paths. watchdog is what Watchdog has found, and what the service gets back if this fails: then nothing has changed.
func Hold(name string, watchdog uint64) (triggers []string, err error) {
	err = with(name, func(ctx context.Context, c *dbus.Conn) error {
		p, err := c.GetUnitPropertyContext(ctx, name, "LoadState")
		if err == nil && p.Value.Value() != "loaded" {
			err = fmt.Errorf("it is %v: %w", p.Value.Value(), fs.ErrNotExist)
		}
		if err != nil {
			return err
		}
		if err := running(ctx, c, name); err != nil {
			return err
		}
		if p, err := c.GetUnitPropertyContext(ctx, name, "TriggeredBy"); err == nil {
			triggers, _ = p.Value.Value().([]string)
		}
		dir := filepath.Join(runtimeUnits, name+".d")
		err = os.MkdirAll(dir, 0o755) //nolint:gosec // systemd's own are so
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, dropIn), []byte("# by lazymig, while it moves this service away\n[Service]\nRestart=no\n"), 0o644) //nolint:gosec // as above
		}
		if err == nil {
			err = c.ReloadContext(ctx)
		}
		if err == nil {
			err = neverRestarts(ctx, c, name)
		}
		if err == nil {
			err = setWatchdog(ctx, c, name, 0)
		}
		if err == nil {
			err = running(ctx, c, name) // not killed by it in the last moment
		}
		if err != nil {
			return errors.Join(err, release(ctx, c, name, watchdog))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("keep systemd from killing and restarting %s: %w", name, err)
	}
	return triggers, nil
}

var errNotRunning = errors.New("systemd knows of no main process")

func running(ctx context.Context, c *dbus.Conn, name string) error {
	pid, err := number[uint32](ctx, c, name, "MainPID")
	if err == nil && pid == 0 {
		err = errNotRunning
	}
	return err
}

var errNotHeld = errors.New("another setting stands above it (systemctl cat shows which)")

func neverRestarts(ctx context.Context, c *dbus.Conn, name string) error {
	p, err := c.GetServicePropertyContext(ctx, name, "Restart")
	if err != nil {
		return err
	}
	if r, _ := p.Value.Value().(string); r != "no" {
		return fmt.Errorf("it has Restart=%s: %w", r, errNotHeld)
	}
	return nil
}

// number is a property.
func number[T uint32 | uint64](ctx context.Context, c *dbus.Conn, name, property string) (T, error) {
	p, err := c.GetServicePropertyContext(ctx, name, property)
	if err != nil {
		return 0, err
	}
	n, ok := p.Value.Value().(T)
	if !ok {
		return 0, fmt.Errorf("%s of %s is %v", property, name, p.Value)
	}
	return n, nil
}

// Release gives the unit its own settings back; watchdog is what Watchdog has found before Hold. It may be called again, and for a unit that was not held, or is dead.
func Release(name string, watchdog uint64) error {
	err := with(name, func(ctx context.Context, c *dbus.Conn) error { return release(ctx, c, name, watchdog) })
	if err != nil {
		return fmt.Errorf("give %s its own settings back (remedy: remove %s, systemctl daemon-reload): %w", name, filepath.Join(runtimeUnits, name+".d", dropIn), err)
	}
	return nil
}

func release(ctx context.Context, c *dbus.Conn, name string, watchdog uint64) error {
	if err := setWatchdog(ctx, c, name, watchdog); err != nil {
		return err
	}
	dir := filepath.Join(runtimeUnits, name+".d")
	err := os.Remove(filepath.Join(dir, dropIn))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return c.ReloadContext(ctx)
}

// Enabled says whether a boot starts it.
func Enabled(name string) (yes bool, err error) {
	err = with(name, func(ctx context.Context, c *dbus.Conn) error {
		p, err := c.GetUnitPropertyContext(ctx, name, "UnitFileState")
		if err == nil {
			yes = p.Value.Value() == "enabled"
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("ask systemd about %s: %w", name, err)
	}
	return yes, nil
}

// Disable lets no boot start it.
func Disable(name string) error {
	err := with(name, func(ctx context.Context, c *dbus.Conn) error {
		if _, err := c.DisableUnitFilesContext(ctx, []string{name}, false); err != nil {
			return err
		}
		return c.ReloadContext(ctx)
	})
	if err != nil {
		return fmt.Errorf("disable %s, which lives elsewhere now (remedy: systemctl disable %s): %w", name, name, err)
	}
	return nil
}

// Enable lets a boot start it again.
func Enable(name string) error {
	err := with(name, func(ctx context.Context, c *dbus.Conn) error {
		if _, _, err := c.EnableUnitFilesContext(ctx, []string{name}, false, false); err != nil {
			return err
		}
		return c.ReloadContext(ctx)
	})
	if err != nil {
		return fmt.Errorf("enable %s again (remedy: systemctl enable %s): %w", name, name, err)
	}
	return nil
}
