package lu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"vdbridge/scsi"
	"vdbridge/scsi/lu/lutest"
)

// initiators of the tests
var idA, idB, idC = InitiatorID{1, 15: 0xA}, InitiatorID{2, 15: 0xB}, InitiatorID{3, 15: 0xC}

func newLU(t testing.TB, d Disk, o Options) *LU {
	t.Helper()
	l, err := New(context.Background(), d, o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// run executes a command with room for 64 KiB of data, and returns what came.
func run(n *Nexus, cdb scsi.CDB, out ...byte) (Result, []byte) {
	in := make([]byte, 64<<10)
	r := n.Execute(context.Background(), cdb.Bytes(), out, in)
	return r, in[:r.N]
}

func mustGood(t testing.TB, n *Nexus, cdb scsi.CDB, out ...byte) []byte {
	t.Helper()
	r, in := run(n, cdb, out...)
	if err := r.Error(cdb.Op()); err != nil {
		t.Fatalf("%v of %v: %v", cdb.String(), n.i.id, err)
	}
	return in
}

// mustFail wants a status; with CHECK CONDITION also key and code.
func mustFail(t testing.TB, n *Nexus, status scsi.Status, key scsi.Key, code scsi.Code, cdb scsi.CDB, out ...byte) Result {
	t.Helper()
	r, _ := run(n, cdb, out...)
	if r.Status != status || status == scsi.CheckCondition && (r.Sense.Key != key || r.Sense.Code() != code) {
		t.Fatalf("%v of %v: %v %v, want %v %v, %v", cdb.String(), n.i.id, r.Status, r.Sense, status, key, code)
	}
	return r
}

func prOut(action scsi.PROutAction, typ scsi.PRType, key, actionKey uint64) (scsi.CDB, []byte) {
	return scsi.PersistentReserveOut(action, typ, scsi.PROutListSize), (&scsi.PROutList{Key: key, ActionKey: actionKey}).Append(nil)
}

func reserveOK(t testing.TB, n *Nexus, action scsi.PROutAction, typ scsi.PRType, key, actionKey uint64) {
	t.Helper()
	cdb, list := prOut(action, typ, key, actionKey)
	mustGood(t, n, cdb, list...)
}

func wantAttention(t testing.TB, n *Nexus, code scsi.Code) {
	t.Helper()
	mustFail(t, n, scsi.CheckCondition, scsi.UnitAttention, code, scsi.TestUnitReady())
}

func TestReadWrite(t *testing.T) {
	for _, logical := range []int{512, 4096} {
		t.Run(fmt.Sprint(logical), func(t *testing.T) {
			d := lutest.New(4 << 20)
			d.Logical = logical
			l := newLU(t, d, Options{})
			n := l.Attach(idA, false)
			bs := logical
			block := bytes.Repeat([]byte{0xAB}, bs)
			writes := []scsi.CDB{scsi.Write6(1, 1), scsi.Write10(2, 1, true), scsi.Write12(3, 1, false), scsi.Write16(4, 1, true)}
			reads := []scsi.CDB{scsi.Read6(1, 1), scsi.Read10(2, 1, false), scsi.Read12(3, 1, true), scsi.Read16(4, 1, false)}
			for i := range writes {
				block[0] = byte(i)
				mustGood(t, n, writes[i], block...)
				if got := mustGood(t, n, reads[i]); !bytes.Equal(got, block) {
					t.Errorf("%v: other data come back", reads[i].String())
				}
			}
			if d.FUAs.Load() != 2 {
				t.Errorf("%d writes with FUA, want 2", d.FUAs.Load())
			}
			last := uint64(4<<20/bs - 1)
			mustGood(t, n, scsi.Read16(last, 1, false))
			mustGood(t, n, scsi.Read16(last+1, 0, false))
			illegal := func(code scsi.Code, cdb scsi.CDB, out ...byte) {
				t.Helper()
				mustFail(t, n, scsi.CheckCondition, scsi.IllegalRequest, code, cdb, out...)
			}
			illegal(scsi.CodeLBAOutOfRange, scsi.Read16(last+1, 1, false))
			illegal(scsi.CodeLBAOutOfRange, scsi.Read16(last+2, 0, false))
			illegal(scsi.CodeLBAOutOfRange, scsi.Read16(^uint64(0), 2, false))
			illegal(scsi.CodeLBAOutOfRange, scsi.Write16(last, 2, false), make([]byte, 2*bs)...)
			illegal(scsi.CodeInvalidFieldInCDB, scsi.Write16(0, 2, false), block...) // too little data
			illegal(scsi.CodeInvalidFieldInCDB, scsi.Write16(0, 1, false), make([]byte, 2*bs)...)
			protect := scsi.Read10(0, 1, false)
			protect[1] |= 0x20
			illegal(scsi.CodeInvalidFieldInCDB, protect)
			naca := scsi.Read10(0, 1, false)
			naca[9] = 4
			illegal(scsi.CodeInvalidFieldInCDB, naca)
			r := n.Execute(context.Background(), []byte{0x28, 0, 0}, nil, nil)
			if r.Sense.Code() != scsi.CodeInvalidFieldInCDB {
				t.Errorf("short CDB: %v", r.Sense)
			}
			if r := n.Execute(context.Background(), nil, nil, nil); r.Sense.Code() != scsi.CodeInvalidOpCode {
				t.Errorf("no CDB: %v", r.Sense)
			}
			illegal(scsi.CodeInvalidOpCode, scsi.CDB{0x04})
			illegal(scsi.CodeInvalidFieldInCDB, scsi.CDB{0x9E, 0x1F})
			// Too little room reads nothing and says how much is needed.
			cdb := scsi.Read16(0, 2, false)
			reads0 := d.Reads.Load()
			if r := n.Execute(context.Background(), cdb.Bytes(), nil, make([]byte, bs)); r.Want != 2*bs || r.Status == scsi.Good || d.Reads.Load() != reads0 {
				t.Errorf("READ into too little room: %+v", r)
			}
		})
	}
}

func TestSpecialCommands(t *testing.T) {
	ctx := context.Background()
	d := lutest.New(64 << 20)
	l := newLU(t, d, Options{})
	n := l.Attach(idA, false)
	one, two := bytes.Repeat([]byte{1}, 512), bytes.Repeat([]byte{2}, 512)
	both := append(bytes.Clone(one), two...)
	bad := func(key scsi.Key, code scsi.Code, cdb scsi.CDB, out ...byte) Result {
		t.Helper()
		return mustFail(t, n, scsi.CheckCondition, key, code, cdb, out...)
	}
	mustGood(t, n, scsi.Write16(7, 1, false), one...)
	mustGood(t, n, scsi.CompareAndWrite(7, 1, true), both...)
	if r := bad(scsi.Miscompare, scsi.CodeMiscompare, scsi.CompareAndWrite(7, 1, false), append(append(bytes.Clone(two[:511]), 9), one...)...); r.Sense.Info != 511 {
		t.Errorf("miscompare at %d", r.Sense.Info)
	}
	if got := mustGood(t, n, scsi.Read16(7, 1, false)); !bytes.Equal(got, two) {
		t.Error("COMPARE AND WRITE did not write what it should")
	}
	bad(scsi.IllegalRequest, scsi.CodeInvalidFieldInCDB, scsi.CompareAndWrite(7, 129, false), make([]byte, 129*1024)...)
	mustGood(t, n, scsi.CompareAndWrite(7, 0, false))

	mustGood(t, n, scsi.Verify16(7, 1, scsi.CheckData), two...)
	bad(scsi.Miscompare, scsi.CodeMiscompare, scsi.Verify10(7, 1, scsi.CheckData), one...)
	mustGood(t, n, scsi.WriteSame10(100, 50, false), one...)
	mustGood(t, n, scsi.Verify12(100, 50, scsi.CheckSame), one...)
	if r := bad(scsi.Miscompare, scsi.CodeMiscompare, scsi.Verify12(100, 51, scsi.CheckSame), one...); r.Sense.Info != 50*512 {
		t.Errorf("miscompare at %d", r.Sense.Info)
	}
	mustGood(t, n, scsi.Verify16(0, 64<<11, scsi.CheckMedium))
	bad(scsi.IllegalRequest, scsi.CodeInvalidFieldInCDB, scsi.Verify10(0, 1, 2))
	mustGood(t, n, scsi.WriteSame16(100, 20, false, true))
	mustGood(t, n, scsi.WriteSame16(120, 10, true, false), make([]byte, 512)...)
	if !bytes.Equal(d.Data[100*512:130*512], make([]byte, 30*512)) || d.Data[130*512] != 1 {
		t.Error("WRITE SAME zeroed other blocks than it should")
	}
	bad(scsi.IllegalRequest, scsi.CodeInvalidFieldInCDB, scsi.WriteSame16(0, 0, false, true)) // WSNZ
	big := scsi.WriteSame16(1000, 1<<14, false, false)
	mustGood(t, n, big, one...)
	mustGood(t, n, scsi.Verify16(1000, 1<<14, scsi.CheckSame), one...)

	mustGood(t, n, scsi.Unmap(0))
	list := scsi.AppendUnmapList(nil, scsi.UnmapRange{LBA: 1000, Blocks: 8}, scsi.UnmapRange{LBA: 2000, Blocks: 0}, scsi.UnmapRange{LBA: 1016, Blocks: 8})
	mustGood(t, n, scsi.Unmap(uint16(len(list))), list...)
	status, err := scsi.ParseLBAStatus(mustGood(t, n, scsi.GetLBAStatus(999, 4096)))
	want := []scsi.LBAStatus{{LBA: 999, Blocks: 1}, {LBA: 1000, Blocks: 8, Status: 1}, {LBA: 1008, Blocks: 8}, {LBA: 1016, Blocks: 8, Status: 1}, {LBA: 1024, Blocks: 131072 - 1024}}
	if err != nil || fmt.Sprint(status) != fmt.Sprint(want) {
		t.Errorf("GET LBA STATUS: %v %v, want %v", status, err, want)
	}
	if status, err = scsi.ParseLBAStatus(mustGood(t, n, scsi.GetLBAStatus(1002, 24))); err != nil || len(status) != 1 || status[0].Blocks != 6 {
		t.Errorf("GET LBA STATUS with room for one: %v %v", status, err)
	}
	bad(scsi.IllegalRequest, scsi.CodeLBAOutOfRange, scsi.GetLBAStatus(131072, 24))
	list = scsi.AppendUnmapList(nil, scsi.UnmapRange{LBA: 0, Blocks: 1}, scsi.UnmapRange{LBA: 131072, Blocks: 1})
	bad(scsi.IllegalRequest, scsi.CodeLBAOutOfRange, scsi.Unmap(uint16(len(list))), list...)
	bad(scsi.IllegalRequest, scsi.CodeParameterListLength, scsi.Unmap(7), make([]byte, 7)...)
	bad(scsi.IllegalRequest, scsi.CodeParameterListLength, scsi.Unmap(24), make([]byte, 23)...)
	many := make([]scsi.UnmapRange, maxUnmapDescriptors+1)
	list = scsi.AppendUnmapList(nil, many...)
	bad(scsi.IllegalRequest, scsi.CodeInvalidFieldInParams, scsi.Unmap(uint16(len(list))), list...)

	flushes := d.Flushes.Load()
	mustGood(t, n, scsi.SynchronizeCache10(0, 0, false))
	mustGood(t, n, scsi.SynchronizeCache16(0, 0, true))
	mustGood(t, n, scsi.StartStopUnit(false, false, false))
	mustGood(t, n, scsi.StartStopUnit(false, true, false))
	if got := d.Flushes.Load() - flushes; got != 3 {
		t.Errorf("%d flushes, want 3", got)
	}
	bad(scsi.IllegalRequest, scsi.CodeInvalidFieldInCDB, scsi.StartStopUnit(false, false, true))
	mustGood(t, n, scsi.PreventAllow(true))
	if err := n.Write(ctx, one, 512, true); err != nil {
		t.Error(err)
	}
	if err := n.Read(ctx, two, 512); err != nil || !bytes.Equal(one, two) {
		t.Error("plain read", err)
	}
	if err := n.Flush(ctx); err != nil {
		t.Error(err)
	}
	for _, off := range []int64{1, -512} {
		if err := n.Read(ctx, two, off); !errors.Is(err, ErrUnaligned) {
			t.Errorf("plain read at %d: %v", off, err)
		}
	}
	if err := n.Write(ctx, two, 64<<20, false); !errors.Is(err, &scsi.Error{Status: scsi.CheckCondition, Sense: scsi.NewSense(scsi.IllegalRequest, scsi.CodeLBAOutOfRange)}) {
		t.Errorf("plain write behind the end: %v", err)
	}
}

func TestIdentity(t *testing.T) {
	d := lutest.New(1 << 30)
	d.Optimal, d.Max = 1<<20, 4<<20
	l := newLU(t, d, Options{ID: [16]byte{1, 2, 3, 15: 9}, Thin: true, MaxTransfer: 2 << 20})
	n := l.Attach(idA, false)
	inq, err := scsi.ParseInquiry(mustGood(t, n, scsi.Inquiry(255)))
	if err != nil || inq.Vendor != "VDBRIDGE" || inq.Product != "Virtual Disk" || inq.DeviceType != 0 || !inq.CommandQueue {
		t.Errorf("INQUIRY: %+v %v", inq, err)
	}
	if got := mustGood(t, n, scsi.Inquiry(36)); len(got) != 36 {
		t.Errorf("INQUIRY with allocation length 36 returns %d bytes", len(got))
	}
	pages, err := scsi.ParseSupportedPages(mustGood(t, n, scsi.InquiryVPD(scsi.VPDSupportedPages, 255)))
	if err != nil || len(pages) != 6 {
		t.Errorf("VPD 00: %v %v", pages, err)
	}
	for _, p := range pages {
		if _, err := scsi.ParseVPD(mustGood(t, n, scsi.InquiryVPD(p, 255)), p); err != nil {
			t.Error(err)
		}
	}
	lim, err := scsi.ParseBlockLimits(mustGood(t, n, scsi.InquiryVPD(scsi.VPDBlockLimits, 255)))
	if err != nil || lim.MaxTransfer != 4096 || lim.OptimalTransfer != 2048 || lim.OptimalGranularity != 8 || lim.MaxCompareAndWrite != maxCompareAndWrite {
		t.Errorf("VPD B0: %+v %v", lim, err)
	}
	mustFail(t, n, scsi.CheckCondition, scsi.IllegalRequest, scsi.CodeInvalidFieldInCDB, scsi.Read16(0, 4097, false))
	mustFail(t, n, scsi.CheckCondition, scsi.IllegalRequest, scsi.CodeInvalidFieldInCDB, scsi.InquiryVPD(0x86, 255))
	c, err := scsi.ParseCapacity16(mustGood(t, n, scsi.ReadCapacity16(32)))
	if err != nil || c.LastLBA != 1<<21-1 || c.BlockLength != 512 || c.PhysicalExp != 3 || !c.ReadZeros {
		t.Errorf("READ CAPACITY(16): %+v %v", c, err)
	}
	if got := mustGood(t, n, scsi.ReadCapacity10()); !bytes.Equal(got, []byte{0, 0x1f, 0xff, 0xff, 0, 0, 2, 0}) {
		t.Errorf("READ CAPACITY(10): %x", got)
	}
	luns, err := scsi.ParseLUNs(mustGood(t, n, scsi.ReportLUNs(0, 256)))
	if err != nil || len(luns) != 1 || luns[0] != 0 {
		t.Errorf("REPORT LUNS: %v %v", luns, err)
	}
	for _, long := range []bool{false, true} {
		var m scsi.ModeData
		if long {
			m, err = scsi.ParseMode10(mustGood(t, n, scsi.ModeSense10(true, false, scsi.ModeAllPages, 0, 512)))
		} else {
			m, err = scsi.ParseMode6(mustGood(t, n, scsi.ModeSense6(false, scsi.ModeAllPages, 0, 255)))
		}
		caching, cerr := scsi.ParseCachingPage(m.Page(scsi.ModeCaching))
		control, perr := scsi.ParseControlPage(m.Page(scsi.ModeControl))
		if err != nil || cerr != nil || perr != nil || !caching.WriteCache || !control.TaskAborted || !m.DPOFUA || m.Blocks != 1<<21 || m.WriteProtect {
			t.Errorf("MODE SENSE: %+v %+v %+v %v %v %v", m, caching, control, err, cerr, perr)
		}
	}
	mustFail(t, n, scsi.CheckCondition, scsi.IllegalRequest, scsi.CodeInvalidFieldInCDB, scsi.ModeSense6(true, 0x19, 0, 255))
	list, err := scsi.ParseCommands(mustGood(t, n, scsi.ReportOpCodes(0, true, 0, 0, 4096)))
	if err != nil || len(list) != len(commands) {
		t.Errorf("REPORT SUPPORTED OPERATION CODES: %d commands, %v", len(list), err)
	}
	for _, s := range list { // each is there alone, too
		opt := uint8(1)
		if s.HasAction {
			opt = 2
		}
		support, usage, err := scsi.ParseCommand(mustGood(t, n, scsi.ReportOpCodes(opt, false, s.Op, s.Action, 64)))
		if err != nil || support != 3 || len(usage) != int(s.CDBLength) || usage[0] != byte(s.Op) {
			t.Errorf("%v/%d: support %d usage %x %v", s.Op, s.Action, support, usage, err)
		}
	}
	if support, _, err := scsi.ParseCommand(mustGood(t, n, scsi.ReportOpCodes(1, false, 0x04, 0, 64))); err != nil || support != 1 {
		t.Errorf("FORMAT UNIT: support %d %v", support, err)
	}
	l.CapacityChanged()
	sense, err := scsi.ParseSense(mustGood(t, n, scsi.RequestSense(false, 252)))
	if err != nil || sense.Code() != scsi.CodeCapacityChanged || sense.Key != scsi.UnitAttention {
		t.Errorf("REQUEST SENSE: %v %v", sense, err)
	}
	l.CapacityChanged()
	mustGood(t, n, scsi.Inquiry(36)) // does not clear it
	wantAttention(t, n, scsi.CodeCapacityChanged)
	mustGood(t, n, scsi.TestUnitReady())
}

func TestDiskErrors(t *testing.T) {
	d := lutest.New(1 << 20)
	l := newLU(t, d, Options{})
	n := l.Attach(idA, false)
	var give error
	d.OnRead = func(context.Context, int64, int) error { return give }
	d.OnWrite = func(context.Context, int64, int) error { return give }
	for _, tt := range []struct {
		err         error
		read, write scsi.Sense
	}{
		{syscall.EIO, scsi.NewSense(scsi.MediumError, scsi.CodeUnrecoveredRead), scsi.NewSense(scsi.MediumError, scsi.CodeWriteError)},
		{syscall.ENOSPC, scsi.NewSense(scsi.DataProtect, scsi.CodeSpaceAllocation), scsi.NewSense(scsi.DataProtect, scsi.CodeSpaceAllocation)},
		{context.Canceled, scsi.NewSense(scsi.AbortedCommand, 6), scsi.NewSense(scsi.AbortedCommand, 6)},
	} {
		give = fmt.Errorf("deep down: %w", tt.err)
		if r := mustFail(t, n, scsi.CheckCondition, tt.read.Key, tt.read.Code(), scsi.Read16(3, 1, false)); !errors.Is(r.Err, tt.err) {
			t.Errorf("error %v", r.Err)
		}
		mustFail(t, n, scsi.CheckCondition, tt.write.Key, tt.write.Code(), scsi.Write16(3, 1, false), make([]byte, 512)...)
		if err := n.Write(t.Context(), make([]byte, 512), 0, false); !errors.Is(err, tt.err) {
			t.Errorf("plain write: %v", err)
		}
	}
	if !l.locks.empty() || n.i.inflight != [2]int{} {
		t.Error("failed commands leave locks or counts")
	}
	ro := lutest.New(1 << 20)
	ro.RO = true
	for _, n := range []*Nexus{newLU(t, ro, Options{}).Attach(idA, false), newLU(t, lutest.New(1<<20), Options{}).Attach(idA, true)} {
		list := scsi.AppendUnmapList(nil, scsi.UnmapRange{LBA: 1, Blocks: 1})
		for _, c := range []struct {
			cdb scsi.CDB
			out []byte
		}{{scsi.Write16(0, 1, false), make([]byte, 512)}, {scsi.WriteSame16(0, 1, false, true), nil}, {scsi.CompareAndWrite(0, 1, false), make([]byte, 1024)},
			{scsi.Unmap(uint16(len(list))), list}} {
			mustFail(t, n, scsi.CheckCondition, scsi.DataProtect, scsi.CodeWriteProtected, c.cdb, c.out...)
		}
		if m, err := scsi.ParseMode6(mustGood(t, n, scsi.ModeSense6(true, scsi.ModeAllPages, 0, 255))); err != nil || !m.WriteProtect {
			t.Errorf("MODE SENSE of a read-only disk: %+v %v", m, err)
		}
	}
}

func TestWarmPathDoesNotAllocate(t *testing.T) {
	d := lutest.New(1 << 20)
	l := newLU(t, d, Options{})
	n := l.Attach(idA, false)
	buf := make([]byte, 4096)
	ctx := context.Background()
	read, write := scsi.Read16(8, 8, false), scsi.Write16(8, 8, false)
	rb, wb := read.Bytes(), write.Bytes()
	check := func(what string, f func()) {
		if a := testing.AllocsPerRun(1000, f); a != 0 {
			t.Errorf("%s allocates %v times", what, a)
		}
	}
	check("READ(16)", func() { n.Execute(ctx, rb, nil, buf) })
	check("WRITE(16)", func() { n.Execute(ctx, wb, buf, nil) })
	check("Read", func() { _ = n.Read(ctx, buf, 4096) })
	check("Write", func() { _ = n.Write(ctx, buf, 4096, false) })
}

func FuzzExecute(f *testing.F) {
	for i := range commands {
		c := make([]byte, 16)
		copy(c, commands[i].usage)
		f.Add(c, []byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0}, uint16(512))
		clear(c[2:])
		f.Add(c, make([]byte, 512), uint16(1024))
	}
	f.Fuzz(func(t *testing.T, cdb, out []byte, room uint16) {
		d := lutest.New(1 << 20)
		l := newLU(t, d, Options{})
		n, other := l.Attach(idA, false), l.Attach(idB, false)
		reserveOK(t, other, scsi.PRRegister, 0, 0, 2)
		in := make([]byte, room)
		for range 2 {
			r := n.Execute(context.Background(), cdb, out, in)
			if r.N > len(in) || r.N < 0 || r.Status == scsi.Good && r.N > r.Want {
				t.Fatalf("%d bytes returned, %d wanted, room for %d", r.N, r.Want, len(in))
			}
			if r.Status == scsi.CheckCondition && r.Sense.Key == scsi.NoSense {
				t.Fatal("CHECK CONDITION without a sense key")
			}
		}
		if !l.locks.empty() || n.i.inflight != [2]int{} {
			t.Fatal("a lock or a count is left")
		}
	})
}
