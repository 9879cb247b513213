package bridge

import (
	"context"
	"log/slog"
)

// MountOptions say how a disk is shown in a directory.
type MountOptions struct {
	Dir        string
	ReadOnly   bool
	AllowOther bool
	Logger     *slog.Logger
	Ready      func() // called once when the files are there; may be nil
}

// Mount shows d in a directory until ctx is done or somebody unmounts it, and then flushes d. d stays open.
func Mount(ctx context.Context, d *Disk, o MountOptions) error {
	return Usagef("mount is not part of this build")
}

// Unmount ends what Mount shows in dir.
func Unmount(ctx context.Context, dir string) error {
	return Usagef("mount is not part of this build")
}
