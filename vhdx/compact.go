package vhdx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
)

// Progress is told how far a long operation is, now and then, from one goroutine: bytes done of bytes in all. The sum may change on the way.
type Progress func(done, total int64)

func (p Progress) report(done, total int64) {
	if p != nil {
		p(done, total)
	}
}

// CompactOptions say how an image is compacted.
type CompactOptions struct {
	// FindZeros reads every allocated block of a dynamic image and gives back those that hold only zeros, where that does not change what the disk shows.
	FindZeros bool
	Progress  Progress
}

// Compact makes the file of an image as small as it can be: blocks at its end move into the gaps that trims have left, and the rest is cut off. The
// disk stays in use meanwhile: a block that is written to while it moves is moved again. It is safe against a crash at every moment, and a
// cancelled context leaves a sound image with a part of the work done. The data do not change, nor the DataWriteGuid, so children stay valid.
func (d *Disk) Compact(ctx context.Context, o CompactOptions) error {
	if err := d.compact(ctx, &o); err != nil {
		return fmt.Errorf("compact the image: %w", err)
	}
	return nil
}

// mover is what Compact tells the writers, so that none of their writes is lost with the old place of a block.
type mover struct {
	block atomic.Int64 // that is being copied, plus one; 0: none
	hit   atomic.Bool  // somebody changed it since
}

// touch notes that a range is about to be changed.
func (m *mover) touch(off, n int64, shift uint) {
	if b := m.block.Load() - 1; b >= 0 && off>>shift <= b && b <= (off+n-1)>>shift {
		m.hit.Store(true)
	}
}

func (d *Disk) compact(ctx context.Context, o *CompactOptions) error {
	select {
	case d.working <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.working }()
	if d.readOnly {
		return ErrReadOnly
	}
	if o.FindZeros && d.params.kind() != KindFixed {
		if err := d.dropZeros(ctx, o.Progress); err != nil {
			return err
		}
	}
	var moves []move
	err := d.exclusive(ctx, false, func() (err error) {
		d.space.withhold()
		if err := d.lowerBAT(ctx); err != nil {
			return err
		}
		moves, err = d.planMoves(ctx)
		return err
	})
	done := int64(0)
	for i := 0; err == nil && i < len(moves); i++ {
		o.Progress.report(done, int64(len(moves))*d.geo.blockSize)
		err = d.move(ctx, moves[i])
		done += d.geo.blockSize
	}
	// Also after an error or a cancel: what is free must be known again.
	end := context.WithoutCancel(ctx)
	xerr := d.exclusive(end, false, func() error {
		d.space.held.Store(false)
		if err := d.commit.restart(end); err != nil {
			return err
		}
		return d.trimFile(end)
	})
	o.Progress.report(done, done)
	return errors.Join(err, xerr)
}

// move is a block, or the bitmap of a chunk, and its new place.
type move struct {
	entry    int64
	from, to int64
	n        int64
}

// planMoves finds what lies behind the place where the file could end, and gaps before that for it. Everything is durable and nobody is inside.
func (d *Disk) planMoves(ctx context.Context) ([]move, error) {
	used, total, err := d.usedSpace(ctx)
	if err != nil {
		return nil, err
	}
	var moves []move
	if err := d.eachPlace(ctx, func(i int64, x extent) {
		if x.end() > total {
			moves = append(moves, move{entry: i, from: x.off, n: x.n})
		}
	}); err != nil {
		return nil, err
	}
	slices.SortFunc(moves, func(a, b move) int { return cmp.Compare(b.from, a.from) })
	var gaps []extent
	used.gaps(d.space.size.Load()/mib*mib, func(x extent) bool {
		gaps = append(gaps, x)
		return len(gaps) < maxFree
	})
	// Large things first, each into the lowest gap that takes it, and only downwards.
	var out []move
	first := map[int64]int{} // where the search begins, for each size
	slices.SortStableFunc(moves, func(a, b move) int { return cmp.Compare(b.n, a.n) })
	for _, m := range moves {
		i := first[m.n]
		for i < len(gaps) && gaps[i].n < m.n {
			i++
		}
		first[m.n] = i
		if i == len(gaps) || gaps[i].off >= m.from {
			continue
		}
		m.to = gaps[i].off
		gaps[i] = extent{gaps[i].off + m.n, gaps[i].n - m.n}
		out = append(out, m)
	}
	return out, nil
}

// eachPlace calls fn for everything that a BAT entry has a place for.
func (d *Disk) eachPlace(ctx context.Context, fn func(entry int64, x extent)) error {
	return eachEntry(ctx, d.file, d.layout.bat, d.geo.entries, func(i int64, v uint64) error {
		block, payload := d.geo.blockOf(i)
		switch {
		case payload && reservesSpace(v) && d.entryPlace(v, block):
			fn(i, extent{int64(v & offsetMask), d.geo.blockSize})
		case !payload && d.geo.isBitmap(i) && v&stateMask == blockPresent:
			fn(i, extent{int64(v & offsetMask), bitmapBlock})
		}
		return ctx.Err()
	})
}

// usedSpace marks everything that is in use, and sums it up.
func (d *Disk) usedSpace(ctx context.Context) (used usageMap, total int64, err error) {
	for _, x := range d.layout.structures() {
		used.add(x)
		total += x.n
	}
	err = d.eachPlace(ctx, func(_ int64, x extent) { used.add(x); total += x.n })
	return used, total, err
}

// lowerBAT moves the BAT into the first gap before it that is large enough; a disk that has grown has it somewhere in the middle. Nobody is inside.
func (d *Disk) lowerBAT(ctx context.Context) error {
	used, _, err := d.usedSpace(ctx)
	if err != nil {
		return err
	}
	old, to := d.layout.bat, extent{}
	used.gaps(old.off, func(x extent) bool {
		if x.n >= old.n {
			to = extent{x.off, old.n}
		}
		return to.n == 0
	})
	if to.n == 0 {
		return nil
	}
	if err := zeroRange(ctx, d.file, to.off, to.n, false); err != nil {
		return fmt.Errorf("move the BAT: %w", err)
	}
	if err := d.copyBAT(ctx, to, d.geo.entries); err != nil {
		return err
	}
	updates, err := d.planRegion(ctx, to)
	if err != nil {
		return err
	}
	if err := d.commit.atomic(ctx, updates); err != nil {
		return err
	}
	d.adopt(to, d.geo)
	return nil
}

// entryPlace reports whether the place that an entry names is inside the file.
func (d *Disk) entryPlace(v uint64, block int64) bool {
	off := int64(v & offsetMask)
	return off >= headerSectionLen && off <= maxFileSize && off+d.geo.blockLen(block) <= d.space.size.Load()
}

// move copies a block to a place that nobody else knows, and lets its entry point there.
func (d *Disk) move(ctx context.Context, m move) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	block, payload := d.geo.blockOf(m.entry)
	if !payload {
		return d.moveBitmap(ctx, m)
	}
	if d.bat.crowded() {
		if err := d.commit.sync(ctx); err != nil {
			return err
		}
	}
	for try := 0; ; try++ {
		if try < 3 {
			d.moving.hit.Store(false)
			d.moving.block.Store(block + 1)
			err := d.drain(ctx) // whoever is inside from here on sees it
			if err == nil {
				err = d.copyBlock(ctx, m)
			}
			if err != nil {
				d.moving.block.Store(0)
				return err
			}
		}
		settled := false
		err := d.alone(ctx, func() (err error) {
			d.moving.block.Store(0)
			if d.moving.hit.Load() && try < 3 {
				return nil
			}
			settled = true
			v, err := d.bat.entry(ctx, m.entry)
			if err != nil || int64(v&offsetMask) != m.from || !reservesSpace(v) {
				return err // trimmed meanwhile
			}
			if try == 3 { // written to all the time
				if err := d.copyBlock(ctx, m); err != nil {
					return err
				}
			}
			if v&stateMask != blockPresent && v&stateMask != blockPartPresent {
				return d.bat.set(ctx, m.entry, v&stateMask, batChange{}) // trimmed before, and kept its place
			}
			return d.bat.set(ctx, m.entry, uint64(m.to)|v&stateMask, batChange{payloadFirst: true})
		})
		if err != nil || settled {
			d.moving.block.Store(0)
			return err
		}
	}
}

// alone runs fn while nobody is inside.
func (d *Disk) alone(ctx context.Context, fn func() error) error {
	if err := d.gate.shut(ctx, false); err != nil {
		return err
	}
	defer d.gate.open()
	if err := d.commit.failed(); err != nil {
		return err
	}
	return fn()
}

// drain waits until everybody has left who was inside.
func (d *Disk) drain(ctx context.Context) error { return d.alone(ctx, func() error { return nil }) }

func (d *Disk) copyBlock(ctx context.Context, m move) error {
	n := min(m.n, d.space.size.Load()-m.from) // the last block may reach beyond the end of the file
	buf := make([]byte, min(n, mib))
	return d.copyData(ctx, m.from, m.to, n, buf)
}

// copyData copies within the file; what is a hole or zero becomes a hole, where the file can have one.
func (d *Disk) copyData(ctx context.Context, from, to, n int64, buf []byte) error {
	for at := int64(0); at < n; at += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), n-at)]
		if err := readFull(ctx, d.file, p, from+at); err != nil {
			return fmt.Errorf("copy a block: %w", err)
		}
		var err error
		if isZero(p) {
			err = zeroRange(ctx, d.file, to+at, int64(len(p)), d.params.kind() != KindFixed)
		} else {
			err = writeFull(ctx, d.file, p, to+at)
		}
		if err != nil {
			return fmt.Errorf("copy a block: %w", err)
		}
	}
	return nil
}

// moveBitmap moves the sector bitmap of a chunk, while nobody is inside.
func (d *Disk) moveBitmap(ctx context.Context, m move) error {
	return d.exclusive(ctx, false, func() error {
		v, err := d.bat.entry(ctx, m.entry)
		if err != nil || int64(v&offsetMask) != m.from {
			return err
		}
		if err := d.copyData(ctx, m.from, m.to, m.n, make([]byte, mib)); err != nil {
			return err
		}
		if err := d.bat.set(ctx, m.entry, uint64(m.to)|blockPresent, batChange{payloadFirst: true}); err != nil {
			return err
		}
		if err := d.commit.sync(ctx); err != nil {
			return err
		}
		d.bits = newBitmapTable(d.bat, d.bits.max) // every page knows its place
		return nil
	})
}

// dropZeros gives back blocks that hold only zeros and could as well have no place.
func (d *Disk) dropZeros(ctx context.Context, progress Progress) error {
	buf := make([]byte, mib)
	for block := int64(0); ; block++ {
		c, err := d.gate.enter(ctx, 0)
		if err != nil {
			return err
		}
		if block >= d.geo.blocks {
			d.gate.leave(c)
			return nil
		}
		if run := max(d.bat.run(ctx, block, notPresent), d.bat.run(ctx, block, zeroHere)); run > 0 {
			block += run - 1
			d.gate.leave(c)
			continue
		}
		progress.report(block<<d.geo.blockShift, d.geo.size)
		d.moving.hit.Store(false)
		d.moving.block.Store(block + 1)
		zero, err := d.blockIsZero(ctx, block, buf)
		d.gate.leave(c)
		if err == nil && zero {
			err = d.alone(ctx, func() error {
				// A write that was inside already when the block was marked is either seen here, or was before we read.
				if d.moving.hit.Load() {
					return nil
				}
				if zero, err := d.blockIsZero(ctx, block, buf); err != nil || !zero {
					return err
				}
				if err := d.session.touch(ctx); err != nil {
					return err
				}
				return d.unmap(ctx, block, blockZero)
			})
		}
		d.moving.block.Store(0)
		if err != nil {
			return err
		}
	}
}

func (d *Disk) blockIsZero(ctx context.Context, block int64, buf []byte) (bool, error) {
	v, err := d.bat.entry(ctx, d.geo.entryOf(block))
	if err != nil || v&stateMask != blockPresent {
		return false, err
	}
	n := d.geo.blockLen(block)
	for at := int64(0); at < n; at += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), n-at)]
		if err := d.readFile(ctx, p, int64(v&offsetMask)+at); err != nil || !isZero(p) {
			return false, err
		}
	}
	return true, nil
}
