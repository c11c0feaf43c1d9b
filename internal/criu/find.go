package criu

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/lazymig/lazymig/setup"
)

// Find finds CRIU where setup.Find does, or at explicit: a binary, or a prefix. prefix is not empty where the binary has its
// libraries beside it: PREFIX/usr/sbin/criu, PREFIX/usr/lib/x86_64-linux-gnu.
func Find(explicit string) (path, prefix string, err error) {
	if explicit == "" {
		explicit = os.Getenv("LAZYMIG_CRIU")
	}
	if fi, err := os.Stat(explicit); err == nil && fi.IsDir() {
		explicit = setup.Prefix(explicit).Criu()
	}
	if path, err = setup.Find(explicit); err != nil {
		return "", "", fmt.Errorf("find criu: %w", err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", "", fmt.Errorf("find criu: %w", err)
	}
	if p, ok := setup.PrefixOf(path); ok {
		prefix = string(p)
	}
	return path, prefix, nil
}
