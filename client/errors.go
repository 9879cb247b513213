package client

import (
	"errors"
	"fmt"

	"vdbridge/smb/ntstatus"
)

// Error says which operation on what failed, and with which status. It unwraps to its Status, so that
// errors.Is(err, ntstatus.AccessDenied) and errors.Is(err, fs.ErrNotExist) work.
type Error struct {
	Op     string // such as "open" or "read"
	Path   string // share or file; may be empty
	Status ntstatus.Status
	Hint   string // what the user can do about it; may be empty
}

func (e *Error) Error() string {
	s := e.Op
	if e.Path != "" {
		s += " " + e.Path
	}
	s += ": " + e.Status.String()
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap returns the status.
func (e *Error) Unwrap() error { return e.Status }

// OpError is an operation that failed otherwise than by a status from the server: the connection was lost, the context was done, an
// argument does not fit. It unwraps to the cause.
type OpError struct {
	Op   string
	Path string
	Err  error
}

func (e *OpError) Error() string {
	if e.Path != "" {
		return e.Op + " " + e.Path + ": " + e.Err.Error()
	}
	return e.Op + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }

var (
	// ErrConnectionLost is matched by every error that comes of a connection that has ended, whatever the reason. Whether a request
	// that failed with it was executed is unknown.
	ErrConnectionLost = errors.New("connection to the server lost")
	// ErrOutcomeUnknown is matched, beside ErrConnectionLost, when the connection that a request was sent on is lost while its session lives on other ones, and
	// the request is none that may be executed twice. File.Settle, and then a look at what the request should have changed, tell more.
	ErrOutcomeUnknown = errors.New("it is not known whether the server has executed the request")
	// ErrOtherServer is matched when an address leads to another server than expected.
	ErrOtherServer = errors.New("it is another server")
	// ErrClosed is matched when the connection was ended by Close.
	ErrClosed = errors.New("connection is closed")
	// ErrSecurity is matched when a message failed its signature or decryption, or was not protected although it must be.
	ErrSecurity = errors.New("message is not authentic")
	// ErrProtocol is matched when the server sent something that the specification does not allow.
	ErrProtocol = errors.New("server broke the protocol")
	// ErrUnsupportedServer is matched when the server offers no dialect or protection that this client accepts.
	ErrUnsupportedServer = errors.New("server is not supported")
	// ErrGuest is matched when the server logged the user on as guest or anonymously although that was not asked for.
	ErrGuest = errors.New("server granted only guest access")
)

// ConnError is why a connection ended. It matches ErrConnectionLost, and unwraps to the cause.
type ConnError struct {
	Addr string
	Err  error
}

func (e *ConnError) Error() string { return fmt.Sprintf("connection to %s: %v", e.Addr, e.Err) }

// Unwrap returns the cause.
func (e *ConnError) Unwrap() error { return e.Err }

// Is reports that every ConnError is a lost connection.
func (e *ConnError) Is(target error) bool { return target == ErrConnectionLost }

// statusError makes an error of a status that was not expected.
func statusError(op, path string, s ntstatus.Status) error {
	return &Error{Op: op, Path: path, Status: s}
}

// wrap adds the operation to an error from below, and leaves nil alone.
func wrap(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &OpError{Op: op, Path: path, Err: err}
}
