package kernel

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"vdbridge/test/lab"
	"vdbridge/test/vm"
)

// served is `vdbridge serve` in a guest's network.
type served struct {
	net   *vm.Net
	vd    *lab.Program
	disks string // the folder that is served
}

const serverPort = "4450"

// serve starts `vdbridge serve` at host:serverPort inside a new network, until the test ends.
func serve(t *testing.T, host string, more ...string) served {
	t.Helper()
	s := served{net: vm.NewTestNet(t), disks: t.TempDir()}
	vd, err := lab.NewProgram(lab.Vdbridge(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	vd.Start = s.net.StartCommand
	s.vd = vd
	p, _, err := vd.Serve(t.Context(), s.disks, host+":"+serverPort, more...)
	if err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, p)
	return s
}

func stopAtEnd(t *testing.T, p *lab.Proc) {
	t.Cleanup(func() {
		if err := p.Stop(20 * time.Second); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("it printed:\n%s", p.Output())
		}
	})
}

// run runs a program of the host and fails the test unless it succeeds.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := lab.Run(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestNBDDriver attaches the export of a shared disk to a kernel, makes a file system on it and works there. Afterwards the image on the
// host must be in order by qemu-img's judgement, and have, byte for byte, what the kernel saw on its device.
func TestNBDDriver(t *testing.T) {
	vm.Need(t, "nbd-client", "mkfs.ext4", "e2fsck", "qemu-img")
	for _, mode := range []string{"rsvd", "file"} {
		t.Run(mode, func(t *testing.T) {
			s := serve(t, "127.0.0.1")
			image := filepath.Join(s.disks, "disk.vhdx")
			run(t, "qemu-img", "create", "-q", "-f", "vhdx", "-o", "subformat=dynamic", image, "256M")
			export, _, err := s.vd.NBD(t.Context(), lab.URL("127.0.0.1:"+serverPort, "disk.vhdx"), vm.HostAddr+":10809", "--mode", mode)
			if err != nil {
				t.Fatal(err)
			}
			out := vm.MustRun(t, vm.Options{Network: s.net, Modules: []string{"nbd"}, Script: `set -e
nbd-client ` + vm.HostAddr + ` 10809 /dev/nbd0
mkfs.ext4 -q -F /dev/nbd0
mkdir -p /mnt/disk; mount /dev/nbd0 /mnt/disk
cd /mnt/disk
mkdir a; dd if=/dev/urandom of=a/big bs=1M count=24 2>/dev/null
for i in $(seq 200); do head -c $((i * 97)) a/big >a/small$i; done
sha256sum a/* >/tmp/sums
dd if=/dev/urandom of=gone bs=1M count=16 2>/dev/null; sync; rm gone
fstrim -v . || true
cd /; umount /mnt/disk; echo 3 >/proc/sys/vm/drop_caches
mount /dev/nbd0 /mnt/disk; cd /mnt/disk; sha256sum --quiet -c /tmp/sums; cd /; umount /mnt/disk
e2fsck -fn /dev/nbd0
echo "device $(sha256sum </dev/nbd0)"
nbd-client -d /dev/nbd0
`})
			_, device, _ := strings.Cut(out, "device ")
			device, _, _ = strings.Cut(device, " ")
			if err := export.Stop(20 * time.Second); err != nil {
				t.Fatal(err)
			}
			// The server holds the image open only as long as the client does.
			run(t, "qemu-img", "check", "-f", "vhdx", image)
			raw := filepath.Join(t.TempDir(), "raw")
			run(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", image, raw)
			run(t, "e2fsck", "-fn", raw)
			if h := hashFile(t, raw); h != device {
				t.Errorf("the kernel saw a disk with SHA-256 %s, the image has %s", device, h)
			}
			if t.Failed() {
				t.Logf("export:\n%s\nguest:\n%s", export.Output(), out)
			}
		})
	}
}

func hashFile(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// tree makes files of many sizes and names below root, and returns their hashes by relative path.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	sizes := []int{0, 1, 511, 512, 4095, 4096, 65535, 65536, 65537, 1 << 20, 1<<20 + 1, 9_000_000}
	names := []string{"plain", "with space", "ünïcödé-名前", "UPPER.and.dots", "semi;colon&ampersand", "long-" + strings.Repeat("x", 180)}
	i := 0
	for _, dir := range []string{"", "one", "one/two", "one/two/three"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			p := make([]byte, sizes[i%len(sizes)])
			for j := range p {
				p[j] = byte(j*7 + i + j>>8*13)
			}
			if err := os.WriteFile(filepath.Join(root, dir, name), p, 0o644); err != nil {
				t.Fatal(err)
			}
			i++
		}
	}
	for j := range 300 {
		if err := os.WriteFile(filepath.Join(root, "one", fmt.Sprintf("f%03d", j)), fmt.Appendf(nil, "file %d", j), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return hashes(t, root)
}

func hashes(t *testing.T, root string) map[string]string {
	t.Helper()
	m := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err == nil {
			m[rel] = hashFile(t, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func compare(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	var wrong []string
	for rel, sum := range want {
		switch got[rel] {
		case sum:
		case "":
			wrong = append(wrong, rel+" is missing")
		default:
			wrong = append(wrong, rel+" differs")
		}
	}
	for rel := range got {
		if _, ok := want[rel]; !ok {
			wrong = append(wrong, rel+" is too much")
		}
	}
	sort.Strings(wrong)
	if len(wrong) > 0 {
		t.Errorf("%s: %d differences: %s", what, len(wrong), strings.Join(wrong[:min(10, len(wrong))], "; "))
	}
}

// TestCIFSClient mounts the server with Linux's own SMB client, in each dialect, signed and sealed, and copies a tree both ways.
func TestCIFSClient(t *testing.T) {
	vm.Need(t, "mount.cifs")
	s := serve(t, vm.HostAddr)
	share := t.TempDir()
	want := tree(t, filepath.Join(share, "src"))
	cases := []struct{ name, options string }{
		{"3.1.1-signed", "vers=3.1.1,sec=ntlmsspi"},
		{"3.1.1-sealed", "vers=3.1.1,sec=ntlmssp,seal"},
		{"3.0.2-signed", "vers=3.02,sec=ntlmsspi"},
		{"3.0-signed", "vers=3.0,sec=ntlmsspi"},
		{"3.0-sealed", "vers=3.0,sec=ntlmssp,seal"},
	}
	if err := os.WriteFile(filepath.Join(share, "cred"), []byte("username="+lab.User+"\npassword="+lab.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	script := "cd " + share + "\n"
	for _, c := range cases {
		err := os.WriteFile(filepath.Join(share, c.name+".sh"), []byte(strings.NewReplacer("NAME", c.name, "OPTIONS", c.options).Replace(`
m() { mount.cifs //`+vm.HostAddr+`/`+lab.Share+` /mnt/s -o port=`+serverPort+`,credentials=$PWD/cred,iocharset=utf8,OPTIONS; }
mkdir -p /mnt/s
m
mkdir /mnt/s/NAME
cp -r src/. /mnt/s/NAME/
umount /mnt/s
m # with nothing cached
mkdir back-NAME
cp -r /mnt/s/NAME/. back-NAME/
mv /mnt/s/NAME/one/two /mnt/s/NAME/two
rm /mnt/s/NAME/one/f000
echo appended >>/mnt/s/NAME/one/f001
truncate -s 3 /mnt/s/NAME/one/f002
[ "$(ls /mnt/s/NAME/one | wc -l)" = 305 ]
df /mnt/s >/dev/null
umount /mnt/s
`)), 0o644)
		if err != nil {
			t.Fatal(err)
		}
		script += fmt.Sprintf("if sh -ex %[1]s.sh; then echo good %[1]s; else dmesg | tail -5; umount -f /mnt/s 2>/dev/null || true; fi\n", c.name)
	}
	out := vm.MustRun(t, vm.Options{Network: s.net, Modules: []string{"nls_utf8", "cifs"}, Share: []string{share}, Script: script, Memory: "768M", Timeout: 4 * time.Minute})
	for _, c := range cases {
		if !strings.Contains(out, "good "+c.name+"\n") {
			t.Errorf("%s: the guest's part failed:\n%s", c.name, out)
			continue
		}
		compare(t, c.name+": read back by the guest", hashes(t, filepath.Join(share, "back-"+c.name)), want)
		changed := make(map[string]string)
		for rel, sum := range want {
			if after, ok := strings.CutPrefix(rel, "one/two/"); ok {
				rel = "two/" + after
			}
			changed[rel] = sum
		}
		delete(changed, "one/f000")
		changed["one/f001"] = sum("file 1appended\n")
		changed["one/f002"] = sum("fil")
		compare(t, c.name+": on the server", hashes(t, filepath.Join(s.disks, c.name)), changed)
	}
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}
