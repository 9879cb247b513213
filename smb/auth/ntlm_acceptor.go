package auth

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// AcceptorConfig says how a server takes NTLM.
type AcceptorConfig struct {
	Users UserDB
	// Name and Domain are the server's NetBIOS names, DNSName and DNSDomain its DNS names. Empty ones are made of the host name; without a
	// domain, the server is its own.
	Name, Domain, DNSName, DNSDomain string
	// AllowAnonymous lets clients in that ask for a session without a user.
	AllowAnonymous bool
	// ChallengeLife is how long a challenge is good for, 0 for two minutes.
	ChallengeLife time.Duration
}

const (
	defaultChallengeLife = 2 * time.Minute
	// maxLifetime is how far the client's time may be from ours, if it does not use ours. [MS-NLMP] 3.1.1.1
	maxLifetime = 36 * time.Hour
)

// ntlmAcceptor implements MechAcceptor with NTLMv2. [MS-NLMP] 3.2
type ntlmAcceptor struct {
	ntlmSession
	cfg       AcceptorConfig
	negotiate []byte
	challenge []byte
	nonce     [8]byte
	target    []avPair
	flags     uint32
	sent      time.Time
	withMIC   bool
	done      bool
	id        Identity

	now    func() time.Time
	random func([]byte)
}

// AcceptNTLM returns NTLMv2 as a mechanism for NewAcceptor.
func AcceptNTLM(cfg AcceptorConfig) MechAcceptor {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	if cfg.DNSName == "" {
		cfg.DNSName = host
	}
	if cfg.Name == "" {
		short, _, _ := strings.Cut(host, ".")
		cfg.Name = strings.ToUpper(short[:min(len(short), 15)])
	}
	if cfg.Domain == "" {
		cfg.Domain = cfg.Name
	}
	if cfg.DNSDomain == "" {
		_, cfg.DNSDomain, _ = strings.Cut(cfg.DNSName, ".")
	}
	if cfg.ChallengeLife == 0 {
		cfg.ChallengeLife = defaultChallengeLife
	}
	return &ntlmAcceptor{cfg: cfg, now: time.Now, random: func(b []byte) { rand.Read(b) }}
}

func (m *ntlmAcceptor) OID() []byte        { return oidNTLM }
func (m *ntlmAcceptor) Identity() Identity { return m.id }
func (m *ntlmAcceptor) MICRequired() bool  { return m.withMIC }

func (m *ntlmAcceptor) Token(in []byte) ([]byte, bool, error) {
	if m.done {
		return nil, false, invalidToken(malformed("NTLM: token after the end"))
	}
	if m.challenge == nil {
		out, err := m.greet(in)
		m.done = err != nil
		return out, false, err
	}
	// One challenge is good for one try, whatever comes of it.
	m.done = true
	if err := m.check(in); err != nil {
		return nil, false, err
	}
	return nil, true, nil
}

// greet answers a NEGOTIATE_MESSAGE. [MS-NLMP] 3.2.5.1.1
func (m *ntlmAcceptor) greet(in []byte) ([]byte, error) {
	offered, err := parseNegotiate(in)
	if err != nil {
		return nil, invalidToken(err)
	}
	if missing := (requiredFlags &^ flagSign) &^ offered; missing != 0 {
		return nil, logonFailure(fmt.Errorf("%w: the client does not do NTLMv2 with 128-bit session security (flags %#08x)", ErrRefused, offered))
	}
	m.negotiate = bytes.Clone(in)
	m.random(m.nonce[:])
	m.sent = m.now()
	m.flags = offered&(flagSign|flagSeal|flagVersion|flagKeyExchange|flag56) | requiredFlags&offered |
		flagAlwaysSign | flagTargetInfo | flagRequestTarget
	if m.cfg.Domain == m.cfg.Name {
		m.flags |= flagTargetServer
	} else {
		m.flags |= flagTargetDomain
	}
	m.target = []avPair{
		{avNbDomainName, utf16le(m.cfg.Domain)},
		{avNbComputerName, utf16le(m.cfg.Name)},
		{avDNSDomainName, utf16le(m.cfg.DNSDomain)},
		{avDNSComputerName, utf16le(m.cfg.DNSName)},
		{avTimestamp, le.AppendUint64(nil, fileTime(m.sent))},
	}
	c := challengeMessage{flags: m.flags, targetName: m.cfg.Domain, challenge: m.nonce, targetInfo: m.target}
	m.challenge = c.encode()
	return bytes.Clone(m.challenge), nil
}

// check judges an AUTHENTICATE_MESSAGE. [MS-NLMP] 3.2.5.1.2
func (m *ntlmAcceptor) check(in []byte) error {
	a, err := parseAuthenticate(in)
	if err != nil {
		return invalidToken(err)
	}
	if age := m.now().Sub(m.sent); age < 0 || age > m.cfg.ChallengeLife {
		return logonFailure(fmt.Errorf("%w: the challenge has expired", ErrRefused))
	}
	// What the client did not repeat, or did not offer, does not hold.
	flags := a.flags & m.flags
	if flags&(flagUnicode|flagExtended|flag128) != flagUnicode|flagExtended|flag128 {
		return logonFailure(fmt.Errorf("%w: the client gave up session security (flags %#08x)", ErrRefused, a.flags))
	}
	var base [16]byte
	if a.user == "" && len(a.nt) == 0 && (len(a.lm) == 0 || len(a.lm) == 1 && a.lm[0] == 0) {
		if !m.cfg.AllowAnonymous {
			return logonFailure(fmt.Errorf("%w: anonymous sessions are not allowed", ErrRefused))
		}
		m.id = Identity{Workstation: a.workstation, Anonymous: true}
	} else {
		if base, err = m.verify(a); err != nil {
			return err
		}
		m.id = Identity{User: a.user, Domain: a.domain, Workstation: a.workstation}
	}
	exported := base[:]
	if flags&flagKeyExchange != 0 && flags&(flagSign|flagSeal) != 0 {
		if len(a.encryptedSessionKey) != 16 {
			return invalidToken(malformed("NTLM: session key of %d bytes", len(a.encryptedSessionKey)))
		}
		m.keyExchange = true
		exported = rc4Once(base[:], a.encryptedSessionKey)
	}
	if m.withMIC {
		if len(in) < authenticateSize {
			return invalidToken(malformed("NTLM: no room for the MIC"))
		}
		var zero [16]byte
		want := hmacMD5(exported, m.negotiate, m.challenge, in[:micOffset], zero[:], in[authenticateSize:])
		if subtle.ConstantTimeCompare(want[:], in[micOffset:authenticateSize]) != 1 {
			return logonFailure(fmt.Errorf("%w: the MIC of %v is wrong: messages were changed on their way", ErrRefused, m.id))
		}
	}
	m.exported = exported
	m.send, m.recv = newKeys(exported, "server-to-client"), newKeys(exported, "client-to-server")
	return nil
}

var errWrongPassword = errors.New("no such user or wrong password")

// verify checks an NTLMv2 response and returns SessionBaseKey. An unknown user goes the same way as a known one, with a hash that nobody
// has a password for.
func (m *ntlmAcceptor) verify(a *authenticateMessage) (base [16]byte, err error) {
	who := Identity{User: a.user, Domain: a.domain}
	if len(a.nt) == 24 || len(a.nt) == 0 {
		return base, logonFailure(fmt.Errorf("%w: %v uses NTLMv1 or LM", ErrRefused, who))
	}
	r, err := parseNTLMv2Response(a.nt)
	if err != nil {
		return base, invalidToken(err)
	}
	var hash, known [16]byte
	m.random(hash[:])
	ok := false
	if m.cfg.Users != nil {
		if known, ok = m.cfg.Users.Lookup(a.user, a.domain); ok {
			hash = known
		}
	}
	key := responseKey(hash, a.user, a.domain)
	p := proof(key, m.nonce, r.temp)
	same := subtle.ConstantTimeCompare(p[:], r.proof[:]) == 1
	if !same {
		// Some clients leave the domain out of the computation. [MS-NLMP] 3.2.5.1.2
		key = responseKey(hash, a.user, "")
		p = proof(key, m.nonce, r.temp)
		same = subtle.ConstantTimeCompare(p[:], r.proof[:]) == 1
	}
	if !ok || !same {
		return base, logonFailure(fmt.Errorf("%v: %w", who, errWrongPassword))
	}
	// From here on what the client says in its response is proved to be said by it.
	now := fileTime(m.now())
	if r.time > now+maxLifetimeTicks || r.time+maxLifetimeTicks < now {
		return base, logonFailure(fmt.Errorf("%w: the clock of %v is more than %v wrong", ErrRefused, who, maxLifetime))
	}
	if err := m.sameTarget(r.pairs); err != nil {
		return base, logonFailure(fmt.Errorf("%v: %w", who, err))
	}
	if flags, ok := findAv(r.pairs, avFlags); ok && len(flags) == 4 && flags[0]&avFlagMIC != 0 {
		m.withMIC = true
	}
	return hmacMD5(key[:], p[:]), nil
}

// sameTarget checks that what the client repeats of our challenge is what we sent. Whoever takes out the timestamp would get a client that sends
// no MIC. Clients that repeat nothing are let alone.
func (m *ntlmAcceptor) sameTarget(pairs []avPair) error {
	if _, ok := findAv(pairs, avNbComputerName); !ok {
		return nil
	}
	for _, p := range m.target {
		if v, ok := findAv(pairs, p.id); !ok || !bytes.Equal(v, p.value) {
			return fmt.Errorf("%w: the challenge was changed on its way", ErrRefused)
		}
	}
	return nil
}

const maxLifetimeTicks = uint64(maxLifetime / 100)
