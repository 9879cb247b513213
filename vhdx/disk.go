package vhdx

import (
	"context"
	"errors"
)

// A Disk is an open image. All methods may be called at the same time.
type Disk struct{}

func open(ctx context.Context, b Backing, o Options) (*Disk, error) { return nil, errors.ErrUnsupported }

// Create writes a new, empty image.
func Create(ctx context.Context, b Backing, o CreateOptions) error { return errors.ErrUnsupported }

func (d *Disk) Read(ctx context.Context, p []byte, off int64) error { return errors.ErrUnsupported }
func (d *Disk) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	return errors.ErrUnsupported
}
func (d *Disk) Flush(ctx context.Context) error              { return errors.ErrUnsupported }
func (d *Disk) Trim(ctx context.Context, off, n int64) error { return errors.ErrUnsupported }
func (d *Disk) WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error {
	return errors.ErrUnsupported
}
func (d *Disk) Extents(ctx context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error {
	return errors.ErrUnsupported
}
func (d *Disk) Size() int64                                         { return 0 }
func (d *Disk) BlockSizes() (logical, physical, optimal, maxIO int) { return 512, 4096, 0, 0 }
func (d *Disk) ReadOnly() bool                                      { return false }
func (d *Disk) Close() error                                        { return nil }
func (d *Disk) Info() Info                                          { return Info{} }
func (d *Disk) Usage(ctx context.Context) (Usage, error)            { return Usage{}, errors.ErrUnsupported }

// OpenFile opens the image in a local file.
func OpenFile(ctx context.Context, path string, o Options) (*Disk, error) {
	return nil, errors.ErrUnsupported
}

// CreateFile makes a new image in a new local file.
func CreateFile(ctx context.Context, path string, o CreateOptions) error { return errors.ErrUnsupported }
