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

	"vdbridge/test/lab"
)

// TestProgram runs the commands of docs/kerberos.md.
func TestProgram(t *testing.T) {
	k := Start(t, Options{})
	bin := lab.Vdbridge(t)
	k.User(t, "alice", password)
	keytab := k.Service(t, "cifs/localhost")
	userKeys := k.Keytab(t, "alice.keytab", "alice")
	cache := k.Kinit(t, "alice", password, "cache")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hello.txt"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.Command(bin, "serve", dir, "--keytab", keytab, "--no-ntlm", "--krb5-user", "alice", "--listen", "127.0.0.1:0")
	server, err := lab.Start(cmd, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(10 * time.Second); err != nil {
			t.Error(err)
		}
	})
	url, err := server.WaitLine(ctx, "ready smb://")
	if err != nil {
		t.Fatal(err)
	}
	addr, _, _ := strings.Cut(url, "/")
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	share := "//localhost:" + port + "/disks"
	secret := passwordFile(t, password)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"ls", "--krb5", share}, 0, "hello.txt"},
		{[]string{"ls", "--no-ntlm", share}, 0, "hello.txt"},
		{[]string{"ls", "--keytab", userKeys, share}, 0, "hello.txt"},
		{[]string{"ls", "--krb5", "--user", "alice@VDB.TEST", "--password-file", secret, share}, 0, "hello.txt"},
		{[]string{"ls", "--krb5", "//127.0.0.1:" + port + "/disks"}, 3, "knows servers by name"},
		{[]string{"ls", "--user", "alice", "--password-file", secret, share}, 3, "Kerberos"}, // NTLM is off
		{[]string{"ls", "--krb5", "--guest", share}, 2, "--guest"},
		{[]string{"serve", "--no-ntlm", dir}, 2, "--keytab"},
	} {
		cmd := exec.CommandContext(ctx, bin, c.args...)
		cmd.Env = k.Env("KRB5CCNAME="+cache, "VDBRIDGE_PASSWORD=")
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(string(out), c.want) {
			t.Errorf("vdbridge %s: exit code %d, want %d\n%s", strings.Join(c.args, " "), code, c.code, out)
		}
	}
}
