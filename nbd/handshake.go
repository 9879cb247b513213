package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"vdbridge/nbd/tlspsk"
)

// Our own limits on what a client may send before it has chosen an export.
const (
	maxOptionData    = 64 << 10 // longest option data that is looked at
	maxOptionDrained = 1 << 20  // longer option data ends the connection
	maxOptions       = 512      // options in one handshake
	maxQueries       = 1024     // queries in one metadata option
)

// handshake is the state of the option haggling.
type handshake struct {
	c      *conn
	nc     net.Conn
	fixed  bool // the client said that it knows fixed newstyle
	noZero bool
	tls    bool
	style  replyStyle

	selected    []uint32 // numbers of the metadata contexts that SET_META_CONTEXT selected
	selectedFor string   // the export name that the selection was made for
	out, in     []byte
}

// errAborted says that the client ended the handshake as the protocol wants it.
var errAborted = errors.New("the client ended the handshake")

// run talks until the client has chosen an export. The returned connection is nc, or the TLS connection that took its place.
func (h *handshake) run(ctx context.Context) (*attached, error) {
	if err := h.nc.SetDeadline(time.Now().Add(h.c.srv.cfg.HandshakeTimeout)); err != nil {
		return nil, fmt.Errorf("set deadline: %w", err)
	}
	if h.c.srv.draining.Load() { // the deadline of kick may just have been overwritten
		return nil, ErrServerClosed
	}
	b := binary.BigEndian.AppendUint64(h.out[:0], magicInit)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint16(b, flagFixedNewstyle|flagNoZeroes)
	if err := h.send(b); err != nil {
		return nil, err
	}
	var head [optionHeaderSize]byte
	if _, err := io.ReadFull(h.nc, head[:4]); err != nil {
		return nil, fmt.Errorf("receive client flags: %w", err)
	}
	flags := binary.BigEndian.Uint32(head[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return nil, fmt.Errorf("the client set unknown handshake flags %#x", flags)
	}
	h.fixed, h.noZero = flags&flagFixedNewstyle != 0, flags&flagNoZeroes != 0

	for range maxOptions {
		if _, err := io.ReadFull(h.nc, head[:]); err != nil {
			if err == io.EOF {
				return nil, errAborted
			}
			return nil, fmt.Errorf("receive option: %w", err)
		}
		if m := binary.BigEndian.Uint64(head[:]); m != magicOption {
			return nil, fmt.Errorf("the client sent %#x where an option begins", m)
		}
		opt, n := option(binary.BigEndian.Uint32(head[8:])), binary.BigEndian.Uint32(head[12:])
		if n > maxOptionDrained {
			return nil, fmt.Errorf("the client sent option %d with %d bytes of data", opt, n)
		}
		if n > maxOptionData {
			if _, err := io.CopyN(io.Discard, h.nc, int64(n)); err != nil {
				return nil, fmt.Errorf("receive option data: %w", err)
			}
			if opt == optExportName {
				return nil, fmt.Errorf("the client asked for an export with a name of %d bytes", n)
			}
			if err := h.fail(opt, repErrTooBig, "the option data is too long"); err != nil {
				return nil, err
			}
			continue
		}
		if cap(h.in) < int(n) {
			h.in = make([]byte, n)
		}
		data := h.in[:n]
		if _, err := io.ReadFull(h.nc, data); err != nil {
			return nil, fmt.Errorf("receive option data: %w", err)
		}
		if opt == optGo && n == 0 && flags == 0 {
			var err error
			if data, err = h.unannounced(); err != nil {
				return nil, err
			}
		}
		att, err := h.option(ctx, opt, data)
		if att != nil || err != nil {
			return att, err
		}
	}
	return nil, fmt.Errorf("the client sent more than %d options", maxOptions)
}

// unannounced receives the data of a GO whose header says that it has none. go-nbd's client (v0.3.2) sends its options so, and no
// handshake flags; no other client is mistaken for it, as GO is never empty and belongs to fixed newstyle, which needs a flag.
func (h *handshake) unannounced() ([]byte, error) {
	data := make([]byte, 4, 64)
	if _, err := io.ReadFull(h.nc, data); err != nil {
		return nil, fmt.Errorf("receive option data: %w", err)
	}
	n := binary.BigEndian.Uint32(data)
	if n > maxString {
		return nil, fmt.Errorf("the client sent a GO without data, and %#x where an option begins", n)
	}
	data = append(data, make([]byte, n+2)...)
	if _, err := io.ReadFull(h.nc, data[4:]); err != nil {
		return nil, fmt.Errorf("receive option data: %w", err)
	}
	at := len(data)
	data = append(data, make([]byte, 2*int(binary.BigEndian.Uint16(data[at-2:])))...)
	if _, err := io.ReadFull(h.nc, data[at:]); err != nil {
		return nil, fmt.Errorf("receive option data: %w", err)
	}
	return data, nil
}

// option answers one option. It returns an attachment when the transmission phase begins.
func (h *handshake) option(ctx context.Context, opt option, data []byte) (*attached, error) {
	srv := h.c.srv
	if opt == optAbort {
		_ = h.reply(opt, repAck, nil) // the client may have gone already
		return nil, errAborted
	}
	if srv.draining.Load() && opt != optExportName {
		return nil, h.fail(opt, repErrShutdown, "the server is shutting down")
	}
	if srv.cfg.RequireTLS && !h.tls && opt != optStartTLS {
		if opt == optExportName {
			return nil, errors.New("the client did not start TLS, which this server requires")
		}
		return nil, h.fail(opt, repErrTLSReqd, "this server requires TLS")
	}
	switch opt {
	case optExportName:
		return h.exportName(ctx, data)
	case optInfo, optGo:
		return h.info(ctx, opt, data)
	case optListMetaContext, optSetMetaContext:
		return nil, h.metaContext(ctx, opt, data)
	case optList, optStartTLS, optStructuredReply, optExtendedHeaders:
		if len(data) > 0 {
			return nil, h.fail(opt, repErrInvalid, "this option has no data")
		}
	default:
		return nil, h.fail(opt, repErrUnsup, fmt.Sprintf("option %d is not known here", opt))
	}
	switch opt {
	case optList:
		return nil, h.list(ctx)
	case optStructuredReply:
		if h.style == styleExtended {
			return nil, h.fail(opt, repErrExtHeaderReqd, "extended headers are already agreed on")
		}
		h.style = styleStructured
		return nil, h.reply(opt, repAck, nil)
	case optExtendedHeaders:
		h.style = styleExtended
		return nil, h.reply(opt, repAck, nil)
	default:
		return nil, h.startTLS(ctx)
	}
}

func (h *handshake) startTLS(ctx context.Context) error {
	cfg := &h.c.srv.cfg
	switch {
	case cfg.TLS == nil && cfg.PSK == nil:
		return h.fail(optStartTLS, repErrPolicy, "this server has no TLS")
	case h.tls:
		return h.fail(optStartTLS, repErrInvalid, "TLS is already running")
	}
	if err := h.reply(optStartTLS, repAck, nil); err != nil {
		return err
	}
	if cfg.PSK != nil {
		tc, err := tlspsk.Server(ctx, h.nc, cfg.PSK)
		if err != nil {
			return err
		}
		h.c.log.Info("nbd: TLS with a pre-shared key", "identity", tc.Identity())
		h.nc = tc
	} else {
		tc := tls.Server(h.nc, cfg.TLS)
		if err := tc.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("TLS: %w", err)
		}
		h.nc = tc
	}
	h.tls = true
	h.style, h.selected = styleSimple, nil
	return nil
}

func (h *handshake) list(ctx context.Context) error {
	out := h.out[:0]
	var sendErr error
	err := h.c.srv.cfg.Resolver.List(ctx, func(name, description string) bool {
		if len(name) > maxString {
			return true // cannot be said
		}
		description = truncateText(description, maxString)
		out = appendOptionReply(out, optList, repServer, 4+len(name)+len(description))
		out = binary.BigEndian.AppendUint32(out, uint32(len(name)))
		out = append(append(out, name...), description...)
		if len(out) > maxOptionData {
			sendErr = h.send(out)
			out = out[:0]
		}
		return sendErr == nil
	})
	h.out = out[:0]
	if sendErr != nil {
		return sendErr
	}
	if err != nil {
		h.c.log.Warn("nbd: cannot list the exports", "err", err)
		out = out[:0]
		return h.fail(optList, repErrPolicy, "the exports cannot be listed now")
	}
	return h.send(appendOptionReply(out, optList, repAck, 0))
}

func (h *handshake) exportName(ctx context.Context, data []byte) (*attached, error) {
	if h.style == styleExtended {
		return nil, errors.New("the client used EXPORT_NAME after EXTENDED_HEADERS")
	}
	if len(data) > maxString {
		return nil, fmt.Errorf("the client asked for an export with a name of %d bytes", len(data))
	}
	att, _, err := h.attach(ctx, string(data))
	if err != nil {
		return nil, err
	}
	out := binary.BigEndian.AppendUint64(h.out[:0], uint64(att.size))
	out = binary.BigEndian.AppendUint16(out, att.flags)
	if !h.noZero {
		out = append(out, make([]byte, zeroesAfterExport)...)
	}
	if err := h.send(out); err != nil {
		att.release()
		return nil, err
	}
	return att, nil
}

// infoRequest is the data of INFO and GO.
type infoRequest struct {
	name  string
	infos []uint16
}

// parseInfo decodes the data of INFO and GO.
func parseInfo(b []byte) (r infoRequest, err error) {
	if r.name, b, err = parseString(b); err != nil {
		return r, err
	}
	if len(b) < 2 {
		return r, errShortOption
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; len(b) != 2*n {
		return r, errShortOption
	}
	for ; len(b) > 0; b = b[2:] {
		r.infos = append(r.infos, binary.BigEndian.Uint16(b))
	}
	return r, nil
}

var errShortOption = errors.New("the option data does not have the length that its parts need")

// parseString decodes a length and that many bytes.
func parseString(b []byte) (s string, rest []byte, err error) {
	if len(b) < 4 {
		return "", nil, errShortOption
	}
	n := binary.BigEndian.Uint32(b)
	if b = b[4:]; uint64(n) > uint64(len(b)) {
		return "", nil, errShortOption
	}
	if n > maxString {
		return "", nil, fmt.Errorf("a string of %d bytes is longer than %d", n, maxString)
	}
	return string(b[:n]), b[n:], nil
}

func (h *handshake) info(ctx context.Context, opt option, data []byte) (*attached, error) {
	r, err := parseInfo(data)
	if err != nil {
		return nil, h.fail(opt, repErrInvalid, err.Error())
	}
	att, code, err := h.attach(ctx, r.name)
	if err != nil {
		h.c.log.Info("nbd: export refused", "export", r.name, "err", err)
		return nil, h.fail(opt, code, err.Error())
	}
	out := appendOptionReply(h.out[:0], opt, repInfo, 12)
	out = binary.BigEndian.AppendUint16(out, infoExport)
	out = binary.BigEndian.AppendUint64(out, uint64(att.size))
	out = binary.BigEndian.AppendUint16(out, att.flags)
	sent := map[uint16]bool{}
	for _, id := range append(r.infos, infoBlockSize) { // the block sizes are told to everyone
		if sent[id] {
			continue
		}
		sent[id] = true
		switch id {
		case infoName:
			out = appendOptionReply(out, opt, repInfo, 2+len(att.export.Name))
			out = append(binary.BigEndian.AppendUint16(out, id), att.export.Name...)
		case infoDescription:
			if d := truncateText(att.export.Description, maxString); d != "" {
				out = appendOptionReply(out, opt, repInfo, 2+len(d))
				out = append(binary.BigEndian.AppendUint16(out, id), d...)
			}
		case infoBlockSize:
			out = appendOptionReply(out, opt, repInfo, 14)
			out = binary.BigEndian.AppendUint16(out, id)
			out = binary.BigEndian.AppendUint32(out, uint32(att.block))
			out = binary.BigEndian.AppendUint32(out, uint32(att.preferred))
			out = binary.BigEndian.AppendUint32(out, maxPayloadAdvertised)
		}
	}
	if opt == optInfo {
		att.release()
	}
	err = h.send(appendOptionReply(out, opt, repAck, 0))
	if opt == optInfo {
		return nil, err
	}
	if err != nil {
		att.release()
		return nil, err
	}
	return att, nil
}

// metaRequest is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
type metaRequest struct {
	export  string
	queries []string
}

// parseMeta decodes the data of LIST_META_CONTEXT and SET_META_CONTEXT.
func parseMeta(b []byte) (r metaRequest, err error) {
	if r.export, b, err = parseString(b); err != nil {
		return r, err
	}
	if len(b) < 4 {
		return r, errShortOption
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(n)*4 > uint64(len(b)) {
		return r, errShortOption
	}
	if n > maxQueries {
		return r, fmt.Errorf("%d queries are more than %d", n, maxQueries)
	}
	for range n {
		var q string
		if q, b, err = parseString(b); err != nil {
			return r, err
		}
		r.queries = append(r.queries, q)
	}
	if len(b) > 0 {
		return r, errShortOption
	}
	return r, nil
}

func (h *handshake) metaContext(ctx context.Context, opt option, data []byte) error {
	set := opt == optSetMetaContext
	if set {
		h.selected, h.selectedFor = nil, "" // also when this fails
	}
	if h.style == styleSimple {
		return h.fail(opt, repErrInvalid, "structured replies or extended headers come first")
	}
	r, err := parseMeta(data)
	if err != nil {
		return h.fail(opt, repErrInvalid, err.Error())
	}
	x, code, err := h.resolve(ctx, r.export)
	if err != nil {
		return h.fail(opt, code, err.Error())
	}
	found := matchContexts(x.contexts(), r.queries, !set)
	if x.Release != nil {
		x.Release()
	}
	out := h.out[:0]
	for _, m := range found {
		id := m.id
		if set {
			h.selected = append(h.selected, id)
		} else {
			id = 0
		}
		name := m.Name()
		out = appendOptionReply(out, opt, repMetaContext, 4+len(name))
		out = append(binary.BigEndian.AppendUint32(out, id), name...)
	}
	if set {
		h.selectedFor = r.export
	}
	return h.send(appendOptionReply(out, opt, repAck, 0))
}

// appendOptionReply appends the header of a reply to an option, for n bytes of data.
func appendOptionReply(b []byte, opt option, typ uint32, n int) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOptionReply)
	b = binary.BigEndian.AppendUint32(b, uint32(opt))
	b = binary.BigEndian.AppendUint32(b, typ)
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

func (h *handshake) reply(opt option, typ uint32, data []byte) error {
	return h.send(append(appendOptionReply(h.out[:0], opt, typ, len(data)), data...))
}

func (h *handshake) fail(opt option, typ uint32, text string) error {
	return h.reply(opt, typ, []byte(truncateText(text, maxErrorText)))
}

func (h *handshake) send(b []byte) error {
	h.out = b[:0]
	if _, err := h.nc.Write(b); err != nil {
		return fmt.Errorf("send handshake: %w", err)
	}
	return nil
}
