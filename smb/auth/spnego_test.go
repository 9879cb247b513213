package auth

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"vdbridge/smb/ntstatus"
)

// fake is a mechanism of a number of legs, for both sides. Its MICs are the message with a letter.
type fake struct {
	oid      []byte
	legs     int // tokens in all
	seen     int
	required bool
	me, peer string
}

func (f *fake) OID() []byte        { return f.oid }
func (f *fake) SessionKey() []byte { return []byte("key of a fake mechanism") }
func (f *fake) Identity() Identity { return Identity{User: "fake"} }
func (f *fake) MICRequired() bool  { return f.required }

func (f *fake) GetMIC(m []byte) ([]byte, error) { return append([]byte(f.me), m...), nil }

func (f *fake) VerifyMIC(m, mic []byte) error {
	if string(mic) != f.peer+string(m) {
		return errors.New("MIC is wrong")
	}
	return nil
}

func (f *fake) Token(in []byte) ([]byte, bool, error) {
	if in != nil {
		if want := byte(f.seen); len(in) != 1 || in[0] != want {
			return nil, false, malformed("fake: token %x, want %x", in, want)
		}
		f.seen++
	}
	if f.seen == f.legs {
		return nil, true, nil
	}
	out := []byte{byte(f.seen)}
	f.seen++
	return out, f.seen == f.legs, nil
}

func TestMechanisms(t *testing.T) {
	mech := func(oid []byte, legs int, client bool) *fake {
		if client {
			return &fake{oid: oid, legs: legs, me: "c", peer: "s"}
		}
		return &fake{oid: oid, legs: legs, me: "s", peer: "c"}
	}
	for _, legs := range []int{1, 2, 3, 4, 5} {
		for _, withHint := range []bool{false, true} {
			for name, v := range map[string]struct {
				client, server [][]byte
			}{
				"first choice":  {[][]byte{oidKrb5, oidNTLM}, [][]byte{oidKrb5}},
				"second choice": {[][]byte{oidMSKrb5, oidKrb5}, [][]byte{oidKrb5}},
				"other order":   {[][]byte{oidMSKrb5, oidKrb5}, [][]byte{oidKrb5, oidMSKrb5}},
			} {
				var cs []MechInitiator
				for _, o := range v.client {
					cs = append(cs, mech(o, legs, true))
				}
				var ss []MechAcceptor
				for _, o := range v.server {
					ss = append(ss, mech(o, legs, false))
				}
				a := NewAcceptor(ss...)
				var hint []byte
				if withHint {
					hint = a.Hint()
				}
				i, err := NewInitiator(hint, cs...)
				if err != nil {
					t.Fatal(err)
				}
				if err := run(i, a, nil); err != nil {
					t.Errorf("%s, %d legs, hint %v: %v", name, legs, withHint, err)
				}
				if a.Identity().User != "fake" || string(i.SessionKey()) != string(a.SessionKey()) {
					t.Errorf("%s: %v", name, a.Identity())
				}
			}
		}
	}
}

// TestDowngrade takes the client's first choice out of the list on its way to the server.
func TestDowngrade(t *testing.T) {
	for _, legs := range []int{1, 2, 3} {
		i, _ := NewInitiator(nil, &fake{oid: oidKrb5, legs: legs, me: "c", peer: "s"}, NTLM(Credentials{User: "alice", Password: "secret"}, "cifs/x"))
		a := acceptor()
		err := run(i, a, func(n int, toServer bool, token []byte) []byte {
			if n == 0 && toServer {
				t := negTokenInit{mechList: encodeMechs([][]byte{oidNTLM})}
				return t.encode()
			}
			return token
		})
		if err == nil || a.SessionKey() != nil || !strings.Contains(err.Error(), "changed on its way") {
			t.Errorf("%v", err)
		}
	}
}

// TestServerWithoutMIC: a server that does not take our first choice must prove that it saw our list.
func TestServerWithoutMIC(t *testing.T) {
	for _, empty := range []bool{false, true} {
		i, _ := NewInitiator(nil, &fake{oid: oidMSKrb5, legs: 2, me: "c", peer: "s"}, &fake{oid: oidKrb5, legs: 2, me: "c", peer: "s"})
		a := NewAcceptor(&fake{oid: oidKrb5, legs: 2, me: "s", peer: "c"})
		err := run(i, a, func(n int, toServer bool, token []byte) []byte {
			r, err := parseNegTokenResp(token)
			if toServer || err != nil || n == 0 {
				return token
			}
			if r.mic, r.state = nil, stateCompleted; empty {
				return nil
			}
			return r.encode()
		})
		if err == nil || strings.Contains(err.Error(), "only the") {
			t.Errorf("%v", err)
		}
	}
}

// TestClientWithoutMIC takes the mechListMIC off the client's last token. A client that sends a MIC in NTLM sends this one too. [MS-SPNG] 3.1.5.1
func TestClientWithoutMIC(t *testing.T) {
	i, _ := NewInitiator(nil, NTLM(Credentials{User: "alice", Password: "secret"}, "cifs/x"))
	err := run(i, acceptor(), func(n int, toServer bool, token []byte) []byte {
		if !toServer || n == 0 {
			return token
		}
		r, err := parseNegTokenResp(token)
		if err != nil || r.mic == nil {
			t.Fatalf("no mechListMIC: %v", err)
		}
		r.mic = nil
		return r.encode()
	})
	if !errors.Is(err, ntstatus.LogonFailure) {
		t.Errorf("%v", err)
	}
}

func TestNoCommonMechanism(t *testing.T) {
	a := NewAcceptor(&fake{oid: oidKrb5, legs: 1})
	_, err := NewInitiator(a.Hint(), NTLM(Credentials{User: "u"}, "cifs/x"))
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "Kerberos") || !strings.Contains(err.Error(), "NTLM") {
		t.Errorf("%v", err)
	}
	i, _ := NewInitiator(nil, NTLM(Credentials{User: "u"}, "cifs/x"))
	if err := run(i, a, nil); !errors.Is(err, ntstatus.LogonFailure) {
		t.Errorf("%v", err)
	}
	i, _ = NewInitiator(nil, NTLM(Credentials{User: "u"}, "cifs/x"))
	i.Token(nil)
	reject := negTokenResp{state: stateReject}
	if _, _, err := i.Token(reject.encode()); !errors.Is(err, ErrRefused) {
		t.Errorf("%v", err)
	}
	if _, err := NewInitiator([]byte{0x60, 0x00}, NTLM(Credentials{User: "u"}, "cifs/x")); !errors.Is(err, ErrToken) {
		t.Errorf("%v", err)
	}
}

// TestRaw speaks NTLM without SPNEGO, to both sides.
func TestRaw(t *testing.T) {
	c := Credentials{User: "alice", Password: "secret"}
	m := NTLM(c, "cifs/x")
	a := acceptor()
	token, _, err := m.Token(nil)
	if err != nil {
		t.Fatal(err)
	}
	token, done, err := a.Token(token)
	if err != nil || done || !isNTLM(token) {
		t.Fatal(err, done)
	}
	if token, _, err = m.Token(token); err != nil {
		t.Fatal(err)
	}
	if token, done, err = a.Token(token); err != nil || !done || len(token) > 0 {
		t.Fatal(err, done)
	}
	if !bytes.Equal(a.SessionKey(), m.SessionKey()) {
		t.Error("keys differ")
	}

	i, _ := NewInitiator(nil, NTLM(c, "cifs/x"))
	s := AcceptNTLM(AcceptorConfig{Users: testUsers()})
	token, _, _ = i.Token(nil)
	init, err := parseNegTokenInit(token)
	if err != nil {
		t.Fatal(err)
	}
	if token, _, err = s.Token(init.mechToken); err != nil {
		t.Fatal(err)
	}
	if token, done, err = i.Token(token); err != nil || done || !isNTLM(token) {
		t.Fatal(err, done)
	}
	if _, done, err = s.Token(token); err != nil || !done {
		t.Fatal(err, done)
	}
	if _, done, err = i.Token(nil); err != nil || !done {
		t.Fatal(err, done)
	}
	if !bytes.Equal(i.SessionKey(), s.SessionKey()) {
		t.Error("keys differ")
	}
}
