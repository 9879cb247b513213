package bridge

import (
	"bytes"
	"context"
	"encoding/binary"
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

// A differencing image is refused in words, by us and by the server.
func TestDifferencing(t *testing.T) {
	leak.Check(t)
	e := embed(t, ServeOptions{RSVDVersion: 1})
	path := filepath.Join(e.dir, "a.vhdx")
	ctx := context.Background()
	img, err := vhdx.OpenFile(ctx, path, vhdx.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	meta := img.Info().MetadataOffset
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The item "file parameters" of the metadata table gets its flag HasParent. [MS-VHDX] 2.6.1, 2.6.2.1
	item, _ := ParseGUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
	at := bytes.Index(b[meta:meta+64<<10], item[:])
	if at < 0 {
		t.Fatal("no file parameters")
	}
	le := binary.LittleEndian
	b[meta+int64(le.Uint32(b[meta+int64(at)+16:]))+4] |= 2
	// And the table one more item, the parent locator: its type, one key and one value. [MS-VHDX] 2.6.2.6
	table := b[meta:]
	n := le.Uint16(table[10:])
	le.PutUint16(table[10:], n+1)
	entry := table[32+32*int(n):]
	item, _ = ParseGUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
	key, value := utf16LE("relative_path"), utf16LE(`.\parent.vhdx`)
	copy(entry, item[:])
	le.PutUint32(entry[16:], 0x18000)
	le.PutUint32(entry[20:], uint32(20+12+len(key)+len(value)))
	le.PutUint32(entry[24:], 4) // required
	locator := table[0x18000:]
	kind, _ := ParseGUID("b04aefb7-d19e-4a81-b789-25b8e9445913")
	copy(locator, kind[:])
	le.PutUint16(locator[18:], 1)
	le.PutUint32(locator[20:], 32)
	le.PutUint32(locator[24:], uint32(32+len(key)))
	le.PutUint16(locator[28:], uint16(len(key)))
	le.PutUint16(locator[30:], uint16(len(value)))
	copy(locator[32:], append(key, value...))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	remote, err := ParseLocation("smb://me@" + e.addr + "/disks/a.vhdx")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Credentials: CredentialSource{Getenv: func(string) string { return "secret" }}}
	_, err = Open(ctx, remote, o)
	t.Logf("shared: %v", err)
	if Classify(err) != ClassUnsupported || !strings.Contains(err.Error(), "differencing") {
		t.Errorf("shared: %v", err)
	}
	o.Mode = ModeFile
	for _, loc := range []Location{remote, {Local: true, Path: path}} {
		_, err = Open(ctx, loc, o)
		if Classify(err) != ClassUnsupported || !strings.Contains(err.Error(), "differencing") {
			t.Errorf("%s: %v", loc, err)
		}
	}
}

func utf16LE(s string) (b []byte) {
	for _, r := range s {
		b = append(b, byte(r), 0)
	}
	return b
}
