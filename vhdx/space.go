package vhdx

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// growStep is how far the file is extended at once when it has to grow; what is not used is cut off at close.
const growStep = 64 * mib

// maxFree bounds the list of free block-sized places; more than that are forgotten until the next open.
const maxFree = 1 << 20

// space gives out places for blocks.
type space struct {
	b         Backing
	blockSize int64
	gate      *gate

	size   atomic.Int64 // of the file
	stable atomic.Int64 // size of the file that a completed flush has made durable
	end    atomic.Int64 // everything from here on is unused and, up to size, reads as zeros

	mu    sync.Mutex
	zero  queue   // free places that read as zeros
	dirty queue   // free places with old content
	small queue   // free places of 1 MiB with old content, between others
	limbo []limbo // freed, but a request may still touch it

	growing chan struct{} // 1 token: held while the file is extended

	held atomic.Bool // the gaps belong to Compact: new blocks come from the end, and what is freed stays so until the next scan
}

// withhold gives the gaps to Compact. Nobody else is inside.
func (s *space) withhold() {
	s.held.Store(true)
	s.forget()
}

// limbo is a place whose BAT entry is durably gone, with the epoch at that time.
type limbo struct {
	extent
	epoch uint64
}

// queue is a first-in-first-out list of file offsets, so that what was freed in order is used in order.
type queue struct {
	items []int64
	head  int
}

func (q *queue) push(off int64) {
	if len(q.items)-q.head < maxFree {
		q.items = append(q.items, off)
	}
}

func (q *queue) pop() (int64, bool) {
	if q.head == len(q.items) {
		return 0, false
	}
	v := q.items[q.head]
	if q.head++; q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	} else if q.head >= 1024 && q.head*2 > len(q.items) {
		q.items = q.items[:copy(q.items, q.items[q.head:])]
		q.head = 0
	}
	return v, true
}

func newSpace(b Backing, blockSize, size int64, g *gate) *space {
	s := &space{b: b, blockSize: blockSize, gate: g, growing: make(chan struct{}, 1)}
	s.size.Store(size)
	s.end.Store(roundUp(size, mib))
	return s
}

// place is where a new block goes.
type place struct {
	off    int64
	zero   bool // it reads as zeros
	reused bool // it held something before: what is written to it, zeros too, must be durable before a BAT entry says that it is in use
}

// take finds a place for a block.
func (s *space) take(ctx context.Context) (place, error) {
	s.mu.Lock()
	off, ok := s.zero.pop()
	if ok {
		s.mu.Unlock()
		return place{off, true, true}, nil
	}
	off, ok = s.dirty.pop()
	s.mu.Unlock()
	if ok {
		return place{off, false, true}, nil
	}
	return s.takeEnd(ctx, s.blockSize)
}

// takeBitmap finds a place for a sector bitmap.
func (s *space) takeBitmap(ctx context.Context) (place, error) {
	if s.blockSize == bitmapBlock {
		return s.take(ctx)
	}
	s.mu.Lock()
	off, ok := s.small.pop()
	s.mu.Unlock()
	if ok {
		return place{off, false, true}, nil
	}
	return s.takeEnd(ctx, bitmapBlock)
}

// takeEnd finds a place of up to a block at the end of the file.
func (s *space) takeEnd(ctx context.Context, n int64) (place, error) {
	for {
		for {
			at := s.end.Load()
			if at+n > s.size.Load() {
				break
			}
			if s.end.CompareAndSwap(at, at+n) {
				return place{at, true, false}, nil
			}
		}
		if err := s.grow(ctx); err != nil {
			return place{}, fmt.Errorf("grow the image: %w", err)
		}
	}
}

// grow extends the file; one goroutine does it, others wait.
func (s *space) grow(ctx context.Context) error {
	select {
	case s.growing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.growing }()
	at := s.end.Load()
	if at+s.blockSize <= s.size.Load() {
		return nil
	}
	want := at + max(s.blockSize, growStep/s.blockSize*s.blockSize)
	if want > maxFileSize {
		return fmt.Errorf("the file would have more than %d TiB", maxFileSize>>40)
	}
	if err := s.b.Truncate(ctx, want); err != nil {
		if want == at+s.blockSize {
			return err
		}
		want = at + s.blockSize // perhaps there is room for one
		if err := s.b.Truncate(ctx, want); err != nil {
			return err
		}
	}
	s.size.Store(want)
	return nil
}

// giveBack returns a place that was taken and not used.
func (s *space) giveBack(p place) {
	if s.held.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty.push(p.off)
}

// release takes places whose BAT entries are durably gone. They can be taken again once no request is left that may have looked them up before.
func (s *space) release(freed []extent) {
	if len(freed) == 0 || s.held.Load() {
		return
	}
	e := s.gate.epoch()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range freed {
		s.limbo = append(s.limbo, limbo{x, e})
	}
}

// reclaim moves places out of limbo whose time has come, and punches holes where the file can, which gives the space back to the host.
func (s *space) reclaim(ctx context.Context) error {
	s.mu.Lock()
	if len(s.limbo) == 0 {
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	s.gate.advance()
	s.gate.advance()
	s.mu.Lock()
	n := 0
	for n < len(s.limbo) && s.gate.graceOver(s.limbo[n].epoch) {
		n++
	}
	ready := append([]limbo(nil), s.limbo[:n]...)
	s.limbo = s.limbo[:copy(s.limbo, s.limbo[n:])]
	s.mu.Unlock()

	for i, l := range ready {
		err := punch(ctx, s.b, l.off, l.n)
		s.mu.Lock()
		for off := l.off; off+s.blockSize <= l.end(); off += s.blockSize {
			if err == nil {
				s.zero.push(off)
			} else {
				s.dirty.push(off)
			}
		}
		if ctx.Err() != nil { // the rest has old content
			for _, l := range ready[i+1:] {
				s.dirty.push(l.off)
			}
			s.mu.Unlock()
			return ctx.Err()
		}
		s.mu.Unlock()
	}
	return nil
}
