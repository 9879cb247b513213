package cluster

import (
	"context"
	"os"
	"testing"
	"time"

	"vdbridge/test/lab"
	"vdbridge/test/vm"
)

// all is the value of VDBRIDGE_VM with which the tests run that take minutes: `make test-vm` sets it.
const all = "all"

func newCluster(t *testing.T, fs, size string) *Cluster {
	t.Helper()
	vm.Need(t, Tools(fs)...)
	lab.NeedRoot(t)
	start := time.Now()
	c, err := New(t.Context(), lab.Vdbridge(t), t.TempDir(), size, func(who, what string) { t.Logf("[%5.1fs] %s: %s", time.Since(start).Seconds(), who, what) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// One disk, two kernels, OCFS2 on both.
func TestOCFS2(t *testing.T) {
	c := newCluster(t, "ocfs2", "256M")
	if err := Exchange(t.Context(), c, "ocfs2", t.TempDir()); err != nil {
		t.Fatal(err)
	}
}

// No write of a fenced node reaches the disk after it was fenced, whatever was under way.
func TestFencedWriter(t *testing.T) {
	lab.Need(t, "fio")
	if err := FenceRaw(t.Context(), newCluster(t, "", "256M")); err != nil {
		t.Fatal(err)
	}
}

// A node is fenced while it writes; the other takes its journal over and goes on.
func TestOCFS2Fence(t *testing.T) { fenceTest(t, "ocfs2") }

// The same with GFS2, corosync and dlm_controld.
func TestGFS2(t *testing.T) {
	needLong(t)
	c := newCluster(t, "gfs2", "256M")
	if err := Exchange(t.Context(), c, "gfs2", t.TempDir()); err != nil {
		t.Fatal(err)
	}
}

func TestGFS2Fence(t *testing.T) { fenceTest(t, "gfs2") }

func fenceTest(t *testing.T, fs string) {
	needLong(t)
	c := newCluster(t, fs, "256M")
	if err := Fence(context.WithoutCancel(t.Context()), c, fs, t.TempDir()); err != nil {
		t.Fatal(err)
	}
}

func needLong(t *testing.T) {
	t.Helper()
	if os.Getenv("VDBRIDGE_VM") != all {
		t.Skip("takes a minute: make test-vm runs it (VDBRIDGE_VM=all)")
	}
}
