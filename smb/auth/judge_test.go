package auth

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// helper is Samba's ntlm_auth speaking to us over its standard input and output: a word, and possibly a token in base64.
type helper struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
}

// samba starts ntlm_auth.
func samba(t *testing.T, args ...string) *helper {
	t.Helper()
	path, err := exec.LookPath("ntlm_auth")
	if err != nil {
		if os.Getenv("VDBRIDGE_REQUIRE_TOOLS") == "1" {
			t.Fatal("ntlm_auth is missing; install the Debian package winbind")
		}
		t.Skip("SKIPPED: Samba's ntlm_auth judges our NTLM, and it is missing; install the Debian package winbind")
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "smb.conf")
	text := "[global]\nworkgroup = TESTDOM\nnetbios name = JUDGE\n"
	for _, o := range []string{"private dir", "lock directory", "state directory", "cache directory", "pid directory"} {
		text += o + " = " + dir + "\n"
	}
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(path, append(args, "--configfile="+conf)...)
	h := &helper{t: t}
	if h.in, err = c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.out = bufio.NewReader(out)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.in.Close()
		c.Wait()
		if t.Failed() {
			t.Logf("ntlm_auth: %s", stderr.String())
		}
	})
	return h
}

// say sends a word and a token, and returns those of the reply.
func (h *helper) say(word string, token []byte) (string, []byte) {
	h.t.Helper()
	line := word
	if token != nil {
		line += " " + base64.StdEncoding.EncodeToString(token)
	}
	if _, err := io.WriteString(h.in, line+"\n"); err != nil {
		h.t.Fatal(err)
	}
	reply, err := h.out.ReadString('\n')
	if err != nil {
		h.t.Fatalf("after %q: %v", line, err)
	}
	f := strings.Fields(reply)
	if len(f) < 2 {
		return strings.TrimSpace(reply), nil
	}
	b, err := base64.StdEncoding.DecodeString(f[1])
	if err != nil {
		b = []byte(strings.Join(f[1:], " "))
	}
	return f[0], b
}

// key asks for the session key.
func (h *helper) key() []byte {
	h.t.Helper()
	word, k := h.say("GK", nil)
	if word != "GK" {
		h.t.Fatalf("session key: %s %q", word, k)
	}
	return k
}

// TestSambaClient lets Samba's client log in with our acceptor.
func TestSambaClient(t *testing.T) {
	for _, protocol := range []string{"ntlmssp-client-1", "gss-spnego-client"} {
		for _, v := range []struct {
			user, domain, password string
			good                   bool
		}{{"alice", "DOM", "secret", true}, {"bob", "x", "pässwörd€😀", true}, {"alice", "DOM", "wrong", false}, {"carol", "DOM", "secret", false}} {
			h := samba(t, "--helper-protocol="+protocol, "--username="+v.user, "--domain="+v.domain, "--password="+v.password,
				"--target-hostname=disks.example", "--target-service=cifs")
			if word, _ := h.say("SF NTLMSSP_FEATURE_SESSION_KEY", nil); word != "OK" {
				t.Fatal(word)
			}
			a := acceptor()
			_, token := h.say("YR", nil)
			for range 4 {
				out, done, err := a.Token(token)
				if err != nil {
					if v.good {
						t.Errorf("%s, %s: %v", protocol, v.user, err)
					}
					break
				}
				if done {
					if !v.good {
						t.Errorf("%s, %s with %q is let in", protocol, v.user, v.password)
					}
					if out != nil {
						if word, last := h.say("TT", out); word != "AF" {
							t.Errorf("%s: in the end: %s %q", protocol, word, last)
						}
					}
					if got, want := a.SessionKey(), h.key(); !bytes.Equal(got, want) {
						t.Errorf("%s: key %x, Samba has %x", protocol, got, want)
					}
					if id := a.Identity(); id.User != v.user || !strings.EqualFold(id.Domain, v.domain) {
						t.Errorf("%s: %+v", protocol, id)
					}
					break
				}
				var word string
				if word, token = h.say("TT", out); word != "KK" && word != "AF" {
					t.Fatalf("%s: %s %q", protocol, word, token)
				}
			}
		}
	}
}

// TestSambaServer logs in with Samba's server side.
func TestSambaServer(t *testing.T) {
	for _, protocol := range []string{"squid-2.5-ntlmssp", "gss-spnego"} {
		for _, c := range []Credentials{
			{User: "alice", Domain: "TESTDOM", Password: "secret"},
			{User: "alice", Password: "secret", Workstation: "HERE"},
			{User: "alice", Domain: "TESTDOM", Password: "wrong"},
		} {
			good := c.Password == "secret"
			h := samba(t, "--helper-protocol="+protocol, "--password=secret")
			if word, _ := h.say("SF NTLMSSP_FEATURE_SESSION_KEY", nil); word != "OK" {
				t.Fatal(word)
			}
			var i Initiator
			var err error
			m := NTLM(c, "cifs/disks.example")
			raw := protocol != "gss-spnego"
			if !raw {
				_, hint := h.say("YR", nil)
				if i, err = NewInitiator(hint, m); err != nil {
					t.Fatal(err)
				}
			}
			next := func(in []byte) ([]byte, bool, error) {
				if raw {
					return m.Token(in)
				}
				return i.Token(in)
			}
			token, done, err := next(nil)
			if err != nil {
				t.Fatal(err)
			}
			word := "YR"
			if !raw {
				word = "KK"
			}
			for !done || len(token) > 0 {
				var reply []byte
				word, reply = h.say(word, token)
				if word == "TT" {
					if token, done, err = next(reply); err != nil {
						t.Fatalf("%s: %v", protocol, err)
					}
					word = "KK"
					continue
				}
				if (word == "AF") != good {
					t.Fatalf("%s, %v: %s %q", protocol, c, word, reply)
				}
				if !good {
					break
				}
				if !raw {
					if _, done, err = i.Token(reply); err != nil || !done {
						t.Fatalf("%s: last token: %v", protocol, err)
					}
				}
				if got, want := m.SessionKey(), h.key(); !bytes.Equal(got, want) {
					t.Errorf("%s: key %x, Samba has %x", protocol, got, want)
				}
				break
			}
		}
	}
}
