package client

import (
	"context"
	"encoding/binary"
	"runtime"
	"slices"
	"sync"
	"time"

	"vdbridge/smb/crypt"
	"vdbridge/smb/transport"
)

// Small requests that are ready at the same time are sent as one compound of unrelated requests ([MS-SMB2] 3.2.4.1.4). To a server that is
// busy with itself this is worth a factor: Samba, for one, then has one message to receive and one to send instead of many, and
// reads at once instead of by way of a thread. To a server that waits for slow disks it is a loss, as requests of one compound may be executed one
// after the other. The client cannot know which it is, so it tries: see tuner.

const (
	// joinLimit is the most payload, in bytes, that a request and its reply may have to be joined.
	joinLimit = 16 << 10
	// maxJoin is the most requests in one compound.
	maxJoin = 16
)

// joiner collects the requests of a connection that can be joined. Whoever finds it idle lets others run once, so that they can add
// theirs, and sends the first compound; what has come up meanwhile is for the connection's own goroutine, so that nobody works for others for long.
type joiner struct {
	kick chan struct{} // capacity 1: go on

	mu    sync.Mutex
	queue []*request
	busy  bool // somebody sends, or was asked to
	tune  tuner
	pool  sync.Pool // of *compound
}

// compound is a message of several requests.
type compound struct {
	pool *sync.Pool
	reqs []*request
	segs [][]byte
	f    *frame // the sealed message, if it is sealed
}

// Release implements transport.Releaser: the Sender has let go of all of it.
func (k *compound) Release() {
	for _, r := range k.reqs {
		r.Release()
	}
	if k.f != nil {
		k.f.unref()
		k.f = nil
	}
	clear(k.reqs)
	clear(k.segs)
	k.reqs, k.segs = k.reqs[:0], k.segs[:0]
	k.pool.Put(k)
}

// join sends r, perhaps together with others.
func (c *Conn) join(r *request) {
	// The use that the Sender will have begins here, so that r stays whole in the queue whatever becomes of its caller.
	r.refs.Add(1)
	r.sent.Store(sentNot)
	j := &c.joiner
	j.mu.Lock()
	j.queue = append(j.queue, r)
	if j.busy {
		j.mu.Unlock()
		return
	}
	j.busy = true
	j.mu.Unlock()
	runtime.Gosched()
	if c.joinOnce() {
		j.kick <- struct{}{}
	}
}

// joinLoop sends what others have left.
func (c *Conn) joinLoop() {
	for {
		select {
		case <-c.joiner.kick:
		case <-c.done:
			return
		}
		for c.joinOnce() {
			runtime.Gosched()
		}
	}
}

// joinOnce sends one compound, of what is queued. It returns false, and has given up the right to send, when nothing was queued, or one request
// alone; otherwise more is likely to come soon.
func (c *Conn) joinOnce() bool {
	j := &c.joiner
	j.mu.Lock()
	n := min(len(j.queue), j.tune.size())
	for i := 1; i < n; i++ { // only what is protected in the same way goes together
		if r, first := j.queue[i], j.queue[0]; r.ch != first.ch || r.seal != first.seal {
			n = i
		}
	}
	k, _ := j.pool.Get().(*compound)
	if k == nil {
		k = &compound{pool: &j.pool}
	}
	k.reqs = append(k.reqs, j.queue[:n]...)
	left := copy(j.queue, j.queue[n:])
	clear(j.queue[left:])
	j.queue = j.queue[:left]
	if n > 0 {
		j.tune.sent(time.Now, n, left > 0 || n > 1)
	}
	more := n > 1 || left > 0
	j.busy = more
	j.mu.Unlock()
	switch {
	case n == 0:
		j.pool.Put(k)
	case n == 1:
		r := k.reqs[0]
		k.reqs = k.reqs[:0]
		j.pool.Put(k)
		r.hand()
	default:
		c.sendCompound(k)
	}
	return more
}

// expedite sends r alone if it is still in the queue. Should r have been sent, freed and used for another request in the meantime, it is that one
// that goes out alone, which does no harm.
func (c *Conn) expedite(r *request) {
	j := &c.joiner
	j.mu.Lock()
	i := slices.Index(j.queue, r)
	if i >= 0 {
		j.queue = slices.Delete(j.queue, i, i+1)
	}
	j.mu.Unlock()
	if i >= 0 {
		r.hand()
	}
}

// sendCompound completes the headers of the requests and sends them together.
func (c *Conn) sendCompound(k *compound) {
	first, total := k.reqs[0], 0
	for i, r := range k.reqs {
		r.putHeader()
		if i < len(k.reqs)-1 {
			for len(r.out)%8 != 0 {
				r.out = append(r.out, 0)
			}
			binary.LittleEndian.PutUint32(r.out[20:], uint32(len(r.out))) // NextCommand
		}
		r.segs[0] = r.out
		if r.sign {
			r.ch.signer.Sign(r.segs[:1]...)
		}
		k.segs = append(k.segs, r.out)
		total += len(r.out)
	}
	if first.seal {
		k.f = c.frames.get(crypt.SealRoom + total)
		at := crypt.SealRoom
		for _, s := range k.segs {
			at += copy(k.f.b[at:], s)
		}
		k.segs = append(k.segs[:0], k.f.b)
		if err := first.ch.s.sealer.Seal(k.f.b); err != nil {
			c.fail(err)
			k.Release()
			return
		}
	}
	if err := c.tx.Send(context.Background(), transport.Message(k.segs), k); err != nil {
		c.fail(err)
	}
}
