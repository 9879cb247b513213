package client

// Abort ends the connection at once, without a word to the server, which so keeps the opens that outlive a lost connection. Requests that are in flight fail. It
// waits for all goroutines of the connection.
func (c *Conn) Abort() {
	c.fail(ErrClosed)
	c.wg.Wait()
}
