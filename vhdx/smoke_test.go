package vhdx

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestSmoke(t *testing.T) {
	ctx := context.Background()
	p := filepath.Join(t.TempDir(), "a.vhdx")
	if err := CreateFile(ctx, p, CreateOptions{Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	d, err := OpenFile(ctx, p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := bytes.Repeat([]byte{1, 2, 3, 4}, 3<<20)
	if err := d.Write(ctx, w, 100<<20, false); err != nil {
		t.Fatal(err)
	}
	if err := d.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("qemu-img", "check", p).CombinedOutput()
	t.Logf("%s %v", out, err)
	out, err = exec.Command("qemu-img", "map", p).CombinedOutput()
	t.Logf("%s %v", out, err)
	out, err = exec.Command("vhdiinfo", p).CombinedOutput()
	t.Logf("%s %v", out, err)
}
