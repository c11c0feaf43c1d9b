// Package lazyfs is the migrated tree's root on the target: a FUSE file system whose files are at the source.
//
// The daemon is given a /dev/fuse descriptor that somebody else mounts, in whatever namespace, with the options
// of MountOptions. FUSE node IDs are the source's own (Remote); IDs with the top bit are files that exist on the
// target only. Reads are cached by the kernel, names and attributes for an hour, lists of names for some seconds (listings.go): the tree is the only writer.
// What is opened for reading is answered before the source has heard of it (fs_open.go). Writes go straight through, or with Options.Stream
// they are safe from the daemon's death when the tree goes on, and at the source at the latest when the file is closed (stream.go). fsync means the source's disk. File locks never leave the target's kernel.
//
// # Before the grant
//
// The source may still have to go on as if nothing had happened, but restoring a tree changes files: sockets are
// bound again, unlinked files get a name for a moment. Such changes stay in an overlay of names (overlay.go):
//
//	unlink of a source's name      the name is hidden
//	mknod of a hidden socket       shown again, and it is the source's node
//	anything else that is made     a local node, its contents an unnamed file in StoreDir
//	rename, link of a source file  a second name for its node
//	change of a source's contents  EROFS
//
// Granted drops all of this; local nodes that are open or looked up stay what they are (unlinked files, bound sockets).
//
// # A daemon that is killed
//
// After the grant another daemon goes on where it was, and the tree sees nothing but a wait: succeed.go says how, TestModelKilled and
// TestDaemonKilled show it. Which lookups a daemon had fetched ahead, or had been told to forget, dies with it: the source keeps such nodes until the end.
// Before the grant the mount ends with its daemon, and so it does on kernels before 6.9.
//
// # What the source tells ahead
//
// A restore asks for a hundred names, attributes and pages one after the other. The source tells them before (seeds.go), and at the freeze what is
// different by then, so that none of that takes a round trip. Until the freeze is known the kernel keeps neither names nor attributes, and what it has
// read by then is dropped.
//
// # What is asked for ahead
//
// Where a program reads a file in order or by equal steps, the daemon reads ahead by more than the kernel does (ahead.go). Where it asks for one name after
// the other, whole directories are fetched, and some below them (names.go). Attributes that the kernel asks for again because a file was read are here already (attrs.go).
// All of these are told of each change by the tree before it begins (changes.go).
//
// # Trust boundary
//
// The kernel's requests and the Remote's replies (checked by its decoder) are believed. When the Remote is lost
// after the grant, operations wait instead of failing: a wait is not a wrong result.
//
// # Locks
//
// overlay.grant (read side: one operation) before overlay.mu before local.mu; stream.takeMu and stream.pruneMu before stream.mu; seeds.mu, ahead.mu, attrs.mu, streamErrors.mu and dirNames.mu are leaves (but the last is before forgetQueue.mu); kernel notifications are sent with none held.
package lazyfs
