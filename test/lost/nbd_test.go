package lost

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
)

// client is an NBD client with any number of requests in flight: EXPORT_NAME, simple replies.
type client struct {
	t *testing.T
	c net.Conn

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]waiter
	err     error
	done    chan struct{}
}

type waiter struct {
	p  []byte // where the data of a read go
	ch chan error
}

const (
	nbdRead  = 0
	nbdWrite = 1
	nbdFlush = 3

	nbdFUA = 1
)

// nbdError is the error number of a reply.
type nbdError uint32

func (e nbdError) Error() string { return fmt.Sprintf("NBD error %d", uint32(e)) }

func connect(t *testing.T, path string) *client {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	b := append([]byte{0, 0, 0, 3}, "IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x00"...)
	var hello [18 + 10]byte
	_, e1 := io.ReadFull(c, hello[:18])
	_, e2 := c.Write(b)
	_, e3 := io.ReadFull(c, hello[18:])
	if err := errors.Join(e1, e2, e3); err != nil {
		t.Fatal(err)
	}
	n := &client{t: t, c: c, waiting: map[uint64]waiter{}, done: make(chan struct{})}
	go n.receive()
	t.Cleanup(func() {
		c.Close()
		<-n.done
	})
	return n
}

func (n *client) receive() {
	defer close(n.done)
	err := func() error {
		for {
			var r [16]byte
			if _, err := io.ReadFull(n.c, r[:]); err != nil {
				return err
			}
			id, e := binary.BigEndian.Uint64(r[8:]), binary.BigEndian.Uint32(r[4:])
			n.mu.Lock()
			w, ok := n.waiting[id]
			delete(n.waiting, id)
			n.mu.Unlock()
			if !ok {
				return fmt.Errorf("a reply to nothing: % x", r)
			}
			if e != 0 {
				w.ch <- nbdError(e)
				continue
			}
			if _, err := io.ReadFull(n.c, w.p); err != nil {
				w.ch <- err
				return err
			}
			w.ch <- nil
		}
	}()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err = err
	for _, w := range n.waiting {
		w.ch <- err
	}
	n.waiting = nil
}

// start sends a request; what comes of it comes through the channel.
func (n *client) start(typ, flags uint16, off int64, length int, out, in []byte) chan error {
	ch := make(chan error, 1)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		ch <- n.err
		return ch
	}
	n.next++
	n.waiting[n.next] = waiter{in, ch}
	be := binary.BigEndian
	b := be.AppendUint32(make([]byte, 0, 28+len(out)), 0x25609513)
	b = be.AppendUint16(b, flags)
	b = be.AppendUint16(b, typ)
	b = be.AppendUint64(b, n.next)
	b = be.AppendUint64(b, uint64(off))
	b = be.AppendUint32(b, uint32(length))
	if _, err := n.c.Write(append(b, out...)); err != nil {
		delete(n.waiting, n.next)
		ch <- err
	}
	return ch
}

func (n *client) write(off int64, p []byte) error { return <-n.start(nbdWrite, 0, off, len(p), p, nil) }

func (n *client) read(off int64, p []byte) error { return <-n.start(nbdRead, 0, off, len(p), nil, p) }

func (n *client) flush() error { return <-n.start(nbdFlush, 0, 0, 0, nil, nil) }
