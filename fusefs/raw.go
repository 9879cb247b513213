package fusefs

import (
	"context"
	"errors"
	"log/slog"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// rawFS translates between the calls of the kernel and nodes.
type rawFS struct {
	fuse.RawFileSystem // answers ENOSYS to what is not here
	table              *table
	log                *slog.Logger
	ctx                context.Context // done when operations in flight are to end
	interruptAfter     time.Duration
	uid, gid           uint32
	since              time.Time
	blockSize          uint32
	total              uint64 // bytes, for statfs
}

const forever = 365 * 24 * 3600 // seconds; nothing in the tree changes by itself

// operation returns the context of one call. cancel is closed when the caller got a signal.
func (r *rawFS) operation(interrupted <-chan struct{}) (context.Context, func()) {
	ctx, cancel := context.WithCancel(r.ctx)
	t := time.AfterFunc(r.interruptAfter, func() {
		select {
		case <-interrupted:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		t.Stop()
		cancel()
	}
}

// status makes an errno of an error: that of the syscall.Errno in its chain, EINTR for what a signal ended, and EIO for all else.
func (r *rawFS) status(ctx context.Context, op string, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var e syscall.Errno
	switch {
	case errors.Is(err, context.Canceled) && ctx.Err() != nil && r.ctx.Err() == nil:
		return fuse.EINTR
	case errors.As(err, &e) && e != 0 && e < 4096:
		if e == syscall.EIO {
			r.log.Warn("fusefs: request failed", "operation", op, "err", err)
		}
		return fuse.Status(e)
	}
	r.log.Warn("fusefs: request failed", "operation", op, "err", err)
	return fuse.EIO
}

func (r *rawFS) String() string { return "vdbridge" }

func (r *rawFS) attr(id uint64, n node, out *fuse.Attr) {
	*out = fuse.Attr{Ino: id, Nlink: 1, Owner: fuse.Owner{Uid: r.uid, Gid: r.gid}, Blksize: r.blockSize}
	out.SetTimes(&r.since, &r.since, &r.since)
	n.attr(out)
	out.Blocks = (out.Size + 511) / 512
}

// Lookup implements fuse.RawFileSystem, as the methods below do.
func (r *rawFS) Lookup(cancel <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	d, ok := r.table.node(header.NodeId).(dirNode)
	if !ok {
		return fuse.ENOTDIR
	}
	ctx, done := r.operation(cancel)
	defer done()
	n, err := d.lookup(ctx, name)
	if errors.Is(err, syscall.ENOENT) {
		return fuse.ENOENT
	}
	if err != nil {
		return r.status(ctx, "lookup", err)
	}
	r.entry(n, out)
	return fuse.OK
}

func (r *rawFS) entry(n node, out *fuse.EntryOut) {
	id := r.table.number(n, 1)
	out.NodeId, out.EntryValid, out.AttrValid = id, forever, forever
	r.attr(id, n, &out.Attr)
}

// Forget is told that the kernel no longer knows a node.
func (r *rawFS) Forget(nodeID, nlookup uint64) { r.table.forget(nodeID, nlookup) }

// GetAttr is stat.
func (r *rawFS) GetAttr(_ <-chan struct{}, input *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := r.table.node(input.NodeId)
	if n == nil {
		return fuse.ENOENT
	}
	out.AttrValid = forever
	r.attr(input.NodeId, n, &out.Attr)
	return fuse.OK
}

// SetAttr is chmod, chown, utimes and truncate. Times are accepted and not kept, so that touch and cp -p work.
func (r *rawFS) SetAttr(cancel <-chan struct{}, input *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := r.table.node(input.NodeId)
	if n == nil {
		return fuse.ENOENT
	}
	if input.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		return fuse.EPERM
	}
	if size, ok := input.GetSize(); ok {
		f, ok := n.(fileNode)
		if !ok {
			return fuse.Status(syscall.EISDIR)
		}
		ctx, done := r.operation(cancel)
		defer done()
		// For O_TRUNC the kernel sends no handle, for ftruncate it does.
		if err := f.truncate(ctx, size, input.Valid&fuse.FATTR_FH == 0); err != nil {
			return r.status(ctx, "truncate", err)
		}
	}
	out.AttrValid = forever
	r.attr(input.NodeId, n, &out.Attr)
	return fuse.OK
}

// Access is decided by the kernel from the attributes.
func (r *rawFS) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// Open opens a file.
func (r *rawFS) Open(cancel <-chan struct{}, input *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f, ok := r.table.node(input.NodeId).(fileNode)
	if !ok {
		return fuse.Status(syscall.EISDIR)
	}
	ctx, done := r.operation(cancel)
	defer done()
	h, flags, err := f.open(ctx, input.Flags)
	if err != nil {
		return r.status(ctx, "open", err)
	}
	out.Fh, out.OpenFlags = r.table.addHandle(h), flags
	return fuse.OK
}

func (r *rawFS) Read(cancel <-chan struct{}, input *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := r.table.handle(input.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	ctx, done := r.operation(cancel)
	defer done()
	n, err := h.read(ctx, buf[:min(len(buf), int(input.Size))], int64(input.Offset))
	if err != nil {
		return nil, r.status(ctx, "read", err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (r *rawFS) Write(cancel <-chan struct{}, input *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := r.table.handle(input.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	ctx, done := r.operation(cancel)
	defer done()
	n, err := h.write(ctx, data, int64(input.Offset))
	return uint32(n), r.status(ctx, "write", err)
}

// Flush is close(2) by one of the holders of a handle.
func (r *rawFS) Flush(cancel <-chan struct{}, input *fuse.FlushIn) fuse.Status {
	return r.onHandle(cancel, input.Fh, "close", handle.flush)
}

// Fsync is fsync and fdatasync.
func (r *rawFS) Fsync(cancel <-chan struct{}, input *fuse.FsyncIn) fuse.Status {
	return r.onHandle(cancel, input.Fh, "fsync", handle.sync)
}

func (r *rawFS) onHandle(cancel <-chan struct{}, fh uint64, op string, f func(handle, context.Context) error) fuse.Status {
	h := r.table.handle(fh)
	if h == nil {
		return fuse.EBADF
	}
	ctx, done := r.operation(cancel)
	defer done()
	return r.status(ctx, op, f(h, ctx))
}

// Fallocate is fallocate(2).
func (r *rawFS) Fallocate(cancel <-chan struct{}, input *fuse.FallocateIn) fuse.Status {
	h := r.table.handle(input.Fh)
	switch {
	case h == nil:
		return fuse.EBADF
	case input.Length == 0 || input.Offset > 1<<62 || input.Length > 1<<62:
		return fuse.EINVAL
	}
	ctx, done := r.operation(cancel)
	defer done()
	return r.status(ctx, "fallocate", h.allocate(ctx, int64(input.Offset), int64(input.Length), input.Mode))
}

// Lseek is lseek with SEEK_DATA and SEEK_HOLE.
func (r *rawFS) Lseek(cancel <-chan struct{}, input *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := r.table.handle(input.Fh)
	if h == nil {
		return fuse.EBADF
	}
	ctx, done := r.operation(cancel)
	defer done()
	off, err := h.seek(ctx, int64(input.Offset), input.Whence)
	out.Offset = uint64(off)
	return r.status(ctx, "lseek", err)
}

// Release is told that the last holder of a handle is gone.
func (r *rawFS) Release(_ <-chan struct{}, input *fuse.ReleaseIn) {
	if h := r.table.dropHandle(input.Fh); h != nil {
		h.release()
	}
}

// OpenDir opens a directory; it needs no handle.
func (r *rawFS) OpenDir(_ <-chan struct{}, input *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	if _, ok := r.table.node(input.NodeId).(dirNode); !ok {
		return fuse.ENOTDIR
	}
	return fuse.OK
}

func (r *rawFS) ReadDir(cancel <-chan struct{}, input *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.readDir(cancel, input, func(e fuse.DirEntry, n node) bool { return out.AddDirEntry(e) })
}

func (r *rawFS) ReadDirPlus(cancel <-chan struct{}, input *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.readDir(cancel, input, func(e fuse.DirEntry, n node) bool {
		eo := out.AddDirLookupEntry(e)
		if eo == nil {
			return false
		}
		if n != nil {
			r.entry(n, eo)
		}
		return true
	})
}

// readDir yields the entries from the offset that the kernel has reached; the offset is the number of entries before.
func (r *rawFS) readDir(cancel <-chan struct{}, input *fuse.ReadIn, add func(e fuse.DirEntry, n node) bool) fuse.Status {
	d, ok := r.table.node(input.NodeId).(dirNode)
	if !ok {
		return fuse.ENOTDIR
	}
	ctx, done := r.operation(cancel)
	defer done()
	i := uint64(0)
	one := func(name string, n node, mode uint32, ino uint64) bool {
		i++
		if i <= input.Offset {
			return true
		}
		return add(fuse.DirEntry{Mode: mode, Name: name, Ino: ino, Off: i}, n)
	}
	if !one(".", nil, fuse.S_IFDIR, input.NodeId) || !one("..", nil, fuse.S_IFDIR, input.NodeId) {
		return fuse.OK
	}
	err := d.list(ctx, func(name string, n node) bool {
		var a fuse.Attr
		n.attr(&a)
		return one(name, n, a.Mode, r.table.number(n, 0))
	})
	return r.status(ctx, "readdir", err)
}

// StatFs tells the size of the disk; nothing is free, as files cannot be made.
func (r *rawFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: r.blockSize, Frsize: r.blockSize, Blocks: r.total / uint64(r.blockSize), Files: 2, NameLen: 255}
	return fuse.OK
}
