package nbd

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// transport is the byte stream of a connection. One goroutine at a time reads and one writes.
type transport interface {
	// read reads at least one byte. With calm the caller promises that it has nothing in flight and expects data soon, so it may
	// block a thread. A kick ends it with os.ErrDeadlineExceeded; the end of the stream is io.EOF.
	read(p []byte, calm bool) (int, error)
	// readFull fills p, under the same terms. n < len(p) comes with an error.
	readFull(p []byte, calm bool) (n int, err error)
	// readNow reads what is there and returns 0 when nothing is.
	readNow(p []byte) int
	// park ends what calm reading set up: after it, others than the reader may write.
	park() error
	// write writes all of bufs, in order. It may change bufs.
	write(bufs [][]byte) error
	// kick ends the present and every later read until unkick. It may be called at any time.
	kick()
	unkick()
	// abort breaks the connection at once; every call ends. It may be called at any time.
	abort()
	// close releases everything. Nobody may be reading or writing.
	close()
}

var longAgo = time.Unix(1, 0)

// netTransport is the transport over any net.Conn, such as TLS.
type netTransport struct {
	conn    net.Conn
	scratch []byte
	mu      sync.Mutex
	aborted bool
	closed  bool
}

const coalesceBytes = 64 << 10

func (t *netTransport) read(p []byte, _ bool) (int, error) {
	n, err := t.conn.Read(p)
	return n, t.readError(err)
}

func (t *netTransport) readFull(p []byte, _ bool) (int, error) {
	n, err := io.ReadFull(t.conn, p)
	return n, t.readError(err)
}

// readError makes something else of the timeout that abort causes, as one is taken for a kick.
func (t *netTransport) readError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.aborted {
			return net.ErrClosed
		}
	}
	return err
}

func (t *netTransport) readNow([]byte) int { return 0 }
func (t *netTransport) park() error        { return nil }

// write sends small pieces together, as each Write may be a record or a packet of its own.
func (t *netTransport) write(bufs [][]byte) error {
	t.scratch = t.scratch[:0]
	for _, b := range bufs {
		if len(t.scratch)+len(b) > coalesceBytes && len(t.scratch) > 0 {
			if _, err := t.conn.Write(t.scratch); err != nil {
				return err
			}
			t.scratch = t.scratch[:0]
		}
		if len(b) >= coalesceBytes {
			if _, err := t.conn.Write(b); err != nil {
				return err
			}
			continue
		}
		t.scratch = append(t.scratch, b...)
	}
	if len(t.scratch) == 0 {
		return nil
	}
	_, err := t.conn.Write(t.scratch)
	return err
}

func (t *netTransport) kick()   { t.deadline(longAgo) }
func (t *netTransport) unkick() { t.deadline(time.Time{}) }

func (t *netTransport) deadline(d time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed && !t.aborted {
		t.conn.SetReadDeadline(d)
	}
}

func (t *netTransport) abort() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.aborted = true
		t.conn.SetDeadline(longAgo)
	}
}

func (t *netTransport) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.closed = true
		t.conn.Close()
	}
}
