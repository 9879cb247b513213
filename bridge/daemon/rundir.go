package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vdbridge/bridge"
)

// DefaultRunDir is where the control sockets are: /run/vdbridge for root, otherwise vdbridge below $XDG_RUNTIME_DIR.
func DefaultRunDir() string {
	if os.Geteuid() == 0 {
		return "/run/vdbridge"
	}
	if d := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
		return filepath.Join(d, "vdbridge")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("vdbridge-%d", os.Geteuid()))
}

// Names in the run-time directory.
const (
	daemonSocket = "daemon.sock"
	daemonLock   = "daemon.lock"
	// LogFile gets the log of a daemon that attach started by itself.
	LogFile = "daemon.log"
)

// makeRunDir makes the directory, for its owner alone. One that others may write to is refused: whoever could put a socket there would be given passwords.
func makeRunDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return &bridge.Error{Class: bridge.Classify(err), Sentence: fmt.Sprintf("the run-time directory cannot be made: %v; choose another with --run-dir", err), Err: err}
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("run-time directory: %w", err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !st.IsDir() || !ok || int(sys.Uid) != os.Geteuid() || st.Mode().Perm()&0o022 != 0 {
		return &bridge.Error{Class: bridge.ClassPermission, Sentence: fmt.Sprintf("%s is not a directory of ours that only we may write to: choose another with --run-dir, or mend its owner and mode (0700)", dir), Err: syscall.EACCES}
	}
	return nil
}

// lockDaemon makes sure that there is one daemon for the directory. The lock goes with the process.
func lockDaemon(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, daemonLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock of the daemon: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid := make([]byte, 32)
		n, _ := f.ReadAt(pid, 0)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &bridge.Error{Class: bridge.ClassBusy, Sentence: fmt.Sprintf("a daemon runs already (process %s): 'vdbridge attach' uses it by itself", strings.TrimSpace(string(pid[:n]))), Err: err}
		}
		return nil, fmt.Errorf("lock of the daemon: %w", err)
	}
	_ = f.Truncate(0)
	_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock of the daemon: %w", err)
	}
	return f, nil
}

// sockets lists the control sockets in the directory, the daemon's first.
func sockets(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("run-time directory: %w", err)
	}
	var list []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".sock")
		if !ok || e.Type()&fs.ModeSocket == 0 {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if e.Name() == daemonSocket {
			list = append([]string{path}, list...)
		} else if _, err := strconv.Atoi(name); err == nil {
			list = append(list, path)
		}
	}
	return list, nil
}
