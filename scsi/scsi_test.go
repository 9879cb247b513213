package scsi

import (
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Every command's bytes, laid out by hand from the tables of SPC-4 and SBC-3.
var goldenCDBs = []struct {
	cdb  CDB
	hex  string
	name string
}{
	{TestUnitReady(), "00 00 00 00 00 00", "TEST UNIT READY"},
	{RequestSense(true, 252), "03 01 00 00 fc 00", "REQUEST SENSE"},
	{Read6(0x1FFEDC, 0), "08 1f fe dc 00 00", "READ(6)"},
	{Write6(0x102, 3), "0a 00 01 02 03 00", "WRITE(6)"},
	{Inquiry(0x124), "12 00 00 01 24 00", "INQUIRY"},
	{InquiryVPD(VPDBlockLimits, 64), "12 01 b0 00 40 00", "INQUIRY"},
	{ModeSense6(true, 8, 1, 255), "1a 08 08 01 ff 00", "MODE SENSE(6)"},
	{StartStopUnit(true, false, true), "1b 01 00 00 02 00", "START STOP UNIT"},
	{PreventAllow(true), "1e 00 00 00 01 00", "PREVENT ALLOW MEDIUM REMOVAL"},
	{ReadCapacity10(), "25 00 00 00 00 00 00 00 00 00", "READ CAPACITY(10)"},
	{Read10(0x01020304, 0x506, true), "28 08 01 02 03 04 00 05 06 00", "READ(10)"},
	{Write10(0x01020304, 0x506, false), "2a 00 01 02 03 04 00 05 06 00", "WRITE(10)"},
	{Verify10(1, 2, CheckData), "2f 02 00 00 00 01 00 00 02 00", "VERIFY(10)"},
	{SynchronizeCache10(1, 2, true), "35 02 00 00 00 01 00 00 02 00", "SYNCHRONIZE CACHE(10)"},
	{WriteSame10(1, 2, true), "41 08 00 00 00 01 00 00 02 00", "WRITE SAME(10)"},
	{Unmap(24), "42 00 00 00 00 00 00 00 18 00", "UNMAP"},
	{ModeSense10(true, false, 0x3F, 0xFF, 0x1234), "5a 10 3f ff 00 00 00 12 34 00", "MODE SENSE(10)"},
	{PersistentReserveIn(PRReadFullStatus, 0x2000), "5e 03 00 00 00 00 00 20 00 00", "PERSISTENT RESERVE IN READ FULL STATUS"},
	{PersistentReserveOut(PRPreempt, WriteExclusiveRegistrantsOnly, 24), "5f 04 05 00 00 00 00 00 18 00", "PERSISTENT RESERVE OUT PREEMPT"},
	{Read16(0x0102030405060708, 0x090A0B0C, true), "88 08 01 02 03 04 05 06 07 08 09 0a 0b 0c 00 00", "READ(16)"},
	{CompareAndWrite(0x0102030405060708, 9, true), "89 08 01 02 03 04 05 06 07 08 00 00 00 09 00 00", "COMPARE AND WRITE"},
	{Write16(0x0102030405060708, 0x090A0B0C, false), "8a 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 00 00", "WRITE(16)"},
	{Verify16(1, 2, CheckSame), "8f 06 00 00 00 00 00 00 00 01 00 00 00 02 00 00", "VERIFY(16)"},
	{SynchronizeCache16(1, 2, false), "91 00 00 00 00 00 00 00 00 01 00 00 00 02 00 00", "SYNCHRONIZE CACHE(16)"},
	{WriteSame16(1, 2, true, true), "93 09 00 00 00 00 00 00 00 01 00 00 00 02 00 00", "WRITE SAME(16)"},
	{ReadCapacity16(32), "9e 10 00 00 00 00 00 00 00 00 00 00 00 20 00 00", "READ CAPACITY(16)"},
	{GetLBAStatus(5, 24), "9e 12 00 00 00 00 00 00 00 05 00 00 00 18 00 00", "GET LBA STATUS"},
	{ReportLUNs(2, 0x01020304), "a0 00 02 00 00 00 01 02 03 04 00 00", "REPORT LUNS"},
	{ReportOpCodes(2, true, OpServiceActionIn16, 0x10, 64), "a3 0c 82 9e 00 10 00 00 00 40 00 00", "REPORT SUPPORTED OPERATION CODES"},
	{Read12(0x01020304, 0x05060708, false), "a8 00 01 02 03 04 05 06 07 08 00 00", "READ(12)"},
	{Write12(0x01020304, 0x05060708, true), "aa 08 01 02 03 04 05 06 07 08 00 00", "WRITE(12)"},
	{Verify12(1, 2, CheckMedium), "af 00 00 00 00 01 00 00 00 02 00 00", "VERIFY(12)"},
}

// parseAny decodes a CDB with the function for its command.
func parseAny(cdb []byte) (any, error) {
	if len(cdb) == 0 {
		return ParseTransfer(cdb)
	}
	switch OpCode(cdb[0]) {
	case OpTestUnitReady:
		return nil, checkLen(cdb, OpTestUnitReady)
	case OpRequestSense:
		return ParseRequestSenseCDB(cdb)
	case OpInquiry:
		return ParseInquiryCDB(cdb)
	case OpModeSense6, OpModeSense10:
		return ParseModeSenseCDB(cdb)
	case OpStartStopUnit:
		return ParseStartStopCDB(cdb)
	case OpPreventAllow:
		return ParsePreventAllowCDB(cdb)
	case OpReadCapacity10:
		return ParseReadCapacity10CDB(cdb)
	case OpUnmap:
		return ParseUnmapCDB(cdb)
	case OpPersistentReserveIn:
		return ParsePRInCDB(cdb)
	case OpPersistentReserveOut:
		return ParsePROutCDB(cdb)
	case OpServiceActionIn16:
		return ParseServiceActionIn16CDB(cdb)
	case OpReportLUNs:
		return ParseReportLUNsCDB(cdb)
	case OpMaintenanceIn:
		return ParseReportOpCodesCDB(cdb)
	}
	return ParseTransfer(cdb)
}

func TestCDBs(t *testing.T) {
	for _, g := range goldenCDBs {
		if got, want := g.cdb.Bytes(), unhex(t, g.hex); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: % x, want % x", g.name, got, want)
		}
		if got := g.cdb.String(); got != g.name {
			t.Errorf("%s calls itself %q", g.name, got)
		}
		for n := range g.cdb.Len() {
			if _, err := parseAny(g.cdb[:n]); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s cut to %d bytes: %v", g.name, n, err)
			}
			_ = CommandName(g.cdb[:n])
		}
	}
	for _, tt := range []struct {
		cdb  CDB
		want any
	}{
		{Read6(0x1FFEDC, 0), Transfer{Op: OpRead6, LBA: 0x1FFEDC, Blocks: 256}},
		{Write6(5, 1), Transfer{Op: OpWrite6, LBA: 5, Blocks: 1}},
		{Read10(0xFFFFFFFF, 0xFFFF, true), Transfer{Op: OpRead10, LBA: 0xFFFFFFFF, Blocks: 0xFFFF, FUA: true}},
		{Read12(1, 0xFFFFFFFF, false), Transfer{Op: OpRead12, LBA: 1, Blocks: 0xFFFFFFFF}},
		{Write16(1<<63, 7, true), Transfer{Op: OpWrite16, LBA: 1 << 63, Blocks: 7, FUA: true}},
		{Verify16(1, 2, CheckSame), Transfer{Op: OpVerify16, LBA: 1, Blocks: 2, Check: CheckSame}},
		{CompareAndWrite(3, 4, true), Transfer{Op: OpCompareAndWrite, LBA: 3, Blocks: 4, FUA: true}},
		{WriteSame16(1, 2, true, true), Transfer{Op: OpWriteSame16, LBA: 1, Blocks: 2, Unmap: true, NoData: true}},
		{WriteSame10(1, 2, true), Transfer{Op: OpWriteSame10, LBA: 1, Blocks: 2, Unmap: true}},
		{SynchronizeCache16(1, 2, true), Transfer{Op: OpSynchronizeCache16, LBA: 1, Blocks: 2, Immed: true}},
		{CDB{0x28, 0xF0}, Transfer{Op: OpRead10, Protect: 7, DPO: true}},
		{CDB{0x93, 0x16}, Transfer{Op: OpWriteSame16, Anchor: true, Reserved: true}},
		{InquiryVPD(0x83, 300), InquiryCDB{true, 0x83, 300}},
		{ModeSense10(true, false, 8, 1, 600), ModeSenseCDB{Long: true, LongLBA: true, Page: 8, Subpage: 1, Alloc: 600}},
		{ModeSense6(true, 0x3F, 0, 9), ModeSenseCDB{NoBlockDescriptor: true, Page: 0x3F, Alloc: 9}},
		{RequestSense(true, 20), RequestSenseCDB{true, 20}},
		{GetLBAStatus(9, 24), ServiceActionIn16CDB{Action: SAGetLBAStatus, LBA: 9, Alloc: 24}},
		{Unmap(24), UnmapCDB{false, 24}},
		{ReportLUNs(2, 16), ReportLUNsCDB{2, 16}},
		{ReportOpCodes(1, true, OpRead16, 0, 8), ReportOpCodesCDB{true, 1, OpRead16, 0, 8}},
		{StartStopUnit(true, true, false), StartStopCDB{Immed: true, Start: true}},
		{PreventAllow(true), uint8(1)},
		{PersistentReserveIn(PRReadKeys, 8), PRInCDB{PRReadKeys, 8}},
		{PersistentReserveOut(PRReserve, ExclusiveAccess, 24), PROutCDB{PRReserve, 0, ExclusiveAccess, 24}},
		{ReadCapacity10(), ReadCapacity10CDB{}},
	} {
		if got, err := parseAny(tt.cdb.Bytes()); err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%v: %+v %v, want %+v", tt.cdb.String(), got, err, tt.want)
		}
	}
	if a := testing.AllocsPerRun(100, func() {
		c := Read16(1, 8, false)
		if tr, err := ParseTransfer(c.Bytes()); err != nil || tr.LBA != 1 {
			t.Fatal(err)
		}
	}); a != 0 {
		t.Errorf("a READ(16) allocates %v times", a)
	}
}

func TestSense(t *testing.T) {
	s := NewSense(IllegalRequest, CodeInvalidFieldInCDB).WithCDBBit(2, 5)
	if got := hex.EncodeToString(s.AppendFixed(nil)); got != "70000500000000"+"0a"+"00000000"+"2400"+"00"+"cd0002" {
		t.Errorf("fixed: %s", got)
	}
	if got := hex.EncodeToString(s.WithInfo(0x1122334455).AppendDescriptor(nil)); got != "72052400"+"00000014"+"000a8000"+"0000001122334455"+"02060000"+"cd000200" {
		t.Errorf("descriptor: %s", got)
	}
	for _, s := range []Sense{
		{},
		s,
		NewSense(MediumError, CodeUnrecoveredRead).WithInfo(0xFFFFFFFF),
		NewSense(UnitAttention, CodeReservationsPreempted),
		NewSense(IllegalRequest, CodeInvalidFieldInParams).WithParamField(300),
		{Key: AbortedCommand, Deferred: true},
	} {
		for _, b := range [][]byte{s.AppendFixed(nil), append(s.AppendFixed(nil), 0, 0), s.AppendDescriptor(nil)} {
			if got, err := ParseSense(b); err != nil || got != s {
				t.Errorf("% x: %+v %v, want %+v", b, got, err, s)
			}
		}
	}
	big := NewSense(MediumError, CodeWriteError).WithInfo(1 << 32)
	if got, err := ParseSense(big.AppendFixed(nil)); err != nil || got.InfoValid {
		t.Errorf("information that does not fit: %+v %v", got, err)
	}
	if got, err := ParseSense(big.AppendDescriptor(nil)); err != nil || got != big {
		t.Errorf("%+v %v", got, err)
	}
	// What Windows sends for an open without an initiator.
	if got, err := ParseSense(unhex(t, "f0 00 00 00 00 00 00 0a 00 00 00 00 00 00 00 00 00 00 00 00")); err != nil || got.Key != NoSense || got.Code() != 0 {
		t.Errorf("%+v %v", got, err)
	}
	d := s.AppendDescriptor(nil)
	for n := range d {
		if _, err := ParseSense(d[:n]); !errors.Is(err, ErrMalformed) {
			t.Errorf("descriptor sense cut to %d bytes: %v", n, err)
		}
	}
	for n := range 3 {
		if _, err := ParseSense(s.AppendFixed(nil)[:n]); !errors.Is(err, ErrMalformed) {
			t.Errorf("fixed sense cut to %d bytes: %v", n, err)
		}
	}
	if _, err := ParseSense([]byte{0x7F, 0, 0, 0, 0, 0, 0, 0}); !errors.Is(err, ErrMalformed) {
		t.Error("accepts response code 7F")
	}
	e := &Error{Op: OpWrite16, Status: CheckCondition, Sense: s, Err: errors.ErrUnsupported}
	if got := e.Error(); got != "WRITE(16): illegal request, invalid field in CDB (byte 2 of the CDB, bit 5): unsupported operation" {
		t.Errorf("in words: %s", got)
	}
	var err error = fmt.Errorf("outside: %w", &Error{Op: OpWrite16, Status: ReservationConflict})
	if !errors.Is(err, &Error{Status: ReservationConflict}) || errors.Is(err, &Error{Status: Busy}) || !errors.Is(e, errors.ErrUnsupported) {
		t.Error("errors.Is")
	}
}

// fixedSize are structures that must be whole; cuttable ones may have been cut by an allocation length.
func TestParameterData(t *testing.T) {
	srp, iscsi := SRPTransportID([16]byte{1, 15: 2}), TransportID{Protocol: ProtocolISCSI, Name: "iqn.2024-01.example:host,i,0x00023d000001"}
	sas := TransportID{Protocol: ProtocolSAS, Port: [16]byte{5, 7: 1}}
	fc := TransportID{Protocol: ProtocolFC, Port: [16]byte{5, 7: 1}}
	enc := func(a interface{ Append([]byte) []byte }) []byte { return a.Append(nil) }
	list := PROutList{Key: 0x1122334455667788, ActionKey: 2, AllTargetPorts: true, PersistPower: true}
	listIDs := PROutList{Key: 1, ActionKey: 2, TransportIDs: []TransportID{srp, iscsi, sas, fc}}
	move := PRMoveList{Key: 1, ActionKey: 2, Unregister: true, TargetPort: 1, TransportID: srp}
	keys := PRKeys{Generation: 7, Keys: []uint64{1, 0xFFFFFFFFFFFFFFFF}}
	res := PRReservation{Generation: 8, Held: true, Key: 0x1122334455667788, Type: WriteExclusiveRegistrantsOnly}
	caps := PRCapabilities{SpecifyInitiators: true, AllTargetPorts: true, PersistThroughPower: true, PersistActive: true, TypesValid: true,
		Types: []PRType{WriteExclusive, ExclusiveAccess, WriteExclusiveRegistrantsOnly, ExclusiveAccessRegistrantsOnly, WriteExclusiveAllRegistrants, ExclusiveAccessAllRegistrants}}
	full := PRFullStatus{Generation: 9, Registrations: []PRRegistration{
		{Key: 1, AllTargetPorts: true, Holder: true, Type: WriteExclusive, TargetPort: 1, TransportID: srp.Append(nil)},
		{Key: 2, TargetPort: 1, TransportID: iscsi.Append(nil)}}}
	inq := InquiryData{Version: 6, CommandQueue: true, Vendor: "VDBRIDGE", Product: "Virtual Disk", Revision: "1", Standards: []uint16{0xA0, 0x460}}
	lim := BlockLimits{true, 128, 8, 1, 2, 3, 4, 5, 6, true, 7, 1 << 40, 8, 9, 10, 11, 12}
	char := BlockCharacteristics{1, 3}
	prov := LogicalBlockProvisioning{true, true, true, true, true, 2}
	capa := Capacity{LastLBA: 1 << 40, BlockLength: 512, PhysicalExp: 3, Provisioned: true, ReadZeros: true, LowestAlignedLB: 0x1234}
	des := []Designator{{CodeSetASCII, 0, DesignatorT10, []byte("VDBRIDGE")}, {CodeSetBinary, 1, DesignatorPort, []byte{0, 0, 0, 1}}}
	status := []LBAStatus{{1, 2, 0}, {1 << 40, 0xFFFFFFFF, 1}}
	cmds := []SupportedCommand{{Op: OpRead16, CDBLength: 16}, {Op: OpServiceActionIn16, HasAction: true, Action: 0x10, CDBLength: 16}}
	strip := func(l []SupportedCommand) []SupportedCommand { return l }
	mode := ModeData{WriteProtect: true, DPOFUA: true, HasBlocks: true, Blocks: 1 << 21, BlockLength: 512,
		Pages: ControlPage{true, true, true, true, 1}.Append(CachingPage{true, true}.Append(nil))}
	mode64 := mode
	mode64.Blocks = 1 << 40

	for _, tt := range []struct {
		name   string
		bytes  []byte
		golden string // "" where the round trip is enough
		strict bool   // every shorter prefix is an error
		want   any
		parse  func([]byte) (any, error)
	}{
		{"PR OUT list", enc(&list), "1122334455667788 0000000000000002 00000000 05 00 0000", true, list, func(b []byte) (any, error) { return ParsePROutList(b) }},
		{"PR OUT list with transport IDs", enc(&listIDs), "", true, listIDs, func(b []byte) (any, error) { return ParsePROutList(b) }},
		{"REGISTER AND MOVE list", enc(&move), "0000000000000001 0000000000000002 00 02 0001 00000018 0400000000000000 01000000000000000000000000000002", true, move,
			func(b []byte) (any, error) { return ParsePRMoveList(b) }},
		{"READ KEYS", enc(&keys), "00000007 00000010 0000000000000001 ffffffffffffffff", false, keys, func(b []byte) (any, error) { return ParsePRKeys(b) }},
		{"READ RESERVATION", enc(&res), "00000008 00000010 1122334455667788 00000000 00 05 0000", true, res, func(b []byte) (any, error) { return ParsePRReservation(b) }},
		{"READ RESERVATION, none", enc(&PRReservation{Generation: 1}), "00000001 00000000", true, PRReservation{Generation: 1}, func(b []byte) (any, error) { return ParsePRReservation(b) }},
		{"REPORT CAPABILITIES", enc(&caps), "0008 0d 81 ea01 0000", true, caps, func(b []byte) (any, error) { return ParsePRCapabilities(b) }},
		{"READ FULL STATUS", enc(&full), "", false, full, func(b []byte) (any, error) { return ParsePRFullStatus(b) }},
		{"INQUIRY", enc(&inq), "", false, inq, func(b []byte) (any, error) { return ParseInquiry(b) }},
		{"VPD 00", AppendSupportedPages(nil, 0, 0x80, 0x83), "00 00 0003 00 80 83", true, []VPDPage{0, 0x80, 0x83}, func(b []byte) (any, error) { return ParseSupportedPages(b) }},
		{"VPD 80", AppendSerialNumber(nil, "abc"), "00 80 0003 616263", true, "abc", func(b []byte) (any, error) { return ParseSerialNumber(b) }},
		{"VPD 83", AppendDeviceIdentification(nil, des...), "00 83 0014 02 01 00 08 5644425249444745 01 14 00 04 00000001", true, des,
			func(b []byte) (any, error) { return ParseDeviceIdentification(b) }},
		{"VPD B0", enc(&lim), "00 b0 003c 01 80 0008 00000001 00000002 00000003 00000004 00000005 00000006 80000007 0000010000000000 00000008 00000009 0000000a 0000000b 0000000c",
			true, lim, func(b []byte) (any, error) { return ParseBlockLimits(b) }},
		{"VPD B1", enc(&char), "", true, char, func(b []byte) (any, error) { return ParseBlockCharacteristics(b) }},
		{"VPD B2", enc(&prov), "00 b2 0004 00 e6 02 00", true, prov, func(b []byte) (any, error) { return ParseLogicalBlockProvisioning(b) }},
		{"READ CAPACITY(10)", capa.Append10(nil), "ffffffff 00000200", true, Capacity{LastLBA: 0xFFFFFFFF, BlockLength: 512}, func(b []byte) (any, error) { return ParseCapacity10(b) }},
		{"READ CAPACITY(16)", capa.Append16(nil), "0000010000000000 00000200 00 03 d2 34 00000000000000000000000000000000", false, capa, func(b []byte) (any, error) { return ParseCapacity16(b) }},
		{"GET LBA STATUS", AppendLBAStatus(nil, status...), "00000024 00000000 0000000000000001 00000002 00 000000 0000010000000000 ffffffff 01 000000", false, status,
			func(b []byte) (any, error) { return ParseLBAStatus(b) }},
		{"UNMAP list", AppendUnmapList(nil, UnmapRange{1, 2}), "0016 0010 00000000 0000000000000001 00000002 00000000", false, []UnmapRange{{1, 2}},
			func(b []byte) (any, error) { return ParseUnmapList(b) }},
		{"REPORT LUNS", AppendLUNs(nil, 0, 1<<48), "00000010 00000000 0000000000000000 0001000000000000", false, []uint64{0, 1 << 48}, func(b []byte) (any, error) { return ParseLUNs(b) }},
		{"all commands", AppendCommands(nil, false, cmds), "00000010 88 00 0000 00 00 0010 9e 00 0010 00 01 0010", false, strip(cmds), func(b []byte) (any, error) { return ParseCommands(b) }},
		{"all commands with timeouts", AppendCommands(nil, true, cmds), "", false, strip(cmds), func(b []byte) (any, error) { return ParseCommands(b) }},
		{"one command", AppendCommand(nil, true, 3, SupportedCommand{Usage: []byte{0, 0xFF, 1}}), "00 83 0003 00ff01 000a 0000 00000000 00000000", false, []byte{0, 0xFF, 1},
			func(b []byte) (any, error) { _, u, err := ParseCommand(b); return u, err }},
		{"MODE SENSE(6)", mode.Append6(nil), "", false, mode, func(b []byte) (any, error) { return ParseMode6(b) }},
		{"MODE SENSE(10)", mode64.Append10(nil, true), "", false, mode64, func(b []byte) (any, error) { return ParseMode10(b) }},
		{"MODE SENSE(10), short descriptor", mode.Append10(nil, false), "", false, mode, func(b []byte) (any, error) { return ParseMode10(b) }},
		{"caching page", CachingPage{true, false}.Append(nil), "08 12 04 00000000000000000000000000000000 00", false, CachingPage{true, false}, func(b []byte) (any, error) { return ParseCachingPage(b) }},
		{"control page", ControlPage{Reorder: true, TaskAborted: true}.Append(nil), "0a 0a 00 10 00 40 000000000000", false, ControlPage{Reorder: true, TaskAborted: true},
			func(b []byte) (any, error) { return ParseControlPage(b) }},
		{"iSCSI transport ID", iscsi.Append(nil), "", true, iscsi, func(b []byte) (any, error) { v, _, err := ParseTransportID(b); return v, err }},
	} {
		if tt.golden != "" {
			if want := unhex(t, tt.golden); !reflect.DeepEqual(tt.bytes, want) {
				t.Errorf("%s: % x, want % x", tt.name, tt.bytes, want)
			}
		}
		if got, err := tt.parse(tt.bytes); err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v %v, want %+v", tt.name, got, err, tt.want)
		}
		for n := range tt.bytes {
			if _, err := tt.parse(tt.bytes[:n:n]); err == nil && tt.strict || err != nil && !errors.Is(err, ErrMalformed) {
				t.Errorf("%s cut to %d bytes: %v", tt.name, n, err)
			}
		}
	}
	if k, err := ParsePRKeys(keys.Append(nil)[:16]); err != nil || !k.Truncated || len(k.Keys) != 1 {
		t.Errorf("cut keys: %+v %v", k, err)
	}
	if f, err := ParsePRFullStatus(full.Append(nil)[:60]); err != nil || !f.Truncated || len(f.Registrations) != 1 {
		t.Errorf("cut full status: %+v %v", f, err)
	}
	if p := mode.Page(ModeInfoException); p != nil {
		t.Errorf("page that is not there: % x", p)
	}
}

func FuzzParse(f *testing.F) {
	for _, g := range goldenCDBs {
		f.Add(g.cdb[:])
	}
	srp := SRPTransportID([16]byte{1})
	f.Add((&PRFullStatus{Registrations: []PRRegistration{{Key: 1, TransportID: srp.Append(nil)}}}).Append(nil))
	f.Add((&PROutList{TransportIDs: []TransportID{srp, {Protocol: ProtocolISCSI, Name: "iqn.x"}}}).Append(nil))
	f.Add((&PRMoveList{TransportID: srp}).Append(nil))
	f.Add(NewSense(IllegalRequest, CodeInvalidFieldInCDB).WithCDBBit(1, 1).WithInfo(5).AppendDescriptor(nil))
	f.Add(AppendDeviceIdentification(nil, Designator{1, 2, 3, []byte{4}}))
	f.Add((&ModeData{HasBlocks: true, Pages: CachingPage{}.Append(nil)}).Append10(nil, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseAny(b)
		_ = CommandName(b)
		if s, err := ParseSense(b); err == nil {
			again, err := ParseSense(s.AppendDescriptor(nil))
			if err != nil || again != s {
				t.Fatalf("%+v becomes %+v, %v", s, again, err)
			}
		}
		if l, err := ParsePROutList(b); err == nil {
			if again, err := ParsePROutList(l.Append(nil)); err != nil || !reflect.DeepEqual(l, again) {
				t.Fatalf("%+v becomes %+v, %v", l, again, err)
			}
		}
		_, _ = ParsePRMoveList(b)
		_, _ = ParsePRKeys(b)
		_, _ = ParsePRReservation(b)
		_, _ = ParsePRCapabilities(b)
		if s, err := ParsePRFullStatus(b); err == nil {
			for _, r := range s.Registrations {
				_, _, _ = ParseTransportID(r.TransportID)
			}
		}
		_, _ = ParseInquiry(b)
		_, _ = ParseSupportedPages(b)
		_, _ = ParseSerialNumber(b)
		_, _ = ParseDeviceIdentification(b)
		_, _ = ParseBlockLimits(b)
		_, _ = ParseBlockCharacteristics(b)
		_, _ = ParseLogicalBlockProvisioning(b)
		_, _ = ParseCapacity10(b)
		_, _ = ParseCapacity16(b)
		_, _ = ParseLBAStatus(b)
		_, _ = ParseUnmapList(b)
		_, _ = ParseLUNs(b)
		_, _ = ParseCommands(b)
		_, _, _ = ParseCommand(b)
		for _, parse := range []func([]byte) (ModeData, error){ParseMode6, ParseMode10} {
			if m, err := parse(b); err == nil {
				_, _ = ParseCachingPage(m.Page(ModeCaching))
				_, _ = ParseControlPage(m.Page(ModeControl))
			}
		}
	})
}
