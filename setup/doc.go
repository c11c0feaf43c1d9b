// Package setup makes a Debian-like host ready for lazymig: it installs the
// packages that are missing and a CRIU that is new enough.
//
// CRIU must be 4.2 or newer (older ones cannot dump a TCP listener on Linux
// 6.16). Where the distribution's own is, that one is used. Else the package of
// a newer Debian suite is unpacked, with its libraries and its C library, into
// one directory (the prefix) that touches nothing of the system:
//
//  1. the Debian mirror's address is taken from the machine's own apt sources;
//  2. apt, with a root of its own, downloads criu and what it depends on, and
//     checks the archive's signature as always;
//  3. every package is unpacked into one prefix, patchelf points criu at the
//     prefix's loader and libraries;
//  4. the prefix is renamed into place: another process sees all of it or nothing.
//
// A flock beside the prefix keeps two at once apart, and a prefix whose CRIU
// answers --version is kept, so the second time is fast.
//
// Where the prefix is reached by another path (inside a capsule), criu is
// started through its own loader: see [Prefix.Argv].
//
// Trust boundary: this package runs apt and dpkg as root and trusts what they
// trust. It listens to nobody.
package setup
