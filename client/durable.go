package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// DurableRequest asks that an open outlives the loss of its session, so that [Tree.Reopen] gets it back. [MS-SMB2] 2.2.13.2.11
type DurableRequest struct {
	// CreateGUID names the open; zero means a random one. [File.Durable] tells which it was.
	CreateGUID wire.GUID
	// Persistent asks for an open that outlives the server process too, which only continuously available shares have. Where the share is
	// none, it is an ordinary durable open that is asked for.
	Persistent bool
	// Timeout is how long the server shall wait for the client to come back, in whole milliseconds; 0 leaves it to the server. What it grants is in
	// File.Durable.
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
	HasVersion bool // which only SMB 3.1.1 has
	High, Low  uint64
}

// LeaseRequest asks for a lease. [MS-SMB2] 2.2.13.2.10
type LeaseRequest struct {
	Key   wire.GUID // zero means a random one
	State uint32    // of wire.Lease…
}

func newGUID() (id wire.GUID) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// ask takes over how the file is to be opened, and returns the create contexts for that. [MS-SMB2] 3.2.4.3.5, 3.2.4.3.8, 3.2.4.3.11, 3.2.4.3.13
func (f *File) ask(o OpenOptions, a *attempt) ([]wire.CreateContext, error) {
	n := &f.t.sess.c.neg
	contexts := slices.Clone(o.Contexts)
	f.opts = o
	f.opts.Contexts = slices.Clone(o.Contexts)
	if o.Durable == nil && o.AppInstance == nil && o.Lease == nil {
		return contexts, nil
	}
	if n.dialect < wire.Dialect300 {
		return nil, fmt.Errorf("%w: durable opens, application instances and leases need SMB 3.0, and the server speaks %s", errors.ErrUnsupported, n.dialect)
	}
	if o.Durable != nil {
		d := *o.Durable
		if d.CreateGUID == (wire.GUID{}) {
			d.CreateGUID = newGUID()
		}
		d.Persistent = d.Persistent && f.t.info.Capabilities&wire.ShareCapContinuousAvailability != 0 && n.serverCaps&wire.CapPersistentHandles != 0
		if !d.Persistent && o.Lease == nil && o.Oplock == wire.OplockNone {
			// Only an open that the server could ask back is made durable. [MS-SMB2] 3.3.5.9.10
			if n.serverCaps&wire.CapLeasing != 0 {
				o.Lease = &LeaseRequest{State: wire.LeaseRead | wire.LeaseHandle}
			} else {
				f.opts.Oplock = wire.OplockBatch
			}
		}
		q := wire.DurableRequest2{Timeout: uint32(min(d.Timeout.Milliseconds(), 1<<31)), CreateGUID: d.CreateGUID}
		if d.Persistent {
			q.Flags = wire.DurablePersistent
		}
		contexts = append(contexts, wire.CreateContext{Name: wire.CreateDurableRequest2, Data: wire.AppendDurableRequest2(nil, q)})
		f.opts.Durable, f.lasting.CreateGUID = &d, d.CreateGUID
		a.repeat = always
		if d.Replay {
			a.flags |= wire.FlagReplayOperation
		}
	}
	if o.Lease != nil {
		l := *o.Lease
		if l.Key == (wire.GUID{}) {
			l.Key = newGUID()
		}
		v := wire.Lease{Key: l.Key, State: l.State, Version: 2}
		if n.serverCaps&wire.CapDirectoryLeasing == 0 {
			v.Version = 1
		}
		contexts = append(contexts, wire.CreateContext{Name: wire.CreateLease, Data: wire.AppendLease(nil, v)})
		f.opts.Lease, f.opts.Oplock = &l, wire.OplockLease
	}
	return append(contexts, f.appInstance()...), nil
}

// appInstance returns the contexts that name the application.
func (f *File) appInstance() []wire.CreateContext {
	if f.opts.AppInstance == nil {
		return nil
	}
	app := *f.opts.AppInstance
	f.opts.AppInstance = &app
	list := []wire.CreateContext{{Name: wire.CreateAppInstanceID, Data: wire.AppendAppInstanceID(nil, app.ID)}}
	if app.HasVersion && f.t.sess.c.neg.dialect >= wire.Dialect311 {
		list = append(list, wire.CreateContext{Name: wire.CreateAppInstanceVer, Data: wire.AppendAppInstanceVersion(nil, app.High, app.Low)})
	}
	return list
}

// granted takes over what the reply to the CREATE grants. On an error the file is closed. [MS-SMB2] 3.2.5.7, 3.2.5.8
func (f *File) granted() error {
	if f.opts.Durable == nil && f.opts.Lease == nil && f.reply.OplockLevel == wire.OplockNone {
		return nil
	}
	var err error
	h := held{oplock: f.reply.OplockLevel}
	if b, ok := f.Context(wire.CreateDurableRequest2); ok && f.opts.Durable != nil {
		var v wire.DurableResponse2
		v, err = wire.ParseDurableResponse2(b)
		f.lasting.Durable, f.lasting.Persistent = err == nil, v.Flags&wire.DurablePersistent != 0
		f.lasting.Timeout = time.Duration(v.Timeout) * time.Millisecond
	}
	if h.oplock == wire.OplockLease && err == nil {
		b, ok := f.Context(wire.CreateLease)
		h.lease, err = wire.ParseLease(b)
		if err == nil && (!ok || f.opts.Lease == nil || h.lease.Key != f.opts.Lease.Key) {
			err = errors.New("server grants a lease that was not asked for")
		}
	}
	if err != nil {
		_ = f.Close()
		return wrap("open", f.path(), protocolError(err))
	}
	f.hold(h)
	return nil
}

// Durable tells what the server has granted of OpenOptions.Durable, as of now: an oplock or lease that the server takes back takes the durability along,
// unless the open is persistent.
func (f *File) Durable() Durability {
	s := f.t.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	return f.lasting
}

// Reopen gets back a durable open whose session was lost: prev, which is good for nothing else any more if Reopen succeeds than to get the open back once more, as the new File is. The tree belongs to a new session of the same user
// and connects to the same share, from a connection with the same Config.ClientGUID; SessionOptions.Previous should have named the lost session. Requests on
// the new File carry the channel sequence of prev on, so that whatever was sent on prev and is still under way is refused by the server from the first
// request that changes something on (see Settle). An error that matches ntstatus.ObjectNameNotFound says that the server has given the open
// up. When ErrConnectionLost is matched, a new session is needed to try again, also if this one lives. [MS-SMB2] 3.2.4.4
func (t *Tree) Reopen(ctx context.Context, prev *File) (*File, error) {
	const op = "reopen"
	for next := prev.successor.Load(); next != nil; next = prev.successor.Load() {
		prev = next
	}
	s, old := t.sess, prev.t.sess
	old.mu.Lock()
	lasting, h := prev.lasting, prev.held
	old.mu.Unlock()
	switch {
	case t.closed.Load() || prev.closed.Load():
		return nil, wrap(op, t.full(prev.name), errClosedFile)
	case !lasting.Durable:
		return nil, wrap(op, t.full(prev.name), errors.New("the open is not durable, so the server has not kept it"))
	case s.c.neg.dialect < wire.Dialect300:
		return nil, wrap(op, t.full(prev.name), fmt.Errorf("%w: it needs SMB 3.0", errors.ErrUnsupported))
	}
	f := t.file(prev.name)
	f.opts, f.lasting = prev.opts, lasting
	if s.sequenced {
		// One more than anything that was sent on prev.
		f.base = prev.base + uint16(old.sequence.Load()) + 1 - uint16(s.sequence.Load())
	}
	f.settled.Store(unsettled)
	q := wire.DurableConnect2{FileID: prev.id, CreateGUID: lasting.CreateGUID}
	if lasting.Persistent {
		q.Flags = wire.DurablePersistent
	}
	// Contexts of the first CREATE are not repeated: the server has what they said. [MS-RSVD] 3.2.5.1
	contexts := []wire.CreateContext{{Name: wire.CreateDurableConnect2, Data: wire.AppendDurableConnect2(nil, q)}}
	f.opts.Oplock = h.oplock
	if h.oplock == wire.OplockLease {
		contexts = append(contexts, wire.CreateContext{Name: wire.CreateLease, Data: wire.AppendLease(nil, h.lease)})
	}
	contexts = append(contexts, f.appInstance()...)
	// Executed twice it would fail the second time, because the open is no more without a session.
	f, err := f.create(ctx, op, 0, contexts, attempt{repeat: never})
	if err != nil {
		return nil, err
	}
	prev.successor.Store(f)
	prev.closed.Store(true)
	prev.forget()
	return f, nil
}

// unsettled is what File.settled is when it is not known which channel sequence the server has seen last.
const unsettled = 1 << 16

// Settle returns when nothing that was sent on this open over connections that are lost can be executed any more, so that what is read afterwards
// can be trusted to stay. It costs nothing when no channel was lost since the open, or since Settle has returned. After an error nothing is
// known. [MS-SMB2] 3.3.5.2.10
func (f *File) Settle(ctx context.Context) error {
	err := f.check()
	if err == nil {
		err = f.settle(ctx)
	}
	if err != nil {
		return f.opError("settle", err)
	}
	return nil
}

// settle sends a request that does nothing, as a replay: the server refuses it until the older ones have ended. Twice, because the first one with a new
// channel sequence is executed at once by Samba and by the first servers that had this. [MS-SMB2] 3.3.5.2.10, note 273
func (f *File) settle(ctx context.Context) error {
	s := f.t.sess
	select {
	case f.settling <- struct{}{}: // one after the other: those who come later find it done
		defer func() { <-f.settling }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for s.sequenced {
		now := f.base + uint16(s.sequence.Load())
		if f.settled.Load() == uint32(now) {
			break
		}
		for range 2 {
			if err := f.probe(ctx); err != nil {
				return err
			}
		}
		if f.base+uint16(s.sequence.Load()) == now {
			f.settled.Store(uint32(now))
		}
	}
	select {
	case <-s.done:
		return s.Err()
	default:
		return nil
	}
}

// probe is the request that does nothing.
func (f *File) probe(ctx context.Context) error {
	a := attempt{repeat: always, file: true, flags: wire.FlagReplayOperation}
	var in, out [16]byte // no bytes from 0; no range
	for {
		_, err := f.ioctl(ctx, &a, wire.FsctlQueryAllocatedRanges, in[:], nil, out[:], nil)
		switch err {
		case nil, ntstatus.BufferOverflow, ntstatus.BufferTooSmall, ntstatus.InvalidParameter, ntstatus.InvalidDeviceRequest, ntstatus.NotSupported, ntstatus.AccessDenied:
			return nil // it came so far that the server looked at what it is
		}
		if err = a.again(ctx, err); err != nil {
			return err
		}
	}
}
