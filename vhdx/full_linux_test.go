package vhdx

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFullFileSystem lets the file system under an image run full. What has its place can still be written and flushed, space can be given
// back and used again, and the image stays sound.
func TestFullFileSystem(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("VDBRIDGE_REQUIRE_TOOLS") != "" {
			t.Fatal("only root may mount a small file system")
		}
		t.Skip("only root may mount a small file system")
	}
	ctx := context.Background()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "a.vhdx")
	if err := CreateFile(ctx, path, CreateOptions{Size: 64 * mib, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	d, err := OpenFile(ctx, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	block := bytes.Repeat([]byte{1}, mib)
	for i := range int64(4) {
		if err := d.Write(ctx, block, i*mib, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	for err == nil {
		_, err = filler.Write(block[:4096])
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}

	full := d.Write(ctx, block, 40*mib, true)
	if !errors.Is(full, unix.ENOSPC) {
		t.Errorf("a write that needs space: %v, want ENOSPC", full)
	}
	fresh := bytes.Repeat([]byte{2}, 4096)
	if err := d.Write(ctx, fresh, mib, true); err != nil {
		t.Errorf("a write to a block that has its place: %v", err)
	}
	if err := d.Flush(ctx); err != nil {
		t.Errorf("flush: %v", err)
	}
	if err := d.Trim(ctx, 2*mib, 2*mib); err != nil {
		t.Errorf("trim: %v", err)
	}
	for range 2 { // the first makes the trim durable; the space is free once no request is left that may look there
		if err := d.Flush(ctx); err != nil {
			t.Errorf("flush after trim: %v", err)
		}
	}
	if err := d.Write(ctx, block, 50*mib, true); err != nil {
		t.Errorf("a write to space that was given back: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("close: %v", err)
	}

	f, err := OpenOSFile(path, true)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Check(ctx, f)
	if err != nil || r.State == StateCorrupt {
		t.Errorf("check: %v, %v", r, err)
	}
	f.Close()
	d, err = OpenFile(ctx, path, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got := make([]byte, mib)
	for _, want := range []struct {
		off int64
		b   byte
	}{{0, 1}, {mib, 2}, {50 * mib, 1}} {
		if err := d.Read(ctx, got[:4096], want.off); err != nil || got[0] != want.b || got[4095] != want.b {
			t.Errorf("at %d: %d, %v, want %d", want.off, got[0], err, want.b)
		}
	}
}
