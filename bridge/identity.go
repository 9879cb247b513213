package bridge

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Initiator is who this host is to a shared disk. Persistent reservations hang on ID, so it must never be used by two hosts, and must
// be the same again after a restart.
type Initiator struct {
	ID   [16]byte
	Host string // at most 63 UTF-16 units are sent
	Name string // the attachment's name, "" for one that is not kept

	lock    *os.File
	session string // where the session at the server is remembered, "" if the identity is not ours alone
}

// GUID formats ID the usual way.
func (i *Initiator) GUID() string { return FormatGUID(i.ID) }

// Release gives the identity free for another process. The state stays.
func (i *Initiator) Release() {
	if i != nil && i.lock != nil {
		i.lock.Close() // closing the file drops the lock
		i.lock = nil
	}
}

// InitiatorBusyError says that another process uses the identity.
type InitiatorBusyError struct {
	Name  string
	Owner string // what the other process wrote about itself
}

// Error implements error.
func (e *InitiatorBusyError) Error() string {
	return fmt.Sprintf("the initiator %q of this disk is in use by %s; give this attachment its own with --initiator NAME", e.Name, e.Owner)
}

// Unwrap gives EBUSY.
func (e *InitiatorBusyError) Unwrap() error { return syscall.EBUSY }

// DefaultStateDir is where identities are kept: /var/lib/vdbridge for root, otherwise vdbridge below $XDG_STATE_HOME or ~/.local/state.
func DefaultStateDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/vdbridge"
	}
	if d := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "vdbridge")
	}
	if h, err := os.UserHomeDir(); err == nil {
		return filepath.Join(h, ".local", "state", "vdbridge")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("vdbridge-%d", os.Geteuid()))
}

// identityFile is what the state directory holds of one attachment.
type identityFile struct {
	Initiator string    `json:"initiator"`
	Disk      string    `json:"disk"`
	Name      string    `json:"name"`
	Host      string    `json:"host"`
	Machine   string    `json:"machine,omitempty"` // hash of the machine id: a cloned machine must not go on as its model
	Created   time.Time `json:"created"`
}

// RandomInitiator makes an identity that is kept nowhere, for short work that reserves nothing.
func RandomInitiator() (*Initiator, error) {
	i := &Initiator{Host: hostName()}
	if _, err := rand.Read(i.ID[:]); err != nil {
		return nil, fmt.Errorf("making an initiator GUID: %w", err)
	}
	i.ID[7] = i.ID[7]&0x0F | 0x40 // version 4 in the mixed-endian form
	i.ID[8] = i.ID[8]&0x3F | 0x80
	return i, nil
}

// AcquireInitiator takes the identity called name for the disk at loc out of the state directory, or makes it. With share false it is
// locked until Release or the end of the process, and an InitiatorBusyError is returned if another process has it; share is for
// commands that act in the name of a running attachment.
func AcquireInitiator(stateDir string, loc Location, name string, share bool) (*Initiator, error) {
	dir := filepath.Join(stateDir, "initiators")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w; choose another with --state-dir", err)
	}
	base := filepath.Join(dir, identityKey(loc, name))
	lock, err := os.OpenFile(base+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w; choose another with --state-dir", err)
	}
	// The identity is made under a lock of its own, which is held only here, so that two starters agree on one GUID and a sharer
	// never waits for the owner.
	mk, err := os.OpenFile(filepath.Join(dir, ".make.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("state directory: %w", err)
	}
	defer mk.Close()
	if err := flock(mk, syscall.LOCK_EX); err != nil {
		lock.Close()
		return nil, fmt.Errorf("locking the state directory: %w", err)
	}
	if share {
		lock.Close()
		lock = nil
	} else if err := flock(lock, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		owner := make([]byte, 256)
		n, _ := lock.ReadAt(owner, 0)
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			who := strings.TrimSpace(string(owner[:n]))
			if who == "" {
				who = "another process"
			}
			return nil, &InitiatorBusyError{Name: name, Owner: who}
		}
		return nil, fmt.Errorf("locking the initiator: %w", err)
	}
	i, err := loadOrMake(base+".json", loc, name)
	if err != nil {
		if lock != nil {
			lock.Close()
		}
		return nil, err
	}
	if lock != nil {
		_ = lock.Truncate(0)
		_, _ = lock.WriteAt(fmt.Appendf(nil, "process %d\n", os.Getpid()), 0)
	}
	if i.lock = lock; lock != nil {
		i.session = base + ".session"
	}
	return i, nil
}

// KnownInitiator is an identity in the state directory.
type KnownInitiator struct {
	Name    string
	Running bool // a process of this host is it now
}

// KnownInitiators lists the identities that the state directory has for the disk at loc.
func KnownInitiators(stateDir string, loc Location) ([]KnownInitiator, error) {
	files, err := filepath.Glob(filepath.Join(stateDir, "initiators", "*.json"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, nil
	}
	// Held while locks are looked at, so that a process that starts just now does not take ours for an owner's.
	mk, err := os.OpenFile(filepath.Join(stateDir, "initiators", ".make.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	defer mk.Close()
	if err := flock(mk, syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("locking the state directory: %w", err)
	}
	var known []KnownInitiator
	for _, f := range files {
		st, err := readIdentity(f)
		if err == nil && st.Disk == loc.key() && st.Machine == machineHash() {
			known = append(known, KnownInitiator{st.Name, isLocked(strings.TrimSuffix(f, ".json") + ".lock")})
		}
	}
	slices.SortFunc(known, func(a, b KnownInitiator) int { return strings.Compare(a.Name, b.Name) })
	return known, nil
}

// isLocked says whether a process holds the lock of an identity.
func isLocked(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(flock(f, syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

func identityKey(loc Location, name string) string {
	h := sha256.Sum256([]byte(loc.key() + "\x00" + name))
	return hex.EncodeToString(h[:12])
}

func readIdentity(path string) (identityFile, error) {
	var st identityFile
	b, err := os.ReadFile(path)
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return st, fmt.Errorf("%s: %w", path, err)
	}
	return st, nil
}

func loadOrMake(path string, loc Location, name string) (*Initiator, error) {
	host, machine := hostName(), machineHash()
	st, err := readIdentity(path)
	switch {
	case err == nil && st.Machine == machine:
		id, err := ParseGUID(st.Initiator)
		if err != nil {
			return nil, fmt.Errorf("%s is damaged: %w; move it away to get a new initiator, which has none of the old one's reservations", path, err)
		}
		return &Initiator{ID: id, Host: host, Name: name}, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("initiator: %w; move it away to get a new initiator, which has none of the old one's reservations", err)
	}
	i, err := RandomInitiator()
	if err != nil {
		return nil, err
	}
	i.Name = name
	b, err := json.MarshalIndent(identityFile{Initiator: i.GUID(), Disk: loc.key(), Name: name, Host: host, Machine: machine, Created: time.Now().UTC()}, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := WriteFileDurably(path, append(b, '\n')); err != nil {
		return nil, fmt.Errorf("keeping the initiator: %w", err)
	}
	return i, nil
}

// WriteFileDurably replaces path in one step that survives a power cut: an identity that is forgotten leaves its reservations behind.
func WriteFileDurably(path string, b []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func flock(f *os.File, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if err != syscall.EINTR {
			return err
		}
	}
}

func hostName() string {
	h, err := os.Hostname()
	if err != nil || h == "" {
		return "vdbridge"
	}
	h, _, _ = strings.Cut(h, ".")
	return h
}

// machineHash tells machines apart without storing the machine id, which is confidential (machine-id(5)).
func machineHash() string {
	b, err := os.ReadFile("/etc/machine-id")
	if err != nil || len(strings.TrimSpace(string(b))) == 0 {
		return "host:" + hostName()
	}
	h := sha256.Sum256(append([]byte("vdbridge initiator\x00"), strings.TrimSpace(string(b))...))
	return hex.EncodeToString(h[:8])
}

// FormatGUID prints a GUID whose 16 bytes are in wire order (mixed-endian).
func FormatGUID(g [16]byte) string {
	return fmt.Sprintf("%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%x", g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8], g[9], g[10:])
}

// ParseGUID is the reverse of FormatGUID; braces around it are allowed.
func ParseGUID(s string) ([16]byte, error) {
	var g [16]byte
	t := strings.TrimSuffix(strings.TrimPrefix(s, "{"), "}")
	if len(t) != 36 || t[8] != '-' || t[13] != '-' || t[18] != '-' || t[23] != '-' {
		return g, Usagef("%q is not a GUID (xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx)", s)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(t, "-", ""))
	if err != nil || len(b) != 16 {
		return g, Usagef("%q is not a GUID (xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx)", s)
	}
	copy(g[:], []byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6]})
	copy(g[8:], b[8:])
	return g, nil
}
