package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	stop := context.AfterFunc(ctx, d.GiveUp) // what waits for a lost server would hold up the end
	defer stop()
	err := fusefs.Serve(ctx, o.Dir, d, fusefs.Options{
		ReadOnly:   o.ReadOnly,
		AllowOther: o.AllowOther,
		Name:       d.loc.String(),
		Logger:     o.Logger,
		Ready:      o.Ready,
		Info: func() []byte {
			ctx, cancel := context.WithTimeout(ctx, infoTimeout)
			defer cancel()
			info, err := d.Info(ctx)
			if err != nil {
				info = &Info{Disk: d.loc.String(), Mode: d.mode.String(), Size: d.Size()}
			}
			b, err := json.MarshalIndent(info, "", "  ")
			if err != nil {
				return nil
			}
			return append(b, '\n')
		},
	})
	switch {
	case errors.Is(err, fusefs.ErrBusy):
		return &Error{ClassBusy, fmt.Sprintf("%s was still in use when it was to end, so it was detached and has ended with its last user; unmount what stands on disk.raw first", o.Dir), err}
	case errors.Is(err, syscall.ENOTDIR):
		return Usagef("%s is not a directory; give an empty directory to show the disk in", o.Dir)
	case errors.Is(err, fs.ErrNotExist) && !exists(o.Dir):
		return &Error{ClassNotFound, fmt.Sprintf("the directory %s does not exist; make it first", o.Dir), err}
	}
	return err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Unmount ends what Mount shows in dir. It fails if it is in use, and if something else is mounted there.
func Unmount(ctx context.Context, dir string) error {
	abs, err := filepath.Abs(dir)
	if err == nil {
		// The kernel lists mounts by their real paths. The last element stays as it is: looking at a dead mount fails.
		var parent string
		if parent, err = filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
			abs = filepath.Join(parent, filepath.Base(abs))
		}
	}
	if err != nil {
		return &Error{Classify(err), fmt.Sprintf("umount %s: %v", dir, rootCause(err)), err}
	}
	ours, err := isOurMount(abs)
	if err != nil {
		return fmt.Errorf("umount: %w", err)
	}
	if !ours {
		return &Error{ClassNotFound, fmt.Sprintf("nothing of vdbridge is mounted on %s", dir), syscall.EINVAL}
	}
	err = unix.Unmount(abs, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EPERM) {
		// Who mounted with the help of fusermount3 unmounts with it too.
		out, herr := exec.CommandContext(ctx, "fusermount3", "-u", "--", abs).CombinedOutput()
		switch {
		case herr == nil:
			return nil
		case strings.Contains(string(out), "busy"):
			err = unix.EBUSY
		default:
			return fmt.Errorf("umount %s: %s: %w", dir, strings.TrimSpace(string(out)), herr)
		}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		return &Error{ClassBusy, fmt.Sprintf("%s is in use: unmount what stands on disk.raw, and leave the directory, first", dir), err}
	}
	return &Error{Classify(err), fmt.Sprintf("umount %s: %v", dir, err), err}
}

// isOurMount looks the directory up in the list of mounts. proc(5)
func isOurMount(dir string) (bool, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	escape := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)
	ours := false
	for line := range strings.Lines(string(b)) {
		left, right, ok := strings.Cut(line, " - ")
		fields := strings.Fields(left)
		if !ok || len(fields) < 5 || fields[4] != escape.Replace(dir) {
			continue
		}
		// The last one on a directory is on top.
		ours = strings.HasPrefix(right, "fuse.vdbridge ")
	}
	return ours, nil
}
