package auth

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// serviceTicket is a ticket for a server, and what is needed to use it.
type serviceTicket struct {
	ticket messages.Ticket
	key    types.EncryptionKey
	client types.PrincipalName
	realm  string // the client's
	spn    string
	end    time.Time
}

// krb5Initiator implements MechInitiator. RFC 4121
type krb5Initiator struct {
	krb5Session
	t      *serviceTicket
	ctime  time.Time
	cusec  int
	sent   bool
	failed bool
	now    func() time.Time
}

func (m *krb5Initiator) OID() []byte { return oidKrb5 }

func (m *krb5Initiator) Identity() Identity {
	return Identity{User: m.t.client.PrincipalNameString(), Domain: m.t.realm}
}

// Expiry returns when the ticket ends.
func (m *krb5Initiator) Expiry() time.Time { return m.t.end }

func (m *krb5Initiator) Token(in []byte) ([]byte, bool, error) {
	switch {
	case m.established || m.failed:
		return nil, false, malformed("Kerberos: token after the end")
	case !m.sent:
		if len(in) > 0 {
			return nil, false, malformed("Kerberos: token before the beginning")
		}
		m.sent = true
		out, err := m.request()
		m.failed = err != nil
		return out, false, err
	}
	if err := m.reply(in); err != nil {
		m.failed = true
		return nil, false, err
	}
	m.established = true
	return nil, true, nil
}

// request makes the AP-REQ. RFC 4120 3.2.2, RFC 4121 4.1.1
func (m *krb5Initiator) request() ([]byte, error) {
	if m.t.end.Before(m.now()) {
		return nil, kerberosErrorf("the ticket for %s has expired: run kinit", m.t.spn)
	}
	m.ticketKey = m.t.key
	m.initiatorSubkey = newSubkey(m.t.key)
	m.sendSeq = randomSequence()
	now := m.now().UTC()
	m.ctime, m.cusec = now.Truncate(time.Second), now.Nanosecond()/1000
	sum := make([]byte, 24)
	binary.LittleEndian.PutUint32(sum, 16) // the length of the channel bindings, which are zero
	binary.LittleEndian.PutUint32(sum[20:], gssMutual|gssReplay|gssSequence|gssConfidential|gssIntegrity)
	a := types.Authenticator{
		AVNO: 5, CRealm: m.t.realm, CName: m.t.client, Cksum: types.Checksum{CksumType: checksumGSS, Checksum: sum},
		CTime: m.ctime, Cusec: m.cusec, SubKey: m.initiatorSubkey, SeqNumber: int64(m.sendSeq),
	}
	req, err := messages.NewAPReq(m.t.ticket, m.t.key, a)
	if err != nil {
		return nil, fmt.Errorf("Kerberos: make AP-REQ: %w", err)
	}
	types.SetFlag(&req.APOptions, apOptionMutual)
	b, err := req.Marshal()
	if err != nil {
		return nil, fmt.Errorf("Kerberos: make AP-REQ: %w", err)
	}
	return frameKrb5(tokenAPReq, b), nil
}

// randomSequence returns a sequence number below 2^30, as some peers take those above for negative, and not 0, which the encoder leaves out.
func randomSequence() uint32 {
	var b [4]byte
	rand.Read(b[:])
	return binary.BigEndian.Uint32(b[:])&0x3FFFFFFF | 1
}

// reply checks the server's proof of its identity. RFC 4120 3.2.5
func (m *krb5Initiator) reply(in []byte) error {
	if len(in) == 0 {
		return fmt.Errorf("%w: the server does not prove who it is (no AP-REP)", ErrRefused)
	}
	id, b, err := unframeKrb5(in)
	if err != nil {
		return err
	}
	switch id {
	case tokenKRBError:
		return m.serverError(b)
	case tokenAPRep:
	default:
		return malformed("Kerberos: token of type %#04x where AP-REP was expected", id)
	}
	r, err := decodeAPRep(b, m.ticketKey)
	if err != nil {
		return err
	}
	if !r.ctime.Equal(m.ctime) || r.cusec != m.cusec {
		return fmt.Errorf("%w: the server's proof of identity answers another logon (AP-REP of another time)", ErrRefused)
	}
	// With RC4 the acceptor's subkey is of no account: that came with RFC 4121, and MIT and Heimdal hold to it.
	if r.subkey.KeyType != etypeID.RC4_HMAC || m.initiatorSubkey.KeyType != etypeID.RC4_HMAC {
		m.acceptorSubkey = r.subkey
	}
	return nil
}

func (m *krb5Initiator) serverError(b []byte) error {
	var e messages.KRBError
	if err := whole(b, 0x60|appKRBError); err != nil {
		return err
	}
	if err := safely("error message", func() error { return e.Unmarshal(bytes.Clone(b)) }); err != nil {
		return malformed("Kerberos: error message of the server")
	}
	return explainKRB(e, m.t.client.PrincipalNameString(), m.t.spn, m.t.realm, m.now())
}
