package vhd

import (
	"context"
	"fmt"
	"path/filepath"

	"vdbridge/vhdx"
)

// OpenFile opens the image in a local file, and the parents that it needs beside it or where their paths lead.
func OpenFile(ctx context.Context, path string, o Options) (*Disk, error) {
	f, err := vhdx.OpenOSFile(path, true)
	if err != nil {
		return nil, err
	}
	if o.Name == "" {
		o.Name = vhdx.CanonicalFile(path)
	}
	if o.Resolver == nil {
		o.Resolver = vhdx.FileResolver{Dir: filepath.Dir(o.Name)}
	}
	d, err := Open(ctx, f, o)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return d, nil
}
