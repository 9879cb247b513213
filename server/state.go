package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vdbridge/server/journal"
	"vdbridge/smb/wire"
)

// StateDirName is the directory inside of a shared directory in which a server keeps its state unless it is told another. Clients cannot see it.
const StateDirName = ".vdbridge"

// State is a directory with what outlives the process of a server: its identity, and, for continuously available shares, its persistent opens. All
// processes that use one directory are the same server to clients; one of them at a time can own it, and only that one serves continuously
// available shares. The kernel ends the ownership with the process.
type State struct {
	dir   string
	key   fileKey
	guid  wire.GUID
	owner *os.File         // with the lock; nil without ownership
	db    *journal.Journal // nil without ownership
}

// Files of the directory.
const (
	identityFile = "server.json"
	ownerFile    = "owner"
	opensFile    = "opens"
)

// BusyError says that another process owns a state directory.
type BusyError struct {
	Dir   string
	Owner string // what the other process wrote about itself; may be empty
}

// Error implements error.
func (e *BusyError) Error() string {
	return fmt.Sprintf("the state directory %s is in use by %s", e.Dir, cmpOr(e.Owner, "another process"))
}

func cmpOr(s, or string) string {
	if s == "" {
		return or
	}
	return s
}

// OpenState opens the directory, and makes it with a new identity if it is not there.
func OpenState(dir string) (*State, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	s := &State{dir: dir, key: fileKey{dev: uint64(unix.Major(st.Dev))<<32 | uint64(unix.Minor(st.Dev)), ino: st.Ino}}
	var err error
	if s.guid, err = readIdentity(filepath.Join(dir, identityFile)); err != nil {
		return nil, err
	}
	return s, syncDir(filepath.Dir(filepath.Clean(dir)))
}

// GUID is the identity of the server.
func (s *State) GUID() wire.GUID { return s.guid }

// Dir is where the state is.
func (s *State) Dir() string { return s.dir }

type identity struct {
	Version int    `json:"version"` // 1
	Server  string `json:"server"`  // GUID, 32 hexadecimal digits in the order of the wire
}

// readIdentity reads the identity, or makes one. Of several processes that make one at the same time, the first counts.
func readIdentity(path string) (g wire.GUID, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return g, err
	}
	defer f.Close() // ends the lock
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	for {
		// A file system without locks is one that only one host can use at a time anyway.
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &lk); err != unix.EINTR {
			break
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return g, err
	}
	if len(b) > 0 {
		if g, err = decodeIdentity(b); err != nil {
			err = fmt.Errorf("%s: %w", path, err)
		}
		return g, err
	}
	rand.Read(g[:])
	b, err = json.Marshal(identity{1, hex.EncodeToString(g[:])})
	if err != nil {
		return g, err
	}
	if _, err = f.WriteAt(append(b, '\n'), 0); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return g, err
}

func decodeIdentity(b []byte) (g wire.GUID, err error) {
	var id identity
	if err := json.Unmarshal(b, &id); err != nil {
		return g, fmt.Errorf("the file with the identity of the server is damaged (%w); without the file a new one is made, which clients take for another server", err)
	}
	if id.Version != 1 {
		return g, fmt.Errorf("the file with the identity of the server has version %d, this program knows 1", id.Version)
	}
	if n, err := hex.Decode(g[:], []byte(id.Server)[:min(len(id.Server), 32)]); err != nil || n != 16 || len(id.Server) != 32 || g == (wire.GUID{}) {
		return g, errors.New("the file with the identity of the server is damaged; without the file a new one is made, which clients take for another server")
	}
	return g, nil
}

// OwnOptions say how a state directory is taken.
type OwnOptions struct {
	// Wait makes Own wait until the present owner has ended, instead of failing with a *BusyError.
	Wait bool
	// Discard puts a database aside that cannot be read, and begins with an empty one.
	Discard bool
	Logger  *slog.Logger // nil is silent
}

// pollOwner is how often a waiting process looks whether the owner has ended. A lock that is waited for in the kernel could not be given up.
const pollOwner = 50 * time.Millisecond

// Own makes this process the owner of the directory. When the former owner has died, none of its system calls is running any more when Own returns: its
// locks end after its last thread. An error that is journal.ErrDamaged or journal.ErrVersion is about the database of persistent opens.
func (s *State) Own(ctx context.Context, o OwnOptions) (err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	f, err := os.OpenFile(filepath.Join(s.dir, ownerFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	t := time.NewTicker(pollOwner)
	defer t.Stop()
	for said := false; ; {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if err == nil {
			break
		}
		if err != unix.EAGAIN && err != unix.EACCES && err != unix.EINTR {
			return fmt.Errorf("the state directory %s cannot be locked, so two servers could use it at once: %w", s.dir, err)
		}
		if err != unix.EINTR {
			busy := &BusyError{s.dir, readOwner(f)}
			if !o.Wait {
				return busy
			}
			if !said {
				o.Logger.Info("waiting for the end of the owner of the state directory", "dir", s.dir, "owner", busy.Owner)
				said = true
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	host, _ := os.Hostname()
	who := fmt.Sprintf("process %d on %s, since %s\n", os.Getpid(), host, time.Now().UTC().Format(time.RFC3339))
	if err := errors.Join(f.Truncate(0), writeAt0(f, who)); err != nil {
		return err
	}
	path := filepath.Join(s.dir, opensFile)
	db, err := journal.Open(path, journal.Options{Contents: recordVersion, Logger: o.Logger})
	if o.Discard && (errors.Is(err, journal.ErrDamaged) || errors.Is(err, journal.ErrVersion)) {
		aside := path + ".discarded-" + time.Now().UTC().Format("20060102T150405.000")
		o.Logger.Warn("the database of persistent opens is put aside as asked", "why", err, "to", aside)
		if err = os.Rename(path, aside); err == nil {
			db, err = journal.Open(path, journal.Options{Contents: recordVersion, Logger: o.Logger})
		}
	}
	if err != nil {
		return err
	}
	s.owner, s.db = f, db
	return nil
}

func writeAt0(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func readOwner(f *os.File) string {
	b := make([]byte, 200)
	n, _ := f.ReadAt(b, 0)
	return strings.ToValidUTF8(string(bytes.TrimSpace(b[:n])), "?")
}

// Close gives the directory up. The server that uses it must have ended.
func (s *State) Close() error {
	if s.owner == nil {
		return nil
	}
	err := errors.Join(s.db.Close(), s.owner.Close())
	s.owner, s.db = nil, nil
	return err
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
