package fusefs

import (
	"context"
	"errors"
	"syscall"
)

// Disk is what is shown. Its calls may overlap; offsets and lengths are multiples of the logical block size and within the size.
// A Disk may also have
//
//	Shared() bool   // others may write to it at the same time: it is never cached, and never changed in parts of a block
type Disk interface {
	Read(ctx context.Context, p []byte, off int64) error
	Write(ctx context.Context, p []byte, off int64, fua bool) error
	Flush(ctx context.Context) error
	WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error
	Extents(ctx context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error
	Size() int64
	BlockSizes() (logical, physical, optimal, maxTransfer int)
	ReadOnly() bool
}

// errno is what a failed operation says to the kernel: the error number inside err, or EIO.
func errno(err error) syscall.Errno {
	var e syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return syscall.EINTR
	}
	return syscall.EIO
}

// blocks turns requests of any alignment into requests of whole blocks.
type blocks struct {
	disk   Disk
	shared bool
	size   int64
	bs     int64 // logical block size
	max    int   // largest transfer, 0 if there is no limit
	locks  stripes
}

func newBlocks(d Disk) (*blocks, error) {
	logical, _, _, most := d.BlockSizes()
	if logical <= 0 || logical&(logical-1) != 0 || d.Size()%int64(logical) != 0 {
		return nil, errors.New("the disk's size and block size do not fit together")
	}
	b := &blocks{disk: d, size: d.Size(), bs: int64(logical), max: most &^ (logical - 1)}
	if s, ok := d.(interface{ Shared() bool }); ok {
		b.shared = s.Shared()
	}
	return b, nil
}

// outer returns the whole blocks around the range.
func (b *blocks) outer(off, n int64) (start, end int64) {
	return off &^ (b.bs - 1), (off + n + b.bs - 1) &^ (b.bs - 1)
}

func (b *blocks) aligned(off, n int64) bool { return (off|n)&(b.bs-1) == 0 }

// read fills p from off, all of which is on the disk.
func (b *blocks) read(ctx context.Context, p []byte, off int64) error {
	if b.aligned(off, int64(len(p))) {
		return b.pieces(p, off, func(p []byte, off int64) error { return b.disk.Read(ctx, p, off) })
	}
	start, end := b.outer(off, int64(len(p)))
	whole := make([]byte, end-start)
	if err := b.read(ctx, whole, start); err != nil {
		return err
	}
	copy(p, whole[off-start:])
	return nil
}

// pieces calls do for parts of p that the disk takes in one transfer.
func (b *blocks) pieces(p []byte, off int64, do func([]byte, int64) error) error {
	for b.max > 0 && len(p) > b.max {
		if err := do(p[:b.max], off); err != nil {
			return err
		}
		p, off = p[b.max:], off+int64(b.max)
	}
	return do(p, off)
}

// write writes p to off, all of which is on the disk.
func (b *blocks) write(ctx context.Context, p []byte, off int64) error {
	whole := func(p []byte, off int64) error { return b.disk.Write(ctx, p, off, false) }
	if b.shared {
		// No lock of ours would keep another host out.
		if !b.aligned(off, int64(len(p))) {
			return syscall.EINVAL
		}
		return b.pieces(p, off, whole)
	}
	if b.aligned(off, int64(len(p))) {
		defer b.locks.share(off, int64(len(p)))()
		return b.pieces(p, off, whole)
	}
	start, end := b.outer(off, int64(len(p)))
	defer b.locks.own(start, end-start)()
	buf := make([]byte, end-start)
	// Only the first and the last block have bytes that stay.
	if err := b.disk.Read(ctx, buf[:b.bs], start); err != nil {
		return err
	}
	if end-start > b.bs {
		if err := b.disk.Read(ctx, buf[len(buf)-int(b.bs):], end-b.bs); err != nil {
			return err
		}
	}
	copy(buf[off-start:], p)
	return b.pieces(buf, start, whole)
}

// zero makes the range read as zeros; unmap lets the disk give its space back.
func (b *blocks) zero(ctx context.Context, off, n int64, unmap bool) error {
	end := off + n
	if b.aligned(off, n) {
		if !b.shared {
			defer b.locks.share(off, n)()
		}
		return b.disk.WriteZeroes(ctx, off, n, unmap, false)
	}
	if b.shared {
		return syscall.EINVAL
	}
	// The parts of blocks at both ends are written, what is between them is zeroed whole.
	head := min((off+b.bs-1)&^(b.bs-1), end)
	tail := max(end&^(b.bs-1), head)
	if head > off {
		if err := b.write(ctx, make([]byte, head-off), off); err != nil {
			return err
		}
	}
	if tail > head {
		if err := b.zero(ctx, head, tail-head, unmap); err != nil {
			return err
		}
	}
	if end > tail {
		return b.write(ctx, make([]byte, end-tail), tail)
	}
	return nil
}

// seek finds the first byte from off on, before end, that is data (or, with hole, is in a hole). The end counts as a hole.
func (b *blocks) seek(ctx context.Context, off, end int64, hole bool) (int64, error) {
	start, stop := b.outer(off, end-off)
	at, found := start, int64(-1)
	err := b.disk.Extents(ctx, start, min(stop, b.size)-start, func(n int64, _, zero bool) bool {
		if zero == hole {
			found = max(at, off)
			return false
		}
		at += n
		return true
	})
	switch {
	case err != nil:
		return 0, err
	case found >= 0 && found < end:
		return found, nil
	case hole:
		return end, nil
	}
	return 0, syscall.ENXIO
}
