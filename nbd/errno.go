package nbd

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"unicode/utf8"
)

// Error numbers of the protocol. They have the values of Linux.
const (
	nbdEPERM     = 1
	nbdEIO       = 5
	nbdENOMEM    = 12
	nbdEINVAL    = 22
	nbdENOSPC    = 28
	nbdEOVERFLOW = 75
	nbdENOTSUP   = 95
	nbdESHUTDOWN = 108
)

const maxErrorText = 1024 // longest error text sent to a client, in bytes

// Errno returns the error number that tells an NBD client of err: that of the syscall.Errno in its chain, brought down to the few that NBD has.
// Everything without one is an I/O error. It returns 0 for nil.
func Errno(err error) uint32 {
	if err == nil {
		return 0
	}
	var e syscall.Errno
	if !errors.As(err, &e) {
		return nbdEIO
	}
	switch e {
	case syscall.EPERM, syscall.EACCES, syscall.EROFS:
		return nbdEPERM
	case syscall.ENOMEM:
		return nbdENOMEM
	case syscall.EINVAL, syscall.EOPNOTSUPP:
		return nbdEINVAL // ENOTSUP is reserved for zeroing that would not be fast
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return nbdENOSPC
	case syscall.EOVERFLOW:
		return nbdEOVERFLOW
	case syscall.ESHUTDOWN:
		return nbdESHUTDOWN
	default:
		return nbdEIO
	}
}

// requestErrno is Errno for a request on this connection: what the shutdown cancelled is told as such.
func (c *conn) requestErrno(err error) uint32 {
	if c.srv.draining.Load() && errors.Is(err, context.Canceled) {
		return nbdESHUTDOWN
	}
	return Errno(err)
}

// protoError is a client's mistake: an error number and a sentence.
type protoError struct {
	errno syscall.Errno
	text  string
}

func (e *protoError) Error() string { return e.text }
func (e *protoError) Unwrap() error { return e.errno }

// truncateText makes s valid UTF-8 without NUL and no longer than n bytes.
func truncateText(s string, n int) string {
	if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
		s = strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\x00", "?")
	}
	if len(s) <= n {
		return s
	}
	s = s[:n]
	for len(s) > 0 && !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}
