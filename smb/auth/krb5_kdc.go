package auth

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/iana/patype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// The exchanges with a KDC. gokrb5 has them as well, but without a context, with lengths from the network used as they come, and with a goroutine
// for each ticket; its messages and ciphers are used here.

const (
	kdcTimeout   = 5 * time.Second // for one address
	maxKDCReply  = 1 << 20
	maxReferrals = 6
)

// tgt is a ticket-granting ticket.
type tgt struct {
	ticket messages.Ticket
	key    types.EncryptionKey
	client types.PrincipalName
	crealm string // the client's
	realm  string // whose KDC it is good for
	end    time.Time
}

// kdcs returns the addresses of a realm's KDCs in order: those of krb5.conf, or what DNS says.
func (k *Kerberos) kdcs(ctx context.Context, realm string) ([]string, error) {
	for _, r := range k.conf.Realms {
		if r.Realm == realm && len(r.KDC) > 0 {
			return r.KDC, nil
		}
	}
	if k.noDNS {
		return nil, &KerberosError{Sentence: fmt.Sprintf("krb5.conf names no Kerberos server of the realm %s: check the realm, or add it to [realms]", realm), Code: errorcode.KDC_ERR_WRONG_REALM}
	}
	var list []string
	var last error
	for _, proto := range []string{"tcp", "udp"} {
		// A realm is a whole name, to which no domain of resolv.conf is appended.
		_, srv, err := net.DefaultResolver.LookupSRV(ctx, "kerberos", proto, strings.TrimSuffix(realm, ".")+".")
		last = err
		for _, s := range srv {
			if s.Target == "." { // there is none, RFC 2782
				continue
			}
			if addr := net.JoinHostPort(strings.TrimSuffix(s.Target, "."), fmt.Sprint(s.Port)); !slices.Contains(list, addr) {
				list = append(list, addr)
			}
		}
		if len(list) > 0 {
			return list, nil
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var dns *net.DNSError
	return nil, &KerberosError{
		Sentence:    fmt.Sprintf("no Kerberos server of the realm %s is known, neither in krb5.conf nor in DNS (_kerberos._tcp.%s): check the realm", realm, realm),
		Unreachable: errors.As(last, &dns) && !dns.IsNotFound, Err: last,
	}
}

// ask sends a request to a KDC of the realm. An error message of the KDC comes back as messages.KRBError.
func (k *Kerberos) ask(ctx context.Context, realm string, request []byte) ([]byte, error) {
	addrs, err := k.kdcs(ctx, realm)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, addr := range addrs {
		for _, f := range []func(context.Context, string, []byte) ([]byte, error){askTCP, askUDP} {
			reply, err := f(ctx, addr, request)
			if ctx.Err() != nil && err != nil {
				return nil, unreachable(realm, addrs, ctx.Err())
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			return reply, krbErrorIn(reply)
		}
	}
	return nil, unreachable(realm, addrs, errors.Join(errs...))
}

func unreachable(realm string, addrs []string, err error) error {
	return &KerberosError{Sentence: fmt.Sprintf("no Kerberos server of the realm %s answers (%s): is it up, and does the firewall let port 88 through?", realm, strings.Join(addrs, ", ")),
		Unreachable: true, Err: err}
}

// krbErrorIn returns the error that a reply is, nil if it is none.
func krbErrorIn(reply []byte) error {
	if len(reply) == 0 || reply[0] != 0x60|appKRBError {
		return nil
	}
	var e messages.KRBError
	if whole(reply, 0x60|appKRBError) != nil || safely("error message", func() error { return e.Unmarshal(bytes.Clone(reply)) }) != nil {
		return malformed("Kerberos: error message of the KDC")
	}
	return e
}

func dialKDC(ctx context.Context, network, addr string) (net.Conn, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, kdcTimeout)
	conn, done, err := dialUntil(ctx, network, addr)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	return conn, func() { done(); cancel() }, nil
}

// dialUntil connects. The connection can be used until the context ends, and must be closed with the function.
func dialUntil(ctx context.Context, network, addr string) (net.Conn, func(), error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	return conn, func() { stop(); conn.Close() }, nil
}

// askTCP sends a request with its length before it. RFC 4120 7.2.2
func askTCP(ctx context.Context, addr string, request []byte) ([]byte, error) {
	conn, end, err := dialKDC(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer end()
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(request))), request...)); err != nil {
		return nil, err
	}
	var head [4]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxKDCReply {
		return nil, fmt.Errorf("KDC %s: reply of %d bytes", addr, n)
	}
	reply := make([]byte, n)
	_, err = io.ReadFull(conn, reply)
	return reply, err
}

func askUDP(ctx context.Context, addr string, request []byte) ([]byte, error) {
	conn, end, err := dialKDC(ctx, "udp", addr)
	if err != nil {
		return nil, err
	}
	defer end()
	if _, err := conn.Write(request); err != nil {
		return nil, err
	}
	reply := make([]byte, 64<<10)
	n, err := conn.Read(reply)
	return reply[:n], err
}

// etypeInfo is how a KDC wants a key made of a password. RFC 4120 5.2.7.5
type etypeInfo struct {
	etype  int32
	salt   string
	params string // hexadecimal; empty for the default
}

// etypeInfos returns what is in PA-ETYPE-INFO2, as far as it is of a good type.
func (k *Kerberos) etypeInfos(pas types.PADataSequence) []etypeInfo {
	var list []etypeInfo
	for _, pa := range pas {
		if pa.PADataType != patype.PA_ETYPE_INFO2 {
			continue
		}
		var infos types.ETypeInfo2
		if safely("PA-ETYPE-INFO2", func() error { return infos.Unmarshal(pa.PADataValue) }) != nil {
			continue
		}
		for _, i := range infos {
			// More iterations than this would only keep us busy. The default is 4096 or 32768.
			if len(i.S2KParams) == 4 && binary.BigEndian.Uint32(i.S2KParams) > 1<<20 {
				continue
			}
			if goodType(i.EType, k.rc4) {
				list = append(list, etypeInfo{i.EType, i.Salt, hex.EncodeToString(i.S2KParams)})
			}
		}
	}
	return list
}

// secretKey makes the user's key, of the first type that there is one of.
func (k *Kerberos) secretKey(infos []etypeInfo, name types.PrincipalName, realm string) (types.EncryptionKey, int, error) {
	if k.keys == nil {
		i := infos[0]
		if i.etype == etypeID.RC4_HMAC {
			// gokrb5 gets other letters than those of ASCII wrong. RFC 4757 2
			h := NTHash(k.password)
			return types.EncryptionKey{KeyType: i.etype, KeyValue: h[:]}, 0, nil
		}
		et, err := crypto.GetEtype(i.etype)
		if err != nil {
			return types.EncryptionKey{}, 0, fmt.Errorf("Kerberos: %w", err)
		}
		if i.salt == "" {
			i.salt = name.GetSalt(realm)
		}
		if len(i.params) != 8 {
			i.params = et.GetDefaultStringToKeyParams()
		}
		var b []byte
		err = safely("password", func() error {
			b, err = et.StringToKey(k.password, i.salt, i.params)
			return err
		})
		return types.EncryptionKey{KeyType: i.etype, KeyValue: b}, 0, err
	}
	for _, i := range infos {
		var best *serviceKey
		for j := range k.keys {
			s := &k.keys[j]
			if slices.Equal(s.name, name.NameString) && strings.EqualFold(s.realm, realm) && s.key.KeyType == i.etype && (best == nil || s.kvno > best.kvno) {
				best = s
			}
		}
		if best != nil {
			return best.key, int(best.kvno), nil
		}
	}
	return types.EncryptionKey{}, 0, kerberosErrorf("the keytab has no key of %s@%s of a type that the Kerberos server takes: export it anew", name.PrincipalNameString(), realm)
}

// logon gets a ticket-granting ticket with the password or the keytab: the AS exchange. RFC 4120 3.1
func (k *Kerberos) logon(ctx context.Context) (*tgt, error) {
	name, realm := k.client, k.realm
	var infos []etypeInfo
	for _, t := range k.etypes {
		infos = append(infos, etypeInfo{etype: t})
	}
	var key types.EncryptionKey
	proved := false
	for try := 0; try < maxReferrals; try++ {
		req, err := messages.NewASReqForTGT(realm, k.conf, name)
		if err != nil {
			return nil, fmt.Errorf("Kerberos: make AS-REQ: %w", err)
		}
		if proved {
			var kvno int
			if key, kvno, err = k.secretKey(infos, name, realm); err != nil {
				return nil, err
			}
			if err := k.prove(&req, key, kvno); err != nil {
				return nil, err
			}
		}
		b, err := req.Marshal()
		if err != nil {
			return nil, fmt.Errorf("Kerberos: make AS-REQ: %w", err)
		}
		reply, err := k.ask(ctx, realm, b)
		var e messages.KRBError
		switch {
		case err == nil:
			return k.takeAS(reply, &req, realm, name, infos)
		case !errors.As(err, &e):
			return nil, err
		case e.ErrorCode == errorcode.KDC_ERR_PREAUTH_REQUIRED && !proved:
			proved = true
			var pas types.PADataSequence
			if safely("error data", func() error { return pas.Unmarshal(e.EData) }) != nil {
				return nil, malformed("Kerberos: the KDC's demand for pre-authentication")
			}
			if list := k.etypeInfos(pas); len(list) > 0 {
				infos = list
			}
		case e.ErrorCode == errorcode.KDC_ERR_WRONG_REALM && e.CRealm != "" && e.CRealm != realm:
			realm, proved = e.CRealm, false
		default:
			return nil, explainKRB(e, name.PrincipalNameString(), "krbtgt", realm, k.now())
		}
	}
	return nil, kerberosErrorf("the Kerberos servers send %s from realm to realm", name.PrincipalNameString())
}

// prove adds an encrypted timestamp, which shows that we have the key. RFC 4120 5.2.7.2
func (k *Kerberos) prove(req *messages.ASReq, key types.EncryptionKey, kvno int) error {
	now := k.now().UTC()
	stamp := element(tagSequence, explicit(0, derTime(now)), explicit(1, derInt(int64(now.Nanosecond()/1000))))
	e, err := crypto.GetEncryptedData(stamp, key, usageASReqTimestamp, kvno)
	if err != nil {
		return fmt.Errorf("Kerberos: encrypt timestamp: %w", err)
	}
	req.PAData = append(req.PAData, types.PAData{PADataType: patype.PA_ENC_TIMESTAMP, PADataValue: derEncrypted(e)})
	return nil
}

// takeAS checks an AS-REP. RFC 4120 3.1.5
func (k *Kerberos) takeAS(b []byte, req *messages.ASReq, realm string, name types.PrincipalName, infos []etypeInfo) (*tgt, error) {
	var rep messages.ASRep
	if err := whole(b, 0x60|11); err != nil {
		return nil, err
	}
	if safely("AS-REP", func() error { return rep.Unmarshal(bytes.Clone(b)) }) != nil {
		return nil, malformed("Kerberos: AS-REP")
	}
	if !goodType(rep.EncPart.EType, k.rc4) {
		return nil, fmt.Errorf("%w: Kerberos: the KDC's reply has encryption type %d", ErrRefused, rep.EncPart.EType)
	}
	of := func(list []etypeInfo) (same []etypeInfo) {
		for _, i := range list {
			if i.etype == rep.EncPart.EType {
				same = append(same, i)
			}
		}
		return
	}
	use := of(k.etypeInfos(rep.PAData))
	if len(use) == 0 {
		use = of(infos)
	}
	if len(use) == 0 {
		use = []etypeInfo{{etype: rep.EncPart.EType}}
	}
	key, _, err := k.secretKey(use, name, realm)
	if err != nil {
		return nil, err
	}
	plain, err := decrypt(rep.EncPart, key, usageASRep)
	if err != nil {
		return nil, kerberosErrorf("the password or keytab of %s@%s is wrong", name.PrincipalNameString(), realm)
	}
	var part messages.EncKDCRepPart
	if safely("AS-REP", func() error { return part.Unmarshal(plain) }) != nil {
		return nil, malformed("Kerberos: AS-REP")
	}
	s := part.SName.NameString
	switch {
	case part.Nonce != req.ReqBody.Nonce:
		return nil, fmt.Errorf("%w: Kerberos: the KDC answers another request", ErrRefused)
	case len(s) != 2 || s[0] != "krbtgt" || !strings.EqualFold(s[1], realm):
		return nil, fmt.Errorf("%w: Kerberos: the KDC sent a ticket for %s", ErrRefused, part.SName.PrincipalNameString())
	case checkKey(part.Key) != nil || !goodType(part.Key.KeyType, k.rc4):
		return nil, fmt.Errorf("%w: Kerberos: session key of type %d", ErrRefused, part.Key.KeyType)
	case len(rep.CName.NameString) == 0 || rep.CRealm == "":
		return nil, malformed("Kerberos: AS-REP of nobody")
	}
	if d := k.now().Sub(part.AuthTime); d > krb5Skew || -d > krb5Skew {
		return nil, &KerberosError{Sentence: skewSentence("that of the Kerberos server", d), Code: errorcode.KRB_AP_ERR_SKEW}
	}
	return &tgt{ticket: rep.Ticket, key: part.Key, client: rep.CName, crealm: rep.CRealm, realm: s[1], end: part.EndTime}, nil
}

// ticketFor gets a ticket for a server: the TGS exchange, followed from realm to realm. RFC 4120 3.3, RFC 6806 8
func (k *Kerberos) ticketFor(ctx context.Context, t *tgt, spn string) (*serviceTicket, error) {
	want := types.NewPrincipalName(nametype.KRB_NT_SRV_INST, spn)
	host := strings.ToLower(want.NameString[len(want.NameString)-1])
	if r := k.conf.ResolveRealm(host); r != "" && r != t.realm {
		cross, part, err := k.tgs(ctx, t, types.PrincipalName{NameType: nametype.KRB_NT_SRV_INST, NameString: []string{"krbtgt", r}}, spn)
		if err != nil {
			return nil, err
		}
		if n := cross.SName.NameString; len(n) == 2 && n[0] == "krbtgt" {
			t = &tgt{ticket: cross, key: part.Key, client: t.client, crealm: t.crealm, realm: n[1], end: part.EndTime}
		}
	}
	seen := []string{t.realm}
	for range maxReferrals {
		ticket, part, err := k.tgs(ctx, t, want, spn)
		if err != nil {
			return nil, err
		}
		n := part.SName.NameString
		if len(n) == 2 && n[0] == "krbtgt" {
			if slices.Contains(seen, n[1]) {
				break
			}
			seen = append(seen, n[1])
			t = &tgt{ticket: ticket, key: part.Key, client: t.client, crealm: t.crealm, realm: n[1], end: part.EndTime}
			continue
		}
		if !strings.EqualFold(part.SName.PrincipalNameString(), spn) || !strings.EqualFold(ticket.SName.PrincipalNameString(), spn) {
			return nil, fmt.Errorf("%w: Kerberos: the KDC sent a ticket for %s instead of %s", ErrRefused, part.SName.PrincipalNameString(), spn)
		}
		return &serviceTicket{ticket: ticket, key: part.Key, client: t.client, realm: t.crealm, spn: spn, end: part.EndTime}, nil
	}
	return nil, kerberosErrorf("the Kerberos servers send us from realm to realm (%s) and have no ticket for %s", strings.Join(seen, ", "), spn)
}

// tgs is one TGS exchange. spn is for errors.
func (k *Kerberos) tgs(ctx context.Context, t *tgt, want types.PrincipalName, spn string) (ticket messages.Ticket, part messages.EncKDCRepPart, err error) {
	req, err := messages.NewTGSReq(t.client, t.realm, k.conf, t.ticket, t.key, want, false)
	if err != nil {
		return ticket, part, fmt.Errorf("Kerberos: make TGS-REQ: %w", err)
	}
	types.SetFlag(&req.ReqBody.KDCOptions, flags.Canonicalize)
	if err := k.proveTGS(&req, t); err != nil {
		return ticket, part, fmt.Errorf("Kerberos: make TGS-REQ: %w", err)
	}
	b, err := req.Marshal()
	if err != nil {
		return ticket, part, fmt.Errorf("Kerberos: make TGS-REQ: %w", err)
	}
	reply, err := k.ask(ctx, t.realm, b)
	var e messages.KRBError
	switch {
	case errors.As(err, &e):
		return ticket, part, explainKRB(e, t.client.PrincipalNameString(), spn, t.realm, k.now())
	case err != nil:
		return ticket, part, err
	}
	var rep messages.TGSRep
	if err := whole(reply, 0x60|13); err != nil {
		return ticket, part, err
	}
	if safely("TGS-REP", func() error { return rep.Unmarshal(bytes.Clone(reply)) }) != nil {
		return ticket, part, malformed("Kerberos: TGS-REP")
	}
	plain, err := decrypt(rep.EncPart, t.key, usageTGSRep)
	if err != nil {
		return ticket, part, fmt.Errorf("%w: Kerberos: the KDC's reply does not decrypt", ErrRefused)
	}
	if safely("TGS-REP", func() error { return part.Unmarshal(plain) }) != nil {
		return ticket, part, malformed("Kerberos: TGS-REP")
	}
	switch {
	case part.Nonce != req.ReqBody.Nonce:
		err = fmt.Errorf("%w: Kerberos: the KDC answers another request", ErrRefused)
	case checkKey(part.Key) != nil || !goodType(part.Key.KeyType, k.rc4):
		err = fmt.Errorf("%w: Kerberos: session key of type %d", ErrRefused, part.Key.KeyType)
	case len(rep.Ticket.SName.NameString) == 0 || len(part.SName.NameString) == 0:
		err = malformed("Kerberos: ticket for nobody")
	}
	return rep.Ticket, part, err
}

// proveTGS puts an AP-REQ with the checksum of the request into it. RFC 4120 7.2.1; gokrb5 does the same, but takes the realm of the ticket for the client's.
func (k *Kerberos) proveTGS(req *messages.TGSReq, t *tgt) error {
	body, err := req.ReqBody.Marshal()
	if err != nil {
		return err
	}
	et, err := crypto.GetEtype(t.key.KeyType)
	if err != nil {
		return err
	}
	sum, err := checksumOf(t.key, body, usageTGSReqChecksum)
	if err != nil {
		return err
	}
	now := k.now().UTC()
	a := types.Authenticator{
		AVNO: 5, CRealm: t.crealm, CName: t.client, Cksum: types.Checksum{CksumType: et.GetHashID(), Checksum: sum},
		CTime: now.Truncate(time.Second), Cusec: now.Nanosecond() / 1000, SeqNumber: int64(randomSequence()),
	}
	ap, err := messages.NewAPReq(t.ticket, t.key, a)
	if err != nil {
		return err
	}
	b, err := ap.Marshal()
	if err != nil {
		return err
	}
	req.PAData = types.PADataSequence{{PADataType: patype.PA_TGS_REQ, PADataValue: b}}
	return nil
}
