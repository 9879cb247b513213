package rsvd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"vdbridge/scsi"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
)

var bg = context.Background()

func both(t *testing.T, f func(t *testing.T, io IO)) {
	for _, io := range []IO{IOSMB, IOSCSI} {
		t.Run(io.String(), func(t *testing.T) { f(t, io) })
	}
}

func TestReadWrite(t *testing.T) {
	both(t, func(t *testing.T, io IO) {
		f := newFake(1 << 20)
		d := openFake(t, f, Options{IO: io})
		p := make([]byte, 300<<10) // more than one SCSI command takes here
		for i := range p {
			p[i] = byte(rand.Uint32())
		}
		if err := d.Write(bg, p, 4096, false); err != nil {
			t.Fatal(err)
		}
		q := make([]byte, len(p))
		if err := d.Read(bg, q, 4096); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, q) || !bytes.Equal(f.data[4096:4096+len(p)], p) || !bytes.Equal(f.data[:4096], make([]byte, 4096)) {
			t.Fatal("what was written is not what is read")
		}
		if io == IOSMB && f.count("READ 307200@4096") != 1 {
			t.Errorf("not read by SMB2 READ: %q", f.log)
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	both(t, func(t *testing.T, io IO) {
		f := newFake(1 << 20)
		d := openFake(t, f, Options{IO: io})
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				p := bytes.Repeat([]byte{byte(i)}, 4096)
				q := make([]byte, 4096)
				for range 20 {
					if err := errors.Join(d.Write(bg, p, int64(i)*4096, false), d.Read(bg, q, int64(i)*4096)); err != nil || !bytes.Equal(p, q) {
						t.Errorf("block %d: %v", i, err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestRangeChecks(t *testing.T) {
	f := newFake(1 << 20)
	d := openFake(t, f, Options{})
	for _, c := range []struct{ off, n int64 }{{1, 512}, {512, 100}, {-512, 512}, {1 << 20, 512}, {1<<20 - 512, 1024}, {1 << 62, 512}, {0, 2 << 20}} {
		p := make([]byte, c.n)
		for op, err := range map[string]error{
			"read": d.Read(bg, p, c.off), "write": d.Write(bg, p, c.off, false), "trim": d.Trim(bg, c.off, c.n),
			"zero": d.WriteZeroes(bg, c.off, c.n, true, false), "extents": d.Extents(bg, c.off, c.n, func(int64, bool, bool) bool { return true }),
		} {
			if !errors.Is(err, ErrRange) {
				t.Errorf("%s of %d at %d: %v", op, c.n, c.off, err)
			}
		}
	}
	if len(f.log) != 0 {
		t.Errorf("the server was asked: %q", f.log)
	}
	if err := d.Read(bg, nil, 1<<20); err != nil {
		t.Errorf("empty read at the end: %v", err)
	}
}

// The data of a reply may begin in its head, if the server sends only as many bytes of sense data as there are.
func TestShortSenseArea(t *testing.T) {
	for at := 16; at <= 36; at++ {
		f := newFake(64 << 10)
		for i := range f.data {
			f.data[i] = byte(i * 7)
		}
		f.senseAt = at
		d := openFake(t, f, Options{IO: IOSCSI})
		for _, n := range []int{512, 4096, 64 << 10} {
			p := make([]byte, n)
			if err := d.Read(bg, p, 0); err != nil || !bytes.Equal(p, f.data[:n]) {
				t.Fatalf("data at %d, %d bytes: %v", at, n, err)
			}
		}
	}
}

// A server may insist on as many bytes with a data-in request as it is to return, as Microsoft's tests send them. To others, bulk reads go
// without: they would double what is sent.
func TestDataInPadding(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(*fake)
		pad  bool
		most int // zeros for three reads of 63 KiB
	}{
		{"takes both", func(*fake) {}, false, 0},
		{"takes both, but the caller wants zeros", func(*fake) {}, true, 3 * 63 << 10},
		{"refuses without", func(f *fake) { f.padIn = true }, false, 3 * 63 << 10},
		{"answers nothing without", func(f *fake) { f.emptyIn = true }, false, 3 * 63 << 10},
		{"refuses bulk without", func(f *fake) { f.padBulk = true }, false, 3 * 63 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(128 << 10)
			c.set(f)
			for i := range f.data {
				f.data[i] = byte(i * 7)
			}
			d := openFake(t, f, Options{IO: IOSCSI, PadDataIn: c.pad})
			f.zeros = 0
			for range 3 {
				p := make([]byte, 63<<10)
				if err := d.Read(bg, p, 4096); err != nil || !bytes.Equal(p, f.data[4096:][:len(p)]) {
					t.Fatal(err)
				}
			}
			if f.zeros != c.most {
				t.Errorf("%d zeros were sent, want %d", f.zeros, c.most)
			}
			if n := f.count("READ(16)"); n != 3 {
				t.Errorf("%d reads were executed: %q", n, f.log)
			}
		})
	}
}

// Many reads meet at once that the server wants zeros.
func TestDataInPaddingFoundOutByMany(t *testing.T) {
	f := newFake(1 << 20)
	f.padBulk = true
	d := openFake(t, f, Options{IO: IOSCSI})
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if err := d.Read(bg, make([]byte, 32<<10), 0); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if d.bareIn.Load() {
		t.Error("it was not remembered")
	}
}

// A request that is refused for another reason is not repeated for ever.
func TestDataInRefused(t *testing.T) {
	f := newFake(1 << 20)
	d := openFake(t, f, Options{IO: IOSCSI})
	n := 0
	f.onOp = func(tunnel.OpCode) ntstatus.Status { n++; return ntstatus.InvalidParameter }
	err := d.Read(bg, make([]byte, 32<<10), 0)
	if s, ok := ntstatus.Of(err); !ok || s != ntstatus.InvalidParameter || n != 2 {
		t.Errorf("got %v after %d requests", err, n)
	}
}

func TestStoredSense(t *testing.T) {
	f := newFake(64 << 10)
	d := openFake(t, f, Options{IO: IOSMB})
	f.sense = map[byte]scsiReply{7: {status: 2, srb: 4, sense: scsi.NewSense(scsi.MediumError, scsi.CodeUnrecoveredRead).AppendFixed(nil)}}
	f.onIO = func(op string, off int64) error { return fmt.Errorf("wrapped: %w", ntstatus.Status(0xC05C0007)) }
	err := d.Read(bg, make([]byte, 512), 0)
	var se *scsi.Error
	if !errors.As(err, &se) || se.Status != scsi.CheckCondition || se.Sense.Key != scsi.MediumError || se.Sense.Code() != scsi.CodeUnrecoveredRead {
		t.Fatalf("got %v", err)
	}
	if f.count("SRB_STATUS") != 1 {
		t.Errorf("asked %q", f.log)
	}
	// Nothing is stored: an I/O error without sense data, and no second question.
	f.sense, f.log = nil, nil
	err = d.Write(bg, make([]byte, 512), 0, false)
	if s, ok := ntstatus.Of(err); !ok || s != 0xC05C0007 || f.count("SRB_STATUS") != 0 && f.count("SRB_STATUS") != 1 {
		t.Fatalf("got %v, %q", err, f.log)
	}
}

func TestReservationConflict(t *testing.T) {
	both(t, func(t *testing.T, io IO) {
		f := newFake(64 << 10)
		d := openFake(t, f, Options{IO: io})
		f.onIO = func(op string, off int64) error { return ntstatus.SVHDXReservationConflict }
		f.onSCSI = func(cdb []byte) *scsiReply { return &scsiReply{status: 0x18} }
		for op, err := range map[string]error{
			"read": d.Read(bg, make([]byte, 512), 0), "write": d.Write(bg, make([]byte, 512), 0, false), "fua": d.Write(bg, make([]byte, 512), 0, true),
			"trim": d.Trim(bg, 0, 512), "zero": d.WriteZeroes(bg, 0, 512, false, false),
		} {
			if !errors.Is(err, ErrReservationConflict) {
				t.Errorf("%s: %v", op, err)
			}
		}
		if n := len(f.log); n != 5 {
			t.Errorf("a conflict is not repeated, but there were %d commands: %q", n, f.log)
		}
	})
}

func TestUnitAttentions(t *testing.T) {
	for _, c := range []struct {
		name          string
		status        ntstatus.Status
		code          scsi.Code
		read, written bool // goes on
	}{
		{"released", ntstatus.SVHDXUnitAttentionReservationsReleased, scsi.CodeReservationsReleased, true, true},
		{"capacity", ntstatus.SVHDXUnitAttentionCapacityDataChanged, scsi.CodeCapacityChanged, true, true},
		{"definition", ntstatus.SVHDXUnitAttentionOperatingDefinitionChanged, scsi.CodeOperatingDefinitionChanged, true, true},
		{"reservation preempted", ntstatus.SVHDXUnitAttentionReservationsPreempted, scsi.CodeReservationsPreempted, true, false},
		{"registration preempted", ntstatus.SVHDXUnitAttentionRegistrationsPreempted, scsi.CodeRegistrationsPreempted, false, false},
		{"any", ntstatus.SVHDXUnitAttentionAvailable, scsi.CodePowerOnOrReset, true, true},
	} {
		for _, io := range []IO{IOSMB, IOSCSI} {
			t.Run(c.name+" "+io.String(), func(t *testing.T) {
				f := newFake(64 << 10)
				resized := int64(0)
				d := openFake(t, f, Options{IO: io, OnResize: func(n int64) { resized = n }})
				f.size = 128 << 10
				pending := 0
				f.onIO = func(op string, off int64) error {
					if pending--; pending >= 0 {
						return c.status
					}
					return nil
				}
				f.onSCSI = func(cdb []byte) *scsiReply {
					if io == IOSCSI {
						if pending--; pending >= 0 {
							return checkCondition(scsi.UnitAttention, c.code)
						}
					}
					return nil
				}
				p := bytes.Repeat([]byte{7}, 512)
				pending = 2
				err := d.Read(bg, make([]byte, 512), 0)
				if (err == nil) != c.read || err != nil && !errors.Is(err, ErrPreempted) {
					t.Errorf("read: %v", err)
				}
				pending = 2
				err = d.Write(bg, p, 0, false)
				if (err == nil) != c.written || err != nil && !errors.Is(err, ErrPreempted) {
					t.Errorf("write: %v", err)
				}
				if got := f.data[0] == 7; got != c.written {
					t.Errorf("written %v, want %v", got, c.written)
				}
				if want := map[bool]int64{true: 128 << 10, false: 0}[c.name == "capacity" || c.name == "definition"]; resized != want {
					t.Errorf("announced size %d, want %d", resized, want)
				}
			})
		}
	}
}

// An attention that never ends must not turn into an endless loop.
func TestEndlessAttention(t *testing.T) {
	f := newFake(64 << 10)
	d := openFake(t, f, Options{IO: IOSMB})
	n := 0
	f.onIO = func(string, int64) error { n++; return ntstatus.SVHDXUnitAttentionReservationsReleased }
	if err := d.Read(bg, make([]byte, 512), 0); err == nil || n != maxAttentions+1 {
		t.Fatalf("%d tries, %v", n, err)
	}
}

func TestBusy(t *testing.T) {
	f := newFake(64 << 10)
	d := openFake(t, f, Options{IO: IOSCSI})
	n := 0
	f.onSCSI = func([]byte) *scsiReply {
		if n++; n < 4 {
			return &scsiReply{status: byte(scsi.TaskSetFull), srb: 4}
		}
		return nil
	}
	if err := d.Write(bg, make([]byte, 512), 0, false); err != nil || n != 4 {
		t.Fatalf("%d tries, %v", n, err)
	}
	ctx, cancel := context.WithCancel(bg)
	f.onSCSI = func([]byte) *scsiReply { cancel(); return &scsiReply{status: byte(scsi.Busy), srb: 4} }
	if err := d.Write(ctx, make([]byte, 512), 0, false); err == nil {
		t.Fatal("busy for ever, and cancelled, but it succeeded")
	}
}

func TestFlush(t *testing.T) {
	for _, c := range []struct {
		name       string
		io         IO
		noFlush    bool
		noSync     bool
		want       []string
		wantErr    bool
		want2      []string // a second time
		wantErrors error
	}{
		{"smb", IOSMB, false, false, []string{"FLUSH"}, false, []string{"FLUSH"}, nil},
		{"smb, no FLUSH", IOSMB, true, false, []string{"FLUSH", "SYNCHRONIZE CACHE(16)"}, false, []string{"SYNCHRONIZE CACHE(16)"}, nil},
		{"scsi", IOSCSI, false, false, []string{"SYNCHRONIZE CACHE(16)"}, false, []string{"SYNCHRONIZE CACHE(16)"}, nil},
		{"scsi, no SYNCHRONIZE CACHE", IOSCSI, false, true, []string{"SYNCHRONIZE CACHE(16)", "SYNCHRONIZE CACHE(10)", "FLUSH"}, false, []string{"FLUSH"}, nil},
		{"neither", IOSMB, true, true, []string{"FLUSH", "SYNCHRONIZE CACHE(16)", "SYNCHRONIZE CACHE(10)"}, true, nil, errors.ErrUnsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(64 << 10)
			d := openFake(t, f, Options{IO: c.io})
			f.onIO = func(op string, off int64) error {
				if c.noFlush && op == "FLUSH" {
					return ntstatus.InvalidDeviceRequest
				}
				return nil
			}
			f.onSCSI = func(cdb []byte) *scsiReply {
				if op := scsi.OpCode(cdb[0]); c.noSync && (op == scsi.OpSynchronizeCache10 || op == scsi.OpSynchronizeCache16) {
					return checkCondition(scsi.IllegalRequest, scsi.CodeInvalidOpCode)
				}
				return nil
			}
			err := d.Flush(bg)
			if (err != nil) != c.wantErr || c.wantErrors != nil && !errors.Is(err, c.wantErrors) {
				t.Errorf("first: %v", err)
			}
			if fmt.Sprint(f.log) != fmt.Sprint(c.want) {
				t.Errorf("first: %q, want %q", f.log, c.want)
			}
			f.log = nil
			if err := d.Flush(bg); (err != nil) != c.wantErr {
				t.Errorf("second: %v", err)
			}
			if fmt.Sprint(f.log) != fmt.Sprint(c.want2) {
				t.Errorf("second: %q, want %q", f.log, c.want2)
			}
		})
	}
}

// A FLUSH that fails is an error, never a reason to try something else until it looks well.
func TestFlushFails(t *testing.T) {
	f := newFake(64 << 10)
	d := openFake(t, f, Options{IO: IOSMB})
	f.onIO = func(string, int64) error { return ntstatus.IODeviceError }
	if err := d.Flush(bg); !errors.Is(err, ntstatus.IODeviceError) {
		t.Fatal(err)
	}
	if err := d.Write(bg, make([]byte, 512), 0, false); err == nil {
		t.Fatal("a failed WRITE succeeded")
	}
}

func TestFUA(t *testing.T) {
	f := newFake(1 << 20)
	d := openFake(t, f, Options{IO: IOSMB})
	var fua bool
	f.onSCSI = func(cdb []byte) *scsiReply { fua = fua || cdb[1]&8 != 0; return nil }
	if err := d.Write(bg, make([]byte, 512), 0, true); err != nil || !fua || f.count("WRITE(16)") != 1 || len(f.log) != 1 {
		t.Errorf("%v, FUA bit %v: %q", err, fua, f.log)
	}
	f = newFake(1 << 20)
	f.fua = false // the unit does not honour it
	d = openFake(t, f, Options{IO: IOSMB})
	if err := d.Write(bg, make([]byte, 512), 0, true); err != nil || fmt.Sprint(f.log) != "[WRITE 512@0 FLUSH]" {
		t.Errorf("%v: %q", err, f.log)
	}
	// When only the flush meets the conflict the data are there, and the error must not say that nothing was done.
	f.onIO = func(op string, _ int64) error {
		if op == "FLUSH" {
			return ntstatus.SVHDXReservationConflict
		}
		return nil
	}
	if err := d.Write(bg, make([]byte, 512), 0, true); !errors.Is(err, ErrNotDurable) || !errors.Is(err, ErrReservationConflict) {
		t.Errorf("write: %v", err)
	}
	if err := d.WriteZeroes(bg, 0, 512, false, true); !errors.Is(err, ErrNotDurable) {
		t.Errorf("write zeroes: %v", err)
	}
}

func TestZeroAndTrim(t *testing.T) {
	for _, prov := range []bool{true, false} {
		t.Run(fmt.Sprint("provisioning ", prov), func(t *testing.T) {
			f := newFake(1 << 20)
			f.prov = prov
			d := openFake(t, f, Options{})
			for i := range f.data {
				f.data[i] = 1
			}
			if d.FastZero() != prov {
				t.Errorf("FastZero %v", d.FastZero())
			}
			if err := d.WriteZeroes(bg, 512, 100<<9, true, false); err != nil {
				t.Fatal(err)
			}
			if bytes.ContainsFunc(f.data[512:512+100<<9], func(r rune) bool { return r != 0 }) || f.data[511] != 1 || f.data[512+100<<9] != 1 {
				t.Error("not the right bytes are zero")
			}
			if want := map[bool]int{true: 4, false: 0}[prov]; f.count("WRITE SAME(16)") != want { // 32 blocks at most
				t.Errorf("%d WRITE SAME, want %d: %q", f.count("WRITE SAME(16)"), want, f.log)
			}
			f.log = nil
			if err := d.Trim(bg, 512<<10, 130<<9); err != nil {
				t.Fatal(err)
			}
			if want := map[bool]int{true: 3, false: 0}[prov]; f.count("UNMAP") != want || f.data[512<<10-1] != 1 || f.data[512<<10+130<<9] != 1 {
				t.Errorf("%q", f.log)
			}
		})
	}
}

func TestExtents(t *testing.T) {
	f := newFake(1 << 20)
	d := openFake(t, f, Options{})
	type run struct {
		n          int64
		hole, zero bool
	}
	var got []run
	yield := func(n int64, hole, zero bool) bool { got = append(got, run{n, hole, zero}); return true }
	if err := d.Extents(bg, 0, 1<<20, yield); err != nil || fmt.Sprint(got) != "[{1048576 false false}]" {
		t.Fatalf("without GET LBA STATUS: %v %v", got, err)
	}
	f = newFake(1 << 20)
	f.onSCSI = func(cdb []byte) *scsiReply {
		if cdb[0] != 0x9E || cdb[1] != 0x12 {
			return nil
		}
		switch binary.BigEndian.Uint64(cdb[2:]) {
		case 8: // the first run begins before the question
			return &scsiReply{data: scsi.AppendLBAStatus(nil, scsi.LBAStatus{LBA: 0, Blocks: 16}, scsi.LBAStatus{LBA: 16, Blocks: 16, Status: scsi.LBADeallocated})}
		case 32:
			return &scsiReply{data: scsi.AppendLBAStatus(nil, scsi.LBAStatus{LBA: 32, Blocks: 1 << 30, Status: scsi.LBAAnchored})}
		}
		return checkCondition(scsi.IllegalRequest, scsi.CodeLBAOutOfRange)
	}
	d = openFake(t, f, Options{})
	got = nil
	if err := d.Extents(bg, 4096, 64<<10, yield); err != nil || fmt.Sprint(got) != "[{4096 false false} {8192 true true} {53248 false true}]" {
		t.Fatalf("%v %v", got, err)
	}
	// A reply that goes backwards must not loop.
	f.onSCSI = func(cdb []byte) *scsiReply {
		return &scsiReply{data: scsi.AppendLBAStatus(nil, scsi.LBAStatus{LBA: 0, Blocks: 1})}
	}
	if err := d.Extents(bg, 4096, 8192, yield); !errors.Is(err, ErrProtocol) {
		t.Fatal(err)
	}
}

func TestBrokenReplies(t *testing.T) {
	f := newFake(64 << 10)
	d := openFake(t, f, Options{IO: IOSCSI})
	f.onSCSI = func([]byte) *scsiReply { return &scsiReply{data: make([]byte, 100)} }
	if err := d.Read(bg, make([]byte, 512), 0); !errors.Is(err, ErrProtocol) {
		t.Errorf("short data: %v", err)
	}
	f.onSCSI = func([]byte) *scsiReply { return &scsiReply{data: make([]byte, 2000)} }
	if err := d.Read(bg, make([]byte, 512), 0); !errors.Is(err, ErrProtocol) {
		t.Errorf("more data than fit: %v", err)
	}
	for _, srb := range []byte{2, 4, 6, 8, 10, 0x12, 0x7f} {
		f.onSCSI = func([]byte) *scsiReply { return &scsiReply{srb: srb} }
		if err := d.Write(bg, make([]byte, 512), 0, false); err == nil {
			t.Errorf("a write that ended with SRB status %#x succeeded", srb)
		}
	}
	f.onOp = func(op tunnel.OpCode) ntstatus.Status { return ntstatus.SVHDXVersionMismatch }
	if _, err := d.DiskInfo(bg); !errors.Is(err, ntstatus.SVHDXVersionMismatch) {
		t.Errorf("tunnel status: %v", err)
	}
}

func TestClosed(t *testing.T) {
	f := newFake(64 << 10)
	d := openFake(t, f, Options{})
	if err := errors.Join(d.Close(), d.Close()); err != nil || f.closed.Load() != 1 {
		t.Fatal(err, f.closed.Load())
	}
	if err := d.Read(bg, make([]byte, 512), 0); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := d.Flush(bg); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestWarmPathDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	both(t, func(t *testing.T, io IO) {
		f := newFake(64 << 10)
		d := openFake(t, f, Options{IO: io})
		f.quiet = true
		p := make([]byte, 4096)
		if n := testing.AllocsPerRun(200, func() {
			if err := d.Read(bg, p, 4096); err != nil {
				t.Fatal(err)
			}
			if err := d.Write(bg, p, 4096, false); err != nil {
				t.Fatal(err)
			}
		}); n > 0.5 {
			t.Errorf("%v allocations for a read and a write", n)
		}
	})
}
