package scsi

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrMalformed is wrapped by every error of a Parse function.
var ErrMalformed = errors.New("malformed SCSI data")

// OpCode is the first byte of a CDB.
type OpCode uint8

// Operation codes. SPC-4 annex D, SBC-3 5.1
const (
	OpTestUnitReady        OpCode = 0x00
	OpRequestSense         OpCode = 0x03
	OpRead6                OpCode = 0x08
	OpWrite6               OpCode = 0x0A
	OpInquiry              OpCode = 0x12
	OpModeSense6           OpCode = 0x1A
	OpStartStopUnit        OpCode = 0x1B
	OpPreventAllow         OpCode = 0x1E
	OpReadCapacity10       OpCode = 0x25
	OpRead10               OpCode = 0x28
	OpWrite10              OpCode = 0x2A
	OpVerify10             OpCode = 0x2F
	OpSynchronizeCache10   OpCode = 0x35
	OpWriteSame10          OpCode = 0x41
	OpUnmap                OpCode = 0x42
	OpModeSense10          OpCode = 0x5A
	OpPersistentReserveIn  OpCode = 0x5E
	OpPersistentReserveOut OpCode = 0x5F
	OpRead16               OpCode = 0x88
	OpCompareAndWrite      OpCode = 0x89
	OpWrite16              OpCode = 0x8A
	OpVerify16             OpCode = 0x8F
	OpSynchronizeCache16   OpCode = 0x91
	OpWriteSame16          OpCode = 0x93
	OpServiceActionIn16    OpCode = 0x9E
	OpReportLUNs           OpCode = 0xA0
	OpMaintenanceIn        OpCode = 0xA3
	OpRead12               OpCode = 0xA8
	OpWrite12              OpCode = 0xAA
	OpVerify12             OpCode = 0xAF
)

// Service actions of SERVICE ACTION IN(16) and MAINTENANCE IN.
const (
	SAReadCapacity16     uint8 = 0x10
	SAGetLBAStatus       uint8 = 0x12
	SAReportOpCodes      uint8 = 0x0C
	serviceActionBitMask       = 0x1F
)

var opNames = map[OpCode]string{
	OpTestUnitReady: "TEST UNIT READY", OpRequestSense: "REQUEST SENSE", OpRead6: "READ(6)", OpWrite6: "WRITE(6)",
	OpInquiry: "INQUIRY", OpModeSense6: "MODE SENSE(6)", OpStartStopUnit: "START STOP UNIT",
	OpPreventAllow: "PREVENT ALLOW MEDIUM REMOVAL", OpReadCapacity10: "READ CAPACITY(10)", OpRead10: "READ(10)",
	OpWrite10: "WRITE(10)", OpVerify10: "VERIFY(10)", OpSynchronizeCache10: "SYNCHRONIZE CACHE(10)",
	OpWriteSame10: "WRITE SAME(10)", OpUnmap: "UNMAP", OpModeSense10: "MODE SENSE(10)",
	OpPersistentReserveIn: "PERSISTENT RESERVE IN", OpPersistentReserveOut: "PERSISTENT RESERVE OUT", OpRead16: "READ(16)",
	OpCompareAndWrite: "COMPARE AND WRITE", OpWrite16: "WRITE(16)", OpVerify16: "VERIFY(16)",
	OpSynchronizeCache16: "SYNCHRONIZE CACHE(16)", OpWriteSame16: "WRITE SAME(16)", OpServiceActionIn16: "SERVICE ACTION IN(16)",
	OpReportLUNs: "REPORT LUNS", OpMaintenanceIn: "MAINTENANCE IN", OpRead12: "READ(12)", OpWrite12: "WRITE(12)",
	OpVerify12: "VERIFY(12)",
}

// String returns the standard's name of the command, or the number.
func (op OpCode) String() string {
	if n, ok := opNames[op]; ok {
		return n
	}
	return fmt.Sprintf("SCSI command %#02x", uint8(op))
}

// CDBLen returns how many bytes a CDB with this operation code has: 6, 10, 12 or 16; 0 for the groups where the code does not
// tell (variable length and vendor specific). SPC-4 4.2.5.1
func (op OpCode) CDBLen() int {
	switch op >> 5 {
	case 0:
		return 6
	case 1, 2:
		return 10
	case 4:
		return 16
	case 5:
		return 12
	}
	return 0
}

// CDB is a command descriptor block of up to 16 bytes, zero padded.
type CDB [16]byte

// Op returns the operation code.
func (c *CDB) Op() OpCode { return OpCode(c[0]) }

// Len returns the length in bytes that the operation code says; 16 where it says nothing.
func (c *CDB) Len() int {
	if n := c.Op().CDBLen(); n != 0 {
		return n
	}
	return len(c)
}

// Bytes returns the CDB without padding. It aliases c.
func (c *CDB) Bytes() []byte { return c[:c.Len()] }

// String names the command, for logs.
func (c *CDB) String() string { return CommandName(c[:]) }

// CommandName returns the name of the command in a CDB, with the service action where there is one.
func CommandName(cdb []byte) string {
	if len(cdb) == 0 {
		return "empty CDB"
	}
	op := OpCode(cdb[0])
	if len(cdb) < 2 {
		return op.String()
	}
	sa := cdb[1] & serviceActionBitMask
	switch op {
	case OpServiceActionIn16:
		switch sa {
		case SAReadCapacity16:
			return "READ CAPACITY(16)"
		case SAGetLBAStatus:
			return "GET LBA STATUS"
		}
		return fmt.Sprintf("%s/%#02x", op, sa)
	case OpMaintenanceIn:
		if sa == SAReportOpCodes {
			return "REPORT SUPPORTED OPERATION CODES"
		}
		return fmt.Sprintf("%s/%#02x", op, sa)
	case OpPersistentReserveIn:
		return op.String() + " " + PRInAction(sa).String()
	case OpPersistentReserveOut:
		return op.String() + " " + PROutAction(sa).String()
	}
	return op.String()
}

var be = binary.BigEndian

const (
	bitDPO = 0x10
	bitFUA = 0x08
)

func flag(b bool, bit byte) byte {
	if b {
		return bit
	}
	return 0
}

func cdb6(op OpCode, lba uint32, n uint8) (c CDB) {
	c[0] = byte(op)
	c[1], c[2], c[3], c[4] = byte(lba>>16)&0x1F, byte(lba>>8), byte(lba), n
	return c
}

func cdb10(op OpCode, b1 byte, lba uint32, n uint16) (c CDB) {
	c[0], c[1] = byte(op), b1
	be.PutUint32(c[2:], lba)
	be.PutUint16(c[7:], n)
	return c
}

func cdb12(op OpCode, b1 byte, lba, n uint32) (c CDB) {
	c[0], c[1] = byte(op), b1
	be.PutUint32(c[2:], lba)
	be.PutUint32(c[6:], n)
	return c
}

func cdb16(op OpCode, b1 byte, lba uint64, n uint32) (c CDB) {
	c[0], c[1] = byte(op), b1
	be.PutUint64(c[2:], lba)
	be.PutUint32(c[10:], n)
	return c
}

// TestUnitReady makes TEST UNIT READY. SPC-4 6.47
func TestUnitReady() CDB { return CDB{} }

// RequestSense makes REQUEST SENSE; descriptor asks for that format. SPC-4 6.39
func RequestSense(descriptor bool, alloc uint8) CDB {
	return CDB{byte(OpRequestSense), flag(descriptor, 1), 0, 0, alloc}
}

// Inquiry makes INQUIRY for the standard data. SPC-4 6.6
func Inquiry(alloc uint16) CDB {
	return CDB{byte(OpInquiry), 0, 0, byte(alloc >> 8), byte(alloc)}
}

// InquiryVPD makes INQUIRY for a page of vital product data.
func InquiryVPD(page VPDPage, alloc uint16) CDB {
	return CDB{byte(OpInquiry), 1, byte(page), byte(alloc >> 8), byte(alloc)}
}

// ModeSense6 makes MODE SENSE(6) for the current values of a page (0x3F: all) and subpage. SPC-4 6.11
func ModeSense6(noBlockDescriptor bool, page, subpage, alloc uint8) CDB {
	return CDB{byte(OpModeSense6), flag(noBlockDescriptor, 8), page & 0x3F, subpage, alloc}
}

// ModeSense10 makes MODE SENSE(10). longLBA allows block descriptors of 16 bytes. SPC-4 6.12
func ModeSense10(longLBA, noBlockDescriptor bool, page, subpage uint8, alloc uint16) CDB {
	return CDB{byte(OpModeSense10), flag(longLBA, 0x10) | flag(noBlockDescriptor, 8), page & 0x3F, subpage, 0, 0, 0, byte(alloc >> 8), byte(alloc)}
}

// ReadCapacity10 makes READ CAPACITY(10). SBC-3 5.15
func ReadCapacity10() CDB { return CDB{byte(OpReadCapacity10)} }

// ReadCapacity16 makes READ CAPACITY(16). SBC-3 5.16
func ReadCapacity16(alloc uint32) CDB {
	return cdb16(OpServiceActionIn16, SAReadCapacity16, 0, alloc)
}

// GetLBAStatus makes GET LBA STATUS from a starting block. SBC-3 5.5
func GetLBAStatus(lba uint64, alloc uint32) CDB {
	return cdb16(OpServiceActionIn16, SAGetLBAStatus, lba, alloc)
}

// Read6 makes READ(6): lba below 2^21; blocks 0 means 256. SBC-3 5.11
func Read6(lba uint32, blocks uint8) CDB { return cdb6(OpRead6, lba, blocks) }

// Read10 makes READ(10). SBC-3 5.12
func Read10(lba uint32, blocks uint16, fua bool) CDB {
	return cdb10(OpRead10, flag(fua, bitFUA), lba, blocks)
}

// Read12 makes READ(12). SBC-3 5.13
func Read12(lba, blocks uint32, fua bool) CDB { return cdb12(OpRead12, flag(fua, bitFUA), lba, blocks) }

// Read16 makes READ(16). SBC-3 5.14
func Read16(lba uint64, blocks uint32, fua bool) CDB {
	return cdb16(OpRead16, flag(fua, bitFUA), lba, blocks)
}

// Write6 makes WRITE(6): lba below 2^21; blocks 0 means 256. SBC-3 5.32
func Write6(lba uint32, blocks uint8) CDB { return cdb6(OpWrite6, lba, blocks) }

// Write10 makes WRITE(10). SBC-3 5.33
func Write10(lba uint32, blocks uint16, fua bool) CDB {
	return cdb10(OpWrite10, flag(fua, bitFUA), lba, blocks)
}

// Write12 makes WRITE(12). SBC-3 5.34
func Write12(lba, blocks uint32, fua bool) CDB {
	return cdb12(OpWrite12, flag(fua, bitFUA), lba, blocks)
}

// Write16 makes WRITE(16). SBC-3 5.35
func Write16(lba uint64, blocks uint32, fua bool) CDB {
	return cdb16(OpWrite16, flag(fua, bitFUA), lba, blocks)
}

// ByteCheck is the BYTCHK field of VERIFY: what is compared with the medium. SBC-3 5.28
type ByteCheck uint8

// The values of BYTCHK; 2 is reserved.
const (
	CheckMedium ByteCheck = 0 // nothing is sent
	CheckData   ByteCheck = 1 // all blocks are sent
	CheckSame   ByteCheck = 3 // one block is sent, and every block compared with it
)

// Verify10 makes VERIFY(10). SBC-3 5.28
func Verify10(lba uint32, blocks uint16, check ByteCheck) CDB {
	return cdb10(OpVerify10, byte(check)<<1, lba, blocks)
}

// Verify12 makes VERIFY(12). SBC-3 5.29
func Verify12(lba, blocks uint32, check ByteCheck) CDB {
	return cdb12(OpVerify12, byte(check)<<1, lba, blocks)
}

// Verify16 makes VERIFY(16). SBC-3 5.30
func Verify16(lba uint64, blocks uint32, check ByteCheck) CDB {
	return cdb16(OpVerify16, byte(check)<<1, lba, blocks)
}

// SynchronizeCache10 makes SYNCHRONIZE CACHE(10); blocks 0 means to the end. SBC-3 5.22
func SynchronizeCache10(lba uint32, blocks uint16, immed bool) CDB {
	return cdb10(OpSynchronizeCache10, flag(immed, 2), lba, blocks)
}

// SynchronizeCache16 makes SYNCHRONIZE CACHE(16); blocks 0 means to the end. SBC-3 5.23
func SynchronizeCache16(lba uint64, blocks uint32, immed bool) CDB {
	return cdb16(OpSynchronizeCache16, flag(immed, 2), lba, blocks)
}

// Unmap makes UNMAP for a parameter list of n bytes. SBC-3 5.25
func Unmap(n uint16) CDB { return cdb10(OpUnmap, 0, 0, n) }

// WriteSame10 makes WRITE SAME(10). SBC-3 5.40
func WriteSame10(lba uint32, blocks uint16, unmap bool) CDB {
	return cdb10(OpWriteSame10, flag(unmap, 8), lba, blocks)
}

// WriteSame16 makes WRITE SAME(16). noData (NDOB) sends no block: zeros are written. SBC-3 5.41
func WriteSame16(lba uint64, blocks uint32, unmap, noData bool) CDB {
	return cdb16(OpWriteSame16, flag(unmap, 8)|flag(noData, 1), lba, blocks)
}

// CompareAndWrite makes COMPARE AND WRITE; the data are blocks to compare, then as many to write. SBC-3 5.2
func CompareAndWrite(lba uint64, blocks uint8, fua bool) CDB {
	return cdb16(OpCompareAndWrite, flag(fua, bitFUA), lba, uint32(blocks))
}

// ReportLUNs makes REPORT LUNS. SPC-4 6.33
func ReportLUNs(selectReport uint8, alloc uint32) CDB {
	c := CDB{byte(OpReportLUNs), 0, selectReport}
	be.PutUint32(c[6:], alloc)
	return c
}

// ReportOpCodes makes REPORT SUPPORTED OPERATION CODES. options 0 asks for all commands, 1 for one by operation code, 2 for one by
// operation code and service action, 3 for one by either. SPC-4 6.35
func ReportOpCodes(options uint8, timeouts bool, op OpCode, action uint16, alloc uint32) CDB {
	c := CDB{byte(OpMaintenanceIn), SAReportOpCodes, flag(timeouts, 0x80) | options&7, byte(op), byte(action >> 8), byte(action)}
	be.PutUint32(c[6:], alloc)
	return c
}

// StartStopUnit makes START STOP UNIT. SBC-3 5.20
func StartStopUnit(immed, start, loadEject bool) CDB {
	return CDB{byte(OpStartStopUnit), flag(immed, 1), 0, 0, flag(start, 1) | flag(loadEject, 2)}
}

// PreventAllow makes PREVENT ALLOW MEDIUM REMOVAL. SPC-4 6.17
func PreventAllow(prevent bool) CDB {
	return CDB{byte(OpPreventAllow), 0, 0, 0, flag(prevent, 1)}
}

// PersistentReserveIn makes PERSISTENT RESERVE IN. SPC-4 6.15
func PersistentReserveIn(action PRInAction, alloc uint16) CDB {
	return cdb10(OpPersistentReserveIn, byte(action)&serviceActionBitMask, 0, alloc)
}

// PersistentReserveOut makes PERSISTENT RESERVE OUT for a parameter list of n bytes. SPC-4 6.16
func PersistentReserveOut(action PROutAction, typ PRType, n uint32) CDB {
	c := CDB{byte(OpPersistentReserveOut), byte(action) & serviceActionBitMask, byte(typ) & 0x0F}
	be.PutUint32(c[5:], n)
	return c
}
