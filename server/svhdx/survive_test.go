package svhdx

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"vdbridge/scsi"
	"vdbridge/scsi/lu"
	"vdbridge/server"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
	"vdbridge/vhdx"
)

const through = unbuffered | wire.OptWriteThrough

// killed copies a disk, with what is beside it, as a process leaves it that is killed now.
func killed(t testing.TB, path string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "after")
	if err := os.CopyFS(to, os.DirFS(filepath.Dir(path))); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(to, filepath.Base(path))
}

// mustPersist opens a disk for a persistent open.
func mustPersist(t testing.TB, s *Service, path string, initiator byte, id uint64) *open {
	t.Helper()
	o, _, err := s.OpenDisk(context.Background(), path, openCtx(1, initiator), through, fullAccess)
	if err != nil {
		t.Fatal(err)
	}
	d := o.(*open)
	if err := d.Persist(id); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeOnce(t, d) })
	return d
}

// registrations returns the keys, whose reservation it is, and PRGENERATION.
func registrations(t testing.TB, o *open) (keys []uint64, holder uint64, generation uint32) {
	t.Helper()
	_, _, b := command(t, o, scsi.PersistentReserveIn(scsi.PRReadKeys, 4000), nil)
	k, err := scsi.ParsePRKeys(b)
	if err != nil {
		t.Fatal(err)
	}
	_, _, b = command(t, o, scsi.PersistentReserveIn(scsi.PRReadReservation, 4000), nil)
	r, err := scsi.ParsePRReservation(b)
	if err != nil {
		t.Fatal(err)
	}
	return k.Keys, r.Key, k.Generation
}

// TestReservationsSurvive kills the process under persistent opens: what their initiators have stays without APTPL, what others have goes.
func TestReservationsSurvive(t *testing.T) {
	path := newDisk(t)
	s := service(t, Config{})
	early := mustOpen(t, s, path, 4) // registered before anything survives
	reserve(t, early, scsi.PRRegister, 0, scsi.PROutList{ActionKey: 0xE})
	a, b, c := mustPersist(t, s, path, 1, 1), mustPersist(t, s, path, 2, 2), mustOpen(t, s, path, 3)
	if k, _, _ := registrations(t, mustPersist(t, service(t, Config{}), killed(t, path), 9, 9)); len(k) != 0 {
		t.Errorf("keys % x for a process without restored opens", k)
	}
	for i, o := range []*open{a, b, c} {
		reserve(t, o, scsi.PRRegister, 0, scsi.PROutList{ActionKey: uint64(0xA + i)})
	}
	reserve(t, a, scsi.PRReserve, scsi.WriteExclusiveRegistrantsOnly, scsi.PROutList{Key: 0xA})
	if k, r, _ := registrations(t, a); !reflect.DeepEqual(k, []uint64{0xE, 0xA, 0xB, 0xC}) || r != 0xA {
		t.Fatalf("keys % x, reservation of %x", k, r)
	}
	_, _, generation := registrations(t, a)

	after := killed(t, path)
	s2 := service(t, Config{})
	s2.BeginRestore()
	a2, b2 := mustPersist(t, s2, after, 1, 1), mustPersist(t, s2, after, 2, 2)
	if _, _, g := registrations(t, a2); g != generation {
		t.Errorf("generation %d, was %d", g, generation)
	}
	s2.EndRestore()
	if k, r, _ := registrations(t, a2); !reflect.DeepEqual(k, []uint64{0xA, 0xB}) || r != 0xA {
		t.Errorf("keys % x, reservation of %x", k, r)
	}
	p := make([]byte, 512)
	for _, o := range []*open{a2, b2} { // no unit attention
		if err := o.Write(t.Context(), p, 0, false); err != nil {
			t.Error(err)
		}
	}
	c2 := mustOpen(t, s2, after, 3)
	wantStatus(t, "write of an initiator that has not survived", c2.Write(t.Context(), p, 0, false), ntstatus.SVHDXReservationConflict)
	// A unit attention that waits comes after the next restart, and who was pre-empted is shut out.
	reserve(t, a2, scsi.PRPreempt, scsi.WriteExclusiveRegistrantsOnly, scsi.PROutList{Key: 0xA, ActionKey: 0xB})
	third := killed(t, after)
	s3 := service(t, Config{})
	s3.BeginRestore()
	a3, b3 := mustPersist(t, s3, third, 1, 1), mustPersist(t, s3, third, 2, 2)
	s3.EndRestore()
	wantStatus(t, "first write of the preempted", b3.Write(t.Context(), p, 0, false), ntstatus.SVHDXUnitAttentionRegistrationsPreempted)
	wantStatus(t, "write of the preempted", b3.Write(t.Context(), p, 0, false), ntstatus.SVHDXReservationConflict)
	// CLEAR leaves no registration, but a unit attention.
	reserve(t, b3, scsi.PRRegister, 0, scsi.PROutList{ActionKey: 0xB})
	reserve(t, a3, scsi.PRClear, 0, scsi.PROutList{Key: 0xA})
	fourth := killed(t, third)
	s4 := service(t, Config{})
	s4.BeginRestore()
	b4 := mustPersist(t, s4, fourth, 2, 2)
	s4.EndRestore()
	wantStatus(t, "first write after CLEAR", b4.Write(t.Context(), p, 0, false), ntstatus.SVHDXUnitAttentionReservationsPreempted)
	closeOnce(t, b4)
	if _, err := os.Stat(filepath.Join(filepath.Dir(fourth), ".test.vhdx.reservations")); err == nil {
		t.Error("the last open has been closed, and something is kept")
	}
}

// TestSuspend ends the process in good order.
func TestSuspend(t *testing.T) {
	path := newDisk(t)
	s := service(t, Config{})
	o := mustPersist(t, s, path, 1, 1)
	reserve(t, o, scsi.PRRegister, 0, scsi.PROutList{ActionKey: 0xA})
	if err := o.Suspend(); err != nil {
		t.Fatal(err)
	}
	closed.Store(o, true)
	s.BeginRestore()
	o = mustPersist(t, s, path, 1, 1)
	s.EndRestore()
	if k, _, _ := registrations(t, o); !reflect.DeepEqual(k, []uint64{0xA}) {
		t.Errorf("keys % x without APTPL", k)
	}
	closeOnce(t, o)
	a, b := mustPersist(t, s, path, 1, 1), mustOpen(t, s, path, 2)
	reserve(t, b, scsi.PRRegister, 0, scsi.PROutList{ActionKey: 0xB, PersistPower: true})
	reserve(t, a, scsi.PRRegister, 0, scsi.PROutList{ActionKey: 0xA, PersistPower: true})
	reserve(t, a, scsi.PRReserve, scsi.ExclusiveAccess, scsi.PROutList{Key: 0xA})
	if err := a.Suspend(); err != nil {
		t.Fatal(err)
	}
	closed.Store(a, true)
	closeOnce(t, b)
	s.BeginRestore()
	a = mustPersist(t, s, path, 1, 1)
	s.EndRestore()
	if k, r, _ := registrations(t, a); !reflect.DeepEqual(k, []uint64{0xB, 0xA}) || r != 0xA {
		t.Errorf("keys % x, reservation of %x", k, r)
	}
	if err := a.Write(t.Context(), make([]byte, 512), 0, false); err != nil {
		t.Error(err)
	}
	// The other one is as after a power loss.
	b = mustOpen(t, s, path, 2)
	if st, sense, _ := command(t, b, scsi.TestUnitReady(), nil); st != scsi.CheckCondition || sense.Code() != scsi.CodePowerOn {
		t.Errorf("%v %v", st, sense)
	}
	// With the last open, all that is kept is what APTPL keeps.
	closeOnce(t, b)
	closeOnce(t, a)
	st, err := FileState(path, wire.GUID(mustInfo(t, path).VirtualDiskID), slog.New(slog.DiscardHandler)).Load(t.Context())
	if err != nil || st == nil || st.Survives || !st.PowerLoss || len(st.Registrations) != 2 {
		t.Errorf("%+v, %v", st, err)
	}
}

func mustInfo(t testing.TB, path string) vhdx.Info {
	t.Helper()
	d, err := vhdx.OpenFile(t.Context(), path, vhdx.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return d.Info()
}

// TestWriteThrough kills the process after commands that change blocks, without a flush: on an open that writes through, all is there.
func TestWriteThrough(t *testing.T) {
	path := newDisk(t)
	s := service(t, Config{})
	o := mustPersist(t, s, path, 1, 1)
	data := bytes.Repeat([]byte("abcd"), 128)
	const block = 32 << 20 >> 9
	good := func(what string, cdb scsi.CDB, out []byte) {
		t.Helper()
		if st, sense, _ := command(t, o, cdb, out); st != scsi.Good {
			t.Fatalf("%s: %v %v", what, st, sense)
		}
	}
	good("WRITE(16)", scsi.Write16(0, 1, false), data)
	good("WRITE SAME(10)", scsi.WriteSame10(block, 8, false), data)
	good("COMPARE AND WRITE", scsi.CompareAndWrite(2*block, 1, false), append(make([]byte, 512), data...))
	good("WRITE(16)", scsi.Write16(3*block, 1, false), data)
	good("WRITE SAME(10) of zeros", scsi.WriteSame10(3*block, 1, false), make([]byte, 512))
	if _, _, b := command(t, o, scsi.ModeSense6(true, scsi.ModeCaching, 0, 192), nil); len(b) < 15 || b[len(b)-18]&4 != 0 {
		t.Errorf("a write cache is announced: % x", b)
	}
	d, err := vhdx.OpenFile(t.Context(), killed(t, path), vhdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p := make([]byte, 512)
	for i, want := range [][]byte{data, data, data, make([]byte, 512)} {
		if err := d.Read(t.Context(), p, int64(i)*block<<9); err != nil || !bytes.Equal(p, want) {
			t.Errorf("block %d has % x, %v", i, p[:8], err)
		}
	}
}

// tunnelled makes a SCSI operation.
func tunnelled(id uint64, cdb scsi.CDB, out []byte) []byte {
	in := make([]byte, 16)
	binary.LittleEndian.PutUint32(in, uint32(tunnel.OpSCSI))
	binary.LittleEndian.PutUint64(in[8:], id)
	return append(in, scsiBody(cdb, tunnel.DispositionOut, uint32(len(out)), out)...)
}

// send runs an operation and returns its SCSI status.
func send(t testing.TB, ctx context.Context, o *open, in []byte) scsi.Status {
	t.Helper()
	out := make([]byte, 4096)
	n, err := o.Tunnel(ctx, tunnel.FsctlSyncTunnelRequest, in, out)
	if err != nil || n != 52 {
		t.Fatal(n, err)
	}
	return scsi.Status(out[16+3])
}

// TestReplayedCommands sends commands again with the replay flag, in the same process and in the next one.
func TestReplayedCommands(t *testing.T) {
	path := newDisk(t)
	s := service(t, Config{})
	a, b := mustPersist(t, s, path, 1, 1), mustPersist(t, s, path, 2, 2)
	again := server.WithReplay(t.Context())
	out := func(action scsi.PROutAction, typ scsi.PRType, l scsi.PROutList) []byte {
		return tunnelled(uint64(action)<<8|l.Key<<16|l.ActionKey, scsi.PersistentReserveOut(action, typ, 24), l.Append(nil))
	}
	register := out(scsi.PRRegister, 0, scsi.PROutList{ActionKey: 0xA})
	check := func(what string, got, want scsi.Status) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	check("REGISTER that comes for the first time with the flag", send(t, again, a, register), scsi.Good)
	check("REGISTER again", send(t, again, a, register), scsi.Good)
	check("REGISTER without the flag", send(t, t.Context(), a, register), scsi.ReservationConflict)
	check("that again", send(t, again, a, register), scsi.ReservationConflict)
	check("the same bytes on another open", send(t, again, b, register), scsi.Good)
	move := out(scsi.PRRegister, 0, scsi.PROutList{Key: 0xA, ActionKey: 0xA1})
	check("REGISTER", send(t, t.Context(), a, move), scsi.Good)
	_, _, generation := registrations(t, a)
	check("REGISTER again", send(t, again, a, move), scsi.Good)
	if _, _, g := registrations(t, a); g != generation {
		t.Error("it was executed twice")
	}
	caw := tunnelled(7, scsi.CompareAndWrite(0, 1, false), append(make([]byte, 512), bytes.Repeat([]byte{1}, 512)...))
	check("COMPARE AND WRITE", send(t, t.Context(), a, caw), scsi.Good)
	check("COMPARE AND WRITE again", send(t, again, a, caw), scsi.Good)
	check("COMPARE AND WRITE without the flag", send(t, t.Context(), a, caw), scsi.CheckCondition)
	// A client that uses one identifier for all: only the last reply counts.
	same := func(l scsi.PROutList) []byte {
		return tunnelled(0, scsi.PersistentReserveOut(scsi.PRRegister, 0, 24), l.Append(nil))
	}
	check("REGISTER", send(t, t.Context(), b, same(scsi.PROutList{Key: 0xA, ActionKey: 0xB})), scsi.Good)
	check("REGISTER", send(t, t.Context(), b, same(scsi.PROutList{Key: 0xB, ActionKey: 0xA})), scsi.Good)
	check("the last REGISTER again", send(t, again, b, same(scsi.PROutList{Key: 0xB, ActionKey: 0xA})), scsi.Good)

	clear := out(scsi.PRClear, 0, scsi.PROutList{Key: 0xA1})
	check("CLEAR", send(t, t.Context(), a, clear), scsi.Good)
	check("REGISTER after it", send(t, t.Context(), a, register), scsi.Good)
	after := killed(t, path)
	s2 := service(t, Config{})
	s2.BeginRestore()
	a2 := mustPersist(t, s2, after, 1, 1)
	s2.EndRestore()
	_, _, generation = registrations(t, a2)
	check("CLEAR again after a restart", send(t, again, a2, clear), scsi.Good)
	check("REGISTER again after a restart", send(t, again, a2, register), scsi.Good)
	if k, _, g := registrations(t, a2); g != generation || !reflect.DeepEqual(k, []uint64{0xA}) {
		t.Errorf("executed twice: keys % x, generation %d after %d", k, g, generation)
	}
	// Of many, the last ones are remembered.
	for i := range uint64(2 * maxReplies) {
		check("REGISTER", send(t, t.Context(), a2, out(scsi.PRRegister, 0, scsi.PROutList{Key: 0xA + i, ActionKey: 0xB + i})), scsi.Good)
	}
	if n := len(a2.replies.list); n != maxReplies {
		t.Errorf("%d replies are kept", n)
	}
	st, err := FileState(after, wire.GUID(mustID(s2)), slog.New(slog.DiscardHandler)).Load(t.Context())
	if err != nil || len(st.Done) != 8 || st.Done[7].Initiator != (lu.InitiatorID{1, 15: 0xFF}) {
		t.Errorf("%+v, %v", st, err)
	}
}

func mustID(s *Service) (id wire.GUID) {
	for _, d := range s.disks {
		id = d.props.ID
	}
	return id
}
