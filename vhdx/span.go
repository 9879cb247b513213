package vhdx

import "context"

// spanKind says where a part of the disk is found.
type spanKind int

const (
	spanFile     spanKind = iota // in this file
	spanZero                     // nowhere: zeros
	spanUnmapped                 // nowhere, after a trim: zeros
	spanParent                   // in the parent
)

// span is a part of the disk that is in one piece.
type span struct {
	kind spanKind
	n    int64
	at   int64 // offset in the file, of a spanFile
}

// find says where a part of a differencing disk begins and how far it goes, n bytes at most. What lies in the parent is one span, however many
// blocks it has, so that it is read in one go.
func (d *Disk) find(ctx context.Context, off, n int64) (span, error) {
	s, err := d.findOne(ctx, off, n)
	for err == nil && s.kind == spanParent && s.n < n {
		var t span
		if t, err = d.findOne(ctx, off+s.n, n-s.n); err == nil {
			if t.kind != spanParent {
				break
			}
			s.n += t.n
		}
	}
	return s, err
}

func (d *Disk) findOne(ctx context.Context, off, n int64) (span, error) {
	block, in := off>>d.geo.blockShift, off&(d.geo.blockSize-1)
	v, err := d.bat.entry(ctx, d.geo.entryOf(block))
	if err != nil {
		return span{}, err
	}
	left := min(n, d.geo.blockSize-in)
	switch v & stateMask {
	case blockPresent:
		at, k, err := d.run(ctx, off, n)
		return span{spanFile, k, at}, err
	case blockBad:
		return span{}, d.bat.badEntry(d.geo.entryOf(block))
	case blockNotPresent:
		if !d.differencing() {
			return span{kind: spanZero, n: left}, nil
		}
		if run := d.bat.run(ctx, block, notPresent); run > 1 {
			left = min(n, run<<d.geo.blockShift-in)
		}
		return span{kind: spanParent, n: left}, nil
	case blockPartPresent:
		present, k, err := d.bits.run(ctx, off/d.params.logical, left/d.params.logical)
		if err != nil {
			return span{}, err
		}
		s := span{kind: spanParent, n: k * d.params.logical}
		if present {
			s.kind, s.at = spanFile, int64(v&offsetMask)+in
		}
		return s, nil
	case blockUnmapped, blockUndefined:
		return span{kind: spanUnmapped, n: left}, nil
	}
	return span{kind: spanZero, n: left}, nil
}

// readSpans is read for a differencing disk.
func (d *Disk) readSpans(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		s, err := d.find(ctx, off, int64(len(p)))
		if err != nil {
			return err
		}
		switch q := p[:s.n]; s.kind {
		case spanFile:
			err = d.readFile(ctx, q, s.at)
		case spanParent:
			err = d.readParent(ctx, q, off)
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

// readParent reads from the parent what the disk itself does not have. Behind the end of a smaller parent there are zeros.
func (d *Disk) readParent(ctx context.Context, p []byte, off int64) error {
	if d.parent == nil {
		return errDetached
	}
	k := min(int64(len(p)), max(d.parent.geo.size-off, 0))
	clear(p[k:])
	return d.parent.read(ctx, p[:k], off)
}

// zeroRun is how many of the n bytes from off on are known to read as zeros without looking at any data; 0 if the first ones are not.
// Blocks that need a change to be trimmed or zeroed do not count.
func (d *Disk) zeroRun(ctx context.Context, off, n int64) (total int64) {
	for total < n {
		block, in := (off+total)>>d.geo.blockShift, (off+total)&(d.geo.blockSize-1)
		if !d.differencing() {
			k := d.bat.run(ctx, block, absent)<<d.geo.blockShift - in
			if k <= 0 {
				break
			}
			total += k
			continue
		}
		if k := d.bat.run(ctx, block, zeroHere)<<d.geo.blockShift - in; k > 0 {
			total += k
			continue
		}
		k := min(d.bat.run(ctx, block, notPresent)<<d.geo.blockShift-in, n-total)
		if k <= 0 || d.parent == nil {
			break
		}
		zeros := k
		if inParent := min(k, max(d.parent.geo.size-off-total, 0)); inParent > 0 {
			if z := min(d.parent.zeroRun(ctx, off+total, inParent), inParent); z < inParent {
				zeros = z
			}
		}
		if total += zeros; zeros < k {
			break
		}
	}
	return min(total, n)
}

// Extent states of [Disk.Map].
const (
	ExtentData     ExtentState = iota + 1 // has a place in the file of its level
	ExtentZero                            // no place; reads as zeros
	ExtentUnmapped                        // no place, after a trim; reads as zeros
	ExtentAbsent                          // no image of the chain has it; reads as zeros
)

// ExtentState says what a part of a disk is.
type ExtentState int

func (s ExtentState) String() string {
	switch s {
	case ExtentData:
		return "data"
	case ExtentZero:
		return "zero"
	case ExtentUnmapped:
		return "unmapped"
	case ExtentAbsent:
		return "absent"
	}
	return "unknown"
}

// MarshalText writes the name, for JSON.
func (s ExtentState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// An Extent is a part of a disk and where in the chain it is found.
type Extent struct {
	Offset int64       `json:"offset"` // on the disk, in bytes
	Length int64       `json:"length"`
	State  ExtentState `json:"state"`
	Level  int         `json:"level"` // 0 is the disk itself, 1 its parent, and so on: whose word it is; of an absent one the last
	File   int64       `json:"file"`  // offset in the file of that level, of data; otherwise -1
}

// Map reports where in the chain the range is found, as consecutive extents from off, until yield returns false. Unlike [Disk.Extents] it does not ask
// the files for their holes.
func (d *Disk) Map(ctx context.Context, off, n int64, yield func(Extent) bool) error {
	c, err := d.gate.enter(ctx, off)
	if err != nil {
		return err
	}
	defer d.gate.leave(c)
	if err := d.checkRange(off, n); err != nil {
		return err
	}
	var cur Extent
	more := true
	err = d.walk(ctx, off, n, 0, func(e Extent) bool {
		if cur.Length > 0 && e.State == cur.State && e.Level == cur.Level && (e.State != ExtentData || e.File == cur.File+cur.Length) {
			cur.Length += e.Length
			return true
		}
		if cur.Length > 0 {
			more = yield(cur)
		}
		cur = e
		return more
	})
	if err == nil && more && cur.Length > 0 {
		yield(cur)
	}
	return err
}

// errStop ends a walk early; it never leaves the package.
type stopError struct{}

func (stopError) Error() string { return "stopped" }

// walk goes through the chain. fn returns false to end it.
func (d *Disk) walk(ctx context.Context, off, n int64, level int, fn func(Extent) bool) error {
	err := d.walkLevel(ctx, off, n, level, fn)
	if _, stopped := err.(stopError); stopped && level == 0 {
		return nil
	}
	return err
}

func (d *Disk) walkLevel(ctx context.Context, off, n int64, level int, fn func(Extent) bool) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		s, err := d.spanAt(ctx, off, n)
		if err != nil {
			return err
		}
		if k := s.n; s.kind == spanParent && d.parent != nil && d.parent.geo.size > off {
			k = min(k, d.parent.geo.size-off)
			if err := d.parent.walkLevel(ctx, off, k, level+1, fn); err != nil {
				return err
			}
			off, n = off+k, n-k
			continue
		}
		e := Extent{Offset: off, Length: s.n, Level: level, File: -1}
		switch s.kind {
		case spanFile:
			e.State, e.File = ExtentData, s.at
		case spanZero:
			e.State = ExtentZero
		case spanUnmapped:
			e.State = ExtentUnmapped
		case spanParent:
			e.State = ExtentAbsent
		}
		if !fn(e) {
			return stopError{}
		}
		off, n = off+s.n, n-s.n
	}
	return nil
}

// spanAt is find for every kind of disk; a block that was never written is a spanParent where there is no parent, too.
func (d *Disk) spanAt(ctx context.Context, off, n int64) (span, error) {
	block, in := off>>d.geo.blockShift, off&(d.geo.blockSize-1)
	if run := d.bat.run(ctx, block, notPresent); run > 0 {
		return span{kind: spanParent, n: min(n, run<<d.geo.blockShift-in)}, nil
	}
	return d.findOne(ctx, off, n)
}
