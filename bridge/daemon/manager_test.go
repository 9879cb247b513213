package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vdbridge/bridge"
)

const (
	cmdRead, cmdWrite = 0, 1
	url               = "smb://me@server/disks/a.vhdx"
)

func TestAttachWorkDetach(t *testing.T) {
	b := newBench(t)
	m := b.manager()
	a, err := m.Attach(t.Context(), spec(url), nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.Device != b.k.sys().Node(0) || a.Size != 1<<20 {
		t.Errorf("attached %+v", a)
	}
	cfg := b.k.devs[0].cfg
	if len(cfg.Sockets) != 2 || cfg.BlockSize != 512 || cfg.Size != 1<<20 || cfg.Flags&0x12d != 0x12d || cfg.DeadConnTimeout != endlessWait || !strings.HasPrefix(cfg.Backend, backendPrefix) {
		t.Errorf("the kernel was told %+v", cfg)
	}
	p := bytes.Repeat([]byte{7}, 4096)
	for link := range 2 {
		if e, _, err := b.k.do(0, link, cmdWrite, uint64(link)*8192, len(p), p); e != 0 || err != nil {
			t.Fatalf("write: %d, %v", e, err)
		}
		if _, got, err := b.k.do(0, link, cmdRead, uint64(link)*8192, len(p), nil); !bytes.Equal(got, p) || err != nil {
			t.Fatalf("read: %v", err)
		}
	}
	list := m.Status()
	if len(list) != 1 || list[0].State != StateAttached || list[0].Device.Alive != 2 || list[0].Disk == nil {
		t.Errorf("status %+v", list)
	}
	if len(b.records()) != 1 {
		t.Errorf("records %v", b.records())
	}
	if _, err := m.Detach(t.Context(), &Request{Target: "/dev/nbd0"}); err != nil {
		t.Fatal(err)
	}
	if len(b.records()) != 0 || len(b.k.devs) != 0 || b.disks[url].closed.Load() != 1 || m.Attachments() != 0 {
		t.Errorf("something is left: records %v, devices %d, closed %d", b.records(), len(b.k.devs), b.disks[url].closed.Load())
	}
	if _, err := m.Detach(t.Context(), &Request{Target: "/dev/nbd0"}); bridge.Classify(err) != bridge.ClassNotFound {
		t.Errorf("a second detach: %v", err)
	}
}

func TestOneDiskOneDevice(t *testing.T) {
	b := newBench(t)
	m := b.manager()
	s := spec(url)
	s.Name = "data"
	if _, err := m.Attach(t.Context(), s, nil); err != nil {
		t.Fatal(err)
	}
	for _, again := range []string{url, "smb://other@SERVER:445/Disks/A.vhdx", `\\server\disks\a.vhdx`} {
		_, err := m.Attach(t.Context(), spec(again), nil)
		if !AlreadyAttached(err) || !strings.Contains(err.Error(), "/dev/nbd0") {
			t.Errorf("%s: %v", again, err)
		}
	}
	other := spec("smb://me@server/disks/b.vhdx")
	other.Name = "data"
	if _, err := m.Attach(t.Context(), other, nil); bridge.Classify(err) != bridge.ClassBusy {
		t.Errorf("a name twice: %v", err)
	}
	other.Name, other.Device = "", "/dev/nbd0"
	if _, err := m.Attach(t.Context(), other, nil); bridge.Classify(err) != bridge.ClassBusy || !strings.Contains(err.Error(), "--device") {
		t.Errorf("a device that is taken: %v", err)
	}
	if len(b.records()) != 1 || m.Attachments() != 1 {
		t.Errorf("refused attaches left something: %v", b.records())
	}
	other.Device = "/dev/nbd2"
	if a, err := m.Attach(t.Context(), other, nil); err != nil || a.Device != b.k.sys().Node(2) {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := m.Detach(t.Context(), &Request{Target: "data"}); err != nil {
		t.Error(err)
	}
}

func TestSpecsThatMakeNoSense(t *testing.T) {
	b := newBench(t)
	m := b.manager()
	for name, change := range map[string]func(*Spec){
		"no connection":    func(s *Spec) { s.Connections = 0 },
		"many connections": func(s *Spec) { s.Connections = 17 },
		"no timeout":       func(s *Spec) { s.IOTimeout = 0 },
		"a name with a /":  func(s *Spec) { s.Name = "../x" },
		"another device":   func(s *Spec) { s.Device = "/dev/sda" },
		"unknown policy":   func(s *Spec) { s.OnLoss = "wait" },
		"negative policy":  func(s *Spec) { s.OnLoss = "fail-after=-3s" },
		"no URL":           func(s *Spec) { s.URL = "smb://" },
	} {
		s := spec(url)
		change(&s)
		if _, err := m.Attach(t.Context(), s, nil); bridge.Classify(err) != bridge.ClassUsage {
			t.Errorf("%s: %v", name, err)
		}
	}
	if b.opens != 0 || b.k.connects != 0 {
		t.Error("something was tried")
	}
}

// A dead connection is replaced, one after the other and both at once.
func TestConnectionsAreRenewed(t *testing.T) {
	b := newBench(t)
	m := b.manager()
	if _, err := m.Attach(t.Context(), spec(url), nil); err != nil {
		t.Fatal(err)
	}
	alive := func(n int, renewed uint64) func() bool {
		return func() bool { d := m.Status()[0].Device; return d.Alive == n && d.Renewed == renewed }
	}
	b.k.cut(0, 0)
	until(t, "the first is renewed", alive(2, 1))
	b.k.cut(0, 1)
	until(t, "the second is renewed", alive(2, 2))
	b.k.cut(0, 0)
	b.k.cut(0, 1)
	until(t, "both are renewed", alive(2, 4))
	for link := range 2 {
		if e, _, err := b.k.do(0, link, cmdRead, 0, 512, nil); e != 0 || err != nil {
			t.Errorf("connection %d: %d, %v", link, e, err)
		}
	}
	// While the disk has lost its server, nothing is renewed: what the kernel sent again would only wait.
	lost := bridge.StateReconnecting
	b.disks[url].state.Store(&lost)
	b.k.cut(0, 0)
	until(t, "it is seen", func() bool { return m.Status()[0].Device.Alive == 1 })
	back := bridge.StateConnected
	b.disks[url].state.Store(&back)
	until(t, "it is renewed later", alive(2, 5))
}

func TestDeviceFollowsSize(t *testing.T) {
	b := newBench(t)
	m := b.manager()
	if _, err := m.Attach(t.Context(), spec(url), nil); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{2 << 20, 8 << 20, 4 << 20} {
		b.disks[url].grow(n)
		until(t, fmt.Sprint("the device has ", n), func() bool { s, _ := b.k.sys().Size(0); return s == n })
	}
	if e, _, err := b.k.do(0, 0, cmdRead, 4<<20-512, 512, nil); e != 0 || err != nil {
		t.Errorf("the new end: %d, %v", e, err)
	}
}

// The next manager takes the devices back, with the password's place but never the password in the record.
func TestNextDaemonTakesDevicesBack(t *testing.T) {
	b := newBench(t)
	m := b.manager()
	const secret = "correct horse"
	env := map[string]string{bridge.PasswordEnv: secret, "KRB5CCNAME": "/tmp/cc"}
	a, err := m.Attach(t.Context(), spec(url), env)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(a.Warnings, " "), "by hand") {
		t.Errorf("nobody says that the password will be missing: %q", a.Warnings)
	}
	rec, err := os.ReadFile(b.records()[0])
	if err != nil || bytes.Contains(rec, []byte(secret)) {
		t.Fatalf("the record has the password: %s, %v", rec, err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if b.k.devs[0] == nil || len(b.records()) != 1 || b.disks[url].closed.Load() != 1 {
		t.Fatal("the manager did not leave the device")
	}
	b.disks[url].size.Store(2 << 20) // it grew meanwhile
	b.setFail(&bridge.Error{Class: bridge.ClassAuth, Sentence: "no password"})
	m = b.manager()
	if n, err := m.Resume(); n != 1 || err != nil {
		t.Fatalf("%d taken back, %v", n, err)
	}
	until(t, "it says what is missing", func() bool {
		s := m.Status()[0]
		return s.State == StateResuming && strings.Contains(s.Why, "by hand")
	})
	if _, err := m.Detach(t.Context(), &Request{Target: "/dev/nbd0"}); bridge.Classify(err) != bridge.ClassBusy {
		t.Errorf("detach of a device whose disk is not there: %v", err)
	}
	b.setFail(nil)
	if _, err := m.Attach(t.Context(), spec(url), env); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	if b.env[bridge.PasswordEnv] != secret || b.env["KRB5CCNAME"] != "/tmp/cc" {
		t.Errorf("opened with %v", b.env)
	}
	b.mu.Unlock()
	until(t, "it has both connections and the new size", func() bool {
		d := m.Status()[0].Device
		return d != nil && d.Alive == 2 && d.Size == 2<<20
	})
	for link := range 2 {
		if e, _, err := b.k.do(0, link, cmdRead, 1<<20, 512, nil); e != 0 || err != nil {
			t.Errorf("connection %d: %d, %v", link, e, err)
		}
	}
	if _, err := m.Detach(t.Context(), &Request{Target: url}); err != nil {
		t.Fatal(err)
	}
}

func TestResumeForgetsWhatIsGone(t *testing.T) {
	b := newBench(t)
	m := b.manager()
	for _, u := range []string{url, "smb://me@server/disks/b.vhdx", "smb://me@server/disks/c.vhdx"} {
		if _, err := m.Attach(t.Context(), spec(u), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	// One device was disconnected by somebody, one record is of another boot, one is damaged.
	files := b.records()
	for i, f := range files {
		r, err := readRecord(f)
		if err != nil {
			t.Fatal(err)
		}
		switch i {
		case 0:
			b.k.mu.Lock()
			b.k.drop(r.Index)
			b.k.mu.Unlock()
		case 1:
			r.Boot = "another"
			if err := (&store{filepath.Dir(f)}).save(r); err != nil {
				t.Fatal(err)
			}
		case 2:
			if err := os.WriteFile(f, []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	m = b.manager()
	if n, err := m.Resume(); n != 0 || err != nil {
		t.Errorf("%d taken back, %v", n, err)
	}
	if left := b.records(); len(left) != 1 || left[0] != files[2] {
		t.Errorf("records left: %v; only the damaged one is for a person to look at", left)
	}
}

func TestDetachRefusesWhatIsUsed(t *testing.T) {
	b := newBench(t)
	m := b.manager()
	if _, err := m.Attach(t.Context(), spec(url), nil); err != nil {
		t.Fatal(err)
	}
	b.k.file("proc/1/mountinfo", "36 1 43:0 / /mnt/data rw - ext4 /dev/nbd0 rw\n")
	_, err := m.Detach(t.Context(), &Request{Target: "nbd0"})
	if bridge.Classify(err) != bridge.ClassBusy || !strings.Contains(err.Error(), "/mnt/data") {
		t.Fatalf("detach of a mounted device: %v", err)
	}
	if e, _, err := b.k.do(0, 0, cmdRead, 0, 512, nil); e != 0 || err != nil {
		t.Fatalf("a refused detach has done harm: %d, %v", e, err)
	}
	if s := m.Status()[0]; s.State != StateAttached {
		t.Errorf("state %s", s.State)
	}
	if _, err := m.Detach(t.Context(), &Request{Target: "nbd0", Force: true}); err != nil {
		t.Fatal(err)
	}
	if len(b.k.devs) != 0 {
		t.Error("the device is still there")
	}
}

// Somebody disconnects the device behind our back: the disk is closed and forgotten.
func TestDisconnectedBySomebodyElse(t *testing.T) {
	b := newBench(t)
	m := b.manager()
	if _, err := m.Attach(t.Context(), spec(url), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.k.Disconnect(0); err != nil {
		t.Fatal(err)
	}
	until(t, "it is forgotten", func() bool { return m.Attachments() == 0 && b.disks[url].closed.Load() == 1 })
	until(t, "its record is gone", func() bool { return len(b.records()) == 0 })
	if _, err := m.Attach(t.Context(), spec(url), nil); err != nil {
		t.Error(err)
	}
}

// A state directory that cannot be written is found out before there is a device.
func TestStateDirectoryFull(t *testing.T) {
	b := newBench(t)
	m := b.manager()
	m.store.dir = "/dev/full/attachments"
	_, err := m.Attach(t.Context(), spec(url), nil)
	if err == nil || !strings.Contains(err.Error(), "state directory") || b.k.connects != 0 || m.Attachments() != 0 {
		t.Errorf("%v, %d connects", err, b.k.connects)
	}
	if err := stateError("/x", syscall.ENOSPC); bridge.Classify(err) != bridge.ClassNoSpace || !strings.Contains(err.Error(), "make room") {
		t.Errorf("%v", err)
	}
}

// What fails after the record was written leaves nothing.
func TestAttachThatFailsLeavesNothing(t *testing.T) {
	b := newBench(t)
	m := b.manager()
	b.setFail(errors.New("no such server"))
	if _, err := m.Attach(t.Context(), spec(url), nil); err == nil {
		t.Fatal("attached nothing")
	}
	b.setFail(nil)
	b.disks[url] = newTestDisk(0)
	if _, err := m.Attach(t.Context(), spec(url), nil); bridge.Classify(err) != bridge.ClassUnsupported || b.disks[url].closed.Load() != 1 {
		t.Errorf("an empty disk: %v", err)
	}
	delete(b.disks, url)
	for i := range 4 {
		if _, err := m.Attach(t.Context(), spec(fmt.Sprintf("smb://s/d/%d.vhdx", i)), nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Attach(t.Context(), spec(url), nil); bridge.Classify(err) != bridge.ClassBusy || !strings.Contains(err.Error(), "nbds_max") {
		t.Errorf("no device is free: %v", err)
	}
	if len(b.records()) != 4 || m.Attachments() != 4 || b.disks[url].closed.Load() != 1 {
		t.Errorf("%d records, %d attachments, closed %d", len(b.records()), m.Attachments(), b.disks[url].closed.Load())
	}
}

// Devices that do not survive the process are disconnected at its end.
func TestDevicesByIoctlEndWithTheDaemon(t *testing.T) {
	b := newBench(t)
	b.k.survives = false
	m := b.manager()
	if _, err := m.Attach(t.Context(), spec(url), nil); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if len(b.k.devs) != 0 || len(b.records()) != 0 {
		t.Error("the device is left though nobody can take it back")
	}
}
