package vhdx

import (
	"errors"
	"fmt"
)

// Errors that say what is wrong with a call or a file. Compare with [errors.Is].
var (
	// ErrNotVHDX: the file does not begin with the signature of a VHDX image.
	ErrNotVHDX = errors.New("not a VHDX image")
	// ErrUnsupported: the image is well formed but needs something that this package does not do; the message says what.
	ErrUnsupported = errors.New("not supported")
	// ErrDifferencing: the image is a differencing disk, and Options.Resolver does not say how to find its parent. It is also an ErrUnsupported.
	ErrDifferencing = fmt.Errorf("differencing image (a disk with a parent): it is %w without its parent", ErrUnsupported)
	// ErrReadOnly: a change was asked of a disk that was opened read-only.
	ErrReadOnly = errors.New("the disk is opened read-only")
	// ErrClosed: the disk was closed.
	ErrClosed = errors.New("the disk is closed")
	// ErrRange: offset or length is outside the disk, or not a multiple of the logical sector size.
	ErrRange = errors.New("request outside the disk or not aligned to its sectors")
	// ErrInUse: another program has the file open.
	ErrInUse = errors.New("the image is in use by another program")
	// ErrCorrupt: every *CorruptError is one.
	ErrCorrupt = errors.New("corrupt image")
	// ErrNotEmpty: an image was to be created over a file that is not empty.
	ErrNotEmpty = errors.New("the file is not empty")
)

// A CorruptError says which structure of an image is damaged, and where. It is an [ErrCorrupt].
type CorruptError struct {
	Format    string // "" is "VHDX"
	Structure string // "header", "region table", "metadata", "BAT", "log", "file"
	Offset    int64  // byte offset in the file, -1 when there is no single place
	Reason    string
}

func (e *CorruptError) Error() string {
	format := e.Format
	if format == "" {
		format = "VHDX"
	}
	if e.Offset < 0 {
		return fmt.Sprintf("corrupt %s image: %s: %s", format, e.Structure, e.Reason)
	}
	return fmt.Sprintf("corrupt %s image: %s at offset %d: %s", format, e.Structure, e.Offset, e.Reason)
}

// Is makes every CorruptError an ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

func corrupt(structure string, off int64, format string, args ...any) *CorruptError {
	return &CorruptError{Structure: structure, Offset: off, Reason: fmt.Sprintf(format, args...)}
}

// versionError says that the format is of a version that this package does not know. It is an ErrUnsupported.
type versionError struct {
	off     int64
	version uint16
}

func (e *versionError) Error() string {
	return fmt.Sprintf("header at offset %d: VHDX format version %d is not supported, only version 1", e.off, e.version)
}

func (e *versionError) Is(target error) bool { return target == ErrUnsupported }

// requiredError says that the image needs a structure that this package does not know. It is an ErrUnsupported.
type requiredError struct {
	what string
	id   GUID
}

func (e *requiredError) Error() string {
	return fmt.Sprintf("the image requires the %s %s, which is not known: it was made by a newer program; opening it could damage it", e.what, e.id)
}

func (e *requiredError) Is(target error) bool { return target == ErrUnsupported }
