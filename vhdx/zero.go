package vhdx

import (
	"context"
	"errors"
)

var zeroes [256 * kib]byte

// zeroRange makes [off, off+n) read as zeros in the cheapest way that the file has. With unmap the space may be given back.
func zeroRange(ctx context.Context, b Backing, off, n int64, unmap bool) error {
	if n == 0 {
		return nil
	}
	if unmap {
		if h, ok := b.(HolePuncher); ok {
			if err := h.PunchHole(ctx, off, n); !errors.Is(err, errors.ErrUnsupported) {
				return err
			}
		}
	}
	if z, ok := b.(Zeroer); ok {
		if err := z.ZeroRange(ctx, off, n); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	for n > 0 {
		p := zeroes[:min(n, int64(len(zeroes)))]
		if err := writeFull(ctx, b, p, off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// punch gives the space of a range back; errors.ErrUnsupported if the file cannot do that.
func punch(ctx context.Context, b Backing, off, n int64) error {
	if h, ok := b.(HolePuncher); ok {
		return h.PunchHole(ctx, off, n)
	}
	return errors.ErrUnsupported
}
