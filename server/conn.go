package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"vdbridge/smb/crypt"
	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
)

var le = binary.LittleEndian

const (
	// smallMessage is the length up to which an encrypted message is opened by the reading goroutine, so that it is seen in the order of
	// arrival. (CANCEL must come after what it cancels.) Larger ones are WRITEs, and are opened by the workers.
	smallMessage = 64 << 10
	// janitorTick is how often slow requests are looked for; after two ticks a request gets an interim reply.
	janitorTick = 2 * time.Second
	// maxSessionsPerConn bounds the sessions of one connection.
	maxSessionsPerConn = 256
	// maxChain is the largest number of requests in one compound.
	maxChain = 256
)

// Reasons to drop a connection.
var (
	errProtocol = errors.New("client broke the protocol")
	errIdle     = errors.New("no session was set up in time")
	errCrowd    = errors.New("others wanted to log on, and nobody had logged on here")
)

// conn is one connection.
type conn struct {
	srv    *Server
	born   uint64 // later ones have greater numbers
	log    *slog.Logger
	tc     transport.Conn
	sender *transport.Sender
	ctx    context.Context // of everything that runs for this connection
	cancel context.CancelCauseFunc
	over   chan struct{} // closed when run has cleaned up

	// Negotiation; written by the reading goroutine only, before any session exists.
	negotiated   bool
	wildcard     bool // answered an SMB1 negotiate with 0x02FF
	dialect      wire.Dialect
	clientGUID   wire.GUID
	clientCaps   uint32
	clientSec    uint16
	clientDials  []wire.Dialect
	serverCaps   uint32
	cipher       wire.Cipher
	signingAlg   wire.SigningAlgorithm
	hasSigning   bool // the client sent the signing context
	preauth      crypt.Preauth
	multiCredit  bool
	authorised   bool // a session was set up once: the logon timeout is over
	refused      int  // logons
	inlineCredit int  // how the inline execution of requests went lately; see inlineOK

	memory  memoryLimit
	workers workers
	last    atomic.Pointer[channel] // the session used last

	queued   atomic.Int64  // replies handed to the sender and not released yet
	released atomic.Uint64 // replies released
	quiet    atomic.Bool   // quiesce has begun

	interimMu sync.Mutex // held while an interim reply is made and queued

	mu       sync.Mutex
	window   window
	running  request // head of the ring of requests that were admitted and are not answered
	tick     uint32
	pending  map[uint64]*pendingOp // by AsyncId
	sessions map[uint64]*channel
	bindings map[uint64]*channel // that are being authenticated; of the reading goroutine
	ended    *channel            // the last session that ended
	asyncID  uint64
	draining chan struct{} // closed when nothing is running; set by quiesce
	nRunning int
}

func newConn(s *Server, tc transport.Conn) *conn {
	c := &conn{srv: s, born: s.newID(), tc: tc, over: make(chan struct{}), pending: map[uint64]*pendingOp{}, sessions: map[uint64]*channel{}, bindings: map[uint64]*channel{}}
	c.log = s.log.With("client", tc.RemoteAddr().String())
	c.ctx, c.cancel = context.WithCancelCause(s.ctx)
	c.memory.limit = s.lim.InflightConnection
	c.running.next, c.running.prev = &c.running, &c.running
	c.window.init(s.lim.MaxCredits)
	c.workers.init(c, s.lim.MaxWorkers)
	c.inlineCredit = inlineStart
	tc.SetMaxMessage(s.lim.MaxIO + 64<<10)
	c.sender = transport.NewSender(tc, transport.SenderOptions{MaxQueued: int(min(s.lim.InflightConnection, 1<<30)),
		OnError: func(err error) { c.close(err) }})
	return c
}

// abandon ends a connection that never ran.
func (c *conn) abandon() {
	c.cancel(ErrClosed)
	c.tc.Close()
	c.sender.Close()
}

// close makes the connection end; run cleans up. It may be called from anywhere.
func (c *conn) close(why error) {
	c.cancel(why)
	c.tc.Close()
}

// run is the life of the connection. It returns when all its goroutines have ended and its opens are closed.
func (c *conn) run() {
	c.log.Debug("connected")
	stopAfter := context.AfterFunc(c.ctx, func() { c.tc.Close() })
	var janitor sync.WaitGroup
	janitor.Go(c.janitor)
	err := c.read()
	if c.quiet.Load() {
		<-c.ctx.Done() // quiesce ends the connection when everything is answered
	}
	c.close(err)
	stopAfter()
	c.cancelPending()
	c.workers.close()
	c.cancelPending() // those that began meanwhile
	janitor.Wait()
	c.sender.Close()
	for _, ch := range c.takeSessions() {
		ch.drop()
	}
	close(c.over)
	cause := context.Cause(c.ctx)
	switch {
	case errors.Is(cause, io.EOF), errors.Is(cause, net.ErrClosed), errors.Is(cause, ErrClosed):
		c.log.Debug("disconnected", "why", cause)
	default:
		c.log.Info("connection ended", "why", cause)
	}
}

func (c *conn) takeSessions() []*channel {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*channel, 0, len(c.sessions))
	for _, ch := range c.sessions {
		out = append(out, ch)
	}
	clear(c.sessions)
	c.last.Store(nil)
	return out
}

// read takes messages until the connection ends.
func (c *conn) read() error {
	deadline := time.Now().Add(c.srv.lim.LogonTimeout)
	c.tc.SetReadDeadline(deadline)
	limited := true
	for {
		if err := c.memory.below(c.ctx); err != nil {
			return err
		}
		if err := c.srv.memory.below(c.ctx); err != nil {
			return err
		}
		if limited && c.authorised {
			c.tc.SetReadDeadline(time.Time{})
			limited = false
		}
		n, err := c.tc.NextMessage()
		if err != nil {
			if limited && errors.Is(err, os.ErrDeadlineExceeded) {
				return errIdle
			}
			return err
		}
		if n < 4 {
			return fmt.Errorf("message of %d bytes: %w", n, errProtocol)
		}
		if !c.authorised && n > smallMessage {
			return fmt.Errorf("message of %d bytes before logon: %w", n, errProtocol)
		}
		w := getWork(c, n)
		if err := c.tc.ReadFull(w.buf.b); err != nil {
			w.abandon()
			return err
		}
		if err := c.receive(w); err != nil {
			return err
		}
	}
}

// receive looks at one message and runs it or hands it to the workers. An error ends the connection.
func (c *conn) receive(w *work) error {
	b := w.buf.b
	switch le.Uint32(b) {
	case wire.ProtocolSMB2:
		w.msg = b
	case wire.ProtocolSMB1:
		defer w.abandon()
		return c.negotiateSMB1(b)
	case wire.ProtocolTransform:
		if err := c.findTransformSession(w); err != nil {
			w.abandon()
			return err
		}
		if len(b) > smallMessage {
			c.workers.submit(w)
			return nil
		}
		if err := w.open(); err != nil {
			w.abandon()
			return err
		}
	default:
		w.abandon()
		return fmt.Errorf("protocol identifier %#08x: %w", le.Uint32(b), errProtocol)
	}
	run, err := c.admit(w)
	if err != nil || !run {
		w.abandon()
		return err
	}
	switch w.first {
	case wire.CmdNegotiate, wire.CmdSessionSetup:
		// In the order of arrival: hashes and keys depend on it.
		return w.run()
	}
	w.acquireEarly()
	if c.inlineOK(w) {
		return w.runInline()
	}
	c.workers.submit(w)
	return nil
}

// findTransformSession finds the session of an encrypted message.
func (c *conn) findTransformSession(w *work) error {
	if c.dialect < wire.Dialect300 {
		return fmt.Errorf("encrypted message with dialect %v: %w", c.dialect, errProtocol)
	}
	id, size, ok := crypt.SealedFor(w.buf.b)
	if !ok || uint64(size) != uint64(len(w.buf.b)-wire.TransformHeaderSize) {
		return fmt.Errorf("encrypted message of %d bytes says %d: %w", len(w.buf.b), size, errProtocol)
	}
	ch := c.channel(id)
	if ch == nil || ch.sn.state.Load() == sessionInProgress || ch.sn.sealer == nil {
		return fmt.Errorf("encrypted message for unknown session %#x: %w", id, errProtocol)
	}
	w.transform = ch.sn
	return nil
}

// channel finds a session of this connection.
func (c *conn) channel(id uint64) *channel {
	if ch := c.last.Load(); ch != nil && ch.sn.id == id {
		return ch
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.sessions[id]
	if ch != nil {
		c.last.Store(ch)
	} else if c.ended != nil && c.ended.sn.id == id {
		return c.ended
	}
	return ch
}

// admit checks the structure of the message and its identifiers against the window, and notes its requests as running. run is false when
// there is nothing to run (CANCEL). [MS-SMB2] 3.3.5.2.2 to 3.3.5.2.7
func (c *conn) admit(w *work) (run bool, err error) {
	msg := w.msg
	for i := 0; ; i++ {
		h, err := wire.ParseHeader(msg)
		if err != nil {
			return false, err
		}
		if h.Command > wire.CmdOplockBreak || h.Flags&wire.FlagServerToRedir != 0 || i >= maxChain {
			return false, fmt.Errorf("command %#x, flags %#x, request %d of a compound: %w", uint16(h.Command), h.Flags, i+1, errProtocol)
		}
		if h.Flags&wire.FlagAsync != 0 && h.Command != wire.CmdCancel {
			return false, fmt.Errorf("asynchronous %v request: %w", h.Command, errProtocol)
		}
		if i == 0 {
			w.first, w.head = h.Command, h
			w.orphan = h.Flags&wire.FlagRelated != 0
			if h.Command == wire.CmdCancel {
				return false, c.receiveCancel(w, &h)
			}
			if !c.negotiated && h.Command != wire.CmdNegotiate {
				return false, fmt.Errorf("%v before NEGOTIATE: %w", h.Command, errProtocol)
			}
		} else {
			if h.Command == wire.CmdNegotiate || h.Command == wire.CmdSessionSetup || h.Command == wire.CmdCancel {
				return false, fmt.Errorf("%v inside a compound: %w", h.Command, errProtocol)
			}
		}
		if !c.takeID(&h) {
			return false, fmt.Errorf("%v with message id %d, charge %d, outside of the granted credits: %w", h.Command, h.MessageID, h.CreditCharge, errProtocol)
		}
		w.ids++
		if h.NextCommand == 0 {
			break
		}
		if h.NextCommand&7 != 0 || h.NextCommand < wire.HeaderSize || uint64(h.NextCommand)+wire.HeaderSize > uint64(len(msg)) {
			return false, fmt.Errorf("compound says that the next request is at %d of %d: %w", h.NextCommand, len(msg), errProtocol)
		}
		msg = msg[h.NextCommand:]
	}
	c.note(w)
	return true, nil
}

// takeID marks the identifiers of a request as used.
func (c *conn) takeID(h *wire.Header) bool {
	charge := 1
	if c.multiCredit && h.CreditCharge > 1 {
		charge = int(h.CreditCharge)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.window.take(h.MessageID, charge)
}

// note puts the request into the ring of running ones.
func (c *conn) note(w *work) {
	r := &w.req
	w.admitted = true
	// The reply is counted now, so that what is queued cannot grow beyond the limits when it runs.
	w.outSize = replyEstimate(w.msg)
	w.addCost(bufferCost(w.outSize))
	c.mu.Lock()
	r.next, r.prev = &c.running, c.running.prev
	r.prev.next, c.running.prev = r, r
	r.firstID = w.head.MessageID
	r.tick = c.tick
	r.asyncID, r.interim, r.cancelled = 0, false, false
	c.nRunning++
	c.mu.Unlock()
}

// forget is the opposite of note.
func (c *conn) forget(r *request) {
	r.prev.next, r.next.prev = r.next, r.prev
	r.next, r.prev = nil, nil
	c.nRunning--
	if c.nRunning == 0 && c.draining != nil {
		close(c.draining)
		c.draining = nil
	}
}

// quiesce waits until nothing is running and all replies are written, or ctx is done.
func (c *conn) quiesce(ctx context.Context) {
	c.quiet.Store(true)
	c.tc.SetReadDeadline(time.Unix(1, 0)) // no more requests
	c.cancelPending()
	c.mu.Lock()
	var ch chan struct{}
	if c.nRunning > 0 {
		if c.draining == nil {
			c.draining = make(chan struct{})
		}
		ch = c.draining
	}
	c.mu.Unlock()
	if ch != nil {
		select {
		case <-ch:
		case <-ctx.Done():
		case <-c.ctx.Done():
		}
	}
	_ = c.sender.Drain(ctx)
	c.close(ErrClosed)
}

// janitor sends interim replies for slow requests and ends the connection when the client does not take its replies.
func (c *conn) janitor() {
	t := time.NewTicker(janitorTick)
	defer t.Stop()
	var seen uint64
	var stalled time.Duration
	for {
		select {
		case <-c.ctx.Done():
			return
		case now := <-t.C:
			c.interims()
			c.expireSessions(now)
			if n := c.released.Load(); c.queued.Load() == 0 || n != seen {
				seen, stalled = n, 0
			} else if stalled += janitorTick; stalled >= c.srv.lim.WriteTimeout {
				c.close(fmt.Errorf("client takes no replies for %v: %w", stalled, errProtocol))
			}
		}
	}
}

// expireSessions makes sessions whose time is over authenticate again. [MS-SMB2] 3.3.6.3
func (c *conn) expireSessions(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range c.sessions {
		if end := ch.sn.ends.Load(); end != 0 && end <= now.UnixNano() {
			ch.sn.expire()
		}
	}
}

// authorise notes that somebody has logged on: the connection is not one of the many that anybody can make any more. It is called by the reading goroutine.
func (c *conn) authorise() {
	c.authorised = true
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetHalfOpen(c)
}

// makeInterim makes the STATUS_PENDING reply to r, the only request of its message. interimMu and mu are held.
func (c *conn) makeInterim(r *request) *work {
	c.asyncID++
	r.asyncID, r.interim = c.asyncID, true
	h := &r.w.head
	return c.interimReply(h, r.asyncID, c.grant(h), r.w)
}

// interims sends STATUS_PENDING for requests that have been running for long. [MS-SMB2] 3.3.4.2
func (c *conn) interims() {
	c.interimMu.Lock()
	defer c.interimMu.Unlock()
	var replies []*work
	c.mu.Lock()
	c.tick++
	for r := c.running.next; r != &c.running; r = r.next {
		if c.tick-r.tick < 2 || r.asyncID != 0 || r.w.ids != 1 || r.w.first == wire.CmdSessionSetup || r.w.first == wire.CmdNegotiate {
			continue
		}
		replies = append(replies, c.makeInterim(r))
	}
	c.mu.Unlock()
	for _, w := range replies {
		w.send()
	}
}
