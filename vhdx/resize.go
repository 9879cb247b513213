package vhdx

import (
	"context"
	"errors"
	"fmt"
)

// ErrDataLoss: a disk was to be made smaller, and the part to be cut off has data.
var ErrDataLoss = errors.New("the part to be cut off has data")

// ResizeOptions say how a disk is resized.
type ResizeOptions struct {
	Discard bool // cut off data, too; otherwise a cut that has anything but zeros is an ErrDataLoss
}

// Resize changes the size of the virtual disk, in bytes, a positive multiple of the logical sector size of at most 64 TiB. New space reads as zeros. It
// is safe at every moment against a crash: the disk has the old size or the new one. Requests wait meanwhile, which takes milliseconds; the cut
// of a disk is read before that, and a fixed disk gets its new space. A block allocation table that becomes too small is moved.
//
// A differencing disk cannot grow while its parent is larger than it is: old data of the parent would show.
func (d *Disk) Resize(ctx context.Context, size int64, o ResizeOptions) error {
	if err := d.exclusive(ctx, true, func() error { return d.resize(ctx, size, o) }); err != nil {
		return fmt.Errorf("resize the disk to %d bytes: %w", size, err)
	}
	return nil
}

func (d *Disk) resize(ctx context.Context, size int64, o ResizeOptions) error {
	old := d.geo
	switch {
	case size <= 0 || size > maxVirtualSize || size%d.params.logical != 0:
		return fmt.Errorf("the size must be a multiple of the sector size %d, from one sector to 64 TiB: %w", d.params.logical, ErrRange)
	case size == old.size:
		return nil
	case size > old.size && d.differencing() && (d.parent == nil || d.parent.geo.size > old.size):
		return fmt.Errorf("its parent is larger than the disk is now, and would show in the new part; merge it first: %w", ErrUnsupported)
	}
	p := d.params
	p.size = size
	g := newGeometry(&p)
	if size < old.size {
		if !o.Discard {
			if err := d.checkCut(ctx, size, old.size-size); err != nil {
				return err
			}
		}
	} else if err := d.clearTail(ctx); err != nil {
		return err
	}
	bat := d.layout.bat
	if need := g.entries * batEntrySize; need > bat.n {
		at, err := d.space.takeRegion(ctx, roundUp(need, mib))
		if err != nil {
			return err
		}
		bat = extent{at, roundUp(need, mib)}
		if err := d.copyBAT(ctx, bat, old.entries); err != nil {
			return err
		}
	}
	if g.blocks > old.blocks {
		if err := d.newEntries(ctx, bat, &old, &g); err != nil {
			return err
		}
	}
	updates, entries, err := d.planMetadata(ctx, []metaItem{{metaEntry{id: itemVirtualSize, disk: true, req: true}, le.AppendUint64(nil, uint64(size))}}, nil)
	if err != nil {
		return err
	}
	moved := bat != d.layout.bat
	if moved {
		more, err := d.planRegion(ctx, bat)
		if err != nil {
			return err
		}
		updates = append(updates, more...)
	}
	if err := d.commit.atomic(ctx, updates); err != nil {
		return err
	}
	// From here on the disk has its new size.
	d.meta, d.params = entries, p
	d.adopt(bat, g)
	if g.blocks < old.blocks {
		// Nobody looks at the entries behind the last one. Another program that makes the disk larger might.
		if err := d.clearEntries(ctx, bat, &g, old.entries); err != nil {
			return err
		}
		if err := d.commit.sync(ctx); err != nil {
			return err
		}
	}
	if moved || g.size < old.size {
		return d.trimFile(ctx)
	}
	return nil
}

// adopt makes a BAT and a geometry the current ones. Everything is clean and nobody is inside.
func (d *Disk) adopt(bat extent, g geometry) {
	d.layout.bat, d.geo = bat, g
	d.size.Store(g.size)
	d.bat = newBATTable(d.bat.b, bat, &d.geo, d.bat.diff, d.cacheBytes, d.space.size.Load)
	if d.bits != nil {
		d.bits = newBitmapTable(d.bat, d.bits.max)
	}
	d.commit.bat, d.commit.log.bat = d.bat, bat
	d.infoMu.Lock()
	defer d.infoMu.Unlock()
	d.info.Size, d.info.Blocks, d.info.BATOffset, d.info.BATLength = g.size, g.blocks, bat.off, bat.n
}

// checkCut looks for data in what is to be cut off.
func (d *Disk) checkCut(ctx context.Context, off, n int64) error {
	buf := make([]byte, mib)
	at := off
	var found error
	e := extentRun{yield: func(n int64, hole, zero bool) bool {
		for end := at + n; at < end; {
			p := buf[:min(int64(len(buf)), end-at)]
			if !zero {
				if found = d.read(ctx, p, at); found == nil && !isZero(p) {
					found = fmt.Errorf("the first of it is near %d: %w", at, ErrDataLoss)
				}
				if found != nil {
					return false
				}
			} else {
				p = p[:0]
				at = end
			}
			at += int64(len(p))
		}
		return true
	}}
	if err := d.extents(ctx, off, n, &e); err != nil {
		return err
	}
	e.end()
	return found
}

// clearTail makes what the last block has behind the end of the disk read as zeros.
func (d *Disk) clearTail(ctx context.Context) error {
	block := d.geo.blocks - 1
	in := d.geo.blockLen(block)
	if in == d.geo.blockSize {
		return nil
	}
	v, err := d.bat.entry(ctx, d.geo.entryOf(block))
	if err != nil {
		return err
	}
	at := int64(v & offsetMask)
	switch v & stateMask {
	case blockBad:
		return d.bat.badEntry(d.geo.entryOf(block))
	case blockPartPresent:
		first, _ := d.sectors(block)
		if _, err := d.bits.clear(ctx, first+in/d.params.logical, (d.geo.blockSize-in)/d.params.logical); err != nil {
			return err
		}
		if err := d.commit.sync(ctx); err != nil {
			return err
		}
		return d.space.reach(ctx, at+d.geo.blockSize)
	case blockPresent:
		if err := d.space.reach(ctx, at+d.geo.blockSize); err != nil {
			return err
		}
		if err := zeroRange(ctx, d.file, at+in, d.geo.blockSize-in, d.params.kind() != KindFixed); err != nil {
			return fmt.Errorf("clear the end of the last block: %w", err)
		}
	}
	return nil
}

// copyBAT copies the BAT to fresh space, which reads as zeros.
func (d *Disk) copyBAT(ctx context.Context, to extent, entries int64) error {
	buf := make([]byte, mib)
	for at, n := int64(0), entries*batEntrySize; at < n; at += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), n-at)]
		if err := readFull(ctx, d.file, p, d.layout.bat.off+at); err != nil {
			return fmt.Errorf("copy the BAT: %w", err)
		}
		if isZero(p) {
			continue
		}
		if err := writeFull(ctx, d.file, p, to.off+at); err != nil {
			return fmt.Errorf("copy the BAT: %w", err)
		}
	}
	return nil
}

// newEntries writes the entries of new blocks, which do not count before the size changes.
func (d *Disk) newEntries(ctx context.Context, bat extent, old, g *geometry) error {
	if d.params.kind() != KindFixed {
		return d.clearEntries(ctx, bat, old, g.entries)
	}
	first := old.entryOf(old.blocks)
	from := bat.off + first*batEntrySize
	payload := (g.blocks - old.blocks) * g.blockSize
	at, err := d.space.takeRegion(ctx, payload)
	if err != nil {
		return err
	}
	if a, ok := d.file.(Allocator); ok {
		if err := a.Allocate(ctx, at, payload); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return fmt.Errorf("reserve %d bytes: %w", payload, err)
		}
	}
	buf := make([]byte, 0, mib)
	for i := first; i < g.entries; i++ {
		var v uint64
		if block, ok := g.blockOf(i); ok {
			v = uint64(at+(block-old.blocks)<<g.blockShift) | blockPresent
		}
		buf = le.AppendUint64(buf, v)
		if len(buf) == cap(buf) || i == g.entries-1 {
			if err := writeFull(ctx, d.file, buf, from); err != nil {
				return fmt.Errorf("write the BAT: %w", err)
			}
			from += int64(len(buf))
			buf = buf[:0]
		}
	}
	return nil
}

// clearEntries makes the entries behind the last block of a geometry zero, up to entry end. They do not count, so that no log is needed.
func (d *Disk) clearEntries(ctx context.Context, bat extent, g *geometry, end int64) error {
	zero := func(from, to int64) error {
		if from >= to {
			return nil
		}
		if err := zeroRange(ctx, d.file, bat.off+from*batEntrySize, (to-from)*batEntrySize, false); err != nil {
			return fmt.Errorf("clear entries of the BAT: %w", err)
		}
		return nil
	}
	from := g.entryOf(g.blocks)
	if bitmap := g.bitmapEntry((g.blocks - 1) >> g.ratioShift); d.differencing() && from <= bitmap { // that one counts
		if err := zero(from, bitmap); err != nil {
			return err
		}
		from = bitmap + 1
	}
	return zero(from, end)
}

// takeRegion takes n bytes, whole MiB, at the end of the file; they read as zeros. Nobody else is inside.
func (s *space) takeRegion(ctx context.Context, n int64) (int64, error) {
	at := s.end.Load()
	if at+n > maxFileSize {
		return 0, fmt.Errorf("the file would have more than %d TiB", maxFileSize>>40)
	}
	if err := s.reach(ctx, at+n); err != nil {
		return 0, err
	}
	s.end.Store(at + n)
	return at, nil
}

// reach makes the file at least that long. Nobody else is inside.
func (s *space) reach(ctx context.Context, size int64) error {
	if s.size.Load() >= size {
		return nil
	}
	if err := s.b.Truncate(ctx, size); err != nil {
		return fmt.Errorf("grow the image: %w", err)
	}
	s.size.Store(size)
	return nil
}

// trimFile finds the free space anew, and cuts off the end of the file that nothing uses any more. Everything is durable, nobody is inside, and no log
// entry refers to what is free.
func (d *Disk) trimFile(ctx context.Context) error {
	s := d.space
	s.forget()
	if err := d.scanSpace(ctx, true); err != nil {
		return err
	}
	end, size := s.end.Load(), s.size.Load()
	if end >= size {
		return nil
	}
	// The newest entry of the log vouches for the size: it must name the smaller one before the file has it.
	s.size.Store(end)
	s.stable.Store(min(s.stable.Load(), end))
	err := d.commit.restart(ctx)
	if err == nil {
		if err = d.file.Truncate(ctx, end); err != nil {
			err = fmt.Errorf("cut off the unused end of the image: %w", err)
		}
	}
	if err != nil { // what is behind the end still has old content
		s.size.Store(size)
		s.end.Store(roundUp(size, mib))
	}
	return err
}

// forget empties the lists of free places, before they are made anew. Nobody else is inside.
func (s *space) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zero, s.dirty, s.small, s.limbo = queue{}, queue{}, queue{}, nil
}

// restart writes a log entry after which no older one counts.
func (c *committer) restart(ctx context.Context) error {
	select {
	case c.sem <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.sem }()
	if err := c.failed(); err != nil {
		return err
	}
	if !c.log.started {
		return nil
	}
	return c.makeRoom(ctx)
}
