package vhdx

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// checkRange judges offset and length of a request.
func (d *Disk) checkRange(off, n int64) error {
	mask := d.params.logical - 1
	if off < 0 || n < 0 || off > d.geo.size || n > d.geo.size-off || (off|n)&mask != 0 {
		return d.rangeError(off, n)
	}
	return nil
}

func (d *Disk) rangeError(off, n int64) error {
	return fmt.Errorf("%d bytes at %d on a disk of %d bytes with %d-byte sectors: %w", n, off, d.geo.size, d.params.logical, ErrRange)
}

// Read reads all of p. Blocks without a place in the file read as zeros.
func (d *Disk) Read(ctx context.Context, p []byte, off int64) error {
	c, err := d.gate.enter(ctx, off)
	if err != nil {
		return err
	}
	if err := d.checkRange(off, int64(len(p))); err != nil { // inside: the size may change outside
		d.gate.leave(c)
		return err
	}
	err = d.read(ctx, p, off)
	d.gate.leave(c)
	return err
}

func (d *Disk) read(ctx context.Context, p []byte, off int64) error {
	if d.differencing() {
		return d.readSpans(ctx, p, off)
	}
	for len(p) > 0 {
		at, n, err := d.run(ctx, off, int64(len(p)))
		switch {
		case err != nil:
			return err
		case at < 0:
			clear(p[:n])
		default:
			if err := d.readFile(ctx, p[:n], at); err != nil {
				return err
			}
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (d *Disk) readFile(ctx context.Context, p []byte, at int64) error {
	if err := readFull(ctx, d.file, p, at); err != nil {
		return fmt.Errorf("read the image: %w", err)
	}
	return nil
}

// run finds the file offset of a disk offset, and how much of the n bytes from there on lies together; -1 if these have no place.
func (d *Disk) run(ctx context.Context, off, n int64) (at, length int64, err error) {
	block, in := off>>d.geo.blockShift, off&(d.geo.blockSize-1)
	v, err := d.bat.entry(ctx, d.geo.entryOf(block))
	if err != nil {
		return 0, 0, err
	}
	length = d.geo.blockSize - in
	switch v & stateMask {
	case blockPresent:
		at = int64(v&offsetMask) + in
		for length < n { // blocks that follow each other on the disk often do so in the file
			block++
			v, err := d.bat.entry(ctx, d.geo.entryOf(block))
			if err != nil {
				return 0, 0, err
			}
			if v&stateMask != blockPresent || int64(v&offsetMask) != at+length {
				break
			}
			length += d.geo.blockSize
		}
	case blockBad:
		return 0, 0, d.bat.badEntry(d.geo.entryOf(block))
	default:
		at = -1
	}
	return at, min(length, n), nil
}

// change is the beginning of every method that changes something. The caller ends it with gate.leave.
func (d *Disk) change(ctx context.Context) error {
	if d.readOnly {
		return ErrReadOnly
	}
	if err := d.commit.failed(); err != nil {
		return err
	}
	return d.session.begin(ctx)
}

// Write writes all of p. With fua it is durable on return.
func (d *Disk) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	c, err := d.gate.enter(ctx, off)
	if err != nil {
		return err
	}
	if err := d.checkRange(off, int64(len(p))); err != nil { // inside: the size may change outside
		d.gate.leave(c)
		return err
	}
	if err = d.change(ctx); err == nil {
		d.moving.touch(off, int64(len(p)), d.geo.blockShift)
		err = d.write(ctx, p, off)
	}
	if err == nil && fua {
		err = d.commit.sync(ctx)
	}
	d.gate.leave(c)
	return err
}

func (d *Disk) write(ctx context.Context, p []byte, off int64) error {
	if d.differencing() {
		return d.writeChild(ctx, p, off)
	}
	for len(p) > 0 {
		at, n, err := d.run(ctx, off, int64(len(p)))
		if err != nil {
			return err
		}
		if at < 0 {
			if at, n, err = d.allocate(ctx, off, p); err != nil {
				return err
			}
		}
		if err := d.writeFile(ctx, p[:n], at); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (d *Disk) writeFile(ctx context.Context, p []byte, at int64) error {
	if err := writeFull(ctx, d.file, p, at); err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	return nil
}

func (d *Disk) stripe(block int64) *sync.Mutex {
	return &d.stripes[uint64(block)%uint64(len(d.stripes))]
}

// allocate gives the block at off a place, which reads as zeros, and returns where p goes, and how much of it. In a differencing disk the block must not
// be one that the parent shows through.
func (d *Disk) allocate(ctx context.Context, off int64, p []byte) (at, n int64, err error) {
	if err := d.prepare(ctx); err != nil {
		return 0, 0, err
	}
	block, in := off>>d.geo.blockShift, off&(d.geo.blockSize-1)
	entry := d.geo.entryOf(block)
	n = min(int64(len(p)), d.geo.blockSize-in)

	lock := d.stripe(block)
	lock.Lock()
	defer lock.Unlock()
	v, err := d.bat.entry(ctx, entry)
	if err != nil {
		return 0, 0, err
	}
	switch v & stateMask {
	case blockPresent: // somebody else was faster
		return int64(v&offsetMask) + in, n, nil
	case blockBad:
		return 0, 0, d.bat.badEntry(entry)
	case blockNotPresent, blockPartPresent:
		if d.differencing() {
			return 0, 0, nil
		}
	}
	own := d.ownPlace(v)
	pl := place{off: own, reused: true}
	if own < 0 {
		if pl, err = d.space.take(ctx); err != nil {
			return 0, 0, err
		}
	}
	if !pl.zero {
		if err := d.wipe(ctx, pl.off); err != nil {
			if own < 0 {
				d.space.giveBack(pl)
			}
			return 0, 0, err
		}
	}
	if err := d.bat.set(ctx, entry, uint64(pl.off)|blockPresent, batChange{payloadFirst: pl.reused}); err != nil {
		if own < 0 {
			d.space.giveBack(pl)
		}
		return 0, 0, err
	}
	return pl.off + in, n, nil
}

// prepare comes before every change of the BAT: free space is known, and there is room for the change.
func (d *Disk) prepare(ctx context.Context) error {
	if err := d.ensureScan(ctx); err != nil {
		return err
	}
	if d.bat.crowded() {
		return d.commit.sync(ctx)
	}
	return nil
}

// ownPlace is the place that a trimmed block has kept, which some programs do, or -1.
func (d *Disk) ownPlace(v uint64) int64 {
	off := int64(v & offsetMask)
	if !reservesSpace(v) || off < headerSectionLen || off > maxFileSize || off+d.geo.blockSize > d.space.size.Load() {
		return -1
	}
	return off
}

// wipe makes a place with old content read as zeros.
func (d *Disk) wipe(ctx context.Context, off int64) error {
	if err := zeroRange(ctx, d.file, off, d.geo.blockSize, true); err != nil {
		return fmt.Errorf("clear a reused block: %w", err)
	}
	return nil
}

// Flush makes every write durable that has returned.
func (d *Disk) Flush(ctx context.Context) error {
	c, err := d.gate.enter(ctx, 0)
	if err != nil {
		return err
	}
	if !d.readOnly {
		err = d.commit.sync(ctx)
	}
	d.gate.leave(c)
	return err
}

// Trim says that the range is not needed any more. Whole blocks of a dynamic image give up their place in the file; parts of blocks become a hole where the
// file can have holes. Both read as zeros afterwards. What cannot be given back keeps its content. A fixed image ignores it.
func (d *Disk) Trim(ctx context.Context, off, n int64) error {
	c, err := d.gate.enter(ctx, off)
	if err != nil {
		return err
	}
	defer d.gate.leave(c)
	if err := d.checkRange(off, n); err != nil {
		return err
	}
	if err := d.change(ctx); err != nil {
		return err
	}
	d.moving.touch(off, n, d.geo.blockShift)
	if d.params.kind() == KindFixed {
		return nil
	}
	return d.eachBlock(ctx, off, n, func(block, in, n int64, whole bool) error {
		if d.differencing() {
			return d.trimChild(ctx, block, in, n, whole)
		}
		v, err := d.bat.entry(ctx, d.geo.entryOf(block))
		if err != nil || v&stateMask != blockPresent {
			return err
		}
		if whole {
			return d.unmap(ctx, block, blockUnmapped)
		}
		return d.punchPart(ctx, int64(v&offsetMask)+in, n)
	})
}

// WriteZeroes makes the range read as zeros. With unmap whole blocks of a dynamic image give up their place. With fua it is durable on return.
func (d *Disk) WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error {
	c, err := d.gate.enter(ctx, off)
	if err != nil {
		return err
	}
	defer d.gate.leave(c)
	if err := d.checkRange(off, n); err != nil {
		return err
	}
	if err := d.change(ctx); err != nil {
		return err
	}
	d.moving.touch(off, n, d.geo.blockShift)
	unmap = unmap && d.params.kind() != KindFixed
	err = d.eachBlock(ctx, off, n, func(block, in, n int64, whole bool) error {
		if d.differencing() {
			return d.zeroChild(ctx, block, in, n, whole, unmap)
		}
		v, err := d.bat.entry(ctx, d.geo.entryOf(block))
		if err != nil {
			return err
		}
		switch v & stateMask {
		case blockPresent:
			if whole && unmap {
				return d.unmap(ctx, block, blockZero)
			}
			if err := zeroRange(ctx, d.file, int64(v&offsetMask)+in, n, unmap); err != nil {
				return fmt.Errorf("write zeros: %w", err)
			}
		case blockBad:
			return d.bat.badEntry(d.geo.entryOf(block))
		case blockUndefined, blockUnmapped:
			// We read zeros here, but another program may show what is left of the old content.
			if whole && v&offsetMask != 0 || v&stateMask == blockUndefined {
				return d.unmap(ctx, block, blockZero)
			}
		}
		return nil
	})
	if err == nil && fua {
		err = d.commit.sync(ctx)
	}
	return err
}

// eachBlock splits a range at the blocks. whole says that the piece is all that the disk has of its block.
func (d *Disk) eachBlock(ctx context.Context, off, n int64, fn func(block, in, n int64, whole bool) error) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		block, in := off>>d.geo.blockShift, off&(d.geo.blockSize-1)
		if in == 0 && n > d.geo.blockSize {
			if skip := d.zeroRun(ctx, off, n) &^ (d.geo.blockSize - 1); skip > d.geo.blockSize {
				off, n = off+skip, n-skip
				continue
			}
		}
		k := min(n, d.geo.blockSize-in)
		if err := fn(block, in, k, in == 0 && k == d.geo.blockLen(block)); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// unmap takes a block out of the file.
func (d *Disk) unmap(ctx context.Context, block int64, state uint64) error {
	if err := d.prepare(ctx); err != nil {
		return err
	}
	entry := d.geo.entryOf(block)
	lock := d.stripe(block)
	lock.Lock()
	defer lock.Unlock()
	v, err := d.bat.entry(ctx, entry)
	if err != nil {
		return err
	}
	var c batChange
	switch v & stateMask {
	case blockNotPresent:
		if !d.differencing() {
			return nil
		}
	case blockPresent, blockPartPresent, blockUndefined, blockUnmapped:
		off := int64(v & offsetMask)
		if reservesSpace(v) && off >= headerSectionLen && off <= maxFileSize && off+d.geo.blockSize <= d.space.size.Load() {
			c.freed = extent{off, d.geo.blockSize}
		}
	default:
		return nil
	}
	return d.bat.set(ctx, entry, state, c)
}

// Extents reports what the range consists of, as consecutive runs from off, until yield returns false. A hole has no space in the file; zero says that it
// reads as zeros. Where the file can tell, parts of allocated blocks that are holes in the file are reported as such too.
func (d *Disk) Extents(ctx context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error {
	c, err := d.gate.enter(ctx, off)
	if err != nil {
		return err
	}
	defer d.gate.leave(c)
	if err := d.checkRange(off, n); err != nil {
		return err
	}
	e := extentRun{yield: yield}
	if err := d.extents(ctx, off, n, &e); err != nil {
		return err
	}
	e.end()
	return nil
}

func (d *Disk) extents(ctx context.Context, off, n int64, e *extentRun) error {
	for n > 0 && !e.stopped {
		if err := ctx.Err(); err != nil {
			return err
		}
		s, err := d.spanAt(ctx, off, n)
		if err != nil {
			return err
		}
		switch {
		case s.kind == spanFile:
			err = fileExtents(ctx, d.file, d.params.logical, s.at, s.n, e)
		case s.kind == spanParent && d.parent != nil && d.parent.geo.size > off:
			s.n = min(s.n, d.parent.geo.size-off)
			err = d.parent.extents(ctx, off, s.n, e)
		case s.kind == spanParent && d.differencing() && d.parent == nil:
			err = errDetached
		default:
			e.add(s.n, true)
		}
		if err != nil {
			return err
		}
		off, n = off+s.n, n-s.n
	}
	return nil
}

// fileExtents adds a run that has a place in the file.
func fileExtents(ctx context.Context, b Backing, sector, at, n int64, e *extentRun) error {
	q, ok := b.(RangeQuerier)
	if !ok {
		e.add(n, false)
		return nil
	}
	pos, end := at, at+n
	mask := sector - 1
	err := q.AllocatedRanges(ctx, at, n, func(off, n int64) bool {
		from, to := off&^mask, min((off+n+mask)&^mask, end) // runs are made of whole sectors
		if from > pos {
			e.add(from-pos, true)
			pos = from
		}
		if to > pos {
			e.add(to-pos, false)
			pos = to
		}
		return !e.stopped
	})
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("find the data in the image: %w", err)
	}
	e.add(end-pos, err == nil)
	return nil
}

// extentRun joins equal neighbours before it hands them on.
type extentRun struct {
	yield   func(n int64, hole, zero bool) bool
	n       int64
	hole    bool
	stopped bool
}

func (e *extentRun) add(n int64, hole bool) {
	if n == 0 || e.stopped {
		return
	}
	if e.n > 0 && e.hole != hole {
		e.end()
	}
	e.n, e.hole = e.n+n, hole
}

func (e *extentRun) end() {
	if e.n > 0 && !e.stopped && !e.yield(e.n, e.hole, e.hole) {
		e.stopped = true
	}
	e.n = 0
}

// Close waits for requests that are running, makes everything durable, puts the log out of use and closes the backing file. It may be called twice.
func (d *Disk) Close() error {
	ctx := context.Background()
	if err := d.gate.shut(ctx, true); err != nil {
		return nil // closed before
	}
	var err error
	if !d.readOnly {
		err = d.finish(ctx)
	}
	if cerr := d.file.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("close the image: %w", cerr)
	}
	if d.parent != nil {
		if cerr := d.parent.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("parent: %w", cerr)
		}
	}
	return err
}

// finish ends a session. If it fails the log stays in use, and the next open replays it.
func (d *Disk) finish(ctx context.Context) error {
	if err := d.commit.failed(); err != nil {
		return err
	}
	if !d.session.wrote.Load() && !d.commit.log.started {
		return nil
	}
	if err := d.commit.sync(ctx); err != nil {
		return err
	}
	if d.commit.log.started {
		// The updates that the last commit wrote in place must be there before the log goes.
		if err := d.commit.flush(ctx); err != nil {
			return err
		}
		if err := d.session.setLog(ctx, GUID{}); err != nil {
			return err
		}
	}
	if end := d.space.end.Load(); end < d.space.size.Load() && d.scanned.Load() {
		// Only now: while the log is in use its newest entry vouches for the larger size.
		if err := d.file.Truncate(ctx, end); err != nil {
			return fmt.Errorf("cut off the unused end of the image: %w", err)
		}
		d.space.size.Store(end)
	}
	return nil
}
