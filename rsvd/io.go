package rsvd

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"vdbridge/scsi"
	"vdbridge/smb/ntstatus"
)

// check says whether a request is one that a disk answers.
func (d *Disk) check(op string, off, n int64, change bool) error {
	if d.closed.Load() {
		return ErrClosed
	}
	size := d.size.Load()
	if mask := int64(d.sectorSize) - 1; off < 0 || n < 0 || off|n != 0 && (off|n)&mask != 0 || off > size || n > size-off {
		return fmt.Errorf("%s of %d bytes at %d: %w (sectors of %d, size %d)", op, n, off, ErrRange, d.sectorSize, size)
	}
	if change && d.opts.ReadOnly {
		return fmt.Errorf("%s: %w", op, ErrReadOnly)
	}
	return nil
}

// Read reads len(p) bytes at off, both multiples of the logical block size.
func (d *Disk) Read(ctx context.Context, p []byte, off int64) error {
	if err := d.check("read", off, int64(len(p)), false); err != nil || len(p) == 0 {
		return err
	}
	if d.smbIO {
		return d.readSMB(ctx, p, off)
	}
	if len(p) <= d.maxRW {
		return d.readSCSI(ctx, p, off)
	}
	return d.split(ctx, p, off, d.readSCSI)
}

// Write writes len(p) bytes at off. With fua the data are durable on return.
func (d *Disk) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := d.check("write", off, int64(len(p)), true); err != nil || len(p) == 0 {
		return err
	}
	if fua && d.caps.fua {
		if len(p) <= d.maxRW {
			return d.writeFUA(ctx, p, off)
		}
		return d.split(ctx, p, off, d.writeFUA)
	}
	var err error
	switch {
	case d.smbIO:
		err = d.writeSMB(ctx, p, off)
	case len(p) <= d.maxRW:
		err = d.writeSCSI(ctx, p, off)
	default:
		err = d.split(ctx, p, off, d.writeSCSI)
	}
	if err == nil && fua {
		err = notDurable(d.Flush(ctx))
	}
	return err
}

// notDurable marks the error of a flush that follows what has been done.
func notDurable(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrNotDurable, err)
}

// splitWays is how many parts of one large request are under way at once.
const splitWays = 4

// splitAlign is what the size of the parts is a multiple of, unless the limit is smaller.
const splitAlign = 64 << 10

// split carries out a request that is larger than one SCSI command may be.
func (d *Disk) split(ctx context.Context, p []byte, off int64, part func(context.Context, []byte, int64) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(splitWays)
	// Parts of about the same size, so that none is a leftover of a few sectors.
	parts := (len(p) + d.maxRW - 1) / d.maxRW
	size := min((len(p)/parts+splitAlign)&^(splitAlign-1), d.maxRW)
	for len(p) > 0 && gctx.Err() == nil {
		n := min(len(p), size)
		q, at := p[:n], off
		g.Go(func() error { return part(gctx, q, at) })
		p, off = p[n:], off+int64(n)
	}
	err := g.Wait()
	if err == nil && len(p) > 0 {
		err = ctx.Err() // the caller gave up before all parts were sent
	}
	return err
}

// readSMB reads by SMB2 READ.
func (d *Disk) readSMB(ctx context.Context, p []byte, off int64) error {
	for attempt := 0; ; attempt++ {
		n, err := d.file.ReadAt(ctx, p, off)
		if n == len(p) {
			return nil
		}
		if err == nil {
			return fmt.Errorf("READ: %w: %d bytes instead of %d", ErrProtocol, n, len(p))
		}
		if again, err := d.recover(ctx, wrap("READ", err), attempt, false); !again {
			return err
		}
	}
}

// writeSMB writes by SMB2 WRITE. To write the same bytes once more after a unit attention is harmless: nobody was told that they were written.
func (d *Disk) writeSMB(ctx context.Context, p []byte, off int64) error {
	for attempt := 0; ; attempt++ {
		n, err := d.file.WriteAt(ctx, p, off)
		if err == nil && n == len(p) {
			return nil
		}
		if err == nil {
			return fmt.Errorf("WRITE: %w: %d bytes instead of %d", ErrProtocol, n, len(p))
		}
		if again, err := d.recover(ctx, wrap("WRITE", err), attempt, true); !again {
			return err
		}
	}
}

func (d *Disk) readSCSI(ctx context.Context, p []byte, off int64) error {
	c := d.calls.Get().(*call)
	c.cdb = scsi.Read16(uint64(off)>>d.sectorBits, uint32(len(p)>>d.sectorBits), false)
	n, err := d.run(ctx, c, nil, p, false)
	d.calls.Put(c)
	if err == nil && n != len(p) {
		return fmt.Errorf("READ(16): %w: %d bytes instead of %d", ErrProtocol, n, len(p))
	}
	return err
}

func (d *Disk) writeSCSI(ctx context.Context, p []byte, off int64) error {
	return d.write16(ctx, p, off, false)
}

func (d *Disk) writeFUA(ctx context.Context, p []byte, off int64) error {
	return d.write16(ctx, p, off, true)
}

func (d *Disk) write16(ctx context.Context, p []byte, off int64, fua bool) error {
	c := d.calls.Get().(*call)
	c.cdb = scsi.Write16(uint64(off)>>d.sectorBits, uint32(len(p)>>d.sectorBits), fua)
	_, err := d.run(ctx, c, p, nil, true)
	d.calls.Put(c)
	return err
}

// Flush makes everything durable whose Write returned before. See the package comment.
func (d *Disk) Flush(ctx context.Context) error {
	if d.closed.Load() {
		return ErrClosed
	}
	order := [2]func(context.Context) error{d.flushSMB, d.flushSCSI}
	if !d.smbIO {
		order[0], order[1] = order[1], order[0]
	}
	err := order[0](ctx)
	if errors.Is(err, errors.ErrUnsupported) {
		err = order[1](ctx)
	}
	return err
}

type unsupported struct{ what string }

func (u unsupported) Error() string        { return "the server has no " + u.what }
func (u unsupported) Is(target error) bool { return target == errors.ErrUnsupported }

func (d *Disk) flushSMB(ctx context.Context) error {
	if d.noFlush.Load() {
		return unsupported{"FLUSH"}
	}
	for attempt := 0; ; attempt++ {
		err := wrap("FLUSH", d.file.Flush(ctx))
		if err == nil {
			return nil
		}
		if s, ok := ntstatus.Of(err); ok && (s == ntstatus.InvalidDeviceRequest || s == ntstatus.NotSupported || s == ntstatus.NotImplemented) {
			d.noFlush.Store(true)
			d.log.Info("the server has no FLUSH for shared disks; SYNCHRONIZE CACHE is used", "path", d.path)
			return unsupported{"FLUSH"}
		}
		if again, err := d.recover(ctx, err, attempt, false); !again {
			return err
		}
	}
}

func (d *Disk) flushSCSI(ctx context.Context) error {
	if d.noSync.Load() && d.noSync10.Load() {
		return unsupported{"SYNCHRONIZE CACHE"}
	}
	if !d.noSync.Load() {
		_, err := d.command(ctx, scsi.SynchronizeCache16(0, 0, false), nil, nil, false) // the whole unit
		if !isUnknownCommand(err) {
			return err
		}
		d.noSync.Store(true)
	}
	_, err := d.command(ctx, scsi.SynchronizeCache10(0, 0, false), nil, nil, false)
	if !isUnknownCommand(err) {
		return err
	}
	d.noSync10.Store(true)
	return unsupported{"SYNCHRONIZE CACHE"}
}

// Trim says that the contents of a range are not needed any more. Without UNMAP it does nothing.
func (d *Disk) Trim(ctx context.Context, off, n int64) error {
	if err := d.check("trim", off, n, true); err != nil || n == 0 || !d.caps.unmap || d.noUnmap.Load() {
		return err
	}
	perCommand := int64(d.caps.maxUnmap)
	for n > 0 {
		k := min(n>>d.sectorBits, perCommand)
		// One descriptor a command: what matters is the number of blocks, and servers differ in how many descriptors they take.
		list := scsi.AppendUnmapList(nil, scsi.UnmapRange{LBA: uint64(off) >> d.sectorBits, Blocks: uint32(k)})
		_, err := d.command(ctx, scsi.Unmap(uint16(len(list))), list, nil, true)
		if isUnknownCommand(err) {
			d.noUnmap.Store(true)
			return nil
		}
		if err != nil {
			return err
		}
		off, n = off+k<<d.sectorBits, n-k<<d.sectorBits
	}
	return nil
}

// FastZero says whether WriteZeroes is faster than writing zeros.
func (d *Disk) FastZero() bool { return d.caps.writeSame && !d.noSame.Load() }

// WriteZeroes makes a range read back as zeros: by WRITE SAME where the unit has it, otherwise by writing. With unmap the space may be given
// back, if the unit then still reads zeros.
func (d *Disk) WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error {
	if err := d.check("write zeroes", off, n, true); err != nil || n == 0 {
		return err
	}
	for n > 0 && d.FastZero() {
		k := min(n>>d.sectorBits, int64(d.caps.maxSame))
		cdb := scsi.WriteSame16(uint64(off)>>d.sectorBits, uint32(k), unmap && d.caps.sameUnmaps, false)
		_, err := d.command(ctx, cdb, d.caps.zeroSector, nil, true)
		if isUnknownCommand(err) {
			d.noSame.Store(true)
			break
		}
		if err != nil {
			return err
		}
		off, n = off+k<<d.sectorBits, n-k<<d.sectorBits
	}
	if n > 0 {
		zeros := make([]byte, min(n, zeroChunk))
		for n > 0 {
			k := min(n, int64(len(zeros)))
			if err := d.Write(ctx, zeros[:k], off, false); err != nil {
				return err
			}
			off, n = off+k, n-k
		}
	}
	if fua {
		return notDurable(d.Flush(ctx))
	}
	return nil
}

const zeroChunk = 1 << 20

// CompareAndWrite replaces the blocks at off with write if they hold compare, in one step as far as all initiators can see, and at most once. A miscompare
// is a *scsi.Error with the sense key MISCOMPARE; ErrUndecided says that the connection was lost before the answer came. Both slices have the same length, at most what
// the unit reports.
func (d *Disk) CompareAndWrite(ctx context.Context, off int64, compare, write []byte, fua bool) error {
	if err := d.check("compare and write", off, int64(len(write)), true); err != nil {
		return err
	}
	blocks := len(write) >> d.sectorBits
	if len(compare) != len(write) || blocks == 0 || blocks > 255 {
		return fmt.Errorf("compare and write of %d and %d bytes: %w", len(compare), len(write), ErrRange)
	}
	cdb := scsi.CompareAndWrite(uint64(off)>>d.sectorBits, uint8(blocks), fua)
	both := append(append(make([]byte, 0, 2*len(write)), compare...), write...)
	_, err := d.command(ctx, cdb, both, nil, true)
	if interrupted(err) {
		// The blocks do not tell. What was to be written may be another host's; and if they are as they were to be compared, the swap may have been done and undone by others
		// since: a second one would be seen by them as such.
		return fmt.Errorf("compare and write: %w: %w", ErrUndecided, err)
	}
	return err
}

// Extents yields runs that are allocated or not, as GET LBA STATUS has them. Without that command all is reported as data.
func (d *Disk) Extents(ctx context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error {
	if err := d.check("extents", off, n, false); err != nil {
		return err
	}
	buf := make([]byte, 8+16*lbaDescriptors)
	for n > 0 {
		if d.noStatus.Load() {
			yield(n, false, false)
			return nil
		}
		got, err := d.command(ctx, scsi.GetLBAStatus(uint64(off)>>d.sectorBits, uint32(len(buf))), nil, buf, false)
		if isUnknownCommand(err) {
			d.noStatus.Store(true)
			continue
		}
		if err != nil {
			return err
		}
		next, more, err := d.yieldStatus(buf[:got], off, n, yield)
		if err != nil || !more {
			return err
		}
		n -= next - off
		off = next
	}
	return nil
}

const lbaDescriptors = 255

// yieldStatus goes through the descriptors of a GET LBA STATUS reply. It returns where it ended and whether to go on.
func (d *Disk) yieldStatus(b []byte, off, n int64, yield func(n int64, hole, zero bool) bool) (next int64, more bool, err error) {
	list, err := scsi.ParseLBAStatus(b)
	if err != nil {
		return 0, false, fmt.Errorf("GET LBA STATUS: %w: %w", ErrProtocol, err)
	}
	end, at := off+n, off
	for _, e := range list {
		block := uint64(at) >> d.sectorBits
		if at >= end || e.Blocks == 0 {
			break
		}
		// The first descriptor may begin before the block that was asked for; the others follow without a gap.
		if e.LBA > block || at > off && e.LBA != block || e.LBA+uint64(e.Blocks) <= block {
			return 0, false, fmt.Errorf("GET LBA STATUS: %w: a descriptor of block %d where %d was due", ErrProtocol, e.LBA, block)
		}
		stop := min(int64(e.LBA+uint64(e.Blocks))<<d.sectorBits, end)
		hole := e.Status == scsi.LBADeallocated
		// Blocks without data read as zeros where the unit says so.
		zero := (hole || e.Status == scsi.LBAAnchored) && d.caps.readsZero
		if !yield(stop-at, hole, zero) {
			return 0, false, nil
		}
		at = stop
	}
	if at == off {
		return 0, false, fmt.Errorf("GET LBA STATUS: %w: it says nothing about block %d", ErrProtocol, off>>d.sectorBits)
	}
	return at, at < end, nil
}
