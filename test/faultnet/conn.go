package faultnet

import (
	"errors"
	"net"
	"sync"
	"time"
)

// ErrCut is what Read and Write return on a connection that faultnet has cut. The peer sees an ordinary end of the connection.
var ErrCut = errors.New("faultnet: connection cut")

// Faults describes what happens to one direction of a connection. The zero value lets everything pass.
type Faults struct {
	// Split is the largest number of bytes that pass at a time, so that the reader sees short reads. 0 leaves them as they come.
	Split int
	// Delay passes before each call of Read (after data has arrived) or Write. It limits throughput; Relay has a delay that does not.
	Delay time.Duration
	// CutAfter cuts the connection, both directions, once that many bytes have passed in this direction. The bytes before pass. 0 is never.
	CutAfter int64
	// StallAfter lets nothing pass after that many bytes until Resume or Close is called. 0 is never.
	StallAfter int64
	// Garble may change p, which is what passes from stream offset off on. It must not keep p.
	Garble func(off int64, p []byte)
}

// FlipBit returns a Garble function that inverts one bit of the stream: bit 0..7 of the byte at offset at.
func FlipBit(at int64, bit uint) func(off int64, p []byte) {
	return func(off int64, p []byte) {
		if i := at - off; i >= 0 && i < int64(len(p)) {
			p[i] ^= 1 << (bit & 7)
		}
	}
}

// Conn is a net.Conn with faults. Its methods may be called at the same time as those of any net.Conn.
type Conn struct {
	net.Conn
	read, write direction

	once   sync.Once
	closed chan struct{}

	mu      sync.Mutex
	cut     bool
	stalled chan struct{} // open while stalled; nil when not
	resumed bool          // Resume was called: StallAfter no longer applies
}

type direction struct {
	mu sync.Mutex // one call at a time, so that offsets are those of the stream
	Faults
	passed int64
}

// Wrap returns c with the faults for what is read from it and what is written to it.
func Wrap(c net.Conn, read, write Faults) *Conn {
	return &Conn{Conn: c, read: direction{Faults: read}, write: direction{Faults: write}, closed: make(chan struct{})}
}

// Cut breaks the connection now. Reads and writes on this side fail with ErrCut. It may be called more than once.
func (c *Conn) Cut() {
	c.mu.Lock()
	c.cut = true
	c.mu.Unlock()
	c.shut()
	if t, ok := c.Conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // the peer sees a reset, as from a host that went away
	}
	_ = c.Conn.Close()
}

// Close closes the connection and ends every stalled or delayed call.
func (c *Conn) Close() error {
	c.shut()
	return c.Conn.Close()
}

func (c *Conn) shut() { c.once.Do(func() { close(c.closed) }) }

// Stall lets nothing pass in either direction until Resume. A call that is already waiting for the network ends as it would.
func (c *Conn) Stall() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stalled == nil {
		c.stalled = make(chan struct{})
	}
}

// Resume ends a stall, of Stall or of StallAfter.
func (c *Conn) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resumed = true
	if c.stalled != nil {
		close(c.stalled)
		c.stalled = nil
	}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	d := &c.read
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.room(c, len(p))
	if err != nil {
		return 0, err
	}
	n, err = c.Conn.Read(p[:n])
	if n > 0 {
		if werr := c.hold(d.Delay); werr != nil {
			return 0, werr
		}
		if d.Garble != nil {
			d.Garble(d.passed, p[:n])
		}
		d.passed += int64(n)
	}
	return n, c.why(err)
}

// Write implements net.Conn. p is not changed by Garble.
func (c *Conn) Write(p []byte) (int, error) {
	d := &c.write
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.Split == 0 && d.Delay == 0 && d.CutAfter == 0 && d.StallAfter == 0 && d.Garble == nil {
		if _, err := d.room(c, len(p)); err != nil {
			return 0, err
		}
		n, err := c.Conn.Write(p)
		d.passed += int64(n)
		return n, c.why(err)
	}
	var done int
	for done < len(p) {
		n, err := d.room(c, len(p)-done)
		if err == nil {
			err = c.hold(d.Delay)
		}
		if err != nil {
			return done, err
		}
		part := p[done : done+n]
		if d.Garble != nil {
			part = append([]byte(nil), part...)
			d.Garble(d.passed, part)
		}
		n, err = c.Conn.Write(part)
		done += n
		d.passed += int64(n)
		if err != nil {
			return done, c.why(err)
		}
	}
	// A cut right after the last byte of this call shows at once, so that the peer does not wait for a later call.
	if d.CutAfter > 0 && d.passed >= d.CutAfter {
		c.Cut()
	}
	return done, nil
}

// room returns how many of n bytes may pass now, after waiting for a stall to end; it cuts the connection when its time has come.
func (d *direction) room(c *Conn, n int) (int, error) {
	if d.StallAfter > 0 && d.passed >= d.StallAfter {
		c.mu.Lock()
		if !c.resumed && c.stalled == nil {
			c.stalled = make(chan struct{})
		}
		c.mu.Unlock()
	}
	c.mu.Lock()
	stalled := c.stalled
	c.mu.Unlock()
	if stalled != nil {
		select {
		case <-stalled:
		case <-c.closed:
			return 0, c.why(net.ErrClosed)
		}
	}
	if d.CutAfter > 0 {
		left := d.CutAfter - d.passed
		if left <= 0 {
			c.Cut()
			return 0, ErrCut
		}
		n = int(min(int64(n), left))
	}
	if d.StallAfter > d.passed {
		n = int(min(int64(n), d.StallAfter-d.passed))
	}
	if d.Split > 0 {
		n = min(n, d.Split)
	}
	return n, nil
}

// hold waits for the delay, or until the connection is closed.
func (c *Conn) hold(delay time.Duration) error {
	if delay <= 0 {
		return nil
	}
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-c.closed:
		return c.why(net.ErrClosed)
	}
}

// why says ErrCut for an error that the cut has caused.
func (c *Conn) why(err error) error {
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		return ErrCut
	}
	return err
}
