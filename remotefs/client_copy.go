package remotefs

import (
	"context"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// Extents lists what a file holds between start and end, and tells how far the list goes.
func (c *Client) Extents(ctx context.Context, node, h uint64, start, end int64) (list []wire.FileExtent, upTo int64, err error) {
	e := head(node, wire.FileCaller{})
	e.U64(h)
	e.I64(start)
	e.I64(end)
	err = c.call(ctx, 0, wire.MsgFileExtents, e, func(d *wire.Decoder) {
		upTo = d.I64()
		list = make([]wire.FileExtent, d.Count(16))
		for i := range list {
			list[i] = wire.FileExtent{Start: d.I64(), End: d.I64()}
		}
	})
	return list, upTo, err
}

// Sum is Digest at the source. settled: a had been so for a while, and the next change will show in its times.
func (c *Client) Sum(ctx context.Context, node, h uint64, off, n int64) (sum [wire.FileSumSize]byte, a wire.FileAttr, settled bool, err error) {
	e := head(node, wire.FileCaller{})
	e.U64(h)
	e.I64(off)
	e.I64(n)
	err = c.call(ctx, 0, wire.MsgFileSum, e, func(d *wire.Decoder) {
		for i := range sum {
			sum[i] = d.U8()
		}
		a.Get(d)
		settled = d.Bool()
	})
	return sum, a, settled, err
}

// FileStamp is what a node looks like. Settled: the next change will show in the times. Attr.Ino is 0 if the node is gone.
type FileStamp struct {
	Attr    wire.FileAttr
	Settled bool
}

// Stamps tells the attributes of many nodes.
func (c *Client) Stamps(ctx context.Context, nodes []uint64) ([]FileStamp, error) {
	all := make([]FileStamp, 0, len(nodes))
	err := c.ofNodes(ctx, wire.MsgFileStamps, nodes, func(d *wire.Decoder, n int) {
		for range n {
			var s FileStamp
			s.Attr.Get(d)
			s.Settled = d.Bool()
			all = append(all, s)
		}
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// ofNodes asks something about nodes, of as many at a time as a message may name; get reads an answer about n of them.
func (c *Client) ofNodes(ctx context.Context, typ wire.Type, nodes []uint64, get func(d *wire.Decoder, n int)) error {
	for some := range slices.Chunk(nodes, wire.MaxFileStamps) {
		e := head(wire.FileRootNode, wire.FileCaller{})
		e.U32(uint32(len(some)))
		for _, x := range some {
			e.U64(x)
		}
		if err := c.call(ctx, 0, typ, e, func(d *wire.Decoder) { get(d, len(some)) }); err != nil {
			return err
		}
	}
	return nil
}

// Path tells where a node is below the root; ENOENT: it has no name that is known.
func (c *Client) Path(ctx context.Context, node uint64) (string, error) {
	b, err := c.do(ctx, 0, wire.MsgFilePath, nil, head(node, wire.FileCaller{}).B)
	if err == nil && (len(b) == 0 || len(b) > wire.MaxFilePath || b[0] != '/') {
		err = unix.EIO
	}
	return string(b), err
}

// Scan tells what is in the directory at path below a node (none: the node itself), from the first name after the given one on. more: there
// are others behind.
func (c *Client) Scan(ctx context.Context, node uint64, path, after string, contents bool) (list []wire.FileScanned, more bool, err error) {
	e := head(node, wire.FileCaller{})
	e.String(path)
	e.String(after)
	e.Bool(contents)
	err = c.call(ctx, 0, wire.MsgFileScan, e, func(d *wire.Decoder) {
		more = d.Bool()
		list = make([]wire.FileScanned, d.Count(4+wire.FileAttrSize+wire.FileSumSize))
		for i := range list {
			list[i].Get(d)
		}
	})
	return list, more, err
}

// Writers tells which of these nodes processes of the source can write, and who.
func (c *Client) Writers(ctx context.Context, nodes []uint64) (map[uint64]string, error) {
	found := map[uint64]string{}
	err := c.ofNodes(ctx, wire.MsgFileWriters, nodes, func(d *wire.Decoder, _ int) {
		for range d.Count(8 + 4) {
			id := d.U64()
			found[id] = d.String(wire.MaxFileName)
		}
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// FileOpen is a node that is open.
type FileOpen struct {
	Node       uint64
	All, Write int // handles; those that can write
}

// Opens tells what is open at the source for this client, and for those before it.
func (c *Client) Opens(ctx context.Context) (list []FileOpen, err error) {
	err = c.call(ctx, 0, wire.MsgFileOpens, head(wire.FileRootNode, wire.FileCaller{}), func(d *wire.Decoder) {
		list = make([]FileOpen, d.Count(16))
		for i := range list {
			list[i] = FileOpen{Node: d.U64(), All: int(d.U32()), Write: int(d.U32())}
		}
	})
	return list, err
}

// Remove removes a name, if it is still that of a node with this size and time of change.
func (c *Client) Remove(ctx context.Context, who wire.FileCaller, dir uint64, name string, node uint64, a wire.FileAttr) error {
	e := head(dir, who)
	e.String(name)
	e.U64(node)
	a.Put(e)
	return c.call(ctx, who.Number, wire.MsgFileRemove, e, nil)
}
