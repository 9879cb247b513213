package transport

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
)

// Releaser is told when a message that was given to a Sender is not needed any more: after it was written, or after it has
// become clear that it never will be.
type Releaser interface{ Release() }

// SenderOptions tune a Sender. The zero value is right for nearly everyone.
type SenderOptions struct {
	// MaxQueued is how many bytes may wait to be written before Send blocks, 0 for 4 MiB. A message larger than that is accepted
	// when nothing else is waiting.
	MaxQueued int
	// OnError is called once, with the first error of writing, from whichever goroutine met it. Usually it closes the
	// connection. It must not call the Sender.
	OnError func(error)
}

const defaultMaxQueued = 4 << 20

// gatherBelow is the length in bytes of a message that is worth waiting for others to be written together with.
const gatherBelow = 16 << 10

// Sender lets any number of goroutines write messages to one Conn, in the order in which they are sent. Whoever finds it idle writes what
// has queued up until then, all in one system call, but never waits for the peer: when the network does not take everything at
// once, or when more has queued up meanwhile, a goroutine of the Sender carries on. (A Conn that is no TryWriter is written by that goroutine alone.)
//
// So few messages go out without a detour, and many go out in large batches.
//
// Lock order: mu is never held during I/O, callbacks or channel sends that could block.
type Sender struct {
	conn      Conn
	try       TryWriter // nil if conn is none
	onError   func(error)
	maxQueued int

	kick chan struct{} // capacity 1: the flushing right passes to the goroutine
	done chan struct{} // closed when the goroutine has ended

	mu       sync.Mutex
	queue    batch // to be written
	spare    batch // the other one of the two that take turns
	queued   int   // bytes in queue, being written, or reserved
	flushing bool  // somebody has the right to write
	closed   bool
	err      error
	waiters  []*waiter // for room, first come first served
	drains   []drain
	accepted uint64 // messages queued so far
	finished uint64 // messages written, or given up

	// yield says how promising it is to let other goroutines run before writing, so that they can queue something too.
	yield int
	sends uint32

	// Of whoever has the flushing right.
	writing   batch
	unwritten bool // StartWrite was not done
}

// batch is a list of messages with what is to be released after them.
type batch struct {
	msgs     []Message
	releases []Releaser
	bytes    int
}

// waiter is a Send that waits for room.
type waiter struct {
	n        int
	ch       chan struct{} // closed when admitted, or after an error
	admitted bool
}

// drain is a Drain that waits until finished has reached upTo.
type drain struct {
	upTo uint64
	ch   chan struct{}
}

// reset empties the batch and keeps its memory, unless it is out of all proportion.
func (b *batch) reset() {
	const most = 4096
	if cap(b.msgs) > most {
		*b = batch{}
		return
	}
	clear(b.msgs)
	clear(b.releases)
	b.msgs, b.releases, b.bytes = b.msgs[:0], b.releases[:0], 0
}

// NewSender returns a Sender that is from now on the only one to write to conn. Close must be called to end its goroutine.
func NewSender(conn Conn, opts SenderOptions) *Sender {
	s := &Sender{
		conn:      conn,
		onError:   opts.OnError,
		maxQueued: opts.MaxQueued,
		kick:      make(chan struct{}, 1),
		done:      make(chan struct{}),
	}
	if s.maxQueued <= 0 {
		s.maxQueued = defaultMaxQueued
	}
	s.try, _ = conn.(TryWriter)
	go s.run()
	return s
}

// Send queues m and sees to it that it is written soon, possibly by this goroutine before Send returns. r, if not nil, is released
// exactly once, after which m is not used any more; when Send returns an error, that has already happened.
//
// Send blocks only while more than MaxQueued bytes wait, and not longer than ctx allows. An error means that m was not and will not be
// written; no error does not mean that m was written.
func (s *Sender) Send(ctx context.Context, m Message, r Releaser) error {
	return s.send(ctx, m, r, true)
}

// Enqueue is Send without writing: the caller promises to call Flush soon.
func (s *Sender) Enqueue(ctx context.Context, m Message, r Releaser) error {
	return s.send(ctx, m, r, false)
}

func (s *Sender) send(ctx context.Context, m Message, r Releaser, flush bool) error {
	n := m.Len()
	s.mu.Lock()
	if err := s.reserve(ctx, n); err != nil {
		s.mu.Unlock()
		release(r)
		return fmt.Errorf("send SMB message: %w", err)
	}
	s.queue.msgs = append(s.queue.msgs, m)
	s.queue.releases = append(s.queue.releases, r)
	s.queue.bytes += n
	s.accepted++
	if !flush || s.flushing {
		s.mu.Unlock()
		return nil
	}
	s.flush()
	return nil
}

func release(r Releaser) {
	if r != nil {
		r.Release()
	}
}

// reserve adds n to queued, after waiting for room if necessary. It is called, and returns, with mu held.
func (s *Sender) reserve(ctx context.Context, n int) error {
	for s.err == nil {
		if len(s.waiters) == 0 && s.fits(n) {
			s.queued += n
			return nil
		}
		if !s.flushing && len(s.queue.msgs) > 0 {
			// These were only enqueued, and nobody may be about to flush them but us.
			s.flush()
			s.mu.Lock()
			continue
		}
		w := &waiter{n: n, ch: make(chan struct{})}
		s.waiters = append(s.waiters, w)
		s.mu.Unlock()
		select {
		case <-w.ch:
		case <-ctx.Done():
		}
		s.mu.Lock()
		switch {
		case s.err != nil:
		case ctx.Err() == nil:
			return nil // admit has added n to queued
		case w.admitted:
			s.queued -= n
			s.admit()
			return ctx.Err()
		default:
			s.waiters = slices.DeleteFunc(s.waiters, func(o *waiter) bool { return o == w })
			s.admit()
			return ctx.Err()
		}
	}
	return s.err
}

func (s *Sender) fits(n int) bool { return s.queued == 0 || s.queued+n <= s.maxQueued }

// admit reserves room for the first waiters, in their order, as far as there is any. After an error it wakes all. It needs mu.
func (s *Sender) admit() {
	for len(s.waiters) > 0 {
		w := s.waiters[0]
		if s.err == nil {
			if !s.fits(w.n) {
				return
			}
			s.queued += w.n
			w.admitted = true
		}
		close(w.ch)
		s.waiters = slices.Delete(s.waiters, 0, 1)
	}
}

// Flush writes what Enqueue has left.
func (s *Sender) Flush() {
	s.mu.Lock()
	if s.flushing || len(s.queue.msgs) == 0 {
		s.mu.Unlock()
		return
	}
	s.flush()
}

// flush takes the flushing right, which must be free, writes one batch, and gives the right back or on. It is called with mu held and
// returns without.
func (s *Sender) flush() {
	s.flushing = true
	if s.try == nil {
		s.mu.Unlock()
		s.kick <- struct{}{}
		return
	}
	if len(s.queue.msgs) == 1 && s.queue.bytes < gatherBelow {
		s.gatherMore()
	}
	s.take()
	s.mu.Unlock()
	done, err := s.try.StartWrite(s.writing.msgs)
	if err == nil && !done {
		s.unwritten = true
		s.kick <- struct{}{}
		return
	}
	if more, _ := s.finish(err); more {
		s.kick <- struct{}{}
	}
}

// gatherMore lets other goroutines run if that has lately brought more messages to write together. It is called with mu held, with the
// flushing right, and returns with mu held.
//
// When a reader hands out many replies of one read, many goroutines become ready to send at once, and each would write alone. Stepping back
// once lets them all queue up. When nobody else is ready it costs some hundred nanoseconds, so it is tried rarely then.
func (s *Sender) gatherMore() {
	s.sends++
	if s.yield == 0 && s.sends%32 != 0 {
		return
	}
	s.mu.Unlock()
	runtime.Gosched()
	s.mu.Lock()
	if len(s.queue.msgs) > 1 {
		s.yield = 8
	} else if s.yield > 0 {
		s.yield--
	}
}

// take moves the queue to writing. It needs mu and the flushing right.
func (s *Sender) take() {
	s.writing = s.queue
	s.queue = s.spare
	s.spare = batch{}
}

// finish ends the write of s.writing: it releases and wakes. With more, the caller keeps the flushing right and must see to it that run goes on
// with it; otherwise it has lost it. Once closed is true, more is too, and only run may go on, to end.
func (s *Sender) finish(err error) (more, closed bool) {
	w := s.writing
	s.writing = batch{}
	bytes, n := w.bytes, len(w.msgs)
	for _, r := range w.releases {
		release(r)
	}
	w.reset()

	s.mu.Lock()
	s.spare = w
	s.queued -= bytes
	s.finished += uint64(n)
	report := false
	if err != nil && s.err == nil {
		s.err = err
		report = true
	}
	var dropped []Releaser
	if s.err != nil {
		dropped = slices.Clone(s.queue.releases)
		s.queued -= s.queue.bytes
		s.finished += uint64(len(s.queue.msgs))
		s.queue.reset()
	}
	s.admit()
	s.drains = slices.DeleteFunc(s.drains, func(d drain) bool {
		if d.upTo > s.finished {
			return false
		}
		close(d.ch)
		return true
	})
	closed = s.closed
	more = len(s.queue.msgs) > 0 || closed
	s.flushing = more
	s.mu.Unlock()

	for _, r := range dropped {
		release(r)
	}
	if report && s.onError != nil {
		s.onError(err)
	}
	return more, closed
}

// run writes when nobody else may or wants to. Each value in kick is the flushing right.
func (s *Sender) run() {
	defer close(s.done)
	for range s.kick {
		for more, closed := true, false; more; {
			var err error
			if s.unwritten {
				s.unwritten = false
				err = s.try.FinishWrite()
			} else {
				s.mu.Lock()
				s.take()
				err = s.err
				s.mu.Unlock()
				if err == nil {
					err = s.conn.WriteMessages(s.writing.msgs)
				}
			}
			if more, closed = s.finish(err); closed {
				return
			}
		}
	}
}

// Drain waits until everything that was sent before is written, or writing has failed, or ctx is done.
func (s *Sender) Drain(ctx context.Context) error {
	s.Flush()
	s.mu.Lock()
	if s.err != nil || s.finished == s.accepted {
		err := s.err
		s.mu.Unlock()
		return err
	}
	d := drain{s.accepted, make(chan struct{})}
	s.drains = append(s.drains, d)
	s.mu.Unlock()
	select {
	case <-d.ch:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close makes every further Send fail, gives up what is not written yet, and returns when nothing is used any more. OnError is not called because of
// it. It does not close the Conn, but makes further writes on it fail. It may be called more than once.
func (s *Sender) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		if s.err == nil {
			s.err = ErrClosed
		}
		s.admit()
		if !s.flushing {
			s.flushing = true
			s.kick <- struct{}{}
		}
	}
	s.mu.Unlock()
	// A write that waits for the peer must end now.
	_ = s.conn.SetWriteDeadline(time.Unix(1, 0))
	<-s.done
}
