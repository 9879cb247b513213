package server

import (
	"runtime"
	"sync"

	"vdbridge/smb/wire"
)

// workers run the requests of a connection, in the order of arrival as far as when they begin. There are as many as there are requests to run, up
// to a maximum; few of them stay when there is nothing to do.
//
// At most one worker is being woken at any time; it wakes the next one if there is more to do. So a burst of quick requests is not spread over more
// goroutines than can run, and slow ones still all run at once.
type workers struct {
	c    *conn
	max  int
	keep int
	wg   sync.WaitGroup

	mu      sync.Mutex
	cond    sync.Cond
	queue   []*work // ring
	head, n int
	total   int // goroutines
	blocked int // of them wait for another client, and do not count
	idle    int // waiting in cond
	waking  bool
	closed  bool
}

func (p *workers) init(c *conn, limit int) {
	p.c, p.max, p.keep = c, limit, min(limit, 2*runtime.GOMAXPROCS(0))
	p.cond.L = &p.mu
	p.queue = make([]*work, 64)
}

// busy says whether anything is queued or running on a worker.
func (p *workers) busy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n > 0 || p.total > p.idle
}

// submit queues w.
func (p *workers) submit(w *work) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		w.drop()
		return
	}
	if p.n == len(p.queue) {
		bigger := make([]*work, 2*len(p.queue))
		for i := range p.n {
			bigger[i] = p.queue[(p.head+i)%len(p.queue)]
		}
		p.queue, p.head = bigger, 0
	}
	p.queue[(p.head+p.n)%len(p.queue)] = w
	p.n++
	p.wake()
	p.mu.Unlock()
}

// wake gets one more worker going if one is needed. mu is held.
func (p *workers) wake() {
	if p.n == 0 || p.waking {
		return
	}
	if p.idle > 0 {
		p.waking = true
		p.cond.Signal()
	} else if p.total-p.blocked < p.max {
		p.waking = true
		p.total++
		p.wg.Add(1)
		go p.work()
	}
}

// block tells that the calling worker is going to wait for another client; unblock ends that. There may be up to most such.
func (p *workers) block(most int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blocked >= most {
		return false
	}
	p.blocked++
	p.wake()
	return true
}

func (p *workers) unblock() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.blocked--
}

func (p *workers) work() {
	defer p.wg.Done()
	p.mu.Lock()
	p.waking = false
	for {
		for p.n == 0 {
			if p.closed || p.idle >= p.keep {
				p.total--
				p.mu.Unlock()
				return
			}
			p.idle++
			p.cond.Wait()
			p.idle--
			p.waking = false
		}
		w := p.queue[p.head]
		p.queue[p.head] = nil
		p.head = (p.head + 1) % len(p.queue)
		p.n--
		closed := p.closed
		p.wake()
		p.mu.Unlock()
		if closed {
			w.drop()
		} else if err := w.runQueued(); err != nil {
			p.c.close(err)
		}
		p.mu.Lock()
	}
}

// close drops what is queued and waits for what is running.
func (p *workers) close() {
	p.mu.Lock()
	p.closed = true
	for p.n > 0 {
		w := p.queue[p.head]
		p.queue[p.head] = nil
		p.head = (p.head + 1) % len(p.queue)
		p.n--
		p.mu.Unlock()
		w.drop()
		p.mu.Lock()
	}
	p.cond.Broadcast()
	p.mu.Unlock()
	p.wg.Wait()
}

// drop gives up a queued work whose connection has ended.
func (w *work) drop() {
	w.req.releaseOpens()
	if w.admitted {
		w.c.mu.Lock()
		w.c.forget(&w.req)
		w.c.mu.Unlock()
	}
	w.free()
}

// runQueued runs w on a worker. Large encrypted messages are still to be opened and admitted.
func (w *work) runQueued() error {
	if !w.admitted {
		err := w.open()
		if err == nil {
			var run bool
			if run, err = w.c.admit(w); err == nil && run && (w.first == wire.CmdNegotiate || w.first == wire.CmdSessionSetup) {
				w.drop()
				return errProtocol // these are small
			} else if err == nil && !run {
				w.abandon()
				return nil
			}
		}
		if err != nil {
			w.abandon()
			return err
		}
	}
	return w.run()
}
