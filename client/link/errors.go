package link

import (
	"errors"
	"fmt"

	"vdbridge/client"
	"vdbridge/smb/ntstatus"
)

var (
	// ErrClosed: File or Link were closed.
	ErrClosed = errors.New("the link to the server is closed")
	// ErrOpenGone: the server does not have the open any more.
	ErrOpenGone = errors.New("the server has not kept the open")
	// ErrWritesLost is what a Flush is told, once, when writes that were acknowledged but not flushed may be gone.
	ErrWritesLost = errors.New("the server was restarted, or does not say that it was not, and what was written since the last flush may be lost")
	// ErrFenced is matched by every FencedError.
	ErrFenced = errors.New("shut out")
)

// LostError is what requests fail with when they do not wait for the server. It matches client.ErrConnectionLost.
type LostError struct {
	Err error // why the connection was lost, or why the last attempt to get it back failed
}

func (e *LostError) Error() string { return "the server is lost: " + e.Err.Error() }

// Unwrap gives the cause.
func (e *LostError) Unwrap() error { return e.Err }

// Is makes it a lost connection.
func (e *LostError) Is(target error) bool { return target == client.ErrConnectionLost }

// InterruptedError says that the connection was lost while a request was under way that must not be repeated unseen. The connection is back, and the
// request will not be carried out any more if it has not been.
type InterruptedError struct{ Err error }

func (e *InterruptedError) Error() string {
	return "the connection was lost meanwhile, and whether this was carried out is not known: " + e.Err.Error()
}

// Unwrap gives the loss.
func (e *InterruptedError) Unwrap() error { return e.Err }

// Interrupted marks it for those who do not know this package.
func (e *InterruptedError) Interrupted() bool { return true }

// FencedError says why a File refuses to change anything.
type FencedError struct{ Err error }

func (e *FencedError) Error() string { return e.Err.Error() }

// Unwrap gives the reason.
func (e *FencedError) Unwrap() error { return e.Err }

// Is matches ErrFenced.
func (e *FencedError) Is(target error) bool { return target == ErrFenced }

// FinalError says that there is no use in trying again.
type FinalError struct{ Err error }

func (e *FinalError) Error() string { return e.Err.Error() }

// Unwrap gives the reason.
func (e *FinalError) Unwrap() error { return e.Err }

// otherServer says how a server differs from the one that there was.
func otherServer(was, is Server) error {
	switch {
	case was.GUID != is.GUID:
		return fmt.Errorf("%w: %s answers with the GUID %x, and the disk is at the server %x", client.ErrOtherServer, is.Address, is.GUID[:], was.GUID[:])
	case was.Dialect != is.Dialect:
		return fmt.Errorf("%w: %s speaks SMB %v now, and spoke %v", client.ErrOtherServer, is.Address, is.Dialect, was.Dialect)
	case was.Cipher != is.Cipher || was.Signing != is.Signing:
		return fmt.Errorf("%w: %s protects messages with %v and %v now, and did with %v and %v", client.ErrOtherServer, is.Address, is.Signing, is.Cipher, was.Signing, was.Cipher)
	}
	return nil
}

// isLoss says whether err means that the connection, the session, the share or the open is gone, so that the request may be carried out on another one.
func isLoss(err error) bool {
	if errors.Is(err, client.ErrConnectionLost) {
		return true
	}
	s, ok := ntstatus.Of(err)
	if !ok {
		return false
	}
	switch s {
	case ntstatus.UserSessionDeleted, ntstatus.NetworkNameDeleted, ntstatus.NetworkSessionExpired, ntstatus.FileClosed,
		ntstatus.ConnectionDisconnected, ntstatus.ConnectionReset, ntstatus.InvalidConnection, ntstatus.ServerUnavailable:
		return true
	}
	return false
}
