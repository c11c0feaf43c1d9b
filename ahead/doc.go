// Package ahead copies the memory of a process tree while it runs, and says at the freeze which of the copies are still good.
//
// # Algorithm
//
// In each process a userfaultfd is made (preflight.Injector: a stop of half a millisecond), taken out of it at once, and its private anonymous
// mappings are registered for write protection without messages (UFFD_FEATURE_WP_ASYNC, Linux 6.7): the kernel lifts the protection of a page
// when it is written, and the writer does not wait. A round is, for each process:
//
//  1. what has lost its registration is forgotten; what is new is registered
//  2. PAGEMAP_SCAN finds what has been written since the round before and protects it again, in one step
//  3. the descriptors of the process are looked at (see below)
//  4. what was found is read and sent
//
// When the tree is frozen one more scan finds the pages that are there, in registered memory and still protected. A copy that was read after its
// page was protected, and of a page that is among those, is good. All others are as if they had never been sent.
//
// # Why no copy that is called good is wrong
//
// A page is in sent from when it has been read in step 4 until a scan reports it as written, or its range is forgotten. Its protection precedes
// the read, so whatever changes it by the page tables after the read lifts the protection, and it stays lifted until step 2, which reports the page.
// What can be at the same address later:
//
//   - dropped (MADV_DONTNEED, truncated by brk): not there at the last scan. Filled again: a new page has no protection
//   - unmapped and mapped anew, mremap to somewhere else, execve, another process of that number: userfaultfds without UFFD_FEATURE_EVENT_REMAP do
//     not follow (mm/userfaultfd.c, mremap_userfaultfd_prep), so the memory is not registered
//   - that, and then registered by us in the next round: nothing of a range is in sent when it is registered, because step 1 has
//     forgotten it before, and a range that is known to be registered is never registered twice. This matters: before Linux 6.13 a page
//     that mremap has moved keeps the mark of protection, and is not reported as written
//   - grown into by an mremap of its neighbour, which is registered: new pages have no protection
//   - a child of fork(2): not registered. Its parent's pages stay protected while they are shared
//
// What changes a page not by the page tables but by a reference that it took before: O_DIRECT reads into memory, which pin their pages. One that
// began before step 2 may end after step 4. It has its file open all the while, so processes that have a file open with O_DIRECT are left out
// (step 3 looks after the protection and before the read), and so is their copy from then on. io_uring, aio, RDMA and devices, which do
// the same, are refused by the preflight. Not seen is a process_vm_writev(2) or a debugger's write that took its page before step 2 and writes
// after step 4: in between lie the rest of a scan and the look at all descriptors.
//
// # Without tracking
//
// Where the kernel can't track writes, or huge pages are to stay whole (Options.Compare), nothing is done to the process. Steps 1 and 2 list its private anonymous mappings and the pages
// in them that have contents; in step 4 each page that is read is hashed, and one whose hash is that of the copy which was sent last is not sent again. The hash is of the very bytes that
// are sent, so it does not matter what the process does while they are read. When the tree is frozen its pages are hashed once more, in its address space as it is then; a copy of a page that is there, in
// private anonymous memory, and has the hash of what was sent last, is good. How it came about does not matter: unmapped, moved, dropped and filled again, forked, written by a device that has
// ended before the freeze: the bytes are the same. What was dropped is not there, so its copy is not good.
//
// So a wrong copy is called good only if two pages have the same hash. It has 128 bits and a random key of 256 for each migration, and neither leaves this process. It is HighwayHash and not XXH3, which is
// three times as fast: contents may be chosen by whom the process serves, and of XXH3's keyed variant pairs of pages are easily made that collide under one seed of some 2³², which is too few for who
// can place a million of them. HighwayHash was made against chosen contents.
//
// It costs: all memory is read and hashed in each round (1 to 4 s of CPU for 4 GB), and again in the pause, by all CPUs, up to four. How much has been written since is guessed by a sample of one page in 32.
//
// # Who undoes
//
// The userfaultfds are this process's alone: Close, or its end, and the kernel unregisters all (10 to 70 ms for each GB, in which
// the process does not change its mappings). A fork in the very moment of Borrow leaves a copy in the child: Start looks for such and closes them.
//
// # Costs
//
// First protection 17 to 31 ms a GB, later scans 3 to 20; the writer pays about a microsecond at its first write to each page and round.
// Transparent huge pages are split by writes to them, until the kernel makes new ones. Adjacent mappings of which one is registered are two.
//
// # Trust boundary
//
// The tree is not trusted: its mappings and descriptors may change at any moment. All is read by descriptors that stay with the address space that
// they were opened on (/proc/PID/mem, pagemap), never by number.
//
// # Locks
//
// None: a Copier is used by one goroutine.
package ahead
