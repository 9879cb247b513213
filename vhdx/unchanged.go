package vhdx

import (
	"context"
	"errors"
	"fmt"
)

// ErrChanged: somebody else has opened the image for writing in the meantime.
var ErrChanged = errors.New("the image was changed by somebody else")

// knownHeaders is what this session knows to be in the file.
type knownHeaders struct {
	current header
	slot    int
	pending *header // is being written to the other slot, and may be there already
}

// Unchanged checks, through b, that the headers in the file are as this session has left them. Whoever opens an image for writing changes them
// ([MS-VHDX] 2.2.2.1), so an error that is ErrChanged says that what is known of the image is not to be relied on. It may be called while other methods wait
// for their backing file, for which b is another way; nothing may be written meanwhile.
func (d *Disk) Unchanged(ctx context.Context, b interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
}) error {
	known := &d.opened
	if d.session != nil {
		known = d.session.known.Load()
	}
	var slots [2][headerSize]byte
	for i := range slots {
		if n, err := b.ReadAt(ctx, slots[i][:], headerOffset(i)); n < len(slots[i]) {
			return fmt.Errorf("read header %d: %w", i+1, err)
		}
	}
	h, err := decodeHeader(slots[known.slot][:])
	if err != nil {
		return fmt.Errorf("%w: %w", ErrChanged, err)
	}
	if h != known.current {
		return fmt.Errorf("%w: header %d has the sequence number %d instead of %d", ErrChanged, known.slot+1, h.sequence, known.current.sequence)
	}
	h, err = decodeHeader(slots[1-known.slot][:])
	if err != nil || h.sequence < known.current.sequence || h == known.current || known.pending != nil && h == *known.pending {
		return nil // a header that is not valid was not finished
	}
	return fmt.Errorf("%w: header %d has the sequence number %d, and the newest of this session is %d", ErrChanged, 2-known.slot, h.sequence, known.current.sequence)
}
