package auth

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"vdbridge/smb/ntstatus"
)

const testRealm = "EXAMPLE.TEST"

// realm is a KDC's knowledge without a KDC.
type realm struct {
	t     testing.TB
	kt    *keytab.Keytab
	file  string
	etype int32
}

func newRealm(t testing.TB, etype int32, names ...string) *realm {
	t.Helper()
	r := &realm{t: t, kt: keytab.New(), etype: etype, file: filepath.Join(t.TempDir(), "keytab")}
	if names == nil {
		names = []string{"cifs/files.example"}
	}
	for _, n := range names {
		if err := r.kt.AddEntry(n, testRealm, "key of "+n, time.Now(), 2, etype); err != nil {
			t.Fatal(err)
		}
	}
	b, err := r.kt.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *realm) service(cfg KerberosServiceConfig) *KerberosService {
	r.t.Helper()
	cfg.Keytab = r.file
	cfg.AllowRC4 = r.etype == etypeID.RC4_HMAC
	s, err := NewKerberosService(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// issue makes a ticket of a user for a server in the keytab.
func (r *realm) issue(user, crealm, spn string, from, till time.Time) *serviceTicket {
	r.t.Helper()
	cname := types.NewPrincipalName(nametype.KRB_NT_PRINCIPAL, user)
	t, key, err := messages.NewTicket(cname, crealm, types.NewPrincipalName(nametype.KRB_NT_SRV_INST, spn), testRealm, types.NewKrbFlags(), r.kt, r.etype, 2,
		from.UTC(), from.UTC(), till.UTC(), till.UTC())
	if err != nil {
		r.t.Fatal(err)
	}
	if r.etype == etypeID.AES256_CTS_HMAC_SHA384_192 { // see keySizes
		r.t.Fatal("gokrb5 makes no keys of this type")
	}
	return &serviceTicket{ticket: t, key: key, client: cname, realm: crealm, spn: spn, end: till}
}

func (r *realm) alice() *serviceTicket {
	return r.issue("alice", testRealm, "cifs/files.example", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
}

func initiator(t *serviceTicket) *krb5Initiator { return &krb5Initiator{t: t, now: time.Now} }

var testTypes = []int32{etypeID.AES128_CTS_HMAC_SHA1_96, etypeID.AES256_CTS_HMAC_SHA1_96, etypeID.AES128_CTS_HMAC_SHA256_128, etypeID.RC4_HMAC}

func TestKerberosExchange(t *testing.T) {
	for _, et := range testTypes {
		r := newRealm(t, et)
		s := r.service(KerberosServiceConfig{})
		ticket := r.alice()
		for _, hint := range []bool{false, true} {
			a := NewAcceptor(append(s.Mechanisms(), AcceptNTLM(AcceptorConfig{Users: testUsers()}))...)
			var h []byte
			if hint {
				h = a.Hint()
			}
			i, err := NewInitiator(h, initiator(ticket))
			if err != nil {
				t.Fatal(err)
			}
			if err := run(i, a, nil); err != nil {
				t.Fatalf("type %d: %v", et, err)
			}
			if !bytes.Equal(i.SessionKey(), a.SessionKey()) || len(a.SessionKey()) != keySizes[et] {
				t.Errorf("type %d: keys %x and %x", et, i.SessionKey(), a.SessionKey())
			}
			if bytes.Equal(i.SessionKey(), ticket.key.KeyValue) {
				t.Error("the session key is the ticket's, not a fresh one")
			}
			want := Identity{User: "alice", Domain: testRealm}
			if i.Identity() != want || a.Identity() != want {
				t.Errorf("%v, %v", i.Identity(), a.Identity())
			}
			if e := a.(Expirer).Expiry(); e.Unix() != ticket.end.Unix() {
				t.Errorf("ends at %v, want %v", e, ticket.end)
			}
		}
	}
}

// other is Kerberos under another identifier, so that the server does not get its first choice and a MIC is needed.
type other struct {
	*krb5Initiator
	oid []byte
}

func (o other) OID() []byte { return o.oid }

// TestKerberosMIC: the client's first choice is unknown to the server, so both sides protect the list.
func TestKerberosMIC(t *testing.T) {
	for _, et := range testTypes {
		r := newRealm(t, et)
		s := r.service(KerberosServiceConfig{})
		for name, change := range map[string]func(n int, toServer bool, b []byte) []byte{
			"as it is": nil,
			"first choice taken out": func(n int, toServer bool, b []byte) []byte {
				if n == 0 && toServer {
					init := negTokenInit{mechList: encodeMechs([][]byte{oidNegoEx, oidKrb5, oidNTLM})}
					return init.encode()
				}
				return b
			},
			"MIC changed on the way to the client": func(n int, toServer bool, b []byte) []byte {
				if p, err := parseNegTokenResp(b); err == nil && !toServer && p.mic != nil {
					p.mic[len(p.mic)-1] ^= 1
					return p.encode()
				}
				return b
			},
			"MIC changed on the way to the server": func(n int, toServer bool, b []byte) []byte {
				if p, err := parseNegTokenResp(b); err == nil && toServer && p.mic != nil {
					p.mic[len(p.mic)-9] ^= 1
					return p.encode()
				}
				return b
			},
			"the server's own MIC sent back": func() func(n int, toServer bool, b []byte) []byte {
				var mic []byte
				return func(n int, toServer bool, b []byte) []byte {
					p, err := parseNegTokenResp(b)
					if err != nil || p.mic == nil {
						return b
					}
					if !toServer {
						mic = p.mic
					} else if mic != nil {
						p.mic = mic
						return p.encode()
					}
					return b
				}
			}(),
		} {
			i, err := NewInitiator(nil, &fake{oid: oidNegoEx, legs: 2, me: "c", peer: "s"}, other{initiator(r.alice()), oidKrb5})
			if err != nil {
				t.Fatal(err)
			}
			a := NewAcceptor(s.Mechanisms()...)
			mics := 0
			err = run(i, a, func(n int, toServer bool, b []byte) []byte {
				if p, err := parseNegTokenResp(b); err == nil && p.mic != nil {
					mics++
				}
				if change != nil {
					return change(n, toServer, b)
				}
				return b
			})
			if (err == nil) != (change == nil) {
				t.Errorf("type %d, %s: %v", et, name, err)
			}
			if change == nil && mics != 2 {
				t.Errorf("type %d: %d MICs", et, mics)
			}
		}
	}
}

// TestWindowsIdentifier: servers choose Kerberos by its second identifier, clients offer it.
func TestWindowsIdentifier(t *testing.T) {
	r := newRealm(t, etypeID.AES256_CTS_HMAC_SHA1_96)
	s := r.service(KerberosServiceConfig{})
	for name, v := range map[string]struct {
		hint    [][]byte
		clients []MechInitiator
		change  bool
	}{
		"server knows only the second": {hint: [][]byte{oidMSKrb5, oidNTLM}, clients: []MechInitiator{initiator(r.alice())}},
		"server answers with it":       {clients: []MechInitiator{initiator(r.alice())}, change: true},
		"client offers it first":       {clients: []MechInitiator{other{initiator(r.alice()), oidMSKrb5}, NTLM(Credentials{User: "alice"}, "cifs/x")}},
	} {
		var hint []byte
		if v.hint != nil {
			hint = encodeHint(v.hint)
		}
		i, err := NewInitiator(hint, v.clients...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := run(i, NewAcceptor(s.Mechanisms()...), func(n int, toServer bool, b []byte) []byte {
			if p, err := parseNegTokenResp(b); err == nil && !toServer && v.change {
				p.mech = oidMSKrb5
				return p.encode()
			}
			return b
		}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKerberosRefused(t *testing.T) {
	r := newRealm(t, etypeID.AES256_CTS_HMAC_SHA1_96, "cifs/files.example", "http/files.example")
	foreign := newRealm(t, etypeID.AES256_CTS_HMAC_SHA1_96, "cifs/files.example")
	foreign.kt = keytab.New()
	if err := foreign.kt.AddEntry("cifs/files.example", testRealm, "another key", time.Now(), 2, foreign.etype); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	early, late := now.Add(-time.Hour), now.Add(time.Hour)
	for name, v := range map[string]struct {
		ticket *serviceTicket
		clock  time.Duration // how far the client's clock is ahead
		change func(*krb5Initiator, []byte) []byte
		allow  []string
		want   string
		status ntstatus.Status
	}{
		"good":                 {ticket: r.alice()},
		"clock 4 minutes fast": {ticket: r.alice(), clock: 4 * time.Minute},
		"clock 10 minutes fast": {ticket: r.alice(), clock: 10 * time.Minute, want: "clock of the client of alice@EXAMPLE.TEST differs by -10m0s",
			status: ntstatus.TimeDifferenceAtDC},
		"clock 10 minutes slow": {ticket: r.alice(), clock: -10 * time.Minute, want: "differs by 10m0s", status: ntstatus.TimeDifferenceAtDC},
		"expired":               {ticket: r.issue("alice", testRealm, "cifs/files.example", early.Add(-time.Hour), early), clock: -2 * time.Hour, want: "has expired"},
		"not yet valid":         {ticket: r.issue("alice", testRealm, "cifs/files.example", late, late.Add(time.Hour)), want: "not valid yet"},
		"other service":         {ticket: r.issue("alice", testRealm, "http/files.example", early, late), want: "http/files.example@EXAMPLE.TEST, which is no file server"},
		"other key":             {ticket: foreign.alice(), want: "no key in the keytab opens the ticket for cifs/files.example@EXAMPLE.TEST"},
		"other realm":           {ticket: r.issue("alice", "ELSEWHERE.TEST", "cifs/files.example", early, late), want: "alice@ELSEWHERE.TEST is of another realm"},
		"other realm, allowed":  {ticket: r.issue("alice", "ELSEWHERE.TEST", "cifs/files.example", early, late), allow: []string{"alice@ELSEWHERE.TEST"}},
		"not allowed":           {ticket: r.alice(), allow: []string{"bob"}, want: "alice@EXAMPLE.TEST is not among those"},
		"allowed":               {ticket: r.alice(), allow: []string{"bob", "alice"}},
		"a service as user":     {ticket: r.issue("host/x", testRealm, "cifs/files.example", early, late), want: "is no user"},
		"authenticator of another": {ticket: func() *serviceTicket {
			s := r.alice()
			s.client = types.NewPrincipalName(nametype.KRB_NT_PRINCIPAL, "root")
			return s
		}(), want: "ticket of alice@EXAMPLE.TEST with an authenticator of root@EXAMPLE.TEST"},
		"authenticator of another realm": {ticket: func() *serviceTicket { s := r.alice(); s.realm = "X.TEST"; return s }(), want: "authenticator of alice@X.TEST"},
		"authenticator changed":          {ticket: r.alice(), change: func(_ *krb5Initiator, b []byte) []byte { b[len(b)-1] ^= 1; return b }, want: "authenticator of alice@EXAMPLE.TEST does not decrypt"},
		"another token":                  {ticket: r.alice(), change: func(*krb5Initiator, []byte) []byte { return frameKrb5(tokenAPRep, nil) }, want: "where AP-REQ was expected", status: ntstatus.InvalidParameter},
		"no token":                       {ticket: r.alice(), change: func(*krb5Initiator, []byte) []byte { return []byte{} }, want: "ASN.1", status: ntstatus.InvalidParameter},
	} {
		s := r.service(KerberosServiceConfig{Allow: v.allow})
		i := initiator(v.ticket)
		i.now = func() time.Time { return time.Now().Add(v.clock) }
		out, _, err := i.Token(nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if v.change != nil {
			out = v.change(i, out)
		}
		m := s.Mechanisms()[1]
		rep, done, err := m.Token(out)
		if v.want == "" {
			if err != nil || !done {
				t.Errorf("%s: %v", name, err)
			} else if _, done, err := i.Token(rep); err != nil || !done {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		status := v.status
		if status == 0 {
			status = ntstatus.LogonFailure
		}
		if err == nil || !strings.Contains(err.Error(), v.want) || !errors.Is(err, status) {
			t.Errorf("%s: %v; want %q", name, err, v.want)
		}
		if rep != nil || m.SessionKey() != nil {
			t.Errorf("%s: something is left after the refusal", name)
		}
	}
}

func TestKerberosReplay(t *testing.T) {
	r := newRealm(t, etypeID.AES128_CTS_HMAC_SHA1_96)
	s := r.service(KerberosServiceConfig{})
	i := initiator(r.alice())
	req, _, err := i.Token(nil)
	if err != nil {
		t.Fatal(err)
	}
	rep, _, err := s.Mechanisms()[0].Token(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Mechanisms()[1].Token(req); !errors.Is(err, ntstatus.LogonFailure) || !strings.Contains(err.Error(), "replayed") {
		t.Errorf("replay: %v", err)
	}
	// The same answer to another logon is no proof.
	j := initiator(i.t)
	if _, _, err := j.Token(nil); err != nil {
		t.Fatal(err)
	}
	j.ctime = j.ctime.Add(time.Second)
	if _, _, err := j.Token(rep); !errors.Is(err, ErrRefused) {
		t.Errorf("AP-REP of another logon: %v", err)
	}
	if _, done, err := i.Token(rep); err != nil || !done {
		t.Error(err)
	}
	if _, _, err := i.Token(rep); !errors.Is(err, ErrToken) {
		t.Errorf("token after the end: %v", err)
	}

	c := newReplayCache(time.Minute)
	now := time.Now()
	if !c.add([]byte("a"), now) || c.add([]byte("a"), now.Add(time.Second)) || !c.add([]byte("a"), now.Add(3*time.Minute)) {
		t.Error("replay cache")
	}
	if c.add([]byte("b"), now.Add(10*time.Minute)); len(c.seen) != 1 {
		t.Errorf("%d left over", len(c.seen))
	}
}

// TestKerberosPrefixes: every prefix and every changed byte of the tokens is refused by both sides.
func TestKerberosPrefixes(t *testing.T) {
	r := newRealm(t, etypeID.AES256_CTS_HMAC_SHA1_96)
	s := r.service(KerberosServiceConfig{})
	i := initiator(r.alice())
	req, _, err := i.Token(nil)
	if err != nil {
		t.Fatal(err)
	}
	accept := func(b []byte) ([]byte, error) {
		rep, _, err := s.Mechanisms()[0].Token(b)
		return rep, err
	}
	for n := range req {
		if _, err := accept(req[:n]); err == nil {
			t.Fatalf("AP-REQ: the first %d of %d bytes are taken", n, len(req))
		}
	}
	if _, err := accept(append(bytes.Clone(req), 0)); err == nil {
		t.Error("AP-REQ with a byte behind it is taken")
	}
	rep, err := accept(req)
	if err != nil {
		t.Fatal(err)
	}
	fresh := func() *krb5Initiator {
		j := *i
		return &j
	}
	for n := range rep {
		if _, _, err := fresh().Token(rep[:n]); err == nil {
			t.Fatalf("AP-REP: the first %d of %d bytes are taken", n, len(rep))
		}
	}
	for n := range rep {
		b := bytes.Clone(rep)
		b[n] ^= 0x40
		if j := fresh(); true {
			if _, _, err := j.Token(b); err == nil {
				t.Errorf("AP-REP with byte %d changed is taken", n)
			}
		}
	}
	if _, _, err := fresh().Token(nil); !errors.Is(err, ErrRefused) {
		t.Errorf("no AP-REP: %v", err)
	}
	if _, done, err := fresh().Token(rep); err != nil || !done {
		t.Error(err)
	}
}

func TestServerErrors(t *testing.T) {
	r := newRealm(t, etypeID.AES128_CTS_HMAC_SHA1_96)
	for code, want := range map[int32]string{37: "set the clock", 41: "cannot decrypt the ticket for cifs/files.example", 34: "replay", 60: "Kerberos: (60)"} {
		i := initiator(r.alice())
		if _, _, err := i.Token(nil); err != nil {
			t.Fatal(err)
		}
		e := messages.NewKRBError(i.t.ticket.SName, testRealm, code, "")
		e.STime = time.Now().UTC().Add(10 * time.Minute)
		b, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = i.Token(frameKrb5(tokenKRBError, b))
		var ke *KerberosError
		if !errors.As(err, &ke) || ke.Code != code || !strings.Contains(err.Error(), want) {
			t.Errorf("%d: %v", code, err)
		}
		if code == 37 && !strings.Contains(err.Error(), " behind that") {
			t.Error(err)
		}
	}
}

// cacheBytes is a file of tickets as kinit writes it.
func cacheBytes() []byte {
	var b []byte
	be := binary.BigEndian
	str := func(s string) { b = append(be.AppendUint32(b, uint32(len(s))), s...) }
	name := func(realm string, parts ...string) {
		b = be.AppendUint32(be.AppendUint32(b, 1), uint32(len(parts)))
		str(realm)
		for _, p := range parts {
			str(p)
		}
	}
	b = append(b, 5, 4, 0, 12, 0, 1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0)
	name(testRealm, "alice")
	for _, server := range [][]string{{"krb5_ccache_conf_data", "x"}, {"krbtgt", testRealm}, {"cifs", "files.example"}} {
		name(testRealm, "alice")
		realm := testRealm
		if server[1] == "x" {
			realm = "X-CACHECONF:"
		}
		name(realm, server...)
		b = be.AppendUint16(b, 17)
		str(strings.Repeat("k", 16))
		for _, t := range []uint32{1000, 1000, 4000000000, 0} {
			b = be.AppendUint32(b, t)
		}
		b = append(b, 0, 0, 0, 0, 0)
		b = append(b, 0, 0, 0, 1, 0, 2, 0, 0, 0, 1, 9) // one address
		b = append(b, 0, 0, 0, 0)
		str("ticket")
		str("")
	}
	return b
}

func TestCCache(t *testing.T) {
	b := cacheBytes()
	c, err := parseCCache(b)
	if err != nil {
		t.Fatal(err)
	}
	if c.client.PrincipalNameString() != "alice" || c.realm != testRealm || len(c.tickets) != 2 {
		t.Errorf("%+v", c)
	}
	if f := c.find([]string{"CIFS", "files.EXAMPLE"}, "", false); f == nil || string(f.ticket) != "ticket" || f.end.Unix() != 4000000000 {
		t.Errorf("%+v", f)
	}
	if c.find([]string{"cifs", "other"}, "", false) != nil {
		t.Error("found a ticket that is not there")
	}
	whole := map[int]bool{}
	for n := range b {
		c, err := parseCCache(b[:n])
		if err == nil {
			whole[len(c.tickets)] = true // cut between two tickets
		}
	}
	if len(whole) != 2 {
		t.Errorf("prefixes that are taken: %v", whole)
	}

	dir := t.TempDir()
	for name, want := range map[string]string{
		"": fmt.Sprintf("/tmp/krb5cc_%d", 7), "FILE:/x": "/x", "/x:y": "/x:y", "/x": "/x", "DIR::" + dir + "/tktX": dir + "/tktX", "DIR:" + dir: dir + "/tkt", "KEYRING:session:x": "KEYRING:session:x", "KCM:": "KCM:", "KCM:7:x": "KCM:7:x",
	} {
		if got, err := ccachePath(name, 7); err != nil || got != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for _, name := range []string{"API:", "MEMORY:x", "WHAT:x"} {
		if _, err := ccachePath(name, 7); err == nil || !strings.Contains(err.Error(), "KRB5CCNAME") {
			t.Errorf("%s: %v", name, err)
		}
	}
	os.WriteFile(dir+"/primary", []byte("../../etc/passwd\n"), 0o600)
	if _, err := ccachePath("DIR:"+dir, 7); err == nil {
		t.Error("a primary outside of the directory")
	}
}

// TestKerberosConfig: what is wrong with configuration, keytab and tickets is said in words, and secrets are not.
func TestKerberosConfig(t *testing.T) {
	r := newRealm(t, etypeID.AES256_CTS_HMAC_SHA1_96, "alice", "http/x")
	dir := t.TempDir()
	conf := filepath.Join(dir, "krb5.conf")
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	write("krb5.conf", "[libdefaults]\n default_realm = "+testRealm+"\n dns_lookup_kdc = no\n default_ccache_name = KEYRING:persistent:%{uid}\n[realms]\n "+testRealm+" = {\n  kdc = 127.0.0.1:1\n }\n")
	env := func(string) string { return "" }
	good, err := r.kt.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]struct {
		cfg  KerberosConfig
		want string
	}{
		"no such conf":     {KerberosConfig{Conf: dir + "/none"}, "krb5.conf cannot be read"},
		"bad conf":         {KerberosConfig{Conf: write("bad", "[libdefaults]\nno equals sign\n")}, "libdefaults"},
		"only old types":   {KerberosConfig{Conf: write("old", "[libdefaults]\npermitted_enctypes = arcfour-hmac\n")}, "permits no encryption type"},
		"keyring":          {KerberosConfig{Conf: conf}, "KEYRING:persistent:"},
		"no keytab":        {KerberosConfig{Conf: conf, Keytab: dir + "/none"}, "keytab cannot be read"},
		"damaged keytab":   {KerberosConfig{Conf: conf, Keytab: write("damaged", string(good[:len(good)-40])+"Sesame open")}, "no keytab"},
		"other user":       {KerberosConfig{Conf: conf, Keytab: r.file, User: "bob"}, "no keys of bob; it has keys of alice@EXAMPLE.TEST, http/x@EXAMPLE.TEST"},
		"no user":          {KerberosConfig{Conf: conf, Password: "geheim"}, "--user"},
		"no realm":         {KerberosConfig{Conf: write("empty", ""), Password: "geheim", User: "alice"}, "realm of alice"},
		"no tickets":       {KerberosConfig{Conf: conf, CCache: dir + "/none"}, "run kinit"},
		"damaged tickets":  {KerberosConfig{Conf: conf, CCache: write("cc", "what")}, "no file of tickets"},
		"others' tickets":  {KerberosConfig{Conf: conf, CCache: write("cc2", string(cacheBytes())), User: "bob"}, "tickets in " + dir + "/cc2 are of alice@EXAMPLE.TEST, not of bob"},
		"KDC down":         {KerberosConfig{Conf: conf, Password: "geheim", User: "alice"}, "no Kerberos server of the realm EXAMPLE.TEST answers"},
		"unknown realm":    {KerberosConfig{Conf: conf, Password: "geheim", User: "alice@NOWHERE.TEST"}, "no Kerberos server of the realm NOWHERE.TEST"},
		"unreadable cache": {KerberosConfig{Conf: conf, CCache: dir}, "damaged|cannot be read"},
	} {
		v.cfg.Getenv = env
		k, err := NewKerberos(v.cfg)
		if err == nil {
			_, err = k.Mechanism(context.Background(), "cifs/files.example")
		}
		var ke *KerberosError
		found := false
		for _, w := range strings.Split(v.want, "|") {
			found = found || err != nil && strings.Contains(err.Error(), w)
		}
		if !found || !errors.As(err, &ke) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if ke.Unreachable != (name == "KDC down") {
			t.Errorf("%s: unreachable %v", name, ke.Unreachable)
		}
		if s := fmt.Sprintf("%v %+v %#v", err, k, k); strings.Contains(s, "geheim") || strings.Contains(s, "Sesame") {
			t.Errorf("%s: a secret shows: %s", name, s)
		}
	}
	if _, err := newKerberosService(KerberosServiceConfig{Keytab: r.file}, mustKeys(t, r.file)); err == nil || !strings.Contains(err.Error(), "no AES key of cifs/HOST or host/HOST; it has alice@EXAMPLE.TEST") {
		t.Errorf("server with a user's keytab: %v", err)
	}
	for _, host := range []string{"", "127.0.0.1", "::1", "[fe80::1]", "a/b"} {
		if _, err := SPN(host); err == nil {
			t.Errorf("SPN of %q", host)
		}
	}
	if spn, err := SPN("files.example."); err != nil || spn != "cifs/files.example" {
		t.Errorf("%s, %v", spn, err)
	}
}

func mustKeys(t *testing.T, file string) []serviceKey {
	t.Helper()
	keys, err := readKeytab(file)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func FuzzKerberosTokens(f *testing.F) {
	r := newRealm(f, etypeID.AES128_CTS_HMAC_SHA1_96)
	s := r.service(KerberosServiceConfig{})
	i := initiator(r.alice())
	req, _, err := i.Token(nil)
	if err != nil {
		f.Fatal(err)
	}
	rep, err := encodeAPRep(apRep{ctime: i.ctime, cusec: i.cusec, subkey: newSubkey(i.t.key), seq: 5}, i.t.key)
	if err != nil {
		f.Fatal(err)
	}
	e := messages.NewKRBError(i.t.ticket.SName, testRealm, 37, "text")
	eb, _ := e.Marshal()
	good := *i
	good.established = true
	mic, _ := good.GetMIC([]byte("list"))
	for _, b := range [][]byte{req, rep, frameKrb5(tokenKRBError, eb), mic, cacheBytes(), nil} {
		f.Add(b)
	}
	if b, err := os.ReadFile(r.file); err == nil {
		f.Add(b)
	}
	rnd := rand.New(rand.NewSource(1))
	for range 20 {
		b := bytes.Clone(req)
		b[rnd.Intn(60)] ^= byte(1 << rnd.Intn(8))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := s.Mechanisms()[0]
		if _, done, err := m.Token(b); done != (err == nil) {
			t.Fatal(done, err)
		}
		j := *i
		_, _, _ = j.Token(b)
		ok := good
		_ = ok.VerifyMIC([]byte("list"), b)
		_, _ = parseCCache(b)
		_, _ = parseEncAPRepPart(b)
		_, _ = parseKeytab("x", b)
	})
}
