package krb5

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vdbridge/bridge"
	"vdbridge/smb/auth"
	"vdbridge/test/lab"
)

// A password with characters that are special to shells and to Kerberos' salts.
const password = "corréct horse"

// serve runs our server in this process. It returns its address with the name localhost, by which Kerberos knows it.
func serve(t *testing.T, o bridge.ServeOptions) string {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
		if err := os.WriteFile(filepath.Join(o.Dir, "hello.txt"), []byte("hello\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	o.Share = "disks"
	srv, err := bridge.NewFileServer(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return net.JoinHostPort("localhost", port)
}

// logon connects and returns who we are to the server.
func logon(t *testing.T, url string, o bridge.Options) (string, error) {
	t.Helper()
	loc, err := bridge.ParseLocation(url)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	o.Timeout = 20 * time.Second
	r, err := bridge.Connect(ctx, loc, o)
	if err != nil {
		return "", err
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	return r.Info().User, nil
}

// env is an environment of the realm for bridge.
func env(k *KDC, more map[string]string) func(string) string {
	return func(name string) string {
		if v, ok := more[name]; ok {
			return v
		}
		if name == "KRB5_CONFIG" {
			return k.Conf
		}
		return ""
	}
}

func passwordFile(t *testing.T, pw string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(f, []byte(pw+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestLogon logs on with each kind of credentials, to servers with and without NTLM.
func TestLogon(t *testing.T) {
	k := Start(t, Options{})
	k.User(t, "alice", password)
	keytab := k.Service(t, "cifs/localhost")
	userKeys := k.Keytab(t, "alice.keytab", "alice")
	cache := k.Kinit(t, "alice", password, "cache")
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	dirCache := k.Kinit(t, "alice", password, "DIR:"+dir)
	on := bridge.KerberosOptions{On: true}
	for _, c := range []struct {
		name string
		o    bridge.Options
	}{
		{"password", bridge.Options{Kerberos: on, Credentials: bridge.CredentialSource{User: "alice", PasswordFile: passwordFile(t, password)}}},
		{"password, realm named", bridge.Options{Kerberos: on, Credentials: bridge.CredentialSource{User: "alice@VDB.TEST", Getenv: env(k, map[string]string{"VDBRIDGE_PASSWORD": password})}}},
		{"password, realm as domain", bridge.Options{Kerberos: on, Credentials: bridge.CredentialSource{User: `vdb.test\alice`, PasswordFile: passwordFile(t, password)}}},
		{"keytab", bridge.Options{Kerberos: bridge.KerberosOptions{On: true, Keytab: userKeys}}},
		{"keytab, user named", bridge.Options{Kerberos: bridge.KerberosOptions{On: true, Keytab: userKeys}, Credentials: bridge.CredentialSource{User: "alice"}}},
		{"cache", bridge.Options{Kerberos: on, Credentials: bridge.CredentialSource{Getenv: env(k, map[string]string{"KRB5CCNAME": cache})}}},
		{"cache, encrypted", bridge.Options{Encrypt: true, Kerberos: on, Credentials: bridge.CredentialSource{User: "alice@VDB.TEST", Getenv: env(k, map[string]string{"KRB5CCNAME": cache})}}},
		{"cache, SMB 3.0", bridge.Options{MaxDialect: 0x300, Kerberos: on, Credentials: bridge.CredentialSource{Getenv: env(k, map[string]string{"KRB5CCNAME": cache})}}},
		{"directory of caches", bridge.Options{Kerberos: on, Credentials: bridge.CredentialSource{Getenv: env(k, map[string]string{"KRB5CCNAME": dirCache})}}},
	} {
		for _, ntlm := range []bool{false, true} {
			name := c.name + " without NTLM"
			so := bridge.ServeOptions{Keytab: keytab, NoNTLM: true}
			if ntlm {
				name = c.name + " beside NTLM"
				so = bridge.ServeOptions{Keytab: keytab, Users: auth.NewUsers(map[string]string{"bob": "secret"})}
			}
			t.Run(name, func(t *testing.T) {
				if c.o.Credentials.Getenv == nil {
					c.o.Credentials.Getenv = env(k, nil)
				}
				who, err := logon(t, "//"+serve(t, so)+"/disks", c.o)
				if err != nil || who != `VDB.TEST\alice` {
					t.Fatalf("%q, %v", who, err)
				}
			})
		}
	}
	// NTLM beside Kerberos works as ever, and not where it is off.
	ntlm := bridge.Options{Credentials: bridge.CredentialSource{User: "bob", PasswordFile: passwordFile(t, "secret")}}
	if who, err := logon(t, "//"+serve(t, bridge.ServeOptions{Keytab: keytab, Users: auth.NewUsers(map[string]string{"bob": "secret"})})+"/disks", ntlm); err != nil || who != "bob" {
		t.Errorf("NTLM beside Kerberos: %q, %v", who, err)
	}
	if _, err := logon(t, "//"+serve(t, bridge.ServeOptions{Keytab: keytab, NoNTLM: true})+"/disks", ntlm); bridge.Classify(err) != bridge.ClassAuth {
		t.Errorf("NTLM where it is off: %v", err)
	}
	// A client that wants Kerberos does not fall back.
	o := bridge.Options{Kerberos: on, Credentials: bridge.CredentialSource{User: "alice", PasswordFile: passwordFile(t, password), Getenv: env(k, nil)}}
	if _, err := logon(t, "//"+serve(t, bridge.ServeOptions{Users: auth.NewUsers(map[string]string{"alice": password})})+"/disks", o); bridge.Classify(err) != bridge.ClassAuth || !strings.Contains(err.Error(), "Kerberos") {
		t.Errorf("Kerberos where there is none: %v", err)
	}
}

// TestTypes logs on with every encryption type. RC4 must be asked for on both sides.
func TestTypes(t *testing.T) {
	for _, c := range []struct {
		types string
		rc4   bool
	}{
		{"aes128-cts-hmac-sha1-96", false}, {"aes256-cts-hmac-sha1-96", false}, {"aes128-cts-hmac-sha256-128", false}, {"aes256-cts-hmac-sha384-192", false},
		{"arcfour-hmac", true},
	} {
		t.Run(c.types, func(t *testing.T) {
			t.Parallel()
			conf := "permitted_enctypes = " + c.types
			if c.rc4 {
				conf += "\n\tallow_weak_crypto = true\n\tallow_rc4 = true"
			}
			k := Start(t, Options{Types: c.types + ":normal", Conf: conf})
			k.User(t, "alice", password)
			keytab := k.Service(t, "cifs/localhost")
			o := bridge.Options{Kerberos: bridge.KerberosOptions{On: true, AllowRC4: c.rc4}, Credentials: bridge.CredentialSource{
				User: "alice", PasswordFile: passwordFile(t, password), Getenv: env(k, nil)}}
			at := "//" + serve(t, bridge.ServeOptions{Keytab: keytab, NoNTLM: true, AllowRC4: c.rc4}) + "/disks"
			if who, err := logon(t, at, o); err != nil || who != `VDB.TEST\alice` {
				t.Fatalf("%q, %v", who, err)
			}
			if !c.rc4 {
				return
			}
			o.Kerberos.AllowRC4 = false
			if _, err := logon(t, at, o); bridge.Classify(err) != bridge.ClassAuth {
				t.Errorf("RC4 unasked: %v", err)
			}
			if _, err := bridge.NewFileServer(bridge.ServeOptions{Dir: t.TempDir(), Share: "disks", Keytab: keytab, NoNTLM: true}); err == nil {
				t.Error("a server takes RC4 keys unasked")
			}
		})
	}
}

// TestSmbclient: Samba's client logs on to our server with the tickets of kinit.
func TestSmbclient(t *testing.T) {
	lab.Need(t, "smbclient")
	k := Start(t, Options{})
	k.User(t, "alice", password)
	// Samba does not use Kerberos with localhost and addresses. -I tells it where that other host is.
	const host = "files.vdb.test"
	keytab := k.Service(t, "cifs/"+host)
	cache := k.Kinit(t, "alice", password, "cache")
	conf := k.File("smb.conf")
	if err := os.WriteFile(conf, []byte("[global]\n\tclient min protocol = SMB3_00\n\trealm = "+k.Realm+"\n\tworkgroup = VDB\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(serve(t, bridge.ServeOptions{Keytab: keytab, NoNTLM: true}))
	for _, more := range [][]string{{"--client-protection=sign"}, {"--client-protection=encrypt"}, {"-m", "SMB3_00"}} {
		args := append([]string{"-s", conf, "--use-kerberos=required", "--use-krb5-ccache=" + cache, "-I", "127.0.0.1", "-p", port, "//" + host + "/disks", "-c", "ls"}, more...)
		cmd := exec.Command("smbclient", args...)
		cmd.Env = k.Env("KRB5CCNAME=" + cache)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "hello.txt") {
			t.Errorf("%v: %v\n%s", more, err, out)
		}
	}
}
