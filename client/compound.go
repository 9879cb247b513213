package client

import (
	"context"
	"encoding/binary"
	"runtime"
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

// joinOnce sends one compound, of what is queued. It returns false, and has given up the right to send, when nothing is left.
func (c *Conn) joinOnce() bool {
	j := &c.joiner
	j.mu.Lock()
	n := min(len(j.queue), j.tune.size())
	for i := 1; i < n; i++ { // only what is protected in the same way goes together
		if r, first := j.queue[i], j.queue[0]; r.sess != first.sess || r.seal != first.seal {
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
		j.tune.sent(n, left > 0 || n > 1)
	}
	j.busy = left > 0
	j.mu.Unlock()
	switch {
	case n == 1:
		r := k.reqs[0]
		k.reqs = k.reqs[:0]
		j.pool.Put(k)
		r.hand()
	case n > 1:
		c.sendCompound(k)
	}
	return left > 0
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
			r.sess.ch.signer.Sign(r.segs[:1]...)
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
		if err := first.sess.ch.sealer.Seal(k.f.b); err != nil {
			c.fail(err)
			k.Release()
			return
		}
	}
	if err := c.tx.Send(context.Background(), transport.Message(k.segs), k); err != nil {
		c.fail(err)
	}
}

// tuner finds out how many requests to join, by comparing how many get through. Now and then it lets twice or half as many go together for a while, in
// turns with what was best so far, and changes over if that is clearly better. joiner.mu guards it.
//
// The measure is requests sent per second while there is more than one to send. As every sender waits for its reply before it
// sends again, that is what the server gets done. Whatever else changes meanwhile can mislead it, for a fraction of a second.
type tuner struct {
	limit int // 1 switches joining off
	best  int
	other int // on trial; 0 when there is no trial

	began time.Time // of the current turn
	count int       // requests in this turn
	turns int       // of the trial, or until the next one
	wait  int       // turns between trials
	down  bool      // the next trial is with fewer

	rate [2]turnSum // of best and other in this trial
}

type turnSum struct {
	n int
	d time.Duration
}

const (
	firstJoin = 4 // what to begin with

	// A turn lasts that long and has that many requests. One that has taken far too long was interrupted, and does not count.
	turnTime     = 5 * time.Millisecond
	turnRequests = 200
	turnTooLong  = time.Second

	trialTurns = 6 // of both sizes together
	minWait    = 4
	maxWait    = 128
)

// size returns how many requests may go together now.
func (t *tuner) size() int {
	if t.onTrial() {
		return t.other
	}
	return max(t.best, 1)
}

// onTrial says whether this turn belongs to other.
func (t *tuner) onTrial() bool { return t.other != 0 && t.turns%2 == 1 }

// sent counts n requests that go out together. busy says that there was a choice.
func (t *tuner) sent(n int, busy bool) {
	if t.limit <= 1 || !busy {
		return
	}
	if t.count == 0 {
		t.began = time.Now()
	}
	t.count += n
	if t.count < turnRequests {
		return
	}
	if d := time.Since(t.began); d >= turnTime {
		t.turn(t.count-n, d)
		t.began, t.count = time.Now(), n
	}
}

// turn ends a turn in which n requests were sent in d.
func (t *tuner) turn(n int, d time.Duration) {
	if d > turnTooLong {
		return
	}
	if t.other == 0 {
		if t.turns--; t.turns <= 0 {
			t.try()
		}
		return
	}
	i := 0
	if t.onTrial() {
		i = 1
	}
	t.rate[i].n += n
	t.rate[i].d += d
	if t.turns++; t.turns < trialTurns {
		return
	}
	best, other := t.rate[0].perSecond(), t.rate[1].perSecond()
	t.rate = [2]turnSum{}
	if other > best*1.05 {
		t.best = t.other
		t.wait = minWait
		t.try() // further in the same direction
		return
	}
	t.other, t.down = 0, !t.down
	t.turns = t.wait
	t.wait = min(2*t.wait, maxWait)
}

// try begins a trial, if there is something to try.
func (t *tuner) try() {
	t.turns, t.other = 0, t.best*2
	if t.down {
		t.other = t.best / 2
	}
	if t.other < 1 || t.other > t.limit {
		t.other, t.down = 0, !t.down
		t.turns = t.wait
	}
}

func (s turnSum) perSecond() float64 {
	if s.d <= 0 {
		return 0
	}
	return float64(s.n) / s.d.Seconds()
}
