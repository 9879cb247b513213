//go:build !linux

package transport

import (
	"net"
	"syscall"
	"time"
)

// socket is only there on Linux; elsewhere the standard library does the I/O.
type socket struct{}

func newSocket(syscall.Conn) *socket                 { return nil }
func (*socket) readv(p, q []byte) (int, error)       { return 0, syscall.ENOSYS }
func (*socket) startWritev(v [][]byte) (bool, error) { return false, syscall.ENOSYS }
func (*socket) finishWritev() error                  { return syscall.ENOSYS }
func setUserTimeout(*net.TCPConn, time.Duration)     {}
