// Package images reads and edits CRIU's images: which tasks they hold, which paths they name, the VMAs that were hidden
// from CRIU put back, and whether a set that came from a peer is sane.
//
// # Format
//
// An image is one or two magic numbers (little endian, u32), then entries: a length (u32) and a protobuf message. The
// messages are go-criu's. Some images have raw bytes between entries or no magic at all (pages-*.img); those are left
// alone here. Fields that this build does not know survive editing.
//
// # Trust boundary
//
// On the target the directory was filled by a peer. Validate bounds names, sizes, counts and the references that this
// program relies on; CRIU itself parses the rest, as it does with any image.
package images
