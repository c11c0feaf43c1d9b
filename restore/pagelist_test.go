package restore

import (
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestPageList: an agent of another version reads and writes the same bytes; what is torn or too long is refused whole.
func TestPageList(t *testing.T) {
	kerneltest.Leaks(t)
	same := func(e pageEntry) pageEntry { return e }
	want := []pageEntry{{1, 2, 0x7f00_0000_1000, 0x0102_0304_0506_0708}, {0xffff_ffff, 1, 4096, 0}}
	f, err := writePages("test", want, same)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	if got, golden := hex.EncodeToString(b), "0100000002000000"+"00100000007f0000"+"0807060504030201"+"ffffffff01000000"+"0010000000000000"+"0000000000000000"; got != golden {
		t.Errorf("bytes are %s, want %s", got, golden)
	}
	got, err := readPages(f, 2, same)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("read %v (%v), want %v", got, err, want)
	}
	if got, err := readPages(f, 1, same); !errors.Is(err, errMessage) {
		t.Errorf("two entries where one may be: %v (%v)", got, err)
	}
	if err := f.Truncate(pageEntrySize + 8); err != nil {
		t.Fatal(err)
	}
	if got, err := readPages(f, 2, same); !errors.Is(err, errMessage) {
		t.Errorf("an entry and a third: %v (%v)", got, err)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if got, err := readPages(f, 2, same); err != nil || len(got) != 0 {
		t.Errorf("an empty list: %v (%v)", got, err)
	}
}
