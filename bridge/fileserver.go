package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"vdbridge/server"
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
	CA          bool // continuously available: persistent opens
	Pcap        string
	Logger      *slog.Logger
}

// FileServer is the built-in SMB 3 file server with shared virtual disks.
type FileServer struct {
	srv     *server.Server
	capture *pcap.Writer
}

// NewFileServer prepares a server. It serves nothing before Run; Close ends it.
func NewFileServer(o ServeOptions) (_ *FileServer, err error) {
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
		if err != nil && f.capture != nil {
			_ = f.capture.Close()
		}
	}()
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

// Run serves on l until ctx is done, lets requests in flight finish, closes the disks, and returns nil. It closes l.
func (f *FileServer) Run(ctx context.Context, l net.Listener) error {
	err := f.srv.Serve(ctx, l)
	if ctx.Err() != nil || errors.Is(err, server.ErrClosed) {
		err = nil
	}
	drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if serr := f.srv.Shutdown(drain); err == nil && !errors.Is(serr, context.DeadlineExceeded) {
		err = serr
	}
	return errors.Join(err, f.closeCapture())
}

// Close ends the server at once. Not needed after Run.
func (f *FileServer) Close() error { return errors.Join(f.srv.Close(), f.closeCapture()) }

func (f *FileServer) closeCapture() error {
	if f.capture == nil {
		return nil
	}
	if err := f.capture.Close(); err != nil {
		return fmt.Errorf("capture file: %w", err)
	}
	return nil
}
