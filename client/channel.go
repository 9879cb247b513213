package client

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"vdbridge/smb/crypt"
	"vdbridge/smb/ntstatus"
)

// channel is a session's way over one connection. [MS-SMB2] 3.2.1.8
type channel struct {
	s      *Session
	c      *Conn
	signer *crypt.Signer // nil for guest and anonymous sessions
	gone   chan struct{} // closed when the session has given the channel up
	served atomic.Uint64 // requests, for Status
}

// channels are those of a session that are in use. The slice is not changed once it is stored.
type channels struct{ list []*channel }

// pick returns the channel that has the least to do. When the session has ended, it is the last one that there was, which refuses everything.
func (s *Session) pick() *channel {
	list := s.channels.Load().list
	best := list[0]
	if len(list) == 1 {
		return best
	}
	// Those that are equal take turns.
	at := int(s.turn.Add(1)) % len(list)
	best = list[at]
	low := best.c.load.Load()
	for i := 1; i < len(list) && low > 0; i++ {
		if at++; at == len(list) {
			at = 0
		}
		if n := list[at].c.load.Load(); n < low {
			best, low = list[at], n
		}
	}
	return best
}

// add takes a channel into use.
func (s *Session) add(ch *channel) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	var list []*channel
	if old := s.channels.Load(); old != nil {
		list = slices.Clone(old.list)
	}
	c := ch.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil { // or fail would find a channel that it has not told
		return c.err
	}
	c.sessions[s.id] = ch
	c.last = nil
	s.channels.Store(&channels{append(list, ch)})
	return nil
}

// lost gives up the channel, whose connection has ended with err. From then on requests bear the next channel sequence: nothing that was sent before, and is still
// under way, can change anything once the server has seen it. With its last channel the session ends. [MS-SMB2] 3.2.7.1
func (ch *channel) lost(err error) {
	s := ch.s
	s.mu.Lock()
	list := s.channels.Load().list
	if s.err != nil || !slices.Contains(list, ch) {
		s.mu.Unlock()
		return
	}
	if s.sequenced {
		s.sequence.Add(1)
	}
	if errors.Is(err, ErrSecurity) {
		s.forged.Add(1)
	}
	s.lostChannels.Add(1)
	left := len(list) - 1
	if left > 0 {
		s.channels.Store(&channels{slices.DeleteFunc(slices.Clone(list), func(o *channel) bool { return o == ch })})
	} else {
		s.endLocked(err)
	}
	s.mu.Unlock()
	close(ch.gone)
	select {
	case s.changed <- struct{}{}:
	default:
	}
	if left > 0 && !errors.Is(err, ErrClosed) {
		s.c.log.Warn("channel lost", "server", ch.c.addr, "cause", rootOf(err), "channels_left", left)
	}
}

// rootOf returns what a ConnError says beyond the address.
func rootOf(err error) error {
	if e, ok := err.(*ConnError); ok {
		return e.Err
	}
	return err
}

// endLocked ends the session because of err, which matches ErrConnectionLost. It needs mu.
func (s *Session) endLocked(err error) {
	if s.err != nil {
		return
	}
	s.err = err
	close(s.done)
	s.cancel()
}

// end ends the session because of err. Requests that are in flight go on until the server or the connection ends them.
func (s *Session) end(err error) {
	if _, ok := err.(*ConnError); !ok {
		err = &ConnError{Addr: s.c.addr, Err: err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(err)
}

// deleted is called when the server says that there is no such session.
func (s *Session) deleted() {
	if s.Err() == nil {
		s.c.log.Warn("server has ended the session", "server", s.c.addr)
	}
	s.end(ntstatus.UserSessionDeleted)
}

// Done returns a channel that is closed when the session has ended: its last connection is lost, the server has ended it, or it was closed.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err returns why the session has ended, or nil while it lives. The error matches ErrConnectionLost, and ErrClosed after Close.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// ChannelStatus describes one connection of a session.
type ChannelStatus struct {
	Addr     string // as dialled
	InFlight int64  // bytes of requests and replies that are under way or wait for credits, about
	Requests uint64 // since the channel was opened
}

// SessionStatus tells how a session fares. The counts are those since it began.
type SessionStatus struct {
	Channels []ChannelStatus // that live
	Sequence uint16          // channel sequence
	Lost     uint64          // channels
	Replayed uint64          // requests that were sent again
	Renewed  uint64          // authentications after the first
	Forged   uint64          // channels given up because a message was not authentic, or came twice
}

// Status tells how the session fares.
func (s *Session) Status() SessionStatus {
	v := SessionStatus{
		Sequence: uint16(s.sequence.Load()), Lost: s.lostChannels.Load(), Replayed: s.replayed.Load(), Renewed: uint64(s.renewals.Load()), Forged: s.forged.Load(),
	}
	if s.Err() != nil {
		return v
	}
	for _, ch := range s.channels.Load().list {
		v.Channels = append(v.Channels, ChannelStatus{ch.c.addr, ch.c.load.Load(), ch.served.Load()})
	}
	return v
}

// waitRenewed holds requests back while the session is authenticated again because it has expired. [MS-SMB2] 3.2.4.2.3.1
func (r *request) waitRenewed(ctx context.Context) error {
	if r.ch == nil {
		return nil
	}
	w := r.ch.s.renewing.Load()
	if w == nil || r.unhindered {
		return nil
	}
	return w.wait(ctx)
}
