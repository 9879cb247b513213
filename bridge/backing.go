package bridge

import (
	"context"
	"errors"
	"fmt"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
)

// backing is an open for package vhdx. Zeroing and asking for allocated ranges are abilities that not every server has.
type backing struct{ smbOpen }

// smbOpen is what client.File and link.File have in common.
type smbOpen interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	Flush(ctx context.Context) error
	Size(ctx context.Context) (int64, error)
	Truncate(ctx context.Context, size int64) error
	ZeroRange(ctx context.Context, off, n int64) error
	AllocatedRanges(ctx context.Context, off, n int64) ([]fscc.Range, error)
	Close() error
}

// ZeroRange makes a range read as zeros.
func (b backing) ZeroRange(ctx context.Context, off, n int64) error {
	return ability(b.smbOpen.ZeroRange(ctx, off, n))
}

// AllocatedRanges yields the parts of a range that may hold data.
func (b backing) AllocatedRanges(ctx context.Context, off, n int64, yield func(off, n int64) bool) error {
	list, err := b.smbOpen.AllocatedRanges(ctx, off, n)
	if err != nil {
		return ability(err)
	}
	for _, r := range list {
		if !yield(r.Offset, r.Length) {
			break
		}
	}
	return nil
}

// ability marks what the server cannot do as errors.ErrUnsupported.
func ability(err error) error {
	if s, ok := ntstatus.Of(err); ok {
		switch s {
		case ntstatus.NotSupported, ntstatus.InvalidDeviceRequest, ntstatus.NotImplemented, ntstatus.InvalidParameter:
			return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
		}
	}
	return err
}
