// Package pagesrv brings the memory of a frozen process tree to the host where the tree goes on.
//
// The Server reads at the source, the Client asks at the target, over package wire's connections. Two lanes,
// each a connection of its own: a thread is stopped for what goes over the urgent one, all else is bulk.
//
// # What is an answer
//
// A request names a task, a page aligned address and 1 to MaxPages pages. The answer covers exactly these
// pages by runs: bytes, zeros, guard, poison, or an error. The wrong byte is the worst failure, so zero has to be proven:
//
//  1. PAGEMAP_SCAN (before 6.7: a read of pagemap) says what is there. What it calls present or swapped is
//     read by process_vm_readv; where that says EFAULT (no read permission) by /proc/PID/mem, which overrides it;
//     where that fails too the page is poison if its entry says so, else an error.
//  2. What the scan calls absent is zero only inside a private anonymous mapping: the absent page of a file
//     or of shared memory has contents elsewhere.
//  3. PAGEMAP_SCAN of an address space that is being torn down finds it empty (6.18 says ESRCH, 6.7 did not look). Therefore after the scan, if anything was absent:
//     a read of pagemap must give bytes (it gives none once the address space has lost its last user), and no SIGKILL may be pending
//     (the OOM reaper takes pages out of a victim that is not dead yet; the signal comes before).
//  4. process_vm_readv goes by number: after the last read the pidfd must say that the process is still there, so that the number was its own.
//
// A task that is lost answers ErrSourceLost, never zeros.
//
// Shared memory (shared.go) needs no such proof: it is a file that is open here, what it has no page for is zero, and it stays when the tree is lost.
//
// The tree has to be frozen from the first request on (or from Refresh): address spaces and mappings are looked up once.
//
// # Priority
//
// On each connection a few goroutines take turns: whoever has read a request answers it, the next one reads on.
// So there is no queue, a slow request does not hold up the others, and what was accepted is bounded.
// A bulk request is read in chunks; before each it lets the urgent requests go first that have begun meanwhile (gate).
//
// # Compression
//
// The bytes of a bulk answer may be packed (pack.go): by what is cheapest for a byte of memory, as far as is known (choose.go).
//
// # Trust boundary
//
// The peer has proven its identity before a connection comes here, but each length, count and kind that it sends is checked before use, on both sides.
// A request for something impossible is answered by an error; a frame that breaks the protocol ends the connection.
//
// # Lock order
//
// Server.mu and task.mu are leaves. Client.mu comes before lane.mu; neither is held while writing, reading or calling back.
package pagesrv
