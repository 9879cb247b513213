package link

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"vdbridge/client"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// SMB reaches a server with package client. Its Dial is one for Config.
type SMB struct {
	// Client is the same for every connection. A ClientGUID is made if there is none.
	Client client.Config
	Share  string
	// Logon makes the session. The options name the session that was lost.
	Logon func(ctx context.Context, c *client.Conn, o client.SessionOptions) (*client.Session, error)
	// Channels, if its Count is more than one, adds connections.
	Channels client.ChannelOptions
}

// StepError says which step of Dial failed. It unwraps to the cause.
type StepError struct {
	Step string // connect, logon or share
	Addr string
	Err  error
}

func (e *StepError) Error() string { return fmt.Sprintf("%s at %s: %v", e.Step, e.Addr, e.Err) }

// Unwrap gives the cause.
func (e *StepError) Unwrap() error { return e.Err }

// Dial connects, logs on and connects to the share.
func (s *SMB) Dial(ctx context.Context, addr string, previous uint64) (Way, error) {
	return s.DialIn(ctx, addr, previous, 0)
}

// DialIn is Dial that gives the connection, and the share, that much time each, 0 = no limit; Logon looks after itself.
func (s *SMB) DialIn(ctx context.Context, addr string, previous uint64, step time.Duration) (Way, error) {
	limit := func() (context.Context, context.CancelFunc) {
		if step > 0 {
			return context.WithTimeout(ctx, step)
		}
		return ctx, func() {}
	}
	if s.Client.ClientGUID == (wire.GUID{}) {
		_, _ = rand.Read(s.Client.ClientGUID[:]) // never fails
	}
	dial, cancel := limit()
	c, err := client.Dial(dial, addr, s.Client)
	cancel()
	if err != nil {
		return nil, &StepError{"connect", addr, err}
	}
	w := &smbWay{conn: c}
	if w.session, err = s.Logon(ctx, c, client.SessionOptions{Previous: previous}); err != nil {
		c.Abort()
		return nil, &StepError{"logon", addr, err}
	}
	connect, cancel := limit()
	w.tree, err = w.session.Tree(connect, s.Share)
	cancel()
	if err != nil {
		_ = w.session.Close()
		w.conn.Abort()
		return nil, &StepError{"share", addr, err}
	}
	if s.Channels.Count > 1 {
		if err := w.session.KeepChannels(s.Channels); err != nil {
			w.Abort()
			return nil, &StepError{"connect", addr, err}
		}
	}
	return w, nil
}

// smbWay is a Way by package client.
type smbWay struct {
	conn    *client.Conn
	session *client.Session
	tree    *client.Tree
}

// Parts gives what a Way that SMB.Dial made consists of, for what needs no File.
func Parts(w Way) (*client.Conn, *client.Session, *client.Tree) {
	s := w.(*smbWay)
	return s.conn, s.session, s.tree
}

func (w *smbWay) Done() <-chan struct{} { return w.session.Done() }

func (w *smbWay) Err() error { return w.session.Err() }

func (w *smbWay) SessionID() uint64 { return w.session.ID() }

func (w *smbWay) Server() Server {
	n := w.conn.Info()
	return Server{Address: n.Address, GUID: n.ServerGUID, Dialect: n.Dialect, Cipher: n.Cipher, Signing: n.Signing, Started: n.StartTime}
}

func (w *smbWay) Open(ctx context.Context, name string, opts client.OpenOptions) (Handle, error) {
	f, err := w.tree.Open(ctx, name, opts)
	if opts.Durable != nil && errors.Is(err, errors.ErrUnsupported) {
		opts.Durable = nil
		f, err = w.tree.Open(ctx, name, opts)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (w *smbWay) Reopen(ctx context.Context, lost Handle) (Handle, error) {
	f, err := w.tree.Reopen(ctx, lost.(*client.File))
	if err == nil {
		if err = f.Settle(ctx); err == nil {
			return f, nil
		}
		return nil, err
	}
	if s, ok := ntstatus.Of(err); ok {
		switch s {
		case ntstatus.ObjectNameNotFound, ntstatus.ObjectPathNotFound, ntstatus.FileClosed, ntstatus.InvalidHandle, ntstatus.NoSuchFile, ntstatus.ObjectNameInvalid,
			ntstatus.InvalidParameter, ntstatus.AccessDenied, ntstatus.FileForcedClosed:
			return nil, fmt.Errorf("%w: %w", ErrOpenGone, err)
		}
	}
	return nil, err
}

func (w *smbWay) Lasting(h Handle) Lasting {
	d := h.(*client.File).Durable()
	l := Lasting{Timeout: d.Timeout}
	switch {
	case d.Persistent:
		l.Kind = LastingPersistent
	case d.Durable:
		l.Kind = LastingDurable
	}
	return l
}

func (w *smbWay) Echo(ctx context.Context) error {
	if w.conn.Err() != nil { // other channels look after themselves
		return w.session.Err()
	}
	return w.session.Echo(ctx)
}

func (w *smbWay) Channels() []Channel {
	var out []Channel
	for _, c := range w.session.Status().Channels {
		out = append(out, Channel{Address: c.Addr, Connected: true, InFlight: c.InFlight})
	}
	return out
}

func (w *smbWay) Abort() { w.session.Abort() }

func (w *smbWay) Close() error {
	err := errors.Join(w.tree.Close(), w.session.Close())
	if cerr := w.conn.Close(); cerr != nil && !errors.Is(cerr, client.ErrClosed) {
		err = errors.Join(err, cerr)
	}
	return err
}
