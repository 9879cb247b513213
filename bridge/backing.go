package bridge

import (
	"context"
	"errors"
	"fmt"

	"vdbridge/client"
	"vdbridge/smb/ntstatus"
)

// backing is an open for package vhdx. Zeroing and asking for allocated ranges are abilities that not every server has.
type backing struct{ *client.File }

// ZeroRange makes a range read as zeros.
func (b backing) ZeroRange(ctx context.Context, off, n int64) error {
	return ability(b.File.ZeroRange(ctx, off, n))
}

// AllocatedRanges yields the parts of a range that may hold data.
func (b backing) AllocatedRanges(ctx context.Context, off, n int64, yield func(off, n int64) bool) error {
	list, err := b.File.AllocatedRanges(ctx, off, n)
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
