package server

import (
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// cipherOrder and signingOrder are the server's preferences; the first one that the client offers is taken.
var (
	cipherOrder  = []wire.Cipher{wire.CipherAES128GCM, wire.CipherAES256GCM, wire.CipherAES128CCM, wire.CipherAES256CCM}
	signingOrder = []wire.SigningAlgorithm{wire.SigningAESGMAC, wire.SigningAESCMAC, wire.SigningHMACSHA256}
)

// negotiateSMB1 answers an SMB_COM_NEGOTIATE that offers SMB2. [MS-SMB2] 3.3.5.3
func (c *conn) negotiateSMB1(msg []byte) error {
	if c.negotiated || c.wildcard {
		return fmt.Errorf("SMB1 message after negotiation: %w", errProtocol)
	}
	dialects, err := wire.ParseSMB1Negotiate(msg)
	if err != nil {
		return err
	}
	if !slices.Contains(dialects, "SMB 2.???") {
		return fmt.Errorf("client offers only SMB1 or SMB 2.0.2, the server speaks %v to %v: %w", c.srv.cfg.MinDialect, c.srv.cfg.MaxDialect, errProtocol)
	}
	c.wildcard = true
	w := getWork(c, 0)
	h := wire.Header{Command: wire.CmdNegotiate, Flags: wire.FlagServerToRedir}
	c.mu.Lock()
	if !c.window.take(0, 1) {
		c.mu.Unlock()
		w.free()
		return errProtocol
	}
	h.Credits = uint16(c.window.grant(1))
	c.mu.Unlock()
	w.beginReply(&h)
	w.ensure(512)
	at := len(w.out.b)
	b := w.out.b[:at+wire.HeaderSize]
	h.Put(b[at:])
	resp := c.negotiateReply(wire.DialectWildcard)
	w.out.b = resp.Append(b)
	w.addPart(part{at: at})
	w.send()
	return nil
}

func (c *conn) negotiateReply(d wire.Dialect) *wire.NegotiateResponse {
	size := uint32(c.srv.lim.MaxIO)
	return &wire.NegotiateResponse{SecurityMode: wire.NegotiateSigningEnabled | wire.NegotiateSigningRequired, Dialect: d,
		ServerGUID: c.srv.guid, Capabilities: wire.CapLargeMTU, MaxTransactSize: size, MaxReadSize: size, MaxWriteSize: size,
		SystemTime: fscc.Filetime(time.Now()), ServerStartTime: fscc.Filetime(c.srv.started), SecurityBuffer: c.srv.newAcceptor().Hint()}
}

// negotiate handles SMB2 NEGOTIATE. [MS-SMB2] 3.3.5.4
func (r *request) negotiate() (ntstatus.Status, error) {
	c := r.c
	if c.negotiated || !r.last {
		return 0, fmt.Errorf("NEGOTIATE again: %w", errProtocol)
	}
	req, err := wire.ParseNegotiateRequest(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter, nil
	}
	if len(req.Dialects) == 0 {
		return ntstatus.InvalidParameter, nil
	}
	best := wire.Dialect(0)
	for _, d := range []wire.Dialect{wire.Dialect210, wire.Dialect300, wire.Dialect302, wire.Dialect311} {
		if d >= c.srv.cfg.MinDialect && d <= c.srv.cfg.MaxDialect && slices.Contains(req.Dialects, d) {
			best = d
		}
	}
	if best == 0 {
		c.log.Info("no common dialect", "client", fmt.Sprint(req.Dialects), "min", c.srv.cfg.MinDialect, "max", c.srv.cfg.MaxDialect)
		return ntstatus.NotSupported, nil
	}
	resp := c.negotiateReply(best)
	if best == wire.Dialect311 {
		if st := c.negotiateContexts(req, resp); st != ntstatus.Success {
			return st, nil
		}
		c.preauth.Update(r.msg)
		r.w.hash = &c.preauth
	} else if best >= wire.Dialect300 {
		c.signingAlg = wire.SigningAESCMAC
		if req.Capabilities&wire.CapEncryption != 0 {
			c.cipher = wire.CipherAES128CCM
			resp.Capabilities |= wire.CapEncryption
		}
	} else {
		c.signingAlg = wire.SigningHMACSHA256
	}
	resp.Capabilities |= wire.CapLeasing
	if best >= wire.Dialect300 && req.Capabilities&wire.CapMultiChannel != 0 {
		resp.Capabilities |= wire.CapMultiChannel
	}
	if best >= wire.Dialect300 && req.Capabilities&wire.CapPersistentHandles != 0 && c.srv.persists() {
		resp.Capabilities |= wire.CapPersistentHandles
	}
	c.dialect, c.clientGUID, c.clientCaps, c.clientSec, c.clientDials = best, req.ClientGUID, req.Capabilities, req.SecurityMode, req.Dialects
	c.serverCaps = resp.Capabilities
	c.negotiated, c.multiCredit = true, true
	r.w.ensure(256 + len(resp.SecurityBuffer))
	r.setBody(resp.Append(r.body()))
	c.log.Debug("negotiated", "dialect", best, "cipher", c.cipher, "signing", c.signingAlg)
	return ntstatus.Success, nil
}

// negotiateContexts handles the contexts of 3.1.1.
func (c *conn) negotiateContexts(req *wire.NegotiateRequest, resp *wire.NegotiateResponse) ntstatus.Status {
	seen := map[uint16]int{}
	for _, ctx := range req.Contexts {
		seen[ctx.Type]++
	}
	if seen[wire.CtxPreauthIntegrity] != 1 || seen[wire.CtxEncryption] > 1 || seen[wire.CtxCompression] > 1 ||
		seen[wire.CtxRDMATransform] > 1 || seen[wire.CtxSigning] > 1 {
		return ntstatus.InvalidParameter
	}
	c.signingAlg = wire.SigningAESCMAC
	for _, ctx := range req.Contexts {
		switch ctx.Type {
		case wire.CtxPreauthIntegrity:
			hashes, err := wire.ParsePreauthOffer(ctx.Data)
			if err != nil {
				return ntstatus.InvalidParameter
			}
			if !slices.Contains(hashes, wire.HashSHA512) {
				return ntstatus.SMBNoPreauthIntegrityHashOverlap
			}
			salt := make([]byte, 32)
			rand.Read(salt)
			resp.Contexts = append(resp.Contexts, wire.NegotiateContext{Type: ctx.Type, Data: wire.AppendPreauthChoice(nil, wire.HashSHA512, salt)})
		case wire.CtxEncryption:
			offer, err := wire.ParseAlgorithmOffer(ctx.Data)
			if err != nil {
				return ntstatus.InvalidParameter
			}
			for _, a := range cipherOrder {
				if slices.Contains(offer, uint16(a)) {
					c.cipher = a
					break
				}
			}
			resp.Contexts = append(resp.Contexts, wire.NegotiateContext{Type: ctx.Type, Data: wire.AppendAlgorithmChoice(nil, uint16(c.cipher))})
		case wire.CtxSigning:
			offer, err := wire.ParseAlgorithmOffer(ctx.Data)
			if err != nil {
				return ntstatus.InvalidParameter
			}
			for _, a := range signingOrder {
				if slices.Contains(offer, uint16(a)) {
					c.signingAlg = a
					c.hasSigning = true
					break
				}
			}
			if c.hasSigning {
				resp.Contexts = append(resp.Contexts, wire.NegotiateContext{Type: ctx.Type, Data: wire.AppendAlgorithmChoice(nil, uint16(c.signingAlg))})
			}
		case wire.CtxCompression:
			offer := ctx.Data
			if len(offer) < 10 || le.Uint16(offer) == 0 {
				return ntstatus.InvalidParameter
			}
			// No compression: the context is ignored, as of a server that does not support it.
		}
	}
	return ntstatus.Success
}
