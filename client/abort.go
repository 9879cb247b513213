package client

import "slices"

// Abort ends the connection at once, without a word to the server, which so keeps the opens that outlive a lost connection. Requests that are in flight fail. It
// waits for all goroutines of the connection.
func (c *Conn) Abort() {
	c.fail(ErrClosed)
	c.wg.Wait()
}

// Abort ends the session with all its connections in the same way.
func (s *Session) Abort() {
	s.closed.Store(true)
	s.end(ErrClosed)
	s.c.fail(ErrClosed)
	s.wg.Wait()
	s.mu.Lock()
	bound := slices.Clone(s.bound)
	s.bound = nil
	s.mu.Unlock()
	for _, c := range append(bound, s.c) {
		c.Abort()
	}
}
