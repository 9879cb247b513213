package fusefs

import (
	"log/slog"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// reporter logs failed requests, at most one a second, as a disk that fails does so for every request.
type reporter struct {
	log    *slog.Logger
	logged atomic.Int64 // Unix nanoseconds
}

// failed logs an error and says it to the kernel.
func (r *reporter) failed(op, what string, off, n int64, err error) syscall.Errno {
	e := errno(err)
	if e == syscall.EINTR || e == 0 {
		return e
	}
	now, last := time.Now().UnixNano(), r.logged.Load()
	if now-last > int64(time.Second) && r.logged.CompareAndSwap(last, now) {
		r.log.Warn("fuse: request failed", "op", op, "file", what, "offset", off, "length", n, "errno", unix.ErrnoName(e), "err", err)
	}
	return e
}
