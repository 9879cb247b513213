package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"vdbridge/smb/crypt"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
)

// negotiated is what client and server have agreed on.
type negotiated struct {
	dialect     wire.Dialect
	cipher      wire.Cipher
	signing     wire.SigningAlgorithm
	serverGUID  wire.GUID
	serverMode  uint16
	serverCaps  uint32
	clientMode  uint16
	clientCaps  uint32
	offered     []wire.Dialect
	multiCredit bool
	maxTransact int
	maxRead     int
	maxWrite    int
	token       []byte
	preauth     crypt.Preauth
	started     uint64 // FILETIME
	systemTime  uint64 // FILETIME
}

// Info tells what was negotiated.
type Info struct {
	Address      string
	Server       string
	Dialect      wire.Dialect
	Cipher       wire.Cipher // zero: the server has no encryption
	Signing      wire.SigningAlgorithm
	ServerGUID   wire.GUID
	Capabilities uint32
	MaxRead      int // bytes per request
	MaxWrite     int
	MaxTransact  int
	SystemTime   uint64 // FILETIME of the server at negotiation
	StartTime    uint64 // FILETIME of when it was started; 0: it does not say
}

// Info returns what was negotiated.
func (c *Conn) Info() Info {
	n := &c.neg
	return Info{c.addr, c.server, n.dialect, n.cipher, n.signing, n.serverGUID, n.serverCaps, n.maxRead, n.maxWrite, n.maxTransact, n.systemTime, n.started}
}

// Dial connects to addr, "host" or "host:port", and negotiates. The context covers both, not the life of the connection. An error that matches
// ErrUnsupportedServer says what the server offered and what to do about it.
func Dial(ctx context.Context, addr string, cfg Config) (*Conn, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, wrap("connect to "+addr, "", err)
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = strings.Trim(addr, "[]")
		addr = net.JoinHostPort(host, DefaultPort)
	}
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	c, err := dial(ctx, addr, cfg)
	if err != nil {
		if hint := explain(ctx, addr, cfg, err); hint != nil {
			err = hint
		}
		return nil, wrap("connect to "+addr, "", err)
	}
	n := &c.neg
	c.log.Info("connected", "server", addr, "dialect", n.dialect, "signing", n.signing, "cipher", n.cipher)
	return c, nil
}

// dial connects and negotiates without explaining failures.
func dial(ctx context.Context, addr string, cfg Config) (*Conn, error) {
	nc, err := cfg.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	opts := cfg.Transport
	if cfg.Tap != nil {
		opts.Tap = cfg.Tap(nc.LocalAddr(), nc.RemoteAddr())
	}
	c := newConn(transport.NewTCP(nc, opts), addr, cfg.ServerName, cfg)
	if err := c.negotiate(ctx); err != nil {
		c.fail(err)
		c.wg.Wait()
		return nil, err
	}
	c.up.Store(true)
	return c, nil
}

// errDialects says that the server knows none of the dialects that were offered.
var errDialects = errors.New("server accepts none of the offered dialects")

// explain finds out what a server that refused cfg has to offer, by asking again on other connections, and returns an error that says it, or
// nil if there is nothing to add.
func explain(ctx context.Context, addr string, cfg Config, cause error) error {
	var lost *ConnError
	hangup := errors.As(cause, &lost)
	if !errors.Is(cause, errDialects) && !hangup || ctx.Err() != nil || errors.Is(cause, ErrSecurity) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	oldest, newest := cfg.MinDialect, cfg.MaxDialect
	if errors.Is(cause, ErrUnsupportedServer) {
		return nil // says it already
	}
	probe := cfg
	probe.MinDialect, probe.MaxDialect, probe.Unsigned, probe.Tap = wire.Dialect202, wire.Dialect311, true, nil
	probe.Logger = slog.New(slog.DiscardHandler)
	if c, err := dial(ctx, addr, probe); err == nil {
		d := c.neg.dialect
		_ = c.Close()
		hint := "allow it with MinDialect if the data need no encryption, or update the server"
		if d > newest {
			hint = "raise MaxDialect"
		}
		if d < oldest || d > newest {
			return fmt.Errorf("%w: it offers SMB %s, and %s to %s was asked for; %s", ErrUnsupportedServer, d, oldest, newest, hint)
		}
		return nil
	}
	if answersSMB1(ctx, addr, cfg) {
		return fmt.Errorf("%w: it speaks only SMB1, which is not safe; enable SMB 3 on the server", ErrUnsupportedServer)
	}
	return nil
}

// answersSMB1 asks whether the server speaks SMB1.
func answersSMB1(ctx context.Context, addr string, cfg Config) bool {
	nc, err := cfg.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer nc.Close()
	if d, ok := ctx.Deadline(); ok {
		_ = nc.SetDeadline(d)
	}
	tr := transport.NewTCP(nc, transport.Options{MaxMessage: handshakeLimit})
	if tr.WriteMessages([]transport.Message{{wire.AppendSMB1Negotiate(nil, "NT LM 0.12")}}) != nil {
		return false
	}
	n, err := tr.NextMessage()
	if err != nil || n < 4 {
		return false
	}
	b, err := tr.Peek(4)
	return err == nil && b[0] == 0xFF && b[1] == 'S' && b[2] == 'M' && b[3] == 'B'
}

// negotiate agrees on a dialect and what goes with it. [MS-SMB2] 3.2.4.2.2, 3.2.5.2
func (c *Conn) negotiate(ctx context.Context) error {
	if c.cfg.MultiProtocol {
		v, err := c.negotiateSMB1(ctx)
		if err != nil {
			return err
		}
		if v.Dialect != wire.DialectWildcard {
			return c.agree(&v, nil)
		}
	}
	q := c.offer()
	r := c.request(wire.CmdNegotiate, nil, 0)
	r.out = q.Append(r.out)
	if err := r.acquire(ctx, 1, false); err != nil {
		r.unref()
		return err
	}
	r.send()
	c.neg.preauth.Update(r.out)
	ok, err := r.wait(ctx)
	if !ok {
		return err
	}
	defer r.unref()
	if err != nil {
		return err
	}
	v, err := negotiateReply(r)
	if err != nil {
		return err
	}
	if v.Dialect == wire.Dialect311 {
		c.neg.preauth.Update(r.msg)
	}
	if !slices.Contains(q.Dialects, v.Dialect) {
		return fmt.Errorf("%w: server chose dialect %#04x, which was not offered", ErrProtocol, uint16(v.Dialect))
	}
	return c.agree(&v, q)
}

func negotiateReply(r *request) (wire.NegotiateResponse, error) {
	switch s := ntstatus.Status(r.h.Status); s {
	case ntstatus.Success:
	case ntstatus.NotSupported:
		return wire.NegotiateResponse{}, fmt.Errorf("%w: %w", errDialects, s)
	default:
		return wire.NegotiateResponse{}, statusError("negotiate", "", s)
	}
	v, err := wire.ParseNegotiateResponse(r.msg)
	if err != nil {
		return v, protocolError(err)
	}
	return v, nil
}

// offer is the NEGOTIATE request.
func (c *Conn) offer() *wire.NegotiateRequest {
	q := &wire.NegotiateRequest{Dialects: c.cfg.dialects(), SecurityMode: wire.NegotiateSigningRequired}
	newest := q.Dialects[len(q.Dialects)-1]
	if c.cfg.Unsigned {
		q.SecurityMode = wire.NegotiateSigningEnabled
	}
	if newest >= wire.Dialect210 {
		q.ClientGUID = c.cfg.ClientGUID
		q.Capabilities = wire.CapLargeMTU
	}
	if newest >= wire.Dialect300 {
		q.Capabilities |= wire.CapEncryption | wire.CapLeasing | wire.CapDirectoryLeasing | wire.CapMultiChannel | wire.CapPersistentHandles
	}
	if newest == wire.Dialect311 {
		salt := make([]byte, 32)
		_, _ = rand.Read(salt) // never fails
		q.Contexts = []wire.NegotiateContext{
			wire.PreauthContext(salt),
			wire.EncryptionContext(c.cfg.Ciphers),
			wire.NetnameContext(c.server),
			wire.SigningContext(c.cfg.Signing),
		}
	}
	c.neg.clientMode, c.neg.clientCaps, c.neg.offered = q.SecurityMode, q.Capabilities, q.Dialects
	return q
}

// negotiateSMB1 opens with an SMB1 message that offers SMB 2. [MS-SMB2] 3.2.4.2.2.1
func (c *Conn) negotiateSMB1(ctx context.Context) (wire.NegotiateResponse, error) {
	dialects := []string{"SMB 2.???"}
	if c.cfg.MinDialect == wire.Dialect202 {
		dialects = []string{"SMB 2.002", "SMB 2.???"}
	}
	c.neg.offered = []wire.Dialect{wire.Dialect202}
	r := c.request(wire.CmdNegotiate, nil, 0)
	if err := r.acquire(ctx, 1, false); err != nil {
		r.unref()
		return wire.NegotiateResponse{}, err
	}
	r.out = wire.AppendSMB1Negotiate(r.out[:0], dialects...)
	r.sendRaw()
	ok, err := r.wait(ctx)
	if !ok {
		return wire.NegotiateResponse{}, err
	}
	defer r.unref()
	if err != nil {
		return wire.NegotiateResponse{}, err
	}
	v, err := negotiateReply(r)
	if err == nil && v.Dialect != wire.DialectWildcard && (v.Dialect != wire.Dialect202 || len(dialects) == 1) {
		err = fmt.Errorf("%w: server answered SMB1 negotiation with dialect %#04x", ErrProtocol, uint16(v.Dialect))
	}
	v.SecurityBuffer = slices.Clone(v.SecurityBuffer)
	return v, err
}

// agree takes over what the server chose, and refuses what is not safe.
func (c *Conn) agree(v *wire.NegotiateResponse, q *wire.NegotiateRequest) error {
	n := &c.neg
	n.dialect = v.Dialect
	n.serverGUID, n.serverMode, n.serverCaps = v.ServerGUID, v.SecurityMode, v.Capabilities
	n.started, n.systemTime = v.ServerStartTime, v.SystemTime
	n.token = slices.Clone(v.SecurityBuffer)
	n.multiCredit = n.dialect >= wire.Dialect210 && v.Capabilities&wire.CapLargeMTU != 0
	switch {
	case v.SecurityMode&(wire.NegotiateSigningEnabled|wire.NegotiateSigningRequired) == 0 && !c.cfg.Unsigned:
		return fmt.Errorf("%w: it offers no signing, so data could be changed on the way; enable signing on the server", ErrUnsupportedServer)
	case v.SecurityMode&wire.NegotiateSigningRequired != 0 && c.cfg.Unsigned:
		return fmt.Errorf("%w: it requires signing, which Unsigned leaves out", ErrUnsupportedServer)
	}
	n.maxTransact = c.limit(v.MaxTransactSize)
	n.maxRead, n.maxWrite = min(c.limit(v.MaxReadSize), c.cfg.MaxIO), min(c.limit(v.MaxWriteSize), c.cfg.MaxIO)
	if n.maxTransact < minIO || n.maxRead < minIO || n.maxWrite < minIO {
		return fmt.Errorf("%w: largest READ %d, WRITE %d, other %d bytes", ErrProtocol, v.MaxReadSize, v.MaxWriteSize, v.MaxTransactSize)
	}
	switch {
	case n.dialect < wire.Dialect300:
		n.signing = wire.SigningHMACSHA256
	case n.dialect < wire.Dialect311:
		n.signing = wire.SigningAESCMAC
		if v.Capabilities&wire.CapEncryption != 0 {
			n.cipher = wire.CipherAES128CCM
		}
	default:
		n.signing = wire.SigningAESCMAC
		if err := c.agreeContexts(v); err != nil {
			return err
		}
	}
	if c.cfg.Seal && n.cipher == wire.CipherNone {
		return fmt.Errorf("%w: it offers SMB %s without an encryption that is acceptable here; enable encryption on the server or do not ask for it",
			ErrUnsupportedServer, n.dialect)
	}
	c.tr.SetMaxMessage(max(n.maxRead, n.maxTransact, 64<<10) + 64<<10)
	return nil
}

// minIO is the least that a server must take in one request. Every server takes 64 KiB; the bound is only there to make sense of the
// numbers.
const minIO = 4096

// limit returns how many bytes of payload one request may have, of what the server says. A quarter of the credits is enough for one.
func (c *Conn) limit(server uint32) int {
	if !c.neg.multiCredit {
		return int(min(server, 64<<10))
	}
	credits := max(c.cfg.Credits/4, 1)
	return int(min(int64(server), int64(credits)*creditBytes, transport.MaxFrame-64<<10))
}

// agreeContexts handles the negotiate contexts of a 3.1.1 reply.
func (c *Conn) agreeContexts(v *wire.NegotiateResponse) error {
	n := &c.neg
	seen := map[uint16]bool{}
	for i := range v.Contexts {
		x := &v.Contexts[i]
		switch x.Type {
		case wire.CtxPreauthIntegrity, wire.CtxEncryption, wire.CtxSigning:
		case wire.CtxCompression, wire.CtxTransport, wire.CtxRDMATransform:
			return fmt.Errorf("%w: negotiate context %d, which was not asked for", ErrProtocol, x.Type)
		default:
			continue
		}
		if seen[x.Type] {
			return fmt.Errorf("%w: negotiate context %d comes twice", ErrProtocol, x.Type)
		}
		seen[x.Type] = true
		alg, err := x.Selected()
		if err != nil {
			return protocolError(err)
		}
		known := true
		switch x.Type {
		case wire.CtxPreauthIntegrity:
			known = alg == wire.HashSHA512
		case wire.CtxEncryption:
			n.cipher = wire.Cipher(alg)
			known = alg == 0 || slices.Contains(c.cfg.Ciphers, n.cipher)
		case wire.CtxSigning:
			n.signing = wire.SigningAlgorithm(alg)
			known = slices.Contains(c.cfg.Signing, n.signing)
		}
		if !known {
			return fmt.Errorf("%w: server chose algorithm %d in negotiate context %d, which was not offered", ErrProtocol, alg, x.Type)
		}
	}
	if !seen[wire.CtxPreauthIntegrity] {
		return fmt.Errorf("%w: SMB 3.1.1 without pre-authentication integrity", ErrProtocol)
	}
	if !seen[wire.CtxSigning] && !slices.Contains(c.cfg.Signing, wire.SigningAESCMAC) {
		return fmt.Errorf("%w: it signs with AES-CMAC only, which is not among the algorithms allowed here", ErrUnsupportedServer)
	}
	return nil
}

// mustValidate says whether the negotiation of the connection is to be confirmed.
func (c *Conn) mustValidate(s *Session) bool {
	return c.neg.dialect < wire.Dialect311 && c.cfg.MaxDialect >= wire.Dialect300 && s.signer != nil
}

// validateNegotiate makes the server confirm, under signature, what was negotiated on the channel's connection before there was any
// key. [MS-SMB2] 3.2.5.5, 3.2.5.14.12
func (s *Session) validateNegotiate(ctx context.Context, ch *channel, t *Tree) error {
	const op = "validate the negotiation"
	c, n := ch.c, &ch.c.neg
	q := wire.ValidateNegotiateRequest{Capabilities: n.clientCaps, SecurityMode: n.clientMode, Dialects: n.offered}
	if n.clientCaps != 0 {
		q.ClientGUID = c.cfg.ClientGUID
	}
	in := q.Append(nil)
	r := c.request(wire.CmdIoctl, ch, t.id)
	s.protect(r, t.seal)
	r.sign = !r.seal
	body := wire.IoctlRequest{
		CtlCode: wire.FsctlValidateNegotiateInfo, FileID: wire.RelatedFileID,
		InputCount: uint32(len(in)), MaxOutputResponse: 24, Flags: wire.IoctlFlagIsFsctl,
	}
	r.out = append(body.Append(r.out), in...)
	ok, err := r.roundTrip(ctx, 1)
	if !ok {
		return wrap(op, t.path, err)
	}
	defer r.unref()
	if err != nil {
		return wrap(op, t.path, fmt.Errorf("server did not confirm what was negotiated, someone may be tampering with the connection: %w", err))
	}
	switch st := ntstatus.Status(r.h.Status); st {
	case ntstatus.Success:
	case ntstatus.FileClosed, ntstatus.InvalidDeviceRequest, ntstatus.NotSupported:
		// A server that knows no SMB 3 says so under its signature, which is a confirmation too if an older dialect was negotiated.
		if n.dialect < wire.Dialect300 {
			return nil
		}
		return statusError(op, t.path, st)
	default:
		return statusError(op, t.path, st)
	}
	v, err := wire.ParseIoctlResponse(r.msg)
	if err != nil {
		return c.malformed(op, t.path, err)
	}
	a, err := wire.ParseValidateNegotiateResponse(v.Output)
	if err != nil {
		return c.malformed(op, t.path, err)
	}
	if a.Capabilities != n.serverCaps || a.ServerGUID != n.serverGUID || a.SecurityMode != n.serverMode || a.Dialect != n.dialect {
		c.fail(fmt.Errorf("%w: someone has changed the negotiation (server confirms dialect %s, capabilities %#x; here arrived %s, %#x)",
			ErrSecurity, a.Dialect, a.Capabilities, n.dialect, n.serverCaps))
		return wrap(op, t.path, c.Err())
	}
	return nil
}
