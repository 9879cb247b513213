package bridge

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

func TestInitiatorIsKept(t *testing.T) {
	dir := t.TempDir()
	loc := Location{Host: "h", Port: 445, Share: "s", Path: "a.vhdx"}
	a, err := AcquireInitiator(dir, loc, "nbd:x", false)
	if err != nil {
		t.Fatal(err)
	}
	if a.ID == [16]byte{} || a.Host == "" {
		t.Fatalf("%+v", a)
	}
	// Taken: a second one must not get it, a sharer does.
	_, err = AcquireInitiator(dir, loc, "nbd:x", false)
	var busy *InitiatorBusyError
	if !errors.As(err, &busy) || !errors.Is(err, syscall.EBUSY) {
		t.Fatalf("second owner: %v", err)
	}
	s, err := AcquireInitiator(dir, loc, "nbd:x", true)
	if err != nil || s.ID != a.ID {
		t.Fatalf("sharer: %v", err)
	}
	s.Release()
	if _, err = AcquireInitiator(dir, loc, "nbd:x", false); !errors.As(err, &busy) {
		t.Fatalf("the sharer's Release freed the owner's lock: %v", err)
	}
	a.Release()
	b, err := AcquireInitiator(dir, loc, "nbd:x", false)
	if err != nil || b.ID != a.ID {
		t.Fatalf("after a restart: %v, %s and %s", err, a.GUID(), b.GUID())
	}
	b.Release()
	b.Release()
	// Another name, another disk: another initiator. Letter case does not make another disk.
	for _, c := range []struct {
		loc  Location
		name string
		same bool
	}{
		{loc, "mount:/x", false}, {Location{Host: "h", Port: 445, Share: "s", Path: "b.vhdx"}, "nbd:x", false},
		{Location{Host: "H", Port: 445, Share: "S", Path: "A.VHDX", User: "other"}, "nbd:x", true},
	} {
		o, err := AcquireInitiator(dir, c.loc, c.name, false)
		if err != nil || (o.ID == a.ID) != c.same {
			t.Errorf("%v %s: same %v (%v)", c.loc, c.name, o.ID == a.ID, err)
		}
		o.Release()
	}
	c, err := AcquireInitiator(dir, loc, "nbd:x", false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Release()
	known, err := KnownInitiators(dir, loc)
	if err != nil || len(known) != 2 || known[0] != (KnownInitiator{"mount:/x", false}) || known[1] != (KnownInitiator{"nbd:x", true}) {
		t.Errorf("known: %+v, %v", known, err)
	}
}

func TestInitiatorMadeOnce(t *testing.T) {
	dir := t.TempDir()
	loc := Location{Host: "h", Port: 445, Share: "s", Path: "a.vhdx"}
	var mu sync.Mutex
	seen := map[[16]byte]bool{}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			i, err := AcquireInitiator(dir, loc, "x", true)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			seen[i.ID] = true
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(seen) != 1 {
		t.Errorf("%d identities for one attachment", len(seen))
	}
}

// A state directory that was copied to another machine must not make two hosts one initiator.
func TestInitiatorOfAClone(t *testing.T) {
	dir := t.TempDir()
	loc := Location{Host: "h", Port: 445, Share: "s", Path: "a.vhdx"}
	a, err := AcquireInitiator(dir, loc, "x", true)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "initiators", identityKey(loc, "x")+".json")
	if err := os.WriteFile(file, []byte(`{"initiator":"`+a.GUID()+`","disk":"h:445/s/a.vhdx","name":"x","machine":"another"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := AcquireInitiator(dir, loc, "x", true)
	if err != nil || b.ID == a.ID {
		t.Fatalf("the clone is its model (%v)", err)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := AcquireInitiator(dir, loc, "x", true); err == nil {
		t.Fatal("a damaged identity was replaced in silence: its reservations would be lost")
	}
}

func TestGUID(t *testing.T) {
	g := [16]byte{0x9C, 0xCB, 0xCF, 0x9E, 0x04, 0xC1, 0xE6, 0x43, 0x98, 0x0E, 0x15, 0x8D, 0xA1, 0xF6, 0xEC, 0x83}
	s := FormatGUID(g)
	if s != "9ecfcb9c-c104-43e6-980e-158da1f6ec83" {
		t.Error(s)
	}
	for _, in := range []string{s, "{" + s + "}"} {
		if got, err := ParseGUID(in); err != nil || got != g {
			t.Errorf("%s: %x, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "9ecfcb9c-c104-43e6-980e-158da1f6ec8", "9ecfcb9cxc104-43e6-980e-158da1f6ec83", "gecfcb9c-c104-43e6-980e-158da1f6ec83"} {
		if _, err := ParseGUID(in); !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %v", in, err)
		}
	}
}
