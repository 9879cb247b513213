package vhdx

import (
	"errors"
	"path/filepath"
	"testing"
)

// The headers are as this session has left them until somebody else opens the image for writing.
func TestUnchanged(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "a.vhdx")
	if err := CreateFile(ctx, path, CreateOptions{Size: 8 << 20, BlockSize: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	open := func(readOnly bool) (*Disk, *OSFile) {
		f, err := OpenOSFile(path, readOnly)
		if err != nil {
			t.Fatal(err)
		}
		// Without the locks of OSFile, as of a file server that has forgotten us.
		d, err := Open(ctx, struct{ Backing }{f}, Options{ReadOnly: readOnly})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d, f
	}
	d, f := open(false)
	look := func(step string, want error) {
		t.Helper()
		if err := d.Unchanged(ctx, f); !errors.Is(err, want) {
			t.Errorf("%s: %v", step, err)
		}
	}
	look("opened", nil)
	for i := range int64(3) {
		if err := errors.Join(d.Write(ctx, make([]byte, 512), i<<20, false), d.Flush(ctx)); err != nil {
			t.Fatal(err)
		}
		look("written", nil)
	}
	// A header that is being written may be there already, or half.
	h := d.session.header()
	h.sequence++
	h.dataWriteGUID = NewGUID()
	slot := 1 - d.session.slot
	var b, was [headerSize]byte
	h.encode(b[:])
	if _, err := f.ReadAt(ctx, was[:], headerOffset(slot)); err != nil {
		t.Fatal(err)
	}
	put := func(p []byte) {
		if err := writeFull(ctx, f, p, headerOffset(slot)); err != nil {
			t.Fatal(err)
		}
	}
	put(b[:])
	look("a newer header", ErrChanged)
	known := d.session.known.Load()
	d.session.known.Store(&knownHeaders{known.current, known.slot, &h})
	look("that we are writing", nil)
	put(b[:headerSize/2])
	b[100] ^= 1
	put(b[:])
	look("half of it", nil)
	d.session.known.Store(known)
	put(was[:])
	look("as before", nil)

	other, _ := open(false)
	if err := other.Write(ctx, make([]byte, 512), 0, false); err != nil {
		t.Fatal(err)
	}
	look("changed by another", ErrChanged)
}
