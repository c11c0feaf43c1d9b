// Package store copies the files of a migrated tree to the target while the tree uses them through FUSE, so that one stop of the tree can
// put everything on the copies.
//
// Until that stop the source owns all: writes go to it, fsync means its disk. Settle, while the tree is stopped, completes the
// copies and proves them; before it has returned without an error nothing has changed for the tree, after it the copies are the files,
// all of them at once. So a failure anywhere leaves a tree that runs as before, and no file ever has two owners.
//
// # How it copies
//
// An object is one file of the source, found by its node there, whatever names it has. lazyfs tells of each change after the source has
// answered (watch.go), and that only marks: ranges to be copied, attributes to be looked at, directories to be listed. A round (round.go) works
// the marks off: it lists (names.go), decides (plan.go, walk.go), gives the copies names, copies and verifies contents (data.go), then sets attributes
// (attr.go), last those of directories. Marks are taken before the source is read, so what is written meanwhile is marked again. The
// background makes rounds all the time, Settle the last ones.
//
// Directories are not mended name by name: their names are compared with the source's, first all wrong ones are taken away, then
// all right ones given. A copy without a name lies in the hidden directory, at the end only such as are open and unlinked.
//
// While nobody has a file open for writing, and its copy is right, the tree reads that (copy.go): it is what the source would say.
//
// Each range that was copied is verified by a digest of both sides. A file whose copy is right is stamped with its size and times at the
// source; one that has others later, and was not changed by the tree, was changed by somebody else there: that is reported, and it is copied again.
//
// # What comes
//
// What the tree has open, works in, and runs, with all that lies beside files that it writes (up to 20,000 names and 1 GB); plan.go decides directory by directory whether
// it is moved, or the target's own, and undecided.go names what can't be decided. Each file that comes is a descriptor at the source (RLIMIT_NOFILE).
//
// # Trust boundary
//
// The source is believed as far as remotefs.Client checks its replies; names come from directories' listings, one component each, and are
// used relative to descriptors of the store's own directories without following anything. The store's directory is nobody else's.
//
// # Locks
//
// Store.pass before Store.tree before Store.mu. lazyfs calls the watcher's methods with a lock of its own held: they take mu only. No lock but pass and tree
// is held while the network or a disk is waited for.
package store
