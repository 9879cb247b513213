package daemon

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Harden prepares the process for serving the disk that the kernel may have to write to before it can give memory to anybody; see the package's text. What
// the system does not allow is in the error; the rest is done all the same.
func Harden() error {
	var errs []error
	// MCL_ONFAULT: the address space that Go reserves is much larger than what it uses.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		errs = append(errs, fmt.Errorf("lock memory: %w", err))
	}
	// A thread hands the flag on to those that it starts, so all that there are have to have it. (Programs with cgo, such as those built with the race detector,
	// cannot do that.)
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0); e != 0 && e != syscall.ENOTSUP {
		errs = append(errs, fmt.Errorf("PR_SET_IO_FLUSHER: %w", e))
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		errs = append(errs, fmt.Errorf("out-of-memory priority: %w", err))
	}
	return errors.Join(errs...)
}
