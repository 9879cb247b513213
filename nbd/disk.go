package nbd

import (
	"context"
	"errors"
	"io/fs"
)

// Disk is what an export stands on. All methods may be called at the same time from any goroutine. Offsets and lengths are in bytes, multiples
// of the logical block size and within the size: the server checks before it calls. A returned error that has a syscall.Errno in
// its chain keeps it on the way to the client as far as NBD has a number for it; see [Errno].
type Disk interface {
	// Read fills all of p from off, or returns an error.
	Read(ctx context.Context, p []byte, off int64) error
	// Write writes all of p at off, or returns an error. With fua the data is durable on return.
	Write(ctx context.Context, p []byte, off int64, fua bool) error
	// Flush makes everything durable whose Write returned before.
	Flush(ctx context.Context) error
	// Trim tells that the contents of the range are no longer needed.
	Trim(ctx context.Context, off, n int64) error
	// WriteZeroes makes the range read back as zeros; unmap allows deallocation.
	WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error
	// Extents yields consecutive runs from off until the range is covered or yield returns false.
	Extents(ctx context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error
	// Size is the size in bytes.
	Size() int64
	// BlockSizes are in bytes; optimal and maxTransfer are 0 when not known or unlimited.
	BlockSizes() (logical, physical, optimal, maxTransfer int)
	ReadOnly() bool
}

// NonBlocker is an optional ability of a Disk: NonBlocking reports that no call ever waits for anything but the processor, so that calls
// need no goroutine of their own. Large writes to such a disk may arrive as several calls of Write, each of whole physical blocks.
type NonBlocker interface {
	NonBlocking() bool
}

// FastZeroer is an optional ability of a Disk: FastZero reports that WriteZeroes is faster than writing zeros.
type FastZeroer interface {
	FastZero() bool
}

// HoleReader is an optional ability of a Disk. ReadHole does what Read does, except that it may leave p alone and return hole = true when
// the whole range reads as zeros and the disk knows without looking at the data.
type HoleReader interface {
	ReadHole(ctx context.Context, p []byte, off int64) (hole bool, err error)
}

// Cacher is an optional ability of a Disk: Cache is told that the range will be accessed soon. Without it CACHE requests succeed and do nothing.
type Cacher interface {
	Cache(ctx context.Context, off, n int64) error
}

// MetaContext answers BLOCK_STATUS for one metadata context, such as "base:allocation" or "qemu:dirty-bitmap:x".
type MetaContext interface {
	// Name is the full name, namespace and leaf joined by a colon, at most 4096 bytes.
	Name() string
	// Status yields consecutive runs from off until the range is covered or yield returns false.
	Status(ctx context.Context, off, n int64, yield func(n int64, flags uint32) bool) error
}

// Export is a disk under a name.
type Export struct {
	Name        string // at most 4096 bytes
	Description string // for people; may be empty; at most 4096 bytes
	Disk        Disk
	ReadOnly    bool          // offer the disk read-only though it is writable
	SingleConn  bool          // do not tell clients that several connections see the same data; set it if Flush covers one caller only
	Contexts    []MetaContext // beside base:allocation, which every export has
	Release     func()        // called once when a connection that resolved this export is done with it; may be nil
}

// Resolver finds exports. Its methods may be called at the same time.
type Resolver interface {
	// Resolve finds an export by the name that a client asked for; "" is the default export. An error that is fs.ErrNotExist tells
	// the client that there is no such export, any other that policy forbids it.
	Resolve(ctx context.Context, name string) (*Export, error)
	// List yields the exports that clients may see until yield returns false.
	List(ctx context.Context, yield func(name, description string) bool) error
}

// Exports is a fixed list of exports. The first one is also the default export unless another has the empty name.
type Exports []*Export

// Resolve implements Resolver.
func (e Exports) Resolve(_ context.Context, name string) (*Export, error) {
	for _, x := range e {
		if x.Name == name {
			return x, nil
		}
	}
	if name == "" && len(e) > 0 {
		return e[0], nil
	}
	return nil, errNoExport
}

// List implements Resolver.
func (e Exports) List(_ context.Context, yield func(name, description string) bool) error {
	for _, x := range e {
		if !yield(x.Name, x.Description) {
			break
		}
	}
	return nil
}

type noExport struct{}

func (noExport) Error() string        { return "no such export" }
func (noExport) Is(target error) bool { return target == fs.ErrNotExist }

var errNoExport = noExport{}

var errNoDisk = errors.New("nbd: the export has no disk")
