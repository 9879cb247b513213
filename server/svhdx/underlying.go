package svhdx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"vdbridge/server"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
	"vdbridge/vhdx"
)

// fileOpen is an open with the originator flag VHDMP: the file that holds the disk, as it lies there. [3.2.5.1]
type fileOpen struct {
	s        *Service
	key      fileKey
	f        *vhdx.OSFile
	opts     uint32 // CreateOptions
	size     atomic.Int64
	broken   atomic.Pointer[error] // of the first flush that failed
	mayRead  bool
	mayWrite bool
	once     sync.Once
}

// openUnderlying opens the file itself, alone: it refuses a file with any open of this service, and keeps others from opening it as a disk.
func (s *Service) openUnderlying(ctx context.Context, path string, opts, access uint32) (server.DiskOpen, error) {
	key, err := keyOf(path)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.disks[key] != nil || s.files[key] != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("the file is open as a shared virtual disk: %w", ntstatus.VHDShared)
	}
	o := &fileOpen{s: s, key: key, opts: opts, mayRead: access&wire.AccessReadData != 0, mayWrite: access&wire.AccessWriteData != 0}
	s.files[key] = o
	s.mu.Unlock()
	if o.f, err = vhdx.OpenOSFile(path, !o.mayWrite); err == nil {
		var n int64
		if err = o.f.Lock(ctx, o.mayWrite); err == nil {
			n, err = o.f.Size(ctx)
		}
		if err == nil {
			o.size.Store(n)
			return o, nil
		}
	}
	_ = o.Close()
	return nil, err
}

// check verifies what [3.2.5.3] and [3.2.5.4] ask of every open before I/O.
func (o *fileOpen) check(granted bool) error {
	if o.opts&wire.OptNoIntermediateBuffering == 0 {
		return ntstatus.NotSupported
	}
	if !granted {
		return ntstatus.AccessDenied
	}
	return nil
}

func (o *fileOpen) Read(ctx context.Context, p []byte, off int64) error {
	if err := o.check(o.mayRead); err != nil {
		return err
	}
	_, err := o.f.ReadAt(ctx, p, off)
	if errors.Is(err, io.EOF) {
		return ntstatus.EndOfFile
	}
	return ioStatus(err)
}

func (o *fileOpen) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := o.check(o.mayWrite); err != nil {
		return err
	}
	_, err := o.f.WriteAt(ctx, p, off)
	if err == nil && fua {
		err = o.flush(ctx)
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
	return ioStatus(o.flush(ctx))
}

// flush makes the file durable. When that has failed once, the system may have dropped what was written, and a later success would mean nothing.
func (o *fileOpen) flush(ctx context.Context) error {
	if p := o.broken.Load(); p != nil {
		return *p
	}
	err := o.f.Flush(ctx)
	if err != nil && !(ctx.Err() != nil && errors.Is(err, ctx.Err())) {
		o.broken.CompareAndSwap(nil, &err)
	}
	return err
}

// Tunnel refuses: such an open is not one of a virtual disk. [MS-SMB2] 3.3.5.15.15
func (o *fileOpen) Tunnel(context.Context, uint32, []byte, []byte) (int, error) {
	return 0, ntstatus.InvalidDeviceRequest
}

// Size is [server.DiskOpen]: the size of the file in bytes.
func (o *fileOpen) Size() int64 { return o.size.Load() }

// Close is [server.DiskOpen]. A second call does nothing.
func (o *fileOpen) Close() (err error) {
	o.once.Do(func() {
		if o.f != nil {
			err = o.f.Close()
		}
		o.s.mu.Lock()
		delete(o.s.files, o.key)
		o.s.mu.Unlock()
	})
	return err
}
