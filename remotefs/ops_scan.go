package remotefs

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

const (
	scanSize = 512 << 10              // bytes of a reply, about
	scanTime = 500 * time.Millisecond // that a request works, about: others wait for its place
)

// opScan: path below the node ("": itself), name, contents → more, count, count × (name, attributes, what Describe says), in the order of
// names from the first after the given one on. more: there are others behind.
func (s *Server) opScan(r *request) error {
	rel, after, contents := r.d.String(wire.MaxFilePath), r.d.String(wire.MaxFileName), r.d.Bool()
	if err := r.end(); err != nil {
		return err
	}
	if err := inside(r.node); err != nil {
		return err
	}
	if rel == "" {
		rel = "."
	}
	p, err := s.walk(r.node.fd, rel)
	if err != nil {
		return fmt.Errorf("%q: %w", rel, err)
	}
	defer func() { _ = unix.Close(p) }()
	if _, _, fs, err := s.tab.stat(p); err != nil || fs.hidden {
		return errors.Join(err, unix.EACCES)
	}
	names, err := s.namesOf(p)
	if err != nil {
		return err
	}
	i, found := slices.BinarySearch(names, after)
	if found && after != "" {
		i++
	}
	began := time.Now()
	var list []wire.FileScanned
	size := 0
	for ; i < len(names) && size < scanSize && time.Since(began) < scanTime; i++ {
		x, err := s.scanOne(p, names[i], contents)
		if errors.Is(err, unix.ENOENT) {
			continue // gone meanwhile
		} else if err != nil {
			return fmt.Errorf("%q: %w", names[i], err)
		}
		list = append(list, x)
		size += len(x.Name) + wire.FileAttrSize + wire.FileSumSize
	}
	r.e.Bool(i < len(names))
	r.e.U32(uint32(len(list)))
	for j := range list {
		list[j].Put(&r.e)
	}
	return nil
}

// namesOf lists a directory in the order of names.
func (s *Server) namesOf(p int) ([]string, error) {
	fd, err := s.reopen(p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var names []string
	buf := make([]byte, 64<<10)
	for {
		n, err := retry(func() (int, error) { return unix.Getdents(fd, buf) })
		if err != nil {
			return nil, err
		}
		if n == 0 {
			slices.Sort(names)
			return names, nil
		}
		for b := buf[:n]; len(b) > 0; {
			e, k, err := parseDirent(b)
			if err != nil {
				return nil, err
			}
			if e.Name != "." && e.Name != ".." {
				names = append(names, e.Name)
			}
			b = b[k:]
		}
	}
}

func (s *Server) scanOne(dir int, name string, contents bool) (x wire.FileScanned, err error) {
	fd, err := s.walk(dir, name)
	if err != nil {
		return x, err
	}
	defer func() { _ = unix.Close(fd) }()
	a, _, fs, err := s.tab.stat(fd)
	if err != nil {
		return x, err
	}
	x = wire.FileScanned{Name: name, Attr: a}
	if fs.hidden {
		return x, nil
	}
	digesting <- struct{}{}
	defer func() { <-digesting }()
	x.Sum, err = Describe(fd, a.Mode, contents)
	return x, err
}
