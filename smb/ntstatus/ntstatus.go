// Package ntstatus is the NTSTATUS type: its values, names and classes. [MS-ERREF] 2.3
//
// A Status is an error, so that errors.Is(err, ntstatus.AccessDenied) works through any wrapping; Success is one too and must not
// be returned as an error: use Err.
package ntstatus

import (
	"errors"
	"fmt"
	"io/fs"
)

// Status is an NTSTATUS value.
type Status uint32

// String returns the specification's name, or the number where this project has no name for it.
func (s Status) String() string {
	if n, ok := names[s]; ok {
		return n
	}
	if _, ok := s.StoredSense(); ok {
		return fmt.Sprintf("STATUS_SVHDX_ERROR_STORED|%#02x", uint32(s)&0xFF)
	}
	return fmt.Sprintf("NTSTATUS %#08x", uint32(s))
}

// Error makes a Status an error.
func (s Status) Error() string { return s.String() }

// Err returns nil for Success, otherwise the status itself.
func (s Status) Err() error {
	if s == Success {
		return nil
	}
	return s
}

// IsError says whether the severity is error (the upper two bits are 11). Warnings such as BufferOverflow are not errors.
func (s Status) IsError() bool { return s>>30 == 3 }

// StoredSense reports whether s says that sense data are stored at the server, and under which key. [MS-RSVD] 2.2.3, 3.1.4.6
func (s Status) StoredSense() (key byte, ok bool) {
	return byte(s), s&0xFFFFFF00 == SVHDXErrorStored
}

// Is lets the errors of package fs match, so that callers who do not know SMB can ask errors.Is(err, fs.ErrNotExist).
func (s Status) Is(target error) bool {
	switch target {
	case fs.ErrNotExist:
		return s == ObjectNameNotFound || s == ObjectPathNotFound || s == NoSuchFile || s == BadNetworkName
	case fs.ErrExist:
		return s == ObjectNameCollision
	case fs.ErrPermission:
		return s == AccessDenied || s == NetworkAccessDenied || s == MediaWriteProtected
	case fs.ErrClosed:
		return s == FileClosed
	}
	return false
}

// Of returns the status inside err, if there is one.
func Of(err error) (Status, bool) {
	var s Status
	ok := errors.As(err, &s)
	return s, ok
}
