// Package crashfile is a file in memory that remembers every change, to build from it what a crash could have left.
//
// A disk may keep any of the writes that were not flushed, in any order and cut at any sector. [File.Crashes] walks through every moment of a recorded
// run; [Moment.After] builds one of the files that could be found after a crash at that moment.
package crashfile

import (
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

const pageSize = 4096

type page [pageSize]byte

// kind is what an operation does.
type kind int

const (
	opWrite kind = iota
	opPunch
	opTruncate
	opFlush
)

// op is one recorded change.
type op struct {
	kind kind
	off  int64
	n    int64
	data []byte
	when int64 // among the operations of files that were joined
}

// File is a sparse file in memory. All methods may be called at the same time. It fits vhdx.Backing.
type File struct {
	// NoPunch makes PunchHole fail with errors.ErrUnsupported, as on a file system without holes.
	NoPunch bool
	// Fail, when set, is asked before every change or flush; an error is returned to the caller and the operation does not happen.
	// It is told how many operations were recorded so far and whether this one is a flush, and must not call the file.
	Fail func(ops int, flush bool) error

	mu     sync.Mutex
	pages  map[int64]*page
	shared map[int64]bool // pages that another file has too: copied before a change
	size   int64
	record bool
	ops    []op
	closed bool
	reads  int
	clock  *atomic.Int64 // shared by files that were joined
}

// New returns an empty file that does not record.
func New() *File { return &File{pages: make(map[int64]*page), shared: make(map[int64]bool)} }

// Clone returns a file of its own with the same content that does not record.
func (f *File) Clone() *File {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.clone()
}

func (f *File) clone() *File {
	c := &File{NoPunch: f.NoPunch, pages: maps.Clone(f.pages), shared: make(map[int64]bool, len(f.pages)), size: f.size}
	for k := range f.pages {
		f.shared[k], c.shared[k] = true, true
	}
	return c
}

// Record starts to remember changes. What the file holds now counts as durable. It returns the starting point for Crashes.
func (f *File) Record() *File {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.record, f.ops = true, nil
	return f.clone()
}

// Ops is how many operations were recorded so far.
func (f *File) Ops() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.ops)
}

// Flushes is how many of the recorded operations are flushes.
func (f *File) Flushes() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range f.ops {
		if o.kind == opFlush {
			n++
		}
	}
	return n
}

// Reads is how many reads there were.
func (f *File) Reads() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reads
}

func (f *File) own(i int64) *page {
	p := f.pages[i]
	switch {
	case p == nil:
		p = new(page)
	case f.shared[i]:
		q := *p
		p = &q
		delete(f.shared, i)
	default:
		return p
	}
	f.pages[i] = p
	return p
}

func (f *File) write(b []byte, off int64) {
	f.size = max(f.size, off+int64(len(b)))
	for len(b) > 0 {
		n := copy(f.own(off / pageSize)[off%pageSize:], b)
		b, off = b[n:], off+int64(n)
	}
}

// punch zeroes what lies inside the file.
func (f *File) punch(off, n int64) {
	for end := min(off+n, f.size); off < end; {
		k := min(pageSize-off%pageSize, end-off)
		if i := off / pageSize; k == pageSize {
			delete(f.pages, i)
			delete(f.shared, i)
		} else if f.pages[i] != nil {
			clear(f.own(i)[off%pageSize:][:k])
		}
		off += k
	}
}

func (f *File) truncate(size int64) {
	if size < f.size {
		f.punch(size, f.size-size)
	}
	f.size = size
}

func (f *File) apply(o op) {
	switch o.kind {
	case opWrite:
		f.write(o.data, o.off)
	case opPunch:
		f.punch(o.off, o.n)
	case opTruncate:
		f.truncate(o.n)
	}
}

// do records and applies an operation.
func (f *File) do(ctx context.Context, o op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		panic("crashfile: used after Close")
	}
	if f.Fail != nil {
		if err := f.Fail(len(f.ops), o.kind == opFlush); err != nil {
			return err
		}
	}
	if f.record {
		o.data = append([]byte(nil), o.data...)
		if f.clock != nil {
			o.when = f.clock.Add(1)
		}
		f.ops = append(f.ops, o)
	}
	f.apply(o)
	return nil
}

// ReadAt reads as io.ReaderAt.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	if off >= f.size {
		return 0, io.EOF
	}
	var err error
	if left := f.size - off; int64(len(p)) > left {
		p, err = p[:left], io.EOF
	}
	n := len(p)
	for len(p) > 0 {
		k := int(min(pageSize-off%pageSize, int64(len(p))))
		if q := f.pages[off/pageSize]; q != nil {
			copy(p[:k], q[off%pageSize:])
		} else {
			clear(p[:k])
		}
		p, off = p[k:], off+int64(k)
	}
	return n, err
}

// WriteAt writes as io.WriterAt.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.do(ctx, op{kind: opWrite, off: off, data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// PunchHole makes a range read as zeros.
func (f *File) PunchHole(ctx context.Context, off, n int64) error {
	if f.NoPunch {
		return errors.ErrUnsupported
	}
	return f.do(ctx, op{kind: opPunch, off: off, n: n})
}

// Flush makes everything durable that was done before.
func (f *File) Flush(ctx context.Context) error { return f.do(ctx, op{kind: opFlush}) }

// Truncate sets the size.
func (f *File) Truncate(ctx context.Context, size int64) error {
	return f.do(ctx, op{kind: opTruncate, n: size})
}

// Size is the length in bytes.
func (f *File) Size(context.Context) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size, nil
}

// Close marks the file: a change after it is a bug and panics.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

// Pages calls fn with every page that was written, for copying the file elsewhere.
func (f *File) Pages(fn func(off int64, b []byte) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, p := range f.pages {
		if err := fn(i*pageSize, p[:]); err != nil {
			return err
		}
	}
	return nil
}

// Moment is a point in a recorded run: after Ops operations were issued.
type Moment struct {
	Ops      int
	base     *File
	unsynced []op
}

// Crashes calls fn for every moment of the recorded run until it returns false: before the first operation, after each one was issued, and after all are
// done. start is what Record has returned. At the moment after a flush was issued it may have done nothing yet; a moment later it is done.
func (f *File) Crashes(start *File, fn func(m Moment) bool) {
	f.mu.Lock()
	ops := f.ops
	f.mu.Unlock()
	base, synced := start.Clone(), 0
	for k := 0; k <= len(ops)+1; k++ {
		if k >= 2 && ops[k-2].kind == opFlush {
			for _, o := range ops[synced : k-1] {
				base.apply(o)
			}
			synced = k - 1
		}
		if !fn(Moment{k, base, ops[synced:min(k, len(ops))]}) {
			return
		}
	}
}

// Join gives files one order of operations, so that CrashesTogether can stop all of them at once. It is called before Record.
func Join(files ...*File) {
	clock := new(atomic.Int64)
	for _, f := range files {
		f.mu.Lock()
		f.clock = clock
		f.mu.Unlock()
	}
}

// CrashesTogether is Crashes for files that were joined: fn gets one moment for each, all at the same time. A flush of one file makes nothing of another durable.
func CrashesTogether(files, starts []*File, fn func(when int64, m []Moment) bool) {
	type state struct {
		ops            []op
		base           *File
		issued, synced int
		flushing       int // operations that the flush issued last will have made durable; 0: none
	}
	all := make([]state, len(files))
	for i, f := range files {
		f.mu.Lock()
		all[i] = state{ops: f.ops, base: starts[i].Clone()}
		f.mu.Unlock()
	}
	end := files[0].clock.Load()
	for when := int64(0); when <= end+1; when++ {
		moments := make([]Moment, len(all))
		for i := range all {
			s := &all[i]
			if s.flushing > 0 {
				for _, o := range s.ops[s.synced:s.flushing] {
					s.base.apply(o)
				}
				s.synced, s.flushing = s.flushing, 0
			}
			for s.issued < len(s.ops) && s.ops[s.issued].when <= when {
				if s.issued++; s.ops[s.issued-1].kind == opFlush {
					s.flushing = s.issued
				}
			}
			moments[i] = Moment{s.issued, s.base, s.ops[s.synced:s.issued]}
		}
		if !fn(when, moments) {
			return
		}
	}
}

// Last is the place of the operation that was issued last; n is 0 if it was no write.
func (m Moment) Last() (off, n int64) {
	if k := len(m.unsynced); k > 0 && m.unsynced[k-1].kind == opWrite {
		return m.unsynced[k-1].off, int64(len(m.unsynced[k-1].data))
	}
	return 0, 0
}

// After builds a file that could be found after a crash: of the operations since the last flush it keeps each sector of each write
// with the given chance, in order. Chance 0 forgets all of them, 1 keeps all.
func (m Moment) After(rng *rand.Rand, chance float64, sector int64) *File {
	f := m.base.Clone()
	keep := func() bool { return chance >= 1 || chance > 0 && rng.Float64() < chance }
	for _, o := range m.unsynced {
		switch o.kind {
		case opTruncate:
			if keep() {
				f.apply(o)
			}
		case opPunch:
			whole := keep()
			for at := o.off; at < o.off+o.n; {
				n := min(max(sector, o.n/16/sector*sector), o.off+o.n-at)
				if whole && keep() {
					f.punch(at, n)
				}
				at += n
			}
		case opWrite:
			tear := chance > 0 && chance < 1 && rng.IntN(2) == 0
			whole := keep()
			for at := int64(0); at < int64(len(o.data)); {
				n := min(sector-(o.off+at)%sector, int64(len(o.data))-at)
				if tear && keep() || !tear && whole {
					f.write(o.data[at:at+n], o.off+at)
				}
				at += n
			}
		}
	}
	return f
}
