package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Errors that are told apart. What the kernel said is inside.
var (
	ErrNoDriver    = errors.New("the kernel has no nbd driver")
	ErrBusy        = errors.New("the device is in use")
	ErrGone        = errors.New("the device is not connected")
	ErrCannot      = errors.New("not possible by ioctl")
	ErrNotAllowed  = errors.New("only root may use the nbd driver")
	ErrForeign     = errors.New("the device belongs to another backend")
	errNoSocket    = errors.New("kernel: a device needs a socket")
	errBlockSize   = errors.New("kernel: the block size is a power of two from 512 to 4096")
	errIndex       = errors.New("kernel: a device number is not negative")
	errNothingToDo = errors.New("kernel: nothing to change")
)

// Any lets the kernel choose a free device.
const Any = -1

// Flags of a device, as NBD transmission flags. Others are left to the kernel to ignore.
const (
	HasFlags        = 1 << 0
	ReadOnly        = 1 << 1
	SendFlush       = 1 << 2
	SendFUA         = 1 << 3
	Rotational      = 1 << 4
	SendTrim        = 1 << 5
	SendWriteZeroes = 1 << 6
	CanMultiConn    = 1 << 8
)

// Client flags.
const (
	DestroyOnDisconnect = 1 << 0 // the device goes when it is disconnected
	DisconnectOnClose   = 1 << 1 // it is disconnected when its last user closes it
)

// Config is what a device is connected with. Times are rounded up to whole seconds; 0 leaves the kernel's own value.
type Config struct {
	Index           int   // of the device wanted, or Any
	Size            int64 // bytes
	BlockSize       int   // bytes: a power of two from 512 to 4096
	Flags           uint64
	ClientFlags     uint64
	Timeout         time.Duration // of a request; see the package's text
	DeadConnTimeout time.Duration // how long requests wait when no connection is alive
	Backend         string        // identifies the device to whoever reconnects it; empty is none
	Sockets         []*os.File    // connected stream sockets; the kernel keeps references of its own
}

// Change is what Reconnect changes. Zero values change nothing.
type Change struct {
	Backend         string // must be what the device was connected with
	Size            int64
	Timeout         time.Duration
	DeadConnTimeout time.Duration
	Sockets         []*os.File // take the place of dead ones, in turn
}

// Device is what the driver says of one device.
type Device struct {
	Index     int
	Connected bool
}

// Driver is a way to the kernel's nbd driver. Calls may overlap. Errors are those above with the kernel's errno inside.
type Driver interface {
	// Connect makes a device work and returns its number. With Any two callers never get the same one.
	Connect(Config) (index int, err error)
	// Reconnect changes a connected device. The kernel takes as many of the sockets as it has dead ones, and does not say how many: of one that it
	// has not taken, the other end hangs up once the caller has closed its own.
	Reconnect(index int, c Change) error
	// Disconnect ends a device. Requests in flight fail.
	Disconnect(index int) error
	// Devices lists the devices that there are.
	Devices() ([]Device, error)
	// Watch calls dead, from one goroutine, with the number of each device that loses a connection, until ctx is done.
	// Events may be lost, and nobody waits for dead. Without events it returns ErrCannot at once.
	Watch(ctx context.Context, dead func(index int)) error
	// Survives says whether devices outlive this process, so that another can Reconnect them.
	Survives() bool
	Close() error
}

// Open returns the best way to the driver: generic netlink, otherwise ioctls. It loads the module if it can.
func Open() (Driver, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotAllowed
	}
	if err := Load(); err != nil {
		return nil, err
	}
	d, err := OpenNetlink()
	if err == nil {
		return d, nil
	}
	if !errors.Is(err, ErrNoDriver) {
		return nil, err
	}
	return OpenIoctl(Sys{})
}

func (c *Config) check() error {
	switch {
	case c.Index < Any:
		return errIndex
	case len(c.Sockets) == 0:
		return errNoSocket
	case c.BlockSize < 512 || c.BlockSize > 4096 || c.BlockSize&(c.BlockSize-1) != 0:
		return errBlockSize
	case c.Size <= 0 || c.Size%int64(c.BlockSize) != 0:
		return fmt.Errorf("kernel: %d bytes are no multiple of the block size %d", c.Size, c.BlockSize)
	}
	return nil
}

// seconds rounds up.
func seconds(d time.Duration) uint64 { return uint64((d + time.Second - 1) / time.Second) }

// wrap puts one of the errors above around what the kernel said.
func wrap(op string, kind, err error) error { return fmt.Errorf("%s: %w (%w)", op, kind, err) }
