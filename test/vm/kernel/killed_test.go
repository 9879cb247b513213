package kernel

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vdbridge/test/krb5"
	"vdbridge/test/lab"
	"vdbridge/test/vm"
)

// Environment variables of the tests that kill servers.
const (
	killsName = "VDBRIDGE_KILLS" // how often; `make test-vm` has more
	seedName  = "VDBRIDGE_SEED"
)

func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func seed(t *testing.T) uint64 {
	s := number(t, seedName, rand.Uint64()>>32)
	t.Logf("%s=%d", seedName, s)
	return s
}

// watcher closes a channel when the output has a text.
type watcher struct {
	text string
	seen chan struct{}

	mu  sync.Mutex
	all bytes.Buffer
	hit bool
}

func watch(text string) *watcher { return &watcher{text: text, seen: make(chan struct{})} }

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all.Write(p)
	if !w.hit && strings.Contains(w.all.String(), w.text) {
		w.hit = true
		close(w.seen)
	}
	return len(p), nil
}

// victim is a server that is killed and started again at the same address.
type victim struct {
	t     *testing.T
	start func() (*lab.Proc, error)
	p     *lab.Proc
}

func newVictim(t *testing.T, start func() (*lab.Proc, error)) *victim {
	t.Helper()
	v := &victim{t: t, start: start}
	var err error
	if v.p, err = start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.p.Stop(20 * time.Second); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the server printed:\n%s", v.p.Output())
		}
	})
	return v
}

// In a memory map the same loss is a SIGBUS, so there are none.
// torment kills the server n times while the guest works: begin is when it does, end when it is over early. It lets the guest come back first each time, which the server
// says with the text back: when Linux 6.1 loses the server again while it opens its channels again, all of the guest stands still for good.
func (v *victim) torment(n int, rng *rand.Rand, back string, begin, end <-chan struct{}) {
	select {
	case <-begin:
	case <-end:
		return
	}
	ctx, cancel := context.WithCancel(v.t.Context())
	defer cancel()
	go func() {
		select {
		case <-end:
			cancel()
		case <-ctx.Done():
		}
	}()
	for range n {
		if err := v.p.WaitOutput(ctx, back); err != nil || !pause(time.Duration(1000+rng.IntN(2500))*time.Millisecond, end) {
			return
		}
		v.p.Kill()
		if strings.Contains(v.p.Output(), "panic") {
			v.t.Errorf("the server: %s", v.p.Output())
		}
		pause(time.Duration(rng.IntN(1500))*time.Millisecond, nil)
		p, err := v.start()
		if err != nil {
			v.t.Errorf("start again: %v", err)
			return
		}
		v.p = p
	}
	_ = v.p.WaitOutput(ctx, back)
	pause(time.Second, end)
}

func pause(d time.Duration, end <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-end:
		return false
	}
}

// static builds a program of the module that runs in a guest.
func static(t *testing.T, pkg string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-o", bin, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	return bin
}

// realm makes a KDC, a keytab for the server and a ticket cache that already has the ticket for it, so that the guest needs no KDC.
func realm(t *testing.T, host, user string) (keytab, cache, conf string) {
	t.Helper()
	k := krb5.Start(t, krb5.Options{})
	k.User(t, user, "pass")
	// Linux 6.1 asks for a ticket of cifs/, with no name behind it, for all channels but the first. A keytab cannot hold such a name, so it gets the same key.
	for _, name := range []string{"cifs/" + host, "cifs/"} {
		k.Admin(t, "addprinc -pw shared -e aes256-cts-hmac-sha1-96:onlyrealm "+name)
	}
	keytab = k.Keytab(t, "server.keytab", "cifs/"+host)
	k.Kinit(t, user, "pass", "tickets")
	cache = k.File("tickets")
	kvno, err := lab.Look("kvno")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(kvno, "-c", "FILE:"+cache, "cifs/"+host, "cifs/")
	cmd.Env = k.Env()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("kvno: %v\n%s", err, out)
	}
	return keytab, cache, k.Conf
}

// TestCIFSKilled lets a verified workload run on a mount of Linux's own SMB client, sealed, over four connections, with persistent opens and Kerberos, while the server is
// killed and started again. No call may fail, no byte may be lost, and in the end the files on the server are what the guest believes.
func TestCIFSKilled(t *testing.T) {
	vm.Need(t, append([]string{"mount.cifs", "cifs.upcall", "request-key", "kvno"}, krb5.Tools...)...)
	const host = "files.vdb.test"
	s := seed(t)
	kills := int(number(t, killsName, 2))
	net := vm.NewTestNet(t)
	disks, share := t.TempDir(), t.TempDir()
	keytab, cache, conf := realm(t, host, "alice")
	vd, err := lab.NewProgram(lab.Vdbridge(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	vd.Start = net.StartCommand
	v := newVictim(t, func() (*lab.Proc, error) {
		p, _, err := vd.Serve(t.Context(), disks, vm.HostAddr+":445", "--ca", "--keytab", keytab, "--log-level", "info")
		return p, err
	})
	for from, to := range map[string]string{cache: "tickets", conf: "krb5.conf", static(t, "vdbridge/test/fsx"): "fsx"} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(share, to), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := strings.NewReplacer("SHARE", share, "HOST", host, "ADDR", vm.HostAddr, "DISKS", lab.Share, "SEED", fmt.Sprint(s)).Replace(`
cd SHARE
cp krb5.conf /etc/krb5.conf
cp tickets /tmp/krb5cc_0; chmod 600 /tmp/krb5cc_0
echo 'ADDR HOST' >>/etc/hosts
mkdir -p /mnt/s
busybox syslogd -O SHARE/log
mount.cifs //HOST/DISKS /mnt/s -o ip=ADDR,vers=3.1.1,sec=krb5,username=alice,cruid=0,seal,multichannel,max_channels=4,persistenthandles,hard || { dmesg | tail; cat SHARE/log; exit 1; }
mkdir /mnt/s/work
cat /proc/fs/cifs/DebugData >SHARE/debug
timeout 900 ./fsx -dir /mnt/s/work -mmap=false -workers 1 -seed SEED -duration 20m -until SHARE/stop
status=$?
[ $status = 0 ] || dmesg | tail -30
umount /mnt/s
exit $status`)
	out, done := watch("fsx: seed"), make(chan struct{})
	var tormented sync.WaitGroup
	tormented.Go(func() {
		v.torment(kills, rand.New(rand.NewPCG(s, 0)), "channels=4", out.seen, done)
		_ = os.WriteFile(filepath.Join(share, "stop"), nil, 0o644)
	})
	res, err := vm.Run(t.Context(), vm.Options{Network: net, Modules: []string{"nls_utf8", "cifs"}, Share: []string{share}, Script: script, Memory: "768M", Output: out,
		Timeout: 3*time.Minute + time.Duration(kills)*30*time.Second})
	close(done)
	tormented.Wait()
	if err != nil || res.Status != 0 {
		t.Fatalf("the guest: %v, status %d:\n%s", err, res.Status, res.Output)
	}
	debug, err := os.ReadFile(filepath.Join(share, "debug"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(debug), "Extra Channels: 3") {
		t.Errorf("not four channels:\n%s\n%s", debug, res.Output)
	}
	good := ""
	for line := range strings.Lines(res.Output) {
		if rest, ok := strings.CutPrefix(line, "fsx: sum "); ok {
			sum, name, _ := strings.Cut(strings.TrimSpace(rest), " ")
			if got := hashFile(t, filepath.Join(disks, "work", name)); got != sum {
				t.Errorf("%s on the server is not what the guest believes", name)
			}
		}
		if strings.HasPrefix(line, "fsx: good") {
			good = strings.TrimSpace(line)
		}
	}
	if good == "" {
		t.Errorf("the workload did not end well:\n%s", res.Output)
	}
	t.Logf("%s, %d kills", good, kills)
}

// TestNBDKilled lets fio write and verify on the kernel's nbd device, an export of `vdbridge nbd --on-loss hold`, while the server below is killed and started again. The kernel must
// notice nothing but the time, and afterwards the image must be sound and have, byte for byte, what the kernel saw.
func TestNBDKilled(t *testing.T) {
	vm.Need(t, "nbd-client", "fio", "qemu-img")
	s := seed(t)
	kills := int(number(t, killsName, 2))
	net := vm.NewTestNet(t)
	disks, share := t.TempDir(), t.TempDir()
	vd, err := lab.NewProgram(lab.Vdbridge(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	vd.Start = net.StartCommand
	image := filepath.Join(disks, "disk.vhdx")
	run(t, "qemu-img", "create", "-q", "-f", "vhdx", "-o", "subformat=dynamic", image, "128M")
	v := newVictim(t, func() (*lab.Proc, error) {
		p, _, err := vd.Serve(t.Context(), disks, "127.0.0.1:"+serverPort, "--ca", "--log-level", "info")
		return p, err
	})
	export, _, err := vd.NBD(t.Context(), lab.URL("127.0.0.1:"+serverPort, "disk.vhdx"), vm.HostAddr+":10809", "--mode", "rsvd", "--on-loss", "hold", "--channels", "2")
	if err != nil {
		t.Fatal(err)
	}
	script := strings.NewReplacer("SHARE", share, "ADDR", vm.HostAddr, "SEED", fmt.Sprint(s)).Replace(`
cd SHARE
nbd-client ADDR 10809 /dev/nbd0 -C 2 || exit 1
echo working
n=0
while [ ! -e stop ]; do
	n=$((n + 1))
	fio --name=v --filename=/dev/nbd0 --direct=1 --rw=randwrite --bsrange=4k-64k --size=96M --io_size=24M --iodepth=16 --ioengine=libaio --randseed=$((SEED + n)) --fsync=32 \
		--verify=crc32c --verify_fatal=1 --do_verify=1 --minimal >fio.log 2>&1 || { cat fio.log; dmesg | tail -5; exit 1; }
done
echo "rounds $n"
dmesg | grep -i 'nbd0.*\(error\|timed\)' && exit 1
blockdev --flushbufs /dev/nbd0
echo "device $(sha256sum </dev/nbd0)"
nbd-client -d /dev/nbd0
`)
	out, done := watch("working"), make(chan struct{})
	var tormented sync.WaitGroup
	tormented.Go(func() {
		v.torment(kills, rand.New(rand.NewPCG(s, 1)), "", out.seen, done)
		_ = os.WriteFile(filepath.Join(share, "stop"), nil, 0o644)
	})
	res, err := vm.Run(t.Context(), vm.Options{Network: net, Modules: []string{"nbd"}, Share: []string{share}, Script: script, Output: out,
		Timeout: 2*time.Minute + time.Duration(kills)*20*time.Second})
	close(done)
	tormented.Wait()
	if err != nil || res.Status != 0 {
		t.Fatalf("the guest: %v, status %d:\n%s\nthe export:\n%s", err, res.Status, res.Output, export.Output())
	}
	if err := export.Stop(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	if err := v.p.Stop(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	_, device, _ := strings.Cut(res.Output, "device ")
	device, _, _ = strings.Cut(device, " ")
	run(t, "qemu-img", "check", "-f", "vhdx", image)
	raw := filepath.Join(t.TempDir(), "raw")
	run(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", image, raw)
	if h := hashFile(t, raw); h != device {
		t.Errorf("the kernel saw a disk with SHA-256 %s, the image has %s", device, h)
	}
	_, rounds, _ := strings.Cut(res.Output, "rounds ")
	rounds, _, _ = strings.Cut(rounds, "\n")
	t.Logf("%s rounds of fio, %d kills", rounds, kills)
}
