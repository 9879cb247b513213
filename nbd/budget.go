package nbd

import (
	"sync"
	"sync/atomic"
)

// budget bounds the bytes in flight of a whole server and, through the connections that take from it, of each connection. Taking and giving
// back are a few atomic operations unless a limit is reached.
type budget struct {
	max     int64
	used    atomic.Int64
	waiting atomic.Int32
	mu      sync.Mutex
	cond    sync.Cond
}

func newBudget(max int64) *budget {
	b := &budget{max: max}
	b.cond.L = &b.mu
	return b
}

// take takes n bytes for a request of c, and waits until they are there. A connection that has nothing in flight always gets them, so that none
// starves: the server's bound is therefore max and one request of each connection. Only c's reader calls it.
func (b *budget) take(n int64, c *conn) {
	if b.try(n, c) {
		return
	}
	b.mu.Lock()
	b.waiting.Add(1)
	for !b.try(n, c) {
		if c.inflight.Load() == 0 || c.ctx.Err() != nil {
			b.used.Add(n)
			c.bytes.Add(n)
			break
		}
		b.cond.Wait()
	}
	b.waiting.Add(-1)
	b.mu.Unlock()
}

func (b *budget) try(n int64, c *conn) bool {
	if c.bytes.Load()+n > c.srv.cfg.ConnBytes || int(c.inflight.Load()) >= c.srv.cfg.MaxRequests {
		return false // only others lower these two, so this cannot be overtaken
	}
	for {
		u := b.used.Load()
		if u+n > b.max {
			return false
		}
		if b.used.CompareAndSwap(u, u+n) {
			c.bytes.Add(n)
			return true
		}
	}
}

// give gives n bytes of c back.
func (b *budget) give(n int64, c *conn) {
	c.bytes.Add(-n)
	b.used.Add(-n)
	b.wake()
}

// wake makes all who wait look again.
func (b *budget) wake() {
	if b.waiting.Load() > 0 {
		b.mu.Lock()
		b.cond.Broadcast()
		b.mu.Unlock()
	}
}
