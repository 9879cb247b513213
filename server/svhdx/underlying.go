package svhdx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"vdbridge/server"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
	"vdbridge/vhdx"
)

// fileOpen is an open with the originator flag VHDMP: the file that holds the disk, as it lies there. [3.2.5.1]
type fileOpen struct {
	f        *vhdx.OSFile
	size     atomic.Int64
	mayRead  bool
	mayWrite bool
}

// openUnderlying opens the file itself, alone: it refuses a file that is open as a shared disk, and keeps others from opening it so.
func (s *Service) openUnderlying(ctx context.Context, path string, access uint32) (server.DiskOpen, error) {
	if s.shared(path) {
		return nil, fmt.Errorf("the file is open as a shared virtual disk: %w", ntstatus.VHDShared)
	}
	o := &fileOpen{mayRead: access&wire.AccessReadData != 0, mayWrite: access&wire.AccessWriteData != 0}
	f, err := vhdx.OpenOSFile(path, !o.mayWrite)
	if err != nil {
		return nil, err
	}
	o.f = f
	if err = f.Lock(ctx, o.mayWrite); err == nil {
		var n int64
		if n, err = f.Size(ctx); err == nil {
			o.size.Store(n)
			return o, nil
		}
	}
	_ = f.Close()
	return nil, err
}

func (o *fileOpen) Read(ctx context.Context, p []byte, off int64) error {
	if !o.mayRead {
		return ntstatus.AccessDenied
	}
	_, err := o.f.ReadAt(ctx, p, off)
	if errors.Is(err, io.EOF) {
		return ntstatus.EndOfFile
	}
	return ioStatus(err)
}

func (o *fileOpen) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	if !o.mayWrite {
		return ntstatus.AccessDenied
	}
	_, err := o.f.WriteAt(ctx, p, off)
	if err == nil && fua {
		err = o.f.Flush(ctx)
	}
	for end, size := off+int64(len(p)), o.size.Load(); err == nil && end > size; size = o.size.Load() {
		o.size.CompareAndSwap(size, end)
	}
	return ioStatus(err)
}

func (o *fileOpen) Flush(ctx context.Context) error {
	if !o.mayWrite {
		return nil
	}
	return ioStatus(o.f.Flush(ctx))
}

// Tunnel refuses: such an open is not one of a virtual disk. [MS-SMB2] 3.3.5.15.15
func (o *fileOpen) Tunnel(context.Context, uint32, []byte, []byte) (int, error) {
	return 0, ntstatus.InvalidDeviceRequest
}

func (o *fileOpen) Size() int64  { return o.size.Load() }
func (o *fileOpen) Close() error { return o.f.Close() }
