package client

import (
	"context"
	"errors"
	"time"

	"vdbridge/smb/wire"
)

// DurableRequest asks that an open outlives the loss of its session, so that [Tree.Reopen] gets it back. [MS-SMB2] 2.2.13.2.11
type DurableRequest struct {
	// CreateGUID names the open; zero means a random one. [File.Durable] tells which it was.
	CreateGUID wire.GUID
	// Persistent asks for an open that outlives the server process too, which only continuously available shares have. Where the share is
	// none, it is an ordinary durable open that is asked for.
	Persistent bool
	// Timeout is how long the server shall wait for the client to come back; 0 leaves it to the server. What it grants is in File.Durable.
	Timeout time.Duration
	// Replay says that this very CREATE, with this CreateGUID, may have been executed already on a session that is lost. The server then gives the
	// open that it made, if there is one that is persistent, instead of a second one. Within a session that is done without asking.
	Replay bool
}

// Durability is what the server has granted of a DurableRequest.
type Durability struct {
	Durable    bool // the open outlives the loss of its session
	Persistent bool // and of the server process
	CreateGUID wire.GUID
	Timeout    time.Duration // how long the server waits for the client; 0: not known
}

// AppInstance names the application that opens a file, so that it can take over from itself on another host: the server closes the opens that another client
// has made for the same application instance, unless those have a version that is not lower. [MS-SMB2] 2.2.13.2.13, 2.2.13.2.15
type AppInstance struct {
	ID         wire.GUID
	HasVersion bool
	High, Low  uint64
}

// LeaseRequest asks for a lease with a key of the caller's. [MS-SMB2] 2.2.13.2.10
type LeaseRequest struct {
	Key   wire.GUID // zero means a random one
	State uint32    // of wire.Lease…
}

// Durable tells what the server has granted of OpenOptions.Durable, as of now: an oplock or lease that the server takes back takes the durability along.
func (f *File) Durable() Durability { return Durability{} }

// Reopen gets back a durable open whose session was lost: prev, which becomes useless if Reopen succeeds. The tree belongs to a new session of the same user
// and connects to the same share, from a connection with the same Config.ClientGUID; SessionOptions.Previous should have named the lost session. Requests on
// the new File carry the channel sequence of prev on, so that whatever was sent on prev and is still under way is refused by the server from the first
// request that changes something on (see Settle). An error that matches ntstatus.ObjectNameNotFound says that the server has given the open
// up. [MS-SMB2] 3.2.4.4
func (t *Tree) Reopen(ctx context.Context, prev *File) (*File, error) {
	return nil, wrap("reopen", t.full(prev.name), errors.ErrUnsupported)
}

// Settle returns when nothing that was sent on this open over connections that are lost can be executed any more, so that what is read afterwards
// can be trusted to stay. It costs nothing when no channel was lost since the open. After an error nothing is known. [MS-SMB2] 3.3.5.2.10
func (f *File) Settle(ctx context.Context) error {
	return wrap("settle", f.path(), errors.ErrUnsupported)
}

// IoctlIdempotent is Ioctl for controls that do no harm when they are executed twice in a row. When their channel is lost, they are sent again on another
// one. Others fail then, with an error that matches ErrConnectionLost and ErrOutcomeUnknown.
func (f *File) IoctlIdempotent(ctx context.Context, code uint32, in1, in2, out1, out2 []byte) (int, error) {
	return f.Ioctl(ctx, code, in1, in2, out1, out2)
}
