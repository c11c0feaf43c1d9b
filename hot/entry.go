package hot

// entry is one of a page table of x86-64 (arch/x86/include/asm/pgtable_types.h, Linux 6.12).
type entry uint64

const (
	bitPresent  = 1 << 0
	bitWrite    = 1 << 1
	bitUser     = 1 << 2
	bitAccessed = 1 << 5
	bitLarge    = 1 << 7 // in a table of tables: a large page
	bitNone     = 1 << 8 // PROT_NONE, also while NUMA balancing waits for a touch: not present for the processor, but the page is there
)

const (
	pageBits  = 12
	pageSize  = 1 << pageBits
	indexBits = 9
	entries   = 1 << indexBits
	leafSpan  = entries * pageSize // what one table of pages maps: 2 MB, as a large page does
)

// there says whether the entry is a page: a swapped one has neither bit.
func (e entry) there() bool { return e&(bitPresent|bitNone) != 0 }

// large says whether an entry of a table of tables is a page.
func (e entry) large() bool { return e&bitLarge != 0 && e.there() }

// hot says whether the page has been touched.
func (e entry) hot() bool { return e.there() && e&bitAccessed != 0 }

// table says whether the entry leads to another table of a process. One that is read while it changes is not likely to look so.
func (e entry) table() bool {
	const want = bitPresent | bitWrite | bitUser
	return e&(want|bitLarge) == want
}

// physical is the address of a page or table; bits is how many the processor has for one.
func (e entry) physical(bits uint) uint64 { return uint64(e) & (1<<bits - 1) &^ (pageSize - 1) }
