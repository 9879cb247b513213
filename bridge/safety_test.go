package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"vdbridge/rsvd"
	"vdbridge/test/leak"
)

// superblock is enough of an ext4 or an OCFS2 to be taken for one.
func superblock(kind string) []byte {
	b := make([]byte, 16<<10)
	switch kind {
	case "ext4":
		binary.LittleEndian.PutUint32(b[1024:], 100)
		binary.LittleEndian.PutUint32(b[1024+4:], 1000)
		binary.LittleEndian.PutUint16(b[1024+56:], 0xEF53)
		binary.LittleEndian.PutUint32(b[1024+96:], 0x40)
	case "ocfs2":
		copy(b[8192:], "OCFSV2")
	}
	return b
}

// TestWriteRisk goes through what may be on a shared disk, and who may have reserved it.
func TestWriteRisk(t *testing.T) {
	leak.Check(t)
	e := embed(t, ServeOptions{RSVDVersion: 1})
	a, b := e.open(t, nil), e.open(t, nil)
	ctx := context.Background()
	risk := func(d *Disk) *Risk {
		t.Helper()
		r, err := d.WriteRisk(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := risk(a); r != nil {
		t.Errorf("an empty disk: %+v", r)
	}
	for _, kind := range []string{"ocfs2", "ext4"} {
		if err := a.Write(ctx, superblock(kind), 0, false); err != nil {
			t.Fatal(err)
		}
		r := risk(a)
		if (r != nil) != (kind == "ext4") {
			t.Errorf("%s: %+v", kind, r)
		}
	}
	r := risk(a)
	if len(r.Contents) != 1 || r.Contents[0] != "ext4" || len(r.Others) != 0 {
		t.Fatalf("%+v", r)
	}
	if err := b.RSVD().Register(ctx, 0, 0xB2, false); err != nil {
		t.Fatal(err)
	}
	if r = risk(a); len(r.Others) != 1 || r.Others[0] != b.Initiator().GUID() || !strings.Contains(r.Explain("Do this."), b.Initiator().GUID()) {
		t.Errorf("with another initiator registered: %+v", r)
	}

	release, err := a.ReserveExclusive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if r := risk(a); r != nil {
		t.Errorf("reserved by us: %+v", r)
	}
	if risk(b) == nil {
		t.Error("reserved by another: no risk")
	}
	if err := b.Write(ctx, make([]byte, 512), 1<<20, false); !errors.Is(err, rsvd.ErrReservationConflict) {
		t.Errorf("another initiator writes: %v", err)
	}
	if err := b.Read(ctx, make([]byte, 512), 1<<20); err != nil {
		t.Errorf("another initiator reads: %v", err)
	}
	if _, err := b.ReserveExclusive(ctx); Classify(err) != ClassConflict || !strings.Contains(err.Error(), "is reserved by the initiator with key 0x") {
		t.Errorf("a second reservation: %v", err)
	}
	again, err := a.ReserveExclusive(ctx)
	if err != nil || again != nil {
		t.Errorf("we reserve again: %v", err)
	}
	if err := release(ctx); err != nil {
		t.Fatal(err)
	}
	if k, err := a.RSVD().ReadKeys(ctx); err != nil || len(k.Keys) != 1 || k.Keys[0] != 0xB2 {
		t.Errorf("keys after the release: %x, %v", k.Keys, err)
	}
	if err := b.Write(ctx, make([]byte, 512), 1<<20, false); errors.Is(err, rsvd.ErrReservationConflict) {
		t.Errorf("another initiator after the release: %v", err)
	}
	closeDisk(t, a)
	closeDisk(t, b)
	e.judge(t)
}
