// Package lutest has a disk in memory for the tests of logical units and what stands on them.
package lutest

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// Disk is a disk in memory with faults on request. Its bytes are not guarded on purpose: a race detector then sees every read and write
// that overlap in time and place. Fields are set before use, except where they are atomic.
type Disk struct {
	Data     []byte
	Logical  int // 0: 512
	Physical int // 0: 4096
	Optimal  int
	Max      int
	RO       bool

	// Torn makes reads and writes work sector by sector and let others run in between.
	Torn bool
	// OnRead and OnWrite, if not nil, run before the data move; an error ends the call.
	OnRead  func(ctx context.Context, off int64, n int) error
	OnWrite func(ctx context.Context, off int64, n int) error

	Flushes, Reads, Writes, FUAs atomic.Int64
	Closed                       atomic.Bool

	mu    sync.Mutex
	holes map[int64]bool // logical blocks that were trimmed
}

// New makes a disk of n bytes.
func New(n int64) *Disk { return &Disk{Data: make([]byte, n)} }

func (d *Disk) block() int {
	if d.Logical == 0 {
		return 512
	}
	return d.Logical
}

func (d *Disk) check(off, n int64) error {
	if b := int64(d.block()); off < 0 || n < 0 || off%b != 0 || n%b != 0 || off > d.Size() || n > d.Size()-off {
		return fmt.Errorf("lutest: %d bytes at %d are unaligned or outside the disk", n, off)
	}
	return nil
}

func (d *Disk) move(dst, src []byte) {
	if !d.Torn {
		copy(dst, src)
		return
	}
	for b := d.block(); len(dst) > 0; dst, src = dst[b:], src[b:] {
		copy(dst[:b], src)
		runtime.Gosched()
	}
}

// Read reads.
func (d *Disk) Read(ctx context.Context, p []byte, off int64) error {
	d.Reads.Add(1)
	if err := d.check(off, int64(len(p))); err != nil {
		return err
	}
	if d.OnRead != nil {
		if err := d.OnRead(ctx, off, len(p)); err != nil {
			return err
		}
	}
	d.move(p, d.Data[off:off+int64(len(p))])
	return nil
}

// Write writes.
func (d *Disk) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	d.Writes.Add(1)
	if fua {
		d.FUAs.Add(1)
	}
	if err := d.check(off, int64(len(p))); err != nil {
		return err
	}
	if d.OnWrite != nil {
		if err := d.OnWrite(ctx, off, len(p)); err != nil {
			return err
		}
	}
	d.fill(off, int64(len(p)))
	d.move(d.Data[off:off+int64(len(p))], p)
	return nil
}

func (d *Disk) fill(off, n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.holes) != 0 {
		for b := int64(d.block()); n > 0; off, n = off+b, n-b {
			delete(d.holes, off)
		}
	}
}

// Flush counts.
func (d *Disk) Flush(context.Context) error { d.Flushes.Add(1); return nil }

// Trim zeroes, and makes holes.
func (d *Disk) Trim(ctx context.Context, off, n int64) error {
	if err := d.WriteZeroes(ctx, off, n, true, false); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.holes == nil {
		d.holes = make(map[int64]bool)
	}
	for b := int64(d.block()); n > 0; off, n = off+b, n-b {
		d.holes[off] = true
	}
	return nil
}

// WriteZeroes zeroes.
func (d *Disk) WriteZeroes(ctx context.Context, off, n int64, _, _ bool) error {
	if err := d.check(off, n); err != nil {
		return err
	}
	if d.OnWrite != nil {
		if err := d.OnWrite(ctx, off, int(n)); err != nil {
			return err
		}
	}
	clear(d.Data[off : off+n])
	return nil
}

// Extents yields runs of holes and data.
func (d *Disk) Extents(_ context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error {
	if err := d.check(off, n); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	b := int64(d.block())
	for n > 0 {
		hole, run := d.holes[off], int64(0)
		for run < n && d.holes[off+run] == hole {
			run += b
		}
		if !yield(run, hole, hole) {
			return nil
		}
		off, n = off+run, n-run
	}
	return nil
}

// Size is the length of Data.
func (d *Disk) Size() int64 { return int64(len(d.Data)) }

// BlockSizes returns the fields.
func (d *Disk) BlockSizes() (logical, physical, optimal, maxTransfer int) {
	physical = d.Physical
	if physical == 0 {
		physical = 4096
	}
	return d.block(), physical, d.Optimal, d.Max
}

// ReadOnly returns RO.
func (d *Disk) ReadOnly() bool { return d.RO }

// Close notes that it was called.
func (d *Disk) Close() error { d.Closed.Store(true); return nil }
