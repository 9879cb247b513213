package server

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vdbridge/server/journal"
	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// twoLives is a directory with a state, and servers on it, one after the other.
type twoLives struct {
	t     testing.TB
	dir   string // served
	state string
	disks DiskService
}

func newLives(t testing.TB) *twoLives {
	dir := t.TempDir()
	return &twoLives{t: t, dir: dir, state: filepath.Join(dir, StateDirName), disks: &ramDisk{b: make([]byte, 1<<20)}}
}

// own takes the state directory.
func (l *twoLives) own(dir string) *State {
	l.t.Helper()
	st, err := OpenState(dir)
	if err == nil {
		err = st.Own(context.Background(), OwnOptions{})
	}
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = st.Close() })
	return st
}

// start runs a server with the state in a directory.
func (l *twoLives) start(dir string) *testServer {
	l.t.Helper()
	st := l.own(dir)
	s := startServer(l.t, func(c *Config) {
		c.Shares = []Share{{Name: "ca", Dir: l.dir, CA: true}, {Name: "disks", Dir: l.dir}}
		c.Disks, c.State = l.disks, st
	})
	s.dir = l.dir
	return s
}

// snapshot copies the state as a process leaves it that is killed now.
func (l *twoLives) snapshot() string {
	l.t.Helper()
	to := filepath.Join(l.t.TempDir(), "state")
	if err := os.CopyFS(to, os.DirFS(l.state)); err != nil {
		l.t.Fatal(err)
	}
	return to
}

// kill ends a server, and returns the state that it had before it knew.
func (l *twoLives) kill(s *testServer) string {
	l.t.Helper()
	to := l.snapshot()
	if err := s.Close(); err != nil {
		l.t.Fatal(err)
	}
	if err := s.state.Close(); err != nil {
		l.t.Fatal(err)
	}
	return to
}

// TestRestart has persistent opens survive the server, with all that they have.
func TestRestart(t *testing.T) {
	for _, how := range []string{"killed", "stopped"} {
		t.Run(how, func(t *testing.T) {
			l := newLives(t)
			s := l.start(l.state)
			s.write("d.vhdx", "")
			guid := s.guid
			p := s.client(t, 1, 0, "me", "ca")
			req := func() *wire.CreateRequest {
				r := with(openReq("A"), dh2q(7, 50*time.Second, flagPersistent))
				r.ShareAccess = wire.ShareRead | wire.ShareWrite
				return r
			}
			resp, st := p.tryOpen(req())
			check(t, "open", st, ntstatus.Success)
			id := resp.FileID
			check(t, "WRITE", p.write(id, 0, "kept"), ntstatus.Success)
			first := lockReq(id, wire.LockExclusive|wire.LockFailImmediately)
			check(t, "LOCK", p.ask(wire.CmdLock, first).status(), ntstatus.Success)
			second := wire.LockRequest{FileID: id, LockSequence: 3<<4 | 5, Locks: []wire.LockElement{{Offset: 100, Length: 10, Flags: wire.LockShared | wire.LockFailImmediately}}}
			check(t, "LOCK with a sequence", p.ask(wire.CmdLock, second.Append).status(), ntstatus.Success)
			third := wire.LockRequest{FileID: id, Locks: []wire.LockElement{{Offset: 200, Length: 10, Flags: wire.LockExclusive | wire.LockFailImmediately}}}
			check(t, "LOCK", p.ask(wire.CmdLock, third.Append).status(), ntstatus.Success)
			third.Locks[0].Flags = wire.LockUnlock
			check(t, "UNLOCK", p.ask(wire.CmdLock, third.Append).status(), ntstatus.Success)
			ctx := make([]byte, 168)
			ctx[4], ctx[8] = 1, 9
			disk, st := p.tryOpen(with(diskReq("d.vhdx:SharedVirtualDisk", ctx), dh2q(8, 0, flagPersistent)))
			check(t, "open of a disk", st, ntstatus.Success)
			check(t, "WRITE", p.write(disk.FileID, 512, "disk"), ntstatus.Success)
			closed := p.open(with(openReq("b"), dh2q(9, 0, flagPersistent)))
			check(t, "CLOSE", p.close(closed), ntstatus.Success)
			renamed := p.open(with(openReq("c"), dh2q(10, 0, flagPersistent)))
			check(t, "rename", p.rename(renamed, "C2"), ntstatus.Success)
			going := with(openReq("gone"), dh2q(11, 0, flagPersistent))
			going.Options |= wire.OptDeleteOnClose
			goes := p.open(going)
			p.open(openReq("not persistent"))

			var state string
			if how == "killed" {
				state = l.kill(s)
			} else {
				l.kill(s)
				state = l.state
			}
			s2 := l.start(state)
			if s2.guid != guid {
				t.Error("the server is another one")
			}
			if n := s2.opens.Load(); n != 4 {
				t.Errorf("%d opens are back, want 4", n)
			}
			// They hold what they had against others.
			other := s2.client(t, 2, 0, "me", "ca")
			_, st = other.tryOpen(openReq("a"))
			check(t, "open by another while the client is away", st, ntstatus.FileNotAvailable)
			_, st = other.tryOpen(with(openReq("a"), dh2c(id, 7, flagPersistent)))
			check(t, "reconnect by another client", st, ntstatus.ObjectNameNotFound)
			_, st = s2.client(t, 1, 0, "you", "ca").tryOpen(with(openReq("a"), dh2c(id, 7, flagPersistent)))
			check(t, "reconnect by another user", st, ntstatus.AccessDenied)

			q := s2.client(t, 1, p.sid, "me", "ca")
			// CREATE again, as if its reply had been lost.
			again, st := q.replay(with(req()))
			check(t, "CREATE again", st, ntstatus.Success)
			if again.FileID.Persistent != id.Persistent || again.Action != wire.ActionCreated || again.EndOfFile != 4 {
				t.Errorf("reply %+v", again)
			}
			if got, st := q.read(again.FileID, 0, 10); st != ntstatus.Success || got != "kept" {
				t.Errorf("READ: %q, %v", got, st)
			}
			deny := openReq("a")
			deny.DesiredAccess = wire.AccessDelete
			_, st = other.tryOpen(deny)
			check(t, "open by another against the share mode", st, ntstatus.SharingViolation)
			see := openReq("a")
			see.DesiredAccess = wire.AccessReadData | wire.AccessWriteData
			x := other.open(see)
			try := func(off uint64, want ntstatus.Status) {
				t.Helper()
				l := wire.LockRequest{FileID: x, Locks: []wire.LockElement{{Offset: off, Length: 1, Flags: wire.LockExclusive | wire.LockFailImmediately}}}
				check(t, "LOCK by another", other.ask(wire.CmdLock, l.Append).status(), want)
			}
			try(12, ntstatus.LockNotGranted)
			try(105, ntstatus.LockNotGranted)
			try(205, ntstatus.Success)
			second.FileID = again.FileID
			check(t, "LOCK again", q.ask(wire.CmdLock, second.Append).status(), ntstatus.Success)

			back, st := q.tryOpen(with(&wire.CreateRequest{Impersonation: 2, DesiredAccess: 0x20083, ShareAccess: 7, Disposition: wire.FileOpen, Name: "d.vhdx:SharedVirtualDisk"},
				dh2c(disk.FileID, 8, flagPersistent)))
			check(t, "reconnect of the disk", st, ntstatus.Success)
			if got, st := q.read(back.FileID, 512, 4); st != ntstatus.Success || got != "disk" {
				t.Errorf("READ of the disk: %q, %v", got, st)
			}
			_, st = q.tryOpen(with(openReq("b"), dh2c(closed, 9, flagPersistent)))
			check(t, "reconnect after CLOSE", st, ntstatus.ObjectNameNotFound)
			_, st = q.tryOpen(with(openReq("c2"), dh2c(renamed, 10, flagPersistent)))
			check(t, "reconnect by the new name", st, ntstatus.Success)
			if _, err := os.Stat(s2.path("gone")); err != nil {
				t.Errorf("delete on close: %v", err)
			}
			last, st := q.tryOpen(with(openReq("gone"), dh2c(goes, 11, flagPersistent)))
			check(t, "reconnect of an open that deletes", st, ntstatus.Success)
			check(t, "CLOSE", q.close(last.FileID), ntstatus.Success)
			if _, err := os.Stat(s2.path("gone")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("delete on close: %v", err)
			}
			// New identifiers are new.
			if n := q.open(openReq("new")); n.Persistent == closed.Persistent || n.Persistent == id.Persistent {
				t.Errorf("identifier %#x again", n.Persistent)
			}
		})
	}
}

func (p *peer) rename(id wire.FileID, to string) ntstatus.Status {
	b := make([]byte, 20)
	b[0] = 1
	for _, c := range to {
		b = append(b, byte(c), 0)
	}
	le.PutUint32(b[16:], uint32(2*len(to)))
	return p.ask(wire.CmdSetInfo, (&wire.SetInfoRequest{InfoType: wire.InfoFile, FileInfoClass: fscc.FileRenameInformation, FileID: id, Buffer: b}).Append).status()
}

// TestRestartTakeOver has another machine take over from an open whose server has died, and lets the time of one run out.
func TestRestartTakeOver(t *testing.T) {
	l := newLives(t)
	s := l.start(l.state)
	p := s.client(t, 1, 0, "me", "ca")
	exclusive := func(name string, guid byte, c []wire.CreateContext) *wire.CreateRequest {
		r := with(with(openReq(name), dh2q(guid, 0, flagPersistent)), c...)
		r.ShareAccess = 0
		return r
	}
	id := p.open(exclusive("a", 1, appContexts(9, 1, 5)))
	expires := p.open(exclusive("b", 2, nil))
	s2 := l.start(l.kill(s))
	q := s2.client(t, 2, 0, "me", "ca")
	_, st := q.tryOpen(exclusive("a", 3, appContexts(9, 1, 5)))
	check(t, "take-over with the same version", st, ntstatus.FileForcedClosed)
	_, st = q.tryOpen(exclusive("a", 3, appContexts(9, 1, 6)))
	check(t, "take-over", st, ntstatus.Success)
	n := s2.client(t, 1, 0, "me", "ca")
	_, st = n.tryOpen(with(openReq("a"), dh2c(id, 1, flagPersistent)))
	check(t, "reconnect after the take-over", st, ntstatus.ObjectNameNotFound)
	s2.durables.mu.Lock()
	e := s2.durables.byID[expires.Persistent]
	s2.durables.mu.Unlock()
	s2.expire(e, e.generation)
	s2.settled()
	q.open(exclusive("b", 4, nil))
	if table := s2.db.Table(); len(table) != 2 || table[id.Persistent] != nil || table[expires.Persistent] != nil {
		t.Errorf("%d opens in the database", len(table))
	}
}

// TestRestoreRefused has opens whose files are not what they were.
func TestRestoreRefused(t *testing.T) {
	l := newLives(t)
	s := l.start(l.state)
	p := s.client(t, 1, 0, "me", "ca")
	ids := map[string]wire.FileID{}
	for i, name := range []string{"replaced", "gone", "stays"} {
		ids[name] = p.open(with(openReq(name), dh2q(byte(i+1), 0, flagPersistent)))
	}
	state := l.kill(s)
	os.Remove(s.path("gone"))
	os.Rename(s.path("replaced"), s.path("elsewhere"))
	s.write("replaced", "another file")
	s2 := l.start(state)
	if n := s2.opens.Load(); n != 1 || len(s2.db.Table()) != 1 {
		t.Errorf("%d opens are back, %d in the database", n, len(s2.db.Table()))
	}
	q := s2.client(t, 1, 0, "me", "ca")
	for i, name := range []string{"replaced", "gone", "stays"} {
		want := ntstatus.ObjectNameNotFound
		if name == "stays" {
			want = ntstatus.Success
		}
		_, st := q.tryOpen(with(openReq(name), dh2c(ids[name], byte(i+1), flagPersistent)))
		check(t, "reconnect of "+name, st, want)
	}
}

// TestStateDirectory has what may be wrong with it, and that clients see nothing of it.
func TestStateDirectory(t *testing.T) {
	l := newLives(t)
	s := l.start(l.state)
	p := s.client(t, 1, 0, "me", "ca")
	p.open(with(openReq("a"), dh2q(1, 0, flagPersistent)))
	os.Symlink(StateDirName, s.path("link"))
	os.Symlink(".", s.path("here"))
	os.Symlink(StateDirName+"/opens", s.path("file"))
	for _, name := range []string{StateDirName, strings.ToUpper(StateDirName), StateDirName + `\opens`, `here\` + StateDirName, `here\` + StateDirName + `\opens`, "link", `link\opens`, `link\new`, "file"} {
		if _, st := p.tryOpen(openReq(name)); !st.IsError() {
			t.Errorf("%s can be opened", name)
		}
	}
	for _, name := range p.list() {
		if strings.EqualFold(name, StateDirName) || name == "link" || name == "file" {
			t.Errorf("the directory shows %s", name)
		}
	}
	check(t, "rename to it", p.rename(p.open(openReq("x")), StateDirName), ntstatus.ObjectNameNotFound)
	check(t, "rename into it", p.rename(p.open(openReq("x")), `here\`+StateDirName+`\x`), ntstatus.ObjectPathNotFound)

	other, err := OpenState(l.state)
	if err != nil || other.GUID() != s.guid {
		t.Fatal("the directory has another identity", err)
	}
	var busy *BusyError
	if err := other.Own(context.Background(), OwnOptions{}); !errors.As(err, &busy) || !strings.Contains(busy.Error(), "process ") {
		t.Errorf("two owners: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- other.Own(ctx, OwnOptions{Wait: true}) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a wait that was given up: %v", err)
	}
	state := l.kill(s)
	path := filepath.Join(state, opensFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for what, b := range map[string][]byte{"damaged": append([]byte("x"), good[1:]...), "from another version": nil} {
		want := journal.ErrDamaged
		if b == nil {
			// As a program of the future writes it.
			os.Remove(path)
			j, err := journal.Open(path, journal.Options{Contents: recordVersion + 1})
			if err != nil {
				t.Fatal(err)
			}
			j.Close()
			want = journal.ErrVersion
		} else if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := OpenState(state)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Own(context.Background(), OwnOptions{}); !errors.Is(err, want) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
		if err := st.Own(context.Background(), OwnOptions{Discard: true}); err != nil {
			t.Errorf("%s, to be put aside: %v", what, err)
		}
		st.Close()
	}
	if aside, _ := filepath.Glob(path + ".discarded-*"); len(aside) != 2 {
		t.Errorf("put aside: %q", aside)
	}
	for _, bad := range []string{"{", `{"version":2,"server":"00112233445566778899aabbccddeeff"}`, `{"version":1,"server":"0011"}`, `{"version":1,"server":"00000000000000000000000000000000"}`} {
		os.WriteFile(filepath.Join(state, identityFile), []byte(bad), 0o600)
		if _, err := OpenState(state); err == nil {
			t.Errorf("identity %s is taken", bad)
		}
	}
	if _, err := New(Config{Users: s.cfg.Users, State: other, Shares: []Share{{Name: "x", Dir: l.state}}}); err == nil {
		t.Error("the state directory itself is served")
	}
}

// TestStateBelow has the state directory deeper in the share: no name of a directory above it leads to it, and none of those gets another name.
func TestStateBelow(t *testing.T) {
	l := newLives(t)
	l.state = filepath.Join(l.dir, "up", "sub", "state")
	if err := os.MkdirAll(filepath.Dir(l.state), 0o755); err != nil {
		t.Fatal(err)
	}
	s := l.start(l.state)
	os.Symlink("up", s.path("link"))
	p := s.client(t, 1, 0, "me", "ca")
	dir := func(name string) wire.FileID {
		req := openReq(name)
		req.Options = wire.OptDirectoryFile
		return p.open(req)
	}
	for _, name := range []string{"up", `up\sub`, `link\sub`} {
		id := dir(name)
		check(t, "rename of "+name, p.rename(id, "moved"), ntstatus.AccessDenied)
		check(t, "close", p.close(id), ntstatus.Success)
	}
	for _, name := range []string{`up\sub\state\opens`, `moved\state\opens`, `moved\sub\state\opens`} {
		req := openReq(name)
		req.Disposition = wire.FileOpen
		if _, st := p.tryOpen(req); !st.IsError() {
			t.Errorf("%s can be opened", name)
		}
	}
	check(t, "rename beside it", p.rename(dir(`up\other`), `up\another`), ntstatus.Success)
}

// list returns the names in the share's directory.
func (p *peer) list() (names []string) {
	p.t.Helper()
	req := openReq("")
	req.DesiredAccess = wire.AccessReadData
	id := p.open(req)
	r := p.ask(wire.CmdQueryDirectory, (&wire.QueryDirectoryRequest{InfoClass: fscc.FileIdBothDirectoryInformation, FileID: id, OutputBufferLength: 60000, Pattern: "*"}).Append)
	check(p.t, "QUERY_DIRECTORY", r.status(), ntstatus.Success)
	out, err := wire.ParseOutputResponse(r.msg)
	if err != nil {
		p.t.Fatal(err)
	}
	entries, err := fscc.ParseIDBothDirectory(out.Buffer)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name)
	}
	return names
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"id":4294967297,"create_guid":"07000000000000000000000000000000","client_guid":"01000000000000000000000000000000","owner":"me","share":"ca","name":"A","path":"a","file":{"inode":5,"born":7,"handle":"00"},` +
		`"desired_access":1,"granted_access":1,"share_mode":7,"create_options":0,"action":1,"timeout_ms":50000,"locks":[{"start":1,"last":2}],"lock_sequences":{"3":5},"app":{"id":"01000000000000000000000000000000"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		_, _ = wire.GUID(r.CreateGUID), wire.GUID(r.ClientGUID)
		o := &open{}
		for i, n := range r.LockSeq {
			o.noteLock(uint32(i)<<4 | uint32(n))
		}
	})
}

// TestInterruptedRename kills the server in the middle of a rename: before and after the file has its new name. The client, who was not told, may use either.
func TestInterruptedRename(t *testing.T) {
	for _, done := range []bool{false, true} {
		for _, ask := range []string{"a", "b"} {
			l := newLives(t)
			s := l.start(l.state)
			p := s.client(t, 1, 0, "me", "ca")
			id := p.open(with(openReq("a"), dh2q(1, 0, flagPersistent)))
			check(t, "renaming", s.object("a").renaming("a", "b", s.shares[foldName("ca")]), ntstatus.Success)
			if done {
				if err := os.Rename(s.path("a"), s.path("b")); err != nil {
					t.Fatal(err)
				}
			}
			s2 := l.start(l.kill(s))
			q := s2.client(t, 1, 0, "me", "ca")
			resp, st := q.tryOpen(with(openReq(ask), dh2c(id, 1, flagPersistent)))
			check(t, "reconnect by the name "+ask, st, ntstatus.Success)
			check(t, "rename", q.rename(resp.FileID, "c"), ntstatus.Success)
			if _, err := os.Stat(s2.path("c")); err != nil {
				t.Error(err)
			}
			s2.cut(t, q)
			_, st = s2.client(t, 1, 0, "me", "ca").tryOpen(with(openReq(ask), dh2c(id, 1, flagPersistent)))
			check(t, "reconnect by a former name", st, ntstatus.InvalidParameter)
		}
	}
}

// TestRestartDiskWithLease has a client that names a lease with a shared disk, which grants none, name it again.
func TestRestartDiskWithLease(t *testing.T) {
	l := newLives(t)
	s := l.start(l.state)
	s.write("d.vhdx", "")
	const name = "d.vhdx:SharedVirtualDisk"
	p := s.client(t, 1, 0, "me", "ca")
	id := p.open(withLease(with(diskReq(name, make([]byte, 168)), dh2q(1, 0, flagPersistent)), 5, cacheAll))
	q := l.start(l.kill(s)).client(t, 1, 0, "me", "ca")
	back := func() *wire.CreateRequest {
		return with(&wire.CreateRequest{Impersonation: 2, DesiredAccess: 0x20083, ShareAccess: 7, Disposition: wire.FileOpen, Name: name}, dh2c(id, 1, flagPersistent))
	}
	_, st := q.tryOpen(back())
	check(t, "reconnect without the lease", st, ntstatus.ObjectNameNotFound)
	_, st = q.tryOpen(withLease(back(), 5, cacheAll))
	check(t, "reconnect", st, ntstatus.Success)
}

// TestLostReply has a client that does not know of its open, because the server was killed before it could say so, open the file anew: with a lease on handles it
// does not stand in its own way.
func TestLostReply(t *testing.T) {
	l := newLives(t)
	s := l.start(l.state)
	p := s.client(t, 1, 0, "me", "ca")
	p.open(withLease(with(openReq("a"), dh2q(1, 0, flagPersistent)), 5, cacheAll))
	p.open(with(openReq("b"), dh2q(2, 0, flagPersistent)))
	s2 := l.start(l.kill(s))
	q := s2.client(t, 1, 0, "me", "ca")
	resp, st := q.tryOpen(withLease(with(openReq("a"), dh2q(3, 0, flagPersistent)), 5, cacheAll))
	check(t, "open anew with the lease", st, ntstatus.Success)
	if resp != nil && leaseOf(resp) != cacheAll {
		t.Errorf("lease %#x", leaseOf(resp))
	}
	_, st = q.tryOpen(with(openReq("b"), dh2q(4, 0, flagPersistent)))
	check(t, "open anew without one", st, ntstatus.FileNotAvailable)
}
