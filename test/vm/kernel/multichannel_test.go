package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vdbridge/test/lab"
	"vdbridge/test/vm"
)

// TestCIFSMultichannel mounts a continuously available share of the server with Linux's own SMB client, over four connections with one session and with
// persistent opens, signed and sealed, and copies a tree both ways.
func TestCIFSMultichannel(t *testing.T) {
	vm.Need(t, "mount.cifs")
	s := served{net: vm.NewTestNet(t), disks: t.TempDir()}
	vd, err := lab.NewProgram(lab.Vdbridge(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	vd.Start = s.net.StartCommand
	// Linux opens the other connections to port 445, whatever the port of the first.
	p, _, err := vd.Serve(t.Context(), s.disks, vm.HostAddr+":445", "--ca")
	if err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, p)
	share := t.TempDir()
	want := tree(t, filepath.Join(share, "src"))
	if err := os.WriteFile(filepath.Join(share, "cred"), []byte("username="+lab.User+"\npassword="+lab.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct{ name, options string }{
		{"signed", "vers=3.1.1,sec=ntlmsspi"},
		{"sealed", "vers=3.1.1,sec=ntlmssp,seal"},
		{"3.0-signed", "vers=3.0,sec=ntlmsspi"},
	}
	script := "cd " + share + "\nmkdir -p /mnt/s\n"
	for _, c := range cases {
		err := os.WriteFile(filepath.Join(share, c.name+".sh"), []byte(strings.NewReplacer("NAME", c.name, "OPTIONS", c.options).Replace(`
m() { mount.cifs //`+vm.HostAddr+`/`+lab.Share+` /mnt/s -o credentials=$PWD/cred,iocharset=utf8,multichannel,max_channels=4,persistenthandles,OPTIONS; }
m
mkdir /mnt/s/NAME
cp -r src/. /mnt/s/NAME/
cat /proc/fs/cifs/DebugData >NAME.debug
umount /mnt/s
m # with nothing cached
mkdir back-NAME
cp -r /mnt/s/NAME/. back-NAME/
umount /mnt/s
`)), 0o644)
		if err != nil {
			t.Fatal(err)
		}
		script += fmt.Sprintf("if sh -ex %[1]s.sh; then echo good %[1]s; else dmesg | tail -20; umount -f /mnt/s 2>/dev/null || true; fi\n", c.name)
	}
	out := vm.MustRun(t, vm.Options{Network: s.net, Modules: []string{"nls_utf8", "cifs"}, Share: []string{share}, Script: script, Memory: "768M", Timeout: 4 * time.Minute})
	for _, c := range cases {
		if !strings.Contains(out, "good "+c.name+"\n") {
			t.Errorf("%s: the guest's part failed:\n%s", c.name, out)
			continue
		}
		debug, err := os.ReadFile(filepath.Join(share, c.name+".debug"))
		if err != nil {
			t.Fatal(err)
		}
		// The first connection is not counted there.
		if !strings.Contains(string(debug), "Extra Channels: 3") {
			t.Errorf("%s: not four channels:\n%s", c.name, debug)
		}
		compare(t, c.name+": read back by the guest", hashes(t, filepath.Join(share, "back-"+c.name)), want)
		compare(t, c.name+": on the server", hashes(t, filepath.Join(s.disks, c.name)), want)
	}
}
