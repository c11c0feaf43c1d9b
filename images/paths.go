package images

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	remap "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"google.golang.org/protobuf/proto"
)

// Paths lists the absolute paths that the images name: files open or mapped, executables, working and root directories,
// FIFOs, bound sockets. Each once, sorted. Names of deleted files are not among them: they have no path.
func Paths(dir string) ([]string, error) {
	files, err := readFiles(dir)
	if err != nil {
		return nil, err
	}
	var list []string
	add := func(p string) {
		p = strings.TrimRight(p, "\x00")
		if strings.HasPrefix(p, "/") && !strings.HasSuffix(p, " (deleted)") && !strings.Contains(p, "\x00") {
			list = append(list, path.Clean(p))
		}
	}
	for _, f := range files {
		switch {
		case f.GetReg() != nil:
			p := f.GetReg().GetName()
			if !strings.HasPrefix(p, "/") { // CRIU writes some relative to the root
				p = "/" + p
			}
			add(p)
		case f.GetUsk() != nil:
			p := string(f.GetUsk().GetName())
			if p != "" && p[0] != 0 && p[0] != '/' && f.GetUsk().GetNameDir() != "" {
				p = path.Join(f.GetUsk().GetNameDir(), p)
			}
			add(p)
		}
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// LinkRemaps lists the names that CRIU made at a dump with link_remap, for files without one. They stay when the tree
// is left stopped, and are the caller's to remove on a roll-back.
func LinkRemaps(dir string) ([]string, error) {
	im, err := readImage(filepath.Join(dir, "remap-fpath.img"), magicRemap)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	files, err := readFiles(dir)
	if err != nil {
		return nil, err
	}
	names := map[uint32]string{}
	for _, f := range files {
		if f.GetReg() != nil {
			names[f.GetId()] = f.GetReg().GetName()
		}
	}
	var list []string
	for _, b := range im.entries {
		var e remap.RemapFilePathEntry
		if err := proto.Unmarshal(b, &e); err != nil {
			return nil, fmt.Errorf("read image remap-fpath.img: %w: %w", ErrFormat, err)
		}
		if e.GetRemapType() != remap.RemapType_LINKED {
			continue
		}
		name := names[e.GetRemapId()]
		if strings.HasPrefix(path.Base(name), "link_remap.") {
			list = append(list, path.Join("/", name))
		}
	}
	return list, nil
}

func readFiles(dir string) ([]*fdinfo.FileEntry, error) {
	im, err := readImage(filepath.Join(dir, "files.img"), magicFiles)
	if err != nil {
		return nil, err
	}
	list := make([]*fdinfo.FileEntry, 0, len(im.entries))
	for _, b := range im.entries {
		e := &fdinfo.FileEntry{}
		if err := proto.Unmarshal(b, e); err != nil {
			return nil, fmt.Errorf("read image files.img: %w: %w", ErrFormat, err)
		}
		list = append(list, e)
	}
	return list, nil
}

// Established counts the TCP connections that were up.
func Established(dir string) (int, error) {
	files, err := readFiles(dir)
	if err != nil {
		return 0, err
	}
	const tcp, established = 6, 1
	n := 0
	for _, f := range files {
		if s := f.GetIsk(); s != nil && s.GetProto() == tcp && s.GetState() == established {
			n++
		}
	}
	return n, nil
}
