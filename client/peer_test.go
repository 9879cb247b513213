package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"vdbridge/smb/auth"
	"vdbridge/smb/crypt"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
	"vdbridge/test/leak"
)

// peer is a scripted server for one connection. It judges what the client sends: message ids within what was granted and never used
// twice, signatures, seals. What it answers is up to its fields, which a test sets before it connects.
type peer struct {
	t  *testing.T
	tr transport.Conn
	nc net.Conn

	// What it offers.
	dialect  wire.Dialect
	mode     uint16
	caps     uint32
	signing  wire.SigningAlgorithm
	cipher   wire.Cipher
	maxIO    uint32
	tweak    func(*wire.NegotiateResponse)                // changes the NEGOTIATE reply
	session  uint16                                       // session flags
	share    uint32                                       // share flags
	handle   func(p *peer, q *query) bool                 // true: the request is dealt with
	grant    func(q *query) int                           // credits for a reply; nil: what was asked for
	setup    func(q *query, msg []byte) (altered []byte)  // changes the last SESSION_SETUP reply
	validate func(a *wire.ValidateNegotiateResponse) bool // changes the answer; false: none

	file []byte // what READ reads
	host *peer  // of whose session this is another channel
	lone bool   // replies of a binding that should be signed are not

	signer      *crypt.Signer
	sealer      *crypt.Sealer
	acceptor    auth.Acceptor
	established bool
	preauth     crypt.Preauth
	id          uint64

	wmu sync.Mutex // one message at a time

	mu       sync.Mutex
	high     uint64          // message ids below this one are granted
	used     map[uint64]bool // ids
	commands []wire.Command  // in their order, without NEGOTIATE and SESSION_SETUP
	closed   []wire.FileID
	lastFile uint64
	first    *crypt.Signer // of the session, for further channels
	shared   *crypt.Sealer
	setups   int // further ones that were done
	joined   int // requests that came in a compound and were not the last
}

// query is a request as the peer sees it.
type query struct {
	wire.Header
	msg    []byte
	sealed bool
	signed bool
}

func testAcceptor() auth.Acceptor {
	return auth.NewAcceptor(auth.AcceptNTLM(auth.AcceptorConfig{Users: auth.NewUsers(map[string]string{"user": "secret"}), AllowAnonymous: true}))
}

func newPeer(t *testing.T) *peer {
	return &peer{
		t: t, dialect: wire.Dialect311, mode: wire.NegotiateSigningEnabled, caps: wire.CapLargeMTU | wire.CapEncryption,
		signing: wire.SigningAESGMAC, cipher: wire.CipherAES128GCM, maxIO: 1 << 20, file: testFile,
		high: 1, used: map[uint64]bool{}, id: 0x1122334455667788,
		acceptor: testAcceptor(),
	}
}

var testFile = func() []byte {
	b := make([]byte, 4<<20)
	for i := range b {
		b[i] = byte(i>>12) ^ byte(i*7)
	}
	return b
}()

// config returns a Config whose first connection is served by p. Further ones, as Dial makes to explain a refusal, are served by more, in turn.
func (p *peer) config(cfg Config, more ...*peer) Config {
	peers := append([]*peer{p}, more...)
	var mu sync.Mutex
	cfg.DialContext = func(context.Context, string, string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if len(peers) == 0 {
			return nil, errors.New("no more peers")
		}
		next := peers[0]
		peers = peers[1:]
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		s, err := l.Accept()
		if err != nil {
			return nil, err
		}
		next.nc = s
		next.tr = transport.NewTCP(s, transport.Options{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer next.tr.Close()
			next.serve()
		}()
		next.t.Cleanup(func() {
			next.tr.Close()
			<-done
		})
		return c, nil
	}
	return cfg
}

func (p *peer) serve() {
	for {
		n, err := p.tr.NextMessage()
		if err != nil {
			return
		}
		b := make([]byte, n)
		if p.tr.ReadFull(b) != nil {
			return
		}
		if !p.message(b) {
			return
		}
	}
}

// message handles one message from the client. False ends the connection.
func (p *peer) message(b []byte) bool {
	q := &query{msg: b}
	if p.host != nil && p.signer == nil {
		p.host.mu.Lock()
		p.signer, p.sealer, p.id = p.host.first, p.host.shared, p.host.id
		p.host.mu.Unlock()
		p.first = p.signer
	}
	if binary.LittleEndian.Uint32(b) == wire.ProtocolSMB1 {
		return p.handle != nil && p.handle(p, q)
	}
	if binary.LittleEndian.Uint32(b) == wire.ProtocolTransform {
		var err error
		if q.msg, err = p.sealer.Open(b); err != nil {
			p.t.Errorf("client sealed badly: %v", err)
			return false
		}
		q.sealed = true
	}
	// A compound is taken apart; its requests are answered one by one.
	for rest := q.msg; len(rest) > 0; {
		h, err := wire.ParseHeader(rest)
		if err != nil {
			p.t.Errorf("client sent: %v", err)
			return false
		}
		one := &query{Header: h, msg: rest, sealed: q.sealed}
		if h.NextCommand != 0 {
			one.msg = rest[:h.NextCommand:h.NextCommand]
			p.mu.Lock()
			p.joined++
			p.mu.Unlock()
		}
		rest = rest[len(one.msg):]
		if h.Flags&wire.FlagSigned != 0 {
			one.signed = true
			if err := p.signer.Verify(one.msg); err != nil {
				p.t.Errorf("client signed badly: %v", err)
				return false
			}
		}
		p.account(one)
		if p.handle != nil && p.handle(p, one) {
			continue
		}
		if !p.answer(one) {
			return false
		}
	}
	return true
}

// account checks the message ids.
func (p *peer) account(q *query) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q.Command != wire.CmdNegotiate && q.Command != wire.CmdSessionSetup {
		p.commands = append(p.commands, q.Command)
	}
	if q.Command == wire.CmdCancel {
		// It may overtake its request by a hair, when that is just being joined with others.
		if q.MessageID >= p.high {
			p.t.Errorf("CANCEL of message id %d, which was never granted", q.MessageID)
		}
		return
	}
	for i := range uint64(max(q.CreditCharge, 1)) {
		id := q.MessageID + i
		if id >= p.high {
			p.t.Errorf("%s overdraws: message id %d, granted are those below %d", q.Command, id, p.high)
		}
		if p.used[id] {
			p.t.Errorf("%s uses message id %d again", q.Command, id)
		}
		p.used[id] = true
	}
}

// message builds a reply. body nil stands for an ERROR body.
func (p *peer) build(q *query, status ntstatus.Status, credits int, flags uint32, asyncID uint64, body []byte) []byte {
	h := wire.Header{Status: uint32(status), Command: q.Command, Credits: uint16(credits), Flags: wire.FlagServerToRedir | flags,
		MessageID: q.MessageID, TreeID: q.TreeID, SessionID: q.SessionID, AsyncID: asyncID}
	if q.Command == wire.CmdTreeConnect {
		h.TreeID = 77
	}
	if q.signed && status != ntstatus.Pending {
		h.Flags |= wire.FlagSigned
	}
	b := make([]byte, wire.HeaderSize)
	h.Put(b)
	if body == nil {
		body = (&wire.ErrorResponse{}).Append(make([]byte, wire.HeaderSize))[wire.HeaderSize:]
	}
	b = append(b, body...)
	p.mu.Lock()
	p.high += uint64(credits)
	p.mu.Unlock()
	return b
}

// protect signs or seals the messages, one or several that are compounded.
func (p *peer) protect(q *query, msgs ...[]byte) []byte {
	var all []byte
	for i, m := range msgs {
		if i < len(msgs)-1 {
			for len(m)%8 != 0 {
				m = append(m, 0)
			}
			binary.LittleEndian.PutUint32(m[20:], uint32(len(m)))
		}
		if !q.sealed && binary.LittleEndian.Uint32(m[16:])&wire.FlagSigned != 0 {
			p.signer.Sign(m)
		}
		all = append(all, m...)
	}
	if q.sealed {
		all = append(make([]byte, crypt.SealRoom), all...)
		if err := p.sealer.Seal(all); err != nil {
			p.t.Error(err)
		}
	}
	return all
}

func (p *peer) send(b []byte) {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	// The client may have hung up.
	_ = p.tr.WriteMessages([]transport.Message{{b}})
}

func (p *peer) credits(q *query) int {
	if p.grant != nil {
		return p.grant(q)
	}
	return int(q.Credits)
}

// reply answers with a body, whose Append functions begin behind a header.
func (p *peer) reply(q *query, status ntstatus.Status, body []byte) {
	p.send(p.protect(q, p.build(q, status, p.credits(q), 0, 0, body)))
}

// bodyOf returns what append appends behind a header.
func bodyOf(appendBody func([]byte) []byte) []byte {
	return appendBody(make([]byte, wire.HeaderSize))[wire.HeaderSize:]
}

// readBody is the body of a READ reply to q.
func (p *peer) readBody(q *query) []byte {
	r, err := wire.ParseReadRequest(q.msg)
	if err != nil {
		p.t.Errorf("READ: %v", err)
	}
	if r.Offset >= uint64(len(p.file)) {
		return nil
	}
	data := p.file[r.Offset:min(uint64(len(p.file)), r.Offset+uint64(r.Length))]
	return append(bodyOf((&wire.ReadResponse{DataOffset: 80, DataLength: uint32(len(data))}).Append), data...)
}

// answer is what an ordinary server would do.
func (p *peer) answer(q *query) bool {
	switch q.Command {
	case wire.CmdNegotiate:
		p.negotiate(q)
	case wire.CmdSessionSetup:
		return p.sessionSetup(q)
	case wire.CmdTreeConnect:
		p.reply(q, ntstatus.Success, bodyOf((&wire.TreeConnectResponse{ShareType: 1, ShareFlags: p.share, MaximalAccess: 0x1F01FF}).Append))
	case wire.CmdCreate:
		p.mu.Lock()
		p.lastFile++
		id := wire.FileID{Persistent: p.lastFile, Volatile: p.lastFile}
		p.mu.Unlock()
		p.reply(q, ntstatus.Success, bodyOf((&wire.CreateResponse{Action: 1, EndOfFile: uint64(len(p.file)), FileID: id}).Append))
	case wire.CmdClose:
		r, _ := wire.ParseCloseRequest(q.msg)
		p.mu.Lock()
		p.closed = append(p.closed, r.FileID)
		p.mu.Unlock()
		p.reply(q, ntstatus.Success, bodyOf((&wire.CloseResponse{}).Append))
	case wire.CmdRead:
		if body := p.readBody(q); body != nil {
			p.reply(q, ntstatus.Success, body)
		} else {
			p.reply(q, ntstatus.EndOfFile, nil)
		}
	case wire.CmdWrite:
		r, err := wire.ParseWriteRequest(q.msg)
		if err != nil {
			p.t.Errorf("WRITE: %v", err)
			return false
		}
		if want := p.file[r.Offset : r.Offset+uint64(r.Length)]; !bytes.Equal(q.msg[r.DataOffset:int(r.DataOffset)+int(r.Length)], want) {
			p.t.Errorf("WRITE of %d bytes at %d came garbled", r.Length, r.Offset)
		}
		p.reply(q, ntstatus.Success, bodyOf((&wire.WriteResponse{Count: r.Length}).Append))
	case wire.CmdIoctl:
		p.ioctl(q)
	case wire.CmdEcho, wire.CmdLogoff, wire.CmdTreeDisconnect, wire.CmdFlush:
		p.reply(q, ntstatus.Success, bodyOf(wire.AppendEmptyResponse))
	case wire.CmdCancel:
	default:
		p.reply(q, ntstatus.NotSupported, nil)
	}
	return true
}

func (p *peer) ioctl(q *query) {
	r, err := wire.ParseIoctlRequest(q.msg)
	if err != nil {
		p.t.Errorf("IOCTL: %v", err)
		return
	}
	out := slices.Clone(r.Input) // echo
	slices.Reverse(out)
	if r.CtlCode == wire.FsctlValidateNegotiateInfo {
		a := wire.ValidateNegotiateResponse{Capabilities: p.caps, SecurityMode: p.mode, Dialect: p.dialect}
		if p.validate != nil && !p.validate(&a) {
			p.reply(q, ntstatus.FileClosed, nil)
			return
		}
		out = binary.LittleEndian.AppendUint32(nil, a.Capabilities)
		out = append(out, a.ServerGUID[:]...)
		out = binary.LittleEndian.AppendUint16(out, a.SecurityMode)
		out = binary.LittleEndian.AppendUint16(out, uint16(a.Dialect))
	}
	status := ntstatus.Success
	if len(out) > int(r.MaxOutputResponse) {
		out, status = out[:r.MaxOutputResponse], ntstatus.BufferOverflow
	}
	body := append(bodyOf((&wire.IoctlResponse{CtlCode: r.CtlCode, FileID: r.FileID, OutputCount: uint32(len(out))}).Append), out...)
	p.reply(q, status, body)
}

func (p *peer) negotiate(q *query) {
	p.preauth.Update(q.msg)
	v := &wire.NegotiateResponse{SecurityMode: p.mode, Dialect: p.dialect, Capabilities: p.caps, MaxTransactSize: p.maxIO, MaxReadSize: p.maxIO, MaxWriteSize: p.maxIO,
		SecurityBuffer: p.acceptor.Hint()}
	if p.dialect == wire.Dialect311 {
		v.Contexts = []wire.NegotiateContext{
			{Type: wire.CtxPreauthIntegrity, Data: wire.AppendPreauthChoice(nil, wire.HashSHA512, []byte("salt"))},
			{Type: wire.CtxSigning, Data: wire.AppendAlgorithmChoice(nil, uint16(p.signing))},
			{Type: wire.CtxEncryption, Data: wire.AppendAlgorithmChoice(nil, uint16(p.cipher))},
		}
	}
	if p.tweak != nil {
		p.tweak(v)
	}
	b := p.build(q, ntstatus.Success, p.credits(q), 0, 0, bodyOf(v.Append))
	p.preauth.Update(b)
	p.send(b)
}

func (p *peer) sessionSetup(q *query) bool {
	r, err := wire.ParseSessionSetupRequest(q.msg)
	if err != nil {
		p.t.Errorf("SESSION_SETUP: %v", err)
		return false
	}
	p.preauth.Update(q.msg)
	if p.host != nil || p.established {
		return p.anotherSetup(q, r)
	}
	token, done, err := p.acceptor.Token(slices.Clone(r.SecurityBuffer))
	q.SessionID = p.id
	if err != nil {
		p.reply(q, ntstatus.LogonFailure, nil)
		return true
	}
	body := bodyOf((&wire.SessionSetupResponse{SecurityBuffer: token}).Append)
	if !done {
		b := p.build(q, ntstatus.MoreProcessingRequired, p.credits(q), 0, 0, body)
		p.preauth.Update(b)
		p.send(b)
		return true
	}
	body = bodyOf((&wire.SessionSetupResponse{SessionFlags: p.session, SecurityBuffer: token}).Append)
	if p.acceptor.Identity().Anonymous {
		p.send(p.build(q, ntstatus.Success, p.credits(q), 0, 0, body))
		return true
	}
	cipher, signing := p.cipher, p.signing
	if p.dialect < wire.Dialect311 {
		cipher, signing = wire.CipherAES128CCM, wire.SigningAESCMAC
	}
	if p.dialect < wire.Dialect300 {
		signing = wire.SigningHMACSHA256
	}
	keys := crypt.DeriveKeys(p.dialect, cipher, p.acceptor.SessionKey(), &p.preauth)
	if p.signer, err = crypt.NewSigner(signing, keys.Signing); err != nil {
		p.t.Error(err)
	}
	if p.dialect >= wire.Dialect300 && cipher != 0 {
		if p.sealer, err = crypt.NewSealer(crypt.SealerConfig{Cipher: cipher, SendKey: keys.ServerToClient, ReceiveKey: keys.ClientToServer, SessionID: p.id}); err != nil {
			p.t.Error(err)
		}
	}
	p.established = true
	p.mu.Lock()
	p.first, p.shared = p.signer, p.sealer
	p.mu.Unlock()
	q.signed = p.session&wire.SessionFlagIsGuest == 0
	b := p.protect(q, p.build(q, ntstatus.Success, p.credits(q), 0, 0, body))
	if p.setup != nil {
		b = p.setup(q, b)
	}
	p.send(b)
	return true
}

// anotherSetup is for a further channel of the host's session, or for a session that proves itself again.
func (p *peer) anotherSetup(q *query, r *wire.SessionSetupRequest) bool {
	again := p.established
	if want := map[bool]uint8{false: wire.SessionFlagBinding}[again]; r.Flags != want || q.SessionID != p.id || r.PreviousSessionID != 0 || !q.signed && !q.sealed || q.sealed && !again {
		p.t.Errorf("SESSION_SETUP %+v of session %#x, signed %v, sealed %v", r, q.SessionID, q.signed, q.sealed)
	}
	if again && p.acceptor.Identity() != (auth.Identity{}) {
		p.acceptor = testAcceptor()
	}
	token, done, err := p.acceptor.Token(slices.Clone(r.SecurityBuffer))
	if err != nil {
		p.acceptor = testAcceptor()
		p.reply(q, ntstatus.LogonFailure, nil)
		return true
	}
	if p.lone {
		q.signed = false
	}
	body := bodyOf((&wire.SessionSetupResponse{SecurityBuffer: token, SessionFlags: p.session}).Append)
	if !done {
		b := p.protect(q, p.build(q, ntstatus.MoreProcessingRequired, p.credits(q), 0, 0, body))
		p.preauth.Update(b)
		p.send(b)
		return true
	}
	if !again {
		if p.signer, err = crypt.NewSigner(p.signing, crypt.SigningKey(p.dialect, p.acceptor.SessionKey(), &p.preauth)); err != nil {
			p.t.Error(err)
		}
		p.established = true
	}
	b := p.protect(q, p.build(q, ntstatus.Success, p.credits(q), 0, 0, body))
	if p.setup != nil {
		b = p.setup(q, b)
	}
	p.mu.Lock()
	p.setups++
	p.mu.Unlock()
	p.send(b)
	return true
}

var user = auth.Credentials{User: "user", Password: "secret"}

// dialPeer connects and closes with the test.
func (p *peer) dial(cfg Config) (*Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	p.t.Cleanup(cancel)
	c, err := Dial(ctx, "peer:445", p.config(cfg))
	if err == nil {
		p.t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

// openAt connects to p all the way to a file.
func (p *peer) open(cfg Config) *File {
	p.t.Helper()
	leak.Check(p.t)
	ctx := context.Background()
	c, err := p.dial(cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	s, err := c.Session(ctx, user, SessionOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	t, err := s.Tree(ctx, "share")
	if err != nil {
		p.t.Fatal(err)
	}
	f, err := t.Open(ctx, "file", OpenOptions{Access: wire.AccessGenericRead | wire.AccessGenericWrite, Disposition: wire.FileOpen})
	if err != nil {
		p.t.Fatal(err)
	}
	return f
}

// settled fails the test unless no request is in the table or the queue.
func (c *Conn) checkIdle(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.table) != 0 || c.w.head != nil || c.w.open != 0 || c.w.asked != 0 {
		t.Errorf("left behind: %d in the table, queue %v, open %d, asked %d", len(c.table), c.w.head != nil, c.w.open, c.w.asked)
	}
}

// raw returns the peer's socket.
func (p *peer) raw() net.Conn { return p.nc }
