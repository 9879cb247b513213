package vhd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"vdbridge/vhdx"
	"vdbridge/vhdx/crashfile"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// diffImage is a differencing disk, written from the format's specification, with the sectors that pick chooses from data. data is all of the disk.
func diffImage(id, parent vhdx.GUID, data []byte, blockSize int, rel, abs string, pick func(sector int) bool) []byte {
	size := len(data)
	foot := make([]byte, footerSize)
	copy(foot, "conectix")
	be.PutUint32(foot[8:], 2)
	be.PutUint32(foot[12:], 1<<16)
	be.PutUint64(foot[16:], footerSize)
	copy(foot[28:], "test")
	be.PutUint64(foot[40:], uint64(size))
	be.PutUint64(foot[48:], uint64(size))
	be.PutUint32(foot[60:], typeDifferencing)
	copy(foot[68:], id[:])
	be.PutUint32(foot[64:], sum(foot, 64))
	blocks := (size + blockSize - 1) / blockSize
	const table = footerSize + headerSize
	tableLen := (4*blocks + 511) / 512 * 512
	head := make([]byte, headerSize)
	copy(head, "cxsparse")
	be.PutUint64(head[8:], ^uint64(0))
	be.PutUint64(head[16:], table)
	be.PutUint32(head[24:], 1<<16)
	be.PutUint32(head[28:], uint32(blocks))
	be.PutUint32(head[32:], uint32(blockSize))
	copy(head[40:], parent[:])
	for i, u := range utf16.Encode([]rune(filepath.Base(strings.ReplaceAll(abs, `\`, "/")))) {
		be.PutUint16(head[64+2*i:], u)
	}
	at := table + tableLen
	var paths []byte
	for i, p := range []struct{ platform, path string }{{"W2ru", rel}, {"W2ku", abs}} {
		e := head[576+24*i:]
		copy(e, p.platform)
		be.PutUint32(e[4:], 512) // space
		var b []byte
		for _, u := range utf16.Encode([]rune(p.path)) {
			b = binary.LittleEndian.AppendUint16(b, u)
		}
		be.PutUint32(e[8:], uint32(len(b)))
		be.PutUint64(e[16:], uint64(at+len(paths)))
		paths = append(paths, append(b, make([]byte, 512-len(b))...)...)
	}
	be.PutUint32(head[36:], sum(head, 36))
	out := append(append(bytes.Clone(foot), head...), bytes.Repeat([]byte{0xff}, tableLen)...)
	out = append(out, paths...)
	bitmap := (blockSize/512/8 + 511) / 512 * 512
	for b := range blocks {
		bits, body, any := make([]byte, bitmap), make([]byte, blockSize), false
		for s := range blockSize / 512 {
			if o := b*blockSize + s*512; o < size && pick(o/512) {
				bits[s/8] |= 0x80 >> (s % 8)
				copy(body[s*512:], data[o:o+512])
				any = true
			}
		}
		if any {
			be.PutUint32(out[table+4*b:], uint32(len(out)/512))
			out = append(append(out, bits...), body...)
		}
	}
	return append(out, foot...)
}

// TestQEMUImages reads fixed and dynamic images that qemu-img made and qemu-io filled.
func TestQEMUImages(t *testing.T) {
	img, qio := tool(t, "qemu-img"), tool(t, "qemu-io")
	for _, kind := range []string{"fixed", "dynamic"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			path, raw := filepath.Join(dir, "a.vhd"), filepath.Join(dir, "a.raw")
			run(t, img, "create", "-q", "-f", "vpc", "-o", "subformat="+kind+",force_size=on", path, "21M")
			run(t, qio, "-f", "vpc", "-c", "write -P 0x5a 0 64k", "-c", "write -P 0xa5 5000k 12k", "-c", "write -P 0x77 20M 512", path)
			d, err := OpenFile(t.Context(), path, Options{})
			must(t, err)
			if i := d.Info(); i.Kind.String() != kind || i.Size != 21<<20 || !d.ReadOnly() {
				t.Errorf("%+v", i)
			}
			copyOut(t, d, raw)
			run(t, img, "compare", "-f", "raw", "-F", "vpc", raw, path)
			if err := d.Write(t.Context(), make([]byte, 512), 0, false); !errors.Is(err, vhdx.ErrReadOnly) {
				t.Errorf("write: %v", err)
			}
			must(t, d.Close())
		})
	}
}

// copyOut writes what we read to a raw file, by extents.
func copyOut(t *testing.T, d *Disk, path string) {
	t.Helper()
	out := make([]byte, d.Size())
	off := int64(0)
	must(t, d.Extents(t.Context(), 0, d.Size(), func(n int64, hole, zero bool) bool {
		if !zero {
			must(t, d.Read(t.Context(), out[off:off+n], off))
		}
		off += n
		return true
	}))
	if off != d.Size() {
		t.Fatalf("the extents end at %d", off)
	}
	all := make([]byte, d.Size())
	must(t, d.Read(t.Context(), all, 0))
	if !bytes.Equal(all, out) {
		t.Fatal("an extent that is said to be zero is not")
	}
	must(t, os.WriteFile(path, all, 0o600))
}

// chain makes a dynamic base by qemu and two differencing disks over it, and returns what the topmost shows.
func chain(t *testing.T, dir string) []byte {
	t.Helper()
	img, qio := tool(t, "qemu-img"), tool(t, "qemu-io")
	base := filepath.Join(dir, "base.vhd")
	run(t, img, "create", "-q", "-f", "vpc", "-o", "subformat=dynamic,force_size=on", base, "9M")
	run(t, qio, "-f", "vpc", "-c", "write -P 0x11 0 3M", "-c", "write -P 0x22 5M 1M", base)
	d, err := OpenFile(t.Context(), base, Options{})
	must(t, err)
	want := make([]byte, d.Size())
	must(t, d.Read(t.Context(), want, 0))
	id := d.f.id
	must(t, d.Close())
	rng := rand.New(rand.NewPCG(1, 1))
	for i, name := range []string{"mid.vhd", "top.vhd"} {
		parent := []string{"base.vhd", "mid.vhd"}[i]
		data := make([]byte, len(want))
		for k := range data {
			data[k] = byte(rng.Uint32())
		}
		own := map[int]bool{}
		for range 400 {
			own[rng.IntN(len(want)/512)] = true
		}
		for s := 4096; s < 4096+700; s++ {
			own[s] = i == 0
		}
		next := vhdx.NewGUID()
		b := diffImage(next, id, data, 2<<20, `.\`+parent, `\\?\c:\disks\`+parent, func(s int) bool { return own[s] })
		must(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
		for s, ok := range own {
			if ok {
				copy(want[s*512:(s+1)*512], data[s*512:])
			}
		}
		id = next
	}
	return want
}

func TestChain(t *testing.T) {
	dir := t.TempDir()
	want := chain(t, dir)
	top := filepath.Join(dir, "top.vhd")
	d, err := OpenFile(t.Context(), top, Options{})
	must(t, err)
	got := make([]byte, d.Size())
	must(t, d.Read(t.Context(), got, 0))
	if !bytes.Equal(got, want) {
		t.Error("the chain shows other data")
	}
	copyOut(t, d, filepath.Join(dir, "raw"))
	if i := d.Info(); i.Kind != vhdx.KindDifferencing || filepath.Base(i.Parent) != "mid.vhd" || d.Parent().Parent() == nil {
		t.Errorf("%+v", i)
	}
	must(t, d.Close())

	must(t, os.Rename(filepath.Join(dir, "base.vhd"), filepath.Join(dir, "gone.vhd")))
	if _, err := OpenFile(t.Context(), top, Options{}); !errors.Is(err, vhdx.ErrParentMissing) || !strings.Contains(err.Error(), "base.vhd") {
		t.Errorf("missing parent: %v", err)
	}
	b, err := os.ReadFile(top)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "base.vhd"), b, 0o600))
	if _, err := OpenFile(t.Context(), top, Options{}); !errors.Is(err, vhdx.ErrChain) && !errors.Is(err, vhdx.ErrParentChanged) {
		t.Errorf("another parent: %v", err)
	}
	// An image that is its own parent.
	id := vhdx.NewGUID()
	must(t, os.WriteFile(filepath.Join(dir, "loop.vhd"), diffImage(id, id, make([]byte, 1<<20), 2<<20, `.\loop.vhd`, `\\?\c:\loop.vhd`, func(int) bool { return false }), 0o600))
	if _, err := OpenFile(t.Context(), filepath.Join(dir, "loop.vhd"), Options{}); !errors.Is(err, vhdx.ErrChain) {
		t.Errorf("loop: %v", err)
	}
}

// TestDamage opens what is not right.
func TestDamage(t *testing.T) {
	id, parent := vhdx.NewGUID(), vhdx.NewGUID()
	good := diffImage(id, parent, make([]byte, 4<<20), 2<<20, "a", "b", func(s int) bool { return s == 0 })
	const head = footerSize
	fix := func(b []byte) {
		be.PutUint32(b[64:], sum(b[:footerSize], 64))
		copy(b[len(b)-footerSize:], b[:footerSize])
		be.PutUint32(b[head+36:], sum(b[head:head+headerSize], 36))
	}
	for _, c := range []struct {
		name   string
		damage func(b []byte)
		want   error
		says   string
	}{
		{"footer", func(b []byte) { clear(b[:8]); clear(b[len(b)-512:]) }, ErrNotVHD, "not a VHD"},
		{"checksum", func(b []byte) { b[70]++; b[len(b)-512+70]++ }, vhdx.ErrCorrupt, "checksum"},
		{"size", func(b []byte) { be.PutUint64(b[48:], 1<<63); fix(b) }, vhdx.ErrCorrupt, "positive multiple"},
		{"type", func(b []byte) { be.PutUint32(b[60:], 9); fix(b) }, vhdx.ErrCorrupt, "unknown type"},
		{"version", func(b []byte) { be.PutUint32(b[12:], 2<<16); fix(b) }, vhdx.ErrUnsupported, "version 2"},
		{"header outside", func(b []byte) { be.PutUint64(b[16:], 1<<62); fix(b) }, vhdx.ErrCorrupt, "outside the file"},
		{"header", func(b []byte) { b[head] = 0 }, vhdx.ErrCorrupt, "signature"},
		{"block size", func(b []byte) { be.PutUint32(b[head+32:], 3<<20); fix(b) }, vhdx.ErrCorrupt, "block size"},
		{"few entries", func(b []byte) { be.PutUint32(b[head+28:], 1); fix(b) }, vhdx.ErrCorrupt, "table has 1 entries"},
		{"table outside", func(b []byte) { be.PutUint64(b[head+16:], 1<<40); fix(b) }, vhdx.ErrCorrupt, "block table"},
		{"huge table", func(b []byte) {
			be.PutUint64(b[48:], 60<<40)
			be.PutUint32(b[head+28:], ^uint32(0))
			be.PutUint32(b[head+32:], 512)
			fix(b)
		}, vhdx.ErrCorrupt, "entries"},
		{"path outside", func(b []byte) { be.PutUint64(b[head+576+16:], 1<<62); fix(b) }, vhdx.ErrCorrupt, "a path of"},
	} {
		b := bytes.Clone(good)
		c.damage(b)
		f := crashfile.New()
		_, _ = f.WriteAt(t.Context(), b, 0)
		_, err := Open(t.Context(), f, Options{Resolver: vhdx.FileResolver{Dir: t.TempDir()}})
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// One footer is enough, and a block outside the file is found when it is read.
	b := bytes.Clone(good)
	be.PutUint32(b[60:], typeDynamic)
	be.PutUint32(b[footerSize+headerSize+4:], 1<<30)
	fix(b)
	clear(b[len(b)-512:])
	f := crashfile.New()
	_, _ = f.WriteAt(t.Context(), b, 0)
	d, err := Open(t.Context(), f, Options{})
	must(t, err)
	p := make([]byte, 512)
	must(t, d.Read(t.Context(), p, 0))
	if err := d.Read(t.Context(), p, 2<<20); !errors.Is(err, vhdx.ErrCorrupt) {
		t.Errorf("a block outside: %v", err)
	}
	if err := d.Read(t.Context(), p, 4<<20); !errors.Is(err, vhdx.ErrRange) {
		t.Errorf("behind the end: %v", err)
	}
}

// FuzzOpen opens anything, and reads a little of it.
func FuzzOpen(f *testing.F) {
	id, parent := vhdx.NewGUID(), vhdx.NewGUID()
	for _, kind := range []uint32{typeFixed, typeDynamic, typeDifferencing} {
		b := diffImage(id, parent, make([]byte, 8<<10), 4<<10, "a", "b", func(s int) bool { return s == 1 })
		be.PutUint32(b[60:], kind)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		b = bytes.Clone(b)
		if len(b) >= footerSize+headerSize { // else nothing gets past the checksums
			be.PutUint32(b[64:], sum(b[:footerSize], 64))
			be.PutUint32(b[footerSize+36:], sum(b[footerSize:footerSize+headerSize], 36))
		}
		file := crashfile.New()
		_, _ = file.WriteAt(context.Background(), b, 0)
		d, err := Open(context.Background(), file, Options{Resolver: vhdx.FileResolver{Dir: "/nonexistent"}})
		if err != nil {
			return
		}
		p := make([]byte, 4096)
		for off := int64(0); off < min(d.Size(), 1<<20) && d.Size()-off >= 4096; off += 4096 {
			if d.Read(context.Background(), p, off) != nil {
				break
			}
		}
		_ = d.Close()
	})
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func tool(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil && os.Getenv("VDBRIDGE_REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s is needed (VDBRIDGE_REQUIRE_TOOLS=1): %v", name, err)
	}
	if err != nil {
		t.Skipf("SKIPPED: %v, so nothing was proved here", err)
	}
	return p
}

// TestLibvhdi has libvhdi show what we read of a chain.
func TestLibvhdi(t *testing.T) {
	vhdi := tool(t, "vhdiinfo")
	dir := t.TempDir()
	chain(t, dir)
	out := run(t, vhdi, filepath.Join(dir, "top.vhd"))
	d, err := OpenFile(t.Context(), filepath.Join(dir, "top.vhd"), Options{})
	must(t, err)
	if i := d.Info(); !strings.Contains(out, "Differential") || !strings.Contains(strings.ToLower(out), i.ID) || !strings.Contains(out, fmt.Sprintf("(%d bytes)", i.Size)) {
		t.Errorf("vhdiinfo sees something else than %+v:\n%s", i, out)
	}
	must(t, d.Close())
}
