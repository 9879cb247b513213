package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The family (linux/nbd-netlink.h).
const (
	familyName = "nbd"
	groupName  = "nbd_mc_group"

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3
	cmdLinkDead    = 4
	cmdStatus      = 5

	attrIndex           = 1
	attrSizeBytes       = 2
	attrBlockSize       = 3
	attrTimeout         = 4
	attrServerFlags     = 5
	attrClientFlags     = 6
	attrSockets         = 7
	attrDeadConnTimeout = 8
	attrDeviceList      = 9
	attrBackend         = 10

	attrSockItem = 1
	attrSockFD   = 1

	attrDeviceItem      = 1
	attrDeviceIndex     = 1
	attrDeviceConnected = 2
)

// netlink is the driver by generic netlink.
type netlink struct {
	g      *genl
	family uint16
	group  uint32
}

// OpenNetlink returns the driver by generic netlink. ErrNoDriver: the family is not there, or not in this network namespace.
func OpenNetlink() (Driver, error) {
	g, err := dialGenl()
	if err != nil {
		return nil, err
	}
	n := &netlink{g: g}
	if n.family, n.group, err = g.family(familyName, groupName); err != nil {
		g.close()
		if errors.Is(err, unix.ENOENT) {
			return nil, wrap("nbd by netlink", ErrNoDriver, err)
		}
		return nil, fmt.Errorf("nbd by netlink: %w", err)
	}
	return n, nil
}

func (n *netlink) Close() error   { return n.g.close() }
func (n *netlink) Survives() bool { return true }

func (n *netlink) Connect(c Config) (int, error) {
	if err := c.check(); err != nil {
		return 0, err
	}
	index := c.Index
	err := n.g.call(n.family, cmdConnect, c.attrs(), func(_ uint8, attrs []byte) error {
		return eachAttr(attrs, func(typ uint16, data []byte) error {
			if typ != attrIndex {
				return nil
			}
			v, err := attrU32(data)
			index = int(v)
			return err
		})
	})
	switch {
	case err == nil && index < 0:
		return 0, errors.New("nbd connect: the kernel does not say which device it is")
	case errors.Is(err, unix.EBUSY):
		return 0, wrap("nbd connect", ErrBusy, err)
	case errors.Is(err, unix.EPERM):
		return 0, wrap("nbd connect", ErrNotAllowed, err)
	case err != nil:
		return 0, fmt.Errorf("nbd connect: %w", err)
	}
	return index, nil
}

func (c *Config) attrs() []byte {
	var b []byte
	if c.Index != Any {
		b = appendU32(b, attrIndex, uint32(c.Index))
	}
	b = appendU64(b, attrSizeBytes, uint64(c.Size))
	b = appendU64(b, attrBlockSize, uint64(c.BlockSize))
	b = appendU64(b, attrServerFlags, c.Flags|HasFlags)
	if c.ClientFlags != 0 {
		b = appendU64(b, attrClientFlags, c.ClientFlags)
	}
	return appendCommon(b, c.Timeout, c.DeadConnTimeout, c.Backend, c.Sockets)
}

func (c *Change) attrs(index int) []byte {
	b := appendU32(nil, attrIndex, uint32(index))
	if c.Size > 0 {
		b = appendU64(b, attrSizeBytes, uint64(c.Size))
	}
	return appendCommon(b, c.Timeout, c.DeadConnTimeout, c.Backend, c.Sockets)
}

func appendCommon(b []byte, timeout, dead time.Duration, backend string, sockets []*os.File) []byte {
	if timeout > 0 {
		b = appendU64(b, attrTimeout, seconds(timeout))
	}
	if dead > 0 {
		b = appendU64(b, attrDeadConnTimeout, seconds(dead))
	}
	if backend != "" {
		b = appendString(b, attrBackend, backend)
	}
	if len(sockets) > 0 {
		var list []byte
		for _, f := range sockets {
			list = appendAttr(list, attrSockItem|attrNested, appendU32(nil, attrSockFD, uint32(f.Fd()))...)
		}
		b = appendAttr(b, attrSockets|attrNested, list...)
	}
	return b
}

func (n *netlink) Reconnect(index int, c Change) error {
	if index < 0 {
		return errIndex
	}
	if c.Size < 0 {
		return fmt.Errorf("kernel: a size of %d bytes", c.Size)
	}
	err := n.g.call(n.family, cmdReconfigure, c.attrs(index), nil)
	op := fmt.Sprintf("nbd%d reconnect", index)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC):
		return nil // how some versions say that they have not taken a socket
	case errors.Is(err, unix.EINVAL):
		// The kernel says the same for a device that is not connected and for one with another identifier.
		if (Sys{}).Connected(index) {
			return wrap(op, ErrForeign, err)
		}
		return wrap(op, ErrGone, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

func (n *netlink) Disconnect(index int) error {
	if index < 0 {
		return errIndex
	}
	err := n.g.call(n.family, cmdDisconnect, appendU32(nil, attrIndex, uint32(index)), nil)
	if errors.Is(err, unix.EINVAL) {
		return wrap(fmt.Sprintf("nbd%d disconnect", index), ErrGone, err)
	}
	if err != nil {
		return fmt.Errorf("nbd%d disconnect: %w", index, err)
	}
	return nil
}

func (n *netlink) Devices() (list []Device, err error) {
	err = n.g.call(n.family, cmdStatus, nil, func(_ uint8, attrs []byte) (err error) {
		list, err = parseDevices(list, attrs)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("nbd status: %w", err)
	}
	return list, nil
}

func parseDevices(list []Device, attrs []byte) ([]Device, error) {
	err := eachAttr(attrs, func(typ uint16, data []byte) error {
		if typ != attrDeviceList {
			return nil
		}
		return eachAttr(data, func(typ uint16, data []byte) error {
			if typ != attrDeviceItem {
				return nil
			}
			d := Device{Index: -1}
			err := eachAttr(data, func(typ uint16, data []byte) error {
				switch typ {
				case attrDeviceIndex:
					v, err := attrU32(data)
					d.Index = int(v)
					return err
				case attrDeviceConnected:
					d.Connected = len(data) > 0 && data[0] != 0
				}
				return nil
			})
			if err == nil && d.Index >= 0 {
				list = append(list, d)
			}
			return err
		})
	})
	return list, err
}

func (n *netlink) Watch(ctx context.Context, dead func(index int)) error {
	if n.group == 0 {
		return ErrCannot
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_GENERIC)
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "netlink")
	defer f.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink bind: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(n.group)); err != nil {
		return fmt.Errorf("netlink group: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, maxReply)
	for {
		m, err := f.Read(buf)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			continue // events were lost, which may happen
		case err != nil:
			return fmt.Errorf("netlink receive: %w", err)
		}
		_, _ = eachMessage(buf[:m], 0, func(cmd uint8, attrs []byte) {
			if cmd != cmdLinkDead {
				return
			}
			_ = eachAttr(attrs, func(typ uint16, data []byte) error {
				v, err := attrU32(data)
				if typ == attrIndex && err == nil {
					dead(int(v))
				}
				return nil
			})
		})
	}
}
