package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	prefixSize = 4
	// Types of a NetBIOS session packet; Direct TCP uses only the first. RFC 1002 4.3.1
	typeMessage   = 0x00
	typeKeepAlive = 0x85

	maxPeek           = 64 << 10
	defaultReadBuffer = 128 << 10

	// directRead is the length from which bytes go from the socket straight to the caller. Below it, reading ahead into the buffer
	// and copying is cheaper than a system call of its own.
	directRead = 16 << 10
	// afterLarge is how far to read ahead after a large message: the next one is likely to be large too, and then only its prefix, header and fixed
	// part (84 bytes of a READ reply) should pass through the buffer, the payload should not.
	afterLarge = 88
	// copyBelow is the length under which a segment is copied to its neighbours rather than given an iovec of its own.
	copyBelow = 1024
	// maxCopied bounds in bytes what is copied so in one write, and with it what a connection keeps for it.
	maxCopied = 256 << 10
)

// Options tune a connection. The zero value is right for nearly everyone.
type Options struct {
	// ReadBuffer is the size in bytes of the read-ahead buffer, 0 for 128 KiB. It is at least 64 KiB and 4 bytes.
	ReadBuffer int
	// MaxMessage is the first value of SetMaxMessage, 0 for MaxFrame.
	MaxMessage int
	// SendBuffer and ReceiveBuffer are the sizes in bytes of the socket's buffers; 0 leaves them to the kernel, which sizes them
	// to the path as it learns about it.
	SendBuffer, ReceiveBuffer int
	// KeepAlive is the idle time after which the kernel probes the peer, 0 for 15 s, negative for never.
	KeepAlive time.Duration
	// UserTimeout is how long sent bytes may stay unacknowledged before the kernel gives the connection up, 0 for its default.
	// Linux only.
	UserTimeout time.Duration
	// Tap sees every message if it is not nil.
	Tap Tap
}

// DialTCP connects to addr, "host:port", and returns the connection with Direct TCP framing.
func DialTCP(ctx context.Context, addr string, opts Options) (Conn, error) {
	d := net.Dialer{KeepAlive: opts.KeepAlive}
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return NewTCP(nc, opts), nil
}

// NewTCP returns nc with Direct TCP framing. It owns nc from then on. nc is usually a TCP or Unix socket, for which reads and writes
// are vectored, but can be any stream.
func NewTCP(nc net.Conn, opts Options) Conn {
	if tc, ok := nc.(*net.TCPConn); ok {
		// None of these is needed to be right, only to be fast or to notice a dead peer sooner; so their errors do not matter.
		_ = tc.SetNoDelay(true)
		if opts.SendBuffer > 0 {
			_ = tc.SetWriteBuffer(opts.SendBuffer)
		}
		if opts.ReceiveBuffer > 0 {
			_ = tc.SetReadBuffer(opts.ReceiveBuffer)
		}
		if opts.KeepAlive > 0 {
			_ = tc.SetKeepAlivePeriod(opts.KeepAlive)
		}
		if opts.UserTimeout > 0 {
			setUserTimeout(tc, opts.UserTimeout)
		}
	}
	size := opts.ReadBuffer
	if size <= 0 {
		size = defaultReadBuffer
	}
	size = max(size, maxPeek+prefixSize)
	c := &tcpConn{nc: nc, tap: opts.Tap, buf: make([]byte, size), ahead: size}
	c.SetMaxMessage(opts.MaxMessage)
	if sc, ok := nc.(syscall.Conn); ok {
		c.sock = newSocket(sc)
	}
	if c.sock == nil {
		return c
	}
	return &tcpSocketConn{c}
}

// tcpConn is Direct TCP over any stream.
//
// The read buffer holds buf[r:w]; the current message has rest bytes that are not consumed, of which the first ones are in the buffer.
type tcpConn struct {
	nc   net.Conn
	sock *socket // vectored, optionally non-blocking I/O; nil if nc has none
	tap  Tap
	max  atomic.Int64

	buf   []byte
	r, w  int
	rest  int
	ahead int // how much to read ahead; see afterLarge

	scratch []byte      // prefixes and small segments of one write
	vec     [][]byte    // all of one write
	bufs    net.Buffers // what is left of vec; here because a local variable would escape
}

func (c *tcpConn) SetMaxMessage(n int) {
	if n <= 0 || n > MaxFrame {
		n = MaxFrame
	}
	c.max.Store(int64(n))
}

func (c *tcpConn) SetReadDeadline(t time.Time) error  { return c.nc.SetReadDeadline(t) }
func (c *tcpConn) SetWriteDeadline(t time.Time) error { return c.nc.SetWriteDeadline(t) }
func (c *tcpConn) LocalAddr() net.Addr                { return c.nc.LocalAddr() }
func (c *tcpConn) RemoteAddr() net.Addr               { return c.nc.RemoteAddr() }
func (c *tcpConn) Remaining() int                     { return c.rest }
func (c *tcpConn) Buffered() int                      { return max(c.w-c.r-c.rest, 0) }

func (c *tcpConn) Close() error {
	if err := c.nc.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close connection: %w", err)
	}
	return nil
}

// fill reads until at least n bytes are in the buffer. n is at most len(buf).
func (c *tcpConn) fill(n int) error {
	if c.w-c.r >= n {
		return nil
	}
	if c.r == c.w {
		c.r, c.w = 0, 0
	} else if c.r+n > len(c.buf) || c.r > len(c.buf)/2 {
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	}
	for c.w-c.r < n {
		end := min(c.r+max(n, c.ahead), len(c.buf))
		m, err := c.nc.Read(c.buf[c.w:end])
		c.w += m
		if err != nil && c.w-c.r < n {
			return err
		}
	}
	return nil
}

func (c *tcpConn) NextMessage() (int, error) {
	if err := c.discard(); err != nil {
		return 0, receiving(err)
	}
	for {
		if err := c.fill(prefixSize); err != nil {
			if err == io.EOF {
				if c.w > c.r {
					return 0, receiving(io.ErrUnexpectedEOF)
				}
				return 0, io.EOF
			}
			return 0, receiving(err)
		}
		prefix := binary.BigEndian.Uint32(c.buf[c.r:])
		n := int(prefix & MaxFrame)
		switch prefix >> 24 {
		case typeMessage:
			if limit := c.max.Load(); int64(n) > limit {
				return 0, fmt.Errorf("%w: %d bytes announced, %d allowed", ErrTooLarge, n, limit)
			}
			c.r += prefixSize
			c.rest = n
			if n >= directRead {
				c.ahead = prefixSize + afterLarge
			} else {
				c.ahead = len(c.buf)
			}
			if n == 0 && c.tap != nil {
				c.tap.Received(nil, 0)
			}
			return n, nil
		case typeKeepAlive:
			if n != 0 {
				return 0, fmt.Errorf("%w: keep-alive with %d bytes", ErrFraming, n)
			}
			c.r += prefixSize
		default:
			return 0, fmt.Errorf("%w: packet begins with % x", ErrFraming, c.buf[c.r:c.r+prefixSize])
		}
	}
}

// discard drops the rest of the current message.
func (c *tcpConn) discard() error {
	for c.rest > 0 {
		if c.r == c.w {
			if err := c.fill(1); err != nil {
				return unexpected(err)
			}
		}
		n := min(c.w-c.r, c.rest)
		c.consume(c.buf[c.r : c.r+n])
		c.r += n
	}
	return nil
}

// consume accounts for piece, the next bytes of the current message.
func (c *tcpConn) consume(piece []byte) {
	c.rest -= len(piece)
	if c.tap != nil {
		c.tap.Received(piece, c.rest)
	}
}

func (c *tcpConn) Peek(n int) ([]byte, error) {
	if n < 0 || n > c.rest || n > maxPeek {
		return nil, fmt.Errorf("peek at %d bytes of a message that has %d left: %w", n, c.rest, io.ErrUnexpectedEOF)
	}
	if err := c.fill(n); err != nil {
		return nil, receiving(unexpected(err))
	}
	return c.buf[c.r : c.r+n : c.r+n], nil
}

func (c *tcpConn) ReadFull(p []byte) error {
	if len(p) > c.rest {
		return fmt.Errorf("read %d bytes of a message that has %d left: %w", len(p), c.rest, io.ErrUnexpectedEOF)
	}
	if len(p) == 0 {
		return nil
	}
	n := copy(p, c.buf[c.r:c.w])
	c.r += n
	for n < len(p) {
		// The buffer is empty here.
		var err error
		if len(p)-n >= directRead {
			n, err = c.readInto(p, n)
		} else {
			// Small pieces of a large message, such as a compound's, come out of one system call too.
			c.ahead = min(c.rest-n+prefixSize+afterLarge, len(c.buf))
			if err = c.fill(1); err == nil {
				m := copy(p[n:], c.buf[c.r:c.w])
				c.r += m
				n += m
			}
		}
		if err != nil {
			return receiving(unexpected(err))
		}
	}
	c.consume(p)
	return nil
}

// readInto reads at least one byte to p[n:], possibly more bytes into the empty buffer behind it, and returns the new n.
func (c *tcpConn) readInto(p []byte, n int) (int, error) {
	c.r, c.w = 0, 0
	var m int
	var err error
	if c.sock != nil {
		// Beyond p there may be a little more of this message, and the head of the next one.
		m, err = c.sock.readv(p[n:], c.buf[:min(c.rest-len(p)+c.ahead, len(c.buf))])
	} else {
		m, err = c.nc.Read(p[n:])
	}
	if n += m; n > len(p) {
		c.w = n - len(p)
		n = len(p)
	}
	if m > 0 {
		err = nil // if it lasts, the next read reports it
	}
	return n, err
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func receiving(err error) error { return fmt.Errorf("receive SMB message: %w", err) }
func sending(err error) error   { return fmt.Errorf("send SMB message: %w", err) }

// gather fills c.vec with everything that is to be written: prefixes, and segments.
func (c *tcpConn) gather(msgs []Message) error {
	need, copied := 0, len(msgs) // bytes in scratch; messages whose small segments are copied
	for i, m := range msgs {
		n := 0
		for _, s := range m {
			n += len(s)
			if len(s) < copyBelow && i < copied {
				need += len(s)
			}
		}
		if n > MaxFrame {
			return fmt.Errorf("%w: %d bytes, the framing allows %d", ErrTooLarge, n, MaxFrame)
		}
		need += prefixSize
		if need > maxCopied && i < copied {
			copied = i + 1
		}
	}
	if cap(c.scratch) < need {
		c.scratch = make([]byte, 0, max(need+need/2, 4096))
	}
	scratch, vec := c.scratch[:0], c.vec[:0]
	begin := 0 // of the bytes in scratch that are not in vec yet
	for i, m := range msgs {
		if c.tap != nil {
			c.tap.Sent(m)
		}
		scratch = binary.BigEndian.AppendUint32(scratch, uint32(m.Len()))
		for _, s := range m {
			if len(s) == 0 {
				continue
			}
			if len(s) < copyBelow && i < copied {
				scratch = append(scratch, s...)
				continue
			}
			if begin < len(scratch) {
				vec = append(vec, scratch[begin:])
				begin = len(scratch)
			}
			vec = append(vec, s)
		}
	}
	if begin < len(scratch) {
		vec = append(vec, scratch[begin:])
	}
	c.scratch, c.vec = scratch, vec
	return nil
}

func (c *tcpConn) WriteMessages(msgs []Message) error {
	if err := c.gather(msgs); err != nil {
		return sending(err)
	}
	defer clear(c.vec)
	c.bufs = c.vec
	if _, err := c.bufs.WriteTo(c.nc); err != nil {
		return sending(err)
	}
	return nil
}

// tcpSocketConn is a tcpConn whose stream is a socket that can be written without waiting.
type tcpSocketConn struct{ *tcpConn }

func (c *tcpSocketConn) WriteMessages(msgs []Message) error {
	if done, err := c.StartWrite(msgs); done || err != nil {
		return err
	}
	return c.FinishWrite()
}

// StartWrite implements TryWriter.
func (c *tcpSocketConn) StartWrite(msgs []Message) (bool, error) {
	if err := c.gather(msgs); err != nil {
		return false, sending(err)
	}
	done, err := c.sock.startWritev(c.vec)
	clear(c.vec)
	if err != nil {
		return false, sending(err)
	}
	return done, nil
}

// FinishWrite implements TryWriter.
func (c *tcpSocketConn) FinishWrite() error {
	if err := c.sock.finishWritev(); err != nil {
		return sending(err)
	}
	return nil
}
