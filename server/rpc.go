package server

import (
	"slices"
	"strings"

	"vdbridge/smb/wire"
)

// rpcServer is the server side of one DCE/RPC connection over a named pipe, for the one interface that clients need to list shares:
// srvsvc, calls NetrShareEnum and NetrShareGetInfo, NDR encoding, no authentication of its own. [C706] 12.6, [MS-SRVS] 3.1.4.8, 3.1.4.10
type rpcServer struct {
	srv     *Server
	bound   bool
	context uint16
	maxFrag int // what the client takes
}

// Types of PDUs and what else a header has. [C706] 12.6.3
const (
	pduRequest  = 0
	pduResponse = 2
	pduFault    = 3
	pduBind     = 11
	pduBindAck  = 12
	pduBindNak  = 13
	pduAlter    = 14
	pduAlterAck = 15

	pduFirst = 1
	pduLast  = 2

	rpcHeader  = 16
	rpcMaxPDU  = 8192
	rpcMinFrag = 1432

	faultOpRange  = 0x1C010002 // nca_op_rng_error
	faultProtocol = 0x1C01000B // nca_proto_error
)

var (
	// srvsvc is the interface 4b324fc8-1670-01d3-1278-5a47bf6ee188 version 3.0.
	srvsvc = []byte{0xc8, 0x4f, 0x32, 0x4b, 0x70, 0x16, 0xd3, 0x01, 0x12, 0x78, 0x5a, 0x47, 0xbf, 0x6e, 0xe1, 0x88, 3, 0, 0, 0}
	// ndr32 is the transfer syntax 8a885d04-1ceb-11c9-9fe8-08002b104860 version 2.0.
	ndr32 = []byte{0x04, 0x5d, 0x88, 0x8a, 0xeb, 0x1c, 0xc9, 0x11, 0x9f, 0xe8, 0x08, 0x00, 0x2b, 0x10, 0x48, 0x60, 2, 0, 0, 0}
)

// answer takes one PDU and returns what the client is to read. ok is false when the bytes are none, and the pipe is to be given up.
func (p *rpcServer) answer(in []byte) (out []byte, ok bool) {
	if len(in) < rpcHeader || len(in) > rpcMaxPDU || in[0] != 5 || in[4] != 0x10 || int(le.Uint16(in[8:])) != len(in) {
		return nil, false
	}
	call, flags := le.Uint32(in[12:]), in[3]
	if flags&(pduFirst|pduLast) != pduFirst|pduLast || le.Uint16(in[10:]) != 0 {
		// Requests of several fragments, or with authentication, do not occur with these calls.
		return fault(call, 0, faultProtocol), true
	}
	body := in[rpcHeader:]
	switch in[2] {
	case pduBind:
		return p.bind(call, body, pduBindAck)
	case pduAlter:
		return p.bind(call, body, pduAlterAck)
	case pduRequest:
		if len(body) < 8 {
			return nil, false
		}
		ctx, op := le.Uint16(body[4:]), le.Uint16(body[6:])
		if !p.bound || ctx != p.context {
			return fault(call, ctx, faultProtocol), true
		}
		var stub []byte
		var good bool
		switch op {
		case 15:
			stub, good = p.shareEnum(body[8:])
		case 16:
			stub, good = p.shareGetInfo(body[8:])
		default:
			return fault(call, ctx, faultOpRange), true
		}
		if !good {
			return fault(call, ctx, faultProtocol), true
		}
		return p.fragments(call, ctx, stub), true
	}
	return nil, false
}

func pdu(typ, flags byte, call uint32) []byte {
	b := []byte{5, 0, typ, flags, 0x10, 0, 0, 0, 0, 0, 0, 0}
	return le.AppendUint32(b, call)
}

func sized(b []byte) []byte {
	le.PutUint16(b[8:], uint16(len(b)))
	return b
}

func fault(call uint32, ctx uint16, status uint32) []byte {
	b := pdu(pduFault, pduFirst|pduLast, call)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint16(b, ctx)
	b = append(b, 0, 0)
	b = le.AppendUint32(b, status)
	return sized(le.AppendUint32(b, 0))
}

// bind accepts the presentation context that is srvsvc in NDR, and refuses all others.
func (p *rpcServer) bind(call uint32, body []byte, typ byte) ([]byte, bool) {
	if len(body) < 12 {
		return nil, false
	}
	p.maxFrag = min(max(int(le.Uint16(body[2:])), rpcMinFrag), 5840)
	n := int(body[8])
	rest := body[12:]
	b := pdu(typ, pduFirst|pduLast, call)
	b = le.AppendUint16(b, 5840)
	b = le.AppendUint16(b, uint16(p.maxFrag))
	b = le.AppendUint32(b, 0x1DB) // an association group; there is only one server
	addr := "\\PIPE\\srvsvc\x00"
	b = le.AppendUint16(b, uint16(len(addr)))
	b = append(b, addr...)
	for len(b)&3 != 0 {
		b = append(b, 0)
	}
	b = append(b, byte(n), 0, 0, 0)
	for range n {
		if len(rest) < 24 {
			return nil, false
		}
		id, transfers, abstract := le.Uint16(rest), int(rest[2]), rest[4:24]
		rest = rest[24:]
		if len(rest) < 20*transfers {
			return nil, false
		}
		hasNDR := false
		for i := range transfers {
			hasNDR = hasNDR || string(rest[20*i:20*i+20]) == string(ndr32)
		}
		rest = rest[20*transfers:]
		switch {
		case string(abstract) != string(srvsvc):
			b = append(b, 2, 0, 1, 0) // provider rejection: abstract syntax not supported
			b = append(b, make([]byte, 20)...)
		case !hasNDR:
			b = append(b, 2, 0, 2, 0) // transfer syntaxes not supported
			b = append(b, make([]byte, 20)...)
		default:
			p.bound, p.context = true, id
			b = append(b, 0, 0, 0, 0)
			b = append(b, ndr32...)
		}
	}
	return sized(b), true
}

// fragments cuts a reply into PDUs that the client takes.
func (p *rpcServer) fragments(call uint32, ctx uint16, stub []byte) []byte {
	var out []byte
	room := (p.maxFrag - rpcHeader - 8) &^ 7
	flags := byte(pduFirst)
	for {
		n := min(room, len(stub))
		if n == len(stub) {
			flags |= pduLast
		}
		b := pdu(pduResponse, flags, call)
		b = le.AppendUint32(b, uint32(len(stub)))
		b = le.AppendUint16(b, ctx)
		b = append(b, 0, 0)
		b = append(b, stub[:n]...)
		out = append(out, sized(b)...)
		stub = stub[n:]
		if len(stub) == 0 {
			return out
		}
		flags = 0
	}
}

// ndrReader reads NDR as far as these calls need it. It remembers that something was wrong.
type ndrReader struct {
	b   []byte
	at  int
	bad bool
}

func (d *ndrReader) u32() uint32 {
	d.at = (d.at + 3) &^ 3
	if d.at+4 > len(d.b) {
		d.bad = true
		return 0
	}
	d.at += 4
	return le.Uint32(d.b[d.at-4:])
}

// str reads a conformant and varying string.
func (d *ndrReader) str() string {
	_, off, n := d.u32(), d.u32(), d.u32()
	if d.bad || off != 0 || n > 1024 || d.at+2*int(n) > len(d.b) {
		d.bad = true
		return ""
	}
	s, err := wire.DecodeUTF16(d.b[d.at : d.at+2*int(n)])
	d.at += 2 * int(n)
	if err != nil {
		d.bad = true
	}
	return strings.TrimRight(s, "\x00")
}

// ndrString appends a conformant and varying string with its terminator.
func ndrString(b []byte, s string) []byte {
	n := uint32(wire.UTF16Len(s)/2 + 1)
	b = le.AppendUint32(b, n)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, n)
	b = wire.AppendUTF16(b, s)
	b = append(b, 0, 0)
	for len(b)&3 != 0 {
		b = append(b, 0)
	}
	return b
}

// Share types of srvsvc, and its errors. [MS-SRVS] 2.2.2.4, [MS-ERREF] 2.2
const (
	stypeDisk         = 0
	stypeIPC          = 0x80000003
	werrInvalidLevel  = 124
	nerrNetNameNotFnd = 2310
)

func (sh *share) stype() uint32 {
	if sh.ipc {
		return stypeIPC
	}
	return stypeDisk
}

// shareEnum is NetrShareEnum, levels 0 and 1. [MS-SRVS] 3.1.4.8
func (p *rpcServer) shareEnum(in []byte) ([]byte, bool) {
	d := ndrReader{b: in}
	if d.u32() != 0 {
		d.str() // the server's name
	}
	level := d.u32()
	d.u32() // the same again, as the union's switch
	if d.u32() != 0 {
		d.u32() // no entries on the way in,
		if d.u32() != 0 {
			return nil, false
		}
	}
	d.u32() // preferred length: all of it is short
	hasResume := d.u32() != 0
	if hasResume {
		d.u32()
	}
	if d.bad {
		return nil, false
	}
	list := p.srv.sortedShares()
	var b []byte
	b = le.AppendUint32(b, level)
	b = le.AppendUint32(b, level)
	werr := uint32(0)
	if level > 1 {
		b = le.AppendUint32(b, 0)
		list, werr = nil, werrInvalidLevel
	} else {
		b = le.AppendUint32(b, 0x20000)
		b = le.AppendUint32(b, uint32(len(list)))
		b = le.AppendUint32(b, 0x20004)
		b = le.AppendUint32(b, uint32(len(list)))
		ref := uint32(0x20008)
		for _, sh := range list {
			b = le.AppendUint32(b, ref)
			ref += 4
			if level == 1 {
				b = le.AppendUint32(b, sh.stype())
				b = le.AppendUint32(b, ref)
				ref += 4
			}
		}
		for _, sh := range list {
			b = ndrString(b, sh.cfg.Name)
			if level == 1 {
				b = ndrString(b, sh.cfg.Comment)
			}
		}
	}
	b = le.AppendUint32(b, uint32(len(list)))
	if hasResume {
		b = le.AppendUint32(b, 0x30000)
	}
	b = le.AppendUint32(b, 0) // the resume handle, or no pointer to one
	return le.AppendUint32(b, werr), true
}

// shareGetInfo is NetrShareGetInfo, levels 0 and 1. [MS-SRVS] 3.1.4.10
func (p *rpcServer) shareGetInfo(in []byte) ([]byte, bool) {
	d := ndrReader{b: in}
	if d.u32() != 0 {
		d.str()
	}
	name := d.str()
	level := d.u32()
	if d.bad {
		return nil, false
	}
	b := le.AppendUint32(nil, level)
	sh := p.srv.shares[foldName(name)]
	switch {
	case sh == nil:
		b = le.AppendUint32(b, 0)
		return le.AppendUint32(b, nerrNetNameNotFnd), true
	case level > 1:
		b = le.AppendUint32(b, 0)
		return le.AppendUint32(b, werrInvalidLevel), true
	}
	b = le.AppendUint32(b, 0x20000)
	b = le.AppendUint32(b, 0x20004)
	if level == 1 {
		b = le.AppendUint32(b, sh.stype())
		b = le.AppendUint32(b, 0x20008)
	}
	b = ndrString(b, sh.cfg.Name)
	if level == 1 {
		b = ndrString(b, sh.cfg.Comment)
	}
	return le.AppendUint32(b, 0), true
}

func (s *Server) sortedShares() []*share {
	list := make([]*share, 0, len(s.shares))
	for _, sh := range s.shares {
		list = append(list, sh)
	}
	slices.SortFunc(list, func(a, b *share) int { return strings.Compare(foldName(a.cfg.Name), foldName(b.cfg.Name)) })
	return list
}
