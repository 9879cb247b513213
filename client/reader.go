package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"vdbridge/smb/crypt"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

const (
	// handshakeLimit is the largest message in bytes that is accepted before the server has told its own limits.
	handshakeLimit = 256 << 10
	// openInline is the length up to which the reader opens a sealed message itself: waking somebody else takes about as long.
	openInline = 16<<10 + 512
	// peekSize covers header and fixed part of IOCTL and READ replies.
	peekSize = wire.HeaderSize + wire.IoctlResponseFixed
	// noMessageID marks what is no reply. [MS-SMB2] 3.2.5.1.2
	noMessageID = ^uint64(0)
)

// readLoop receives until the connection ends.
func (c *Conn) readLoop() {
	err := c.receive()
	c.fail(err)
	close(c.sealed)
	c.tx.Close()
}

func (c *Conn) receive() error {
	for {
		n, err := c.tr.NextMessage()
		if err == io.EOF {
			return errors.New("server closed the connection")
		}
		if err != nil {
			return err
		}
		c.received.Add(1)
		if n < 4 {
			return fmt.Errorf("%w: message of %d bytes", ErrProtocol, n)
		}
		head, err := c.tr.Peek(min(n, peekSize))
		if err != nil {
			return err
		}
		switch p := binary.LittleEndian.Uint32(head); p {
		case wire.ProtocolSMB2:
			if err := c.receivePlain(n); err != nil {
				return err
			}
		case wire.ProtocolTransform:
			if err := c.receiveSealed(head, n); err != nil {
				return err
			}
		case wire.ProtocolSMB1:
			return fmt.Errorf("%w: it answers in SMB1, which is not safe; enable SMB 3 on the server", ErrUnsupportedServer)
		default:
			return fmt.Errorf("%w: message begins with % x", ErrProtocol, head[:4])
		}
	}
}

// receivePlain handles the current message of n bytes, which is not sealed: one reply, or several that are compounded. [MS-SMB2] 3.2.5.1.9
func (c *Conn) receivePlain(n int) error {
	defer c.release() // here and not where it is needed: a defer in a loop allocates
	for first := true; n > 0; first = false {
		head, err := c.tr.Peek(min(n, peekSize))
		if err != nil {
			return err
		}
		h, err := wire.ParseHeader(head)
		if err != nil {
			return protocolError(err)
		}
		size := n
		if h.NextCommand != 0 {
			if size, err = elementSize(&h, n); err != nil {
				return err
			}
			head = head[:min(len(head), size)]
			if first {
				// Those who are woken together can send together.
				c.holding = true
			}
		}
		n -= size
		if h.Flags&wire.FlagServerToRedir == 0 {
			return fmt.Errorf("%w: server sent a request: %s", ErrProtocol, h.Command)
		}
		done, err := c.receiveDirect(&h, head, size)
		if err != nil {
			return err
		}
		if done {
			continue
		}
		f, err := c.readFrame(size)
		if err != nil {
			return err
		}
		err = c.deliver(f, &h, f.b, false)
		f.unref()
		if err != nil {
			return err
		}
	}
	return nil
}

// elementSize returns the length of a message in a compound of which n bytes are left.
func elementSize(h *wire.Header, n int) (int, error) {
	next := int64(h.NextCommand)
	if next < wire.HeaderSize || next%8 != 0 || next > int64(n-wire.HeaderSize) {
		return 0, fmt.Errorf("%w: NextCommand %d in %d bytes", ErrProtocol, next, n)
	}
	return int(next), nil
}

// readFrame reads the whole current message.
func (c *Conn) readFrame(n int) (*frame, error) {
	f := c.frames.get(n)
	if err := c.tr.ReadFull(f.b); err != nil {
		f.unref()
		return nil, err
	}
	return f, nil
}

// payloadAt returns where the payload of a READ or IOCTL reply lies; size is 0 for others, and for those without. head is the beginning of
// the reply of n bytes.
func payloadAt(h *wire.Header, head []byte, n int) (off, size int, err error) {
	switch status := ntstatus.Status(h.Status); {
	case h.Command == wire.CmdRead && status == ntstatus.Success:
		r, err := wire.ParseReadResponse(head, n)
		if err != nil {
			return 0, 0, protocolError(err)
		}
		return int(r.DataOffset), int(r.DataLength), nil
	case h.Command == wire.CmdIoctl && (status == ntstatus.Success || status == ntstatus.BufferOverflow):
		r, at, err := wire.ParseIoctlResponseFixed(head, n)
		if err != nil && status == ntstatus.BufferOverflow {
			return 0, 0, nil // perhaps the warning has the form of an error
		}
		if err != nil {
			return 0, 0, protocolError(err)
		}
		return at, int(r.OutputCount), nil
	}
	return 0, 0, nil
}

// receiveDirect handles the replies whose payload the caller has a place for: it goes there from the socket. It says false if the reply must be
// handled in the general way. head is the beginning of the reply of n bytes.
func (c *Conn) receiveDirect(h *wire.Header, head []byte, n int) (bool, error) {
	off, size, err := payloadAt(h, head, n)
	if err != nil {
		return false, err
	}
	tail := n - off - size
	if size == 0 || off > prefixSize || tail >= 8 {
		return false, nil // without payload, or oddly placed
	}
	c.mu.Lock()
	r := c.table[h.MessageID]
	if r == nil || r.cmd != h.Command || r.state != stateInFlight || !r.direct || size > len(r.dst1)+len(r.dst2) {
		if r != nil && r.state == stateAbandoned && r.cmd == h.Command {
			woken, dry := c.settle(r, h)
			c.mu.Unlock()
			r.unref()
			if err := c.settled(woken, dry); err != nil {
				return true, err
			}
			f, err := c.readFrame(n) // it goes nowhere
			if err == nil {
				f.unref()
			}
			return true, err
		}
		c.mu.Unlock()
		return false, nil
	}
	r.state = stateFilling
	woken, dry := c.settle(r, h)
	c.mu.Unlock()
	err = c.settled(woken, dry)

	r.h = *h
	r.n = size
	r.prefix = r.prefixB[:off]
	if err == nil {
		err = c.tr.ReadFull(r.prefix)
	}
	m := min(size, len(r.dst1))
	if err == nil {
		err = c.tr.ReadFull(r.dst1[:m])
	}
	if err == nil && size > m {
		err = c.tr.ReadFull(r.dst2[:size-m])
	}
	if err == nil && tail > 0 {
		r.tail = r.tailB[:tail]
		err = c.tr.ReadFull(r.tail)
	}
	if err != nil {
		c.fail(err) // first, so that everyone gets the same error
		r.err = c.Err()
	}
	if c.holding {
		c.held = append(c.held, r)
	} else {
		r.done <- struct{}{}
	}
	return true, err
}

// release wakes those whose replies came in one message.
func (c *Conn) release() {
	c.holding = false
	for i, r := range c.held {
		c.held[i] = nil
		r.done <- struct{}{}
	}
	c.held = c.held[:0]
}

// settle takes r out of the table and grants its credits. It needs mu. The result is for settled.
func (c *Conn) settle(r *request, h *wire.Header) (woken *request, dry bool) {
	delete(c.table, r.id)
	c.w.grant(r, int(h.Credits), true)
	return c.admit()
}

// settled does what settle leaves to be done without mu.
func (c *Conn) settled(woken *request, dry bool) error {
	wake(woken)
	if dry {
		return fmt.Errorf("%w: %w", ErrProtocol, errNoCredits)
	}
	return nil
}

// receiveSealed reads the current message, which is sealed, and opens it or has it opened. [MS-SMB2] 3.2.5.1.1.1
func (c *Conn) receiveSealed(head []byte, n int) error {
	id, size, ok := crypt.SealedFor(head)
	if !ok || n < crypt.SealRoom+wire.HeaderSize || int(size) != n-crypt.SealRoom {
		return fmt.Errorf("%w: sealed message of %d bytes says to hold %d", ErrProtocol, n, size)
	}
	ch := c.channel(id)
	if ch == nil || ch.s.sealer == nil {
		return fmt.Errorf("%w: sealed message for an unknown session %#x", ErrProtocol, id)
	}
	f, err := c.readFrame(n)
	if err != nil {
		return err
	}
	if n <= openInline {
		return c.open(sealedFrame{f, ch})
	}
	// When all openers are busy this waits, and so bounds the memory of messages that are not opened yet.
	c.sealed <- sealedFrame{f, ch}
	return nil
}

// channel returns the channel of the session with the id, or nil.
func (c *Conn) channel(id uint64) *channel {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == nil || c.last.s.id != id {
		c.last = c.sessions[id]
	}
	return c.last
}

// openLoop opens large sealed messages. It goes on after the connection has failed, so that the reader can always hand one over.
func (c *Conn) openLoop() {
	for m := range c.sealed {
		if err := c.open(m); err != nil {
			c.fail(err)
		}
	}
}

// open opens a sealed message and hands out what is in it. It gives up the frame.
func (c *Conn) open(m sealedFrame) error {
	defer m.f.unref()
	msg, err := m.ch.s.sealer.Open(m.f.b)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSecurity, err)
	}
	return c.dispatch(m.f, msg, m.ch.s)
}

// dispatch hands out the replies in b, which lies in f and was sealed for s: one, or several that are compounded. [MS-SMB2] 3.2.5.1.9
func (c *Conn) dispatch(f *frame, b []byte, s *Session) error {
	for {
		h, err := wire.ParseHeader(b)
		if err != nil {
			return protocolError(err)
		}
		msg := b
		if h.NextCommand != 0 {
			next, err := elementSize(&h, len(b))
			if err != nil {
				return err
			}
			msg = b[:next:next]
		}
		if h.SessionID != s.id {
			return fmt.Errorf("%w: message of session %#x sealed for %#x", ErrSecurity, h.SessionID, s.id)
		}
		if h.Flags&wire.FlagServerToRedir == 0 {
			return fmt.Errorf("%w: server sent a request: %s", ErrProtocol, h.Command)
		}
		if err := c.deliver(f, &h, msg, true); err != nil {
			return err
		}
		if h.NextCommand == 0 {
			return nil
		}
		b = b[len(msg):]
	}
}

// deliver hands one reply to whoever waits for it.
func (c *Conn) deliver(f *frame, h *wire.Header, msg []byte, opened bool) error {
	if h.MessageID == noMessageID {
		c.notified(h, msg)
		return nil
	}
	c.mu.Lock()
	r := c.table[h.MessageID]
	if r == nil {
		used := h.MessageID < c.w.next && h.Command != wire.CmdCancel // to which some servers may reply, though they should not
		c.mu.Unlock()
		if used {
			// Every request stays in the table until its reply is there, so this one has come twice.
			return fmt.Errorf("%w: %s reply to message id %d, which has been answered already", ErrSecurity, h.Command, h.MessageID)
		}
		c.log.Debug("dropped a reply that nobody waits for", "server", c.addr, "command", h.Command, "message_id", h.MessageID)
		return nil
	}
	if r.cmd != h.Command {
		c.mu.Unlock()
		return fmt.Errorf("%w: %s reply to a %s request", ErrProtocol, h.Command, r.cmd)
	}
	if ntstatus.Status(h.Status) == ntstatus.Pending {
		if h.Flags&wire.FlagAsync != 0 {
			r.async, r.asyncID = true, h.AsyncID
		}
		c.w.grant(r, int(h.Credits), false)
		woken, dry := c.admit()
		c.mu.Unlock()
		return c.settled(woken, dry)
	}
	abandoned := r.state == stateAbandoned
	place := opened && r.direct && !abandoned
	r.state = stateDelivered
	woken, dry := c.settle(r, h)
	c.mu.Unlock()
	err := c.settled(woken, dry)

	r.h, r.msg, r.frame, r.opened = *h, msg, f, opened
	f.ref()
	if abandoned {
		c.orphan(r)
		return err
	}
	if place && r.place() {
		// The frame is free for the next message, however long the caller takes to wake up.
		f.unref()
	}
	r.done <- struct{}{}
	return err
}

// place copies the payload of a reply that came sealed to where it belongs, and gives up the message. It says false if the caller must see
// the whole message.
func (r *request) place() bool {
	off, size, err := payloadAt(&r.h, r.msg, len(r.msg))
	if err != nil || size == 0 || size > len(r.dst1)+len(r.dst2) {
		return false
	}
	data := r.msg[off : off+size]
	m := copy(r.dst1, data)
	copy(r.dst2, data[m:])
	r.n = size
	r.msg, r.frame = nil, nil
	return true
}

// orphan disposes of the reply to an abandoned request. What it has opened at the server is closed again. It takes over r.
func (c *Conn) orphan(r *request) {
	if ntstatus.Status(r.h.Status) != ntstatus.Success || r.cmd != wire.CmdCreate && r.cmd != wire.CmdTreeConnect {
		r.unref()
		return
	}
	// The reader, who calls this, counts as long as it runs.
	c.wg.Go(func() {
		defer r.unref()
		if err := r.verify(); err != nil {
			c.fail(err)
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		s := r.ch.s
		switch r.cmd {
		case wire.CmdCreate:
			if v, err := wire.ParseCreateResponse(r.msg); err == nil {
				_ = s.closeFile(ctx, r.tree, r.seal, v.FileID, r.base)
			}
		case wire.CmdTreeConnect:
			_ = s.disconnectTree(ctx, r.h.TreeID, r.seal)
		}
	})
}

// expect returns an error unless the reply has status Success and parse accepts it.
func (r *request) expect(op, path string, parse func([]byte) error) error {
	if s := ntstatus.Status(r.h.Status); s != ntstatus.Success {
		return statusError(op, path, s)
	}
	if err := parse(r.msg); err != nil {
		return r.c.malformed(op, path, err)
	}
	return nil
}

// malformed ends the connection because of a reply that cannot be understood, and returns the error for the caller.
func (c *Conn) malformed(op, path string, err error) error {
	c.fail(protocolError(err))
	return wrap(op, path, c.Err())
}

func protocolError(err error) error { return fmt.Errorf("%w: %w", ErrProtocol, err) }
