package transport

import (
	"errors"
	"net"
	"time"
)

// MaxFrame is the largest message in bytes that the framing of Direct TCP can express. [MS-SMB2] 2.1
const MaxFrame = 1<<24 - 1

var (
	// ErrTooLarge is wrapped when a message is longer than the maximum that was set, or than the framing can express.
	ErrTooLarge = errors.New("SMB message is too large")
	// ErrFraming is wrapped when the bytes received are not the framing of SMB over TCP. The peer speaks something else.
	ErrFraming = errors.New("not SMB over TCP")
	// ErrClosed is wrapped by everything that is tried on a Sender after its Close.
	ErrClosed = errors.New("connection is closed")
)

// Message is one SMB2 message (or a compound, or a transformed message) as consecutive segments, without framing.
type Message [][]byte

// Len returns the length of the message in bytes.
func (m Message) Len() int {
	n := 0
	for _, s := range m {
		n += len(s)
	}
	return n
}

// Conn carries whole messages. NextMessage, Peek, ReadFull, Remaining and Buffered belong to one reading goroutine, WriteMessages to one
// writing goroutine; reading and writing may happen at the same time. The other methods may be called from anywhere at any time.
//
// After an error of ReadFull or WriteMessages the connection is of no more use. After a deadline passed in NextMessage
// or Peek, the call may be repeated.
type Conn interface {
	// NextMessage waits for the next message and returns its length in bytes. What was not read of the message before is
	// discarded. It returns io.EOF when the peer has ended the connection between two messages, and an error
	// that wraps ErrTooLarge when the message exceeds the maximum.
	NextMessage() (n int, err error)
	// Peek returns the next n bytes of the current message without consuming them. n is at most Remaining and at most 64 KiB. The
	// bytes are valid, and may be changed, until the next call of NextMessage, Peek or ReadFull.
	Peek(n int) ([]byte, error)
	// ReadFull consumes exactly len(p) bytes of the current message. Asking for more than Remaining is an error.
	ReadFull(p []byte) error
	// Remaining returns how many bytes of the current message are not consumed yet.
	Remaining() int
	// Buffered returns how many bytes beyond the current message have been received. Above zero, another message has at least
	// begun to arrive, so a reader may put off work (such as flushing replies) that should be done before it waits.
	Buffered() int
	// SetMaxMessage sets the largest message in bytes that NextMessage accepts; 0 means MaxFrame.
	SetMaxMessage(n int)

	// WriteMessages writes all messages, in order, in as few system calls as possible. The slices are not kept, nor changed.
	WriteMessages(msgs []Message) error

	// SetReadDeadline and SetWriteDeadline are those of net.Conn.
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	LocalAddr() net.Addr
	RemoteAddr() net.Addr
	// Close ends the connection and wakes whoever waits in a read or a write. It may be called more than once.
	Close() error
}

// TryWriter is an optional ability of a Conn: to begin a write without waiting for the peer to take it.
// Both methods belong to the writing goroutine, like WriteMessages.
type TryWriter interface {
	// StartWrite hands to the network what it takes at once. If that was not everything, done is false: the messages must then stay
	// untouched until FinishWrite has returned, and nothing else may be written before.
	StartWrite(msgs []Message) (done bool, err error)
	// FinishWrite waits until the rest is written.
	FinishWrite() error
}

// Tap sees every message of a connection, for captures. Its methods must not block for long, and must not keep or change
// what they are given. Sent is called by the writing goroutine before the message goes out, Received by the reading goroutine.
type Tap interface {
	// Sent is given one whole message.
	Sent(m Message)
	// Received is given the next piece of the message that is being received; remaining bytes of that message are still to
	// come. A message without bytes is one empty piece.
	Received(piece []byte, remaining int)
}
