package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vdbridge/fusefs"
)

// MountOptions say how a disk is shown in a directory.
type MountOptions struct {
	Dir        string
	ReadOnly   bool
	AllowOther bool
	Logger     *slog.Logger
	Ready      func() // called once when the files are there; may be nil
}

// infoTimeout is how long somebody who opens info.json waits for the server.
const infoTimeout = 10 * time.Second

// Mount shows d in a directory until ctx is done or somebody unmounts it, and then flushes d. d stays open.
func Mount(ctx context.Context, d *Disk, o MountOptions) error {
	if err := prepareDir(o.Dir, d.log); err != nil {
		return err
	}
	return explainMount(o.Dir, d.serve(ctx, o))
}

func (d *Disk) serve(ctx context.Context, o MountOptions) error {
	stop := context.AfterFunc(ctx, d.GiveUp) // what waits for a lost server would hold up the end
	defer stop()
	return fusefs.Serve(ctx, o.Dir, d, fusefs.Options{
		ReadOnly:     o.ReadOnly,
		AllowOther:   o.AllowOther,
		Name:         d.loc.String(),
		Logger:       o.Logger,
		Ready:        o.Ready,
		Info:         d.infoText,
		Reservations: d.reservationsText,
		Parts:        d.partsOf,
	})
}

// explainMount makes the sentence for what ended a mount, or kept it from beginning.
func explainMount(dir string, err error) error {
	switch {
	case errors.Is(err, fusefs.ErrBusy):
		return &Error{ClassBusy, fmt.Sprintf("%s was still in use when it was to end, so it was detached and has ended with its last user; unmount what stands on it first", dir), err}
	case errors.Is(err, syscall.ENOTDIR):
		return Usagef("%s is not a directory; give an empty directory to show the disk in", dir)
	case errors.Is(err, fs.ErrNotExist) && !exists(dir):
		return &Error{ClassNotFound, fmt.Sprintf("the directory %s does not exist; make it first", dir), err}
	}
	return err
}

// prepareDir says whether something can be mounted on dir, and cleans up what a process of ours has left there that was killed.
func prepareDir(dir string, log *slog.Logger) error {
	if err := needFUSE(); err != nil {
		return err
	}
	// Unlike stat, this is never answered from what the kernel remembers.
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); errors.Is(err, syscall.ENOTCONN) || errors.Is(err, syscall.ECONNABORTED) {
		abs, ours, merr := mountOn(dir)
		if merr != nil || !ours {
			return &Error{ClassBusy, fmt.Sprintf("a mount whose program has ended is left on %s, and it is not one of vdbridge: unmount it first", dir), err}
		}
		if err := cleanStale(abs); err != nil {
			return err
		}
		log.Info("the mount of a vdbridge that was killed has been cleaned up", "dir", dir)
	}
	return checkDir(dir)
}

// checkDir says whether dir is an empty directory with nothing mounted on it.
func checkDir(dir string) error {
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &Error{ClassNotFound, fmt.Sprintf("the directory %s does not exist; make it first", dir), err}
	case err != nil:
		return &Error{Classify(err), fmt.Sprintf("%s cannot be mounted on: %v", dir, rootCause(err)), err}
	case !st.IsDir():
		return Usagef("%s is not a directory; give an empty directory to show the disk in", dir)
	}
	if abs, err := realPath(dir); err == nil {
		if m, err := findMount(abs); err == nil && m != nil {
			return &Error{ClassBusy, fmt.Sprintf("something is mounted on %s already (%s): unmount it first, or give another directory", dir, m.fstype), syscall.EBUSY}
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return &Error{Classify(err), fmt.Sprintf("%s cannot be mounted on: %v", dir, rootCause(err)), err}
	}
	defer d.Close()
	if names, _ := d.Readdirnames(1); len(names) > 0 {
		return &Error{ClassExists, fmt.Sprintf("the directory %s is not empty, and a mount would hide what is in it: give an empty one", dir), syscall.ENOTEMPTY}
	}
	return nil
}

// needFUSE says what is missing for a mount.
func needFUSE() error {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return &Error{ClassUnsupported, "this machine has no FUSE (/dev/fuse is missing): 'modprobe fuse' loads it, and in a container the device has to be let in", err}
	}
	if os.Geteuid() == 0 {
		return nil
	}
	if _, err := exec.LookPath("fusermount3"); err != nil {
		return &Error{ClassUnsupported, "who is not root needs fusermount3 to mount: install the package fuse3", err}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
