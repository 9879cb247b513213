package krb5

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vdbridge/bridge"
	"vdbridge/client"
	"vdbridge/smb/auth"
	"vdbridge/test/lab"
)

// ADEnv is the environment variable that, set to 1, makes this package provision a domain, which takes up to a minute.
const ADEnv = "VDBRIDGE_ADDC"

// domain is a Samba domain controller with its file server, at a loopback address of its own.
type domain struct {
	KDC
	ip   string
	smb  string // address of the file server
	conf string
}

const domainSMBConf = `[global]
	server role = active directory domain controller
	realm = AD.VDB.TEST
	workgroup = VDB
	netbios name = FILES
	server services = s3fs, rpc, ldap, cldap, kdc, winbindd
	interfaces = %[2]s/8
	bind interfaces only = yes
	krb5 port = %[3]s
	kpasswd port = 0
	smb ports = %[4]s
	private dir = %[1]s/private
	state directory = %[1]s/state
	cache directory = %[1]s/cache
	lock directory = %[1]s
	pid directory = %[1]s/run
	binddns dir = %[1]s/bind-dns
	ncalrpc dir = %[1]s/ncalrpc
	ntp signd socket directory = %[1]s/ntp
	dns update command = /bin/true
	spn update command = /bin/true
	load printers = no
	logging = file
	log file = %[1]s/log.%%m
	log level = 1 auth:3
[disks]
	path = %[1]s/share
	read only = no
`

// startDomain provisions a domain and runs it.
func startDomain(t *testing.T) *domain {
	t.Helper()
	if os.Getenv(ADEnv) != "1" {
		t.Skipf("SKIPPED, nothing was tested: it provisions an Active Directory domain, which takes up to a minute; set %s=1", ADEnv)
	}
	lab.Need(t, "samba", "samba-tool", "kinit", "unshare")
	lab.NeedRoot(t)
	// Short, as there are Unix sockets in it.
	dir, err := os.MkdirTemp("", "addc-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// The ports of LDAP and RPC cannot be chosen, so it has an address of its own.
	d := &domain{KDC: KDC{Realm: "AD.VDB.TEST", Dir: dir, Conf: filepath.Join(dir, "krb5.conf")}, ip: fmt.Sprintf("127.88.%d.%d", os.Getpid()>>8&0xFF, os.Getpid()&0xFE|1), conf: filepath.Join(dir, "smb.conf")}
	d.Addr, d.smb = d.ip+":8888", d.ip+":4450"
	run := func(args ...string) {
		t.Helper()
		if err := d.run("", "samba-tool", args...); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.run("", "samba-tool", "domain", "provision", "--targetdir="+dir, "--realm="+d.Realm, "--domain=VDB", "--server-role=dc", "--dns-backend=NONE",
		"--adminpass=Passw0rd-1", "--host-name=files", "--host-ip="+d.ip); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"run", "ncalrpc", "system/winbindd", "ntp", "share"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{
		d.conf: fmt.Sprintf(domainSMBConf, dir, d.ip, "8888", "4450"),
		d.Conf: fmt.Sprintf("[libdefaults]\n\tdefault_realm = %[1]s\n\tdns_lookup_kdc = false\n\tdns_canonicalize_hostname = false\n\trdns = false\n[realms]\n\t%[1]s = {\n\t\tkdc = %[2]s\n\t}\n[domain_realm]\n\t.ad.vdb.test = %[1]s\n",
			d.Realm, d.Addr),
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d.env = []string{"KRB5_CONFIG=" + d.Conf}
	// The users of the domain have uids of their own.
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(d.File("share"), 0o777)); err != nil {
		t.Fatal(err)
	}
	run("user", "create", "alice", "Secret-1", "-s", d.conf)
	run("user", "create", "svc", "--random-password", "-s", d.conf)
	// Without this the domain encrypts the service's tickets with RC4.
	editor := d.File("editor")
	if err := os.WriteFile(editor, []byte("#!/bin/sh\nexec sed -i '1a msDS-SupportedEncryptionTypes: 24' \"$1\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	run("user", "edit", "svc", "--editor="+editor, "-s", d.conf)
	run("spn", "add", "cifs/localhost", "svc", "-s", d.conf)
	run("domain", "exportkeytab", d.File("alice.keytab"), "--principal=alice", "-s", d.conf)
	run("domain", "exportkeytab", d.File("svc.keytab"), "--principal=cifs/localhost", "-s", d.conf)

	bin, err := lab.Look("samba")
	if err != nil {
		t.Fatal(err)
	}
	// smbd looks for winbindd in a fixed place, whatever the configuration says, so it gets a /run/samba of its own.
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mkdir -p /run/samba && mount --bind "$1" /run/samba && exec "$2" -i -M single -s "$3"`,
		"sh", d.File("system"), bin, d.conf)
	cmd.Env = d.Env()
	proc, err := lab.Start(cmd, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("samba says:\n%s", proc.Output())
			logs, _ := filepath.Glob(d.File("log.*"))
			for _, name := range logs {
				b, _ := os.ReadFile(name)
				t.Logf("%s:\n%s", name, b)
			}
		}
		_ = proc.Stop(10 * time.Second) // it says that it failed when it is ended
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := proc.WaitListen(ctx, "unix", d.File("system/winbindd/pipe"), nil); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{d.Addr, d.smb} {
		if err := proc.WaitListen(ctx, "tcp", addr, nil); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// TestActiveDirectory: our client logs on to the file server of a Samba domain controller, and our server takes the tickets of that domain.
func TestActiveDirectory(t *testing.T) {
	d := startDomain(t)
	const spn = "cifs/files.ad.vdb.test"
	cache := d.Kinit(t, "alice", "Secret-1", "tickets")
	for name, cfg := range map[string]auth.KerberosConfig{
		"password":                {User: "alice", Password: "Secret-1"},
		"password, small letters": {User: "Alice@ad.vdb.test", Password: "Secret-1"},
		"keytab":                  {Keytab: d.File("alice.keytab")},
		"tickets of kinit":        {CCache: cache},
	} {
		for _, seal := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, sealed %v", name, seal), func(t *testing.T) {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				cfg.Getenv = env(&d.KDC, nil)
				k, err := auth.NewKerberos(cfg)
				if err != nil {
					t.Fatal(err)
				}
				conn, err := client.Dial(ctx, d.smb, client.Config{ServerName: "files.ad.vdb.test", Seal: seal})
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				m, err := k.Mechanism(ctx, spn)
				if err != nil {
					t.Fatal(err)
				}
				s, err := conn.SessionWith(ctx, client.SessionOptions{}, m)
				if err != nil {
					t.Fatal(err)
				}
				tree, err := s.Tree(ctx, "disks")
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(tree.Mkdir(ctx, "made"), tree.Remove(ctx, "made"), tree.Close(), s.Close()); err != nil {
					t.Error(err)
				}
			})
		}
	}
	k, err := auth.NewKerberos(auth.KerberosConfig{CCache: cache, Getenv: env(&d.KDC, nil)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Mechanism(context.Background(), "cifs/alias.ad.vdb.test"); err == nil || !strings.Contains(err.Error(), "server not found in Kerberos database") {
		t.Errorf("a server that the domain does not know: %v", err)
	}

	at := serve(t, bridge.ServeOptions{Keytab: d.File("svc.keytab"), NoNTLM: true})
	if host, _, _ := net.SplitHostPort(at); host != "localhost" {
		t.Fatal(at)
	}
	who, err := logon(t, "//"+at+"/disks", bridge.Options{Kerberos: bridge.KerberosOptions{On: true}, Credentials: bridge.CredentialSource{
		Getenv: env(&d.KDC, map[string]string{"KRB5CCNAME": cache})}})
	if err != nil || who != `AD.VDB.TEST\alice` {
		t.Errorf("our server in the domain: %q, %v", who, err)
	}
}
