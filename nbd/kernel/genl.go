package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Generic netlink (linux/genetlink.h): a netlink header, four bytes of command and version, attributes.
const (
	genlHeader  = 4
	genlVersion = 1

	ctrlFamily  = unix.GENL_ID_CTRL
	maxReply    = 64 << 10
	maxPayload  = 32 << 10
	recvTimeout = 30 // seconds; the kernel answers before the send returns
)

// genl is a generic netlink socket for requests and their answers. Calls may overlap; they are carried out one after the other.
type genl struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf []byte
}

func dialGenl() (*genl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("netlink bind: %w", err)
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: recvTimeout})
	return &genl{fd: fd, buf: make([]byte, maxReply)}, nil
}

func (g *genl) close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fd < 0 {
		return nil
	}
	err := unix.Close(g.fd)
	g.fd = -1
	return err
}

// message makes a request of a family.
func message(family uint16, flags uint16, seq uint32, cmd uint8, attrs []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+genlHeader+len(attrs)))
	b = binary.NativeEndian.AppendUint16(b, family)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // from the kernel's choice of port
	b = append(b, cmd, genlVersion, 0, 0)
	return append(b, attrs...)
}

// call sends a request and gives answer the command and attributes of each message that comes back before the acknowledgement. The
// error has the kernel's errno.
func (g *genl) call(family uint16, cmd uint8, attrs []byte, answer func(cmd uint8, attrs []byte) error) error {
	if len(attrs) > maxPayload {
		return fmt.Errorf("netlink: a request of %d bytes is too long", len(attrs))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fd < 0 {
		return os.ErrClosed
	}
	g.seq++
	req := message(family, unix.NLM_F_REQUEST|unix.NLM_F_ACK, g.seq, cmd, attrs)
	if err := ignoringEINTR(func() error {
		return unix.Sendto(g.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}); err != nil {
		return fmt.Errorf("netlink send: %w", err)
	}
	var failed error
	for {
		n := 0
		if err := ignoringEINTR(func() (err error) {
			n, _, err = unix.Recvfrom(g.fd, g.buf, 0)
			return err
		}); err != nil {
			return fmt.Errorf("netlink receive: %w", err)
		}
		done, err := eachMessage(g.buf[:n], g.seq, func(cmd uint8, attrs []byte) {
			if answer != nil && failed == nil {
				failed = answer(cmd, attrs)
			}
		})
		if err != nil {
			return err
		}
		if done {
			return failed
		}
	}
}

// eachMessage takes one datagram apart. done says that the acknowledgement of seq was in it; the error is the kernel's answer then, or says what is wrong
// with the datagram. seq 0 takes messages of any number, as multicasts are.
func eachMessage(b []byte, seq uint32, f func(cmd uint8, attrs []byte)) (done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > len(b) {
			return false, errors.New("netlink: a message is longer than the datagram")
		}
		typ, got, body := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[unix.NLMSG_HDRLEN:n]
		b = b[min(align4(n), len(b)):]
		if seq != 0 && got != seq {
			continue // the answer to a request that was given up
		}
		switch {
		case typ == unix.NLMSG_ERROR:
			if len(body) < 4 {
				return false, errors.New("netlink: an acknowledgement is too short")
			}
			if e := -int32(binary.NativeEndian.Uint32(body)); e != 0 {
				return true, syscall.Errno(e)
			}
			return true, nil
		case typ == unix.NLMSG_DONE:
			return true, nil
		case typ < unix.NLMSG_MIN_TYPE || len(body) < genlHeader:
		default:
			f(body[0], body[genlHeader:])
		}
	}
	return false, nil
}

// family asks for the number of a family and of one of its multicast groups, which is 0 if there is none.
func (g *genl) family(name, group string) (id uint16, groupID uint32, err error) {
	err = g.call(ctrlFamily, unix.CTRL_CMD_GETFAMILY, appendString(nil, unix.CTRL_ATTR_FAMILY_NAME, name), func(_ uint8, attrs []byte) (err error) {
		id, groupID, err = parseFamily(attrs, group)
		return err
	})
	if err == nil && id == 0 {
		err = errors.New("netlink: the kernel says nothing of the family " + name)
	}
	return id, groupID, err
}

func parseFamily(attrs []byte, group string) (id uint16, groupID uint32, err error) {
	err = eachAttr(attrs, func(typ uint16, data []byte) error {
		switch typ {
		case unix.CTRL_ATTR_FAMILY_ID:
			if len(data) < 2 {
				return errShortAttr
			}
			id = binary.NativeEndian.Uint16(data)
		case unix.CTRL_ATTR_MCAST_GROUPS:
			return eachAttr(data, func(_ uint16, data []byte) error {
				name, n := "", uint32(0)
				err := eachAttr(data, func(typ uint16, data []byte) (err error) {
					switch typ {
					case unix.CTRL_ATTR_MCAST_GRP_NAME:
						name = unix.ByteSliceToString(data)
					case unix.CTRL_ATTR_MCAST_GRP_ID:
						n, err = attrU32(data)
					}
					return err
				})
				if name == group {
					groupID = n
				}
				return err
			})
		}
		return nil
	})
	return id, groupID, err
}

func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
