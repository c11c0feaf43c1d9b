package fdpass

import (
	"encoding/gob"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Pack puts v into a memfd, to be sent as a descriptor: it may be far longer than a message.
func Pack(v any) (*os.File, error) {
	fd, err := unix.MemfdCreate("lazymig-message", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make message file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "lazymig-message")
	if err := gob.NewEncoder(f).Encode(v); err != nil {
		f.Close()
		return nil, fmt.Errorf("encode message file: %w", err)
	}
	return f, nil
}

// Unpack reads what Pack has written. The file stays the caller's.
func Unpack(f *os.File, v any) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read message file: %w", err)
	}
	if err := gob.NewDecoder(f).Decode(v); err != nil {
		return fmt.Errorf("decode message file: %w", err)
	}
	return nil
}
