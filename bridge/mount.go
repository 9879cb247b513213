package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
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
	return fusefs.Serve(ctx, o.Dir, d, fusefs.Options{
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
}

// Unmount ends what Mount shows in dir. It fails if it is in use, and if something else is mounted there.
func Unmount(ctx context.Context, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is in use: unmount what stands on its files, and leave it, first: %w", dir, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("nothing is mounted on %s: %w", dir, err)
	case !errors.Is(err, unix.EPERM):
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	// Who mounted with the help of fusermount3 unmounts with it too.
	out, err := exec.CommandContext(ctx, "fusermount3", "-u", "--", dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("unmount %s: %s: %w", dir, strings.TrimSpace(string(out)), err)
	}
	return nil
}
