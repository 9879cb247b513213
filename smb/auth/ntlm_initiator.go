package auth

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// clientFlags is what the initiator asks for, and insists on where it matters.
const clientFlags = flagUnicode | flagRequestTarget | flagSign | flagNTLM | flagAlwaysSign | flagExtended | flagTargetInfo |
	flagVersion | flag128 | flagKeyExchange

// requiredFlags is what both sides insist on: NTLMv2 session security with keys of 128 bits.
const requiredFlags = flagUnicode | flagSign | flagNTLM | flagExtended | flag128

// ntlmInitiator implements MechInitiator with NTLMv2. [MS-NLMP] 3.1
type ntlmInitiator struct {
	ntlmSession
	c         Credentials
	target    string
	negotiate []byte
	withMIC   bool
	done      bool

	// For tests against the specification's vectors.
	now    func() time.Time
	random func([]byte)
}

// NTLM returns NTLMv2 as a mechanism for NewInitiator. target is the service principal name of the server, cifs/host, which the server may
// check.
func NTLM(c Credentials, target string) MechInitiator {
	if c.Workstation == "" {
		if h, err := os.Hostname(); err == nil {
			h, _, _ = strings.Cut(h, ".")
			c.Workstation = strings.ToUpper(h)
		}
	}
	if c.Anonymous {
		c = Credentials{Anonymous: true}
	}
	return &ntlmInitiator{c: c, target: target, now: time.Now, random: func(b []byte) { rand.Read(b) }}
}

func (m *ntlmInitiator) OID() []byte { return oidNTLM }

func (m *ntlmInitiator) Identity() Identity {
	return Identity{User: m.c.User, Domain: m.c.Domain, Workstation: m.c.Workstation, Anonymous: m.c.Anonymous}
}

func (m *ntlmInitiator) MICRequired() bool { return m.withMIC }

func (m *ntlmInitiator) Token(in []byte) ([]byte, bool, error) {
	switch {
	case m.done:
		return nil, false, malformed("NTLM: token after the end")
	case m.negotiate == nil:
		if len(in) > 0 {
			return nil, false, malformed("NTLM: token before the beginning")
		}
		flags := clientFlags
		if m.c.Anonymous {
			flags |= flagAnonymous
		} else if m.c.User == "" {
			return nil, false, fmt.Errorf("%w: no user name given", ErrRefused)
		}
		m.negotiate = encodeNegotiate(flags)
		return bytes.Clone(m.negotiate), false, nil
	}
	c, err := parseChallenge(in)
	if err != nil {
		return nil, false, err
	}
	out, err := m.authenticate(c, in)
	m.done = err == nil
	return out, m.done, err
}

// authenticate returns the AUTHENTICATE_MESSAGE for the challenge. [MS-NLMP] 3.1.5.1.2
func (m *ntlmInitiator) authenticate(c *challengeMessage, raw []byte) ([]byte, error) {
	if missing := requiredFlags &^ c.flags; missing != 0 {
		return nil, fmt.Errorf("%w: the server does not do NTLMv2 with 128-bit session security (flags %#08x)", ErrRefused, c.flags)
	}
	a := &authenticateMessage{
		flags:       clientFlags & (c.flags | flagVersion),
		domain:      m.c.Domain,
		user:        m.c.User,
		workstation: m.c.Workstation,
	}
	var base [16]byte
	if m.c.Anonymous {
		a.flags |= flagAnonymous
		a.lm = []byte{0}
	} else {
		var err error
		if base, err = m.respond(a, c); err != nil {
			return nil, err
		}
	}
	exported := base[:]
	if c.flags&flagKeyExchange != 0 {
		m.keyExchange = true
		exported = make([]byte, 16)
		m.random(exported)
		a.encryptedSessionKey = rc4Once(base[:], exported)
	}
	out := a.encode()
	if m.withMIC {
		mic := hmacMD5(exported, m.negotiate, raw, out)
		copy(out[micOffset:], mic[:])
	}
	m.exported = exported
	m.send, m.recv = newKeys(exported, "client-to-server"), newKeys(exported, "server-to-client")
	return out, nil
}

// respond fills in the responses and returns SessionBaseKey, which is the KeyExchangeKey as well. [MS-NLMP] 3.3.2
func (m *ntlmInitiator) respond(a *authenticateMessage, c *challengeMessage) (base [16]byte, err error) {
	_, computer := findAv(c.targetInfo, avNbComputerName)
	_, domain := findAv(c.targetInfo, avNbDomainName)
	if !computer || !domain {
		return base, fmt.Errorf("%w: the server's challenge lacks what NTLMv2 needs", ErrRefused)
	}
	now := fileTime(m.now())
	pairs := slices.Clone(c.targetInfo)
	if t, ok := findAv(pairs, avTimestamp); ok {
		if len(t) != 8 {
			return base, malformed("NTLM: timestamp of %d bytes", len(t))
		}
		now = le.Uint64(t)
		m.withMIC = true
		flags := make([]byte, 4)
		i := slices.IndexFunc(pairs, func(p avPair) bool { return p.id == avFlags })
		if i < 0 {
			i, pairs = len(pairs), append(pairs, avPair{id: avFlags})
		}
		copy(flags, pairs[i].value)
		flags[0] |= avFlagMIC
		pairs[i].value = flags
	}
	pairs = slices.DeleteFunc(pairs, func(p avPair) bool { return p.id == avChannelBindings || p.id == avTargetName })
	pairs = append(pairs, avPair{avChannelBindings, make([]byte, 16)}, avPair{avTargetName, utf16le(m.target)})

	hash := NTHash(m.c.Password)
	if len(m.c.NTHash) > 0 {
		if len(m.c.NTHash) != 16 {
			return base, fmt.Errorf("%w: the NT hash has %d bytes, not 16", ErrRefused, len(m.c.NTHash))
		}
		hash = [16]byte(m.c.NTHash)
	}
	var clientChallenge [8]byte
	m.random(clientChallenge[:])
	key := responseKey(hash, m.c.User, m.c.Domain)
	temp := encodeTemp(now, clientChallenge, pairs)
	p := proof(key, c.challenge, temp)
	a.nt = append(p[:], temp...)
	a.lm = make([]byte, 24)
	if len(a.nt) > 0xFFFF {
		return base, malformed("NTLM: challenge is too long")
	}
	return hmacMD5(key[:], p[:]), nil
}

// fileTime returns t in units of 100 ns since 1601. [MS-DTYP] 2.3.3
func fileTime(t time.Time) uint64 {
	const epoch = 11644473600 // seconds from 1601 to 1970
	return uint64(t.Unix()+epoch)*1e7 + uint64(t.Nanosecond()/100)
}
