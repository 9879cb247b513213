package vhdx

import (
	"context"
	"errors"
	"fmt"
)

// Raw is a disk whose file holds its bytes and nothing else: a raw image, or a block device. It has the same methods as a [*Disk].
type Raw struct {
	b        Backing
	size     int64
	sector   int64
	readOnly bool
}

// OpenRaw makes a disk of a file and locks it. sector is its sector size, 512 or 4096; 0 means 512. What is behind the last whole sector is not seen. On
// success the disk owns the backing file and closes it.
func OpenRaw(ctx context.Context, b Backing, sector int, readOnly bool) (*Raw, error) {
	if sector == 0 {
		sector = 512
	}
	if sector != 512 && sector != 4096 {
		return nil, fmt.Errorf("sector size %d: it must be 512 or 4096", sector)
	}
	if l, ok := b.(Locker); ok {
		if err := l.Lock(ctx, !readOnly); err != nil {
			return nil, err
		}
	}
	size, err := b.Size(ctx)
	if err != nil {
		return nil, fmt.Errorf("size of the image: %w", err)
	}
	return &Raw{b, size / int64(sector) * int64(sector), int64(sector), readOnly}, nil
}

// Size is the size of the disk in bytes.
func (r *Raw) Size() int64 { return r.size }

// BlockSizes returns the sector sizes; there is no best and no largest size of a request.
func (r *Raw) BlockSizes() (logical, physical, optimal, maxTransfer int) {
	return int(r.sector), max(int(r.sector), 4096), 0, 0
}

// ReadOnly reports whether the disk was opened read-only.
func (r *Raw) ReadOnly() bool { return r.readOnly }

func (r *Raw) check(off, n int64) error {
	if off < 0 || n < 0 || off > r.size || n > r.size-off || (off|n)%r.sector != 0 {
		return fmt.Errorf("%d bytes at %d on a disk of %d bytes with %d-byte sectors: %w", n, off, r.size, r.sector, ErrRange)
	}
	return nil
}

func (r *Raw) change(off, n int64) error {
	if r.readOnly {
		return ErrReadOnly
	}
	return r.check(off, n)
}

// Read reads all of p.
func (r *Raw) Read(ctx context.Context, p []byte, off int64) error {
	if err := r.check(off, int64(len(p))); err != nil {
		return err
	}
	return readFull(ctx, r.b, p, off)
}

// Write writes all of p. With fua it is durable on return.
func (r *Raw) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := r.change(off, int64(len(p))); err != nil {
		return err
	}
	if err := writeFull(ctx, r.b, p, off); err != nil || !fua {
		return err
	}
	return r.b.Flush(ctx)
}

// Flush makes every write durable that has returned.
func (r *Raw) Flush(ctx context.Context) error {
	if r.readOnly {
		return nil
	}
	return r.b.Flush(ctx)
}

// Trim makes a hole where the file can have one, and does nothing where it cannot.
func (r *Raw) Trim(ctx context.Context, off, n int64) error {
	if err := r.change(off, n); err != nil {
		return err
	}
	if err := punch(ctx, r.b, off, n); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

// WriteZeroes makes the range read as zeros.
func (r *Raw) WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error {
	if err := r.change(off, n); err != nil {
		return err
	}
	if err := zeroRange(ctx, r.b, off, n, unmap); err != nil || !fua {
		return err
	}
	return r.b.Flush(ctx)
}

// Extents reports what the range consists of, as consecutive runs from off, until yield returns false.
func (r *Raw) Extents(ctx context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error {
	if err := r.check(off, n); err != nil {
		return err
	}
	e := extentRun{yield: yield}
	if err := fileExtents(ctx, r.b, r.sector, off, n, &e); err != nil {
		return err
	}
	e.end()
	return nil
}

// Close closes the file.
func (r *Raw) Close() error { return r.b.Close() }
