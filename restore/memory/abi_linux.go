package memory

import "structs"

// Kernel ABI of include/uapi/linux/userfaultfd.h (6.6 and later), as golang.org/x/sys lacks it. TestABI holds the
// sizes and the request numbers, which are those of x86-64 and arm64 alike.

const (
	ioctlAPI      = 0xc018aa3f // UFFDIO_API
	ioctlRegister = 0xc020aa00 // UFFDIO_REGISTER
	ioctlCopy     = 0xc028aa03 // UFFDIO_COPY
	ioctlZeropage = 0xc020aa04 // UFFDIO_ZEROPAGE
	ioctlPoison   = 0xc020aa08 // UFFDIO_POISON, since 6.6
	ioctlWake     = 0x8010aa02 // UFFDIO_WAKE
)

// Of UFFDIO_API and UFFDIO_REGISTER.
const (
	uffdVersion = 0xaa
	modeMissing = 1
)

// sysFork is fork(2), which x86-64 has.
const sysFork = 57

// Events of struct uffd_msg.
const (
	evPagefault = 0x12
	evFork      = 0x13
	evRemap     = 0x14
	evRemove    = 0x15
	evUnmap     = 0x16
)

// uffdMsg is struct uffd_msg: arg is {flags, address, …}, {ufd}, {from, to, len} or {start, end}.
type uffdMsg struct {
	_     structs.HostLayout
	event uint8
	_     [7]byte
	arg   [3]uint64
}

type uffdAPI struct {
	_        structs.HostLayout
	api      uint64
	features uint64
	ioctls   uint64 // out
}

// uffdRegister is struct uffdio_register.
type uffdRegister struct {
	_      structs.HostLayout
	start  uint64
	len    uint64
	mode   uint64
	ioctls uint64 // out
}

type uffdRange struct {
	_     structs.HostLayout
	start uint64
	len   uint64
}

type uffdCopy struct {
	_    structs.HostLayout
	dst  uint64
	src  uint64
	len  uint64
	mode uint64
	copy int64 // out: bytes, or a negative errno
}

// uffdFill is struct uffdio_zeropage and struct uffdio_poison.
type uffdFill struct {
	_     structs.HostLayout
	start uint64
	len   uint64
	mode  uint64
	done  int64 // out: bytes, or a negative errno
}
