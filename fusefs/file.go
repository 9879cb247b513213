package fusefs

import (
	"context"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fileNode is disk.raw, or the file of a partition: a window of the disk.
type fileNode struct {
	fs.Inode
	*shown
	name    string        // disk.raw, or partitions/ and a partition's name
	serial  atomic.Uint64 // of the open whose pages the kernel may have cached, 0 if it has none
	written atomic.Int64  // Unix nanoseconds of the last write
}

// fileHandle is an open fileNode. It keeps the disk open.
type fileHandle struct {
	of         *opened
	base, size int64 // of the window, in bytes
}

var (
	_ fs.NodeOnAdder     = (*fileNode)(nil)
	_ fs.NodeOnForgetter = (*fileNode)(nil)
	_ fs.NodeStatfser    = (*fileNode)(nil)
	_ fs.NodeOpener      = (*fileNode)(nil)
	_ fs.NodeReleaser    = (*fileNode)(nil)
	_ fs.NodeReader      = (*fileNode)(nil)
	_ fs.NodeWriter      = (*fileNode)(nil)
	_ fs.NodeFsyncer     = (*fileNode)(nil)
	_ fs.NodeFlusher     = (*fileNode)(nil)
	_ fs.NodeAllocater   = (*fileNode)(nil)
	_ fs.NodeLseeker     = (*fileNode)(nil)
	_ fs.NodeGetattrer   = (*fileNode)(nil)
	_ fs.NodeSetattrer   = (*fileNode)(nil)
)

func (n *fileNode) OnAdd(context.Context) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.files[n.name] = n
}

func (n *fileNode) OnForget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.files[n.name] == n {
		delete(n.files, n.name)
	}
}

// window is the part of the disk that the file shows.
func (n *fileNode) window(ctx context.Context, o *opened) (base, size int64, e syscall.Errno) {
	name, part := strings.CutPrefix(n.name, partitionsName+"/")
	if !part {
		return 0, o.size, 0
	}
	p, ok, err := o.part(ctx, name)
	switch {
	case err != nil:
		return 0, 0, n.failed("find partition", n.path(), 0, 0, err)
	case !ok:
		return 0, 0, syscall.ENOENT
	}
	return p.Start, p.Size, 0
}

func (n *fileNode) path() string { return strings.TrimPrefix(n.label+"/"+n.name, "/") }

func (n *fileNode) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	return n.statfs(ctx, out)
}

func (n *fileNode) Getattr(ctx context.Context, f fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	var size int64
	readOnly := n.readOnly
	if h, ok := f.(*fileHandle); ok {
		size = h.size
		readOnly = readOnly || n.lasting && h.of.readOnly
	} else {
		ctx, done := n.operation(ctx)
		defer done()
		o, err := n.src.acquire(ctx, false)
		if err != nil {
			return n.failed("open", n.path(), 0, 0, err)
		}
		defer n.src.release(o)
		var e syscall.Errno
		if _, size, e = n.window(ctx, o); e != 0 {
			return e
		}
		readOnly = readOnly || n.lasting && o.readOnly
	}
	out.Mode = fuse.S_IFREG | 0o600
	if readOnly {
		out.Mode = fuse.S_IFREG | 0o400
	}
	out.Size = uint64(size)
	out.Blocks = uint64(size) / 512
	out.Blksize = reportedBlock
	out.Nlink = 1
	mtime := n.mounted
	if w := n.written.Load(); w != 0 {
		mtime = time.Unix(0, w)
	}
	out.SetTimes(&n.mounted, &mtime, &mtime)
	return 0
}

// Setattr lets programs set what changes nothing: a disk cannot be cut or grown by this, and truncation to its own size is what a copying
// tool may do.
func (n *fileNode) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if e := n.Getattr(ctx, f, out); e != 0 {
		return e
	}
	// To 0 is open(O_TRUNC), as a shell's ">" does it: a block device ignores it too.
	if size, ok := in.GetSize(); ok && size != out.Size && size != 0 {
		return syscall.EPERM
	}
	return 0
}

func (n *fileNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	write := flags&syscall.O_ACCMODE != syscall.O_RDONLY
	if write && n.readOnly {
		return nil, 0, syscall.EROFS
	}
	ctx, done := n.operation(ctx)
	defer done()
	o, err := n.src.acquire(ctx, write)
	if err != nil {
		return nil, 0, n.failed("open", n.path(), 0, 0, err)
	}
	h := &fileHandle{of: o}
	e := syscall.Errno(0)
	h.base, h.size, e = n.window(ctx, o)
	switch {
	case e != 0:
	case write && o.readOnly:
		e = syscall.EROFS
	case write && o.MayWrite != nil:
		if err := o.MayWrite(ctx); err != nil {
			e = n.failed("open for writing", n.path(), 0, 0, err)
		}
	}
	if e != 0 {
		n.src.release(o)
		return nil, 0, e
	}
	if o.shared {
		return h, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES, 0
	}
	// What is cached of an earlier open is kept only if the disk stayed open, as others may have changed it in between otherwise.
	if n.serial.Swap(o.serial) == o.serial {
		return h, fuse.FOPEN_KEEP_CACHE, 0
	}
	return h, 0, 0
}

func (n *fileNode) Release(_ context.Context, f fs.FileHandle) syscall.Errno {
	if h, ok := f.(*fileHandle); ok {
		n.src.release(h.of)
	}
	return 0
}

func (n *fileNode) Read(ctx context.Context, f fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	h, ok := f.(*fileHandle)
	if !ok {
		return nil, syscall.EBADF
	}
	if off < 0 || off >= h.size {
		return fuse.ReadResultData(nil), 0
	}
	ctx, done := n.operation(ctx)
	defer done()
	dest = dest[:min(int64(len(dest)), h.size-off)]
	if err := h.of.read(ctx, dest, h.base+off); err != nil {
		return nil, n.failed("read", n.path(), off, int64(len(dest)), err)
	}
	return fuse.ReadResultData(dest), 0
}

func (n *fileNode) Write(ctx context.Context, f fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	h, ok := f.(*fileHandle)
	switch {
	case !ok:
		return 0, syscall.EBADF
	case h.of.readOnly:
		return 0, syscall.EROFS
	case off < 0 || off >= h.size && len(data) > 0:
		return 0, syscall.ENOSPC
	}
	ctx, done := n.operation(ctx)
	defer done()
	// As a block device does it: what fits is written.
	data = data[:min(int64(len(data)), h.size-off)]
	if err := h.of.write(ctx, data, h.base+off); err != nil {
		return 0, n.failed("write", n.path(), off, int64(len(data)), err)
	}
	n.wrote(h, off, int64(len(data)))
	return uint32(len(data)), 0
}

// wrote notes a change, and makes the kernel forget what it has cached of it under the other names of these bytes.
func (n *fileNode) wrote(h *fileHandle, off, size int64) {
	n.written.Store(time.Now().UnixNano())
	h.of.wrote()
	if h.of.shared {
		return // nothing is cached
	}
	start, end := h.base+off, h.base+off+size
	n.mu.Lock()
	var others []*fileNode
	for _, f := range n.files {
		if f != n && f.serial.Load() != 0 {
			others = append(others, f)
		}
	}
	n.mu.Unlock()
	for _, f := range others {
		base, length := int64(0), h.of.size
		if name, part := strings.CutPrefix(f.name, partitionsName+"/"); part {
			// The table may just have been changed: then the window is not known, and all goes.
			h.of.mu.Lock()
			base, length = 0, 0
			for _, p := range h.of.parts {
				if p.Name == name && h.of.asOf >= 0 {
					base, length = p.Start, p.Size
				}
			}
			h.of.mu.Unlock()
			if length == 0 {
				f.NotifyContent(0, 0)
				continue
			}
		}
		if from, to := max(start, base), min(end, base+length); from < to {
			f.NotifyContent(from-base, to-from)
		}
	}
}

func (n *fileNode) Fsync(ctx context.Context, f fs.FileHandle, _ uint32) syscall.Errno {
	h, ok := f.(*fileHandle)
	if !ok {
		return syscall.EBADF
	}
	ctx, done := n.operation(ctx)
	defer done()
	return n.failed("flush", n.path(), 0, h.size, h.of.flush(ctx))
}

// Flush is called when a file is closed. umount returns before this process has done its own last flush, so what was written is made
// durable here: whoever detaches a loop device, or closes the file, can rely on it.
func (n *fileNode) Flush(ctx context.Context, f fs.FileHandle) syscall.Errno {
	if h, ok := f.(*fileHandle); !ok || !h.of.dirty.Load() {
		return 0
	}
	return n.Fsync(ctx, f, 0)
}

func (n *fileNode) Allocate(ctx context.Context, f fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	h, ok := f.(*fileHandle)
	switch {
	case !ok:
		return syscall.EBADF
	case h.of.readOnly:
		return syscall.EROFS
	}
	unmap := false
	switch mode {
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE:
		unmap = true
	case unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
	default:
		// Room for later writes cannot be promised.
		return syscall.EOPNOTSUPP
	}
	end := off + size
	if end < off || off > uint64(h.size) || end > uint64(h.size) && mode == unix.FALLOC_FL_ZERO_RANGE {
		return syscall.ENOSPC
	}
	count := int64(min(end, uint64(h.size)) - off)
	if count == 0 {
		return 0
	}
	ctx, done := n.operation(ctx)
	defer done()
	if err := h.of.zero(ctx, h.base+int64(off), count, unmap); err != nil {
		return n.failed("zero", n.path(), int64(off), count, err)
	}
	n.wrote(h, int64(off), count)
	return 0
}

func (n *fileNode) Lseek(ctx context.Context, f fs.FileHandle, off uint64, whence uint32) (uint64, syscall.Errno) {
	h, ok := f.(*fileHandle)
	switch {
	case !ok:
		return 0, syscall.EBADF
	case whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE:
		return 0, syscall.EINVAL
	case off >= uint64(h.size):
		return 0, syscall.ENXIO
	}
	ctx, done := n.operation(ctx)
	defer done()
	at, err := h.of.seek(ctx, h.base+int64(off), h.base+h.size, whence == unix.SEEK_HOLE)
	if err != nil {
		return 0, errno(err)
	}
	return uint64(at - h.base), 0
}
