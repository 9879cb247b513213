package vhdx

import (
	"context"
	"sync"
	"sync/atomic"
)

// A gate counts the requests that are inside, for two questions: are all those gone that could have seen an old BAT entry (a grace period, asked
// without waiting), and is nobody inside at all (asked by Close, which also keeps newcomers out).
//
// The counters are split by request offset, so that requests on different cores seldom meet on a cache line, and by the parity of an
// epoch. A grace period ends when the epoch has advanced twice; it advances only when the counters of the older parity are zero.
type gate struct {
	word   atomic.Uint64 // epoch<<1 | shut
	shards [gateShards]gateShard

	advanceMu sync.Mutex // serialises advances
	waiting   atomic.Bool
	wake      chan struct{} // 1 token: somebody left while waiting was set

	mu     sync.Mutex
	reopen chan struct{} // closed when the gate opens again; nil while it is open
	closed bool
}

const gateShards = 32

type gateShard struct {
	n [2]atomic.Int64
	_ [112]byte // keeps shards on cache lines (and their prefetched neighbours) of their own
}

func newGate() *gate { return &gate{wake: make(chan struct{}, 1)} }

// enter counts a request in; the caller ends it with leave on the counter that it got. It waits while the gate is shut for a while, and
// fails with ErrClosed when it is closed for good.
func (g *gate) enter(ctx context.Context, hint int64) (*atomic.Int64, error) {
	s := &g.shards[uint64(hint>>12)*0x9E3779B97F4A7C15>>59]
	for {
		w := g.word.Load()
		if w&1 != 0 {
			if err := g.wait(ctx); err != nil {
				return nil, err
			}
			continue
		}
		c := &s.n[w>>1&1]
		c.Add(1)
		if g.word.Load() == w { // else the epoch moved on, or the gate was shut, before we were counted
			return c, nil
		}
		g.leave(c)
	}
}

func (g *gate) leave(c *atomic.Int64) {
	c.Add(-1)
	if g.waiting.Load() {
		select {
		case g.wake <- struct{}{}:
		default:
		}
	}
}

func (g *gate) wait(ctx context.Context) error {
	g.mu.Lock()
	ch, closed := g.reopen, g.closed
	g.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case ch == nil:
		return nil
	}
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *gate) sum(parity uint64) (n int64) {
	for i := range g.shards {
		n += g.shards[i].n[parity].Load()
	}
	return n
}

func (g *gate) epoch() uint64 { return g.word.Load() >> 1 }

// advance moves the epoch on if nobody is left from the one before the current.
func (g *gate) advance() {
	g.advanceMu.Lock()
	defer g.advanceMu.Unlock()
	if e := g.epoch(); g.sum((e+1)&1) == 0 {
		g.word.Add(2)
	}
}

// graceOver reports whether every request is gone that was inside when the epoch was e.
func (g *gate) graceOver(e uint64) bool { return g.epoch() >= e+2 }

// shut keeps newcomers out and waits until all who are inside have left. With final they are refused, and a second shut fails.
// The caller of a shut that is not final calls open.
func (g *gate) shut(ctx context.Context, final bool) error {
	for {
		g.mu.Lock()
		if g.closed {
			g.mu.Unlock()
			return ErrClosed
		}
		if g.reopen == nil {
			break
		}
		ch := g.reopen
		g.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	g.closed = final
	g.reopen = make(chan struct{})
	g.mu.Unlock()
	g.word.Or(1)
	g.waiting.Store(true)
	defer g.waiting.Store(false)
	for g.sum(0)+g.sum(1) != 0 {
		select {
		case <-g.wake:
		case <-ctx.Done():
			if final {
				<-g.wake // a close cannot be taken back
				continue
			}
			g.open()
			return ctx.Err()
		}
	}
	return nil
}

// open lets requests in again.
func (g *gate) open() {
	g.mu.Lock()
	ch := g.reopen
	g.reopen = nil
	g.word.And(^uint64(1))
	g.mu.Unlock()
	close(ch)
}
