package criu

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/setup"
)

// ctx with a bound that no healthy run comes near.
func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func find(t *testing.T) Options {
	t.Helper()
	path, prefix, err := Find("")
	if err != nil {
		if os.Getenv("LAZYMIG_NO_SKIP") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return Options{Path: path, Prefix: prefix}
}

// victim is a process of its own session that CRIU can dump.
func victim(t *testing.T) *exec.Cmd {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd := exec.Command("sleep", "1000")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, null
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func dumpOpts(pid int, dir string) *rpc.CriuOpts {
	skip := rpc.CriuNetworkLockMethod_SKIP
	return &rpc.CriuOpts{
		ImagesDirFd: new(int32(-1)), ImagesDir: new(dir), Pid: new(int32(pid)),
		LeaveRunning: new(true), LogLevel: new(int32(2)), NetworkLock: &skip, FileLocks: new(true), // of a descriptor that the test has inherited
	}
}

func TestDumpNotifies(t *testing.T) {
	o := find(t)
	p := victim(t)
	w, err := Start(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	dir := t.TempDir()
	var seen []string
	err = w.Dump(testContext(t), dumpOpts(p.Process.Pid, dir), func(script string, _ int32) error {
		seen = append(seen, script)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"pre-dump", "query-ext-files", "post-dump"} {
		if !slices.Contains(seen, want) {
			t.Errorf("no %s among %v", want, seen)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "pstree.img")); err != nil {
		t.Error(err)
	}
}

// TestByPrefix starts criu through a path that only exists in the child, in a thread of its own.
func TestByPrefix(t *testing.T) {
	o := find(t)
	if o.Prefix == "" {
		t.Skip("this criu has no libraries of its own")
	}
	dir, err := os.Open(o.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	images, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	p := victim(t)
	w, err := Start(testContext(t), Options{
		Prefix: "/proc/self/fd/4", ExtraFiles: []*os.File{dir, images},
		Thread: func() error { return unix.Unshare(unix.CLONE_FS) },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Dump(testContext(t), dumpOpts(p.Process.Pid, "/proc/self/fd/5"), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(images.Name(), "pstree.img")); err != nil {
		t.Error(err)
	}
}

func TestThreadFails(t *testing.T) {
	o := find(t)
	o.Thread = func() error { return unix.EXDEV }
	if _, err := Start(testContext(t), o); !errors.Is(err, unix.EXDEV) {
		t.Fatalf("got %v", err)
	}
}

func TestRefusedNotification(t *testing.T) {
	o := find(t)
	p := victim(t)
	w, err := Start(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	no := errors.New("no")
	err = w.Dump(testContext(t), dumpOpts(p.Process.Pid, t.TempDir()), func(script string, _ int32) error {
		if script == "pre-dump" {
			return no
		}
		return nil
	})
	if !errors.Is(err, no) {
		t.Fatalf("got %v", err)
	}
	if err := w.Wait(); err == nil {
		t.Error("criu ended with success")
	}
}

func TestErrorTellsWhy(t *testing.T) {
	o := find(t)
	w, err := Start(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	// A process of this one's session: a shell job.
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	err = w.Dump(testContext(t), dumpOpts(cmd.Process.Pid, t.TempDir()), nil)
	var ce *Error
	if !errors.As(err, &ce) || !strings.Contains(err.Error(), "session leader") {
		t.Fatalf("got %v", err)
	}
}

func TestCancel(t *testing.T) {
	o := find(t)
	p := victim(t)
	w, err := Start(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel := context.WithCancel(testContext(t))
	err = w.Dump(ctx, dumpOpts(p.Process.Pid, t.TempDir()), func(string, int32) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	select {
	case <-w.Done():
	case <-time.After(2 * time.Minute):
		t.Fatal("criu still runs")
	}
}

func TestKillInTheMiddle(t *testing.T) {
	o := find(t)
	p := victim(t)
	w, err := Start(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	err = w.Dump(testContext(t), dumpOpts(p.Process.Pid, t.TempDir()), func(string, int32) error { return w.Kill() })
	if err == nil {
		t.Fatal("no error")
	}
	if err := w.Wait(); err == nil {
		t.Error("criu ended with success")
	}
}

func TestFind(t *testing.T) {
	find(t)
	if _, _, err := Find("/does/not/exist"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	old := filepath.Join(t.TempDir(), "criu")
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho Version: 3.17.1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Find(old); !errors.Is(err, setup.ErrNoCRIU) {
		t.Errorf("got %v", err)
	}
}

// TestNotTheMainThread: with the main thread among those that Go may pick, none of many throw-away threads is it.
func TestNotTheMainThread(t *testing.T) {
	before, err := os.Readlink("/proc/self/ns/uts")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			OnThrowawayThread(func() {
				if unix.Gettid() == unix.Getpid() {
					t.Error("on the main thread")
					return
				}
				if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil && !errors.Is(err, unix.EPERM) {
					t.Error(err)
				}
			})
		})
	}
	wg.Wait()
	if now, err := os.Readlink("/proc/self/ns/uts"); err != nil || now != before {
		t.Errorf("the program's namespace was %s, is %s (%v)", before, now, err)
	}
}
