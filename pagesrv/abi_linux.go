package pagesrv

// With pagemap.EntrySwapped the frame field holds the swap type in its 5 low bits and the offset above (privileged readers only).
// The highest type is that of PTE markers, whose offset holds the marker (include/linux/swapops.h, 6.6 and later).
const (
	swapTypeBits   = 5
	swapTypeMarker = 31
	markerPoisoned = 1 << 1
	markerGuard    = 1 << 2
	firstSpecial   = 22      // no swap file has a type from here on, whatever the kernel was built with
	kpfHWPoison    = 1 << 19 // /proc/kpageflags, include/uapi/linux/kernel-page-flags.h
)
