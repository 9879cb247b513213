package fusefs

import (
	"context"
	"log/slog"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// rootNode is the directory. Its files never change, so they are made once.
type rootNode struct {
	fs.Inode
	disk *diskNode
	info func() []byte
}

var (
	_ fs.NodeOnAdder   = (*rootNode)(nil)
	_ fs.NodeStatfser  = (*rootNode)(nil)
	_ fs.NodeStatfser  = (*diskNode)(nil)
	_ fs.NodeOpener    = (*diskNode)(nil)
	_ fs.NodeReader    = (*diskNode)(nil)
	_ fs.NodeWriter    = (*diskNode)(nil)
	_ fs.NodeFsyncer   = (*diskNode)(nil)
	_ fs.NodeFlusher   = (*diskNode)(nil)
	_ fs.NodeAllocater = (*diskNode)(nil)
	_ fs.NodeLseeker   = (*diskNode)(nil)
	_ fs.NodeGetattrer = (*diskNode)(nil)
	_ fs.NodeSetattrer = (*diskNode)(nil)
	_ fs.NodeOpener    = (*textNode)(nil)
	_ fs.NodeGetattrer = (*textNode)(nil)
)

func (r *rootNode) OnAdd(ctx context.Context) {
	r.AddChild("disk.raw", r.NewPersistentInode(ctx, r.disk, fs.StableAttr{Mode: fuse.S_IFREG, Ino: 2}), false)
	if r.info != nil {
		info := &textNode{text: r.info, mounted: r.disk.mounted}
		info.size.Store(int64(len(r.info())))
		r.AddChild("info.json", r.NewPersistentInode(ctx, info, fs.StableAttr{Mode: fuse.S_IFREG, Ino: 3}), false)
	}
}

func (r *rootNode) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	return r.disk.Statfs(ctx, out)
}

// diskNode is disk.raw.
type diskNode struct {
	fs.Inode
	*blocks
	readOnly bool
	mounted  time.Time

	interruptAfter time.Duration
	written        atomic.Int64 // Unix nanoseconds of the last write
	dirty          atomic.Bool  // written to since the last flush began
	log            *slog.Logger
	logged         atomic.Int64
}

const reportedBlock = 4096

func (d *diskNode) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	out.Bsize, out.Frsize = reportedBlock, reportedBlock
	out.Blocks = uint64(d.size) / reportedBlock
	out.Files = 2
	out.NameLen = 255
	return 0
}

func (d *diskNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = fuse.S_IFREG | 0o600
	if d.readOnly {
		out.Mode = fuse.S_IFREG | 0o400
	}
	out.Size = uint64(d.size)
	out.Blocks = uint64(d.size) / 512
	out.Blksize = reportedBlock
	out.Nlink = 1
	mtime := d.mounted
	if w := d.written.Load(); w != 0 {
		mtime = time.Unix(0, w)
	}
	out.SetTimes(&d.mounted, &mtime, &mtime)
	return 0
}

// Setattr lets programs set what changes nothing: a disk cannot be cut or grown by this, and truncation to its own size is what a copying
// tool may do.
func (d *diskNode) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok && size != uint64(d.size) {
		if size == 0 {
			// open(O_TRUNC), as a shell's ">" does it: a block device ignores it too.
			return d.Getattr(ctx, f, out)
		}
		return syscall.EPERM
	}
	return d.Getattr(ctx, f, out)
}

func (d *diskNode) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if d.readOnly && flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	if d.shared {
		return nil, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES, 0
	}
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

// operation returns the context of one request. The kernel interrupts a request when its caller gets any signal: a timer's, or those that the Go runtime sends
// itself all the time. No program expects a read of a disk to fail for that, and a cancelled write may have happened or not. So a
// signal counts only once the request has taken so long that somebody may want to end it.
func (d *diskNode) operation(ctx context.Context) (context.Context, func()) {
	interrupted := ctx.Done()
	op, cancel := context.WithCancel(context.WithoutCancel(ctx))
	t := time.AfterFunc(d.interruptAfter, func() {
		select {
		case <-interrupted:
			cancel()
		case <-op.Done():
		}
	})
	return op, func() {
		t.Stop()
		cancel()
	}
}

// failed logs an error, at most one a second, and says it to the kernel.
func (d *diskNode) failed(op string, off, n int64, err error) syscall.Errno {
	e := errno(err)
	if e == syscall.EINTR {
		return e
	}
	now, last := time.Now().UnixNano(), d.logged.Load()
	if now-last > int64(time.Second) && d.logged.CompareAndSwap(last, now) {
		d.log.Warn("fuse: request failed", "op", op, "offset", off, "length", n, "errno", unix.ErrnoName(e), "err", err)
	}
	return e
}

func (d *diskNode) Read(ctx context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	ctx, done := d.operation(ctx)
	defer done()
	if off >= d.size {
		return fuse.ReadResultData(nil), 0
	}
	dest = dest[:min(int64(len(dest)), d.size-off)]
	if err := d.read(ctx, dest, off); err != nil {
		return nil, d.failed("read", off, int64(len(dest)), err)
	}
	return fuse.ReadResultData(dest), 0
}

func (d *diskNode) Write(ctx context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	ctx, done := d.operation(ctx)
	defer done()
	switch {
	case d.readOnly:
		return 0, syscall.EROFS
	case off >= d.size && len(data) > 0:
		return 0, syscall.ENOSPC
	}
	// As a block device does it: what fits is written.
	data = data[:min(int64(len(data)), d.size-off)]
	if err := d.write(ctx, data, off); err != nil {
		return 0, d.failed("write", off, int64(len(data)), err)
	}
	d.wrote()
	return uint32(len(data)), 0
}

func (d *diskNode) Fsync(ctx context.Context, _ fs.FileHandle, _ uint32) syscall.Errno {
	ctx, done := d.operation(ctx)
	defer done()
	return d.flush(ctx)
}

// Flush is called when a file is closed. umount returns before this process has done its own last flush, so what was written is made
// durable here: whoever detaches a loop device, or closes the file, can rely on it.
func (d *diskNode) Flush(ctx context.Context, _ fs.FileHandle) syscall.Errno {
	ctx, done := d.operation(ctx)
	defer done()
	if !d.dirty.Load() {
		return 0
	}
	return d.flush(ctx)
}

func (d *diskNode) flush(ctx context.Context) syscall.Errno {
	if d.readOnly {
		return 0
	}
	d.dirty.Store(false)
	if err := d.disk.Flush(ctx); err != nil {
		d.dirty.Store(true)
		return d.failed("flush", 0, d.size, err)
	}
	return 0
}

// wrote notes a change of the disk.
func (d *diskNode) wrote() {
	d.written.Store(time.Now().UnixNano())
	if !d.dirty.Load() {
		d.dirty.Store(true)
	}
}

func (d *diskNode) Allocate(ctx context.Context, _ fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	ctx, done := d.operation(ctx)
	defer done()
	if d.readOnly {
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
	if end < off || off > uint64(d.size) || end > uint64(d.size) && mode == unix.FALLOC_FL_ZERO_RANGE {
		return syscall.ENOSPC
	}
	n := int64(min(end, uint64(d.size)) - off)
	if n == 0 {
		return 0
	}
	if err := d.zero(ctx, int64(off), n, unmap); err != nil {
		return d.failed("zero", int64(off), n, err)
	}
	d.wrote()
	return 0
}

func (d *diskNode) Lseek(ctx context.Context, _ fs.FileHandle, off uint64, whence uint32) (uint64, syscall.Errno) {
	ctx, done := d.operation(ctx)
	defer done()
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, syscall.EINVAL
	}
	if off >= uint64(d.size) {
		return 0, syscall.ENXIO
	}
	at, err := d.seek(ctx, int64(off), whence == unix.SEEK_HOLE)
	if err != nil {
		return 0, errno(err)
	}
	return uint64(at), 0
}

// textNode is a small file whose text is made when it is opened. Its size is that of the text made last: making it may take a question to
// the server, which listing a directory should not wait for. Reads are direct, and so not bound by it.
type textNode struct {
	fs.Inode
	text    func() []byte
	mounted time.Time
	size    atomic.Int64
}

// textHandle is the text as it was when the file was opened.
type textHandle struct{ text []byte }

var _ fs.FileReader = (*textHandle)(nil)

func (t *textNode) Getattr(_ context.Context, f fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = fuse.S_IFREG | 0o400
	out.Nlink = 1
	if h, ok := f.(*textHandle); ok {
		out.Size = uint64(len(h.text))
	} else {
		out.Size = uint64(t.size.Load())
	}
	out.SetTimes(&t.mounted, &t.mounted, &t.mounted)
	return 0
}

func (t *textNode) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	h := &textHandle{t.text()}
	t.size.Store(int64(len(h.text)))
	return h, fuse.FOPEN_DIRECT_IO, 0
}

func (h *textHandle) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off >= int64(len(h.text)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(dest[:copy(dest, h.text[off:])]), 0
}
