package client

import (
	"context"

	"vdbridge/smb/wire"
)

// Abort ends the connection at once, without a word to the server, which so keeps the opens that outlive a lost connection. The sessions that have begun on it
// end, and their other connections with them. Requests that are in flight fail. It waits for all goroutines of the connection and the sessions.
func (c *Conn) Abort() {
	for _, s := range c.begun() {
		s.Abort()
	}
	c.fail(ErrClosed)
	c.wg.Wait()
}

// begun are the sessions that have begun on the connection.
func (c *Conn) begun() []*Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*Session
	for _, ch := range c.sessions {
		if ch.s.c == c {
			list = append(list, ch.s)
		}
	}
	return list
}

// Abort ends the session at once, without a word to the server, and all its connections, also the one on which it began. It waits for their goroutines.
func (s *Session) Abort() {
	s.closed.Store(true)
	s.end(ErrClosed)
	for _, c := range append(s.release(), s.c) {
		c.fail(ErrClosed)
		c.wg.Wait()
	}
	s.wg.Wait()
}

// release takes the session off its connections once it has ended, and returns those that were bound to it.
func (s *Session) release() []*Conn {
	s.mu.Lock()
	bound := s.bound
	s.bound = nil
	s.mu.Unlock()
	for _, c := range bound {
		s.leave(c)
	}
	s.leave(s.c)
	return bound
}

func (s *Session) leave(c *Conn) {
	c.mu.Lock()
	delete(c.sessions, s.id)
	c.last = nil
	c.mu.Unlock()
}

// Echo asks the server for a sign of life, on the channel that has the least to do.
func (s *Session) Echo(ctx context.Context) error {
	a := attempt{s: s, repeat: always}
	for {
		r := s.request(wire.CmdEcho, 0, false, &a)
		r.unhindered = true
		r.out = wire.AppendEmptyRequest(r.out)
		err := a.exchange(ctx, r, 1)
		if err == nil {
			err = a.simple(r, wire.ParseEmptyResponse)
		}
		if err == nil {
			return nil
		}
		if err = a.again(ctx, err); err != nil {
			return opError("echo", "", err)
		}
	}
}
