package lu

import (
	"context"
	"errors"
	"fmt"

	"vdbridge/scsi"
)

// ErrUnaligned is returned by the plain reads and writes of a nexus whose offset or length is no multiple of the logical block size.
var ErrUnaligned = errors.New("offset and length must be multiples of the logical block size")

// plain admits a read or write that did not come as a SCSI command, and checks its range.
func (n *Nexus) plain(op scsi.OpCode, need rights, off int64, size int) (ticket, error) {
	if mask := n.lu.bs - 1; off < 0 || off&mask != 0 || int64(size)&mask != 0 {
		return ticket{}, fmt.Errorf("%v of %d bytes at %d: %w", op, size, off, ErrUnaligned)
	}
	t, attention, conflict := n.i.admit(need)
	if attention != 0 {
		return t, &scsi.Error{Op: op, Status: scsi.CheckCondition, Sense: scsi.NewSense(scsi.UnitAttention, attention)}
	}
	if conflict {
		return t, &scsi.Error{Op: op, Status: scsi.ReservationConflict}
	}
	if r, ok := n.lu.checkRange(uint64(off/n.lu.bs), uint64(size)/uint64(n.lu.bs)); !ok {
		n.i.leave(t)
		return t, r.Error(op)
	}
	return t, nil
}

// Read reads len(p) bytes at off, with the checks of READ. Its error is a *scsi.Error or wraps ErrUnaligned.
func (n *Nexus) Read(ctx context.Context, p []byte, off int64) error {
	t, err := n.plain(scsi.OpRead16, mayRead, off, len(p))
	if err != nil {
		return err
	}
	r := n.read(ctx, t, p, off)
	n.i.leave(t)
	return r.Error(scsi.OpRead16)
}

// Write writes p at off, with the checks of WRITE; with fua it is durable on return. Its error is as that of Read.
func (n *Nexus) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	t, err := n.plain(scsi.OpWrite16, mayWrite, off, len(p))
	if err != nil {
		return err
	}
	r := n.write(ctx, t, p, off, fua)
	n.i.leave(t)
	return r.Error(scsi.OpWrite16)
}

// Flush makes durable what was written before, with the checks of SYNCHRONIZE CACHE. Its error is as that of Read.
func (n *Nexus) Flush(ctx context.Context) error {
	t, err := n.plain(scsi.OpSynchronizeCache16, mayWrite, 0, 0)
	if err != nil {
		return err
	}
	r := n.flush(ctx, 0)
	n.i.leave(t)
	return r.Error(scsi.OpSynchronizeCache16)
}
