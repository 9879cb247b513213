package link

import (
	"context"
	"time"

	"vdbridge/client"
	"vdbridge/smb/fscc"
	"vdbridge/smb/wire"
)

// Handle is an open on one connection. *client.File fits. All methods may be called at the same time.
type Handle interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	Flush(ctx context.Context) error
	Ioctl(ctx context.Context, code uint32, in1, in2, out1, out2 []byte) (int, error)
	// IoctlIdempotent is Ioctl for what may be carried out twice.
	IoctlIdempotent(ctx context.Context, code uint32, in1, in2, out1, out2 []byte) (int, error)
	// Settle returns when nothing that was sent over lost connections can be carried out any more.
	Settle(ctx context.Context) error
	Size(ctx context.Context) (int64, error)
	Truncate(ctx context.Context, size int64) error
	ZeroRange(ctx context.Context, off, n int64) error
	AllocatedRanges(ctx context.Context, off, n int64) ([]fscc.Range, error)
	Stat(ctx context.Context) (client.FileInfo, error)
	Reply() wire.CreateResponse
	Close() error
}

// Way is a session with a share, over one or more connections.
type Way interface {
	// Done is closed when no connection is left; Err says why then.
	Done() <-chan struct{}
	Err() error
	// Server is who is at the other end.
	Server() Server
	// SessionID names the session to the server.
	SessionID() uint64
	// Open opens a file, and asks for as lasting an open as the options say and the server grants.
	Open(ctx context.Context, name string, opts client.OpenOptions) (Handle, error)
	// Reopen gets an open back that was lost with its connection, and returns when nothing that was sent for it before can be carried out any
	// more. An error that is ErrOpenGone says that the server does not have it.
	Reopen(ctx context.Context, lost Handle) (Handle, error)
	// Lasting says what the open survives.
	Lasting(h Handle) Lasting
	// Echo asks for a sign of life.
	Echo(ctx context.Context) error
	// Channels are the connections.
	Channels() []Channel
	// Abort ends the connections without a word to the server, which then keeps what it was asked to keep.
	Abort()
	// Close ends session and connections properly.
	Close() error
}

// Server identifies a server.
type Server struct {
	Address string
	GUID    wire.GUID
	Dialect wire.Dialect
	Cipher  wire.Cipher
	Signing wire.SigningAlgorithm
	Started uint64 // when it was started, in its own words; 0: it does not say
}

// sameRun says whether o is the same server and has been running all the time.
func (s Server) sameRun(o Server) bool {
	return s.GUID == o.GUID && s.Started != 0 && s.Started == o.Started
}

// Lasting says what an open survives.
type Lasting struct {
	Kind    LastingKind
	Timeout time.Duration // that the server keeps it for without a connection
}

// LastingKind is none, durable (a lost connection) or persistent (the server's restart, too).
type LastingKind uint8

// The kinds.
const (
	LastingNone LastingKind = iota
	LastingDurable
	LastingPersistent
)

// String is none, durable or persistent.
func (k LastingKind) String() string { return [...]string{"none", "durable", "persistent"}[k] }

// Channel is one connection of a Way.
type Channel struct {
	Address   string
	Connected bool
	InFlight  int64 // bytes, about
}
