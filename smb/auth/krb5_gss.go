package auth

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/types"
)

// Token identifiers behind the GSS-API frame. RFC 4121 4.1
const (
	tokenAPReq    = 0x0100
	tokenAPRep    = 0x0200
	tokenKRBError = 0x0300
)

// Key usages. RFC 4120 7.5.1, RFC 4121 2
const (
	usageASReqTimestamp  = 1
	usageTicket          = 2
	usageASRep           = 3
	usageTGSReqChecksum  = 6
	usageTGSRep          = 8
	usageAPReqAuth       = 11
	usageAPRep           = 12
	usageAcceptorSign    = 23
	usageInitiatorSign   = 25
	usageArcfourSign     = 15 // of RFC 4757 7.2
	checksumGSS          = 0x8003
	gssMutual            = 1 << 1
	gssReplay            = 1 << 2
	gssSequence          = 1 << 3
	gssConfidential      = 1 << 4
	gssIntegrity         = 1 << 5
	micSentByAcceptor    = 1 << 0
	micAcceptorSubkey    = 1 << 2
	appAPReq             = 14
	appAPRep             = 15
	appEncAPRepPart      = 27
	appKRBError          = 30
	apOptionMutual       = 2 // bit number
	ticketFlagInvalid    = 7 // bit number
	maxKerberosComponent = 32
)

// safely calls f, which is code of gokrb5 on bytes of others. It indexes what it has parsed without looking, so that its panics become errors. The
// error says nothing of what was parsed, as it may contain keys.
func safely(what string, f func() error) (err error) {
	defer func() {
		if recover() != nil {
			err = malformed("Kerberos: %s", what)
		}
	}()
	return f()
}

// frameKrb5 puts the GSS-API frame around a message. RFC 2743 3.1, RFC 4121 4.1
func frameKrb5(id uint16, message []byte) []byte {
	return element(tagApplication, element(tagOID, oidKrb5), []byte{byte(id >> 8), byte(id)}, message)
}

// unframeKrb5 takes the GSS-API frame off.
func unframeKrb5(b []byte) (id uint16, message []byte, err error) {
	if len(b) > maxToken {
		return 0, nil, malformed("Kerberos: token of %d bytes", len(b))
	}
	d := der{b: b}
	d = d.only(tagApplication)
	oid, _ := d.next(tagOID)
	if d.err != nil {
		return 0, nil, d.err
	}
	if !bytes.Equal(oid, oidKrb5) && !bytes.Equal(oid, oidMSKrb5) {
		return 0, nil, malformed("Kerberos: token of another mechanism")
	}
	if len(d.b) < 2 {
		return 0, nil, malformed("Kerberos: token without a message")
	}
	return binary.BigEndian.Uint16(d.b), d.b[2:], nil
}

// whole checks that b is one DER element with this tag and nothing behind it, all the way down its constructed elements. gokrb5 does not look.
func whole(b []byte, tag byte) error {
	d := der{b: b}
	in := d.only(tag)
	if in.err != nil {
		return in.err
	}
	return nested(in.b, 0)
}

func nested(b []byte, depth int) error {
	if depth > 16 {
		return malformed("Kerberos: ASN.1 nested too deeply")
	}
	for d := (der{b: b}); d.more(); {
		tag := d.peek()
		if tag&0x1F == 0x1F {
			return malformed("Kerberos: ASN.1 tag %#02x", tag)
		}
		c, _ := d.next(tag)
		if d.err != nil {
			return d.err
		}
		if tag&0x20 != 0 {
			if err := nested(c, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// derInt encodes an INTEGER that is not negative.
func derInt(n int64) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(n))
	for len(b) > 1 && b[0] == 0 && b[1] < 0x80 {
		b = b[1:]
	}
	return element(0x02, b)
}

func derTime(t time.Time) []byte { return element(0x18, []byte(t.UTC().Format("20060102150405Z"))) }

// derEncrypted encodes EncryptedData.
func derEncrypted(e types.EncryptedData) []byte {
	var kvno []byte
	if e.KVNO > 0 {
		kvno = explicit(1, derInt(int64(e.KVNO)))
	}
	return element(tagSequence, explicit(0, derInt(int64(e.EType))), kvno, octets(2, e.Cipher))
}

// apRep is what the acceptor says in AP-REP. RFC 4120 5.5.2
type apRep struct {
	ctime  time.Time
	cusec  int
	subkey types.EncryptionKey // KeyType 0 = none
	seq    uint32
}

// encodeAPRep returns a framed AP-REP, encrypted with the ticket's session key.
func encodeAPRep(r apRep, key types.EncryptionKey) ([]byte, error) {
	var subkey []byte
	if r.subkey.KeyType != 0 {
		subkey = explicit(2, element(tagSequence, explicit(0, derInt(int64(r.subkey.KeyType))), octets(1, r.subkey.KeyValue)))
	}
	part := element(0x60|appEncAPRepPart, element(tagSequence, explicit(0, derTime(r.ctime)), explicit(1, derInt(int64(r.cusec))),
		subkey, explicit(3, derInt(int64(r.seq)))))
	e, err := crypto.GetEncryptedData(part, key, usageAPRep, 0)
	if err != nil {
		return nil, fmt.Errorf("Kerberos: encrypt AP-REP: %w", err)
	}
	rep := element(0x60|appAPRep, element(tagSequence, explicit(0, derInt(5)), explicit(1, derInt(appAPRep)), explicit(2, derEncrypted(e))))
	return frameKrb5(tokenAPRep, rep), nil
}

// number reads an INTEGER in context tag n that fits into 64 bits.
func (d *der) number(n byte) int64 {
	in := d.enter(tagContext0 + n)
	b, _ := in.next(0x02)
	if in.err == nil && (len(b) == 0 || len(b) > 8 || len(in.b) > 0) {
		in.err = malformed("Kerberos: number")
	}
	if in.err != nil {
		d.err = in.err
		return 0
	}
	v := int64(int8(b[0]))
	for _, c := range b[1:] {
		v = v<<8 | int64(c)
	}
	return v
}

// decodeAPRep decrypts and parses an AP-REP without its frame.
func decodeAPRep(b []byte, key types.EncryptionKey) (r apRep, err error) {
	d := der{b: b}
	d = d.only(0x60 | appAPRep)
	d = d.only(tagSequence)
	if pvno, kind := d.number(0), d.number(1); d.err == nil && (pvno != 5 || kind != appAPRep) {
		return r, malformed("Kerberos: not an AP-REP")
	}
	e := d.only(tagContext0 + 2)
	e = e.only(tagSequence)
	etype := e.number(0)
	if e.peek() == tagContext0+1 {
		e.number(1)
	}
	cipher := e.octets(2)
	if e.err != nil {
		return r, e.err
	}
	if len(e.b) > 0 {
		return r, malformed("Kerberos: AP-REP")
	}
	if etype != int64(key.KeyType) {
		return r, malformed("Kerberos: AP-REP encrypted with type %d, the session key has type %d", etype, key.KeyType)
	}
	var plain []byte
	if err := safely("AP-REP", func() error {
		plain, err = crypto.DecryptMessage(cipher, key, usageAPRep)
		return err
	}); err != nil {
		return r, fmt.Errorf("%w: the server's proof of identity is wrong (AP-REP does not decrypt)", ErrRefused)
	}
	return parseEncAPRepPart(plain)
}

func parseEncAPRepPart(plain []byte) (r apRep, err error) {
	d := der{b: plain}
	// Some ciphers pad, so that bytes may follow.
	d = d.enter(0x60 | appEncAPRepPart)
	d = d.only(tagSequence)
	in := d.enter(tagContext0)
	when, _ := in.next(0x18)
	if in.err != nil {
		return r, in.err
	}
	if r.ctime, err = time.Parse("20060102150405Z", string(when)); err != nil {
		return r, malformed("Kerberos: time in AP-REP")
	}
	r.cusec = int(d.number(1))
	if d.peek() == tagContext0+2 {
		k := d.enter(tagContext0 + 2)
		k = k.only(tagSequence)
		kind := k.number(0)
		value := k.octets(1)
		if k.err != nil {
			return r, k.err
		}
		r.subkey = types.EncryptionKey{KeyType: int32(kind), KeyValue: bytes.Clone(value)}
		if err := checkKey(r.subkey); err != nil {
			return r, err
		}
	}
	if d.peek() == tagContext0+3 {
		r.seq = uint32(d.number(3))
	}
	if d.err == nil && len(d.b) > 0 {
		return r, malformed("Kerberos: AP-REP")
	}
	return r, d.err
}

// keySizes are the lengths in bytes of keys. gokrb5 has another number for the last of the AES types.
var keySizes = map[int32]int{
	etypeID.AES128_CTS_HMAC_SHA1_96: 16, etypeID.AES256_CTS_HMAC_SHA1_96: 32, etypeID.AES128_CTS_HMAC_SHA256_128: 16, etypeID.AES256_CTS_HMAC_SHA384_192: 32,
	etypeID.RC4_HMAC: 16,
}

// checkKey checks that the key's type is known and its length right.
func checkKey(k types.EncryptionKey) error {
	if n := keySizes[k.KeyType]; n == 0 || len(k.KeyValue) != n {
		return malformed("Kerberos: key of type %d with %d bytes", k.KeyType, len(k.KeyValue))
	}
	return nil
}

// newSubkey makes a random key of the same type as k.
func newSubkey(k types.EncryptionKey) types.EncryptionKey {
	sub := types.EncryptionKey{KeyType: k.KeyType, KeyValue: make([]byte, len(k.KeyValue))}
	rand.Read(sub.KeyValue)
	return sub
}

// krb5Session is what both sides have after the exchange. It implements most of a mechanism.
type krb5Session struct {
	acceptor        bool
	ticketKey       types.EncryptionKey // the session key in the ticket
	initiatorSubkey types.EncryptionKey // KeyType 0 = none
	acceptorSubkey  types.EncryptionKey // KeyType 0 = none
	sendSeq         uint32
	established     bool
}

// key returns the key of the context. [MS-KILE] 3.1.1.2, RFC 4121 2
func (s *krb5Session) key() types.EncryptionKey {
	switch {
	case s.acceptorSubkey.KeyType != 0:
		return s.acceptorSubkey
	case s.initiatorSubkey.KeyType != 0:
		return s.initiatorSubkey
	}
	return s.ticketKey
}

// SessionKey returns the key of the context: the acceptor's subkey, if there is one.
func (s *krb5Session) SessionKey() []byte {
	if !s.established {
		return nil
	}
	return bytes.Clone(s.key().KeyValue)
}

// GetMIC is GSS_GetMIC. RFC 4121 4.2.6.1, RFC 4757 7.2
func (s *krb5Session) GetMIC(message []byte) ([]byte, error) {
	if !s.established {
		return nil, malformed("Kerberos: MIC before the end")
	}
	k := s.key()
	if k.KeyType == etypeID.RC4_HMAC {
		return arcfourMIC(k.KeyValue, message, s.sendSeq, s.acceptor), nil
	}
	head := []byte{0x04, 0x04, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF}
	usage := uint32(usageInitiatorSign)
	if s.acceptor {
		head[2] |= micSentByAcceptor
		usage = usageAcceptorSign
	}
	if s.acceptorSubkey.KeyType != 0 {
		head[2] |= micAcceptorSubkey
	}
	head = binary.BigEndian.AppendUint64(head, uint64(s.sendSeq))
	sum, err := checksumOf(k, append(bytes.Clone(message), head...), usage)
	if err != nil {
		return nil, err
	}
	return append(head, sum...), nil
}

// VerifyMIC is GSS_VerifyMIC. The sequence number is under the checksum but not compared: the same list under the same fresh key is no replay worth telling.
func (s *krb5Session) VerifyMIC(message, mic []byte) error {
	wrong := fmt.Errorf("%w: mechListMIC is wrong", ErrRefused)
	if !s.established {
		return malformed("Kerberos: MIC before the end")
	}
	if s.key().KeyType == etypeID.RC4_HMAC {
		seq, err := arcfourSequence(s.key().KeyValue, mic)
		if err != nil || !hmac.Equal(mic, arcfourMIC(s.key().KeyValue, message, seq, !s.acceptor)) {
			return wrong
		}
		return nil
	}
	if len(mic) < 16 || mic[0] != 0x04 || mic[1] != 0x04 || !bytes.Equal(mic[3:8], []byte{0xFF, 0xFF, 0xFF, 0xFF, 0xFF}) {
		return malformed("Kerberos: MIC")
	}
	if byAcceptor := mic[2]&micSentByAcceptor != 0; byAcceptor == s.acceptor {
		return wrong
	}
	k := s.key()
	if mic[2]&micAcceptorSubkey == 0 {
		// The initiator may have signed before it knew of the acceptor's subkey; the acceptor may not.
		if s.acceptorSubkey.KeyType != 0 && !s.acceptor {
			return wrong
		}
		early := *s
		early.acceptorSubkey = types.EncryptionKey{}
		k = early.key()
	} else if s.acceptorSubkey.KeyType == 0 {
		return wrong
	}
	usage := uint32(usageAcceptorSign)
	if s.acceptor {
		usage = usageInitiatorSign
	}
	sum, err := checksumOf(k, append(bytes.Clone(message), mic[:16]...), usage)
	if err != nil {
		return err
	}
	if !hmac.Equal(sum, mic[16:]) {
		return wrong
	}
	return nil
}

// MICRequired: nothing in the exchange says that the other side will send one.
func (s *krb5Session) MICRequired() bool { return false }

func checksumOf(k types.EncryptionKey, message []byte, usage uint32) ([]byte, error) {
	et, err := crypto.GetEtype(k.KeyType)
	if err != nil {
		return nil, fmt.Errorf("Kerberos: %w", err)
	}
	sum, err := et.GetChecksumHash(k.KeyValue, message, usage)
	if err != nil {
		return nil, fmt.Errorf("Kerberos: checksum: %w", err)
	}
	return sum, nil
}

// arcfourMIC is the MIC token of RFC 4757 7.2, for keys of type RC4.
func arcfourMIC(key, message []byte, seq uint32, byAcceptor bool) []byte {
	head := []byte{0x01, 0x01, 0x11, 0x00, 0xFF, 0xFF, 0xFF, 0xFF}
	sign := hmacMD5(key, []byte("signaturekey\x00"))
	inner := md5.New()
	inner.Write(binary.LittleEndian.AppendUint32(nil, usageArcfourSign))
	inner.Write(head)
	inner.Write(message)
	sum := hmacMD5(sign[:], inner.Sum(nil))
	plain := binary.BigEndian.AppendUint32(nil, seq)
	if byAcceptor {
		plain = append(plain, 0xFF, 0xFF, 0xFF, 0xFF)
	} else {
		plain = append(plain, 0, 0, 0, 0)
	}
	return element(tagApplication, element(tagOID, oidKrb5), head, rc4Once(arcfourSeqKey(key, sum[:8]), plain), sum[:8])
}

func arcfourSeqKey(key, sum []byte) []byte {
	k := hmacMD5(key, []byte{0, 0, 0, 0})
	k = hmacMD5(k[:], sum)
	return k[:]
}

// arcfourSequence decrypts the sequence number of a MIC token.
func arcfourSequence(key, mic []byte) (uint32, error) {
	d := der{b: mic}
	d = d.only(tagApplication)
	d.next(tagOID)
	if d.err != nil || len(d.b) != 24 {
		return 0, malformed("Kerberos: MIC")
	}
	return binary.BigEndian.Uint32(rc4Once(arcfourSeqKey(key, d.b[16:]), d.b[8:16])), nil
}
