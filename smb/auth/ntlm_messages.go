package auth

import (
	"bytes"
	"encoding/binary"
)

var le = binary.LittleEndian

const ntlmSignature = "NTLMSSP\x00"

// Message types. [MS-NLMP] 2.2.1
const (
	typeNegotiate    = 1
	typeChallenge    = 2
	typeAuthenticate = 3
)

// Negotiate flags. [MS-NLMP] 2.2.2.5
const (
	flagUnicode       uint32 = 1 << 0
	flagOEM           uint32 = 1 << 1
	flagRequestTarget uint32 = 1 << 2
	flagSign          uint32 = 1 << 4
	flagSeal          uint32 = 1 << 5
	flagLMKey         uint32 = 1 << 7
	flagNTLM          uint32 = 1 << 9
	flagAnonymous     uint32 = 1 << 11
	flagAlwaysSign    uint32 = 1 << 15
	flagTargetDomain  uint32 = 1 << 16
	flagTargetServer  uint32 = 1 << 17
	flagExtended      uint32 = 1 << 19
	flagTargetInfo    uint32 = 1 << 23
	flagVersion       uint32 = 1 << 25
	flag128           uint32 = 1 << 29
	flagKeyExchange   uint32 = 1 << 30
	flag56            uint32 = 1 << 31
)

// AvId values. [MS-NLMP] 2.2.2.1
const (
	avEOL               = 0
	avNbComputerName    = 1
	avNbDomainName      = 2
	avDNSComputerName   = 3
	avDNSDomainName     = 4
	avFlags             = 6
	avTimestamp         = 7
	avTargetName        = 9
	avChannelBindings   = 10
	avFlagMIC           = 2 // in the value of avFlags
	maxAvPairs          = 64
	ntlmv2Fixed         = 28 // of NTLMv2_CLIENT_CHALLENGE, before the AV pairs
	negotiateSize       = 40
	challengeSize       = 56
	authenticateMinimum = 64 // of clients that send neither version nor MIC
	authenticateSize    = 88
	micOffset           = 72
)

// version is what this implementation says to be: 10.0, NTLM revision 15. Nobody acts upon it. [MS-NLMP] 2.2.2.10
var version = [8]byte{10, 0, 0, 0, 0, 0, 0, 15}

func isNTLM(b []byte) bool { return bytes.HasPrefix(b, []byte(ntlmSignature)) }

// messageType returns the type of an NTLM message, 0 if it is none.
func messageType(b []byte) uint32 {
	if !isNTLM(b) || len(b) < 12 {
		return 0
	}
	return le.Uint32(b[8:])
}

// field returns the part of the message that the field descriptor at off points to. [MS-NLMP] 2.2.1.1
func field(b []byte, off int) ([]byte, error) {
	n, begin := int(le.Uint16(b[off:])), uint64(le.Uint32(b[off+4:]))
	if n == 0 {
		return nil, nil
	}
	if begin > uint64(len(b)) || uint64(n) > uint64(len(b))-begin {
		return nil, malformed("NTLM: %d bytes at offset %d in a message of %d bytes", n, begin, len(b))
	}
	return b[begin : begin+uint64(n)], nil
}

// textField is field for a string in UTF-16.
func textField(b []byte, off int) (string, error) {
	f, err := field(b, off)
	if err != nil {
		return "", err
	}
	if len(f)%2 != 0 {
		return "", malformed("NTLM: string of %d bytes", len(f))
	}
	return fromUTF16(f), nil
}

// payload appends fields behind the fixed part of a message and fills in their descriptors.
type payload struct{ b []byte }

func (p *payload) put(off int, data []byte) {
	le.PutUint16(p.b[off:], uint16(len(data)))
	le.PutUint16(p.b[off+2:], uint16(len(data)))
	le.PutUint32(p.b[off+4:], uint32(len(p.b)))
	p.b = append(p.b, data...)
}

// start returns the fixed part of a message with signature and type.
func start(size int, messageType uint32) payload {
	b := make([]byte, size)
	copy(b, ntlmSignature)
	le.PutUint32(b[8:], messageType)
	return payload{b}
}

// avPair is AV_PAIR of [MS-NLMP] 2.2.2.1.
type avPair struct {
	id    uint16
	value []byte
}

// parseAvPairs reads pairs up to the one that ends the list, which is not returned.
func parseAvPairs(b []byte) ([]avPair, error) {
	var pairs []avPair
	for {
		if len(b) < 4 {
			return nil, malformed("NTLM: AV pairs without an end")
		}
		id, n := le.Uint16(b), int(le.Uint16(b[2:]))
		if id == avEOL {
			return pairs, nil
		}
		if n > len(b)-4 || len(pairs) == maxAvPairs {
			return nil, malformed("NTLM: AV pairs")
		}
		pairs = append(pairs, avPair{id, b[4 : 4+n]})
		b = b[4+n:]
	}
}

func appendAvPairs(b []byte, pairs []avPair) []byte {
	for _, p := range pairs {
		b = le.AppendUint16(b, p.id)
		b = le.AppendUint16(b, uint16(len(p.value)))
		b = append(b, p.value...)
	}
	return append(b, 0, 0, 0, 0)
}

func findAv(pairs []avPair, id uint16) ([]byte, bool) {
	for _, p := range pairs {
		if p.id == id {
			return p.value, true
		}
	}
	return nil, false
}

// encodeNegotiate returns a NEGOTIATE_MESSAGE without names. [MS-NLMP] 2.2.1.1
func encodeNegotiate(flags uint32) []byte {
	p := start(negotiateSize, typeNegotiate)
	le.PutUint32(p.b[12:], flags)
	copy(p.b[32:], version[:])
	return p.b
}

// parseNegotiate returns the flags of a NEGOTIATE_MESSAGE. Domain and workstation in it mean nothing to anyone.
func parseNegotiate(b []byte) (flags uint32, err error) {
	if messageType(b) != typeNegotiate || len(b) < 16 {
		return 0, malformed("NTLM: expected NEGOTIATE_MESSAGE")
	}
	return le.Uint32(b[12:]), nil
}

// challengeMessage is CHALLENGE_MESSAGE of [MS-NLMP] 2.2.1.2.
type challengeMessage struct {
	flags      uint32
	targetName string
	challenge  [8]byte
	targetInfo []avPair
}

func (m *challengeMessage) encode() []byte {
	p := start(challengeSize, typeChallenge)
	le.PutUint32(p.b[20:], m.flags)
	copy(p.b[24:], m.challenge[:])
	if m.flags&flagVersion != 0 {
		copy(p.b[48:], version[:])
	}
	p.put(12, utf16le(m.targetName))
	p.put(40, appendAvPairs(nil, m.targetInfo))
	return p.b
}

func parseChallenge(b []byte) (*challengeMessage, error) {
	// Version is left out by old servers.
	if messageType(b) != typeChallenge || len(b) < challengeSize-8 {
		return nil, malformed("NTLM: expected CHALLENGE_MESSAGE")
	}
	m := &challengeMessage{flags: le.Uint32(b[20:])}
	copy(m.challenge[:], b[24:])
	name, err := field(b, 12)
	if err != nil {
		return nil, err
	}
	if m.flags&flagUnicode != 0 && len(name)%2 == 0 {
		m.targetName = fromUTF16(name)
	}
	info, err := field(b, 40)
	if err != nil || len(info) == 0 {
		return m, err
	}
	m.targetInfo, err = parseAvPairs(info)
	return m, err
}

// authenticateMessage is AUTHENTICATE_MESSAGE of [MS-NLMP] 2.2.1.3.
type authenticateMessage struct {
	flags               uint32
	lm, nt              []byte
	domain, user        string
	workstation         string
	encryptedSessionKey []byte
}

// encode returns the message with a MIC of zeros.
func (m *authenticateMessage) encode() []byte {
	p := start(authenticateSize, typeAuthenticate)
	le.PutUint32(p.b[60:], m.flags)
	copy(p.b[64:], version[:])
	p.put(28, utf16le(m.domain))
	p.put(36, utf16le(m.user))
	p.put(44, utf16le(m.workstation))
	p.put(12, m.lm)
	p.put(20, m.nt)
	p.put(52, m.encryptedSessionKey)
	return p.b
}

func parseAuthenticate(b []byte) (*authenticateMessage, error) {
	if messageType(b) != typeAuthenticate || len(b) < authenticateMinimum {
		return nil, malformed("NTLM: expected AUTHENTICATE_MESSAGE")
	}
	m := &authenticateMessage{flags: le.Uint32(b[60:])}
	var errs [6]error
	m.lm, errs[0] = field(b, 12)
	m.nt, errs[1] = field(b, 20)
	m.domain, errs[2] = textField(b, 28)
	m.user, errs[3] = textField(b, 36)
	m.workstation, errs[4] = textField(b, 44)
	m.encryptedSessionKey, errs[5] = field(b, 52)
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return m, nil
}

// ntlmv2Response is NTLMv2_RESPONSE of [MS-NLMP] 2.2.2.8.
type ntlmv2Response struct {
	proof [16]byte
	temp  []byte // everything after the proof
	time  uint64 // FILETIME
	pairs []avPair
}

// encodeTemp returns what NTProofStr is computed over: temp of [MS-NLMP] 3.3.2.
func encodeTemp(time uint64, clientChallenge [8]byte, pairs []avPair) []byte {
	b := make([]byte, ntlmv2Fixed)
	b[0], b[1] = 1, 1
	le.PutUint64(b[8:], time)
	copy(b[16:], clientChallenge[:])
	return append(appendAvPairs(b, pairs), 0, 0, 0, 0)
}

func parseNTLMv2Response(b []byte) (*ntlmv2Response, error) {
	if len(b) < 16+ntlmv2Fixed || b[16] != 1 || b[17] != 1 {
		return nil, malformed("NTLM: response is not NTLMv2")
	}
	r := &ntlmv2Response{proof: [16]byte(b), temp: b[16:], time: le.Uint64(b[24:])}
	var err error
	r.pairs, err = parseAvPairs(b[16+ntlmv2Fixed:])
	return r, err
}
