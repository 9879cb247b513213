package server

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vdbridge/smb/auth"
	"vdbridge/smb/crypt"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
	"vdbridge/test/leak"
)

// testServer runs a server over a temporary directory and ends it with the test.
type testServer struct {
	*Server
	t    testing.TB
	dir  string
	addr net.Addr
}

func startServer(t testing.TB, change func(*Config)) *testServer {
	t.Helper()
	leak.Check(t)
	dir := t.TempDir()
	cfg := Config{ServerName: "TEST", Users: auth.NewUsers(map[string]string{"me": "secret", "you": "secret"}),
		Shares: []Share{{Name: "disks", Dir: dir}, {Name: "ro", Dir: dir, ReadOnly: true}, {Name: "sealed", Dir: dir, Encrypt: true}}}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
		if n := s.memory.used.Load(); n != 0 {
			t.Errorf("%d bytes of memory in flight after Close", n)
		}
		if n := s.opens.Load(); n != 0 {
			t.Errorf("%d opens after Close", n)
		}
		if n := len(s.objects.m); n != 0 {
			t.Errorf("%d objects after Close", n)
		}
	})
	return &testServer{Server: s, t: t, dir: dir, addr: l.Addr()}
}

func (s *testServer) path(name string) string { return filepath.Join(s.dir, name) }

func (s *testServer) write(name, content string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(content), 0o666); err != nil {
		s.t.Fatal(err)
	}
}

// peer is a scripted client: it sends what it is told, whether that is right or wrong.
type peer struct {
	t       testing.TB
	tc      transport.Conn
	dialect wire.Dialect
	cipher  wire.Cipher
	signAlg wire.SigningAlgorithm
	preauth crypt.Preauth
	hint    []byte
	nextID  uint64
	credits int

	sid      uint64
	tid      uint32
	signer   *crypt.Signer
	sealer   *crypt.Sealer
	seal     bool // what is sent
	noSign   bool
	reauth   bool // logon keeps the keys
	previous uint64
	binding  bool      // logon adds a channel to the session sid
	caps     uint32    // added to those of the client
	guid     wire.GUID // of the client
}

// reply is a received message.
type reply struct {
	hdr wire.Header
	msg []byte
}

func (r *reply) status() ntstatus.Status { return ntstatus.Status(r.hdr.Status) }

// dialPeer connects without saying anything.
func (s *testServer) dialPeer(t testing.TB) *peer {
	t.Helper()
	nc, err := net.Dial("tcp", s.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, tc: transport.NewTCP(nc, transport.Options{}), credits: 1, guid: wire.GUID{1}}
	t.Cleanup(func() { p.tc.Close() })
	p.tc.SetReadDeadline(time.Now().Add(20 * time.Second))
	return p
}

// connect negotiates, logs on as me, and connects to the share.
func (s *testServer) connect(t testing.TB, d wire.Dialect, share string) *peer {
	t.Helper()
	p := s.dialPeer(t)
	p.negotiate(d)
	if st := p.logon("me", "secret"); st != ntstatus.Success {
		t.Fatalf("logon: %v", st)
	}
	p.tree(share)
	return p
}

// message makes one request; body appends its body.
func (p *peer) message(cmd wire.Command, body func([]byte) []byte) []byte {
	h := wire.Header{Command: cmd, CreditCharge: 1, Credits: 64, MessageID: p.nextID, SessionID: p.sid, TreeID: p.tid}
	p.nextID++
	b := make([]byte, crypt.SealRoom+wire.HeaderSize, 4096)
	h.Put(b[crypt.SealRoom:])
	return body(b[crypt.SealRoom:])
}

// send signs or seals and sends.
func (p *peer) send(msgs ...[]byte) {
	p.t.Helper()
	if err := p.trySend(msgs...); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) trySend(msgs ...[]byte) error {
	var all []byte
	for i, m := range msgs {
		m = append([]byte(nil), m...)
		if i < len(msgs)-1 {
			for len(m)&7 != 0 {
				m = append(m, 0)
			}
			le.PutUint32(m[20:], uint32(len(m)))
		}
		if p.signer != nil && !p.seal && !p.noSign {
			le.PutUint32(m[16:], le.Uint32(m[16:])|wire.FlagSigned)
			p.signer.Sign(m)
		}
		all = append(all, m...)
	}
	if p.seal {
		b := make([]byte, crypt.SealRoom+len(all), crypt.SealRoom+len(all)+crypt.SealSlack)
		copy(b[crypt.SealRoom:], all)
		if err := p.sealer.Seal(b); err != nil {
			p.t.Fatal(err)
		}
		all = b
	}
	return p.tc.WriteMessages([]transport.Message{{all}})
}

// receive takes one message off the connection and checks signature or seal.
func (p *peer) receive() []*reply {
	p.t.Helper()
	rs, err := p.tryReceive()
	if err != nil {
		p.t.Fatalf("receive: %v", err)
	}
	return rs
}

func (p *peer) tryReceive() ([]*reply, error) {
	n, err := p.tc.NextMessage()
	if err != nil {
		return nil, err
	}
	b := make([]byte, n, n+crypt.SealSlack)
	if err := p.tc.ReadFull(b); err != nil {
		return nil, err
	}
	sealed := false
	if le.Uint32(b) == wire.ProtocolTransform {
		if b, err = p.sealer.Open(b); err != nil {
			p.t.Fatal(err)
		}
		sealed = true
	}
	if sealed != p.seal {
		p.t.Fatalf("reply sealed: %v, request: %v", sealed, p.seal)
	}
	var out []*reply
	for len(b) > 0 {
		h, err := wire.ParseHeader(b)
		if err != nil {
			p.t.Fatal(err)
		}
		m := b
		if h.NextCommand != 0 {
			m = b[:h.NextCommand]
		}
		b = b[len(m):]
		if h.Flags&wire.FlagServerToRedir == 0 {
			p.t.Fatalf("reply without the flag of replies: %+v", h)
		}
		final := p.binding && h.Command == wire.CmdSessionSetup && ntstatus.Status(h.Status) == ntstatus.Success // signed with the new key
		if h.Flags&wire.FlagSigned != 0 && p.signer != nil && !final {
			if err := p.signer.Verify(m); err != nil {
				p.t.Fatal(err)
			}
		}
		p.credits += int(h.Credits)
		out = append(out, &reply{h, m})
	}
	return out, nil
}

// ask sends one request and returns its reply; interim replies are skipped.
func (p *peer) ask(cmd wire.Command, body func([]byte) []byte) *reply {
	p.t.Helper()
	p.send(p.message(cmd, body))
	return p.answer()
}

func (p *peer) answer() *reply {
	p.t.Helper()
	for {
		rs := p.receive()
		if len(rs) != 1 {
			p.t.Fatalf("%d replies in one message", len(rs))
		}
		if rs[0].status() != ntstatus.Pending {
			return rs[0]
		}
	}
}

// gone says that the server must have closed the connection, with nothing sent.
func (p *peer) gone() {
	p.t.Helper()
	if rs, err := p.tryReceive(); err == nil {
		p.t.Fatalf("the server answers %v instead of closing the connection", rs[0].status())
	} else if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		var oe *net.OpError
		if !errors.As(err, &oe) || oe.Timeout() {
			p.t.Fatal(err)
		}
	}
}

func (p *peer) negotiate(d wire.Dialect) *reply {
	p.t.Helper()
	req := wire.NegotiateRequest{SecurityMode: wire.NegotiateSigningEnabled, Capabilities: wire.CapEncryption | wire.CapLargeMTU | p.caps, ClientGUID: p.guid, Dialects: []wire.Dialect{d}}
	if d == wire.Dialect311 {
		req.Contexts = []wire.NegotiateContext{wire.PreauthContext(make([]byte, 32)),
			wire.EncryptionContext([]wire.Cipher{wire.CipherAES128GCM, wire.CipherAES128CCM}),
			wire.SigningContext([]wire.SigningAlgorithm{wire.SigningAESGMAC, wire.SigningAESCMAC})}
	}
	m := p.message(wire.CmdNegotiate, req.Append)
	p.send(m)
	r := p.answer()
	if r.status() != ntstatus.Success {
		p.t.Fatalf("NEGOTIATE: %v", r.status())
	}
	resp, err := wire.ParseNegotiateResponse(r.msg)
	if err != nil {
		p.t.Fatal(err)
	}
	p.dialect, p.hint = resp.Dialect, resp.SecurityBuffer
	switch {
	case d == wire.Dialect311:
		p.preauth.Update(m)
		p.preauth.Update(r.msg)
		for _, c := range resp.Contexts {
			v, err := c.Selected()
			if err != nil {
				p.t.Fatal(err)
			}
			switch c.Type {
			case wire.CtxEncryption:
				p.cipher = wire.Cipher(v)
			case wire.CtxSigning:
				p.signAlg = wire.SigningAlgorithm(v)
			}
		}
	case d >= wire.Dialect300:
		p.cipher, p.signAlg = wire.CipherAES128CCM, wire.SigningAESCMAC
	}
	return r
}

// logon sets a session up. The keys are there when it has succeeded.
func (p *peer) logon(user, password string) ntstatus.Status {
	p.t.Helper()
	ini, err := auth.NewInitiator(p.hint, auth.NTLM(auth.Credentials{User: user, Password: password}, "cifs/test"))
	if err != nil {
		p.t.Fatal(err)
	}
	preauth := p.preauth
	var in []byte
	for {
		token, _, err := ini.Token(in)
		if err != nil {
			p.t.Fatal(err)
		}
		flags := uint8(0)
		if p.binding {
			flags = wire.SessionFlagBinding
		}
		m := p.message(wire.CmdSessionSetup, (&wire.SessionSetupRequest{Flags: flags, SecurityMode: 1, PreviousSessionID: p.previous, SecurityBuffer: token}).Append)
		if p.binding && p.signer != nil {
			le.PutUint32(m[16:], le.Uint32(m[16:])|wire.FlagSigned)
			p.signer.Sign(m)
		}
		preauth.Update(m)
		p.send(m)
		r := p.answer()
		if st := r.status(); st != ntstatus.Success && st != ntstatus.MoreProcessingRequired {
			return st
		}
		p.sid = r.hdr.SessionID
		resp, err := wire.ParseSessionSetupResponse(r.msg)
		if err != nil {
			p.t.Fatal(err)
		}
		in = resp.SecurityBuffer
		if r.status() == ntstatus.Success {
			if _, _, err := ini.Token(in); err != nil {
				p.t.Fatal(err)
			}
			if p.reauth {
				return ntstatus.Success
			}
			if p.binding {
				p.signer, err = crypt.NewSigner(p.signAlg, crypt.SigningKey(p.dialect, ini.SessionKey(), &preauth))
				if err != nil {
					p.t.Fatal(err)
				}
				if r.hdr.Flags&wire.FlagSigned == 0 {
					p.t.Fatal("the last SESSION_SETUP reply is not signed")
				}
				if err := p.signer.Verify(r.msg); err != nil {
					p.t.Fatalf("the last SESSION_SETUP reply is not signed with the channel's key: %v", err)
				}
				return ntstatus.Success
			}
			keys := crypt.DeriveKeys(p.dialect, p.cipher, ini.SessionKey(), &preauth)
			if p.signer, err = crypt.NewSigner(p.signAlg, keys.Signing); err != nil {
				p.t.Fatal(err)
			}
			if r.hdr.Flags&wire.FlagSigned == 0 {
				p.t.Fatal("the last SESSION_SETUP reply is not signed")
			}
			if err := p.signer.Verify(r.msg); err != nil {
				p.t.Fatal(err)
			}
			if p.dialect >= wire.Dialect300 {
				p.sealer, err = crypt.NewSealer(crypt.SealerConfig{Cipher: p.cipher, SendKey: keys.ClientToServer, ReceiveKey: keys.ServerToClient, SessionID: p.sid})
				if err != nil {
					p.t.Fatal(err)
				}
			}
			return ntstatus.Success
		}
		preauth.Update(r.msg)
	}
}

func (p *peer) tryTree(share string) *reply {
	p.t.Helper()
	return p.ask(wire.CmdTreeConnect, (&wire.TreeConnectRequest{Path: `\\test\` + share}).Append)
}

func (p *peer) tree(share string) {
	p.t.Helper()
	r := p.tryTree(share)
	if r.status() != ntstatus.Success {
		p.t.Fatalf("TREE_CONNECT %s: %v", share, r.status())
	}
	p.tid = r.hdr.TreeID
}

// openReq is a CREATE request with what most tests want.
func openReq(name string) *wire.CreateRequest {
	return &wire.CreateRequest{Impersonation: 2, DesiredAccess: accessAll, ShareAccess: 7, Disposition: wire.FileOpenIf, Name: name}
}

func (p *peer) tryOpen(req *wire.CreateRequest) (*wire.CreateResponse, ntstatus.Status) {
	p.t.Helper()
	r := p.ask(wire.CmdCreate, req.Append)
	if r.status() != ntstatus.Success {
		return nil, r.status()
	}
	resp, err := wire.ParseCreateResponse(r.msg)
	if err != nil {
		p.t.Fatal(err)
	}
	return &resp, ntstatus.Success
}

func (p *peer) open(req *wire.CreateRequest) wire.FileID {
	p.t.Helper()
	resp, st := p.tryOpen(req)
	if st != ntstatus.Success {
		p.t.Fatalf("CREATE %s: %v", req.Name, st)
	}
	return resp.FileID
}

func (p *peer) close(id wire.FileID) ntstatus.Status {
	p.t.Helper()
	return p.ask(wire.CmdClose, (&wire.CloseRequest{FileID: id}).Append).status()
}

func writeBody(id wire.FileID, off uint64, data []byte, flags uint32) func([]byte) []byte {
	return func(b []byte) []byte {
		w := wire.WriteRequest{DataOffset: 112, Length: uint32(len(data)), Offset: off, FileID: id, Flags: flags}
		return append(w.Append(b), data...)
	}
}

func (p *peer) write(id wire.FileID, off uint64, data string) ntstatus.Status {
	p.t.Helper()
	return p.ask(wire.CmdWrite, writeBody(id, off, []byte(data), 0)).status()
}

func (p *peer) read(id wire.FileID, off uint64, n uint32) (string, ntstatus.Status) {
	p.t.Helper()
	r := p.ask(wire.CmdRead, (&wire.ReadRequest{Length: n, Offset: off, FileID: id}).Append)
	if r.status() != ntstatus.Success {
		return "", r.status()
	}
	resp, err := wire.ParseReadResponse(r.msg, len(r.msg))
	if err != nil {
		p.t.Fatal(err)
	}
	return string(r.msg[resp.DataOffset:][:resp.DataLength]), ntstatus.Success
}

func (p *peer) ioctl(id wire.FileID, code uint32, in []byte, maxOut uint32) ([]byte, ntstatus.Status) {
	p.t.Helper()
	r := p.ask(wire.CmdIoctl, func(b []byte) []byte {
		q := wire.IoctlRequest{CtlCode: code, FileID: id, InputCount: uint32(len(in)), MaxOutputResponse: maxOut, Flags: wire.IoctlFlagIsFsctl}
		return append(q.Append(b), in...)
	})
	if r.status() != ntstatus.Success {
		return nil, r.status()
	}
	resp, err := wire.ParseIoctlResponse(r.msg)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.Output, ntstatus.Success
}
