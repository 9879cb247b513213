package history

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// rawNBD is a small NBD client of its own: EXPORT_NAME, simple replies, one request at a time.
type rawNBD struct {
	c      net.Conn
	cookie uint64
	size   uint64
}

const (
	nbdRead  = 0
	nbdWrite = 1
	nbdFlush = 3
	nbdTrim  = 4
	nbdZero  = 6

	nbdFUA    = 1
	nbdNoHole = 2
)

// nbdError is the error number of a reply.
type nbdError uint32

func (e nbdError) Error() string { return fmt.Sprintf("NBD error %d", uint32(e)) }

// errNBDGone says that the connection to the export ended.
var errNBDGone = errors.New("NBD connection ended")

func dialNBD(path string) (*rawNBD, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	n, err := newRawNBD(c)
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return n, nil
}

func newRawNBD(c net.Conn) (*rawNBD, error) {
	hello := make([]byte, 18)
	if _, err := io.ReadFull(c, hello); err != nil {
		return nil, err
	}
	b := append([]byte{0, 0, 0, 3}, "IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x00"...)
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	reply := make([]byte, 10)
	if _, err := io.ReadFull(c, reply); err != nil {
		return nil, err
	}
	return &rawNBD{c: c, size: binary.BigEndian.Uint64(reply)}, nil
}

// send sends a request with its payload.
func (n *rawNBD) send(typ, flags uint16, off int64, length int, data []byte) error {
	n.cookie++
	be := binary.BigEndian
	b := be.AppendUint32(make([]byte, 0, 28+len(data)), 0x25609513)
	b = be.AppendUint16(b, flags)
	b = be.AppendUint16(b, typ)
	b = be.AppendUint64(b, n.cookie)
	b = be.AppendUint64(b, uint64(off))
	b = be.AppendUint32(b, uint32(length))
	if _, err := n.c.Write(append(b, data...)); err != nil {
		return fmt.Errorf("%w: %w", errNBDGone, err)
	}
	return nil
}

// receive takes the reply to the last request; in is where a read puts its data.
func (n *rawNBD) receive(in []byte) error {
	be := binary.BigEndian
	r := make([]byte, 16)
	if _, err := io.ReadFull(n.c, r); err != nil {
		return fmt.Errorf("%w: %w", errNBDGone, err)
	}
	if be.Uint32(r) != 0x67446698 || be.Uint64(r[8:]) != n.cookie {
		return fmt.Errorf("not the reply that was due: % x", r)
	}
	if e := be.Uint32(r[4:]); e != 0 {
		return nbdError(e)
	}
	if _, err := io.ReadFull(n.c, in); err != nil {
		return fmt.Errorf("%w: %w", errNBDGone, err)
	}
	return nil
}

func (n *rawNBD) do(typ, flags uint16, off int64, length int, data, in []byte) error {
	if err := n.send(typ, flags, off, length, data); err != nil {
		return err
	}
	return n.receive(in)
}
