package scsi

import "fmt"

// Transfer is what the CDBs with a starting block and a number of blocks have in common: READ, WRITE, VERIFY, SYNCHRONIZE CACHE, WRITE
// SAME and COMPARE AND WRITE of every length. Fields that a command lacks are zero.
type Transfer struct {
	Op      OpCode
	LBA     uint64
	Blocks  uint32 // READ(6) and WRITE(6): 0 has become 256
	Protect uint8  // RDPROTECT, WRPROTECT, VRPROTECT
	DPO     bool
	FUA     bool
	Immed   bool      // SYNCHRONIZE CACHE
	Check   ByteCheck // VERIFY
	Unmap   bool      // WRITE SAME
	Anchor  bool      // WRITE SAME
	NoData  bool      // WRITE SAME(16): NDOB
	// Reserved says that a bit is set which this command reserves or has retired (the two obsolete bits of WRITE SAME).
	Reserved bool
}

func shortCDB(cdb []byte, want int) error {
	return fmt.Errorf("%w: CDB of %d bytes where %s has %d", ErrMalformed, len(cdb), CommandName(cdb), want)
}

// checkLen verifies that cdb is as long as its operation code says.
func checkLen(cdb []byte, ops ...OpCode) error {
	if len(cdb) == 0 {
		return fmt.Errorf("%w: empty CDB", ErrMalformed)
	}
	op := OpCode(cdb[0])
	for _, o := range ops {
		if o == op {
			if n := op.CDBLen(); len(cdb) < n {
				return shortCDB(cdb, n)
			}
			return nil
		}
	}
	return fmt.Errorf("%w: unexpected command %s", ErrMalformed, op)
}

// ParseTransfer decodes a CDB that has a starting block and a number of blocks. It does not allocate when it succeeds.
func ParseTransfer(cdb []byte) (t Transfer, err error) {
	if len(cdb) == 0 {
		return t, fmt.Errorf("%w: empty CDB", ErrMalformed)
	}
	t.Op = OpCode(cdb[0])
	if n := t.Op.CDBLen(); n == 0 || len(cdb) < n {
		return t, shortCDB(cdb, n)
	}
	switch t.Op {
	case OpRead6, OpWrite6:
		t.LBA = uint64(be.Uint32(cdb) & 0x1FFFFF)
		if t.Blocks = uint32(cdb[4]); t.Blocks == 0 {
			t.Blocks = 256
		}
		return t, nil
	case OpRead10, OpWrite10, OpVerify10, OpSynchronizeCache10, OpWriteSame10:
		t.LBA, t.Blocks = uint64(be.Uint32(cdb[2:])), uint32(be.Uint16(cdb[7:]))
	case OpRead12, OpWrite12, OpVerify12:
		t.LBA, t.Blocks = uint64(be.Uint32(cdb[2:])), be.Uint32(cdb[6:])
	case OpRead16, OpWrite16, OpVerify16, OpSynchronizeCache16, OpWriteSame16:
		t.LBA, t.Blocks = be.Uint64(cdb[2:]), be.Uint32(cdb[10:])
	case OpCompareAndWrite:
		t.LBA, t.Blocks = be.Uint64(cdb[2:]), uint32(cdb[13])
	default:
		return t, fmt.Errorf("%w: %s has no range of blocks", ErrMalformed, t.Op)
	}
	b := cdb[1]
	switch t.Op {
	case OpSynchronizeCache10, OpSynchronizeCache16:
		t.Immed = b&2 != 0
		return t, nil
	case OpVerify10, OpVerify12, OpVerify16:
		t.Check = ByteCheck(b >> 1 & 3)
	case OpWriteSame10:
		t.Anchor, t.Unmap, t.Reserved = b&0x10 != 0, b&8 != 0, b&7 != 0
		t.Protect = b >> 5
		return t, nil
	case OpWriteSame16:
		t.Anchor, t.Unmap, t.NoData, t.Reserved = b&0x10 != 0, b&8 != 0, b&1 != 0, b&6 != 0
		t.Protect = b >> 5
		return t, nil
	default:
		t.FUA = b&bitFUA != 0
	}
	t.DPO = b&bitDPO != 0
	t.Protect = b >> 5
	return t, nil
}

// InquiryCDB is a decoded INQUIRY.
type InquiryCDB struct {
	EVPD  bool
	Page  VPDPage
	Alloc uint16
}

// ParseInquiryCDB decodes INQUIRY.
func ParseInquiryCDB(cdb []byte) (InquiryCDB, error) {
	if err := checkLen(cdb, OpInquiry); err != nil {
		return InquiryCDB{}, err
	}
	return InquiryCDB{EVPD: cdb[1]&1 != 0, Page: VPDPage(cdb[2]), Alloc: be.Uint16(cdb[3:])}, nil
}

// ModeSenseCDB is a decoded MODE SENSE of either length.
type ModeSenseCDB struct {
	Long              bool // MODE SENSE(10)
	LongLBA           bool
	NoBlockDescriptor bool
	Control           uint8 // 0 current, 1 changeable, 2 default, 3 saved
	Page, Subpage     uint8
	Alloc             uint16
}

// ParseModeSenseCDB decodes MODE SENSE(6) and MODE SENSE(10).
func ParseModeSenseCDB(cdb []byte) (ModeSenseCDB, error) {
	if err := checkLen(cdb, OpModeSense6, OpModeSense10); err != nil {
		return ModeSenseCDB{}, err
	}
	m := ModeSenseCDB{NoBlockDescriptor: cdb[1]&8 != 0, Control: cdb[2] >> 6, Page: cdb[2] & 0x3F, Subpage: cdb[3]}
	if OpCode(cdb[0]) == OpModeSense6 {
		m.Alloc = uint16(cdb[4])
		return m, nil
	}
	m.Long, m.LongLBA, m.Alloc = true, cdb[1]&0x10 != 0, be.Uint16(cdb[7:])
	return m, nil
}

// RequestSenseCDB is a decoded REQUEST SENSE.
type RequestSenseCDB struct {
	Descriptor bool
	Alloc      uint8
}

// ParseRequestSenseCDB decodes REQUEST SENSE.
func ParseRequestSenseCDB(cdb []byte) (RequestSenseCDB, error) {
	if err := checkLen(cdb, OpRequestSense); err != nil {
		return RequestSenseCDB{}, err
	}
	return RequestSenseCDB{cdb[1]&1 != 0, cdb[4]}, nil
}

// ServiceActionIn16CDB is a decoded READ CAPACITY(16) or GET LBA STATUS.
type ServiceActionIn16CDB struct {
	Action uint8
	LBA    uint64
	Alloc  uint32
	PMI    bool // READ CAPACITY(16), obsolete
}

// ParseServiceActionIn16CDB decodes a CDB with the operation code 0x9E.
func ParseServiceActionIn16CDB(cdb []byte) (ServiceActionIn16CDB, error) {
	if err := checkLen(cdb, OpServiceActionIn16); err != nil {
		return ServiceActionIn16CDB{}, err
	}
	return ServiceActionIn16CDB{cdb[1] & serviceActionBitMask, be.Uint64(cdb[2:]), be.Uint32(cdb[10:]), cdb[14]&1 != 0}, nil
}

// ReadCapacity10CDB is a decoded READ CAPACITY(10); both fields are obsolete and must be zero.
type ReadCapacity10CDB struct {
	LBA uint32
	PMI bool
}

// ParseReadCapacity10CDB decodes READ CAPACITY(10).
func ParseReadCapacity10CDB(cdb []byte) (ReadCapacity10CDB, error) {
	if err := checkLen(cdb, OpReadCapacity10); err != nil {
		return ReadCapacity10CDB{}, err
	}
	return ReadCapacity10CDB{be.Uint32(cdb[2:]), cdb[8]&1 != 0}, nil
}

// UnmapCDB is a decoded UNMAP.
type UnmapCDB struct {
	Anchor bool
	Length uint16 // of the parameter list
}

// ParseUnmapCDB decodes UNMAP.
func ParseUnmapCDB(cdb []byte) (UnmapCDB, error) {
	if err := checkLen(cdb, OpUnmap); err != nil {
		return UnmapCDB{}, err
	}
	return UnmapCDB{cdb[1]&1 != 0, be.Uint16(cdb[7:])}, nil
}

// ReportLUNsCDB is a decoded REPORT LUNS.
type ReportLUNsCDB struct {
	Select uint8
	Alloc  uint32
}

// ParseReportLUNsCDB decodes REPORT LUNS.
func ParseReportLUNsCDB(cdb []byte) (ReportLUNsCDB, error) {
	if err := checkLen(cdb, OpReportLUNs); err != nil {
		return ReportLUNsCDB{}, err
	}
	return ReportLUNsCDB{cdb[2], be.Uint32(cdb[6:])}, nil
}

// ReportOpCodesCDB is a decoded REPORT SUPPORTED OPERATION CODES.
type ReportOpCodesCDB struct {
	Timeouts bool
	Options  uint8
	Op       OpCode
	Action   uint16
	Alloc    uint32
}

// ParseReportOpCodesCDB decodes REPORT SUPPORTED OPERATION CODES (MAINTENANCE IN with that service action).
func ParseReportOpCodesCDB(cdb []byte) (ReportOpCodesCDB, error) {
	if err := checkLen(cdb, OpMaintenanceIn); err != nil {
		return ReportOpCodesCDB{}, err
	}
	if cdb[1]&serviceActionBitMask != SAReportOpCodes {
		return ReportOpCodesCDB{}, fmt.Errorf("%w: unexpected command %s", ErrMalformed, CommandName(cdb))
	}
	return ReportOpCodesCDB{cdb[2]&0x80 != 0, cdb[2] & 7, OpCode(cdb[3]), be.Uint16(cdb[4:]), be.Uint32(cdb[6:])}, nil
}

// StartStopCDB is a decoded START STOP UNIT.
type StartStopCDB struct {
	Immed, Start, LoadEject, NoFlush bool
	PowerCondition                   uint8
}

// ParseStartStopCDB decodes START STOP UNIT.
func ParseStartStopCDB(cdb []byte) (StartStopCDB, error) {
	if err := checkLen(cdb, OpStartStopUnit); err != nil {
		return StartStopCDB{}, err
	}
	return StartStopCDB{cdb[1]&1 != 0, cdb[4]&1 != 0, cdb[4]&2 != 0, cdb[4]&4 != 0, cdb[4] >> 4}, nil
}

// ParsePreventAllowCDB decodes PREVENT ALLOW MEDIUM REMOVAL and returns its PREVENT field.
func ParsePreventAllowCDB(cdb []byte) (prevent uint8, err error) {
	if err := checkLen(cdb, OpPreventAllow); err != nil {
		return 0, err
	}
	return cdb[4] & 3, nil
}

// PRInCDB is a decoded PERSISTENT RESERVE IN.
type PRInCDB struct {
	Action PRInAction
	Alloc  uint16
}

// ParsePRInCDB decodes PERSISTENT RESERVE IN.
func ParsePRInCDB(cdb []byte) (PRInCDB, error) {
	if err := checkLen(cdb, OpPersistentReserveIn); err != nil {
		return PRInCDB{}, err
	}
	return PRInCDB{PRInAction(cdb[1] & serviceActionBitMask), be.Uint16(cdb[7:])}, nil
}

// PROutCDB is a decoded PERSISTENT RESERVE OUT.
type PROutCDB struct {
	Action PROutAction
	Scope  uint8
	Type   PRType
	Length uint32 // of the parameter list
}

// ParsePROutCDB decodes PERSISTENT RESERVE OUT.
func ParsePROutCDB(cdb []byte) (PROutCDB, error) {
	if err := checkLen(cdb, OpPersistentReserveOut); err != nil {
		return PROutCDB{}, err
	}
	return PROutCDB{PROutAction(cdb[1] & serviceActionBitMask), cdb[2] >> 4, PRType(cdb[2] & 0x0F), be.Uint32(cdb[5:])}, nil
}
