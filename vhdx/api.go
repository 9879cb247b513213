package vhdx

import (
	"context"
	"log/slog"
)

// Options say how an image is opened. The zero value opens for reading and writing.
type Options struct {
	ReadOnly bool
	Logger   *slog.Logger // nil: silent
	// BATCacheBytes bounds the memory for cached BAT pages; 0 means 16 MiB.
	BATCacheBytes int64
}

// CreateOptions describe a new image. Only Size is needed.
type CreateOptions struct {
	Size           int64  // bytes; a multiple of LogicalSector, at most 64 TiB
	Fixed          bool   // give every block its space now
	BlockSize      int64  // power of two from 1 MiB to 256 MiB; 0 means 32 MiB
	LogicalSector  int    // 512 or 4096; 0 means 512
	PhysicalSector int    // 512 or 4096, at least LogicalSector; 0 means 4096
	LogSize        int64  // multiple of 1 MiB; 0 means 1 MiB
	VirtualDiskID  GUID   // zero: a random one
	Creator        string // at most 255 UTF-16 units; "" means "vdbridge"
	Overwrite      bool   // allow a backing file that is not empty; what it holds is lost
}

// Open opens an image. On success the disk owns the backing file and closes it; on an error the caller still does.
func Open(ctx context.Context, b Backing, o Options) (*Disk, error) { return open(ctx, b, o) }
