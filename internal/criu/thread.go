package criu

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// OnThrowawayThread runs f on a thread that ends with it, and returns when f has: f may change the thread's namespaces.
//
// A locked goroutine may sit on the program's main thread. Go does not end that one but parks it, and /proc/self would
// show its namespaces for ever. So f gets another goroutine while the main thread is held (TestNotTheMainThread).
func OnThrowawayThread(f func()) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			OnThrowawayThread(f)
			runtime.UnlockOSThread()
			close(done)
			return
		}
		defer close(done)
		f() // never unlocked: the thread ends with the goroutine
	}()
	<-done
}
