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

// Bytes on which QEMU puts shared locks to say what it does with an image (100 and up), and what it does not want others to do (200 and up).
const (
	qemuConsistentRead       = 100
	qemuWrite                = 101
	qemuResize               = 103
	qemuUnsharedRead         = 200
	qemuUnsharedWrite        = 201
	qemuUnsharedResize       = 203
	ownLockByte        int64 = 0
)

// Lock is [Locker.Lock]. It uses open file description locks: one byte among ourselves, and those of QEMU, so that either keeps the other out where both
// would get into each other's way ("qemu-img info -U" still works).
func (o *OSFile) Lock(_ context.Context, exclusive bool) error {
	kind := int16(unix.F_RDLCK)
	mine := []int64{qemuConsistentRead, qemuUnsharedWrite, qemuUnsharedResize}
	against := []int64{qemuWrite, qemuResize, qemuUnsharedRead}
	if exclusive {
		kind = unix.F_WRLCK
		mine = append(mine, qemuWrite, qemuResize)
		against = []int64{qemuWrite, qemuResize, qemuUnsharedRead, qemuUnsharedWrite, qemuUnsharedResize}
	}
	if ok, err := o.setLock(kind, ownLockByte); err != nil || !ok {
		return err
	}
	for _, b := range mine {
		if _, err := o.setLock(unix.F_RDLCK, b); err != nil {
			return err
		}
	}
	for _, b := range against {
		lk := unix.Flock_t{Type: unix.F_WRLCK, Start: b, Len: 1}
		err := o.control("lock", func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lk) })
		if err == nil && lk.Type != unix.F_UNLCK {
			return fmt.Errorf("lock %s: %w", o.f.Name(), ErrInUse)
		}
	}
	return nil
}

// setLock locks one byte; ok is false on a file system without locks, where nobody else can have one either.
func (o *OSFile) setLock(kind int16, at int64) (ok bool, err error) {
	lk := unix.Flock_t{Type: kind, Start: at, Len: 1}
	err = o.control("lock", func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lk) })
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
		return false, fmt.Errorf("lock %s: %w", o.f.Name(), ErrInUse)
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS):
		return false, nil
	}
	return err == nil, err
}
