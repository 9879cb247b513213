package krb5

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"vdbridge/bridge"
)

// TestRefused: what goes wrong with Kerberos is said in a sentence that tells what to do.
func TestRefused(t *testing.T) {
	k := Start(t, Options{})
	k.User(t, "alice", password)
	keytab := k.Service(t, "cifs/localhost")
	userKeys := k.Keytab(t, "alice.keytab", "alice")
	k.Admin(t, "addprinc -randkey cifs/stale.vdb.test")
	k.User(t, "locked", password)
	k.Admin(t, "modprinc -allow_tix locked")
	k.User(t, "old", password)
	k.Admin(t, "modprinc -pwexpire yesterday old")
	at := serve(t, bridge.ServeOptions{Keytab: keytab, NoNTLM: true})
	only := serve(t, bridge.ServeOptions{Keytab: keytab, NoNTLM: true, KerberosFor: []string{"bob"}})
	_, port, _ := net.SplitHostPort(at)
	good := passwordFile(t, password)
	by := func(user, file string) bridge.Options {
		return bridge.Options{Kerberos: bridge.KerberosOptions{On: true}, Credentials: bridge.CredentialSource{User: user, PasswordFile: file, Getenv: env(k, nil)}}
	}
	with := func(cache string) bridge.Options {
		return bridge.Options{Kerberos: bridge.KerberosOptions{On: true}, Credentials: bridge.CredentialSource{Getenv: env(k, map[string]string{"KRB5CCNAME": cache})}}
	}
	wrongKeytab := by("bob", "")
	wrongKeytab.Kerberos.Keytab = userKeys
	for _, c := range []struct {
		name, url string
		o         bridge.Options
		class     bridge.Class
		want      string
	}{
		{"wrong password", at, by("alice", passwordFile(t, "wrong")), bridge.ClassAuth, "the password or keytab of alice is wrong"},
		{"unknown user", at, by("nobody", good), bridge.ClassAuth, "the realm VDB.TEST has no user nobody"},
		{"locked user", at, by("locked", good), bridge.ClassAuth, "locked, disabled or expired"},
		{"expired password", at, by("old", good), bridge.ClassAuth, "the password of old has expired"},
		{"wrong realm", at, by("alice@OTHER.TEST", good), bridge.ClassAuth, "names no Kerberos server of the realm OTHER.TEST"},
		{"address instead of name", "127.0.0.1:" + port, by("alice", good), bridge.ClassAuth, `knows servers by name, and "127.0.0.1" is none`},
		{"keytab without the principal", at, wrongKeytab, bridge.ClassAuth, "no keys of bob; it has keys of alice@VDB.TEST"},
		{"no tickets", at, with("FILE:" + k.File("none")), bridge.ClassAuth, "run kinit"},
		{"keyring", at, with("KEYRING:session:vdbridge-none"), bridge.ClassAuth, "there are no tickets in KEYRING:session:vdbridge-none"},
		{"user not allowed", only, by("alice", good), bridge.ClassAuth, "does not accept the ticket of alice@VDB.TEST"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := logon(t, "//"+c.url+"/disks", c.o)
			if bridge.Classify(err) != c.class || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("%v, %v; want %q", bridge.Classify(err), err, c.want)
			}
		})
	}

	// The server is registered under another name than the one in the URL.
	k.Admin(t, "delprinc -force cifs/localhost")
	if _, err := logon(t, "//"+at+"/disks", by("alice", good)); bridge.Classify(err) != bridge.ClassAuth || !strings.Contains(err.Error(), "knows no server cifs/localhost (server not found in Kerberos database)") {
		t.Errorf("unknown server: %v", err)
	}
	// The server's key has been changed since its keytab was exported.
	k.Admin(t, "addprinc -randkey cifs/localhost")
	if _, err := logon(t, "//"+at+"/disks", by("alice", good)); bridge.Classify(err) != bridge.ClassAuth || !strings.Contains(err.Error(), "the server's keytab is not that of") {
		t.Errorf("old keytab: %v", err)
	}
	k.Stop(t)
	if _, err := logon(t, "//"+at+"/disks", by("alice", good)); bridge.Classify(err) != bridge.ClassConnection || !strings.Contains(err.Error(), "no Kerberos server of the realm VDB.TEST answers") {
		t.Errorf("KDC down: %v", err)
	}
}

// TestClock: the KDC's clock, or ours, is wrong.
func TestClock(t *testing.T) {
	for _, offset := range []time.Duration{10 * time.Minute, -10 * time.Minute} {
		k := Start(t, Options{Offset: offset})
		k.User(t, "alice", password)
		at := serve(t, bridge.ServeOptions{Keytab: k.Service(t, "cifs/localhost"), NoNTLM: true})
		_, err := logon(t, "//"+at+"/disks", bridge.Options{Kerberos: bridge.KerberosOptions{On: true}, Credentials: bridge.CredentialSource{
			User: "alice", PasswordFile: passwordFile(t, password), Getenv: env(k, nil)}})
		want := map[bool]string{true: "behind that of the Kerberos server", false: "ahead of that of the Kerberos server"}[offset > 0]
		if bridge.Classify(err) != bridge.ClassAuth || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v: %v", offset, err)
		}
	}
}

// TestExpired: the tickets of kinit have ended.
func TestExpired(t *testing.T) {
	k := Start(t, Options{Offset: -2 * time.Hour})
	k.User(t, "alice", password)
	at := serve(t, bridge.ServeOptions{Keytab: k.Service(t, "cifs/localhost"), NoNTLM: true})
	cache := k.Kinit(t, "alice", password, "cache", "-l", "1h")
	_, err := logon(t, "//"+at+"/disks", bridge.Options{Kerberos: bridge.KerberosOptions{On: true},
		Credentials: bridge.CredentialSource{Getenv: env(k, map[string]string{"KRB5CCNAME": cache})}})
	if bridge.Classify(err) != bridge.ClassAuth || !strings.Contains(fmt.Sprint(err), "tickets of alice@VDB.TEST have expired") || !strings.Contains(fmt.Sprint(err), "run kinit") {
		t.Error(err)
	}
}

// TestServeOptions: combinations that make no sense are refused before anybody listens.
func TestServeOptions(t *testing.T) {
	k := Start(t, Options{})
	keytab := k.Service(t, "http/localhost")
	dir := t.TempDir()
	for want, o := range map[string]bridge.ServeOptions{
		"give the server's keytab":             {NoNTLM: true},
		"--keytab FILE":                        {KerberosFor: []string{"alice"}, UsersFile: "users"},
		"leave one of them out":                {NoNTLM: true, Keytab: keytab, UsersFile: "users"},
		"no AES key of cifs/HOST or host/HOST": {NoNTLM: true, Keytab: keytab},
		"keytab cannot be read":                {Keytab: dir + "/none"},
		"is damaged, or no keytab":             {Keytab: k.Conf},
	} {
		o.Dir, o.Share = dir, "disks"
		if _, err := bridge.NewFileServer(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}
