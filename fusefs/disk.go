package fusefs

import (
	"context"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Disk is what disk.raw stands on. All methods may be called at the same time from any goroutine. Offsets and lengths are in bytes, multiples of
// the logical block size and within the size. Errors keep a syscall.Errno in their chain.
type Disk interface {
	Read(ctx context.Context, p []byte, off int64) error
	Write(ctx context.Context, p []byte, off int64, fua bool) error
	Flush(ctx context.Context) error
	Trim(ctx context.Context, off, n int64) error
	WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error
	Extents(ctx context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error
	Size() int64
	BlockSizes() (logical, physical, optimal, maxTransfer int)
	ReadOnly() bool
}

// Sharer is an optional ability of a Disk: Shared reports that other hosts may read and write the disk at the same time.
type Sharer interface {
	Shared() bool
}

// diskFile is disk.raw. Its handles differ only in whether they may write.
type diskFile struct {
	disk        Disk
	size        int64
	block       int64 // logical block size
	maxTransfer int
	readOnly    bool
	shared      bool
	direct      bool
	ctx         context.Context // for what no caller waits for
	failed      func(op string, err error)

	locks   rangeLocks
	writes  atomic.Uint64 // changes that have been made
	flushed atomic.Uint64 // of these, how many a successful Flush covers
}

func newDiskFile(ctx context.Context, d Disk, readOnly, direct bool, failed func(op string, err error)) (*diskFile, error) {
	logical, _, _, maxTransfer := d.BlockSizes()
	logical = max(logical, 1)
	if bits.OnesCount(uint(logical)) != 1 {
		return nil, fmt.Errorf("fusefs: the block size %d is not a power of two", logical)
	}
	f := &diskFile{disk: d, size: d.Size(), block: int64(logical), readOnly: readOnly || d.ReadOnly(), direct: direct, ctx: ctx, failed: failed}
	f.maxTransfer = maxTransfer / logical * logical
	if maxTransfer > 0 && f.maxTransfer == 0 {
		f.maxTransfer = logical
	}
	if s, ok := d.(Sharer); ok {
		f.shared = s.Shared()
	}
	f.direct = f.direct || f.shared
	f.locks.cond.L = &f.locks.mu
	return f, nil
}

func (f *diskFile) attr(out *fuse.Attr) {
	out.Mode, out.Size = fuse.S_IFREG|0o600, uint64(f.size)
	if f.readOnly {
		out.Mode = fuse.S_IFREG | 0o400
	}
}

func (f *diskFile) open(_ context.Context, flags uint32) (handle, uint32, error) {
	writable := flags&syscall.O_ACCMODE != syscall.O_RDONLY
	if writable && f.readOnly {
		return nil, 0, syscall.EROFS
	}
	how := uint32(fuse.FOPEN_KEEP_CACHE) // nobody else changes it
	if f.direct {
		how = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	}
	return &diskHandle{f, writable}, how, nil
}

// truncate leaves the size alone when a program only means to begin anew, as it would on a block device.
func (f *diskFile) truncate(_ context.Context, size uint64, viaOpen bool) error {
	switch {
	case f.readOnly:
		return syscall.EROFS
	case size == uint64(f.size) || viaOpen && size == 0:
		return nil
	}
	return syscall.EINVAL
}

// diskHandle is an open disk.raw.
type diskHandle struct {
	*diskFile
	writable bool
}

func (h *diskHandle) read(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off >= h.size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), h.size-off)]
	if len(p) == 0 {
		return 0, nil
	}
	mask := h.block - 1
	if (off|int64(len(p)))&mask == 0 {
		return len(p), h.readDisk(ctx, p, off)
	}
	start, end := off&^mask, (off+int64(len(p))+mask)&^mask
	b := make([]byte, min(end, h.size)-start)
	if err := h.readDisk(ctx, b, start); err != nil {
		return 0, err
	}
	return copy(p, b[off-start:]), nil
}

func (f *diskFile) readDisk(ctx context.Context, p []byte, off int64) error {
	for f.maxTransfer > 0 && len(p) > f.maxTransfer {
		if err := f.disk.Read(ctx, p[:f.maxTransfer], off); err != nil {
			return err
		}
		p, off = p[f.maxTransfer:], off+int64(f.maxTransfer)
	}
	return f.disk.Read(ctx, p, off)
}

func (h *diskHandle) write(ctx context.Context, p []byte, off int64) (int, error) {
	switch {
	case !h.writable:
		return 0, syscall.EBADF
	case off < 0 || off >= h.size:
		return 0, syscall.ENOSPC
	}
	p = p[:min(int64(len(p)), h.size-off)]
	n := len(p)
	err := h.change(off, int64(n), func() error {
		return h.edges(ctx, off, int64(n), func(at, k int64) error { return h.writeDisk(ctx, p[at-off:][:k], at) },
			func(block []byte, at, from, to int64) { copy(block[from-at:to-at], p[from-off:]) })
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (f *diskFile) writeDisk(ctx context.Context, p []byte, off int64) error {
	for f.maxTransfer > 0 && len(p) > f.maxTransfer {
		if err := f.disk.Write(ctx, p[:f.maxTransfer], off, false); err != nil {
			return err
		}
		p, off = p[f.maxTransfer:], off+int64(f.maxTransfer)
	}
	return f.disk.Write(ctx, p, off, false)
}

// change runs do, which changes the range, while nobody else changes the blocks of it. A shared disk needs no such lock: there whole blocks are
// written, and who writes the same ones at the same time gets what the disk makes of it.
func (f *diskFile) change(off, n int64, do func() error) error {
	if (off|n)&(f.block-1) != 0 && f.shared {
		return fmt.Errorf("fusefs: %d bytes at %d are not whole blocks of %d, which a shared disk needs: %w", n, off, f.block, syscall.EINVAL)
	}
	if !f.shared {
		start, end := off&^(f.block-1), (off+n+f.block-1)&^(f.block-1)
		defer f.locks.unlock(f.locks.lock(start, end))
	}
	err := do()
	f.writes.Add(1) // also when it failed: part of it may have been written
	return err
}

// edges cuts a range into the whole blocks in the middle and the parts of blocks at its ends. whole is called for the former, and patch for
// each of the latter with the block read at at, of which the bytes of the disk from from to to are to be changed.
func (f *diskFile) edges(ctx context.Context, off, n int64, whole func(at, k int64) error, patch func(block []byte, at, from, to int64)) error {
	mask := f.block - 1
	end := off + n
	part := func(from, to int64) error {
		at := from &^ mask
		block := make([]byte, f.block)
		if err := f.disk.Read(ctx, block, at); err != nil {
			return err
		}
		patch(block, at, from, to)
		return f.disk.Write(ctx, block, at, false)
	}
	if off&mask != 0 {
		to := min(end, (off|mask)+1)
		if err := part(off, to); err != nil {
			return err
		}
		off = to
	}
	if mid := end &^ mask; mid > off {
		if err := whole(off, mid-off); err != nil {
			return err
		}
		off = mid
	}
	if off < end {
		return part(off, end)
	}
	return nil
}

// Modes of fallocate.
const (
	fallocKeepSize  = 0x01
	fallocPunchHole = 0x02
	fallocZeroRange = 0x10
)

func (h *diskHandle) allocate(ctx context.Context, off, n int64, mode uint32) error {
	var unmap bool
	switch mode {
	case fallocPunchHole | fallocKeepSize:
		unmap = true
	case fallocZeroRange, fallocZeroRange | fallocKeepSize:
	default:
		return syscall.EOPNOTSUPP // in particular, space cannot be promised
	}
	switch {
	case !h.writable:
		return syscall.EBADF
	case off >= h.size && mode != fallocZeroRange:
		return nil // beyond the end there is nothing, and the size is to be kept
	case mode == fallocZeroRange && n > h.size-off:
		return syscall.ENOSPC
	}
	n = min(n, h.size-off)
	return h.change(off, n, func() error {
		return h.edges(ctx, off, n, func(at, k int64) error { return h.disk.WriteZeroes(ctx, at, k, unmap, false) },
			func(block []byte, at, from, to int64) { clear(block[from-at : to-at]) })
	})
}

func (h *diskHandle) seek(ctx context.Context, off int64, whence uint32) (int64, error) {
	if _, err := seekDense(h.size, off, whence); err != nil {
		return 0, err
	}
	at := off &^ (h.block - 1)
	found := int64(-1)
	err := h.disk.Extents(ctx, at, h.size-at, func(n int64, _, zero bool) bool {
		if zero == (whence == seekHole) && at+n > off {
			found = max(at, off)
			return false
		}
		at += n
		return true
	})
	switch {
	case err != nil:
		return 0, err
	case found >= 0:
		return found, nil
	case whence == seekHole:
		return h.size, nil
	}
	return 0, syscall.ENXIO
}

// flush makes what was written durable when a handle that may write is closed, so that closing and unmounting needs no sync in between.
func (h *diskHandle) flush(ctx context.Context) error {
	if !h.writable {
		return nil
	}
	return h.flushDirty(ctx)
}

// sync flushes always: a program that asks for it may know more than we do.
func (h *diskHandle) sync(ctx context.Context) error { return h.flushDisk(ctx) }

// release flushes for those who never called close, such as a loop device.
func (h *diskHandle) release() {
	if err := h.flush(h.ctx); err != nil {
		h.failed("close", err)
	}
}

// flushDirty flushes if there have been changes since the last flush.
func (f *diskFile) flushDirty(ctx context.Context) error {
	if f.writes.Load() == f.flushed.Load() {
		return nil
	}
	return f.flushDisk(ctx)
}

func (f *diskFile) flushDisk(ctx context.Context) error {
	covered := f.writes.Load()
	if err := f.disk.Flush(ctx); err != nil {
		return err
	}
	for {
		old := f.flushed.Load()
		if old >= covered || f.flushed.CompareAndSwap(old, covered) {
			return nil
		}
	}
}

// rangeLocks lets at most one holder have any byte.
type rangeLocks struct {
	mu   sync.Mutex
	cond sync.Cond
	held []byteRange
}

type byteRange struct{ start, end int64 }

func (l *rangeLocks) lock(start, end int64) byteRange {
	r := byteRange{start, end}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.overlaps(r) {
		l.cond.Wait()
	}
	l.held = append(l.held, r)
	return r
}

func (l *rangeLocks) overlaps(r byteRange) bool {
	for _, h := range l.held {
		if r.start < h.end && h.start < r.end {
			return true
		}
	}
	return false
}

func (l *rangeLocks) unlock(r byteRange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, h := range l.held {
		if h == r {
			last := len(l.held) - 1
			l.held[i] = l.held[last]
			l.held = l.held[:last]
			break
		}
	}
	l.cond.Broadcast()
}
