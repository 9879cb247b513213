// Package krb5 runs a private Kerberos realm for tests: MIT's KDC on loopback with its own configuration, database and ports, ended with the test.
package krb5

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"os/exec"

	"vdbridge/test/lab"
)

// KDC is a realm with a running KDC.
type KDC struct {
	Realm string
	Dir   string // databases, keytabs, ticket caches
	Conf  string // krb5.conf for clients
	Addr  string // of the KDC, TCP and UDP

	env  []string
	proc *lab.Proc
}

// Options say what is unusual about a realm.
type Options struct {
	Realm  string        // "" = VDB.TEST
	Offset time.Duration // by how much the KDC's clock is wrong
	Conf   string        // more lines for [libdefaults]
	Types  string        // encryption types of keys; "" = AES
}

// Tools are the programs of a realm.
var Tools = []string{"krb5kdc", "kdb5_util", "kadmin.local", "kinit"}

// Start makes a realm that ends with the test. Without the programs the test is skipped, or fails if tools are required.
func Start(t testing.TB, o Options) *KDC {
	t.Helper()
	lab.Need(t, Tools...)
	if o.Realm == "" {
		o.Realm = "VDB.TEST"
	}
	if o.Types == "" {
		o.Types = "aes256-cts-hmac-sha1-96:normal aes128-cts-hmac-sha1-96:normal"
	}
	k := &KDC{Realm: o.Realm, Dir: t.TempDir()}
	k.Conf = k.File("krb5.conf")
	var err error
	for range 3 { // another process may take the port meanwhile
		if err = k.start(o); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.proc.Stop(5 * time.Second); err != nil {
			t.Errorf("stop the KDC: %v", err)
		}
		if t.Failed() {
			b, _ := os.ReadFile(k.File("kdc.log"))
			t.Logf("the KDC says:\n%s", b)
		}
	})
	return k
}

// File is the path of a file of the realm.
func (k *KDC) File(name string) string { return filepath.Join(k.Dir, name) }

// Env is the environment for programs of the realm, for exec.Cmd.
func (k *KDC) Env(more ...string) []string {
	return append(append(os.Environ(), k.env...), more...)
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	u, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		return "", err
	}
	return l.Addr().String(), u.Close()
}

func (k *KDC) start(o Options) error {
	var err error
	if k.Addr, err = freePort(); err != nil {
		return err
	}
	kdc := fmt.Sprintf(`[kdcdefaults]
	kdc_listen = %[1]s
	kdc_tcp_listen = %[1]s
[realms]
	%[2]s = {
		database_name = %[3]s
		key_stash_file = %[4]s
		acl_file = %[5]s
		supported_enctypes = %[6]s
		max_life = 10h
		default_principal_flags = +preauth
	}
[logging]
	kdc = FILE:%[7]s
`, k.Addr, k.Realm, k.File("principal"), k.File("stash"), k.File("acl"), o.Types, k.File("kdc.log"))
	client := fmt.Sprintf(`[libdefaults]
	default_realm = %[1]s
	dns_lookup_kdc = false
	dns_lookup_realm = false
	dns_canonicalize_hostname = false
	rdns = false
	%[3]s
[realms]
	%[1]s = {
		kdc = %[2]s
	}
[domain_realm]
	localhost = %[1]s
	.vdb.test = %[1]s
`, k.Realm, k.Addr, o.Conf)
	k.env = []string{"KRB5_CONFIG=" + k.Conf, "KRB5_KDC_PROFILE=" + k.File("kdc.conf"), "KRB5RCACHETYPE=none"}
	if err := os.WriteFile(k.File("kdc.conf"), []byte(kdc), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(k.Conf, []byte(client), 0o644); err != nil {
		return err
	}
	if _, err := os.Stat(k.File("principal")); err != nil {
		if err := k.run("", "kdb5_util", "create", "-s", "-r", k.Realm, "-P", "master of the test"); err != nil {
			return err
		}
	}
	bin, err := lab.Look("krb5kdc")
	if err != nil {
		return err
	}
	args := []string{"-n", "-r", k.Realm}
	if o.Offset != 0 {
		args = append(args, "-T", fmt.Sprint(int(o.Offset.Seconds())))
	}
	cmd := exec.Command(bin, args...)
	cmd.Env = k.Env()
	if k.proc, err = lab.Start(cmd, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), lab.ReadyTimeout)
	defer cancel()
	if err := k.proc.WaitListen(ctx, "tcp", k.Addr, nil); err != nil {
		k.proc.Kill()
		return err
	}
	return nil
}

// run runs a program of the realm with text as its input.
func (k *KDC) run(input, name string, args ...string) error {
	bin, err := lab.Look(name)
	if err != nil {
		return err
	}
	cmd := exec.Command(bin, args...)
	cmd.Env = k.Env()
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// Stop ends the KDC before the test ends.
func (k *KDC) Stop(t testing.TB) {
	t.Helper()
	if err := k.proc.Stop(5 * time.Second); err != nil {
		t.Fatal(err)
	}
}

// Admin runs a command of kadmin.
func (k *KDC) Admin(t testing.TB, command string) {
	t.Helper()
	if err := k.run("", "kadmin.local", "-r", k.Realm, "-q", command); err != nil {
		t.Fatal(err)
	}
}

// User adds a user.
func (k *KDC) User(t testing.TB, name, password string) {
	t.Helper()
	k.Admin(t, fmt.Sprintf("addprinc -pw %q %s", password, name))
}

// Service adds principals with random keys and returns a keytab of them.
func (k *KDC) Service(t testing.TB, names ...string) string {
	t.Helper()
	for _, n := range names {
		k.Admin(t, "addprinc -randkey "+n)
	}
	return k.Keytab(t, strings.NewReplacer("/", "_").Replace(names[0])+".keytab", names...)
}

// Keytab exports the keys of principals, without changing them, to a file of the realm.
func (k *KDC) Keytab(t testing.TB, file string, names ...string) string {
	t.Helper()
	k.Admin(t, fmt.Sprintf("ktadd -norandkey -k %s %s", k.File(file), strings.Join(names, " ")))
	return k.File(file)
}

// Kinit gets tickets into a file of the realm, and returns the value for KRB5CCNAME.
func (k *KDC) Kinit(t testing.TB, user, password, cache string, more ...string) string {
	t.Helper()
	name := cache
	if !strings.Contains(name, ":") {
		name = "FILE:" + k.File(cache)
	}
	if err := k.run(password+"\n", "kinit", append(more, "-c", name, user)...); err != nil {
		t.Fatal(err)
	}
	return name
}
