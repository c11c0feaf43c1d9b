// Package hot finds which pages of a running process tree are in use, so that they are sent first when it has moved.
//
// # Ways
//
//   - BPF: the processor sets a bit in a page's entry of the page table when it is touched. The kernel clears these bits if 1 is written to
//     /proc/PID/clear_refs, but tells nobody about single pages which are set again: a BPF program reads the page tables (kernel.go, walk.go).
//   - WP: pages that are written, from what package ahead tracks; the caller brings the counts (Scores.Add).
//   - Smaps: the bits again, but only as smaps sums them up for each mapping (smaps.go).
//
// # Algorithm
//
// Rounds of: clear the bits, wait, read. The wait adapts itself so that 1 to 5 % of all pages are marked: less tells little, with more
// everything looks the same. A page's score is the number of rounds in which it was seen. What was seen no oftener than it would be if all pages were used alike is
// left out (Scores.cut): in that case there is no hot set. The list goes from high scores to low, in four classes, each in order of address, so that neighbours stay neighbours.
//
// # What it costs the process
//
// Clearing holds the mmap lock for writing, 13 to 20 ms a GB, in which page faults and mmap wait; running code does not. It is measured: no more
// than Options.Stall is spent so in all, and nothing if one time is expected to take a quarter of a second, some 12 GB. For the kernel's own reclaim the pages look unused for a moment.
// The bits are not flushed from the TLB: a set of pages so small that the TLB holds all of it (a few MB) may stay unseen.
//
// # Trust boundary
//
// The program reads kernel memory at addresses that it is given. These come from the kernel's own types (BTF) and from page tables that change
// meanwhile, so each read may fail or give rubbish: nothing but the order of pages depends on it. Before use it has to find pages of this process where pagemap says that they are.
//
// # Locks
//
// None: everything is used by one goroutine.
package hot
