package transport

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxIovecs is UIO_MAXIOV, how many the kernel takes in one call.
const maxIovecs = 1024

// socket does vectored I/O on a non-blocking descriptor and waits with the runtime's poller. Reading and writing have a state each, so
// one reader and one writer can be in it at the same time.
type socket struct {
	rc syscall.RawConn

	// Of the reader. readFn is made once, as a closure for each call would be an allocation.
	rvec   [2]unix.Iovec
	rn     int
	rerr   syscall.Errno
	readFn func(fd uintptr) bool

	// Of the writer. wvec[wnext:] is to be written yet. The iovecs keep their buffers alive, as Base is a pointer.
	wvec    []unix.Iovec
	wnext   int
	werr    syscall.Errno
	wait    bool // on a full socket buffer
	writeFn func(fd uintptr) bool
}

func newSocket(sc syscall.Conn) *socket {
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	s := &socket{rc: rc}
	s.readFn = s.readOnce
	s.writeFn = s.writeOnce
	return s
}

func iovec(p []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(p)}
	v.SetLen(len(p))
	return v
}

// readv waits until there is something to read, and reads it to p and what does not fit to q. p is not empty.
func (s *socket) readv(p, q []byte) (int, error) {
	s.rvec = [2]unix.Iovec{iovec(p), iovec(q)}
	err := s.rc.Read(s.readFn)
	s.rvec = [2]unix.Iovec{}
	if err != nil {
		return 0, err
	}
	if s.rerr != 0 {
		return 0, os.NewSyscallError("readv", s.rerr)
	}
	if s.rn == 0 {
		return 0, io.EOF
	}
	return s.rn, nil
}

func (s *socket) readOnce(fd uintptr) bool {
	for {
		n, _, e := syscall.Syscall(syscall.SYS_READV, fd, uintptr(unsafe.Pointer(&s.rvec[0])), 2)
		switch e {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return false
		}
		s.rn, s.rerr = int(n), e
		return true
	}
}

// startWritev writes v as far as possible without waiting and says whether that was all. v itself is not kept, its slices are.
func (s *socket) startWritev(v [][]byte) (done bool, err error) {
	s.wvec = s.wvec[:0]
	s.wnext = 0
	for _, p := range v {
		if len(p) > 0 {
			s.wvec = append(s.wvec, iovec(p))
		}
	}
	s.wait = false
	return s.write()
}

func (s *socket) finishWritev() error {
	s.wait = true
	_, err := s.write()
	return err
}

func (s *socket) write() (done bool, err error) {
	s.werr = 0
	err = s.rc.Write(s.writeFn)
	if err == nil && s.werr != 0 {
		err = os.NewSyscallError("writev", s.werr)
	}
	if err == nil && s.wnext < len(s.wvec) {
		return false, nil
	}
	clear(s.wvec)
	s.wvec, s.wnext = s.wvec[:0], 0
	return true, err
}

// writeOnce is called by the poller, and again when the socket has become writable if it returned false.
func (s *socket) writeOnce(fd uintptr) bool {
	for s.wnext < len(s.wvec) {
		v := s.wvec[s.wnext:min(len(s.wvec), s.wnext+maxIovecs)]
		var n uintptr
		var e syscall.Errno
		if len(v) == 1 {
			n, _, e = syscall.Syscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(v[0].Base)), uintptr(v[0].Len))
		} else {
			n, _, e = syscall.Syscall(syscall.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&v[0])), uintptr(len(v)))
		}
		switch e {
		case 0:
			s.advance(int(n))
		case syscall.EINTR:
		case syscall.EAGAIN:
			return !s.wait
		default:
			s.werr = e
			return true
		}
	}
	return true
}

// advance drops n written bytes from the front of wvec.
func (s *socket) advance(n int) {
	for n > 0 {
		v := &s.wvec[s.wnext]
		if uint64(n) < uint64(v.Len) {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
			v.SetLen(int(v.Len) - n)
			return
		}
		n -= int(v.Len)
		*v = unix.Iovec{}
		s.wnext++
	}
}

func setUserTimeout(tc *net.TCPConn, d time.Duration) {
	rc, err := tc.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}
