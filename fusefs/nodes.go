package fusefs

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Names in the folder of a disk.
const (
	rawName          = "disk.raw"
	partitionsName   = "partitions"
	infoName         = "info.json"
	reservationsName = "reservations"
)

// shown is the folder of a disk, as its nodes know it.
type shown struct {
	*common
	src   source
	label string // for messages, "" for the only disk of a mount
	texts [2]bool

	mu    sync.Mutex
	files map[string]*fileNode // that the kernel knows
}

func newShown(c *common, src source, label string, info, reservations bool) *shown {
	return &shown{common: c, src: src, label: label, texts: [2]bool{info, reservations}, files: map[string]*fileNode{}}
}

// timeouts sets for how long the kernel believes what it is told.
func (s *shown) timeouts(out *fuse.EntryOut, changes bool) {
	t := time.Hour
	if changes || !s.lasting {
		t = time.Second
	}
	out.SetEntryTimeout(t)
	out.SetAttrTimeout(t)
}

// dirNode is the folder itself.
type dirNode struct {
	fs.Inode
	*shown
}

var (
	_ fs.NodeLookuper  = (*dirNode)(nil)
	_ fs.NodeReaddirer = (*dirNode)(nil)
	_ fs.NodeGetattrer = (*dirNode)(nil)
	_ fs.NodeStatfser  = (*dirNode)(nil)
)

// Nothing can be made or removed here. Without these methods the library would pretend to.

func (*dirNode) Unlink(context.Context, string) syscall.Errno   { return syscall.EPERM }
func (*dirNode) Rmdir(context.Context, string) syscall.Errno    { return syscall.EPERM }
func (*partsNode) Unlink(context.Context, string) syscall.Errno { return syscall.EPERM }
func (*partsNode) Rmdir(context.Context, string) syscall.Errno  { return syscall.EPERM }

func (d *dirNode) entries() []fuse.DirEntry {
	list := []fuse.DirEntry{{Name: rawName, Mode: fuse.S_IFREG}, {Name: partitionsName, Mode: fuse.S_IFDIR}}
	for i, name := range []string{infoName, reservationsName} {
		if d.texts[i] {
			list = append(list, fuse.DirEntry{Name: name, Mode: fuse.S_IFREG})
		}
	}
	return list
}

func (d *dirNode) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	return fs.NewListDirStream(d.entries()), 0
}

func (d *dirNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	d.directory(&out.Attr)
	return 0
}

func (s *shown) directory(a *fuse.Attr) {
	a.Mode = fuse.S_IFDIR | 0o700
	if s.readOnly {
		a.Mode = fuse.S_IFDIR | 0o500
	}
	a.Nlink = 2
	a.SetTimes(&s.mounted, &s.mounted, &s.mounted)
}

func (d *dirNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	var node fs.InodeEmbedder
	attr := fs.StableAttr{Mode: fuse.S_IFREG}
	var a fuse.AttrOut
	changes := false
	old := d.GetChild(name)
	switch {
	case name == rawName:
		if old == nil {
			node = &fileNode{shown: d.shown, name: rawName}
		} else {
			node = old.Operations()
		}
		if e := node.(*fileNode).Getattr(ctx, nil, &a); e != 0 {
			return nil, e
		}
	case name == partitionsName:
		node, attr.Mode = &partsNode{shown: d.shown}, fuse.S_IFDIR
		d.directory(&a.Attr)
	case name == infoName && d.texts[0], name == reservationsName && d.texts[1]:
		if old == nil {
			node = &textNode{shown: d.shown, name: name}
		} else {
			node = old.Operations()
		}
		if e := node.(*textNode).Getattr(ctx, nil, &a); e != 0 {
			return nil, e
		}
		changes = true
	default:
		return nil, syscall.ENOENT
	}
	out.Attr = a.Attr
	d.timeouts(out, changes)
	if old != nil {
		return old, 0
	}
	return d.NewInode(ctx, node, attr), 0
}

func (d *dirNode) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	return d.statfs(ctx, out)
}

const reportedBlock = 4096

// statfs has the size of the disk; what is free in it is not for us to say.
func (s *shown) statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	out.Bsize, out.Frsize, out.NameLen, out.Files = reportedBlock, reportedBlock, 255, 4
	o, err := s.src.acquire(ctx, false)
	if err != nil {
		return s.failed("statfs", s.label, 0, 0, err)
	}
	defer s.src.release(o)
	out.Blocks = uint64(o.size) / reportedBlock
	return 0
}

// partsNode is partitions: a file for each.
type partsNode struct {
	fs.Inode
	*shown
}

var (
	_ fs.NodeLookuper  = (*partsNode)(nil)
	_ fs.NodeReaddirer = (*partsNode)(nil)
	_ fs.NodeGetattrer = (*partsNode)(nil)
	_ fs.NodeStatfser  = (*partsNode)(nil)
)

func (p *partsNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	p.directory(&out.Attr)
	return 0
}

func (p *partsNode) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	return p.statfs(ctx, out)
}

func (p *partsNode) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	o, err := p.src.acquire(ctx, false)
	if err != nil {
		return nil, p.failed("list partitions", p.label, 0, 0, err)
	}
	defer p.src.release(o)
	parts, err := o.list(ctx)
	if err != nil {
		return nil, p.failed("list partitions", p.label, 0, 0, err)
	}
	list := make([]fuse.DirEntry, len(parts))
	for i, part := range parts {
		list[i] = fuse.DirEntry{Name: part.Name, Mode: fuse.S_IFREG}
	}
	return fs.NewListDirStream(list), 0
}

func (p *partsNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	old := p.GetChild(name)
	node := &fileNode{shown: p.shown, name: partitionsName + "/" + name}
	if old != nil {
		node = old.Operations().(*fileNode)
	}
	var a fuse.AttrOut
	if e := node.Getattr(ctx, nil, &a); e != 0 {
		return nil, e
	}
	out.Attr = a.Attr
	p.timeouts(out, true)
	if old != nil {
		return old, 0
	}
	return p.NewInode(ctx, node, fs.StableAttr{Mode: fuse.S_IFREG}), 0
}

// textNode is a small file whose text is made when it is opened. Its size is that of the text made last: making it may take a question to
// the server, which listing a directory should not wait for. Reads are direct, and so not bound by it.
type textNode struct {
	fs.Inode
	*shown
	name string
	size atomic.Int64
}

// textHandle is the text as it was when the file was opened.
type textHandle struct{ text []byte }

var (
	_ fs.NodeOpener    = (*textNode)(nil)
	_ fs.NodeGetattrer = (*textNode)(nil)
	_ fs.FileReader    = (*textHandle)(nil)
)

func (t *textNode) make(ctx context.Context) ([]byte, error) {
	o, err := t.src.acquire(ctx, false)
	if err != nil {
		return nil, err
	}
	defer t.src.release(o)
	f := o.Info
	if t.name == reservationsName {
		f = o.Reservations
	}
	if f == nil { // this disk has none, others of the mount have
		return []byte{}, nil
	}
	return f(ctx), nil
}

func (t *textNode) Getattr(ctx context.Context, f fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = fuse.S_IFREG | 0o400
	out.Nlink = 1
	switch h, ok := f.(*textHandle); {
	case ok:
		out.Size = uint64(len(h.text))
	case t.size.Load() == 0 && t.lasting:
		b, err := t.make(ctx)
		if err != nil {
			return t.failed("read", t.name, 0, 0, err)
		}
		t.size.Store(int64(len(b)))
		fallthrough
	default:
		out.Size = uint64(t.size.Load())
	}
	out.SetTimes(&t.mounted, &t.mounted, &t.mounted)
	return 0
}

func (t *textNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	b, err := t.make(ctx)
	if err != nil {
		return nil, 0, t.failed("open", strings.TrimPrefix(t.label+"/"+t.name, "/"), 0, 0, err)
	}
	t.size.Store(int64(len(b)))
	return &textHandle{b}, fuse.FOPEN_DIRECT_IO, 0
}

func (h *textHandle) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off >= int64(len(h.text)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(dest[:copy(dest, h.text[off:])]), 0
}
