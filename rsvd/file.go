package rsvd

import (
	"context"

	"vdbridge/smb/wire"
)

// File is the SMB open that a Disk stands on. All methods may be called at the same time. Errors carry an ntstatus.Status. None of
// the slices is touched after the call has returned, also when ctx was cancelled.
type File interface {
	// ReadAt and WriteAt are READ and WRITE; a file splits what is larger than its server takes.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	// Flush is FLUSH.
	Flush(ctx context.Context) error
	// Ioctl sends in1 and in2, one behind the other, and scatters the reply into out1, then out2. MaxOutputResponse is the length of
	// both. It returns the bytes received. On STATUS_BUFFER_OVERFLOW there are data and an error.
	Ioctl(ctx context.Context, code uint32, in1, in2, out1, out2 []byte) (n int, err error)
	Close() error
}

// transactLimiter is a File that knows the most bytes of an IOCTL's input or output (MaxTransactSize). Others are taken to allow 64 KiB.
type transactLimiter interface{ MaxTransactSize() int }

// CreateFunc sends a CREATE and returns the open and the create contexts of the reply. An error carries an ntstatus.Status if the
// server refused.
type CreateFunc func(ctx context.Context, req *wire.CreateRequest) (File, []wire.CreateContext, error)
