// Package criu starts and drives CRIU: one `criu swrk` process a request, over its RPC socket.
//
// # Why not go-criu's own driver
//
// The RPC messages are go-criu's (package rpc). Its driver has no callback for query-ext-files and pre-resume, cannot
// start criu in other namespaces or by another dynamic linker, and loses CRIU's messages.
//
// # How a request goes
//
//	Start: fork on a thread that Options.Thread may have moved into other namespaces; criu waits for a request
//	Dump/Restore: send the request, then answer each notification by calling Notify, until the answer comes
//	Wait: criu has ended; a Worker serves one request
//
// CRIU is told to log to its standard error unless the caller names a log file; that is a memfd here, so that the last
// lines are there for an error in whichever namespaces criu runs, and nobody has to read a pipe.
//
// # Trust boundary
//
// criu is trusted as this process is. What it reads from a peer's images is not its driver's concern.
//
// # Locks
//
// Worker.mu guards the state of the one request; it is not held while Notify runs.
package criu
