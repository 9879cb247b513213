package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// The driver's ioctls (linux/nbd.h). They have plain arguments.
const (
	ioctlSetSock       = 0xab00
	ioctlSetBlockSize  = 0xab01
	ioctlDoIt          = 0xab03
	ioctlClearSock     = 0xab04
	ioctlSetSizeBlocks = 0xab07
	ioctlDisconnect    = 0xab08
	ioctlSetTimeout    = 0xab09
	ioctlSetFlags      = 0xab0a
)

// ioctls is the driver by ioctls on /dev/nbdX. A device is bound to one thread of this process: the kernel takes sockets only from the thread that
// began, and the device works as long as that thread is inside NBD_DO_IT.
type ioctls struct {
	sys Sys

	mu   sync.Mutex
	devs map[int]*ioctlDevice
	wg   sync.WaitGroup
}

type ioctlDevice struct {
	f         *os.File
	blockSize int
	done      chan struct{}
}

// OpenIoctl returns the driver by ioctls.
func OpenIoctl(sys Sys) (Driver, error) {
	if len(sys.List()) == 0 {
		return nil, fmt.Errorf("nbd by ioctl: %w: there is no /dev/nbd0", ErrNoDriver)
	}
	return &ioctls{sys: sys, devs: map[int]*ioctlDevice{}}, nil
}

func (d *ioctls) Survives() bool { return false }

func (d *ioctls) Watch(context.Context, func(int)) error { return ErrCannot }

func (d *ioctls) Connect(c Config) (int, error) {
	if err := c.check(); err != nil {
		return 0, err
	}
	candidates := []int{c.Index}
	if c.Index == Any {
		candidates = d.sys.List()
	}
	for _, index := range candidates {
		if d.sys.Connected(index) {
			continue
		}
		err := d.start(index, &c)
		if err == nil {
			return index, nil
		}
		if !errors.Is(err, ErrBusy) {
			return 0, err
		}
	}
	if c.Index == Any {
		return 0, fmt.Errorf("nbd connect: %w: all %d are", ErrBusy, len(candidates))
	}
	return 0, fmt.Errorf("nbd connect: %w", ErrBusy)
}

// start sets a device up on a thread of its own and lets that run it.
func (d *ioctls) start(index int, c *Config) error {
	result := make(chan error, 1)
	dev := &ioctlDevice{blockSize: c.BlockSize, done: make(chan struct{})}
	d.wg.Go(func() {
		defer close(dev.done)
		runtime.LockOSThread() // never unlocked: the thread ends with the device
		f, err := os.OpenFile(d.sys.Node(index), os.O_RDWR, 0)
		if err != nil {
			result <- fmt.Errorf("nbd%d: %w", index, err)
			return
		}
		defer f.Close()
		if err := setUp(f, c); err != nil {
			result <- fmt.Errorf("nbd%d: %w", index, err)
			return
		}
		dev.f = f
		d.mu.Lock()
		d.devs[index] = dev
		d.mu.Unlock()
		result <- nil
		_ = ioctl(f, ioctlDoIt, 0) // until the device is disconnected, or its last connection is dead
		_ = ioctl(f, ioctlClearSock, 0)
		d.mu.Lock()
		delete(d.devs, index)
		d.mu.Unlock()
	})
	if err := <-result; err != nil {
		<-dev.done
		return err
	}
	return nil
}

func setUp(f *os.File, c *Config) error {
	for i, s := range c.Sockets {
		err := ioctl(f, ioctlSetSock, s.Fd())
		// Whoever gives the first socket has the device. EINVAL: it belongs to netlink.
		if i == 0 && (errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL)) {
			return wrap("set socket", ErrBusy, err)
		}
		if err != nil {
			_ = ioctl(f, ioctlClearSock, 0)
			return fmt.Errorf("set socket: %w", err)
		}
	}
	for _, s := range []struct {
		what string
		code uint
		arg  uintptr
	}{
		{"set block size", ioctlSetBlockSize, uintptr(c.BlockSize)},
		{"set size", ioctlSetSizeBlocks, uintptr(c.Size / int64(c.BlockSize))},
		{"set timeout", ioctlSetTimeout, uintptr(seconds(c.Timeout))},
		{"set flags", ioctlSetFlags, uintptr(c.Flags | HasFlags)},
	} {
		if err := ioctl(f, s.code, s.arg); err != nil {
			_ = ioctl(f, ioctlClearSock, 0)
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return nil
}

func ioctl(f *os.File, code uint, arg uintptr) error {
	// Not through f.SyscallConn: NBD_DO_IT would hold the file for the life of the device.
	_, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(code), arg)
	runtime.KeepAlive(f)
	if e != 0 {
		return e
	}
	return nil
}

func (d *ioctls) device(index int) (*ioctlDevice, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dev := d.devs[index]
	if dev == nil {
		return nil, fmt.Errorf("nbd%d: %w", index, ErrGone)
	}
	return dev, nil
}

func (d *ioctls) Reconnect(index int, c Change) error {
	dev, err := d.device(index)
	switch {
	case err != nil:
		return err
	case len(c.Sockets) > 0 || c.Timeout > 0 || c.DeadConnTimeout > 0:
		return fmt.Errorf("nbd%d: connections: %w", index, ErrCannot)
	case c.Size <= 0:
		return errNothingToDo
	}
	if err := ioctl(dev.f, ioctlSetSizeBlocks, uintptr(c.Size/int64(dev.blockSize))); err != nil {
		return fmt.Errorf("nbd%d: set size: %w", index, err)
	}
	return nil
}

func (d *ioctls) Disconnect(index int) error {
	dev, err := d.device(index)
	if err != nil {
		return err
	}
	if err := ioctl(dev.f, ioctlDisconnect, 0); err != nil {
		_ = ioctl(dev.f, ioctlClearSock, 0)
	}
	<-dev.done
	return nil
}

func (d *ioctls) Devices() ([]Device, error) {
	var list []Device
	for _, i := range d.sys.List() {
		list = append(list, Device{Index: i, Connected: d.sys.Connected(i)})
	}
	return list, nil
}

func (d *ioctls) Close() error {
	d.mu.Lock()
	var all []int
	for i := range d.devs {
		all = append(all, i)
	}
	d.mu.Unlock()
	var errs []error
	for _, i := range all {
		if err := d.Disconnect(i); err != nil && !errors.Is(err, ErrGone) {
			errs = append(errs, err)
		}
	}
	d.wg.Wait()
	return errors.Join(errs...)
}
