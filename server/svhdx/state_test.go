package svhdx

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"vdbridge/scsi"
	"vdbridge/scsi/lu"
	"vdbridge/scsi/lu/lutest"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

func TestFileState(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "d.vhdx")
	id := wire.GUID{1, 2, 3}
	f := FileState(disk, id, slog.New(slog.DiscardHandler))
	ctx := t.Context()
	if s, err := f.Load(ctx); s != nil || err != nil {
		t.Fatal(s, err)
	}
	if err := f.Save(ctx, nil); err != nil {
		t.Error(err)
	}
	want := &lu.State{PowerLoss: true, Held: true, Type: scsi.ExclusiveAccess, Holder: lu.InitiatorID{9}, Registrations: []lu.SavedRegistration{
		{Initiator: lu.InitiatorID{9}, Key: 0xFFFFFFFFFFFFFFFF, AllPorts: true}, {Initiator: lu.InitiatorID{15: 8}, Key: 1}}}
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.Symlink(elsewhere, filepath.Join(dir, ".d.vhdx.reservations.new")); err != nil { // left over, or put there
		t.Fatal(err)
	}
	for range 2 {
		if err := f.Save(ctx, want); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := f.Load(ctx); err != nil || !reflect.DeepEqual(s, want) {
		t.Errorf("%+v %v, want %+v", s, err, want)
	}
	if s, err := FileState(disk, wire.GUID{7}, slog.New(slog.DiscardHandler)).Load(ctx); s != nil || err != nil {
		t.Errorf("reservations of another disk: %+v %v", s, err)
	}
	if _, err := os.Lstat(elsewhere); err == nil {
		t.Error("a link was followed")
	}
	path := filepath.Join(dir, ".d.vhdx.reservations")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("%d files", len(names))
	}
	b = bytes.TrimSpace(b)
	for n := range b { // cut anywhere it is damaged
		if _, _, err := decodeState(b[:n]); err == nil {
			t.Fatalf("accepts the first %d of %d bytes", n, len(b))
		}
	}
	for i := range b { // and with any byte changed
		c := bytes.Clone(b)
		c[i] ^= 1
		if s, _, err := decodeState(c); err == nil && !reflect.DeepEqual(s, want) {
			t.Fatalf("accepts a changed byte %d: %+v", i, s)
		}
	}
	if err := os.WriteFile(path, b[:len(b)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Load(ctx); err == nil || !strings.Contains(err.Error(), "remove the file") {
		t.Errorf("a damaged file: %v", err)
	}
	if err := f.Save(ctx, nil); err != nil {
		t.Error(err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 0 {
		t.Errorf("%d files are left", len(names))
	}
}

func FuzzDecodeState(f *testing.F) {
	b, err := encodeState(&lu.State{PowerLoss: true, Held: true, Type: 1, Registrations: []lu.SavedRegistration{{Key: 1}}}, wire.GUID{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	b, err = encodeState(&lu.State{Survives: true, Generation: 3, Registrations: []lu.SavedRegistration{{Key: 1}}, Attentions: []lu.SavedAttention{{Code: 0x2903}},
		Done: []lu.SavedCommand{{Tag: lu.Tag{Sum: [32]byte{1}}}}}, wire.GUID{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) { _, _, _ = decodeState(b) })
}

// Reservations with APTPL outlive the server; those without do not; a damaged file keeps the disk shut.
func TestReservationsOverRestart(t *testing.T) {
	path := newDisk(t)
	ctx, p := t.Context(), make([]byte, 512)
	s := service(t, Config{})
	a := mustOpen(t, s, path, 1)
	reserve(t, a, scsi.PRRegister, 0, scsi.PROutList{ActionKey: 0xA, PersistPower: true})
	reserve(t, a, scsi.PRReserve, scsi.WriteExclusive, scsi.PROutList{Key: 0xA})
	closeOnce(t, a)
	s = service(t, Config{})
	b := mustOpen(t, s, path, 2)
	wantStatus(t, "write of a stranger after the restart", b.Write(ctx, p, 0, false), ntstatus.SVHDXReservationConflict)
	a = mustOpen(t, s, path, 1)
	err := a.Write(ctx, p, 0, false) // says that the power was gone
	if st, _ := ntstatus.Of(err); st != 0xC05C0001 {
		t.Errorf("first write of the holder: %v", err)
	}
	if e, ok := a.stored.load(1); !ok || e.status != scsi.CheckCondition {
		t.Errorf("stored sense: %+v", e)
	} else if sense, _ := scsi.ParseSense(e.sense[:]); sense.Code() != scsi.CodePowerOn {
		t.Errorf("stored sense: %v", sense)
	}
	if err := a.Write(ctx, p, 0, false); err != nil {
		t.Error(err)
	}
	reserve(t, a, scsi.PRRegister, 0, scsi.PROutList{Key: 0xA, ActionKey: 0xA}) // APTPL off
	closeOnce(t, a)
	if err := b.Write(ctx, p, 0, false); err != nil {
		t.Error(err)
	}
	closeOnce(t, b)
	file := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".reservations")
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = service(t, Config{})
	if _, _, err := s.OpenDisk(ctx, path, openCtx(1, 1), unbuffered, fullAccess); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("open with a damaged file of reservations: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, s, path, 1)
}

// Over a real image, from nothing: whole writes of several initiators by either way, and reads that see one of them.
func TestAtomicityOverVHDX(t *testing.T) {
	path := newDisk(t)
	s := service(t, Config{})
	var wg sync.WaitGroup
	for g := range 4 {
		o := mustOpen(t, s, path, byte(g+1))
		wg.Go(func() {
			ctx := context.Background()
			p, q := make([]byte, 64<<10), make([]byte, 64<<10)
			for i := range 60 {
				for j := range p {
					p[j] = byte(g*60 + i)
				}
				off := int64(32<<20 - 32<<10) // crosses two blocks of the image
				var err error
				switch i % 3 {
				case 0:
					err = o.Write(ctx, p, off, i%2 == 0)
				case 1:
					if st, sense, _ := command(t, o, scsi.Write16(uint64(off/512), 128, false), p); st != scsi.Good {
						t.Error(st, sense)
					}
				default:
					if err = o.Read(ctx, q, off); err == nil && !bytes.Equal(q, bytes.Repeat(q[:1], len(q))) {
						t.Error("a read sees two writes")
					}
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// Opens and closes cross each other: there is never more than one disk on the file, and none is left.
func TestOpenCloseRace(t *testing.T) {
	path := newDisk(t)
	s := service(t, Config{})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			p := make([]byte, 512)
			for range 25 {
				o, _, err := s.OpenDisk(context.Background(), path, openCtx(1, byte(g%3+1)), unbuffered, fullAccess)
				if err != nil {
					t.Error(err)
					return
				}
				if err := o.Read(context.Background(), p, 0); err != nil {
					t.Error(err)
				}
				if err := o.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if len(s.disks) != 0 {
		t.Errorf("%d disks are left", len(s.disks))
	}
}

// Initiators fence each other through the tunnel while everybody writes by SMB2 WRITE: from the return of a PREEMPT until the victim asks to
// be let in again, none of its writes is at the disk.
func TestFencingThroughTheTunnel(t *testing.T) {
	const people, rounds, area = 4, 60, 64 << 10
	d := lutest.New(people * area)
	var out [people]atomic.Bool
	var late, landed atomic.Int64
	d.OnWrite = func(_ context.Context, off int64, _ int) error {
		for range 3 {
			if out[off/area].Load() {
				late.Add(1)
			}
			runtime.Gosched()
		}
		return nil
	}
	s, path := ramService(t, d)
	var opens [people]*open
	for i := range opens {
		opens[i] = mustOpen(t, s, path, byte(i+1))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range people {
		for range 2 {
			wg.Go(func() {
				p := make([]byte, 4096)
				for {
					select {
					case <-stop:
						return
					default:
					}
					err := opens[i].Write(context.Background(), p, int64(i*area), false)
					switch st, _ := ntstatus.Of(err); {
					case err == nil:
						landed.Add(1)
					case st == ntstatus.SVHDXReservationConflict, st == ntstatus.SVHDXUnitAttentionRegistrationsPreempted,
						st == ntstatus.SVHDXUnitAttentionReservationsReleased:
						runtime.Gosched()
					default:
						if key, ok := st.StoredSense(); ok { // TASK ABORTED is stored
							if e, _ := opens[i].stored.load(key); e.status == scsi.TaskAborted {
								continue
							}
						}
						t.Errorf("write: %v", err)
						return
					}
				}
			})
		}
	}
	do := func(i int, action scsi.PROutAction, own, other uint64) {
		for {
			list := scsi.PROutList{Key: own, ActionKey: other}
			st, sense, _ := command(t, opens[i], scsi.PersistentReserveOut(action, scsi.WriteExclusiveRegistrantsOnly, 24), list.Append(nil))
			if st == scsi.Good {
				return
			}
			if sense.Key != scsi.UnitAttention {
				t.Errorf("%v: %v %v", action, st, sense)
				return
			}
		}
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	holder := -1
	for range rounds {
		i := rnd.IntN(people)
		if i == holder {
			continue
		}
		out[i].Store(false)
		do(i, scsi.PRRegisterAndIgnore, 0, uint64(i+1))
		if holder < 0 {
			do(i, scsi.PRReserve, uint64(i+1), 0)
			for j := range people {
				out[j].Store(j != i)
			}
		} else {
			do(i, []scsi.PROutAction{scsi.PRPreempt, scsi.PRPreemptAndAbort}[rnd.IntN(2)], uint64(i+1), uint64(holder+1))
			out[holder].Store(true)
		}
		holder = i
		for have := landed.Load(); landed.Load() < have+10 && !t.Failed(); {
			runtime.Gosched()
		}
	}
	close(stop)
	wg.Wait()
	if late.Load() != 0 || landed.Load() == 0 {
		t.Errorf("%d writes were at the disk after their initiator had been fenced, %d in all", late.Load(), landed.Load())
	}
}

func TestDiskErrorsAreStored(t *testing.T) {
	d := lutest.New(1 << 20)
	d.OnRead = func(ctx context.Context, _ int64, _ int) error { return errors.Join(errors.New("broken"), ctx.Err()) }
	s, path := ramService(t, d)
	o := mustOpen(t, s, path, 1)
	wantStatus(t, "broken disk", o.Read(t.Context(), make([]byte, 512), 0), 0xC05C0001)
	if st, sense, _ := command(t, o, scsi.Read16(0, 1, false), nil); st != scsi.CheckCondition || sense.Key != scsi.MediumError {
		t.Errorf("READ(16): %v %v", st, sense)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantStatus(t, "cancelled", o.Read(ctx, make([]byte, 512), 0), ntstatus.Cancelled)
	in := append(unhex(t, 16, "02100002"), scsiBody(scsi.Read16(0, 1, false), 1, 512, nil)...)
	_, err := o.Tunnel(ctx, 0x90304, in, make([]byte, 4096))
	wantStatus(t, "cancelled", err, ntstatus.Cancelled)
}
