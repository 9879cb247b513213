package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// calmTimeout is how long a calm read blocks in the kernel before it lets the thread go and waits in the Go scheduler. It is also the longest
// time that a kick may take. The value hardly matters: a wait that long makes the cost of changing over invisible.
const calmTimeout = 20 * time.Millisecond

const maxIovecs = 1024 // UIO_MAXIOV

// sock is the transport over a TCP or unix socket. It has two states, which the reader changes:
//
//   - hot: the socket is in blocking mode and known to no poller. A receive is one system call, and the kernel wakes this very
//     thread when data comes. With the socket registered in the runtime's epoll instance, each arrival would wake a second
//     thread as well.
//   - parked: the socket is non-blocking and registered with the runtime, as any net.Conn. Waiting costs no thread, and a P is never held by a
//     blocked call, which matters as soon as other goroutines have work for this connection.
type sock struct {
	fd  int
	hot bool // the reader's, and read by the writer while nothing is in flight

	mu     sync.Mutex
	file   *os.File // a duplicate of fd that is registered with the runtime; nil when hot
	raw    syscall.RawConn
	kicked bool
	closed bool

	rbuf   []byte // the reader's
	rn     int
	rerr   error
	readFn func(fd uintptr) bool

	iov     []unix.Iovec // the writer's
	msg     unix.Msghdr
	wn      int
	werr    error
	writeFn func(fd uintptr) bool
}

// newSock takes c over if it is a stream socket of the kernel; c is closed then, the connection lives on. ok is false if it is something else.
func newSock(c net.Conn) (t transport, ok bool, err error) {
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		return nil, false, nil
	}
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil, false, fmt.Errorf("nbd: socket: %w", err)
	}
	fd := -1
	cerr := raw.Control(func(f uintptr) {
		var typ int
		if typ, err = unix.GetsockoptInt(int(f), unix.SOL_SOCKET, unix.SO_TYPE); err != nil || typ != unix.SOCK_STREAM {
			return
		}
		fd, err = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err := errors.Join(cerr, err); err != nil {
		return nil, false, fmt.Errorf("nbd: duplicate socket: %w", err)
	}
	if fd < 0 {
		return nil, false, nil
	}
	s := &sock{fd: fd, hot: true}
	s.readFn, s.writeFn = s.tryRead, s.tryWrite
	tv := unix.NsecToTimeval(int64(calmTimeout))
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	if err == nil {
		if _, local := c.(*net.UnixConn); local {
			// Replies of a megabyte then leave in fewer pieces, for root in one. TCP sizes its buffer itself, and better.
			if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBufferBytes) != nil {
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBufferBytes)
			}
		}
		c.Close() // and with it the registration in the runtime's poller
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		unix.Close(fd)
		return nil, false, fmt.Errorf("nbd: socket: %w", err)
	}
	return s, true, nil
}

const sendBufferBytes = 2 << 20

// heat makes the socket hot. It reports false if there has been a kick.
func (s *sock) heat() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kicked || s.closed {
		return false
	}
	if err := unix.SetNonblock(s.fd, false); err != nil {
		return false
	}
	s.file.Close()
	s.file, s.raw, s.hot = nil, nil, true
	return true
}

func (s *sock) park() error {
	if !s.hot {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return fmt.Errorf("nbd: socket: %w", err)
	}
	fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("nbd: duplicate socket: %w", err)
	}
	s.file = os.NewFile(uintptr(fd), "nbd connection")
	if s.raw, err = s.file.SyscallConn(); err != nil {
		return fmt.Errorf("nbd: socket: %w", err)
	}
	s.hot = false
	if s.kicked {
		s.file.SetReadDeadline(longAgo)
	}
	return nil
}

func (s *sock) read(p []byte, calm bool) (int, error) { return s.recv(p, calm, 0) }

func (s *sock) readFull(p []byte, calm bool) (int, error) {
	done := 0
	for done < len(p) {
		n, err := s.recv(p[done:], calm, unix.MSG_WAITALL)
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

func (s *sock) recv(p []byte, calm bool, flags int) (int, error) {
	if calm && (s.hot || s.heat()) {
		for {
			n, _, e := unix.Syscall6(unix.SYS_RECVFROM, uintptr(s.fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), uintptr(flags), 0, 0)
			switch e {
			case 0:
				if n == 0 {
					return 0, io.EOF
				}
				return int(n), nil
			case unix.EINTR:
				continue
			case unix.EAGAIN:
			default:
				return 0, fmt.Errorf("receive: %w", e)
			}
			break
		}
	}
	if err := s.park(); err != nil {
		return 0, err
	}
	s.rbuf = p
	err := s.raw.Read(s.readFn)
	s.rbuf = nil
	if err == nil {
		err = s.rerr
	}
	if err != nil {
		return 0, fmt.Errorf("receive: %w", err)
	}
	if s.rn == 0 {
		return 0, io.EOF
	}
	return s.rn, nil
}

func (s *sock) tryRead(uintptr) bool {
	for {
		s.rn, s.rerr = unix.Read(s.fd, s.rbuf)
		if s.rerr != unix.EINTR {
			return s.rerr != unix.EAGAIN
		}
	}
}

func (s *sock) readNow(p []byte) int {
	if s.park() != nil {
		return 0
	}
	n, err := unix.Read(s.fd, p)
	if err != nil {
		return 0
	}
	return n
}

func (s *sock) write(bufs [][]byte) error {
	s.iov = s.iov[:0]
	for _, b := range bufs {
		if len(b) > 0 {
			s.iov = append(s.iov, unix.Iovec{Base: &b[0], Len: uint64(len(b))})
		}
	}
	iov := s.iov
	var err error
	for len(iov) > 0 && err == nil {
		s.msg.Iov, s.msg.Iovlen = &iov[0], uint64(min(len(iov), maxIovecs))
		s.tryWrite(0)
		if s.werr == unix.EAGAIN && !s.hot {
			err = s.raw.Write(s.writeFn)
		}
		if err == nil {
			err = s.werr
		}
		for n := s.wn; n > 0; {
			if uint64(n) < iov[0].Len {
				iov[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(iov[0].Base), n))
				iov[0].Len -= uint64(n)
				break
			}
			n -= int(iov[0].Len)
			iov = iov[1:]
		}
	}
	s.msg.Iov = nil
	clear(s.iov)
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

func (s *sock) tryWrite(uintptr) bool {
	for {
		n, _, e := unix.Syscall(unix.SYS_SENDMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.msg)), unix.MSG_NOSIGNAL)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			s.wn, s.werr = 0, e
			return e != unix.EAGAIN
		}
		s.wn, s.werr = int(n), nil
		return true
	}
}

func (s *sock) kick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kicked = true
	if s.file != nil && !s.closed {
		s.file.SetReadDeadline(longAgo)
	}
}

func (s *sock) unkick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kicked = false
	if s.file != nil && !s.closed {
		s.file.SetReadDeadline(time.Time{})
	}
}

func (s *sock) abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		unix.Shutdown(s.fd, unix.SHUT_RDWR)
	}
}

func (s *sock) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	if s.file != nil {
		s.file.Close()
	}
	unix.Close(s.fd)
}
