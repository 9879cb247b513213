package bridge

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// export serves d by NBD on a unix socket until the test ends or stop is called.
func export(t *testing.T, d *Disk, o NBDOptions) (dial func() *nbdConn, stop func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ServeNBD(ctx, d, o, l) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("NBD: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return func() *nbdConn { return dialNBD(t, path) }, stop
}

// nbdConn is the smallest NBD client: EXPORT_NAME, simple replies, one request at a time.
type nbdConn struct {
	t    *testing.T
	c    net.Conn
	size uint64
}

func dialNBD(t *testing.T, path string) *nbdConn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	hello := make([]byte, 18)
	if _, err := io.ReadFull(c, hello); err != nil {
		t.Fatal(err)
	}
	b := []byte{0, 0, 0, 3} // fixed newstyle, no zeroes
	b = append(b, "IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x00"...)
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 10)
	if _, err := io.ReadFull(c, reply); err != nil {
		t.Fatal(err)
	}
	return &nbdConn{t, c, binary.BigEndian.Uint64(reply)}
}

// do sends one request and returns its error number.
func (n *nbdConn) do(typ uint16, flags uint16, off int64, length int, data []byte) (uint32, []byte) {
	n.t.Helper()
	be := binary.BigEndian
	b := be.AppendUint32(nil, 0x25609513)
	b = be.AppendUint16(b, flags)
	b = be.AppendUint16(b, typ)
	b = be.AppendUint64(b, 77)
	b = be.AppendUint64(b, uint64(off))
	b = be.AppendUint32(b, uint32(length))
	if _, err := n.c.Write(append(b, data...)); err != nil {
		n.t.Fatal(err)
	}
	r := make([]byte, 16)
	if _, err := io.ReadFull(n.c, r); err != nil {
		n.t.Fatal(err)
	}
	if be.Uint32(r) != 0x67446698 || be.Uint64(r[8:]) != 77 {
		n.t.Fatalf("reply % x", r)
	}
	errno := be.Uint32(r[4:])
	var out []byte
	if typ == 0 && errno == 0 {
		out = make([]byte, length)
		if _, err := io.ReadFull(n.c, out); err != nil {
			n.t.Fatal(err)
		}
	}
	return errno, out
}

func (n *nbdConn) write(off int64, p []byte, fua bool) uint32 {
	f := uint16(0)
	if fua {
		f = 1
	}
	e, _ := n.do(1, f, off, len(p), p)
	return e
}

// try writes, and returns what is wrong; nothing is but the end of the connection.
func (n *nbdConn) try(off int64, p []byte) error {
	be := binary.BigEndian
	b := be.AppendUint64(nil, 0x25609513_0000_0001)
	b = be.AppendUint64(b, 77)
	b = be.AppendUint64(b, uint64(off))
	b = be.AppendUint32(b, uint32(len(p)))
	if _, err := n.c.Write(append(b, p...)); err != nil {
		return err
	}
	r := make([]byte, 16)
	if _, err := io.ReadFull(n.c, r); err != nil {
		return err
	}
	if e := be.Uint32(r[4:]); e != 0 {
		return syscall.Errno(e)
	}
	return nil
}

func (n *nbdConn) read(off int64, length int) (uint32, []byte) { return n.do(0, 0, off, length, nil) }
