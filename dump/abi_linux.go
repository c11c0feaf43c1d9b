package dump

import "structs"

// bpf(2), include/uapi/linux/bpf.h of Linux 6.12: the parts that vmflags.go uses. Sizes are held by TestABI.

const (
	bpfProgLoad   = 5
	bpfLinkCreate = 28
	bpfIterCreate = 33

	bpfProgTypeTracing = 26
	bpfTraceIter       = 28
	bpfFuncSeqWrite    = 127
)

type bpfProgLoadAttr struct {
	_                  structs.HostLayout
	ProgType           uint32
	InsnCnt            uint32
	Insns              uint64
	License            uint64
	LogLevel           uint32
	LogSize            uint32
	LogBuf             uint64
	KernVersion        uint32
	ProgFlags          uint32
	ProgName           [16]byte
	ProgIfindex        uint32
	ExpectedAttachType uint32
	ProgBTFFD          uint32
	FuncInfoRecSize    uint32
	FuncInfo           uint64
	FuncInfoCnt        uint32
	LineInfoRecSize    uint32
	LineInfo           uint64
	LineInfoCnt        uint32
	AttachBTFID        uint32
	AttachProgFD       uint32
	_                  uint32
}

type bpfLinkCreateAttr struct {
	_           structs.HostLayout
	ProgFD      uint32
	TargetFD    uint32
	AttachType  uint32
	Flags       uint32
	IterInfo    uint64
	IterInfoLen uint32
	_           uint32
}

// bpfIterTask is bpf_iter_link_info.task.
type bpfIterTask struct {
	_     structs.HostLayout
	TID   uint32
	PID   uint32
	PIDFD uint32
	_     uint32
}

type bpfIterCreateAttr struct {
	_      structs.HostLayout
	LinkFD uint32
	Flags  uint32
}

type bpfInsn struct {
	_    structs.HostLayout
	Code uint8
	Regs uint8 // destination in the low half, source in the high half
	Off  int16
	Imm  int32
}
