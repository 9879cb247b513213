package server

import (
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// object returns the file with this name that is open.
func (s *testServer) object(name string) *object {
	s.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(s.path(name), &st); err != nil {
		s.t.Fatal(err)
	}
	s.objects.mu.Lock()
	defer s.objects.mu.Unlock()
	for key, o := range s.objects.m {
		if key.ino == st.Ino {
			return o
		}
	}
	s.t.Fatalf("%s is not open", name)
	return nil
}

// TestFailedSync lets one fdatasync fail. Nothing says afterwards that anything is durable, until the file has been closed by all.
func TestFailedSync(t *testing.T) {
	s := startServer(t, nil)
	p := s.connect(t, wire.Dialect311, "disks")
	a, b := p.open(openReq("a")), p.open(openReq("a"))
	flush := func(id wire.FileID) ntstatus.Status {
		return p.ask(wire.CmdFlush, (&wire.FlushRequest{FileID: id}).Append).status()
	}
	through := func(id wire.FileID) ntstatus.Status {
		return p.ask(wire.CmdWrite, writeBody(id, 0, []byte("x"), wire.WriteFlagWriteThrough)).status()
	}
	check(t, "FLUSH", flush(a), ntstatus.Success)
	var calls atomic.Int32
	s.object("a").syncer.call.Store(new(syncCall(func(int, bool) error {
		if calls.Add(1) == 1 {
			return unix.EIO
		}
		return nil
	})))
	check(t, "WRITE that cannot be made durable", through(a), ntstatus.IODeviceError)
	check(t, "WRITE that need not be durable", p.write(a, 0, "x"), ntstatus.Success)
	check(t, "FLUSH after it", flush(a), ntstatus.IODeviceError)
	check(t, "FLUSH of another open", flush(b), ntstatus.IODeviceError)
	check(t, "durable WRITE of another open", through(b), ntstatus.IODeviceError)
	if n := calls.Load(); n != 1 {
		t.Errorf("%d calls", n)
	}
	check(t, "CLOSE", p.close(a), ntstatus.Success)
	check(t, "CLOSE", p.close(b), ntstatus.Success)
	check(t, "FLUSH of a new open", flush(p.open(openReq("a"))), ntstatus.Success)
}

// TestEverythingIsDurable looks at what a share that is continuously available has synced before it answers.
func TestEverythingIsDurable(t *testing.T) {
	s := caServer(t)
	if err := os.WriteFile(s.path("a"), make([]byte, 8192), 0o666); err != nil {
		t.Fatal(err)
	}
	p := s.client(t, 1, 0, "me", "ca")
	id := p.open(openReq("a"))
	var calls atomic.Int32
	s.object("a").syncer.call.Store(new(syncCall(func(int, bool) error { calls.Add(1); return nil })))
	set := func(class uint8, b []byte) ntstatus.Status {
		return p.ask(wire.CmdSetInfo, (&wire.SetInfoRequest{InfoType: wire.InfoFile, FileInfoClass: class, FileID: id, Buffer: b}).Append).status()
	}
	zero := make([]byte, 16)
	zero[9] = 1
	for i, c := range []struct {
		what string
		do   func() ntstatus.Status
	}{
		{"WRITE", func() ntstatus.Status { return p.write(id, 0, "x") }},
		{"end of file", func() ntstatus.Status { return set(fscc.FileEndOfFileInformation, []byte{0, 16, 0, 0, 0, 0, 0, 0}) }},
		{"zeros", func() ntstatus.Status { _, st := p.ioctl(id, wire.FsctlSetZeroData, zero, 0); return st }},
	} {
		check(t, c.what, c.do(), ntstatus.Success)
		if n := calls.Load(); n != int32(i+1) {
			t.Errorf("%s: %d calls", c.what, n)
		}
	}
}
