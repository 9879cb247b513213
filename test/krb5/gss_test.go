package krb5

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	"vdbridge/smb/auth"
	"vdbridge/test/lab"
)

// gss is one side of an exchange, played by MIT's GSS-API.
type gss struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
}

func startGSS(t *testing.T, k *KDC, env []string, args ...string) *gss {
	t.Helper()
	lab.Need(t, "python3")
	cmd := exec.Command("python3", append([]string{"testdata/gss.py"}, args...)...)
	cmd.Env = k.Env(env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("gss.py: %v\n%s", err, &stderr)
		}
	})
	return &gss{t, in, bufio.NewReader(out)}
}

// ask sends a command and returns the words of the answer.
func (g *gss) ask(format string, args ...any) []string {
	g.t.Helper()
	if _, err := fmt.Fprintf(g.in, format+"\n", args...); err != nil {
		g.t.Fatal(err)
	}
	line, err := g.out.ReadString('\n')
	if err != nil {
		g.t.Fatal(err)
	}
	words := strings.Fields(line)
	if len(words) == 0 {
		g.t.Fatal("no answer")
	}
	return words
}

func (g *gss) must(first, format string, args ...any) []string {
	g.t.Helper()
	w := g.ask(format, args...)
	if w[0] != first {
		g.t.Fatalf("%s: %s", strings.Fields(format)[0], strings.Join(w, " "))
	}
	return w
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	if s == "-" {
		return nil
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mics exchanges signatures both ways, and one that is wrong.
func mics(t *testing.T, g *gss, m auth.MIC) {
	t.Helper()
	list := []byte("a list of mechanisms")
	ours, err := m.GetMIC(list)
	if err != nil {
		t.Fatal(err)
	}
	g.must("ok", "verify %x %x", list, ours)
	g.must("error", "verify %x %x", "another list", ours)
	theirs := unhex(t, g.must("mic", "mic %x", list)[1])
	if err := m.VerifyMIC(list, theirs); err != nil {
		t.Error(err)
	}
	theirs[len(theirs)-1] ^= 1
	if m.VerifyMIC(list, theirs) == nil {
		t.Error("a changed signature is taken")
	}
}

// TestGSSAPI lets MIT's GSS-API judge tokens and signatures of both roles, in every encryption type.
func TestGSSAPI(t *testing.T) {
	for _, types := range []string{"aes128-cts-hmac-sha1-96", "aes256-cts-hmac-sha1-96", "aes128-cts-hmac-sha256-128", "aes256-cts-hmac-sha384-192", "arcfour-hmac"} {
		t.Run(types, func(t *testing.T) {
			t.Parallel()
			rc4 := types == "arcfour-hmac"
			conf := "permitted_enctypes = " + types
			if rc4 {
				conf += "\n\tallow_weak_crypto = true\n\tallow_rc4 = true"
			}
			k := Start(t, Options{Types: types + ":normal", Conf: conf})
			k.User(t, "alice", password)
			keytab := k.Service(t, "cifs/localhost")

			client, err := auth.NewKerberos(auth.KerberosConfig{User: "alice", Password: password, AllowRC4: rc4, Getenv: env(k, nil)})
			if err != nil {
				t.Fatal(err)
			}
			i, err := client.Mechanism(context.Background(), "cifs/localhost")
			if err != nil {
				t.Fatal(err)
			}
			token, _, err := i.Token(nil)
			if err != nil {
				t.Fatal(err)
			}
			g := startGSS(t, k, []string{"KRB5_KTNAME=" + keytab}, "accept")
			w := g.must("token", "token %x", token)
			if w[2] != "done" {
				t.Errorf("MIT's acceptor wants more: %v", w)
			}
			if _, done, err := i.Token(unhex(t, w[1])); err != nil || !done {
				t.Fatal(done, err)
			}
			mics(t, g, i)

			service, err := auth.NewKerberosService(auth.KerberosServiceConfig{Keytab: keytab, AllowRC4: rc4})
			if err != nil {
				t.Fatal(err)
			}
			a := service.Mechanisms()[1]
			g = startGSS(t, k, []string{"KRB5CCNAME=" + k.Kinit(t, "alice", password, "cache")}, "initiate", "cifs@localhost")
			token = unhex(t, g.must("token", "token -")[1])
			token, done, err := a.Token(token)
			if err != nil || !done {
				t.Fatal(done, err)
			}
			if w := g.must("token", "token %x", token); w[2] != "done" {
				t.Errorf("MIT's initiator wants more: %v", w)
			}
			mics(t, g, a)
			if who := a.Identity().String(); who != `VDB.TEST\alice` {
				t.Error(who)
			}
		})
	}
}
