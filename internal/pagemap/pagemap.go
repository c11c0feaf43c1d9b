// Package pagemap asks the kernel which pages of a process are there: PAGEMAP_SCAN, since Linux 6.7, and the entries of
// /proc/PID/pagemap.
//
// # What the kernel does not say
//
//  1. It collects in a buffer of 512 regions, and walk_end is where that was full last, also when the walk came to its end after that
//     (fs/proc/task_mmu.c, do_pagemap_scan). Scan tells how far it came from what it got.
//  2. An address space that is being torn down is found empty (since 6.18 ESRCH), and so is one whose last user has gone. Who takes absent
//     for zero has to look afterwards whether the process still had its memory (package pagesrv's doc, 3).
//
// # Trust boundary
//
// Ranges are the caller's, regions the kernel's. No goroutine, no lock.
package pagemap

import (
	"fmt"
	"runtime"
	"structs"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Categories of pages, include/uapi/linux/fs.h.
const (
	WPAllowed = 1 << 0 // in memory that a userfaultfd tracks writes to (UFFD_FEATURE_WP_ASYNC): not a page's but its mapping's
	Written   = 1 << 1 // since it was protected last; outside of such memory it means nothing

	Present = 1 << 3
	Swapped = 1 << 4 // also guards and poisoned pages
	PfnZero = 1 << 5 // the kernel's page of zeros
	Huge    = 1 << 6 // mapped as a whole
	Guard   = 1 << 8 // 6.15
)

// Bits of an entry of /proc/PID/pagemap, Documentation/admin-guide/mm/pagemap.rst.
const (
	EntrySize = 8

	EntryPresent = 1 << 63
	EntrySwapped = 1 << 62
	EntryGuard   = 1 << 58 // 6.15
	EntryOwn     = 1 << 56 // mapped once

	// EntryFrame is the frame of a present page; of a swapped one the type and offset. Zero for who has no CAP_SYS_ADMIN.
	EntryFrame = 1<<55 - 1
)

// Region is struct page_region: adjacent pages with the same categories, as far as they were asked for.
type Region struct {
	_          structs.HostLayout
	Start, End uint64
	Categories uint64
}

// Query says which pages are asked for: those that have all categories of All and, unless it is zero, one of Any.
// A category of Not counts as had where it is not.
type Query struct {
	All, Any, Not uint64
	Return        uint64 // what Region.Categories tells
	// Protect protects what is found against writes, in one step with finding it: a page that is written after that is Written again. Mappings
	// where that can't be are passed over.
	Protect bool
}

const scanProtect = 1 << 0 // PM_SCAN_WP_MATCHING

const request = 0xc0606610 // PAGEMAP_SCAN, _IOWR('f', 16, struct pm_scan_arg)

// scanArg is struct pm_scan_arg.
type scanArg struct {
	_                structs.HostLayout
	size             uint64
	flags            uint64
	start            uint64
	end              uint64
	walkEnd          uint64
	vec              uint64
	vecLen           uint64
	maxPages         uint64
	categoryInverted uint64
	categoryMask     uint64
	categoryAnyOf    uint64
	returnMask       uint64
}

// FD is an open /proc/PID/pagemap.
type FD int

// Scan puts what the query finds in [start, end), which may not be empty, into found, and returns how many regions it filled and how far it
// came: to the end, unless found is full. ENOTTY: a kernel before 6.7; EINVAL: one that lacks a category.
func (fd FD) Scan(start, end uint64, q Query, found []Region) (n int, reached uint64, err error) {
	var pin runtime.Pinner // the kernel writes through an address that stands in a struct as a number
	pin.Pin(unsafe.SliceData(found))
	defer pin.Unpin()
	a := scanArg{
		size: uint64(unsafe.Sizeof(scanArg{})), start: start, end: end,
		vec: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(found)))), vecLen: uint64(len(found)),
		categoryInverted: q.Not, categoryMask: q.All, categoryAnyOf: q.Any, returnMask: q.Return,
	}
	if q.Protect {
		a.flags = scanProtect
	}
	for {
		got, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&a)))
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		default:
			return 0, start, errno
		}
		n = int(got)
		break
	}
	reached = end
	if n == len(found) { // it may have stopped early
		reached = max(a.walkEnd, found[n-1].End)
	}
	if reached <= start || reached > end {
		return 0, start, fmt.Errorf("scan of %#x-%#x ended at %#x: %w", start, end, reached, unix.EIO)
	}
	return n, reached, nil
}

// Features of the running kernel.
type Features struct {
	Scan  bool // 6.7
	Guard bool // 6.15: the category Guard
}

// Probe says what the running kernel can do.
var Probe = sync.OnceValue(func() Features {
	fd, err := unix.Open("/proc/self/pagemap", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Features{}
	}
	defer unix.Close(fd)
	try := func(category uint64) bool {
		page := uint64(unix.Getpagesize())
		_, _, err := FD(fd).Scan(page, 2*page, Query{Any: category, Return: category}, make([]Region, 1))
		return err == nil
	}
	return Features{Scan: try(Present), Guard: try(Guard)}
})
