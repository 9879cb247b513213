package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// pair makes a connection: one end for the kernel, one for us. The socket buffers are large, as a whole request should fit: what does not makes the
// kernel's thread and ours wait for each other in turn.
func pair() (kernel *os.File, ours net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	for _, fd := range fds {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer)
	}
	kernel = os.NewFile(uintptr(fds[0]), "nbd")
	f := os.NewFile(uintptr(fds[1]), "nbd")
	ours, err = net.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		kernel.Close()
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	return kernel, ours, nil
}

// hungUp says whether nobody has the other end.
func hungUp(c net.Conn) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	fds := []unix.PollFd{{Events: unix.POLLRDHUP}}
	err = raw.Control(func(fd uintptr) {
		fds[0].Fd = int32(fd)
		_, _ = unix.Poll(fds, 0)
	})
	return err != nil || fds[0].Revents&(unix.POLLHUP|unix.POLLRDHUP|unix.POLLERR) != 0
}

const socketBuffer = 2 << 20
