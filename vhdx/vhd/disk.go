package vhd

import (
	"context"
	"errors"
	"fmt"

	"vdbridge/vhdx"
)

const bitmapCache = 4 << 20 // bytes

// Size is the size of the disk in bytes.
func (d *Disk) Size() int64 { return d.f.size }

// BlockSizes: sectors have 512 bytes, and there is no best and no largest size of a request.
func (d *Disk) BlockSizes() (logical, physical, optimal, maxTransfer int) {
	return sectorSize, sectorSize, 0, 0
}

// ReadOnly is true.
func (d *Disk) ReadOnly() bool { return true }

func (d *Disk) checkRange(off, n int64) error {
	if off < 0 || n < 0 || off > d.f.size || n > d.f.size-off || (off|n)%sectorSize != 0 {
		return fmt.Errorf("%d bytes at %d on a disk of %d bytes with 512-byte sectors: %w", n, off, d.f.size, vhdx.ErrRange)
	}
	return nil
}

// Read reads all of p.
func (d *Disk) Read(ctx context.Context, p []byte, off int64) error {
	if err := d.checkRange(off, int64(len(p))); err != nil {
		return err
	}
	return d.read(ctx, p, off)
}

func (d *Disk) read(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		s, err := d.find(ctx, off, int64(len(p)))
		if err != nil {
			return err
		}
		q := p[:s.n]
		switch {
		case s.at >= 0:
			err = readFull(ctx, d.b, q, s.at)
		case s.parent:
			k := min(s.n, max(d.parent.f.size-off, 0))
			clear(q[k:])
			err = d.parent.read(ctx, q[:k], off)
		default:
			clear(q)
		}
		if err != nil {
			return err
		}
		p, off = p[s.n:], off+s.n
	}
	return nil
}

// span is a part of the disk in one piece: in the file at at, or else in the parent, or else zeros.
type span struct {
	n, at  int64
	parent bool
}

func (d *Disk) find(ctx context.Context, off, n int64) (span, error) {
	if d.f.diskType == typeFixed {
		return span{n: n, at: off}, nil
	}
	s, err := d.findOne(ctx, off, n)
	for err == nil && s.at < 0 && s.n < n { // absent blocks together
		var t span
		if t, err = d.findOne(ctx, off+s.n, n-s.n); err != nil || t.at >= 0 {
			break
		}
		s.n += t.n
	}
	return s, err
}

func (d *Disk) findOne(ctx context.Context, off, n int64) (span, error) {
	block, in := off/d.h.blockSize, off%d.h.blockSize
	n = min(n, d.h.blockSize-in)
	diff := d.parent != nil
	v := d.table[block]
	if v == unusedBlock {
		return span{n: n, at: -1, parent: diff}, nil
	}
	at := int64(v)*sectorSize + d.bitmap + in
	if at+n > d.file {
		return span{}, corrupt("block table", d.h.table+4*block, "block %d lies at sector %d, outside the file of %d bytes", block, v, d.file)
	}
	if !diff {
		return span{n: n, at: at}, nil
	}
	bits, err := d.blockBits(ctx, block, int64(v)*sectorSize)
	if err != nil {
		return span{}, err
	}
	first := in / sectorSize
	has := func(i int64) bool { return bits[i/8]&(0x80>>(i%8)) != 0 }
	here := has(first)
	k := int64(1)
	for k < n/sectorSize && has(first+k) == here {
		k++
	}
	if here {
		return span{n: k * sectorSize, at: at}, nil
	}
	return span{n: k * sectorSize, at: -1, parent: true}, nil
}

// blockBits is the bitmap of a block: a bit for each sector that this disk has itself, the highest first.
func (d *Disk) blockBits(ctx context.Context, block, at int64) ([]byte, error) {
	d.mu.Lock()
	bits := d.bits[block]
	d.mu.Unlock()
	if bits != nil {
		return bits, nil
	}
	bits = make([]byte, d.bitmap)
	if err := readFull(ctx, d.b, bits, at); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bits[block] == nil {
		d.bits[block] = bits
		if d.order = append(d.order, block); int64(len(d.order))*d.bitmap > bitmapCache {
			delete(d.bits, d.order[0])
			d.order = append(d.order[:0], d.order[1:]...)
		}
	}
	return bits, nil
}

// Extents reports what the range consists of, as consecutive runs from off, until yield returns false.
func (d *Disk) Extents(ctx context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error {
	if err := d.checkRange(off, n); err != nil {
		return err
	}
	run, hole, stopped := int64(0), false, false
	add := func(k int64, h bool) bool {
		if run > 0 && h != hole {
			if !yield(run, hole, hole) {
				stopped = true
				return false
			}
			run = 0
		}
		run, hole = run+k, h
		return true
	}
	err := d.extents(ctx, off, n, add)
	if err == nil && !stopped && run > 0 {
		yield(run, hole, hole)
	}
	return err
}

func (d *Disk) extents(ctx context.Context, off, n int64, add func(n int64, hole bool) bool) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		s, err := d.find(ctx, off, n)
		if err != nil {
			return err
		}
		switch {
		case s.at >= 0:
			if q, ok := d.b.(vhdx.RangeQuerier); ok {
				if done, err := fileExtents(ctx, q, s.at, s.n, add); err != nil || !done {
					return err
				}
			} else if !add(s.n, false) {
				return nil
			}
		case s.parent && d.parent.f.size > off:
			s.n = min(s.n, d.parent.f.size-off)
			stopped := false
			if err := d.parent.extents(ctx, off, s.n, func(n int64, hole bool) bool { stopped = !add(n, hole); return !stopped }); err != nil || stopped {
				return err
			}
		default:
			if !add(s.n, true) {
				return nil
			}
		}
		off, n = off+s.n, n-s.n
	}
	return nil
}

// fileExtents adds a run that has a place in the file, with the holes of the file. done is false if add wants no more.
func fileExtents(ctx context.Context, q vhdx.RangeQuerier, at, n int64, add func(n int64, hole bool) bool) (done bool, err error) {
	pos, end, more := at, at+n, true
	err = q.AllocatedRanges(ctx, at, n, func(off, n int64) bool {
		from, to := max(at+(off-at)/sectorSize*sectorSize, pos), min(at+(off+n-at+sectorSize-1)/sectorSize*sectorSize, end)
		if from > pos {
			more = add(from-pos, true)
			pos = from
		}
		if more && to > pos {
			more = add(to-pos, false)
			pos = to
		}
		return more
	})
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return false, fmt.Errorf("find the data in the image: %w", err)
	}
	if more && pos < end {
		more = add(end-pos, err == nil)
	}
	return more, nil
}

// Write fails: the format is only read.
func (d *Disk) Write(context.Context, []byte, int64, bool) error { return vhdx.ErrReadOnly }

// Trim fails.
func (d *Disk) Trim(context.Context, int64, int64) error { return vhdx.ErrReadOnly }

// WriteZeroes fails.
func (d *Disk) WriteZeroes(context.Context, int64, int64, bool, bool) error { return vhdx.ErrReadOnly }

// Flush has nothing to do.
func (d *Disk) Flush(context.Context) error { return nil }

// Close closes the file and those of the parents.
func (d *Disk) Close() error {
	err := d.b.Close()
	if d.parent != nil {
		err = errors.Join(err, d.parent.Close())
	}
	return err
}
