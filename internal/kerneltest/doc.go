// Package kerneltest is what tests that touch the kernel share: gates that
// ask for a feature, not for a uid ([Need]), checks that a test left nothing
// behind ([Leaks]), small C programs ([CompileC]) and waiting for an event
// instead of sleeping ([Eventually]).
//
// A missing feature skips the test, unless LAZYMIG_NO_SKIP=1 is set as in CI:
// there a skip could hide a failure, so it is one.
//
// Trust boundary: none, tests only. [Leaks] compares the whole process before
// and after, so a test that uses it must not run in parallel with another of
// its own package; other packages' tests may run at the same time.
package kerneltest
