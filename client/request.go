package client

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"vdbridge/smb/crypt"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
)

// reqState is what a request waits for. Conn.mu guards it.
//
//	new ──► queued ──► inFlight ──► filling ──► (reply delivered)
//	  └───────────────────┘  │ └──────────────► (reply delivered)
//	                         └──► abandoned ──► gone
type reqState uint8

const (
	stateNew       reqState = iota
	stateQueued             // waits for credits
	stateInFlight           // in the table
	stateFilling            // out of the table; the reader moves the payload to where it belongs
	stateDelivered          // out of the table; done will be or has been signalled
	stateAbandoned          // in the table, but nobody waits; the reader owns it
)

// prefixSize is how much of a reply may come before its payload for the payload to be read straight into place. READ and IOCTL replies have
// 80 and 112 bytes.
const prefixSize = 256

const (
	// copyPayload is the length in bytes up to which the payload of a request is copied behind its header. Above it, the caller's
	// memory goes to the network directly, and a cancelled call must wait until the network has let go of it.
	copyPayload = 64 << 10
	// sendPatience is how long a cancelled call waits for that. A server that takes nothing for so long is given up.
	sendPatience = 3 * time.Second
)

// request is one SMB2 request on its way, and its reply. Requests are pooled with all they need.
//
// Two parties use it at the same time: whoever waits for the reply (after abandon: the reader), and the Sender until it is written. Each
// gives up its use by unref.
type request struct {
	c    *Conn
	cmd  wire.Command
	ch   *channel // nil before there is a session
	tree uint32
	id   uint64
	base uint16 // of the open's channel sequence
	seq  uint16 // channel sequence
	cost int64  // in Conn.load

	charge     int // credits
	asked      int // credits asked for and not granted yet
	want       int // credits
	divisible  bool
	busy       bool     // others are in flight
	unhindered bool     // sent also while others wait for the session to be authenticated again
	joinable   bool     // small, and worth being sent together with others
	next       *request // in window's queue
	prev       *request
	state      reqState
	async      bool
	asyncID    uint64

	// What is sent: out is header and body, payload lies in in1 and in2, or has been copied to out.
	out      []byte
	in1, in2 []byte
	segs     [4][]byte // what the Sender gets
	sealed   *frame    // the sealed message, if it is sealed
	seal     bool
	sign     bool
	flags    uint32

	// Where the payload of the reply goes if it comes alone and as asked for.
	direct     bool
	dst1, dst2 []byte

	// The reply.
	h       wire.Header
	msg     []byte // whole message, in frame; nil if it was taken apart into prefix and dst
	frame   *frame
	opened  bool   // came sealed
	prefix  []byte // in prefixBuf
	n       int    // payload bytes in dst1 and dst2
	tail    []byte // padding behind the payload, in tailB
	rsegs   [4][]byte
	err     error
	prefixB [prefixSize]byte
	tailB   [8]byte

	ready chan struct{} // capacity 1: credits have been given, or err is set
	done  chan struct{} // capacity 1: reply or err is there

	refs atomic.Int32
	sent atomic.Int32  // sentNot, sentDone, sentAwaited
	gone chan struct{} // capacity 1: the Sender has let go, if that was awaited
}

const (
	sentNot int32 = iota
	sentDone
	sentAwaited
)

// request returns a request on the channel for the tree; ch may be nil.
func (c *Conn) request(cmd wire.Command, ch *channel, tree uint32) *request {
	r, _ := c.requests.Get().(*request)
	if r == nil {
		r = &request{ready: make(chan struct{}, 1), done: make(chan struct{}, 1), gone: make(chan struct{}, 1)}
	}
	r.c, r.cmd, r.ch, r.tree = c, cmd, ch, tree
	r.base, r.seq, r.cost = 0, 0, 0
	r.refs.Store(1)
	r.sent.Store(sentDone)
	r.state = stateNew
	r.async, r.asyncID, r.asked, r.flags = false, 0, 0, 0
	r.seal, r.sign, r.direct, r.opened, r.joinable, r.unhindered = false, false, false, false, false, false
	r.out = append(r.out[:0], zeroHeader[:]...)
	r.err = nil
	r.n = 0
	return r
}

var zeroHeader [wire.HeaderSize]byte

// maxKeptOut is how large a request's own buffer may be for it to be kept.
const maxKeptOut = 72 << 10

func (r *request) unref() {
	switch n := r.refs.Add(-1); {
	case n < 0:
		panic("client: request released twice")
	case n > 0:
		return
	}
	if r.frame != nil {
		r.frame.unref()
	}
	if r.sealed != nil {
		r.sealed.unref()
	}
	r.frame, r.sealed, r.msg, r.prefix, r.tail = nil, nil, nil, nil, nil
	r.in1, r.in2, r.dst1, r.dst2 = nil, nil, nil, nil
	r.segs, r.rsegs = [4][]byte{}, [4][]byte{}
	r.ch = nil
	if r.cost != 0 {
		r.c.load.Add(-r.cost)
	}
	if cap(r.out) <= maxKeptOut {
		r.c.requests.Put(r)
	}
}

// Release implements transport.Releaser: the Sender has let go of the message.
func (r *request) Release() {
	if r.sent.Swap(sentDone) == sentAwaited {
		r.gone <- struct{}{}
	}
	r.unref()
}

// awaitSent returns when the Sender does not use the memory of the request any more.
func (r *request) awaitSent() {
	if !r.sent.CompareAndSwap(sentNot, sentAwaited) {
		return
	}
	t := time.NewTimer(sendPatience)
	defer t.Stop()
	select {
	case <-r.gone:
	case <-t.C:
		r.c.fail(fmt.Errorf("server has not taken what was sent to it for %v", sendPatience))
		<-r.gone
	}
}

// acquire takes want credits and message ids for r and puts it into the table. It waits, in turn, until there are enough; a divisible
// request may get fewer (r.charge) when the server does not grant as many at all. Once acquire has returned nil, r
// must be sent. After an error, r is the caller's to unref.
func (r *request) acquire(ctx context.Context, want int, divisible bool) error {
	c := r.c
	if err := r.waitRenewed(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return c.err
	}
	if divisible {
		want = max(min(want, c.w.most()), 1)
	}
	r.want, r.divisible = want, divisible
	if c.w.head == nil && c.w.avail >= want {
		c.enter(r, want)
		c.mu.Unlock()
		return nil
	}
	if err := ctx.Err(); err != nil {
		c.mu.Unlock()
		return err
	}
	r.state = stateQueued
	c.w.push(r)
	woken, dry := c.admit()
	c.mu.Unlock()
	wake(woken)
	if dry {
		c.fail(fmt.Errorf("%w: %w", ErrProtocol, errNoCredits))
	}
	select {
	case <-r.ready:
		return r.err
	case <-ctx.Done():
	}
	c.mu.Lock()
	if r.state == stateQueued {
		c.w.remove(r)
		r.state = stateNew
		woken, _ = c.admit()
		c.mu.Unlock()
		wake(woken)
		return ctx.Err()
	}
	c.mu.Unlock()
	// The ids were given at that very moment, and must be used.
	<-r.ready
	return r.err
}

// enter takes n credits for r and puts it into the table. It needs mu.
func (c *Conn) enter(r *request, n int) {
	c.w.take(r, n)
	r.busy = c.w.open > 1
	r.state = stateInFlight
	if r.ch != nil {
		// Here, where the connection is known to live: what bears the number that comes with its loss is then never sent on it.
		r.seq = r.base + uint16(r.ch.s.sequence.Load())
	}
	c.table[r.id] = r
}

// admit gives credits to the first in the queue, as far as they go, and returns them as a list for wake, linked by next. dry says that
// nothing can bring any credit for those that still wait. It needs mu.
func (c *Conn) admit() (woken *request, dry bool) {
	var last *request
	for c.w.head != nil {
		r := c.w.head
		n := c.w.fits(r)
		if n == 0 && (c.w.open > 0 || c.w.avail == 0) {
			return woken, c.w.open == 0
		}
		c.w.remove(r)
		if n > 0 {
			c.enter(r, n)
		} else {
			r.state = stateNew
			r.err = fmt.Errorf("%w: %s needs %d credits, the server grants %d", errTooLarge, r.cmd, r.want, c.w.avail)
		}
		if last == nil {
			woken = r
		} else {
			last.next = r
		}
		last = r
	}
	return woken, false
}

// wake tells the requests on a list from admit.
func wake(r *request) {
	for r != nil {
		next := r.next
		r.next = nil
		r.ready <- struct{}{}
		r = next
	}
}

// send sends the request, alone or, if it may be joined and others are in flight, together with others. It comes after acquire, and does not
// wait for the peer.
func (r *request) send() {
	if r.joinable && r.busy && r.in1 == nil && r.in2 == nil {
		r.c.join(r)
		return
	}
	r.transmit()
}

// transmit sends the request alone.
func (r *request) transmit() {
	r.refs.Add(1)
	r.sent.Store(sentNot)
	r.hand()
}

// hand completes the header, protects the message and hands it to the Sender, with the use that was begun for that.
func (r *request) hand() {
	r.putHeader()
	n := 0
	for _, p := range [...][]byte{r.out, r.in1, r.in2} {
		if len(p) > 0 {
			r.segs[n] = p
			n++
		}
	}
	switch {
	case r.seal:
		if err := r.sealMessage(n); err != nil {
			r.c.fail(err) // which ends r as well
			r.Release()
			return
		}
		r.segs = [4][]byte{r.sealed.b}
		n = 1
	case r.sign:
		r.ch.signer.Sign(r.segs[:n]...)
	}
	// An error ends the connection, which tells everyone in the table.
	if err := r.c.tx.Send(context.Background(), transport.Message(r.segs[:n]), r); err != nil {
		r.c.fail(err)
	}
}

// sealMessage copies the first n segments into a frame and seals them there.
func (r *request) sealMessage(n int) error {
	size := crypt.SealRoom
	for _, p := range r.segs[:n] {
		size += len(p)
	}
	r.sealed = r.c.frames.get(size)
	at := crypt.SealRoom
	for _, p := range r.segs[:n] {
		at += copy(r.sealed.b[at:], p)
	}
	if r.in1 != nil || r.in2 != nil { // a request that was joined has none, and is not its caller's alone here
		r.in1, r.in2 = nil, nil
	}
	return r.ch.s.sealer.Seal(r.sealed.b)
}

func (r *request) putHeader() {
	h := wire.Header{
		Command:   r.cmd,
		Credits:   uint16(r.asked),
		Flags:     r.flags,
		Status:    uint32(r.seq),
		MessageID: r.id,
		TreeID:    r.tree,
		AsyncID:   r.asyncID,
	}
	if r.c.neg.multiCredit {
		h.CreditCharge = uint16(r.charge)
	}
	if r.ch != nil {
		h.SessionID = r.ch.s.id
	}
	if r.sign && !r.seal {
		h.Flags |= wire.FlagSigned
	}
	h.Put(r.out)
}

// payload adds the caller's data behind the body, by copy if they are few.
func (r *request) payload(p, q []byte) {
	if len(p)+len(q) <= copyPayload {
		r.out = append(append(r.out, p...), q...)
		return
	}
	r.in1, r.in2 = p, q
}

// wait returns when the reply is there and its signature is right, or nothing can come any more. After nil, r.h and the reply are valid until
// unref. After ErrAbandoned semantics (ok false), r belongs to the connection and must not be touched.
func (r *request) wait(ctx context.Context) (ok bool, err error) {
	select {
	case <-r.done:
	case <-ctx.Done():
		if r.abandon() {
			return false, ctx.Err()
		}
		<-r.done
	}
	if r.in1 != nil || r.in2 != nil {
		r.awaitSent()
	}
	if r.err != nil {
		return true, r.err
	}
	if err := r.verify(); err != nil {
		r.c.fail(err)
		return true, r.c.Err()
	}
	return true, nil
}

// verify checks that the reply is protected as the request was.
func (r *request) verify() error {
	if r.opened || !r.sign && !r.seal {
		return nil
	}
	if r.seal {
		return fmt.Errorf("%w: reply to a sealed %s came unsealed with %s", ErrSecurity, r.cmd, ntstatus.Status(r.h.Status))
	}
	if r.h.Flags&wire.FlagSigned == 0 {
		return fmt.Errorf("%w: reply to a signed %s came unsigned with %w", ErrSecurity, r.cmd, ntstatus.Status(r.h.Status))
	}
	n := 0
	if r.msg != nil {
		r.rsegs[0], n = r.msg, 1
	} else {
		r.rsegs[0], n = r.prefix, 1
		left := r.n
		for _, d := range [...][]byte{r.dst1, r.dst2} {
			if m := min(left, len(d)); m > 0 {
				r.rsegs[n] = d[:m]
				n++
				left -= m
			}
		}
		if len(r.tail) > 0 {
			r.rsegs[n] = r.tail
			n++
		}
	}
	if err := r.ch.signer.Verify(r.rsegs[:n]...); err != nil {
		return fmt.Errorf("%w: %w", ErrSecurity, err)
	}
	return nil
}

// abandon leaves r to the connection unless its reply is already there or arriving. It asks the server to cancel.
func (r *request) abandon() bool {
	c := r.c
	c.mu.Lock()
	if r.state != stateInFlight || c.err != nil {
		c.mu.Unlock()
		return false
	}
	r.state = stateAbandoned
	r.dst1, r.dst2 = nil, nil
	// From now on the reader may free r at any time, so what is needed of it is taken while mu is held.
	borrowed := r.in1 != nil || r.in2 != nil
	if borrowed {
		r.refs.Add(1)
	}
	cancel := c.cancelFor(r)
	c.mu.Unlock()
	c.expedite(r) // what is not sent cannot be cancelled
	cancel.send()
	cancel.unref()
	if borrowed {
		r.awaitSent()
		r.unref()
	}
	return true
}

// cancelFor returns a CANCEL of r. It has no credits, no message id of its own and no reply. [MS-SMB2] 3.2.4.24
func (c *Conn) cancelFor(r *request) *request {
	k := c.request(wire.CmdCancel, r.ch, r.tree)
	k.id, k.charge, k.asked = r.id, 0, 0
	k.sign, k.seal, k.seq = r.sign, r.seal, r.seq
	k.out = wire.AppendEmptyRequest(k.out)
	if r.async {
		k.flags = wire.FlagAsync
		k.asyncID = r.asyncID
	}
	return k
}

// roundTrip sends r, whose body is complete, with the charge, and waits for the reply. After ok, r is the caller's to unref; otherwise it must
// not be touched.
func (r *request) roundTrip(ctx context.Context, charge int) (ok bool, err error) {
	if charge > 1 {
		r.c.stockUp(ctx, charge)
	}
	if err := r.acquire(ctx, charge, false); err != nil {
		return true, err
	}
	r.send()
	return r.wait(ctx)
}

// stockUp tries to get at least n credits, by ECHO requests that ask for them, if the server has granted fewer so far.
func (c *Conn) stockUp(ctx context.Context, n int) {
	for range 8 {
		c.mu.Lock()
		enough := c.err != nil || c.w.most() >= n
		c.mu.Unlock()
		if enough || c.Echo(ctx) != nil {
			return
		}
	}
}

// sendRaw sends r.out as it is.
func (r *request) sendRaw() {
	r.segs[0] = r.out
	r.refs.Add(1)
	r.sent.Store(sentNot)
	if err := r.c.tx.Send(context.Background(), transport.Message(r.segs[:1]), r); err != nil {
		r.c.fail(err)
	}
}
