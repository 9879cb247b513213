package server

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"vdbridge/server/journal"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// recordVersion is the version of what openRecord means.
const recordVersion = 1

// openRecord is a persistent open in the database: all that a CREATE that comes again, or one that reconnects, needs of it.
type openRecord struct {
	ID         uint64        `json:"id"` // FileId.Persistent
	CreateGUID hexBytes      `json:"create_guid"`
	ClientGUID hexBytes      `json:"client_guid"`
	Owner      string        `json:"owner"`
	Share      string        `json:"share"`
	Name       string        `json:"name"`                // as the client wrote it, folded
	Path       string        `json:"path"`                // below the share
	NextPath   string        `json:"next_path,omitempty"` // the one that it was about to get
	File       fileIdentity  `json:"file"`
	Desired    uint32        `json:"desired_access"`
	Granted    uint32        `json:"granted_access"`
	ShareMode  uint32        `json:"share_mode"`
	Options    uint32        `json:"create_options"` // as the client gave them
	ModeBits   uint32        `json:"mode,omitempty"`
	Action     uint32        `json:"action"`
	Timeout    uint32        `json:"timeout_ms"`
	PathOnly   bool          `json:"path_only,omitempty"`
	Disk       bool          `json:"disk,omitempty"`
	Delete     bool          `json:"delete_on_close,omitempty"`
	Pending    bool          `json:"delete_pending,omitempty"` // of the file
	SVHDX      []byte        `json:"svhdx,omitempty"`          // data of the reply's context
	SVHDXAsked []byte        `json:"svhdx_asked,omitempty"`    // of the request's
	App        *appRecord    `json:"app,omitempty"`
	Locks      []lockRecord  `json:"locks,omitempty"`
	LockSeq    map[int]uint8 `json:"lock_sequences,omitempty"` // by index, the number of the last LOCK that was done
	Oplock     *oplockRecord `json:"oplock,omitempty"`
}

// oplockRecord is what the client of an open may cache, as it was when it was granted last. It may have less since, but never more.
type oplockRecord struct {
	State uint32     `json:"state"`
	Lease *leaseJSON `json:"lease,omitempty"` // nil for an oplock
}

type leaseJSON struct {
	Client  hexBytes `json:"client"`
	Key     hexBytes `json:"key"`
	Parent  hexBytes `json:"parent,omitempty"`
	Version uint8    `json:"version"`
	Epoch   uint16   `json:"epoch,omitempty"`
}

type appRecord struct {
	ID         hexBytes `json:"id"`
	HasVersion bool     `json:"has_version,omitempty"`
	High       uint64   `json:"high,omitempty"`
	Low        uint64   `json:"low,omitempty"`
}

// lockRecord is a byte-range lock: first and last byte, or the byte before which a lock of length zero stands.
type lockRecord struct {
	Start     uint64 `json:"start"`
	Last      uint64 `json:"last"`
	Empty     bool   `json:"empty,omitempty"`
	Exclusive bool   `json:"exclusive,omitempty"`
}

// hexBytes are bytes written as hexadecimal digits.
type hexBytes []byte

// MarshalText implements encoding.TextMarshaler.
func (h hexBytes) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.AppendDecode(nil, b)
	return err
}

// fileIdentity tells a file from another one that has got its name or its inode since. What the file system does not tell is empty.
type fileIdentity struct {
	Inode  uint64   `json:"inode"`
	Born   int64    `json:"born,omitempty"`   // Unix nanoseconds
	Handle hexBytes `json:"handle,omitempty"` // of name_to_handle_at, with its type
}

func identify(fd int) (fileIdentity, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_SYNC_AS_STAT, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return fileIdentity{}, err
	}
	id := fileIdentity{Inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.Born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	if h, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH); err == nil {
		id.Handle = append(le.AppendUint32(nil, uint32(h.Type())), h.Bytes()...)
	}
	return id, nil
}

// is says whether both can be the same file.
func (a fileIdentity) is(b fileIdentity) bool {
	return a.Inode == b.Inode && (a.Born == 0 || b.Born == 0 || a.Born == b.Born) &&
		(len(a.Handle) == 0 || len(b.Handle) == 0 || bytes.Equal(a.Handle, b.Handle))
}

// decodeRecord reads and checks a record.
func decodeRecord(b []byte) (r *openRecord, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	r = &openRecord{}
	if err := d.Decode(r); err != nil {
		return nil, err
	}
	guid := func(g []byte) bool { return len(g) == len(wire.GUID{}) }
	bad := func(name string) bool {
		return len(name) > 64<<10 || !utf8.ValidString(name) || strings.ContainsRune(name, 0)
	}
	switch {
	case d.More():
		return nil, errors.New("there is something behind it")
	case !guid(r.CreateGUID) || !guid(r.ClientGUID) || r.App != nil && !guid(r.App.ID):
		return nil, errors.New("a GUID does not have 16 bytes")
	case bad(r.Name) || bad(r.Path) || bad(r.NextPath) || bad(r.Owner) || r.Path == "" || strings.HasPrefix(r.Path, "/"):
		return nil, errors.New("there is a name that cannot be")
	case r.ID == 0 || r.Timeout == 0 || time.Duration(r.Timeout)*time.Millisecond > maxDurableTimeout:
		return nil, errors.New("identifier or time are out of range")
	case len(r.Locks) > maxHeldLocks:
		return nil, errors.New("there are too many locks")
	}
	for _, path := range []string{r.Path, cmpOr(r.NextPath, r.Path)} {
		for p := range strings.SplitSeq(path, "/") {
			if p == "" || p == "." || p == ".." {
				return nil, errors.New("there is a path that cannot be")
			}
		}
	}
	for _, l := range r.Locks {
		if !l.Empty && l.Last < l.Start {
			return nil, errors.New("a lock ends before it begins")
		}
	}
	for i, n := range r.LockSeq {
		if i < 1 || i > maxLockSequence || n > 15 {
			return nil, errors.New("a lock sequence is out of range")
		}
	}
	return r, nil
}

// keep writes a persistent open to the database, as it is now. It returns when that is durable. No lock may be held.
func (s *Server) keep(o *open) error {
	e := o.durable
	if e == nil || !e.persistent || s.db == nil {
		return nil
	}
	e.recording.Lock()
	if e.forgotten {
		e.recording.Unlock()
		return nil
	}
	b, err := json.Marshal(s.record(o))
	if err == nil && (len(b) > journal.MaxValue || s.db.Full(o.id.Persistent, len(b))) {
		err = fmt.Errorf("there is no room for a record of %d bytes: %w", len(b), ntstatus.InsufficientResources)
	}
	if err != nil {
		e.recording.Unlock()
		return err
	}
	m := s.db.Put(o.id.Persistent, b)
	e.recording.Unlock()
	return s.db.Wait(m)
}

// keepAll is keep for all persistent opens of a file.
func (s *Server) keepAll(obj *object) error {
	if s.db == nil || obj == nil {
		return nil
	}
	obj.mu.Lock()
	list := slices.Clone(obj.opens)
	obj.mu.Unlock()
	var errs []error
	for _, o := range list {
		errs = append(errs, s.keep(o))
	}
	return errors.Join(errs...)
}

// settled waits until all that was written to the database is durable. A failure is only told to the log: what the client asked for has happened, and
// at worst an open that is closed comes back after a restart and waits for its client until its time is over.
func (s *Server) settled() {
	if s.db == nil {
		return
	}
	if err := s.db.Sync(); err != nil {
		s.log.Error("the database of persistent opens cannot be written", "err", err)
	}
}

// unrecord removes an open from the database; settled waits for it.
func (s *Server) unrecord(o *open) {
	e := o.durable
	if e == nil || !e.persistent || s.db == nil {
		return
	}
	e.recording.Lock()
	defer e.recording.Unlock()
	e.forgotten = true
	s.db.Delete(o.id.Persistent)
}

// record takes a picture of an open. e.recording is held.
func (s *Server) record(o *open) *openRecord {
	e := o.durable
	r := &openRecord{ID: o.id.Persistent, CreateGUID: e.createGUID[:], Owner: e.owner, Share: e.share.cfg.Name, File: e.file, Desired: e.access, Granted: o.granted,
		ShareMode: e.shared, Options: e.options, ModeBits: o.modeBits.Load(), Action: e.action, Timeout: uint32(e.timeout / time.Millisecond), PathOnly: o.path, Disk: o.isDisk,
		SVHDX: e.svhdx, SVHDXAsked: e.svhdxAsked}
	t := &s.durables
	t.mu.Lock()
	client := e.clientGUID
	r.Name = e.name
	t.mu.Unlock()
	r.ClientGUID = client[:]
	if a := o.app; a != nil {
		r.App = &appRecord{a.id[:], a.hasVersion, a.high, a.low}
	}
	obj := o.obj
	obj.mu.Lock()
	defer obj.mu.Unlock()
	r.NextPath = o.nextRel
	r.Path, r.Delete, r.Pending = o.rel, o.deleteOnClose, obj.deletePending
	if k := o.oplock; k != nil {
		r.Oplock = &oplockRecord{State: k.rec.State}
		if k.isLease {
			id, parent := k.rec.ID, k.rec.Parent
			r.Oplock.Lease = &leaseJSON{Client: id.client[:], Key: id.key[:], Version: k.rec.Version, Epoch: k.rec.Epoch}
			if k.rec.HasParent {
				r.Oplock.Lease.Parent = parent[:]
			}
		}
	} else if o.leased {
		id := o.lease // named and not granted, as on a shared disk: it is asked for when the client comes back
		r.Oplock = &oplockRecord{Lease: &leaseJSON{Client: id.client[:], Key: id.key[:], Version: 2}}
	}
	for i := range obj.locks.held {
		if h := &obj.locks.held[i]; h.owner == o {
			r.Locks = append(r.Locks, lockRecord{h.start, h.last, h.empty, h.exclusive})
		}
	}
	for i, n := range o.lockSeq {
		if n != 0 {
			if r.LockSeq == nil {
				r.LockSeq = map[int]uint8{}
			}
			r.LockSeq[i] = n - 1
		}
	}
	return r
}
