package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
)

// Conn is one connection to a server. Its methods may be called from any goroutine.
type Conn struct {
	cfg    Config
	log    *slog.Logger
	addr   string // host:port, as dialled
	server string // as users call it
	tr     transport.Conn
	tx     *transport.Sender
	neg    negotiated // does not change after Dial

	frames   frames
	requests sync.Pool // of *request
	joiner   joiner

	holding bool       // the reader collects in held whom it will wake
	held    []*request // of the reader

	sealed   chan sealedFrame // large sealed messages, to the openers
	received atomic.Uint64    // messages, for the watchdog
	load     atomic.Int64     // bytes of requests that have not ended, with their replies
	up       atomic.Bool      // the caller of Dial has it; before, an error is for Dial to return
	wg       sync.WaitGroup
	done     chan struct{} // closed when err is set

	mu       sync.Mutex
	err      error // why the connection ended
	w        window
	table    map[uint64]*request
	sessions map[uint64]*channel // by session; those of lost connections stay
	last     *channel            // of sessions, lately used
}

// sealedFrame is a sealed message on its way to an opener.
type sealedFrame struct {
	f  *frame
	ch *channel
}

// newConn starts the goroutines of a connection. Close ends them.
func newConn(tr transport.Conn, addr, server string, cfg Config) *Conn {
	c := &Conn{
		cfg: cfg, log: cfg.Logger, addr: addr, server: server, tr: tr,
		done:     make(chan struct{}),
		table:    make(map[uint64]*request),
		sessions: make(map[uint64]*channel),
	}
	c.w = window{avail: 1, target: cfg.Credits}
	tr.SetMaxMessage(handshakeLimit)
	// What may wait to be written is bounded by the credits. A message that has its id must go out, so Send may not refuse it.
	c.tx = transport.NewSender(tr, transport.SenderOptions{
		MaxQueued: 1 << 40,
		OnError:   func(err error) { c.fail(err) },
	})
	workers := max(2, runtime.GOMAXPROCS(0))
	c.sealed = make(chan sealedFrame, workers)
	for range workers {
		c.wg.Go(c.openLoop)
	}
	c.joiner.kick = make(chan struct{}, 1)
	c.joiner.tune = tuner{limit: cfg.MaxCompound, best: min(firstJoin, cfg.MaxCompound), turns: minWait, wait: minWait}
	if cfg.MaxCompound > 1 {
		c.wg.Go(c.joinLoop)
	}
	c.wg.Go(c.readLoop)
	if cfg.ServerTimeout > 0 {
		c.wg.Go(c.watch)
	}
	return c
}

// Done returns a channel that is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection has ended, or nil while it works. The error matches ErrConnectionLost.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// fail ends the connection because of err, unless it has ended already: everyone who waits gets the error.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = &ConnError{Addr: c.addr, Err: err}
	err = c.err
	var waiting, orphans []*request
	for id, r := range c.table {
		delete(c.table, id)
		if r.state == stateAbandoned {
			orphans = append(orphans, r)
			continue
		}
		r.state, r.err = stateDelivered, err
		waiting = append(waiting, r)
	}
	queued := c.w.head
	for r := queued; r != nil; r = r.next {
		r.state, r.err = stateDelivered, err
	}
	c.w.head, c.w.tail = nil, nil
	channels := make([]*channel, 0, len(c.sessions))
	for _, ch := range c.sessions {
		channels = append(channels, ch)
	}
	c.mu.Unlock()

	if errors.Is(err, ErrClosed) {
		c.log.Debug("connection closed", "server", c.addr)
	} else if !c.up.Load() {
		c.log.Debug("connection not made", "server", c.addr, "cause", err.(*ConnError).Err)
	} else {
		c.log.Warn("connection lost", "server", c.addr, "cause", err.(*ConnError).Err, "in_flight", len(waiting))
	}
	_ = c.tr.Close() // which also ends a write that waits for the peer
	close(c.done)
	// The sessions first, so that those who are woken find what has become of them.
	for _, ch := range channels {
		ch.lost(err)
	}
	wake(queued)
	for _, r := range waiting {
		r.done <- struct{}{}
	}
	for _, r := range orphans {
		r.unref()
	}
}

// closeTimeout is how long Close waits for the server to confirm before it hangs up.
const closeTimeout = 5 * time.Second

// Close logs off all sessions that have begun on the connection, after disconnecting their trees, and ends it. Of a session that it was bound to, it takes one
// channel away. Requests that are still in flight fail. It waits for all goroutines of the connection and may be called more than once.
func (c *Conn) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	for _, s := range c.begun() {
		if err := s.logoff(ctx); err != nil && c.Err() == nil {
			c.log.Debug("log off", "server", c.addr, "error", err)
		}
	}
	c.fail(ErrClosed)
	c.wg.Wait()
	if err := c.Err(); !errors.Is(err, ErrClosed) {
		return err
	}
	return nil
}

// Echo asks the server for a sign of life.
func (c *Conn) Echo(ctx context.Context) error {
	var ch *channel
	c.mu.Lock()
	for _, v := range c.sessions {
		if !v.s.closed.Load() {
			ch = v
			break
		}
	}
	c.mu.Unlock()
	r := c.request(wire.CmdEcho, ch, 0)
	r.unhindered = true
	if ch != nil {
		ch.s.protect(r, false)
	}
	r.out = wire.AppendEmptyRequest(r.out)
	ok, err := r.roundTrip(ctx, 1)
	if !ok {
		return wrap("echo", "", err)
	}
	defer r.unref()
	if err != nil {
		return wrap("echo", "", err)
	}
	return r.expect("echo", "", wire.ParseEmptyResponse)
}

// watch ends the connection when requests are in flight and the server stays silent. Half-way it asks for a sign of life.
func (c *Conn) watch() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var echo sync.WaitGroup
	defer echo.Wait()
	t := time.NewTicker(max(c.cfg.ServerTimeout/2, time.Millisecond))
	defer t.Stop()
	var idle <-chan time.Time // nil: never
	if c.cfg.IdleEcho > 0 {
		i := time.NewTicker(c.cfg.IdleEcho)
		defer i.Stop()
		idle = i.C
	}
	var seen, seenIdle uint64
	silent := 0
	for {
		select {
		case <-c.done:
			cancel()
			return
		case <-idle:
			n := c.received.Load()
			c.mu.Lock()
			waiting := c.w.open > 0
			c.mu.Unlock()
			if n == seenIdle && !waiting && c.up.Load() {
				echo.Go(func() { _ = c.Echo(ctx) })
			}
			seenIdle = n
			continue
		case <-t.C:
		}
		n := c.received.Load()
		c.mu.Lock()
		waiting := c.w.open > 0
		c.mu.Unlock()
		if n != seen || !waiting {
			seen, silent = n, 0
			continue
		}
		// silent counts the ticks that found nothing new.
		switch silent++; silent {
		case 1:
			if c.up.Load() { // before, the server takes nothing but NEGOTIATE
				echo.Go(func() { _ = c.Echo(ctx) })
			}
		case 2:
			c.fail(fmt.Errorf("server has not answered for %v although requests are in flight", c.cfg.ServerTimeout))
		}
	}
}
