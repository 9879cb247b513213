package server

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// check fails the test if got is not want.
func check(t testing.TB, what string, got, want ntstatus.Status) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestDialectsAndSeals(t *testing.T) {
	for _, d := range []wire.Dialect{wire.Dialect210, wire.Dialect300, wire.Dialect302, wire.Dialect311} {
		for _, seal := range []bool{false, true} {
			if seal && d < wire.Dialect300 {
				continue
			}
			t.Run(d.String()+map[bool]string{true: " sealed", false: " signed"}[seal], func(t *testing.T) {
				s := startServer(t, func(c *Config) { c.MinDialect = wire.Dialect210 })
				p := s.connect(t, d, "disks")
				p.seal = seal
				id := p.open(openReq("a.txt"))
				check(t, "WRITE", p.write(id, 0, "hello"), ntstatus.Success)
				got, st := p.read(id, 1, 100)
				check(t, "READ", st, ntstatus.Success)
				if got != "ello" {
					t.Errorf("read %q", got)
				}
				_, st = p.read(id, 5, 1)
				check(t, "READ at the end", st, ntstatus.EndOfFile)
				check(t, "FLUSH", p.ask(wire.CmdFlush, (&wire.FlushRequest{FileID: id}).Append).status(), ntstatus.Success)
				check(t, "CLOSE", p.close(id), ntstatus.Success)
				check(t, "CLOSE again", p.close(id), ntstatus.FileClosed)
				check(t, "ECHO", p.ask(wire.CmdEcho, wire.AppendEmptyRequest).status(), ntstatus.Success)
				check(t, "TREE_DISCONNECT", p.ask(wire.CmdTreeDisconnect, wire.AppendEmptyRequest).status(), ntstatus.Success)
				check(t, "CREATE after it", p.ask(wire.CmdCreate, openReq("x").Append).status(), ntstatus.NetworkNameDeleted)
				check(t, "LOGOFF", p.ask(wire.CmdLogoff, wire.AppendEmptyRequest).status(), ntstatus.Success)
				check(t, "LOGOFF again", p.ask(wire.CmdLogoff, wire.AppendEmptyRequest).status(), ntstatus.UserSessionDeleted)
				if b, _ := os.ReadFile(s.path("a.txt")); string(b) != "hello" {
					t.Errorf("the file has %q", b)
				}
			})
		}
	}
}

func TestMultiProtocolNegotiate(t *testing.T) {
	s := startServer(t, nil)
	p := s.dialPeer(t)
	p.send(wire.AppendSMB1Negotiate(nil, "NT LM 0.12", "SMB 2.002", "SMB 2.???"))
	r := p.answer()
	resp, err := wire.ParseNegotiateResponse(r.msg)
	if err != nil || resp.Dialect != wire.DialectWildcard {
		t.Fatalf("dialect %v, %v", resp.Dialect, err)
	}
	p.nextID = 1
	p.negotiate(wire.Dialect311)
	check(t, "logon", p.logon("me", "secret"), ntstatus.Success)

	p = s.dialPeer(t)
	p.send(wire.AppendSMB1Negotiate(nil, "NT LM 0.12"))
	p.gone()
}

// TestBrokenProtocol has what the specification wants to be answered by dropping the connection.
func TestBrokenProtocol(t *testing.T) {
	cases := map[string]func(p *peer){
		"request before NEGOTIATE": func(p *peer) { p.send(p.message(wire.CmdEcho, wire.AppendEmptyRequest)) },
		"NEGOTIATE again": func(p *peer) {
			p.negotiate(wire.Dialect302)
			p.send(p.message(wire.CmdNegotiate, (&wire.NegotiateRequest{Dialects: []wire.Dialect{wire.Dialect302}}).Append))
		},
		"garbage": func(p *peer) { p.send([]byte("GET / HTTP/1.1\r\n\r\n")) },
		"short":   func(p *peer) { p.send([]byte{1, 2}) },
		"cut off": func(p *peer) { p.send([]byte("\xfeSMB@\x00")) },
		"unknown command": func(p *peer) {
			p.negotiate(wire.Dialect311)
			p.send(p.message(0x13, wire.AppendEmptyRequest))
		},
		"reply flag": func(p *peer) {
			p.negotiate(wire.Dialect311)
			m := p.message(wire.CmdEcho, wire.AppendEmptyRequest)
			le.PutUint32(m[16:], wire.FlagServerToRedir)
			p.send(m)
		},
		"message id used twice": func(p *peer) {
			p.negotiate(wire.Dialect311)
			p.nextID--
			p.send(p.message(wire.CmdEcho, wire.AppendEmptyRequest))
		},
		"message id beyond the credits": func(p *peer) {
			p.negotiate(wire.Dialect311)
			p.nextID += 100000
			p.send(p.message(wire.CmdEcho, wire.AppendEmptyRequest))
		},
		"charge beyond the credits": func(p *peer) {
			p.negotiate(wire.Dialect311)
			m := p.message(wire.CmdEcho, wire.AppendEmptyRequest)
			le.PutUint16(m[6:], 60000)
			p.send(m)
		},
		"compound offset not aligned": func(p *peer) {
			p.negotiate(wire.Dialect311)
			m := p.message(wire.CmdEcho, wire.AppendEmptyRequest)
			le.PutUint32(m[20:], 68)
			p.send(append(m, make([]byte, 200)...))
		},
		"compound offset outside": func(p *peer) {
			p.negotiate(wire.Dialect311)
			m := p.message(wire.CmdEcho, wire.AppendEmptyRequest)
			le.PutUint32(m[20:], 0xFFFFFFF8)
			p.send(m)
		},
		"transform header of nobody": func(p *peer) {
			p.negotiate(wire.Dialect311)
			b := make([]byte, 200)
			(&wire.TransformHeader{OriginalMessageSize: 148, Flags: 1, SessionID: 77}).Put(b)
			p.send(b)
		},
		"compressed": func(p *peer) {
			p.negotiate(wire.Dialect311)
			p.send(append([]byte("\xfcSMB"), make([]byte, 100)...))
		},
		"large before logon": func(p *peer) {
			p.negotiate(wire.Dialect311)
			_ = p.trySend(append(p.message(wire.CmdEcho, wire.AppendEmptyRequest), make([]byte, 100000)...))
		},
	}
	for name, f := range cases {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, nil)
			p := s.dialPeer(t)
			f(p)
			p.gone()
		})
	}
}

func TestLogonRefused(t *testing.T) {
	s := startServer(t, nil)
	for _, c := range [][2]string{{"me", "wrong"}, {"nobody", "secret"}} {
		p := s.dialPeer(t)
		p.negotiate(wire.Dialect311)
		check(t, c[0], p.logon(c[0], c[1]), ntstatus.LogonFailure)
	}
}

func TestUnsignedAndForged(t *testing.T) {
	s := startServer(t, nil)
	p := s.connect(t, wire.Dialect311, "disks")
	p.noSign = true
	check(t, "unsigned CREATE", p.ask(wire.CmdCreate, openReq("a").Append).status(), ntstatus.AccessDenied)
	p.noSign = false
	m := p.message(wire.CmdCreate, openReq("a").Append)
	le.PutUint32(m[16:], wire.FlagSigned)
	p.signer.Sign(m)
	m[len(m)-1] ^= 1
	signer := p.signer
	p.signer = nil
	p.send(m)
	check(t, "forged CREATE", p.answer().status(), ntstatus.AccessDenied)
	p.signer = signer
	if _, err := os.Stat(s.path("a")); err == nil {
		t.Error("the forged request was carried out")
	}
	// TREE_CONNECT in the clear and unsigned ends a 3.1.1 connection. [MS-SMB2] 3.3.5.7
	p.noSign = true
	p.send(p.message(wire.CmdTreeConnect, (&wire.TreeConnectRequest{Path: `\\test\disks`}).Append))
	check(t, "unsigned TREE_CONNECT", p.answer().status(), ntstatus.AccessDenied)
}

func TestEncryptionRequired(t *testing.T) {
	t.Run("share", func(t *testing.T) {
		s := startServer(t, nil)
		p := s.connect(t, wire.Dialect311, "sealed")
		check(t, "signed CREATE", p.ask(wire.CmdCreate, openReq("a").Append).status(), ntstatus.AccessDenied)
		p.seal = true
		p.close(p.open(openReq("a")))
	})
	t.Run("server", func(t *testing.T) {
		s := startServer(t, func(c *Config) { c.Encrypt = true })
		p := s.dialPeer(t)
		p.negotiate(wire.Dialect300)
		check(t, "logon", p.logon("me", "secret"), ntstatus.Success)
		check(t, "signed TREE_CONNECT", p.tryTree("disks").status(), ntstatus.AccessDenied)
		p.seal = true
		p.tree("disks")
	})
}

func TestTreeConnectRefused(t *testing.T) {
	s := startServer(t, nil)
	p := s.connect(t, wire.Dialect311, "disks")
	check(t, "unknown share", p.tryTree("nope").status(), ntstatus.BadNetworkName)
	for _, path := range []string{"", "disks", `\\`, `\\x`, `\\\disks`, `\\x\disks\y`} {
		r := p.ask(wire.CmdTreeConnect, (&wire.TreeConnectRequest{Path: path}).Append)
		check(t, path, r.status(), ntstatus.InvalidParameter)
	}
	check(t, "other case", p.tryTree("DISKS").status(), ntstatus.Success)
}

func TestNames(t *testing.T) {
	s := startServer(t, nil)
	outside := t.TempDir()
	if err := os.WriteFile(outside+"/secret", []byte("x"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, l := range [][2]string{{outside, "dir"}, {outside + "/secret", "file"}, {"../..", "up"}, {"nowhere", "dangling"}, {"Real", "inside"}} {
		if err := os.Symlink(l[0], s.path(l[1])); err != nil {
			t.Fatal(err)
		}
	}
	s.write("Real", "content")
	p := s.connect(t, wire.Dialect311, "disks")
	for name, want := range map[string]ntstatus.Status{
		`\x`: ntstatus.InvalidParameter, `a\\b`: ntstatus.ObjectNameInvalid, `..`: ntstatus.ObjectPathSyntaxBad, `..\x`: ntstatus.ObjectPathSyntaxBad,
		`a\..\..\x`: ntstatus.ObjectPathSyntaxBad, `.`: ntstatus.ObjectNameInvalid, `a\.\b`: ntstatus.ObjectNameInvalid, `a/b`: ntstatus.ObjectNameInvalid, `a*`: ntstatus.ObjectNameInvalid,
		`a?`: ntstatus.ObjectNameInvalid, `a"`: ntstatus.ObjectNameInvalid, `a<`: ntstatus.ObjectNameInvalid, `a|`: ntstatus.ObjectNameInvalid, "a\x01": ntstatus.ObjectNameInvalid,
		"a\x00b": ntstatus.ObjectNameInvalid, `Real:stream`: ntstatus.ObjectNameInvalid, `Real:SharedVirtualDisk`: ntstatus.ObjectNameInvalid,
		`Real:`: ntstatus.ObjectNameInvalid, `:x`: ntstatus.ObjectNameInvalid,
		strings.Repeat("x", 256): ntstatus.ObjectNameInvalid, `no\such`: ntstatus.ObjectPathNotFound, `Real\x`: ntstatus.ObjectPathNotFound,
		`dir\secret`: ntstatus.AccessDenied, `dir`: ntstatus.AccessDenied, `file`: ntstatus.AccessDenied, `up`: ntstatus.AccessDenied, `up\etc`: ntstatus.AccessDenied,
		`dangling`: ntstatus.AccessDenied,
	} {
		_, st := p.tryOpen(openReq(name))
		check(t, name, st, want)
	}
	for _, name := range []string{"Real", "real", "REAL", "Real::$DATA", "inside"} {
		id := p.open(openReq(name))
		if got, _ := p.read(id, 0, 10); got != "content" {
			t.Errorf("%s has %q", name, got)
		}
		p.close(id)
	}
	if b, _ := os.ReadFile(outside + "/secret"); string(b) != "x" {
		t.Error("the file outside of the share was changed")
	}
	if list, _ := os.ReadDir(outside); len(list) != 1 {
		t.Error("something was made outside of the share")
	}
	// What is not UTF-16 is no name.
	r := p.ask(wire.CmdCreate, func(b []byte) []byte {
		b = openReq("xx").Append(b)
		at := len(b) - 4
		copy(b[at:], []byte{0x00, 0xD8, 'a', 0})
		return b
	})
	check(t, "unpaired surrogate", r.status(), ntstatus.InvalidParameter)
}

func TestReadOnlyShare(t *testing.T) {
	s := startServer(t, nil)
	s.write("a", "content")
	p := s.connect(t, wire.Dialect311, "ro")
	req := openReq("a")
	_, st := p.tryOpen(req)
	check(t, "for writing", st, ntstatus.AccessDenied)
	req.DesiredAccess = wire.AccessMaximumAllowed
	id := p.open(req)
	check(t, "WRITE", p.write(id, 0, "x"), ntstatus.AccessDenied)
	if got, _ := p.read(id, 0, 7); got != "content" {
		t.Errorf("read %q", got)
	}
	req.DesiredAccess, req.Name = wire.AccessReadData, "new"
	_, st = p.tryOpen(req)
	check(t, "creating", st, ntstatus.AccessDenied)
	req.Name, req.Options, req.DesiredAccess = "a", wire.OptDeleteOnClose, wire.AccessReadData|wire.AccessMaximumAllowed
	_, st = p.tryOpen(req)
	check(t, "delete on close", st, ntstatus.AccessDenied)
}

func TestShareModes(t *testing.T) {
	s := startServer(t, nil)
	s.write("a", "x")
	p := s.connect(t, wire.Dialect311, "disks")
	q := s.connect(t, wire.Dialect302, "disks")
	access := []uint32{wire.AccessReadData, wire.AccessWriteData, wire.AccessDelete, wire.AccessReadAttributes}
	bit := []uint32{wire.ShareRead, wire.ShareWrite, wire.ShareDelete, 0}
	for i, a1 := range access {
		for sh1 := range uint32(8) {
			for j, a2 := range access {
				for sh2 := range uint32(8) {
					r1, r2 := openReq("a"), openReq("a")
					r1.DesiredAccess, r1.ShareAccess, r2.DesiredAccess, r2.ShareAccess = a1, sh1, a2, sh2
					id := p.open(r1)
					want := ntstatus.Success
					if i < 3 && j < 3 && (bit[i]&sh2 == 0 || bit[j]&sh1 == 0) {
						want = ntstatus.SharingViolation
					}
					resp, st := q.tryOpen(r2)
					if st != want {
						t.Fatalf("access %#x share %d, then access %#x share %d: %v, want %v", a1, sh1, a2, sh2, st, want)
					}
					if resp != nil {
						q.close(resp.FileID)
					}
					p.close(id)
				}
			}
		}
	}
}

func TestDeleteOnClose(t *testing.T) {
	s := startServer(t, nil)
	p := s.connect(t, wire.Dialect311, "disks")
	req := openReq("a")
	req.Options = wire.OptDeleteOnClose
	id := p.open(req)
	id2 := p.open(openReq("a"))
	p.close(id)
	_, st := p.tryOpen(openReq("A"))
	check(t, "open of a file about to go", st, ntstatus.DeletePending)
	if _, err := os.Stat(s.path("a")); err != nil {
		t.Error("deleted while open")
	}
	p.close(id2)
	if _, err := os.Stat(s.path("a")); err == nil {
		t.Error("not deleted")
	}
	// The connection's end deletes too.
	q := s.connect(t, wire.Dialect311, "disks")
	req.Name = "b"
	q.open(req)
	check(t, "LOGOFF", q.ask(wire.CmdLogoff, wire.AppendEmptyRequest).status(), ntstatus.Success)
	if _, err := os.Stat(s.path("b")); err == nil {
		t.Error("not deleted by LOGOFF")
	}
	// A directory with something in it stays.
	os.MkdirAll(s.path("d/e"), 0o777)
	id = p.open(openReq("d"))
	r := p.ask(wire.CmdSetInfo, (&wire.SetInfoRequest{InfoType: wire.InfoFile, FileInfoClass: fscc.FileDispositionInformation, FileID: id, Buffer: []byte{1}}).Append)
	check(t, "delete a full directory", r.status(), ntstatus.DirectoryNotEmpty)
}

func TestShutdownFinishesWhatRuns(t *testing.T) {
	s := startServer(t, nil)
	p := s.connect(t, wire.Dialect311, "disks")
	id := p.open(openReq("a"))
	check(t, "WRITE", p.write(id, 0, "x"), ntstatus.Success)
	if err := s.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	p.gone()
}

// TestWithoutOpenat2 is for kernels and sandboxes that have no openat2: names work, links do not.
func TestWithoutOpenat2(t *testing.T) {
	s := startServer(t, nil)
	s.shares[foldName("disks")].noOpenat2.Store(true)
	outside := t.TempDir()
	os.WriteFile(outside+"/secret", []byte("x"), 0o666)
	os.Symlink(outside, s.path("dir"))
	os.Symlink(outside+"/secret", s.path("file"))
	os.MkdirAll(s.path("A/b"), 0o777)
	p := s.connect(t, wire.Dialect311, "disks")
	for _, name := range []string{`dir\secret`, `dir\new`, `file`, `dir`} {
		if _, st := p.tryOpen(openReq(name)); !st.IsError() {
			t.Errorf("%s can be opened", name)
		}
	}
	id := p.open(openReq(`a\B\c`))
	check(t, "WRITE", p.write(id, 0, "hello"), ntstatus.Success)
	p.close(id)
	if b, _ := os.ReadFile(s.path("A/b/c")); string(b) != "hello" {
		t.Errorf("A/b/c has %q", b)
	}
	if list, _ := os.ReadDir(outside); len(list) != 1 {
		t.Error("something was made outside of the share")
	}
}

// TestQueryDirectory lists a directory of many entries in small pieces, resumed and restarted.
func TestQueryDirectory(t *testing.T) {
	s := startServer(t, nil)
	want := map[string]bool{".": true, "..": true}
	for i := range 300 {
		name := fmt.Sprintf("Datei %d ä.vhdx", i)
		s.write(name, "x")
		want[name] = true
	}
	s.write("bad:name", "x") // cannot be named on the wire
	p := s.connect(t, wire.Dialect311, "disks")
	req := openReq("")
	req.DesiredAccess = wire.AccessReadData
	id := p.open(req)
	list := func(flags uint8, pattern string, n uint32) ([]fscc.DirEntry, ntstatus.Status) {
		r := p.ask(wire.CmdQueryDirectory, (&wire.QueryDirectoryRequest{InfoClass: fscc.FileIdBothDirectoryInformation, Flags: flags, FileID: id, OutputBufferLength: n, Pattern: pattern}).Append)
		if r.status() != ntstatus.Success {
			return nil, r.status()
		}
		out, err := wire.ParseOutputResponse(r.msg)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := fscc.ParseIDBothDirectory(out.Buffer)
		if err != nil {
			t.Fatal(err)
		}
		return entries, ntstatus.Success
	}
	for round := range 2 {
		got := map[string]bool{}
		flags := wire.QueryDirRestart
		for {
			entries, st := list(flags, "*", 1000)
			if st == ntstatus.NoMoreFiles {
				break
			}
			check(t, "QUERY_DIRECTORY", st, ntstatus.Success)
			for _, e := range entries {
				if got[e.Name] {
					t.Errorf("%s comes twice", e.Name)
				}
				got[e.Name] = true
			}
			flags = 0
		}
		if len(got) != len(want) {
			t.Errorf("round %d: %d names, want %d", round, len(got), len(want))
		}
	}
	entries, st := list(wire.QueryDirReopen|wire.QueryDirSingleEntry, "DATEI 7 Ä.*", 1000)
	if st != ntstatus.Success || len(entries) != 1 || entries[0].Name != "Datei 7 ä.vhdx" || entries[0].EndOfFile != 1 {
		t.Errorf("%+v, %v", entries, st)
	}
	_, st = list(wire.QueryDirReopen, "nothing*", 1000)
	check(t, "no match", st, ntstatus.NoSuchFile)
	_, st = list(wire.QueryDirRestart, "*", 50)
	check(t, "tiny buffer", st, ntstatus.InfoLengthMismatch)
}
