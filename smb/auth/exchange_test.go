package auth

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"vdbridge/smb/ntstatus"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Map(func(r rune) rune {
		if r == ' ' || r == '\n' || r == '\t' {
			return -1
		}
		return r
	}, s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func testUsers() *Users {
	return NewUsers(map[string]string{"alice": "secret", "Bob": "pässwörd€😀"})
}

// run passes tokens between both sides until both are done, through change if it is not nil.
func run(i Initiator, a Acceptor, change func(n int, toServer bool, token []byte) []byte) error {
	token, _, err := i.Token(nil)
	if err != nil {
		return err
	}
	done, aDone := false, false
	for n := 0; n < 10; n++ {
		if change != nil {
			token = change(n, true, bytes.Clone(token))
		}
		if token, aDone, err = a.Token(token); err != nil {
			return err
		}
		if change != nil {
			token = change(n, false, bytes.Clone(token))
		}
		if token, done, err = i.Token(token); err != nil {
			return err
		}
		if done != aDone {
			if done {
				return errors.New("only the initiator is done")
			}
			return errors.New("only the acceptor is done")
		}
		if done {
			if len(token) > 0 {
				return errors.New("a token is left over")
			}
			return nil
		}
	}
	return errors.New("no end")
}

func acceptor() Acceptor {
	return NewAcceptor(AcceptNTLM(AcceptorConfig{Users: testUsers(), Name: "DISKS", DNSName: "disks.example"}))
}

func TestExchange(t *testing.T) {
	for _, c := range []Credentials{
		{User: "alice", Password: "secret"},
		{User: "ALICE", Domain: "any", Password: "secret", Workstation: "HERE"},
		{User: "alice@any.example", Password: "secret"},
		{User: "bob", Password: "pässwörd€😀"},
		{User: "alice", NTHash: unhex(t, "878d8014606cda29677a44efa1353fc7")},
	} {
		a := acceptor()
		for _, hint := range [][]byte{a.Hint(), nil} {
			a := acceptor()
			i, err := NewInitiator(hint, NTLM(c, "cifs/disks.example"))
			if err != nil {
				t.Fatal(err)
			}
			if err := run(i, a, nil); err != nil {
				t.Fatalf("%v: %v", c, err)
			}
			if len(i.SessionKey()) != 16 || !bytes.Equal(i.SessionKey(), a.SessionKey()) {
				t.Errorf("%v: keys %x and %x", c, i.SessionKey(), a.SessionKey())
			}
			if a.Identity() != i.Identity() || a.Identity().User != c.User {
				t.Errorf("%v: identities %#v and %#v", c, i.Identity(), a.Identity())
			}
			if _, _, err := a.Token(nil); !errors.Is(err, ErrToken) {
				t.Errorf("token after the end: %v", err)
			}
		}
	}
}

func TestWrongPassword(t *testing.T) {
	var texts []string
	for _, c := range []Credentials{
		{User: "alice", Password: "Secret"},
		{User: "alice", Password: ""},
		{User: "carol", Password: "secret"},
		{User: "alice@a", Domain: "b", Password: "secret "},
		{Anonymous: true},
	} {
		a := acceptor()
		i, _ := NewInitiator(nil, NTLM(c, "cifs/x"))
		err := run(i, a, nil)
		if !errors.Is(err, ntstatus.LogonFailure) {
			t.Errorf("%v: %v", c, err)
		}
		if a.SessionKey() != nil || a.Identity() != (Identity{}) {
			t.Errorf("%v: acceptor tells a key or an identity", c)
		}
		texts = append(texts, err.Error())
	}
	if strings.Replace(texts[0], "alice", "carol", 1) != texts[2] {
		t.Errorf("an unknown user differs from a wrong password: %q, %q", texts[0], texts[2])
	}
}

func TestAnonymous(t *testing.T) {
	a := NewAcceptor(AcceptNTLM(AcceptorConfig{Users: testUsers(), AllowAnonymous: true}))
	i, _ := NewInitiator(a.Hint(), NTLM(Credentials{Anonymous: true, User: "x"}, "cifs/x"))
	if err := run(i, a, nil); err != nil {
		t.Fatal(err)
	}
	if id := a.Identity(); !id.Anonymous || id.User != "" || !i.Identity().Anonymous || !bytes.Equal(a.SessionKey(), i.SessionKey()) {
		t.Errorf("%#v", id)
	}
	i, err := NewInitiator(nil, NTLM(Credentials{}, "cifs/x"))
	if err == nil {
		_, _, err = i.Token(nil)
	}
	if !errors.Is(err, ErrRefused) {
		t.Errorf("without a user name: %v", err)
	}
}

// TestTampered changes every byte of every token. Whatever happens, both sides must not end with success while they disagree about the key, and a
// change must be found, even where it would not matter.
func TestTampered(t *testing.T) {
	lengths := map[int]int{}
	count := func(n int, toServer bool, token []byte) []byte {
		if toServer {
			lengths[n] = len(token)
		} else {
			lengths[100+n] = len(token)
		}
		return token
	}
	c := Credentials{User: "alice", Password: "secret"}
	i, _ := NewInitiator(nil, NTLM(c, "cifs/x"))
	if err := run(i, acceptor(), count); err != nil {
		t.Fatal(err)
	}
	for step, length := range lengths {
		for at := range length {
			for _, bit := range []byte{1, 0x80} {
				a := acceptor()
				i, _ := NewInitiator(nil, NTLM(c, "cifs/x"))
				err := run(i, a, func(n int, toServer bool, token []byte) []byte {
					if toServer && n == step || !toServer && n+100 == step {
						if at < len(token) {
							token[at] ^= bit
						}
					}
					return token
				})
				// The server's MIC may be missing when our first choice was taken; then its tag can be changed too.
				if err == nil && !(step == 101 && at == 9 && bit == 1) {
					t.Errorf("step %d, byte %d, bit %#x: not noticed", step, at, bit)
				}
			}
		}
	}
}

func TestTruncated(t *testing.T) {
	c := Credentials{User: "alice", Password: "secret"}
	for step := range 2 {
		for _, toServer := range []bool{true, false} {
			for cut := 0; ; cut++ {
				whole := false
				i, _ := NewInitiator(nil, NTLM(c, "cifs/x"))
				err := run(i, acceptor(), func(n int, to bool, token []byte) []byte {
					if n == step && to == toServer {
						if cut >= len(token) {
							whole = true
							return token
						}
						return token[:cut]
					}
					return token
				})
				if whole {
					if err != nil {
						t.Error(err)
					}
					break
				}
				// The last token of the server may be missing altogether, when the reply says that all is well.
				if err == nil && !(step == 1 && !toServer && cut == 0) {
					t.Errorf("step %d, to server %v: %d bytes are taken for the whole", step, toServer, cut)
				}
			}
		}
	}
}

func TestExpired(t *testing.T) {
	m := AcceptNTLM(AcceptorConfig{Users: testUsers()}).(*ntlmAcceptor)
	now := time.Now()
	m.now = func() time.Time { return now }
	i, _ := NewInitiator(nil, NTLM(Credentials{User: "alice", Password: "secret"}, "cifs/x"))
	err := run(i, NewAcceptor(m), func(n int, toServer bool, token []byte) []byte {
		if n == 1 && toServer {
			now = now.Add(defaultChallengeLife + time.Second)
		}
		return token
	})
	if !errors.Is(err, ntstatus.LogonFailure) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("%v", err)
	}
}

// TestReplay presents an AUTHENTICATE token that was good once to another acceptor, and a second time to the same.
func TestReplay(t *testing.T) {
	var first, second []byte
	i, _ := NewInitiator(nil, NTLM(Credentials{User: "alice", Password: "secret"}, "cifs/x"))
	a := acceptor()
	err := run(i, a, func(n int, toServer bool, token []byte) []byte {
		if toServer && n == 0 {
			first = token
		} else if toServer {
			second = token
		}
		return token
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Token(second); err == nil {
		t.Error("the same acceptor took the token twice")
	}
	b := acceptor()
	if _, _, err := b.Token(first); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Token(second); !errors.Is(err, ntstatus.LogonFailure) {
		t.Errorf("another acceptor: %v", err)
	}
}

// TestUnknownUserNeverMatches: even if the hash that stands in for an unknown user's were guessed.
func TestUnknownUserNeverMatches(t *testing.T) {
	m := AcceptNTLM(AcceptorConfig{Users: testUsers()}).(*ntlmAcceptor)
	m.random = func(b []byte) { clear(b) }
	i, _ := NewInitiator(nil, NTLM(Credentials{User: "carol", NTHash: make([]byte, 16)}, "cifs/x"))
	if err := run(i, NewAcceptor(m), nil); !errors.Is(err, ntstatus.LogonFailure) {
		t.Errorf("%v", err)
	}
}
