package krb5

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vdbridge/bridge"
	"vdbridge/test/lab"
)

const sssdKCM = "/usr/libexec/sssd/sssd_kcm"

// kcmDaemon starts sssd-kcm with folders of its own, as it knows no others than the machine's, and returns its socket.
func kcmDaemon(t *testing.T) string {
	t.Helper()
	lab.Need(t, sssdKCM, "unshare", "mount")
	lab.NeedRoot(t)
	dir := t.TempDir()
	for _, d := range []string{"run", "sss", "sss/db", "sss/secrets"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	unshare, err := lab.Look("unshare")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(unshare, "--mount", "sh", "-ec", `mount --bind "$1/sss" /var/lib/sss; mount --bind "$1/run" /run; exec "$2" --logger=stderr --uid 0 --gid 0`, "sh", dir, sssdKCM)
	proc, err := lab.Start(cmd, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proc.Stop(5 * time.Second); err != nil {
			t.Errorf("stop sssd-kcm: %v", err)
		}
		if t.Failed() {
			t.Logf("sssd-kcm says:\n%s", proc.Output())
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), lab.ReadyTimeout)
	defer cancel()
	socket := filepath.Join(dir, "run", ".heim_org.h5l.kcm-socket")
	if err := proc.WaitListen(ctx, "unix", socket, nil); err != nil {
		t.Fatal(err)
	}
	return socket
}

// The operations that get all tickets at once, and one.
const (
	getCredList   = 13001
	getCredByUUID = 10
)

// kcmFront stands before a KCM daemon and looks at the operations.
type kcmFront struct {
	daemon string
	hide   atomic.Bool // make an unknown operation of getCredList
	lists  atomic.Int32
	single atomic.Int32
}

// listen returns the socket. One connection is served at a time.
func (f *kcmFront) listen(t *testing.T) string {
	t.Helper()
	front := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", front)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.relay(t, c)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return front
}

// relay serves one connection.
func (f *kcmFront) relay(t *testing.T, c net.Conn) {
	defer c.Close()
	d, err := net.Dial("unix", f.daemon)
	if err != nil {
		t.Error(err)
		return
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		io.Copy(c, d)
		c.Close()
	}()
	defer func() {
		d.Close()
		<-back
	}()
	for {
		b := make([]byte, 4)
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		b = append(b, make([]byte, max(4, min(binary.BigEndian.Uint32(b), 4096)))...)
		if _, err := io.ReadFull(c, b[4:]); err != nil {
			return
		}
		switch binary.BigEndian.Uint16(b[6:]) {
		case getCredList:
			f.lists.Add(1)
			if f.hide.Load() {
				binary.BigEndian.PutUint16(b[6:], 13999)
			}
		case getCredByUUID:
			f.single.Add(1)
		}
		if _, err := d.Write(b); err != nil { // at once, or sssd-kcm hangs up
			return
		}
	}
}

// TestKCM logs on with tickets that MIT's kinit has given to sssd-kcm.
func TestKCM(t *testing.T) {
	socket := kcmDaemon(t)
	k := Start(t, Options{Conf: "kcm_socket = " + socket + "\n\tdefault_ccache_name = KCM:"})
	k.User(t, "alice", password)
	k.User(t, "bob", password)
	keytab := k.Service(t, "cifs/localhost")
	url := "//" + serve(t, bridge.ServeOptions{Keytab: keytab, NoNTLM: true}) + "/disks"
	conf := k.Conf
	as := func(name, want string) {
		t.Helper()
		user, err := logon(t, url, bridge.Options{Kerberos: bridge.KerberosOptions{On: true}, Credentials: bridge.CredentialSource{Getenv: env(k, map[string]string{"KRB5CCNAME": name, "KRB5_CONFIG": conf})}})
		if strings.HasPrefix(want, "VDB.TEST") {
			if err != nil || user != want {
				t.Errorf("%q: logged on as %q, %v", name, user, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v", name, user, err)
		}
	}
	const alice, bob = `VDB.TEST\alice`, `VDB.TEST\bob`
	as("", "there are no tickets in KCM:")
	k.Kinit(t, "alice", password, "KCM:")
	as("", alice)
	as("KCM:", alice)
	k.Kinit(t, "bob", password, "KCM:0:second")
	as("KCM:0", alice)
	as("KCM:0:second", bob)
	as("KCM:0:third", "(no such cache): run kinit")
	for cache, who := range map[string]string{"KCM:0": alice, "KCM:0:second": bob} {
		if err := k.run("", "kswitch", "-c", cache); err != nil {
			t.Fatal(err)
		}
		as("KCM:", who)
	}

	b, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	conf = k.File("front.conf")
	front := &kcmFront{daemon: socket}
	if err := os.WriteFile(conf, []byte(strings.ReplaceAll(string(b), socket, front.listen(t))), 0o600); err != nil {
		t.Fatal(err)
	}
	as("KCM:0", alice)
	if front.lists.Load() == 0 || front.single.Load() != 0 {
		t.Errorf("asked for %d lists and %d single tickets", front.lists.Load(), front.single.Load())
	}
	front.hide.Store(true)
	as("KCM:0", alice)
	as("KCM:0:second", bob)
	if front.single.Load() == 0 {
		t.Error("asked for no single tickets")
	}

	// With a ticket for the server nobody asks the KDC.
	if err := k.run("", "kvno", "-c", "KCM:0", "cifs/localhost"); err != nil {
		t.Fatal(err)
	}
	k.Stop(t)
	as("KCM:0", alice)
	conf = k.Conf
	as("KCM:0", alice)
	as("KCM:0:second", "no Kerberos server of the realm VDB.TEST answers")
	if err := k.run("", "kdestroy", "-A", "-c", "KCM:"); err != nil {
		t.Fatal(err)
	}
	as("KCM:0", "run kinit")
}
