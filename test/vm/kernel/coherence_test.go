package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vdbridge/test/lab"
	"vdbridge/test/vm"
)

// TestCIFSCoherence mounts a share twice with Linux's own SMB client, over connections of their own and with cache=strict: it caches as long as it has a lease. Each mount
// must see at once what was written through the other, also what that one has only in its cache.
func TestCIFSCoherence(t *testing.T) {
	vm.Need(t, "mount.cifs")
	capture := filepath.Join(t.TempDir(), "capture")
	s := serve(t, vm.HostAddr, "--pcap", capture, "--ca")
	share := t.TempDir()
	if err := os.WriteFile(filepath.Join(share, "cred"), []byte("username="+lab.User+"\npassword="+lab.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := vm.MustRun(t, vm.Options{Network: s.net, Modules: []string{"nls_utf8", "cifs"}, Share: []string{share}, Timeout: 4 * time.Minute, Script: fmt.Sprintf(`
cd %s
m() { mkdir -p /mnt/$1; mount.cifs //%s/%s /mnt/$1 -o port=%s,credentials=$PWD/cred,vers=3.1.1,cache=strict,nosharesock,actimeo=30$2; }
m a; m b; m c ,persistenthandles,seal
same() { [ "$(cat $1)" = "$2" ] || { echo "BAD: $1 has $(cat $1), not $2"; exit 1; }; }
for i in 1 2 3 4 5; do
	echo "a $i" >/mnt/a/f
	same /mnt/b/f "a $i"; same /mnt/c/f "a $i"
	echo "b $i" >/mnt/b/f
	same /mnt/a/f "b $i"; same /mnt/c/f "b $i"
	echo "c $i" >/mnt/c/f
	same /mnt/b/f "c $i"; same /mnt/a/f "c $i"
	# What is open and dirty in one cache must be written back when another asks for it.
	exec 3>/mnt/a/open
	echo "dirty $i" >&3
	same /mnt/b/open "dirty $i"
	echo "more $i" >&3
	same /mnt/c/open "dirty $i
more $i"
	exec 3>&-
	# What one has read stays right while it holds the file open.
	exec 4</mnt/b/open
	echo "new $i" >/mnt/a/open
	same /mnt/b/open "new $i"
	exec 4<&-
done
# A file that one has closed only for the time being can be replaced and removed by another.
cat /mnt/b/f /mnt/c/f >/dev/null
mv /mnt/a/open /mnt/a/f
rm /mnt/a/f
umount /mnt/a /mnt/b /mnt/c
echo COHERENT
`, share, vm.HostAddr, lab.Share, serverPort)})
	if !strings.Contains(out, "COHERENT\n") || strings.Contains(out, "BAD") {
		t.Errorf("the caches of the mounts differ:\n%s", out)
	}
	// It must have been leases that did it.
	b, err := os.ReadFile(capture)
	if err != nil {
		t.Fatal(err)
	}
	breaks := 0
	for {
		at := bytes.Index(b, []byte("\xFESMB"))
		if at < 0 || len(b) < at+66 {
			break
		}
		b = b[at:]
		if binary.LittleEndian.Uint16(b[12:]) == 0x12 && binary.LittleEndian.Uint64(b[24:]) == ^uint64(0) && b[64] == 44 {
			breaks++
		}
		b = b[4:]
	}
	t.Logf("%d lease breaks that are not sealed", breaks)
	if breaks < 10 {
		t.Errorf("%d lease breaks: the client was not allowed to cache", breaks)
	}
}
