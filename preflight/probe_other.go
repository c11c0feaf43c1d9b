//go:build !amd64

package preflight

import (
	"errors"
	"log/slog"
	"os"
)

var errCannot = errors.New("cannot be asked on this architecture")

type call struct {
	nr   uint64
	args [5]uint64
}

func ask(int, bool, uint64, []call) ([]int64, error) { return nil, errCannot }

func syscallInsn(string, []vma) (uint64, bool) { return 0, false }

// Borrow is for amd64.
func Borrow(int, uint64, ...uint64) (*os.File, error) { return nil, errCannot }

func borrow(*slog.Logger, int, uint64, []uint64) (*os.File, error) { return nil, errCannot }

// CloseIn is for amd64.
func CloseIn(int, int) error { return errCannot }
