// Package ramdisk is a sparse disk in memory for tests and benchmarks: fast, safe for concurrent use, and honest about its holes.
//
// Faults and delays are put in by [Disk.Hook].
package ramdisk

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
)

const pageSize = 64 << 10

// Op names a kind of call for a hook.
type Op string

// The calls that a hook sees.
const (
	Read        Op = "read"
	Write       Op = "write"
	Flush       Op = "flush"
	Trim        Op = "trim"
	WriteZeroes Op = "zeroes"
	Extents     Op = "extents"
)

// Hook is called before each operation and may wait or fail it.
type Hook func(ctx context.Context, op Op, off, n int64) error

type page struct {
	mu   sync.RWMutex
	data []byte // nil: a hole
}

// Disk is a RAM disk. The zero value is not usable; see New.
type Disk struct {
	size      int64
	logical   int
	physical  int
	readOnly  bool
	pages     []page
	hook      atomic.Pointer[Hook]
	allocated atomic.Int64
	flushes   atomic.Int64
	fuas      atomic.Int64
}

// New returns an empty disk of size bytes, a multiple of the logical block size (512 if 0).
func New(size int64, logical int) *Disk {
	if logical == 0 {
		logical = 512
	}
	if size < 0 || size%int64(logical) != 0 {
		panic(fmt.Sprintf("ramdisk: %d bytes is not a multiple of the block size %d", size, logical))
	}
	return &Disk{size: size, logical: logical, physical: max(4096, logical), pages: make([]page, (size+pageSize-1)/pageSize)}
}

// SetHook puts h before every operation from now on; nil takes it away. A disk with a hook may block.
func (d *Disk) SetHook(h Hook) {
	if h == nil {
		d.hook.Store(nil)
		return
	}
	d.hook.Store(&h)
}

// SetReadOnly makes ReadOnly report ro, and writing fail.
func (d *Disk) SetReadOnly(ro bool) { d.readOnly = ro }

// Flushes is the number of Flush calls so far; FUAs that of writes with fua.
func (d *Disk) Flushes() int64 { return d.flushes.Load() }

// FUAs is the number of writes with fua so far.
func (d *Disk) FUAs() int64 { return d.fuas.Load() }

// Allocated is the number of bytes of memory that hold data.
func (d *Disk) Allocated() int64 { return d.allocated.Load() }

// Size implements the disk contract, as the other methods below do.
func (d *Disk) Size() int64 { return d.size }

// BlockSizes returns the logical and physical block size; nothing else is limited.
func (d *Disk) BlockSizes() (logical, physical, optimal, maxTransfer int) {
	return d.logical, d.physical, 0, 0
}

// ReadOnly reports what SetReadOnly has set.
func (d *Disk) ReadOnly() bool { return d.readOnly }

// NonBlocking is true unless there is a hook.
func (d *Disk) NonBlocking() bool { return d.hook.Load() == nil }

// FastZero is true: whole pages are given back.
func (d *Disk) FastZero() bool { return true }

// Close does nothing.
func (d *Disk) Close() error { return nil }

func (d *Disk) check(ctx context.Context, op Op, off, n int64) error {
	if off < 0 || n < 0 || off > d.size || n > d.size-off {
		return fmt.Errorf("ramdisk: %s of %d bytes at %d is beyond the end at %d: %w", op, n, off, d.size, syscall.EINVAL)
	}
	if (off|n)&int64(d.logical-1) != 0 {
		return fmt.Errorf("ramdisk: %s of %d bytes at %d is not aligned to %d: %w", op, n, off, d.logical, syscall.EINVAL)
	}
	if d.readOnly && (op == Write || op == Trim || op == WriteZeroes) {
		return fmt.Errorf("ramdisk: %s: the disk is read-only: %w", op, syscall.EROFS)
	}
	if h := d.hook.Load(); h != nil {
		return (*h)(ctx, op, off, n)
	}
	return nil
}

// Read fills p from off.
func (d *Disk) Read(ctx context.Context, p []byte, off int64) error {
	_, err := d.read(ctx, p, off, false)
	return err
}

// ReadHole is Read, but leaves p alone and returns true if there is nothing but holes.
func (d *Disk) ReadHole(ctx context.Context, p []byte, off int64) (bool, error) {
	return d.read(ctx, p, off, true)
}

func (d *Disk) read(ctx context.Context, p []byte, off int64, holes bool) (hole bool, err error) {
	if err := d.check(ctx, Read, off, int64(len(p))); err != nil {
		return false, err
	}
	all := p
	skipped := holes // everything up to here was a hole and has been left alone
	for len(p) > 0 {
		pg, in := &d.pages[off/pageSize], int(off%pageSize)
		n := min(pageSize-in, len(p))
		pg.mu.RLock()
		switch {
		case pg.data == nil && skipped:
		case pg.data == nil:
			clear(p[:n])
		default:
			if skipped {
				skipped = false
				clear(all[:len(all)-len(p)])
			}
			copy(p[:n], pg.data[in:])
		}
		pg.mu.RUnlock()
		p, off = p[n:], off+int64(n)
	}
	return skipped && len(all) > 0, nil
}

// Write writes p at off.
func (d *Disk) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := d.check(ctx, Write, off, int64(len(p))); err != nil {
		return err
	}
	if fua {
		d.fuas.Add(1)
	}
	for len(p) > 0 {
		pg, in := &d.pages[off/pageSize], int(off%pageSize)
		n := min(pageSize-in, len(p))
		pg.mu.Lock()
		if pg.data == nil {
			pg.data = make([]byte, pageSize)
			d.allocated.Add(pageSize)
		}
		copy(pg.data[in:], p[:n])
		pg.mu.Unlock()
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Flush counts.
func (d *Disk) Flush(ctx context.Context) error {
	if err := d.check(ctx, Flush, 0, 0); err != nil {
		return err
	}
	d.flushes.Add(1)
	return nil
}

// Trim gives whole pages back and zeroes the rest.
func (d *Disk) Trim(ctx context.Context, off, n int64) error {
	if err := d.check(ctx, Trim, off, n); err != nil {
		return err
	}
	d.zero(off, n, true)
	return nil
}

// WriteZeroes makes the range read as zeros; with unmap, whole pages are given back.
func (d *Disk) WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error {
	if err := d.check(ctx, WriteZeroes, off, n); err != nil {
		return err
	}
	if fua {
		d.fuas.Add(1)
	}
	d.zero(off, n, unmap)
	return nil
}

func (d *Disk) zero(off, n int64, unmap bool) {
	for n > 0 {
		pg, in := &d.pages[off/pageSize], off%pageSize
		k := min(pageSize-in, n)
		pg.mu.Lock()
		switch {
		case unmap && k == pageSize && pg.data != nil:
			pg.data = nil
			d.allocated.Add(-pageSize)
		case !unmap && pg.data == nil:
			pg.data = make([]byte, pageSize)
			d.allocated.Add(pageSize)
		case pg.data != nil:
			clear(pg.data[in : in+k])
		}
		pg.mu.Unlock()
		off, n = off+k, n-k
	}
}

// Extents yields runs of pages with and without data.
func (d *Disk) Extents(ctx context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error {
	if err := d.check(ctx, Extents, off, n); err != nil {
		return err
	}
	var run int64
	var runHole bool
	for n > 0 {
		pg, in := &d.pages[off/pageSize], off%pageSize
		k := min(pageSize-in, n)
		pg.mu.RLock()
		hole := pg.data == nil
		pg.mu.RUnlock()
		if run > 0 && hole != runHole {
			if !yield(run, runHole, runHole) {
				return nil
			}
			run = 0
		}
		run, runHole = run+k, hole
		off, n = off+k, n-k
	}
	if run > 0 {
		yield(run, runHole, runHole)
	}
	return nil
}
