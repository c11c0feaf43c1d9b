// Package sqlite finds what SQLite, inside a process, remembers of the databases that it has open: their device and inode numbers.
//
// # Why
//
// All connections of a process to a database share one record of it (os_unix.c, unixInodeInfo), which is found by the file's device and inode
// number, and in which its locks are counted: POSIX locks do not keep threads of one process apart, and closing any descriptor of a file gives up all
// that the process has on it. A process that is put on another file system, where the file has other numbers, keeps its record, but
//
//   - with a rollback journal it can't write any more (fileHasMoved compares the inode number with that of the path: "attempt to write a readonly
//     database");
//   - a connection that it opens then gets a second record: the two do not know of each other's locks, and transactions are lost.
//
// e2e's TestSQLite shows both. So whoever moves a process writes the new numbers into the record while nothing of the process runs.
//
// # What counts as found
//
// Nothing is guessed. A database is an open regular file with SQLite's header. Its record is where its two numbers lie in the process's memory and a
// unixFile refers to it: the address of the record, followed by the number of the descriptor, preceded by the address of a VFS whose name begins
// with "unix". These have lain so since SQLite 3.7. Numbers that nothing of that kind refers to, such as what a stat(2) has left on the stack, stay as
// they are; only if they are on a stack that is in use is the process Busy: it may be about to compare them. A database that is open for writing, but
// has no record, is named as unknown: whoever moves the process for good refuses that.
//
// Not seen are databases that are empty or encrypted from their first byte.
//
// # Trust boundary
//
// The process may be hostile: what is read from its memory are addresses that are read again with its own rights, and only its own memory is
// written, at an address that held the numbers. No goroutine, no lock.
package sqlite
