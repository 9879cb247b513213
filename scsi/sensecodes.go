package scsi

import "fmt"

// Additional sense codes that this project sends or acts upon. SPC-4 annex D
const (
	CodeNone                       Code = 0x0000
	CodeNotReady                   Code = 0x0400
	CodeBecomingReady              Code = 0x0401
	CodeManualIntervention         Code = 0x0403
	CodeWriteError                 Code = 0x0C00
	CodeUnrecoveredRead            Code = 0x1100
	CodeParameterListLength        Code = 0x1A00
	CodeMiscompare                 Code = 0x1D00
	CodeInvalidOpCode              Code = 0x2000
	CodeLBAOutOfRange              Code = 0x2100
	CodeInvalidFieldInCDB          Code = 0x2400
	CodeInvalidFieldInParams       Code = 0x2600
	CodeInvalidRelease             Code = 0x2604
	CodeWriteProtected             Code = 0x2700
	CodeSpaceAllocation            Code = 0x2707
	CodeMediumChanged              Code = 0x2800
	CodePowerOnOrReset             Code = 0x2900
	CodePowerOn                    Code = 0x2901
	CodeNexusLoss                  Code = 0x2907
	CodeModeChanged                Code = 0x2A01
	CodeReservationsPreempted      Code = 0x2A03
	CodeReservationsReleased       Code = 0x2A04
	CodeRegistrationsPreempted     Code = 0x2A05
	CodeCapacityChanged            Code = 0x2A09
	CodeCommandSequence            Code = 0x2C00
	CodeMediumNotPresent           Code = 0x3A00
	CodeSavingNotSupported         Code = 0x3900
	CodeOperatingDefinitionChanged Code = 0x3F02
	CodeInquiryChanged             Code = 0x3F03
	CodeInternalTargetFailure      Code = 0x4400
	CodeInsufficientRegistrations  Code = 0x5504
)

var codeNames = map[Code]string{
	0x0001: "filemark detected", 0x0006: "I/O process terminated", 0x0200: "no seek complete", 0x0300: "peripheral device write fault",
	CodeNotReady: "logical unit not ready, cause not reportable", CodeBecomingReady: "logical unit is becoming ready",
	0x0402: "logical unit not ready, initializing command required", CodeManualIntervention: "logical unit not ready, manual intervention required",
	0x0404: "logical unit not ready, format in progress", 0x0407: "logical unit not ready, operation in progress",
	0x040A: "logical unit not accessible, asymmetric access state transition", 0x040B: "logical unit not accessible, target port in standby state",
	0x040C: "logical unit not accessible, target port in unavailable state", 0x0500: "logical unit does not respond to selection",
	0x0800: "logical unit communication failure", 0x0801: "logical unit communication time-out", 0x0B00: "warning",
	CodeWriteError: "write error", 0x0C02: "write error, auto reallocation failed", 0x0E00: "invalid information unit",
	0x1000: "ID CRC or ECC error", CodeUnrecoveredRead: "unrecovered read error", 0x1101: "read retries exhausted",
	CodeParameterListLength: "parameter list length error", 0x1B00: "synchronous data transfer error",
	CodeMiscompare: "miscompare during verify operation", CodeInvalidOpCode: "invalid command operation code",
	CodeLBAOutOfRange: "logical block address out of range", 0x2200: "illegal function", CodeInvalidFieldInCDB: "invalid field in CDB",
	0x2500: "logical unit not supported", CodeInvalidFieldInParams: "invalid field in parameter list", 0x2601: "parameter not supported",
	0x2602: "parameter value invalid", CodeInvalidRelease: "invalid release of persistent reservation", CodeWriteProtected: "write protected",
	0x2701: "hardware write protected", 0x2702: "logical unit software write protected", CodeSpaceAllocation: "space allocation failed, write protect",
	CodeMediumChanged: "not ready to ready change, medium may have changed", CodePowerOnOrReset: "power on, reset, or bus device reset occurred",
	CodePowerOn: "power on occurred", 0x2902: "SCSI bus reset occurred", 0x2903: "bus device reset occurred", 0x2904: "device internal reset",
	CodeNexusLoss: "I_T nexus loss occurred", 0x2A00: "parameters changed", CodeModeChanged: "mode parameters changed", 0x2A02: "log parameters changed",
	CodeReservationsPreempted: "reservations preempted", CodeReservationsReleased: "reservations released",
	CodeRegistrationsPreempted: "registrations preempted", 0x2A06: "asymmetric access state changed", CodeCapacityChanged: "capacity data has changed",
	CodeCommandSequence: "command sequence error", 0x2F00: "commands cleared by another initiator", 0x3000: "incompatible medium installed",
	0x3100: "medium format corrupted", 0x3802: "thin provisioning soft threshold reached", 0x3807: "thin provisioning soft threshold reached",
	CodeSavingNotSupported: "saving parameters not supported", CodeMediumNotPresent: "medium not present", 0x3E00: "logical unit has not self-configured yet",
	0x3F00: "target operating conditions have changed", 0x3F01: "microcode has been changed", CodeOperatingDefinitionChanged: "changed operating definition",
	CodeInquiryChanged: "INQUIRY data has changed", 0x3F0E: "reported LUNs data has changed", CodeInternalTargetFailure: "internal target failure",
	0x4700: "SCSI parity error", 0x4800: "initiator detected error message received", 0x4900: "invalid message error", 0x4B00: "data phase error",
	0x4E00: "overlapped commands attempted", 0x5300: "medium load or eject failed", 0x5500: "system resource failure", 0x5503: "insufficient resources",
	CodeInsufficientRegistrations: "insufficient registration resources", 0x5D00: "failure prediction threshold exceeded",
}

// String returns the code in words, or its numbers.
func (c Code) String() string {
	if n, ok := codeNames[c]; ok {
		return n
	}
	return fmt.Sprintf("additional sense %02X/%02X", uint8(c>>8), uint8(c))
}
