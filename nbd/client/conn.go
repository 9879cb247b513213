package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// request is a request whose reply is awaited.
type request struct {
	kind  uint16
	p     []byte // of a read: where its data go
	off   int64
	n     int64
	left  int64                      // of a read: bytes that have not come
	extra func(n, flags uint32) bool // of a status: told of each run
	err   error
	done  chan struct{}

	mu        sync.Mutex // held while p is filled
	abandoned bool
}

// failed notes why the request failed; the first reason counts.
func (r *request) failed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
}

// conn is one connection.
type conn struct {
	c   net.Conn
	r   *bufio.Reader
	e   export
	wmu sync.Mutex // one request is sent at a time

	mu      sync.Mutex
	pending map[uint64]*request
	cookie  uint64
	err     error // why the connection is of no use, once it is
	wg      sync.WaitGroup
}

func dial(ctx context.Context, a Address) (*conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, a.Network, a.Addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	c := newConn(nc)
	if err := c.begin(a.Export); err != nil {
		nc.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	return c, nil
}

func newConn(nc net.Conn) *conn {
	return &conn{c: nc, r: bufio.NewReaderSize(nc, 256<<10), pending: map[uint64]*request{}}
}

// begin negotiates, and starts to receive.
func (c *conn) begin(export string) (err error) {
	if c.e, err = handshake(c.c, c.r, export); err != nil {
		return err
	}
	c.wg.Go(c.receive)
	return nil
}

// fail ends the connection and everything that waits for it.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	err = c.err
	all := c.pending
	c.pending = map[uint64]*request{}
	c.mu.Unlock()
	c.c.Close()
	for _, r := range all {
		r.failed(err)
		close(r.done)
	}
}

var errClosed = errors.New("the NBD connection is closed")

func (c *conn) close() error {
	c.mu.Lock()
	if c.err == nil {
		c.err = errClosed
	}
	c.mu.Unlock()
	c.wmu.Lock()
	var b [requestSize]byte
	be.PutUint32(b[:], magicRequest)
	be.PutUint16(b[6:], cmdDisconnect)
	_, _ = c.c.Write(b[:])
	c.wmu.Unlock()
	c.fail(errClosed)
	c.wg.Wait()
	return nil
}

// do sends a request and waits for its reply.
func (c *conn) do(ctx context.Context, flags uint16, r *request, payload []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.done = make(chan struct{})
	r.left = int64(len(r.p))
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return c.err
	}
	c.cookie++
	cookie := c.cookie
	c.pending[cookie] = r
	c.mu.Unlock()
	var b [requestSize]byte
	be.PutUint32(b[:], magicRequest)
	be.PutUint16(b[4:], flags)
	be.PutUint16(b[6:], r.kind)
	be.PutUint64(b[8:], cookie)
	be.PutUint64(b[16:], uint64(r.off))
	be.PutUint32(b[24:], uint32(r.n))
	c.wmu.Lock()
	bufs := net.Buffers{b[:], payload}
	if payload == nil {
		bufs = bufs[:1]
	}
	_, err := bufs.WriteTo(c.c)
	c.wmu.Unlock()
	if err != nil {
		c.fail(fmt.Errorf("send to the NBD server: %w", err))
	}
	select {
	case <-r.done:
		r.mu.Lock()
		defer r.mu.Unlock()
		r.abandoned = true // of a connection that has failed, the receiver may still hold it
		return r.err
	case <-ctx.Done():
	}
	// The reply may still come; the buffer must not be touched by then.
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	default:
	}
	r.abandoned = true
	return ctx.Err()
}

func (c *conn) receive() {
	for {
		if err := c.reply(); err != nil {
			if err == io.EOF {
				err = errors.New("the NBD server has closed the connection")
			}
			c.fail(err)
			return
		}
	}
}

// finish takes a request out of the table and tells its caller.
func (c *conn) finish(cookie uint64, r *request) {
	c.mu.Lock()
	_, ok := c.pending[cookie]
	delete(c.pending, cookie)
	c.mu.Unlock()
	if ok {
		close(r.done)
	}
}

func (c *conn) find(cookie uint64) *request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending[cookie]
}

// reply reads one reply or chunk.
func (c *conn) reply() error {
	var h [20]byte
	if _, err := io.ReadFull(c.r, h[:16]); err != nil {
		return err
	}
	magic, cookie := be.Uint32(h[:]), be.Uint64(h[8:])
	r := c.find(cookie)
	if r == nil {
		return broken("a reply to a request that was not made")
	}
	switch magic {
	case magicSimple:
		if n := be.Uint32(h[4:]); n != 0 {
			r.failed(serverError(n))
		} else if r.kind == cmdStatus {
			return broken("a simple reply to a question for extents")
		} else if r.kind == cmdRead {
			if c.e.structured {
				return broken("a simple reply to a read")
			}
			if err := c.fill(r, 0, len(r.p)); err != nil {
				return err
			}
		}
		c.finish(cookie, r)
		return nil
	case magicStructured:
		if !c.e.structured {
			return broken("a structured reply that was not agreed on")
		}
		if _, err := io.ReadFull(c.r, h[16:20]); err != nil {
			return err
		}
		return c.chunk(r, cookie, be.Uint16(h[4:]), be.Uint16(h[6:]), int(be.Uint32(h[16:])))
	}
	return broken("a reply begins with %#x", magic)
}

// fill reads data into a part of the request's buffer.
func (c *conn) fill(r *request, at, n int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left -= int64(n)
	if r.abandoned {
		_, err := io.CopyN(io.Discard, c.r, int64(n))
		return err
	}
	_, err := io.ReadFull(c.r, r.p[at:at+n])
	return err
}

func (c *conn) chunk(r *request, cookie uint64, flags, kind uint16, n int) error {
	if n < 0 || n > maxPayload+8 {
		return broken("a chunk of %d bytes", n)
	}
	// place is where a chunk of a read belongs in its buffer.
	place := func(n int64) (int, error) {
		var b [8]byte
		if _, err := io.ReadFull(c.r, b[:]); err != nil {
			return 0, err
		}
		at := int64(be.Uint64(b[:])) - r.off
		if r.kind != cmdRead || at < 0 || n < 0 || n > int64(len(r.p)) || at > int64(len(r.p))-n {
			return 0, broken("data that were not asked for")
		}
		return int(at), nil
	}
	switch {
	case kind == chunkNone:
		if n != 0 || flags&chunkDone == 0 {
			return broken("an empty chunk that is not empty, or not the last")
		}
	case kind == chunkData:
		if n < 9 {
			return broken("a data chunk of %d bytes", n)
		}
		at, err := place(int64(n - 8))
		if err == nil {
			err = c.fill(r, at, n-8)
		}
		if err != nil {
			return err
		}
	case kind == chunkHole:
		if n != 12 {
			return broken("a hole of %d bytes", n)
		}
		var off, size [8]byte
		if _, err := io.ReadFull(c.r, off[:]); err != nil {
			return err
		}
		if _, err := io.ReadFull(c.r, size[:4]); err != nil {
			return err
		}
		at, length := int64(be.Uint64(off[:]))-r.off, int64(be.Uint32(size[:]))
		if r.kind != cmdRead || at < 0 || length > int64(len(r.p)) || at > int64(len(r.p))-length {
			return broken("a hole that was not asked for")
		}
		r.mu.Lock()
		r.left -= length
		if !r.abandoned {
			clear(r.p[at : at+length])
		}
		r.mu.Unlock()
	case kind == chunkStatus:
		if r.kind != cmdStatus || n < 12 || (n-4)%8 != 0 {
			return broken("extents of %d bytes", n)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(c.r, b); err != nil {
			return err
		}
		if be.Uint32(b) != c.e.context {
			break // of a context that was not asked for
		}
		for b = b[4:]; len(b) > 0; b = b[8:] {
			if be.Uint32(b) == 0 {
				return broken("an extent without length")
			}
			if !r.extra(be.Uint32(b), be.Uint32(b[4:])) {
				break
			}
		}
	case kind&(1<<15) != 0:
		if n < 6 || n > maxString+32 {
			return broken("an error chunk of %d bytes", n)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(c.r, b); err != nil {
			return err
		}
		text := min(int(be.Uint16(b[4:])), n-6)
		err := serverError(be.Uint32(b))
		if s := clean(b[6 : 6+text]); s != "" {
			err = fmt.Errorf("%s: %w", s, err)
		}
		r.failed(err)
	default:
		return broken("a chunk of type %d", kind)
	}
	if flags&chunkDone == 0 {
		return nil
	}
	r.mu.Lock()
	short := r.kind == cmdRead && r.err == nil && r.left != 0
	r.mu.Unlock()
	if short {
		return broken("a read of %d bytes lacks %d", len(r.p), r.left)
	}
	c.finish(cookie, r)
	return nil
}
