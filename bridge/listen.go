package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen opens a listener for unix:PATH, tcp:ADDR or ADDR. A unix socket that nobody listens on any more is replaced; one that is alive is not.
// The socket is only for its owner (mode 0600). TCP addresses without a host mean loopback, as whoever can connect can write.
func Listen(spec string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(spec, "unix:"); ok {
		if path == "" {
			return nil, Usagef("unix: needs a path, such as unix:/run/vdbridge/disk.sock")
		}
		return listenUnix(path)
	}
	addr := strings.TrimPrefix(spec, "tcp:")
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port == "" {
		return nil, Usagef("%q is not an address to listen on; give unix:PATH or tcp:HOST:PORT (port 0 picks a free one)", spec)
	}
	if host == "" {
		addr = net.JoinHostPort("127.0.0.1", port)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, listenError(spec, err)
	}
	return l, nil
}

// Reservation is a TCP address that is taken and not listened on: whoever connects is refused at once.
type Reservation struct {
	spec string
	f    *os.File
}

// Reserve takes a TCP address to listen on later. Its port must not be 0.
func Reserve(spec string) (*Reservation, error) {
	addr := strings.TrimPrefix(spec, "tcp:")
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port == "" || port == "0" {
		return nil, Usagef("%q is not an address to listen on later; give HOST:PORT, with a port that is not 0", spec)
	}
	if host == "" {
		addr = net.JoinHostPort("127.0.0.1", port)
	}
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, listenError(spec, err)
	}
	family, sa := unix.AF_INET6, unix.Sockaddr(nil)
	if ip4 := a.IP.To4(); ip4 != nil {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte(ip4)}
	} else {
		sa6 := &unix.SockaddrInet6{Port: a.Port}
		copy(sa6.Addr[:], a.IP.To16())
		if i, err := net.InterfaceByName(a.Zone); err == nil {
			sa6.ZoneId = uint32(i.Index)
		}
		sa = sa6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, listenError(spec, err)
	}
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
		err = unix.Bind(fd, sa)
	}
	if err != nil {
		unix.Close(fd)
		return nil, listenError(spec, err)
	}
	return &Reservation{spec, os.NewFile(uintptr(fd), spec)}, nil
}

// Listen begins to listen; the reservation is over.
func (r *Reservation) Listen() (net.Listener, error) {
	defer r.f.Close() // the listener has a descriptor of its own
	if err := unix.Listen(int(r.f.Fd()), unix.SOMAXCONN); err != nil {
		return nil, listenError(r.spec, err)
	}
	l, err := net.FileListener(r.f)
	if err != nil {
		return nil, listenError(r.spec, err)
	}
	return l, nil
}

// Close gives the address up.
func (r *Reservation) Close() error { return r.f.Close() }

func listenUnix(path string) (net.Listener, error) {
	if len(path) > 107 {
		return nil, Usagef("the socket path is %d bytes long; the system takes at most 107", len(path))
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode()&fs.ModeSocket == 0 {
			return nil, &Error{ClassExists, fmt.Sprintf("%s exists and is not a socket; choose another path", path), syscall.EEXIST}
		}
		c, err := net.Dial("unix", path)
		if err == nil {
			c.Close()
			return nil, &Error{ClassBusy, fmt.Sprintf("another process listens on %s; choose another path or end that process", path), syscall.EADDRINUSE}
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			_ = os.Remove(path) // left behind by a process that was killed
		}
	}
	// The socket must not be open to others even for a moment.
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, listenError("unix:"+path, err)
	}
	return l, nil
}

func listenError(spec string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "; another process has it, choose another or port 0"
	case errors.Is(err, syscall.EACCES):
		hint = "; choose one that you may use (ports below 1024 need root)"
	case errors.Is(err, fs.ErrNotExist):
		hint = "; make its directory first"
	}
	return &Error{Classify(err), fmt.Sprintf("cannot listen on %s: %v%s", spec, rootCause(err), hint), err}
}

// rootCause is the innermost error, for sentences that name the rest themselves.
func rootCause(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// ListenerAddr says an address the way that Listen takes it.
func ListenerAddr(l net.Listener) string {
	a := l.Addr()
	return a.Network() + ":" + a.String()
}
