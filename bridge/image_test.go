package bridge

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vdbridge/test/leak"
	"vdbridge/vhdx"
)

func TestInfoAndList(t *testing.T) {
	leak.Check(t)
	e := embed(t, ServeOptions{RSVDVersion: 1})
	o := Options{Credentials: CredentialSource{Getenv: func(string) string { return "secret" }}}
	loc, _ := ParseLocation("smb://me@" + e.addr + "/disks/a.vhdx")
	i, err := GetInfo(context.Background(), loc, o)
	if err != nil || i.Size != testDiskSize || i.RSVD == nil || i.RSVD.Type != "dynamic" || i.RSVD.Format != "VHDX" || i.RSVD.Reservation != "none" || i.Connection.Dialect != "3.1.1" {
		t.Errorf("%+v %+v, %v", i, i.RSVD, err)
	}
	loc.Path = ""
	list, err := List(context.Background(), loc, o)
	if err != nil || len(list) != 1 || list[0].Name != "a.vhdx" || list[0].Directory || list[0].Size == 0 || list[0].Modified.IsZero() {
		t.Errorf("%+v, %v", list, err)
	}
	loc.Path = "a.vhdx"
	r, err := Check(context.Background(), loc, o)
	if err != nil || r.Damaged() {
		t.Errorf("%+v, %v", r, err)
	}
	// A disk that is in use cannot be judged, as its structure changes meanwhile.
	d := e.open(t, nil)
	local := Location{Local: true, Path: filepath.Join(e.dir, "a.vhdx")}
	for _, l := range []Location{loc, local} {
		if _, err := Check(context.Background(), l, o); Classify(err) != ClassBusy {
			t.Errorf("check of %v while it is in use: %v", l, err)
		}
	}
	closeDisk(t, d)
	loc.Path = "new.vhdx"
	if err := Create(context.Background(), loc, o, CreateOptions{Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	if err := Create(context.Background(), loc, o, CreateOptions{Size: 1 << 30}); Classify(err) != ClassExists {
		t.Errorf("create over a file: %v", err)
	}
}

// A differencing image opens with its parent, locally, as a file on a share, and as a shared disk; without it, or with another, it is refused in words.
func TestDifferencing(t *testing.T) {
	leak.Check(t)
	e := embed(t, ServeOptions{RSVDVersion: 1})
	ctx := context.Background()
	base, child := filepath.Join(e.dir, "a.vhdx"), filepath.Join(e.dir, "kids", "child.vhdx")
	sibling := filepath.Join(e.dir, "b.vhdx")
	if err := os.Mkdir(filepath.Dir(child), 0o700); err != nil {
		t.Fatal(err)
	}
	img, err := vhdx.OpenFile(ctx, base, vhdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte{0x37}, 64<<10)
	if err := errors.Join(img.Write(ctx, want, 1<<20, false), img.Close()); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{child, sibling} {
		if err := vhdx.CreateChildFile(ctx, p, base, vhdx.ChildOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	remote := func(p string) Location {
		l, err := ParseLocation("smb://me@" + e.addr + "/disks/" + p)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	o := Options{Credentials: CredentialSource{Getenv: func(string) string { return "secret" }}}
	file := o
	file.Mode = ModeFile
	opens := func(l Location, o Options) error {
		t.Helper()
		d, err := Open(ctx, l, o)
		if err != nil {
			return err
		}
		p := bytes.Repeat([]byte{0x73}, 512)
		if err = d.Write(ctx, p, 1<<20, true); err == nil {
			got := make([]byte, len(want))
			err = d.Read(ctx, got, 1<<20)
			if err == nil && (!bytes.Equal(got[:512], p) || !bytes.Equal(got[512:], want[512:])) {
				t.Errorf("%s: other data", l)
			}
		}
		return errors.Join(err, d.Close())
	}
	for _, c := range []struct {
		l Location
		o Options
	}{
		{Location{Local: true, Path: child}, file},
		{remote("kids/child.vhdx"), file},
		{remote("b.vhdx"), o},
	} {
		if err := opens(c.l, c.o); err != nil {
			t.Errorf("%s: %v", c.l, err)
		}
	}
	// A server opens no parents outside the folder of the child: its path is the word of whoever wrote the file.
	if err := opens(remote("kids/child.vhdx"), o); Classify(err) != ClassUnsupported || !strings.Contains(err.Error(), "parent") {
		t.Errorf("shared, the parent is elsewhere: %v", err)
	}
	if err := os.Rename(base, base+".away"); err != nil {
		t.Fatal(err)
	}
	for _, l := range []Location{remote("kids/child.vhdx"), {Local: true, Path: child}} {
		if err := opens(l, file); Classify(err) != ClassNotFound || !strings.Contains(err.Error(), "a.vhdx") || !strings.Contains(err.Error(), "parent") {
			t.Errorf("%s without its parent: %v", l, err)
		}
	}
	if err := opens(remote("b.vhdx"), o); Classify(err) != ClassUnsupported || !strings.Contains(err.Error(), "parent") {
		t.Errorf("shared, without its parent: %v", err)
	}
	if err := vhdx.CreateFile(ctx, base, vhdx.CreateOptions{Size: img.Size()}); err != nil {
		t.Fatal(err)
	}
	for _, l := range []Location{remote("kids/child.vhdx"), {Local: true, Path: child}} {
		if err := opens(l, file); Classify(err) != ClassCorrupt || !strings.Contains(err.Error(), "not what it was made for") {
			t.Errorf("%s with another parent: %v", l, err)
		}
	}
}
