package bridge

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"vdbridge/server"
	"vdbridge/server/journal"
	"vdbridge/server/svhdx"
	"vdbridge/smb/auth"
	"vdbridge/smb/pcap"
	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
)

// ServeOptions say what the built-in file server offers.
type ServeOptions struct {
	Dir         string
	Share       string
	UsersFile   string      // see auth.ParseUsers
	Users       auth.UserDB // instead of UsersFile
	Keytab      string      // take Kerberos with the keys in this file; "" = NTLM only
	KerberosFor []string    // who may log on by Kerberos: user or user@REALM; none = all of the keytab's realms
	AllowRC4    bool        // take the outdated RC4 in Kerberos
	NoNTLM      bool        // take Kerberos only
	RSVDVersion uint32      // 1 or 2; 0 = no shared disks
	MinDialect  wire.Dialect
	MaxDialect  wire.Dialect
	Encrypt     bool
	ReadOnly    bool
	SessionTime time.Duration // after which users must prove who they are again; 0 = when their Kerberos tickets end, if they have any
	CA          bool          // continuously available: persistent opens, which survive the server too

	// StateDir holds what survives the server; "" is a hidden directory inside of Dir, so that all servers on one directory share it.
	StateDir string
	// Standby lets a server with CA wait until the one that owns StateDir has ended, instead of failing; see AwaitFileServer.
	Standby bool
	// DiscardState puts a database of persistent opens aside that cannot be read.
	DiscardState bool

	Pcap   string
	Logger *slog.Logger
}

// FileServer is the built-in SMB 3 file server with shared virtual disks.
type FileServer struct {
	srv     *server.Server
	state   *server.State // nil if there is none
	capture *pcap.Writer
}

// NewFileServer prepares a server. It serves nothing before Run; Close ends it.
func NewFileServer(o ServeOptions) (*FileServer, error) {
	o.Standby = false
	return AwaitFileServer(context.Background(), o)
}

// AwaitFileServer is NewFileServer, and waits with ServeOptions.Standby until the server before it has ended, or ctx has. Its opens are there when it returns.
func AwaitFileServer(ctx context.Context, o ServeOptions) (_ *FileServer, err error) {
	st, err := os.Stat(o.Dir)
	switch {
	case err != nil:
		return nil, &Error{Classify(err), fmt.Sprintf("the directory %s cannot be served: %v", o.Dir, rootCause(err)), err}
	case !st.IsDir():
		return nil, Usagef("%s is not a directory; give the directory that holds the disks", o.Dir)
	}
	users, krb, err := logons(o)
	if err != nil {
		return nil, err
	}
	cfg := server.Config{
		Shares:     []server.Share{{Name: o.Share, Dir: o.Dir, ReadOnly: o.ReadOnly, CA: o.CA}},
		Users:      users,
		Kerberos:   krb,
		MinDialect: o.MinDialect, MaxDialect: o.MaxDialect, Encrypt: o.Encrypt, Logger: o.Logger,
		Limits: server.Limits{SessionLifetime: o.SessionTime},
	}
	if o.RSVDVersion != 0 {
		disks, err := svhdx.New(svhdx.Config{Version: o.RSVDVersion, Logger: o.Logger})
		if err != nil {
			return nil, Usagef("%v", err)
		}
		cfg.Disks = disks
	}
	f := &FileServer{}
	defer func() {
		if err != nil {
			_ = f.closeRest()
		}
	}()
	if f.state, cfg.GUID, err = o.openState(ctx); err != nil {
		return nil, err
	}
	cfg.State = f.state
	if o.Pcap != "" {
		if f.capture, err = pcap.Create(o.Pcap); err != nil {
			return nil, fmt.Errorf("capture file: %w", err)
		}
		cfg.Tap = func(local, remote net.Addr) transport.Tap { return f.capture.Connection(local, remote, true) }
		cfg.KeyLog = f.capture.SessionKey
	}
	if f.srv, err = server.New(cfg); err != nil {
		return nil, Usagef("%v", err)
	}
	return f, nil
}

func readUsers(path string) (auth.UserDB, error) {
	if path == "" {
		return nil, Usagef("say who may log on: --users FILE with lines of name:password")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, &Error{Classify(err), fmt.Sprintf("the users file %s cannot be read: %v", path, rootCause(err)), err}
	}
	defer f.Close()
	u, err := auth.ParseUsers(f)
	switch {
	case err != nil:
		return nil, Usagef("%s: %v", path, err)
	case u.Len() == 0:
		return nil, Usagef("%s has no users; write lines of name:password", path)
	}
	return u, nil
}

// openState opens the state directory, and takes it if there are persistent opens. A server that has none, on a directory that cannot be written, needs no
// state: guid is made of the machine and the directory then, so that it is the same after a restart.
func (o *ServeOptions) openState(ctx context.Context) (st *server.State, guid wire.GUID, err error) {
	dir := o.StateDir
	if dir == "" {
		dir = filepath.Join(o.Dir, server.StateDirName)
		if _, serr := os.Stat(dir); serr != nil && o.ReadOnly && !o.CA {
			return nil, o.derivedGUID(), nil
		}
	}
	st, err = server.OpenState(dir)
	switch {
	case err == nil:
	case o.StateDir == "" && !o.CA && (errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)):
		return nil, o.derivedGUID(), nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, guid, &Error{Classify(err), fmt.Sprintf("the state directory %s cannot be made: its parent does not exist", dir), err}
	default:
		return nil, guid, &Error{Classify(err), fmt.Sprintf("the state directory %s cannot be used: %v; give another one with --state-dir", dir, err), err}
	}
	if !o.CA {
		return st, guid, nil
	}
	err = st.Own(ctx, server.OwnOptions{Wait: o.Standby, Discard: o.DiscardState, Logger: o.Logger})
	var busy *server.BusyError
	switch {
	case err == nil:
		return st, guid, nil
	case ctx.Err() != nil:
		return nil, guid, err
	case errors.As(err, &busy):
		return nil, guid, &Error{ClassBusy, fmt.Sprintf("%v; wait for its end with --standby, or give another directory with --state-dir", busy), syscall.EBUSY}
	case errors.Is(err, journal.ErrDamaged):
		return nil, guid, &Error{ClassCorrupt, fmt.Sprintf("the database of persistent opens cannot be used: %v; with --discard-state the server puts it aside and begins without those opens", err), err}
	case errors.Is(err, journal.ErrVersion):
		return nil, guid, &Error{ClassUnsupported, fmt.Sprintf("the database of persistent opens cannot be used: %v; start the vdbridge that wrote it, or begin without those opens with --discard-state", err), err}
	}
	return nil, guid, &Error{Classify(err), fmt.Sprintf("the state directory %s cannot be used: %v", dir, err), err}
}

func (o *ServeOptions) derivedGUID() wire.GUID {
	machine, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		machine = []byte(hostName())
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		dir = o.Dir
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "vdbridge file server\n%s\n%s", machine, dir))
	return wire.GUID(sum[:16])
}

// Run serves on the listeners until ctx is done, lets requests in flight finish, closes the disks, and returns nil. It closes the listeners. Persistent
// opens are left to the next server.
func (f *FileServer) Run(ctx context.Context, l ...net.Listener) error {
	serving, stop := context.WithCancel(ctx)
	defer stop()
	errs := make(chan error, len(l))
	for _, l := range l {
		go func() {
			errs <- f.srv.Serve(serving, l)
			stop()
		}()
	}
	var err error
	for range l {
		if e := <-errs; err == nil && e != nil && !errors.Is(e, server.ErrClosed) && !(errors.Is(e, context.Canceled) && serving.Err() != nil) {
			err = e
		}
	}
	if ctx.Err() != nil {
		err = nil
	}
	drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if serr := f.srv.Shutdown(drain); err == nil && !errors.Is(serr, context.DeadlineExceeded) {
		err = serr
	}
	return errors.Join(err, f.closeRest())
}

// Close ends the server at once. Not needed after Run.
func (f *FileServer) Close() error { return errors.Join(f.srv.Close(), f.closeRest()) }

// closeRest closes what the server used.
func (f *FileServer) closeRest() error {
	var errs []error
	if f.state != nil {
		if err := f.state.Close(); err != nil {
			errs = append(errs, fmt.Errorf("state directory: %w", err))
		}
	}
	if f.capture != nil {
		if err := f.capture.Close(); err != nil {
			errs = append(errs, fmt.Errorf("capture file: %w", err))
		}
	}
	return errors.Join(errs...)
}
