package rsvd

import (
	"context"
	"errors"
	"math"

	"vdbridge/scsi"
	"vdbridge/smb/ntstatus"
)

// capabilities is what the logical unit says it can do, found out once at open.
type capabilities struct {
	fua        bool // WRITE(16) honours FUA
	unmap      bool
	maxUnmap   uint32 // blocks of one UNMAP
	writeSame  bool
	maxSame    uint32 // blocks of one WRITE SAME
	sameUnmaps bool   // WRITE SAME may deallocate, and the blocks then read as zeros
	readsZero  bool   // deallocated blocks read as zeros
	optimal    int    // bytes
	zeroSector []byte
}

// Bounds for units that name none: a command should not keep others waiting for long.
const (
	defaultMaxUnmap = 1 << 22 // blocks
	defaultMaxSame  = 1 << 16
)

// learn asks the logical unit what it can do, and settles the data path.
func (d *Disk) learn(ctx context.Context) error {
	c := capabilities{maxUnmap: defaultMaxUnmap, maxSame: defaultMaxSame, zeroSector: make([]byte, d.sectorSize)}
	buf := make([]byte, 256)

	// READ CAPACITY(16) also settles unit attentions that wait for a new initiator.
	n, err := d.command(ctx, scsi.ReadCapacity16(32), nil, buf[:32], false)
	switch {
	case err == nil:
		capacity, err := scsi.ParseCapacity16(buf[:n])
		if err != nil {
			return malformed("READ CAPACITY(16)", err)
		}
		c.readsZero = capacity.ReadZeros
		if capacity.BlockLength != d.sectorSize {
			return protocolf("READ CAPACITY(16): sectors of %d bytes, but the open said %d", capacity.BlockLength, d.sectorSize)
		}
	case !canDoWithout(err):
		return err
	}

	if b, err := d.vpd(ctx, scsi.VPDBlockLimits, buf); err != nil {
		return err
	} else if b != nil {
		if l, err := scsi.ParseBlockLimits(b); err == nil {
			c.limit(&l, d.sectorSize)
			if l.MaxTransfer > 0 {
				d.maxRW = min(d.maxRW, int(min(uint64(l.MaxTransfer)*uint64(d.sectorSize), math.MaxInt32)))
			}
		}
	}
	if b, err := d.vpd(ctx, scsi.VPDLogicalBlockProvisioning, buf); err != nil {
		return err
	} else if b != nil {
		if p, err := scsi.ParseLogicalBlockProvisioning(b); err == nil {
			c.unmap = p.Unmap
			c.readsZero = c.readsZero || p.ReadZeros
			c.writeSame = c.writeSame || p.WriteSame16
			c.sameUnmaps = p.WriteSame16 && p.ReadZeros
		}
	}
	n, err = d.command(ctx, scsi.ModeSense6(true, scsi.ModeCaching, 0, 192), nil, buf[:192], false)
	switch {
	case err == nil:
		if m, err := scsi.ParseMode6(buf[:n]); err == nil {
			c.fua = m.DPOFUA
		}
	case !canDoWithout(err):
		return err
	}
	d.caps = c
	if d.opts.IO == IOAuto {
		if err := d.choosePath(ctx, buf); err != nil {
			return err
		}
	}
	if !d.smbIO && !d.opts.PadDataIn {
		d.probeBare(ctx)
	}
	return ctx.Err()
}

// limit takes over what page B0 says.
func (c *capabilities) limit(l *scsi.BlockLimits, sector uint32) {
	if l.MaxUnmapBlocks > 0 {
		c.maxUnmap = l.MaxUnmapBlocks
	}
	if l.MaxWriteSame > 0 {
		c.maxSame = uint32(min(l.MaxWriteSame, math.MaxUint32))
		c.writeSame = true
	}
	c.optimal = int(min(uint64(l.OptimalTransfer)*uint64(sector), math.MaxInt32))
}

// vpd reads a page of vital product data; nil if the unit does not have it.
func (d *Disk) vpd(ctx context.Context, page scsi.VPDPage, buf []byte) ([]byte, error) {
	n, err := d.command(ctx, scsi.InquiryVPD(page, uint16(len(buf))), nil, buf, false)
	if err != nil && !canDoWithout(err) {
		return nil, err
	}
	if err != nil {
		return nil, nil
	}
	return buf[:n], nil
}

// canDoWithout says that an answer is missing for a reason that does not speak against the disk: the unit does not know the command, or
// somebody's reservation forbids it for now.
func canDoWithout(err error) bool {
	var se *scsi.Error
	return isUnknownCommand(err) || errors.Is(err, ErrReservationConflict) ||
		errors.As(err, &se) && se.Status == scsi.CheckCondition && se.Sense.Key == scsi.IllegalRequest
}

// choosePath takes SMB2 READ and WRITE unless the server refuses a first READ for good.
func (d *Disk) choosePath(ctx context.Context, buf []byte) error {
	if d.Size() == 0 {
		return nil
	}
	p := buf
	if int(d.sectorSize) > len(p) {
		p = make([]byte, d.sectorSize)
	}
	err := d.readSMB(ctx, p[:d.sectorSize], 0)
	if s, ok := ntstatus.Of(err); ok && (s == ntstatus.NotSupported || s == ntstatus.InvalidDeviceRequest || s == ntstatus.NotImplemented) {
		d.smbIO = false
		d.log.Info("the server has no READ for shared disks; the tunnel is used", "path", d.path)
	}
	// Anything else, such as a damaged first sector or a reservation, is for the caller to meet when reading.
	return ctx.Err()
}
