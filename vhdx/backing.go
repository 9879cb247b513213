package vhdx

import "context"

// Backing is the file that holds an image. All methods except Close may be called at the same time.
//
// ReadAt and WriteAt have the meaning of [io.ReaderAt] and [io.WriterAt]: less than len(p) bytes come with an error, and p is not touched after
// the call has returned. Flush makes everything durable whose WriteAt or Truncate returned before. Truncate sets the size in
// bytes; a file that grows by it reads as zeros there.
type Backing interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	Flush(ctx context.Context) error
	Size(ctx context.Context) (int64, error)
	Truncate(ctx context.Context, size int64) error
	Close() error
}

// HolePuncher is an optional ability of a [Backing]: the range reads as zeros afterwards and its space is given back.
// An error that is [errors.ErrUnsupported] means that the file cannot do it; the image then writes zeros.
type HolePuncher interface {
	PunchHole(ctx context.Context, off, n int64) error
}

// Zeroer is an optional ability of a [Backing]: the range reads as zeros afterwards and keeps its space. Errors are as for [HolePuncher].
type Zeroer interface {
	ZeroRange(ctx context.Context, off, n int64) error
}

// Allocator is an optional ability of a [Backing]: space for the range is reserved without changing what it reads as; the
// file grows if need be. Errors are as for [HolePuncher].
type Allocator interface {
	Allocate(ctx context.Context, off, n int64) error
}

// RangeQuerier is an optional ability of a [Backing]: it yields the parts of [off, off+n) that have data, in order, until yield returns false.
// Everything in between reads as zeros.
type RangeQuerier interface {
	AllocatedRanges(ctx context.Context, off, n int64, yield func(off, n int64) bool) error
}

// Locker is an optional ability of a [Backing]: an advisory lock against other openers, held until Close. With exclusive nobody else may have
// the file open, without it others may read. A lock that somebody else holds is an error that is [ErrInUse].
type Locker interface {
	Lock(ctx context.Context, exclusive bool) error
}
