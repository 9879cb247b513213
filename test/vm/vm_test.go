package vm

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vdbridge/test/lab"
)

func TestScriptOutputStatusAndShare(t *testing.T) {
	Need(t)
	share := t.TempDir()
	res, err := Run(t.Context(), Options{
		Script: "echo hello; echo from-guest >" + share + "/f; touch /etc/only-in-guest && uname -r; exit 7",
		Share:  []string{share},
	})
	if err != nil {
		t.Fatal(err, res.Output)
	}
	if res.Status != 7 || !strings.HasPrefix(res.Output, "hello\n") || strings.Contains(res.Output, "\r") {
		t.Errorf("status %d, output %q", res.Status, res.Output)
	}
	if b, err := os.ReadFile(filepath.Join(share, "f")); err != nil || string(b) != "from-guest\n" {
		t.Errorf("the shared folder has %q, %v", b, err)
	}
	if _, err := os.Stat("/etc/only-in-guest"); err == nil {
		t.Error("the guest wrote to the host's root")
	}
}

// cancelOn cancels a context when text is written.
type cancelOn struct {
	text   string
	cancel context.CancelFunc
}

func (c cancelOn) Write(p []byte) (int, error) {
	if strings.Contains(string(p), c.text) {
		c.cancel()
	}
	return len(p), nil
}

func TestKilledGuestLeavesNothing(t *testing.T) {
	Need(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	res, err := Run(ctx, Options{Script: "cat /proc/cmdline; echo up; sleep 1000", Output: cancelOn{"up", cancel}})
	if !errors.Is(err, ErrDied) {
		t.Fatalf("error %v, want ErrDied", err)
	}
	_, work, ok := strings.Cut(res.Output, "vm.work=")
	work, _, _ = strings.Cut(work, " ")
	if !ok || work == "" {
		t.Fatalf("what the guest had printed is lost: %q", res.Output)
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, d := range dirs {
		if b, _ := os.ReadFile(d); strings.Contains(string(b), work) {
			t.Errorf("a process of the guest is still there: %s %q", d, b)
		}
	}
	if _, err := os.Stat(work); err == nil {
		t.Errorf("the guest's folder %s is still there", work)
	}
}

func TestGuestThatEndsEarlyIsReported(t *testing.T) {
	Need(t)
	_, err := Run(t.Context(), Options{Script: "busybox poweroff -f; sleep 1000"})
	if !errors.Is(err, ErrDied) {
		t.Errorf("error %v, want ErrDied", err)
	}
}

// TestForeignNBD proves the harness itself with programs that are not ours on both sides.
func TestForeignNBD(t *testing.T) {
	Need(t, "nbdkit", "nbd-client", "mkfs.ext4", "e2fsck")
	n := NewTestNet(t)
	nbdkit, _ := lab.Look("nbdkit")
	p, err := n.Start(exec.Command(nbdkit, "-f", "-p", "10809", "--ipaddr", HostAddr, "memory", "256M"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := n.WaitListen(ctx, p, HostAddr+":10809"); err != nil {
		t.Fatal(err)
	}
	out := MustRun(t, Options{Network: n, Modules: []string{"nbd"}, Script: `set -e
nbd-client -N "" ` + HostAddr + ` 10809 /dev/nbd0 -b 4096
mkfs.ext4 -q -F /dev/nbd0
mkdir -p /mnt/a; mount /dev/nbd0 /mnt/a
dd if=/dev/urandom of=/mnt/a/f bs=1M count=8 2>/dev/null; s=$(sha256sum </mnt/a/f); umount /mnt/a
echo 3 >/proc/sys/vm/drop_caches
mount /dev/nbd0 /mnt/a; [ "$s" = "$(sha256sum </mnt/a/f)" ]; umount /mnt/a
e2fsck -fn /dev/nbd0
nbd-client -d /dev/nbd0
echo all-good`})
	if !strings.Contains(out, "all-good") {
		t.Error(out)
	}
}
