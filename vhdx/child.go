package vhdx

import (
	"context"
	"errors"
	"fmt"
)

// How a differencing disk is written to. A block that only the parent has gets a place and becomes partially present with a bitmap of zeros; its payload is
// written, and then the bits of the sectors are set, first in memory, at the next commit in the file. What a crash loses of that shows the
// parent again. A block that is written as a whole, or whose last bit was set, is fully present and needs no bitmap.

// differencing reports whether the image has a parent.
func (d *Disk) differencing() bool { return d.params.hasParent }

// errDetached is met by who reads what only the parent has, of a disk that was opened without it.
var errDetached = fmt.Errorf("the disk was opened without its parent: %w", ErrDifferencing)

func (d *Disk) writeChild(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		block, in := off>>d.geo.blockShift, off&(d.geo.blockSize-1)
		n := min(int64(len(p)), d.geo.blockSize-in)
		v, err := d.bat.entry(ctx, d.geo.entryOf(block))
		if err != nil {
			return err
		}
		switch v & stateMask {
		case blockPresent:
			var at int64
			if at, n, err = d.run(ctx, off, int64(len(p))); err == nil && at >= 0 {
				err = d.writeFile(ctx, p[:n], at)
			} else if at < 0 {
				n = 0 // trimmed since we looked
			}
		case blockPartPresent:
			if err = d.writeFile(ctx, p[:n], int64(v&offsetMask)+in); err == nil {
				err = d.setBits(ctx, block, off, n)
			}
		case blockNotPresent:
			whole := false
			if n == d.geo.blockLen(block) {
				whole, err = d.writeWhole(ctx, block, p[:n])
			} else {
				err = d.allocatePart(ctx, block)
			}
			if !whole {
				n = 0 // once more, with what the block is now
			}
		default:
			var at int64
			if at, n, err = d.allocate(ctx, off, p); err == nil && n > 0 {
				err = d.writeFile(ctx, p[:n], at)
			}
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// writeWhole writes a block that only the parent has, all of it. done is false if somebody else gave it a place meanwhile.
func (d *Disk) writeWhole(ctx context.Context, block int64, p []byte) (done bool, err error) {
	if err := d.prepare(ctx); err != nil {
		return false, err
	}
	// The format does not ask for a bitmap here, but libvhdi looks at it for the neighbours that are not present.
	if err := d.ensureBitmap(ctx, block>>d.geo.ratioShift); err != nil {
		return false, err
	}
	pl, err := d.space.take(ctx)
	if err != nil {
		return false, err
	}
	if err = d.writeFile(ctx, p, pl.off); err == nil {
		entry := d.geo.entryOf(block)
		lock := d.stripe(block)
		lock.Lock()
		var v uint64
		if v, err = d.bat.entry(ctx, entry); err == nil && v&stateMask == blockNotPresent {
			err = d.bat.set(ctx, entry, uint64(pl.off)|blockPresent, batChange{payloadFirst: true})
			done = err == nil
		}
		lock.Unlock()
	}
	if !done {
		d.space.giveBack(pl)
	}
	return done, err
}

// allocatePart makes a block partially present that only the parent has.
func (d *Disk) allocatePart(ctx context.Context, block int64) error {
	if err := d.prepare(ctx); err != nil {
		return err
	}
	if err := d.ensureBitmap(ctx, block>>d.geo.ratioShift); err != nil {
		return err
	}
	for {
		settled, err := d.tryAllocatePart(ctx, block)
		if err != nil || settled {
			return err
		}
		// Stale bits are cleared, and must be so in the file before an entry says that they count.
		if err := d.commit.sync(ctx); err != nil {
			return err
		}
		d.bits.cleared(block)
	}
}

func (d *Disk) tryAllocatePart(ctx context.Context, block int64) (settled bool, err error) {
	entry := d.geo.entryOf(block)
	first, n := d.sectors(block)
	lock := d.stripe(block)
	lock.Lock()
	defer lock.Unlock()
	v, err := d.bat.entry(ctx, entry)
	if err != nil || v&stateMask != blockNotPresent {
		return true, err
	}
	if present, k, err := d.bits.run(ctx, first, n); err != nil {
		return false, err
	} else if present || k < n {
		if _, err := d.bits.clear(ctx, first, n); err != nil {
			return false, err
		}
		d.bits.clears(block)
		return false, nil
	}
	if d.bits.isClearing(block) {
		return false, nil
	}
	pl, err := d.space.take(ctx)
	if err != nil {
		return false, err
	}
	if err := d.bat.set(ctx, entry, uint64(pl.off)|blockPartPresent, batChange{}); err != nil {
		d.space.giveBack(pl)
		return false, err
	}
	return true, nil
}

// sectors are the bits of a block, those behind the end of the disk included.
func (d *Disk) sectors(block int64) (first, n int64) {
	n = d.geo.blockSize / d.params.logical
	return block * n, n
}

// clears notes that stale bits of a block were cleared in memory, cleared that they are so in the file.
func (t *bitmapTable) clears(block int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clearing[block] = true
}

func (t *bitmapTable) cleared(block int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.clearing, block)
}

func (t *bitmapTable) isClearing(block int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.clearing[block]
}

// ensureBitmap sees to it that a chunk has a sector bitmap, durably: entries that are partially present must never be found without one.
func (d *Disk) ensureBitmap(ctx context.Context, chunk int64) error {
	c, err := d.bits.chunk(ctx, chunk)
	if err != nil || c.off.Load() != 0 {
		return err
	}
	select {
	case d.bits.making <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.bits.making }()
	if c.off.Load() != 0 {
		return nil
	}
	entry := d.geo.bitmapEntry(chunk)
	v, err := d.bat.entry(ctx, entry)
	if err != nil {
		return err
	}
	if v&stateMask == blockNotPresent { // else an earlier attempt came as far as this
		pl, err := d.space.takeBitmap(ctx)
		if err != nil {
			return err
		}
		if !pl.zero {
			if err := zeroRange(ctx, d.file, pl.off, bitmapBlock, false); err != nil {
				return fmt.Errorf("clear a sector bitmap: %w", err)
			}
		}
		v = uint64(pl.off) | blockPresent
		if err := d.bat.set(ctx, entry, v, batChange{payloadFirst: pl.reused}); err != nil {
			return err
		}
	}
	if err := d.commit.sync(ctx); err != nil {
		return err
	}
	c.off.Store(int64(v & offsetMask))
	return nil
}

// setBits says that the payload of sectors in a partially present block was written.
func (d *Disk) setBits(ctx context.Context, block, off, n int64) error {
	first, count := off/d.params.logical, n/d.params.logical
	if present, k, err := d.bits.run(ctx, first, count); err != nil || present && k == count {
		return err
	}
	if d.bat.crowded() {
		if err := d.commit.sync(ctx); err != nil {
			return err
		}
	}
	if changed, err := d.bits.set(ctx, first, count); err != nil || !changed {
		return err
	}
	first, count = block*(d.geo.blockSize/d.params.logical), d.geo.blockLen(block)/d.params.logical
	if present, k, err := d.bits.run(ctx, first, count); err != nil || !present || k < count {
		return err
	}
	return d.promote(ctx, block)
}

// promote makes a block fully present whose bits are all set.
func (d *Disk) promote(ctx context.Context, block int64) error {
	entry := d.geo.entryOf(block)
	lock := d.stripe(block)
	lock.Lock()
	defer lock.Unlock()
	v, err := d.bat.entry(ctx, entry)
	if err != nil || v&stateMask != blockPartPresent {
		return err
	}
	return d.bat.set(ctx, entry, v&offsetMask|blockPresent, batChange{payloadFirst: true})
}

// trimChild is Trim for a piece of one block of a differencing disk. A whole block hides its parent afterwards; of a part only what this
// disk has itself becomes a hole.
func (d *Disk) trimChild(ctx context.Context, block, in, n int64, whole bool) error {
	v, err := d.bat.entry(ctx, d.geo.entryOf(block))
	if err != nil {
		return err
	}
	off := block<<d.geo.blockShift + in
	switch state := v & stateMask; {
	case whole && (state == blockPresent || state == blockPartPresent),
		whole && state == blockNotPresent && d.zeroRun(ctx, off, n) < n:
		return d.unmap(ctx, block, blockUnmapped)
	case state == blockPresent:
		return d.punchPart(ctx, int64(v&offsetMask)+in, n)
	case state == blockPartPresent:
		for n > 0 {
			s, err := d.findOne(ctx, off, n)
			if err != nil {
				return err
			}
			if s.kind == spanFile {
				s.n = min(s.n, n)
				if err := d.punchPart(ctx, s.at, s.n); err != nil {
					return err
				}
			}
			off, n = off+s.n, n-s.n
		}
	}
	return nil
}

// punchPart gives back the whole 4 KiB pieces of a part of a block, where the file can have holes.
func (d *Disk) punchPart(ctx context.Context, at, n int64) error {
	from, to := roundUp(at, logSector), (at+n)/logSector*logSector
	if from >= to {
		return nil
	}
	if err := punch(ctx, d.file, from, to-from); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

// zeroChild is WriteZeroes for a piece of one block of a differencing disk.
func (d *Disk) zeroChild(ctx context.Context, block, in, n int64, whole, unmap bool) error {
	off := block<<d.geo.blockShift + in
	for {
		v, err := d.bat.entry(ctx, d.geo.entryOf(block))
		if err != nil {
			return err
		}
		switch v & stateMask {
		case blockPresent, blockPartPresent:
			part := v&stateMask == blockPartPresent
			if whole && (unmap || part) {
				return d.unmap(ctx, block, blockZero)
			}
			if err := zeroRange(ctx, d.file, int64(v&offsetMask)+in, n, unmap); err != nil {
				return fmt.Errorf("write zeros: %w", err)
			}
			if part {
				return d.setBits(ctx, block, off, n)
			}
			return nil
		case blockNotPresent:
			if d.zeroRun(ctx, off, n) == n {
				return nil
			}
			if whole {
				return d.unmap(ctx, block, blockZero)
			}
			if err := d.allocatePart(ctx, block); err != nil {
				return err
			}
			continue
		case blockBad:
			return d.bat.badEntry(d.geo.entryOf(block))
		case blockUndefined, blockUnmapped:
			if whole && v&offsetMask != 0 || v&stateMask == blockUndefined {
				return d.unmap(ctx, block, blockZero)
			}
		}
		return nil
	}
}
