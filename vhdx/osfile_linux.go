package vhdx

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// control runs fn on the descriptor, again while it is interrupted.
func (o *OSFile) control(op string, fn func(fd int) error) error {
	c, err := o.f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := c.Control(func(fd uintptr) {
		for {
			if ferr = fn(int(fd)); ferr != unix.EINTR {
				return
			}
		}
	}); err != nil {
		return err
	}
	if ferr != nil {
		return &os.PathError{Op: op, Path: o.f.Name(), Err: ferr}
	}
	return nil
}

func (o *OSFile) dataSync() error { return o.control("fdatasync", unix.Fdatasync) }

// fallocate turns the errors of file systems and devices that cannot do a mode into errors.ErrUnsupported.
func (o *OSFile) fallocate(ctx context.Context, op string, mode uint32, off, n int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := o.control(op, func(fd int) error { return unix.Fallocate(fd, mode, off, n) })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%s: %w", op, errors.ErrUnsupported)
	}
	return err
}

// PunchHole is [HolePuncher.PunchHole].
func (o *OSFile) PunchHole(ctx context.Context, off, n int64) error {
	return o.fallocate(ctx, "punch hole", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// ZeroRange is [Zeroer.ZeroRange].
func (o *OSFile) ZeroRange(ctx context.Context, off, n int64) error {
	return o.fallocate(ctx, "zero range", unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// Allocate is [Allocator.Allocate].
func (o *OSFile) Allocate(ctx context.Context, off, n int64) error {
	return o.fallocate(ctx, "allocate", 0, off, n)
}

// AllocatedRanges is [RangeQuerier.AllocatedRanges].
func (o *OSFile) AllocatedRanges(ctx context.Context, off, n int64, yield func(off, n int64) bool) error {
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var data, hole int64
		err := o.control("seek data", func(fd int) (err error) {
			if data, err = unix.Seek(fd, off, unix.SEEK_DATA); err == nil {
				hole, err = unix.Seek(fd, data, unix.SEEK_HOLE)
			}
			return err
		})
		switch {
		case errors.Is(err, unix.ENXIO):
			return nil // no data behind off
		case errors.Is(err, unix.EINVAL):
			data, hole = off, end // the file system does not tell
		case err != nil:
			return err
		}
		if data >= end {
			return nil
		}
		if hole = min(hole, end); !yield(data, hole-data) {
			return nil
		}
		off = hole
	}
	return nil
}

// Bytes on which QEMU puts shared locks to say what it does with an image: one range for what a program does, one for what it does not want others to do.
const (
	qemuConsistentRead       = 100
	qemuWrite                = 101
	qemuResize               = 103
	qemuUnsharedRead         = 200
	qemuUnsharedWrite        = 201
	qemuUnsharedResize       = 203
	ownLockByte              = 0
	wholeFile          int64 = 0 // as a length: to the end, however far the file grows
)

// Lock is [Locker.Lock]. It uses open file description locks, in a way that also keeps QEMU out, and respects it.
func (o *OSFile) Lock(_ context.Context, exclusive bool) error {
	set := func(kind int16, start, n int64) error {
		lk := unix.Flock_t{Type: kind, Whence: 0, Start: start, Len: n}
		err := o.control("lock", func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lk) })
		switch {
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
			return fmt.Errorf("lock %s: %w", o.f.Name(), ErrInUse)
		case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS):
			return nil // a file system without locks; nobody else can have one either
		}
		return err
	}
	if exclusive {
		return set(unix.F_WRLCK, 0, wholeFile)
	}
	for _, b := range []int64{ownLockByte, qemuConsistentRead, qemuUnsharedWrite, qemuUnsharedResize} {
		if err := set(unix.F_RDLCK, b, 1); err != nil {
			return err
		}
	}
	for _, b := range []int64{qemuWrite, qemuResize, qemuUnsharedRead} {
		lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: b, Len: 1}
		err := o.control("lock", func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lk) })
		if err == nil && lk.Type != unix.F_UNLCK {
			return fmt.Errorf("lock %s: %w", o.f.Name(), ErrInUse)
		}
	}
	return nil
}
