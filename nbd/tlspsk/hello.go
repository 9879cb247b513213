package tlspsk

import (
	"encoding/binary"
	"errors"
)

// Values of the protocol. [RFC 8446] B
const (
	versionTLS12 = 0x0303
	versionTLS13 = 0x0304

	suiteAES128GCM = 0x1301 // TLS_AES_128_GCM_SHA256

	groupP256   = 23
	groupX25519 = 29

	extSupportedVersions = 43
	extPSKModes          = 45
	extKeyShare          = 51
	extPreSharedKey      = 41

	modePSKDHE = 1

	msgClientHello         = 1
	msgServerHello         = 2
	msgEncryptedExtensions = 8
	msgFinished            = 20
	msgKeyUpdate           = 24
)

// clientHello is what matters of a ClientHello.
type clientHello struct {
	sessionID  []byte
	suites     []uint16
	tls13      bool
	pskDHE     bool
	shares     map[uint16][]byte
	identities [][]byte
	binders    [][]byte
	truncated  int // length of the message without its binders
}

var errHello = errors.New("the ClientHello is malformed")

// reader takes vectors off a message. After an error it is empty and bad.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.b, r.bad = nil, true
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) u8() int {
	if v := r.take(1); v != nil {
		return int(v[0])
	}
	return 0
}

func (r *reader) u16() int {
	if v := r.take(2); v != nil {
		return int(binary.BigEndian.Uint16(v))
	}
	return 0
}

func (r *reader) vec8() *reader  { return &reader{b: r.take(r.u8()), bad: r.bad} }
func (r *reader) vec16() *reader { return &reader{b: r.take(r.u16()), bad: r.bad} }

// parseClientHello decodes a whole ClientHello with its header of four bytes. [RFC 8446] 4.1.2
func parseClientHello(msg []byte) (*clientHello, error) {
	h := &clientHello{shares: map[uint16][]byte{}}
	r := &reader{b: msg}
	r.take(4)                // the caller has looked at it
	if r.take(2+32) == nil { // legacy_version, random
		return nil, errHello
	}
	h.sessionID = r.vec8().b
	suites := r.vec16()
	for len(suites.b) > 0 {
		h.suites = append(h.suites, uint16(suites.u16()))
	}
	r.vec8() // compression methods
	if r.bad || suites.bad || len(h.sessionID) > 32 {
		return nil, errHello
	}
	exts := r.vec16()
	if exts.bad || len(r.b) > 0 {
		return nil, errHello
	}
	seen := map[int]bool{}
	for len(exts.b) > 0 {
		typ := exts.u16()
		data := exts.vec16()
		if exts.bad || data.bad || seen[typ] || seen[extPreSharedKey] { // that one is the last
			return nil, errHello
		}
		seen[typ] = true
		if !h.extension(typ, data, len(msg)) {
			return nil, errHello
		}
	}
	if exts.bad {
		return nil, errHello
	}
	return h, nil
}

// extension decodes one extension of a message of size bytes. It returns false if it is malformed.
func (h *clientHello) extension(typ int, data *reader, size int) bool {
	switch typ {
	case extSupportedVersions:
		v := data.vec8()
		for len(v.b) > 0 {
			h.tls13 = v.u16() == versionTLS13 || h.tls13
		}
		return !v.bad && !data.bad
	case extPSKModes:
		v := data.vec8()
		for len(v.b) > 0 {
			h.pskDHE = v.u8() == modePSKDHE || h.pskDHE
		}
		return !v.bad && !data.bad
	case extKeyShare:
		v := data.vec16()
		for len(v.b) > 0 {
			group := uint16(v.u16())
			h.shares[group] = v.vec16().b
		}
		return !v.bad && !data.bad
	case extPreSharedKey:
		ids := data.vec16()
		for len(ids.b) > 0 {
			h.identities = append(h.identities, ids.vec16().b)
			ids.take(4) // the age of a ticket, which this is not
		}
		if ids.bad || data.bad {
			return false
		}
		h.truncated = size - len(data.b)
		binders := data.vec16()
		for len(binders.b) > 0 {
			h.binders = append(h.binders, binders.vec8().b)
		}
		return !binders.bad && !data.bad && len(data.b) == 0 && len(h.binders) == len(h.identities)
	}
	return true
}

// message puts the header of a handshake message before its body.
func message(typ byte, body []byte) []byte {
	n := len(body)
	return append([]byte{typ, byte(n >> 16), byte(n >> 8), byte(n)}, body...)
}

// serverHello makes the ServerHello that takes the identity of the given index. [RFC 8446] 4.1.3
func serverHello(random, sessionID []byte, group uint16, share []byte, identity int) []byte {
	ext := func(b []byte, typ uint16, data ...byte) []byte {
		b = binary.BigEndian.AppendUint16(b, typ)
		b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
		return append(b, data...)
	}
	b := binary.BigEndian.AppendUint16(nil, versionTLS12)
	b = append(b, random...)
	b = append(append(b, byte(len(sessionID))), sessionID...)
	b = binary.BigEndian.AppendUint16(b, suiteAES128GCM)
	b = append(b, 0) // no compression
	exts := ext(nil, extSupportedVersions, versionTLS13>>8, versionTLS13&0xff)
	key := binary.BigEndian.AppendUint16(nil, group)
	key = binary.BigEndian.AppendUint16(key, uint16(len(share)))
	exts = ext(exts, extKeyShare, append(key, share...)...)
	exts = ext(exts, extPreSharedKey, byte(identity>>8), byte(identity))
	b = binary.BigEndian.AppendUint16(b, uint16(len(exts)))
	return message(msgServerHello, append(b, exts...))
}
