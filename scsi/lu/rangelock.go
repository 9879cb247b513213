package lu

import (
	"context"
	"math/bits"
	"sync"
	"sync/atomic"
)

// The table of range locks is cut into shards by stripes of the disk, so that commands in different places do not meet at one mutex.
const (
	lockShards  = 64 // as many as bits in a uint64
	stripeShift = 20 // bytes
)

// rangeLocks gives out locks on byte ranges: shared and exclusive, first come, first served. A request waits for every earlier one,
// granted or waiting, that overlaps it, unless both are shared; so nobody starves. The zero value is ready.
type rangeLocks struct {
	shards [lockShards]lockShard
	pool   sync.Pool
}

// lockShard lists requests in the order of their arrival. All requests that touch several shards enter them in one step, with the
// mutexes of all of them held, so that the orders of different shards never contradict each other and no circle of waiting can form.
type lockShard struct {
	mu         sync.Mutex
	head, tail *lockNode
	_          [40]byte // a cache line each
}

// lockNode is one range of a request in one shard.
type lockNode struct {
	prev, next *lockNode
	req        *lockRequest
	start, end int64
	shard      uint8
}

// lockRequest is a request for one or more ranges, all granted together. Requests are pooled.
type lockRequest struct {
	exclusive bool
	blockers  atomic.Int32  // earlier conflicting nodes, one more until the request has been entered everywhere
	granted   chan struct{} // capacity 1
	shards    uint64        // set of shards in use
	nodes     []lockNode
}

func (l *rangeLocks) newRequest(exclusive bool) *lockRequest {
	r, _ := l.pool.Get().(*lockRequest)
	if r == nil {
		r = &lockRequest{granted: make(chan struct{}, 1), nodes: make([]lockNode, 0, 2)}
	}
	r.exclusive, r.shards, r.nodes = exclusive, 0, r.nodes[:0]
	return r
}

// add puts n bytes at off into the request, before it is acquired.
func (r *lockRequest) add(off, n int64) {
	if n <= 0 {
		return
	}
	first, last := off>>stripeShift, (off+n-1)>>stripeShift
	for s := first; s <= min(last, first+lockShards-1); s++ {
		shard := uint8(s % lockShards)
		r.shards |= 1 << shard
		r.nodes = append(r.nodes, lockNode{req: r, start: off, end: off + n, shard: shard})
	}
}

// acquire waits until the request is granted. After an error the request is gone; otherwise release ends it.
func (l *rangeLocks) acquire(ctx context.Context, r *lockRequest) error {
	r.blockers.Store(1)
	for set := r.shards; set != 0; set &= set - 1 {
		l.shards[bits.TrailingZeros64(set)].mu.Lock()
	}
	for i := range r.nodes {
		n := &r.nodes[i]
		l.shards[n.shard].enter(n)
	}
	for set := r.shards; set != 0; set &= set - 1 {
		l.shards[bits.TrailingZeros64(set)].mu.Unlock()
	}
	if r.blockers.Add(-1) == 0 {
		return nil
	}
	select {
	case <-r.granted:
		return nil
	case <-ctx.Done():
		l.release(r)
		return context.Cause(ctx)
	}
}

// release gives the ranges back and lets those go on who waited for them.
func (l *rangeLocks) release(r *lockRequest) {
	for i := range r.nodes {
		n := &r.nodes[i]
		s := &l.shards[n.shard]
		s.mu.Lock()
		s.leave(n)
		s.mu.Unlock()
	}
	// Nobody can grant the request any more; a grant that crossed a cancelled wait is taken out.
	select {
	case <-r.granted:
	default:
	}
	if cap(r.nodes) <= 2*lockShards {
		clear(r.nodes)
		l.pool.Put(r)
	}
}

func (n *lockNode) conflicts(m *lockNode) bool {
	return n.start < m.end && m.start < n.end && n.req != m.req && (n.req.exclusive || m.req.exclusive)
}

func (s *lockShard) enter(n *lockNode) {
	for m := s.head; m != nil; m = m.next {
		if n.conflicts(m) {
			n.req.blockers.Add(1)
		}
	}
	n.prev, n.next = s.tail, nil
	if s.tail != nil {
		s.tail.next = n
	} else {
		s.head = n
	}
	s.tail = n
}

func (s *lockShard) leave(n *lockNode) {
	for m := n.next; m != nil; m = m.next {
		if n.conflicts(m) && m.req.blockers.Add(-1) == 0 {
			m.req.granted <- struct{}{}
		}
	}
	if n.prev != nil {
		n.prev.next = n.next
	} else {
		s.head = n.next
	}
	if n.next != nil {
		n.next.prev = n.prev
	} else {
		s.tail = n.prev
	}
}
