package client

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"testing"

	"vdbridge/smb/auth"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
	"vdbridge/test/leak"
)

// notSupported refuses every NEGOTIATE that does not offer one of the dialects, as a server does.
func offersOnly(d ...wire.Dialect) func(p *peer, q *query) bool {
	return func(p *peer, q *query) bool {
		if q.Command != wire.CmdNegotiate {
			return false
		}
		r, err := wire.ParseNegotiateRequest(q.msg)
		if err != nil {
			p.t.Error(err)
		}
		for _, have := range d {
			for _, want := range r.Dialects {
				if have == want {
					p.dialect = have
					return false
				}
			}
		}
		p.reply(q, ntstatus.NotSupported, nil)
		return true
	}
}

// TestDialRefuses has servers offer too little, or lie. The error says what it is and what to do.
func TestDialRefuses(t *testing.T) {
	smb1 := func(p *peer, q *query) bool {
		if q.Command == 0 && q.MessageID == 0 && q.msg[0] == 0xFF {
			p.send(append([]byte{0xFF, 'S', 'M', 'B', 0x72}, make([]byte, 60)...))
			return true
		}
		p.tr.Close()
		return true
	}
	context2 := func(typ uint16, data []byte) func(v *wire.NegotiateResponse) {
		return func(v *wire.NegotiateResponse) {
			v.Contexts = append(v.Contexts, wire.NegotiateContext{Type: typ, Data: data})
		}
	}
	for _, c := range []struct {
		name  string
		cfg   Config
		set   func(p *peer)
		want  error
		words string
	}{
		{"2.1 only", Config{}, func(p *peer) { p.handle = offersOnly(wire.Dialect210) }, ErrUnsupportedServer, "offers SMB 2.1"},
		{"3.1.1 only", Config{MaxDialect: wire.Dialect302}, func(p *peer) { p.handle = offersOnly(wire.Dialect311) }, ErrUnsupportedServer, "offers SMB 3.1.1"},
		{"SMB1 only, hangs up", Config{}, func(p *peer) { p.handle = smb1 }, ErrUnsupportedServer, "only SMB1"},
		{"SMB1 answer", Config{}, func(p *peer) {
			p.handle = func(p *peer, q *query) bool {
				p.send(append([]byte{0xFF, 'S', 'M', 'B', 0x72}, make([]byte, 60)...))
				return true
			}
		}, ErrUnsupportedServer, "SMB1"},
		{"no signing", Config{}, func(p *peer) { p.mode = 0 }, ErrUnsupportedServer, "no signing"},
		{"signing required, wanted plain", Config{Unsigned: true}, func(p *peer) { p.mode = 3 }, ErrUnsupportedServer, "requires signing"},
		{"no cipher", Config{Seal: true}, func(p *peer) { p.cipher = 0 }, ErrUnsupportedServer, "encryption"},
		{"no cipher in 3.0", Config{Seal: true}, func(p *peer) { p.dialect = wire.Dialect300; p.caps = wire.CapLargeMTU }, ErrUnsupportedServer, "encryption"},
		{"dialect not offered", Config{}, func(p *peer) { p.dialect = wire.Dialect202 }, ErrProtocol, "not offered"},
		{"wildcard dialect", Config{}, func(p *peer) { p.dialect = wire.DialectWildcard }, ErrProtocol, "not offered"},
		{"cipher not offered", Config{Ciphers: []wire.Cipher{wire.CipherAES256GCM}}, func(*peer) {}, ErrProtocol, "not offered"},
		{"signing not offered", Config{Signing: []wire.SigningAlgorithm{wire.SigningAESCMAC}}, func(*peer) {}, ErrProtocol, "not offered"},
		{"no pre-authentication integrity", Config{}, func(p *peer) {
			p.tweak = func(v *wire.NegotiateResponse) { v.Contexts = v.Contexts[1:] }
		}, ErrProtocol, "pre-authentication"},
		{"context twice", Config{}, func(p *peer) { p.tweak = context2(wire.CtxSigning, wire.AppendAlgorithmChoice(nil, 2)) }, ErrProtocol, "twice"},
		{"context malformed", Config{}, func(p *peer) {
			p.tweak = func(v *wire.NegotiateResponse) { v.Contexts[1].Data = []byte{2, 0, 1, 0} }
		}, ErrProtocol, "selects 2"},
		{"compression", Config{}, func(p *peer) { p.tweak = context2(wire.CtxCompression, make([]byte, 10)) }, ErrProtocol, "not asked for"},
		{"silly sizes", Config{}, func(p *peer) { p.maxIO = 512 }, ErrProtocol, "512"},
		{"hangs up", Config{}, func(p *peer) {
			p.handle = func(p *peer, q *query) bool { p.tr.Close(); return true }
		}, ErrConnectionLost, "closed the connection"},
		{"HTTP", Config{}, func(p *peer) {
			p.handle = func(p *peer, q *query) bool {
				_, _ = p.nc.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
				return true
			}
		}, ErrConnectionLost, "not SMB over TCP"},
	} {
		t.Run(c.name, func(t *testing.T) {
			leak.Check(t)
			var peers []*peer
			for range 3 { // Dial asks again to explain
				p := newPeer(t)
				c.set(p)
				peers = append(peers, p)
			}
			conn, err := Dial(bg, "peer", peers[0].config(c.cfg, peers[1:]...))
			if err == nil {
				conn.Close()
				t.Fatal("accepted")
			}
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("got %q", err)
			}
		})
	}
}

func TestDialArguments(t *testing.T) {
	for _, cfg := range []Config{{MinDialect: wire.Dialect311, MaxDialect: wire.Dialect300}, {Seal: true, Unsigned: true}, {Seal: true, MinDialect: wire.Dialect202, MaxDialect: wire.Dialect210}} {
		if _, err := Dial(bg, "localhost", cfg); err == nil {
			t.Errorf("%+v accepted", cfg)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	if _, err := Dial(bg, addr, Config{}); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("closed port: %v", err)
	}
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if _, err := Dial(ctx, addr, Config{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestDialCancelled cancels while the server thinks about the negotiation.
func TestDialCancelled(t *testing.T) {
	leak.Check(t)
	p := newPeer(t)
	ctx, cancel := context.WithCancel(bg)
	p.handle = func(p *peer, q *query) bool { cancel(); return true }
	if _, err := Dial(ctx, "peer", p.config(Config{})); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestLogonRefuses covers what can go wrong between client and server when a user logs on.
func TestLogonRefuses(t *testing.T) {
	garble := func(at int) func(p *peer) {
		return func(p *peer) { p.setup = func(_ *query, b []byte) []byte { b[at] ^= 1; return b } }
	}
	for _, c := range []struct {
		name  string
		cfg   Config
		user  auth.Credentials
		set   func(p *peer)
		want  error
		words string
	}{
		{"wrong password", Config{}, auth.Credentials{User: "user", Password: "guess"}, func(*peer) {}, ntstatus.LogonFailure, "check user name"},
		{"no such user", Config{}, auth.Credentials{User: "nobody", Password: "secret"}, func(*peer) {}, ntstatus.LogonFailure, "check user name"},
		{"guest", Config{}, user, func(p *peer) { p.session = wire.SessionFlagIsGuest }, ErrGuest, "guest"},
		{"anonymous unasked", Config{}, user, func(p *peer) { p.session = wire.SessionFlagIsNull }, ErrGuest, "anonymous"},
		{"anonymous sealed", Config{Seal: true}, auth.Credentials{Anonymous: true}, func(p *peer) { p.session = wire.SessionFlagIsNull }, ErrSecurity, "cannot be encrypted"},
		{"last signature wrong", Config{}, user, garble(50), ErrSecurity, "last message"},
		{"last reply changed", Config{}, user, garble(14), ErrSecurity, "last message"},
		{"last reply not signed", Config{}, user, garble(16 + 0), ErrProtocol, "request"},
		{"last reply says unsigned", Config{}, user, func(p *peer) {
			p.setup = func(_ *query, b []byte) []byte { b[16] &^= byte(wire.FlagSigned); return b }
		}, ErrSecurity, "did not sign"},
		{"last reply says unsigned, 3.0", Config{}, user, func(p *peer) {
			p.dialect = wire.Dialect300
			p.setup = func(_ *query, b []byte) []byte { b[16] &^= byte(wire.FlagSigned); return b }
		}, ErrSecurity, "did not sign"},
		{"never ends", Config{}, user, func(p *peer) {
			p.handle = func(p *peer, q *query) bool {
				if q.Command != wire.CmdSessionSetup {
					return false
				}
				q.SessionID = 5
				p.reply(q, ntstatus.MoreProcessingRequired, bodyOf((&wire.SessionSetupResponse{}).Append))
				return true
			}
		}, nil, ""},
		{"success at once", Config{}, user, func(p *peer) {
			p.handle = func(p *peer, q *query) bool {
				if q.Command != wire.CmdSessionSetup {
					return false
				}
				q.SessionID = 5
				p.reply(q, ntstatus.Success, bodyOf((&wire.SessionSetupResponse{}).Append))
				return true
			}
		}, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			leak.Check(t)
			p := newPeer(t)
			c.set(p)
			conn, err := p.dial(c.cfg)
			if err != nil {
				t.Fatal(err)
			}
			s, err := conn.Session(bg, c.user, SessionOptions{})
			if err == nil {
				t.Fatalf("logged on as %v", s.Identity())
			}
			if c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("got %q", err)
			}
		})
	}
}

// TestUnprotectedSessions are there when they are asked for by name.
func TestUnprotectedSessions(t *testing.T) {
	for _, c := range []struct {
		flag uint16
		user auth.Credentials
		opts SessionOptions
	}{
		{wire.SessionFlagIsGuest, user, SessionOptions{AllowGuest: true}},
		{wire.SessionFlagIsNull, auth.Credentials{Anonymous: true}, SessionOptions{}},
	} {
		leak.Check(t)
		p := newPeer(t)
		p.session = c.flag
		conn, err := p.dial(Config{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := conn.Session(bg, c.user, c.opts)
		if err != nil {
			t.Fatal(err)
		}
		if id := s.Identity(); !id.Guest && !id.Anonymous {
			t.Errorf("identity %v", id)
		}
		if _, err := s.Tree(bg, "share"); err != nil {
			t.Error(err)
		}
	}
}

// TestValidateNegotiate has someone change the negotiation of dialects that cannot protect it; the server's signed answer gives it away.
func TestValidateNegotiate(t *testing.T) {
	for _, c := range []struct {
		name    string
		dialect wire.Dialect
		change  func(a *wire.ValidateNegotiateResponse) bool
		ok      bool
	}{
		{"honest", wire.Dialect302, func(*wire.ValidateNegotiateResponse) bool { return true }, true},
		{"capabilities", wire.Dialect302, func(a *wire.ValidateNegotiateResponse) bool { a.Capabilities ^= wire.CapEncryption; return true }, false},
		{"dialect", wire.Dialect300, func(a *wire.ValidateNegotiateResponse) bool { a.Dialect = wire.Dialect302; return true }, false},
		{"mode", wire.Dialect300, func(a *wire.ValidateNegotiateResponse) bool { a.SecurityMode = 3; return true }, false},
		{"guid", wire.Dialect300, func(a *wire.ValidateNegotiateResponse) bool { a.ServerGUID[3] = 1; return true }, false},
		{"3.0 without answer", wire.Dialect300, func(*wire.ValidateNegotiateResponse) bool { return false }, false},
		{"2.1 without answer", wire.Dialect210, func(*wire.ValidateNegotiateResponse) bool { return false }, true},
		{"2.1, but the server knows 3.0", wire.Dialect210, func(a *wire.ValidateNegotiateResponse) bool { a.Dialect = wire.Dialect300; return true }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			leak.Check(t)
			p := newPeer(t)
			p.dialect, p.validate = c.dialect, c.change
			conn, err := p.dial(Config{MinDialect: wire.Dialect210})
			if err != nil {
				t.Fatal(err)
			}
			s, err := conn.Session(bg, user, SessionOptions{})
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Tree(bg, "share")
			if (err == nil) != c.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestMultiProtocol opens with SMB1.
func TestMultiProtocol(t *testing.T) {
	for _, d := range []wire.Dialect{wire.Dialect202, wire.Dialect311} {
		p := newPeer(t)
		if d == wire.Dialect202 {
			p.caps = 0
		}
		p.dialect = d
		p.handle = func(p *peer, q *query) bool {
			if binary.LittleEndian.Uint32(q.msg) != wire.ProtocolSMB1 {
				return false
			}
			names, err := wire.ParseSMB1Negotiate(q.msg)
			if err != nil || names[len(names)-1] != "SMB 2.???" {
				t.Errorf("SMB1 NEGOTIATE offers %q, %v", names, err)
			}
			p.account(q) // uses message id 0
			v := wire.NegotiateResponse{SecurityMode: p.mode, Dialect: wire.DialectWildcard, MaxTransactSize: 65536, MaxReadSize: 65536, MaxWriteSize: 65536, SecurityBuffer: p.acceptor.Hint()}
			if d == wire.Dialect202 {
				v.Dialect = d
			}
			q.Header = wire.Header{}
			p.send(p.build(q, ntstatus.Success, 1, 0, 0, bodyOf(v.Append)))
			return true
		}
		f := p.open(Config{MultiProtocol: true, MinDialect: wire.Dialect202})
		if got := f.t.sess.c.Info().Dialect; got != d {
			t.Errorf("dialect %s", got)
		}
		if _, err := f.ReadAt(bg, make([]byte, 200000), 0); err != nil {
			t.Error(err)
		}
	}
}

// TestNames refuses names that cannot be sent, without asking the server.
func TestNames(t *testing.T) {
	f := newPeer(t).open(Config{})
	for name, want := range map[string]ntstatus.Status{
		"a\x00b": ntstatus.ObjectNameInvalid, strings.Repeat("x/", 20000): ntstatus.NameTooLong,
	} {
		if _, err := f.t.Open(bg, name, OpenOptions{}); !errors.Is(err, want) || len(err.Error()) > 300 {
			t.Errorf("%.10q: %v", name, err)
		}
	}
	if clean, err := cleanName(`/a/b\c/`); clean != `a\b\c` || err != nil {
		t.Errorf("%q, %v", clean, err)
	}
	for _, share := range []string{"", "/", `a\b`} {
		if _, err := f.t.sess.Tree(bg, share); err == nil {
			t.Errorf("share %q accepted", share)
		}
	}
}
