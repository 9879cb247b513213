package auth

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"vdbridge/smb/ntstatus"
)

// KerberosService is a server's side of Kerberos: its keytab, and who may log on. Its methods may be called from any goroutine.
type KerberosService struct {
	keys   []serviceKey
	realms []string
	allow  []string
	rc4    bool
	skew   time.Duration
	replay *replayCache
	now    func() time.Time
}

// KerberosServiceConfig says how a server takes Kerberos.
type KerberosServiceConfig struct {
	Keytab string // file with keys of cifs/host principals
	// Allow are the users who may log on, as user, which means user in a realm of the keytab, or user@REALM. Empty admits all users of the keytab's realms.
	Allow []string
	// AllowRC4 takes tickets with the outdated RC4 as well.
	AllowRC4 bool
}

type serviceKey struct {
	name  []string
	realm string
	kvno  uint32
	key   types.EncryptionKey
}

// krb5Skew is how far clocks may be apart. RFC 4120 1.6
const krb5Skew = 5 * time.Minute

// maxKeytab bounds a keytab file in bytes.
const maxKeytab = 1 << 20

// readKeytab reads a keytab file. Errors contain nothing of it.
func readKeytab(path string) ([]serviceKey, error) {
	b, err := readSmall(path, maxKeytab)
	if err != nil {
		return nil, kerberosErrorf("the keytab cannot be read: %w", err)
	}
	return parseKeytab(path, b)
}

// readSmall reads a file that must not be longer than limit.
func readSmall(path string, limit int64) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > limit {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, limit)
	}
	return os.ReadFile(path)
}

func parseKeytab(path string, b []byte) ([]serviceKey, error) {
	kt := keytab.New()
	if err := safely("keytab", func() error { return kt.Unmarshal(b) }); err != nil {
		return nil, kerberosErrorf("%s is damaged, or no keytab", path)
	}
	var keys []serviceKey
	for _, e := range kt.Entries {
		if checkKey(e.Key) != nil || len(e.Principal.Components) == 0 {
			continue // of a type that nobody should use any more
		}
		keys = append(keys, serviceKey{e.Principal.Components, e.Principal.Realm, e.KVNO, e.Key})
	}
	if len(keys) == 0 {
		return nil, kerberosErrorf("the keytab %s has no keys of types that are used (AES)", path)
	}
	return keys, nil
}

// NewKerberosService reads the keytab.
func NewKerberosService(cfg KerberosServiceConfig) (*KerberosService, error) {
	keys, err := readKeytab(cfg.Keytab)
	if err != nil {
		return nil, err
	}
	return newKerberosService(cfg, keys)
}

func newKerberosService(cfg KerberosServiceConfig, keys []serviceKey) (*KerberosService, error) {
	s := &KerberosService{rc4: cfg.AllowRC4, skew: krb5Skew, now: time.Now}
	var names []string
	for _, k := range keys {
		name := strings.Join(k.name, "/") + "@" + k.realm
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		// In Active Directory the keys are those of the computer's account, HOST$, under all its names.
		if !isFileService(k.name) && !(len(k.name) == 1 && strings.HasSuffix(k.name[0], "$")) {
			continue
		}
		if !s.takes(k.key.KeyType) {
			continue
		}
		s.keys = append(s.keys, k)
		if !slices.Contains(s.realms, k.realm) {
			s.realms = append(s.realms, k.realm)
		}
	}
	if len(s.keys) == 0 {
		return nil, kerberosErrorf("the keytab %s has no AES key of cifs/HOST or host/HOST; it has %s", cfg.Keytab, strings.Join(names, ", "))
	}
	for _, a := range cfg.Allow {
		user, realm := SplitUPN(a)
		if user == "" {
			return nil, kerberosErrorf("%q is no user; write user or user@REALM", a)
		}
		if realm != "" {
			s.allow = append(s.allow, a)
			continue
		}
		for _, r := range s.realms {
			s.allow = append(s.allow, user+"@"+r)
		}
	}
	s.replay = newReplayCache(2 * s.skew)
	return s, nil
}

// isFileService says whether a principal is of a file server: cifs/host, or host/host, which stands for all services of a computer.
func isFileService(name []string) bool {
	return len(name) >= 2 && (strings.EqualFold(name[0], "cifs") || strings.EqualFold(name[0], "host"))
}

// takes says whether an encryption type is good enough.
func (s *KerberosService) takes(t int32) bool { return goodType(t, s.rc4) }

func goodType(t int32, rc4 bool) bool {
	switch t {
	case etypeID.AES128_CTS_HMAC_SHA1_96, etypeID.AES256_CTS_HMAC_SHA1_96, etypeID.AES128_CTS_HMAC_SHA256_128, etypeID.AES256_CTS_HMAC_SHA384_192:
		return true
	case etypeID.RC4_HMAC:
		return rc4
	}
	return false
}

// Principals lists the names in the keytab for which tickets are taken.
func (s *KerberosService) Principals() []string {
	var list []string
	for _, k := range s.keys {
		if name := strings.Join(k.name, "/") + "@" + k.realm; !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// Mechanisms returns Kerberos for one NewAcceptor, under its own identifier and under the one that Windows made of it by mistake.
func (s *KerberosService) Mechanisms() []MechAcceptor {
	return []MechAcceptor{&krb5Acceptor{s: s, oid: oidMSKrb5}, &krb5Acceptor{s: s, oid: oidKrb5}}
}

// krb5Acceptor implements MechAcceptor. RFC 4121
type krb5Acceptor struct {
	krb5Session
	s    *KerberosService
	oid  []byte
	id   Identity
	end  time.Time
	used bool
}

func (m *krb5Acceptor) OID() []byte        { return m.oid }
func (m *krb5Acceptor) Identity() Identity { return m.id }

// Expiry returns when the ticket ends.
func (m *krb5Acceptor) Expiry() time.Time { return m.end }

func (m *krb5Acceptor) Token(in []byte) ([]byte, bool, error) {
	if m.used {
		return nil, false, invalidToken(malformed("Kerberos: token after the end"))
	}
	m.used, m.acceptor = true, true
	id, b, err := unframeKrb5(in)
	if err == nil && id != tokenAPReq {
		err = malformed("Kerberos: token of type %#04x where AP-REQ was expected", id)
	}
	if err == nil {
		err = whole(b, 0x60|appAPReq)
	}
	var req messages.APReq
	if err == nil {
		err = safely("AP-REQ", func() error { return req.Unmarshal(bytes.Clone(b)) })
		if err != nil {
			err = malformed("Kerberos: AP-REQ")
		}
	}
	if err != nil {
		return nil, false, invalidToken(err)
	}
	out, err := m.check(&req)
	if err != nil {
		var st ntstatus.Status
		if !errors.As(err, &st) {
			err = logonFailure(fmt.Errorf("Kerberos: %w", err))
		}
		return nil, false, err
	}
	m.established = true
	return out, true, nil
}

// check judges an AP-REQ and makes the AP-REP. RFC 4120 3.2.3
func (m *krb5Acceptor) check(req *messages.APReq) ([]byte, error) {
	s := m.s
	ticket, err := s.open(&req.Ticket)
	if err != nil {
		return nil, err
	}
	now := s.now()
	who := ticket.CName.PrincipalNameString() + "@" + ticket.CRealm
	start := ticket.StartTime
	if start.IsZero() {
		start = ticket.AuthTime
	}
	switch {
	case checkKey(ticket.Key) != nil || !s.takes(ticket.Key.KeyType):
		return nil, fmt.Errorf("%w: the ticket of %s has a session key of type %d", ErrRefused, who, ticket.Key.KeyType)
	case now.Before(start.Add(-s.skew)), types.IsFlagSet(&ticket.Flags, ticketFlagInvalid):
		return nil, fmt.Errorf("%w: the ticket of %s is not valid yet (from %v)", ErrRefused, who, start)
	case now.After(ticket.EndTime.Add(s.skew)):
		return nil, fmt.Errorf("%w: the ticket of %s has expired (%v)", ErrRefused, who, ticket.EndTime)
	}
	plain, err := decrypt(req.EncryptedAuthenticator, ticket.Key, usageAPReqAuth)
	if err != nil {
		return nil, fmt.Errorf("%w: the authenticator of %s does not decrypt", ErrRefused, who)
	}
	var a types.Authenticator
	if err := safely("authenticator", func() error { return a.Unmarshal(plain) }); err != nil {
		return nil, malformed("Kerberos: authenticator")
	}
	if !a.CName.Equal(ticket.CName) || a.CRealm != ticket.CRealm {
		return nil, fmt.Errorf("%w: ticket of %s with an authenticator of %s@%s", ErrRefused, who, a.CName.PrincipalNameString(), a.CRealm)
	}
	ctime := a.CTime.Add(time.Duration(a.Cusec) * time.Microsecond)
	if d := now.Sub(ctime); d > s.skew || -d > s.skew {
		return nil, fmt.Errorf("%w: %w: the clock of the client of %s differs by %v", ntstatus.TimeDifferenceAtDC, ErrRefused, who, d.Round(time.Second))
	}
	// Delegated credentials may follow, of which no use is made.
	if a.Cksum.CksumType != checksumGSS || len(a.Cksum.Checksum) < 24 || binary.LittleEndian.Uint32(a.Cksum.Checksum) != 16 {
		return nil, malformed("Kerberos: authenticator without the checksum of GSS-API")
	}
	// Linux's cifs asks for no AP-REP: to it, the signature of the last SESSION_SETUP response proves that the server could read the ticket.
	mutual := binary.LittleEndian.Uint32(a.Cksum.Checksum[20:])&gssMutual != 0 || types.IsFlagSet(&req.APOptions, apOptionMutual)
	if a.SubKey.KeyType != 0 && (checkKey(a.SubKey) != nil || !s.takes(a.SubKey.KeyType)) {
		return nil, fmt.Errorf("%w: subkey of %s of type %d", ErrRefused, who, a.SubKey.KeyType)
	}
	if m.id, err = s.user(ticket.CName, ticket.CRealm); err != nil {
		return nil, err
	}
	if !s.replay.add(req.EncryptedAuthenticator.Cipher, now) {
		return nil, fmt.Errorf("%w: a logon of %s was replayed", ErrRefused, who)
	}
	m.end = ticket.EndTime
	m.ticketKey, m.initiatorSubkey = ticket.Key, a.SubKey
	if !mutual {
		m.sendSeq = uint32(a.SeqNumber)
		return nil, nil
	}
	like := ticket.Key
	if a.SubKey.KeyType != 0 {
		like = a.SubKey
	}
	if like.KeyType != etypeID.RC4_HMAC { // see krb5Initiator.reply
		m.acceptorSubkey = newSubkey(like)
	}
	m.sendSeq = randomSequence()
	return encodeAPRep(apRep{ctime: a.CTime, cusec: a.Cusec, subkey: m.acceptorSubkey, seq: m.sendSeq}, ticket.Key)
}

// open decrypts a ticket with the keys of the keytab. The key proves that the ticket is for us, whatever name we were called by.
func (s *KerberosService) open(t *messages.Ticket) (*messages.EncTicketPart, error) {
	spn := t.SName.PrincipalNameString() + "@" + t.Realm
	if !isFileService(t.SName.NameString) {
		return nil, fmt.Errorf("%w: ticket for %s, which is no file server", ErrRefused, spn)
	}
	if !s.takes(t.EncPart.EType) {
		return nil, fmt.Errorf("%w: ticket for %s with encryption type %d", ErrRefused, spn, t.EncPart.EType)
	}
	// The key that is named first, the others after it: key versions in keytabs are often truncated, or from another directory server.
	named := func(k serviceKey) bool {
		return k.realm == t.Realm && slices.Equal(k.name, t.SName.NameString) && (t.EncPart.KVNO == 0 || k.kvno == uint32(t.EncPart.KVNO))
	}
	var plain []byte
	for _, first := range []bool{true, false} {
		for _, k := range s.keys {
			if k.key.KeyType != t.EncPart.EType || named(k) != first {
				continue
			}
			var err error
			if plain, err = decrypt(t.EncPart, k.key, usageTicket); err != nil {
				continue
			}
			var part messages.EncTicketPart
			if err := safely("ticket", func() error { return part.Unmarshal(plain) }); err != nil {
				return nil, malformed("Kerberos: ticket")
			}
			if len(part.CName.NameString) == 0 {
				return nil, malformed("Kerberos: ticket of nobody")
			}
			return &part, nil
		}
	}
	return nil, fmt.Errorf("%w: no key in the keytab opens the ticket for %s (type %d, version %d); the keytab has %s: export it anew",
		ErrRefused, spn, t.EncPart.EType, t.EncPart.KVNO, strings.Join(s.Principals(), ", "))
}

// decrypt decrypts and checks the integrity.
func decrypt(e types.EncryptedData, key types.EncryptionKey, usage uint32) (plain []byte, err error) {
	if e.EType != key.KeyType {
		return nil, malformed("Kerberos: encryption type")
	}
	err = safely("ciphertext", func() error {
		plain, err = crypto.DecryptMessage(e.Cipher, key, usage)
		return err
	})
	return plain, err
}

// user makes a user's name of a principal, if it is one that may log on.
func (s *KerberosService) user(name types.PrincipalName, realm string) (Identity, error) {
	full := name.PrincipalNameString() + "@" + realm
	if s.allow != nil {
		if !slices.Contains(s.allow, full) {
			return Identity{}, fmt.Errorf("%w: %s is not among those who may log on", ErrRefused, full)
		}
	} else {
		if !slices.Contains(s.realms, realm) {
			return Identity{}, fmt.Errorf("%w: %s is of another realm than the server (%s)", ErrRefused, full, strings.Join(s.realms, ", "))
		}
		if len(name.NameString) != 1 || strings.ContainsAny(name.NameString[0], `/\@`) {
			return Identity{}, fmt.Errorf("%w: %s is no user", ErrRefused, full)
		}
	}
	return Identity{User: name.PrincipalNameString(), Domain: realm}, nil
}
