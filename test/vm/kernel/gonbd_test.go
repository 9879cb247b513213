package kernel

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gonbd "github.com/pojntfx/go-nbd/pkg/client"

	"vdbridge/test/lab"
	"vdbridge/test/vm"
)

// inGuest tells this test binary that it runs inside a guest, and where the export is.
const inGuest = "VDBRIDGE_TEST_GONBD"

// TestGoNBDClient attaches an export to a kernel with go-nbd's client, which shakes hands by itself and gives the socket to /dev/nbd0. The test binary runs once more
// inside the guest for that.
func TestGoNBDClient(t *testing.T) {
	if addr := os.Getenv(inGuest); addr != "" {
		goNBDInGuest(t, addr)
		return
	}
	vm.Need(t, "qemu-img")
	s := serve(t, "127.0.0.1")
	image := filepath.Join(s.disks, "disk.vhdx")
	run(t, "qemu-img", "create", "-q", "-f", "vhdx", "-o", "subformat=dynamic", image, "64M")
	// go-nbd asks for the export "default" when it is not told a name.
	export, _, err := s.vd.NBD(t.Context(), lab.URL("127.0.0.1:"+serverPort, "disk.vhdx"), vm.HostAddr+":10809", "--mode", "rsvd", "--export", "default")
	if err != nil {
		t.Fatal(err)
	}
	share := t.TempDir() // the guest has a /tmp of its own, but sees this folder
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(share, "guest.test")
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	out := vm.MustRun(t, vm.Options{Network: s.net, Modules: []string{"nbd"}, Share: []string{share}, Script: `set -e
cd ` + share + `
` + inGuest + `=` + vm.HostAddr + `:10809 ./guest.test -test.v -test.timeout 90s -test.run '^TestGoNBDClient$'
`})
	_, device, _ := strings.Cut(out, "device ")
	device, _, _ = strings.Cut(device, "\n")
	if err := export.Stop(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-img", "check", "-f", "vhdx", image)
	raw := filepath.Join(t.TempDir(), "raw")
	run(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", image, raw)
	if h := hashFile(t, raw); h != device {
		t.Errorf("the guest saw a disk with SHA-256 %q, the image has %s", device, h)
	}
	if t.Failed() {
		t.Logf("export:\n%s\nguest:\n%s", export.Output(), out)
	}
}

// goNBDInGuest attaches the export at addr to /dev/nbd0, writes, reads back from a second handle, and prints the hash of the device.
func goNBDInGuest(t *testing.T, addr string) {
	const path = "/dev/nbd0"
	device, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	connected, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- gonbd.Connect(conn, device, &gonbd.Options{BlockSize: 512, OnConnected: func() { close(connected) }})
	}()
	select {
	case <-connected:
	case err := <-ended:
		t.Fatalf("connect: %v", err)
	}
	p := make([]byte, 8<<20)
	var seed [32]byte
	rand.NewChaCha8(seed).Read(p)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		if _, err := f.WriteAt(p, int64(i)*13<<20+512); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
	f, err = os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(p))
	for i := range 4 {
		if _, err := f.ReadAt(got, int64(i)*13<<20+512); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("%d: read something else (%v)", i, err)
		}
	}
	h := sha256.New()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(h, f); err != nil || n != 64<<20 {
		t.Fatalf("%d bytes: %v", n, err)
	}
	fmt.Printf("device %x\n", h.Sum(nil))
	if err := gonbd.Disconnect(device); err != nil {
		t.Fatalf("disconnect: %v", err)
	}
	<-ended // with an error, as the kernel was told to let go
}
