package torture

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vdbridge/server"
	"vdbridge/smb/auth"
)

func tool(t *testing.T, name, pkg string) string {
	t.Helper()
	bin, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("VDBRIDGE_REQUIRE_TOOLS") == "1" {
			t.Fatalf("%s is missing (package %s)", name, pkg)
		}
		t.Skipf("SKIPPED, as %s is missing: install the package %s", name, pkg)
	}
	return bin
}

// serve runs a server until the test ends, and returns its port and the shared directory.
func serve(t *testing.T, change func(*server.Config)) (port, dir string) {
	t.Helper()
	dir = t.TempDir()
	cfg := server.Config{ServerName: "SERVER", Users: auth.NewUsers(map[string]string{"me": "secret"}),
		Shares: []server.Share{{Name: "disks", Dir: dir, Comment: "virtual disks"}, {Name: "looked-at", Dir: dir, ReadOnly: true}, {Name: "sealed", Dir: dir, Encrypt: true}}}
	if change != nil {
		change(&cfg)
	}
	s, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(context.Background(), l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return fmt.Sprint(l.Addr().(*net.TCPAddr).Port), dir
}

// TestSmbclient does with Samba's smbclient what people do with files, in every dialect, signed and sealed.
func TestSmbclient(t *testing.T) {
	bin := tool(t, "smbclient", "smbclient")
	for _, dialect := range []string{"SMB3_00", "SMB3_02", "SMB3_11"} {
		for _, protection := range []string{"sign", "encrypt"} {
			t.Run(dialect+" "+protection, func(t *testing.T) {
				t.Parallel()
				port, dir := serve(t, nil)
				work := t.TempDir()
				data := make([]byte, 20<<20+12345)
				rand.Read(data)
				if err := os.WriteFile(filepath.Join(work, "big"), data, 0o666); err != nil {
					t.Fatal(err)
				}
				smb := func(share string, commands ...string) (string, error) {
					cmd := exec.CommandContext(t.Context(), bin, "//127.0.0.1/"+share, "-p", port, "-U", "me%secret", "-m", dialect, "--client-protection="+protection, "-c", strings.Join(commands, "; "))
					cmd.Dir = work
					out, err := cmd.CombinedOutput()
					return string(out), err
				}
				out, err := smb("disks", "mkdir dir", "cd dir", "put big", "rename big Größe", "get größe back", "mkdir a", "cd a", "put big x", "cd ..", "ls")
				if err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				for _, want := range []string{"Größe", "  a  "} {
					if !strings.Contains(out, want) {
						t.Errorf("no %q in the listing:\n%s", want, out)
					}
				}
				for _, name := range []string{filepath.Join(work, "back"), filepath.Join(dir, "dir/Größe"), filepath.Join(dir, "dir/a/x")} {
					if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, data) {
						t.Errorf("%s differs: %d bytes, %v", name, len(got), err)
					}
				}
				if out, err := smb("disks", "cd dir", "rm Größe", "cd ..", "deltree dir"); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
				if list, _ := os.ReadDir(dir); len(list) != 0 {
					t.Errorf("left over: %v", list)
				}
				if out, err := smb("looked-at", "put big"); err == nil || !strings.Contains(out, "NT_STATUS_ACCESS_DENIED") {
					t.Errorf("writing to a read-only share: %v\n%s", err, out)
				}
				if out, err := smb("sealed", "ls"); err != nil {
					t.Errorf("share that wants encryption: %v\n%s", err, out)
				}
				if out, err := smb("nowhere", "ls"); err == nil || !strings.Contains(out, "NT_STATUS_BAD_NETWORK_NAME") {
					t.Errorf("unknown share: %v\n%s", err, out)
				}
			})
		}
	}
}

func TestSmbclientListsShares(t *testing.T) {
	bin := tool(t, "smbclient", "smbclient")
	port, _ := serve(t, func(c *server.Config) {
		for i := range 200 {
			c.Shares = append(c.Shares, server.Share{Name: fmt.Sprintf("share%03d", i), Dir: c.Shares[0].Dir, Comment: strings.Repeat("c", i)})
		}
	})
	out, err := exec.CommandContext(t.Context(), bin, "-L", "127.0.0.1", "-p", port, "-U", "me%secret").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"disks", "virtual disks", "IPC$", "share000", "share199"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	out, err = exec.CommandContext(t.Context(), bin, "-L", "127.0.0.1", "-p", port, "-U", "me%wrong").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "NT_STATUS_LOGON_FAILURE") {
		t.Errorf("wrong password: %v\n%s", err, out)
	}
}
