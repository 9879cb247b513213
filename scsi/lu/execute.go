package lu

import (
	"context"

	"vdbridge/scsi"
)

// group says which line of the conflict table of reservations a command is in. SPC-4 table 65, SBC-3 table 13
type group uint8

const (
	groupAlways  group = iota // allowed whoever holds a reservation
	groupRead                 // as reading the medium
	groupWrite                // as writing it
	groupSpecial              // decides itself
)

var groupNeeds = [...]rights{groupRead: mayRead, groupWrite: mayWrite}

// command is a line of the table of commands.
type command struct {
	op     scsi.OpCode
	action int // service action, or -1
	group  group
	usage  string // of the bits of the CDB. SPC-4 6.35.3
	// exec runs an admitted command; nil for those that Execute handles before.
	exec func(n *Nexus, ctx context.Context, t ticket, cdb, out, in []byte) Result
}

// commands lists what the unit supports; REPORT SUPPORTED OPERATION CODES shows it.
var commands []command

// commandIndex finds a line by operation code: 1 + index of the first line with it.
var commandIndex [256]uint8

func init() {
	commands = []command{
		{scsi.OpTestUnitReady, -1, groupAlways, "\x00\x00\x00\x00\x00\x04", (*Nexus).good},
		{scsi.OpRequestSense, -1, groupSpecial, "\x03\x01\x00\x00\xff\x04", nil},
		{scsi.OpRead6, -1, groupRead, "\x08\x1f\xff\xff\xff\x04", (*Nexus).readCommand},
		{scsi.OpWrite6, -1, groupWrite, "\x0a\x1f\xff\xff\xff\x04", (*Nexus).writeCommand},
		{scsi.OpInquiry, -1, groupSpecial, "\x12\x01\xff\xff\xff\x04", nil},
		{scsi.OpModeSense6, -1, groupRead, "\x1a\x08\xff\xff\xff\x04", (*Nexus).modeSense},
		{scsi.OpStartStopUnit, -1, groupSpecial, "\x1b\x01\x00\x0f\xf7\x04", (*Nexus).startStop},
		{scsi.OpPreventAllow, -1, groupSpecial, "\x1e\x00\x00\x00\x03\x04", (*Nexus).good},
		{scsi.OpReadCapacity10, -1, groupAlways, "\x25\x00\x00\x00\x00\x00\x00\x00\x00\x04", (*Nexus).readCapacity10},
		{scsi.OpRead10, -1, groupRead, "\x28\x1c\xff\xff\xff\xff\x1f\xff\xff\x04", (*Nexus).readCommand},
		{scsi.OpWrite10, -1, groupWrite, "\x2a\x1c\xff\xff\xff\xff\x1f\xff\xff\x04", (*Nexus).writeCommand},
		{scsi.OpVerify10, -1, groupRead, "\x2f\x16\xff\xff\xff\xff\x1f\xff\xff\x04", (*Nexus).verify},
		{scsi.OpSynchronizeCache10, -1, groupWrite, "\x35\x06\xff\xff\xff\xff\x1f\xff\xff\x04", (*Nexus).synchronize},
		{scsi.OpWriteSame10, -1, groupWrite, "\x41\x08\xff\xff\xff\xff\x1f\xff\xff\x04", (*Nexus).writeSame},
		{scsi.OpUnmap, -1, groupWrite, "\x42\x00\x00\x00\x00\x00\x1f\xff\xff\x04", (*Nexus).unmap},
		{scsi.OpModeSense10, -1, groupRead, "\x5a\x18\xff\xff\x00\x00\x00\xff\xff\x04", (*Nexus).modeSense},
		{scsi.OpPersistentReserveIn, int(scsi.PRReadKeys), groupAlways, prInUsage(scsi.PRReadKeys), nil},
		{scsi.OpPersistentReserveIn, int(scsi.PRReadReservation), groupAlways, prInUsage(scsi.PRReadReservation), nil},
		{scsi.OpPersistentReserveIn, int(scsi.PRReportCapabilities), groupAlways, prInUsage(scsi.PRReportCapabilities), nil},
		{scsi.OpPersistentReserveIn, int(scsi.PRReadFullStatus), groupAlways, prInUsage(scsi.PRReadFullStatus), nil},
		{scsi.OpPersistentReserveOut, int(scsi.PRRegister), groupSpecial, prOutUsage(scsi.PRRegister), nil},
		{scsi.OpPersistentReserveOut, int(scsi.PRReserve), groupSpecial, prOutUsage(scsi.PRReserve), nil},
		{scsi.OpPersistentReserveOut, int(scsi.PRRelease), groupSpecial, prOutUsage(scsi.PRRelease), nil},
		{scsi.OpPersistentReserveOut, int(scsi.PRClear), groupSpecial, prOutUsage(scsi.PRClear), nil},
		{scsi.OpPersistentReserveOut, int(scsi.PRPreempt), groupSpecial, prOutUsage(scsi.PRPreempt), nil},
		{scsi.OpPersistentReserveOut, int(scsi.PRPreemptAndAbort), groupSpecial, prOutUsage(scsi.PRPreemptAndAbort), nil},
		{scsi.OpPersistentReserveOut, int(scsi.PRRegisterAndIgnore), groupSpecial, prOutUsage(scsi.PRRegisterAndIgnore), nil},
		{scsi.OpPersistentReserveOut, int(scsi.PRRegisterAndMove), groupSpecial, prOutUsage(scsi.PRRegisterAndMove), nil},
		{scsi.OpRead16, -1, groupRead, "\x88\x1c\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x1f\x04", (*Nexus).readCommand},
		{scsi.OpCompareAndWrite, -1, groupWrite, "\x89\x1c\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\xff\x1f\x04", (*Nexus).compareAndWrite},
		{scsi.OpWrite16, -1, groupWrite, "\x8a\x1c\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x1f\x04", (*Nexus).writeCommand},
		{scsi.OpVerify16, -1, groupRead, "\x8f\x16\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x1f\x04", (*Nexus).verify},
		{scsi.OpSynchronizeCache16, -1, groupWrite, "\x91\x06\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x1f\x04", (*Nexus).synchronize},
		{scsi.OpWriteSame16, -1, groupWrite, "\x93\x09\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x1f\x04", (*Nexus).writeSame},
		{scsi.OpServiceActionIn16, int(scsi.SAReadCapacity16), groupAlways, "\x9e\x10\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\x00\x04", (*Nexus).readCapacity16},
		{scsi.OpServiceActionIn16, int(scsi.SAGetLBAStatus), groupRead, "\x9e\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x04", (*Nexus).lbaStatus},
		{scsi.OpReportLUNs, -1, groupSpecial, "\xa0\x00\xff\x00\x00\x00\xff\xff\xff\xff\x00\x04", nil},
		{scsi.OpMaintenanceIn, int(scsi.SAReportOpCodes), groupRead, "\xa3\x0c\x87\xff\xff\xff\xff\xff\xff\xff\x00\x04", (*Nexus).reportOpCodes},
		{scsi.OpRead12, -1, groupRead, "\xa8\x1c\xff\xff\xff\xff\xff\xff\xff\xff\x1f\x04", (*Nexus).readCommand},
		{scsi.OpWrite12, -1, groupWrite, "\xaa\x1c\xff\xff\xff\xff\xff\xff\xff\xff\x1f\x04", (*Nexus).writeCommand},
		{scsi.OpVerify12, -1, groupRead, "\xaf\x16\xff\xff\xff\xff\xff\xff\xff\xff\x1f\x04", (*Nexus).verify},
	}
	for i := len(commands) - 1; i >= 0; i-- {
		commandIndex[commands[i].op] = uint8(i + 1)
	}
}

func prInUsage(a scsi.PRInAction) string {
	return "\x5e" + string([]byte{byte(a)}) + "\x00\x00\x00\x00\x00\xff\xff\x04"
}

func prOutUsage(a scsi.PROutAction) string {
	typ := "\x00"
	switch a {
	case scsi.PRReserve, scsi.PRRelease, scsi.PRPreempt, scsi.PRPreemptAndAbort:
		typ = "\xff"
	}
	return "\x5f" + string([]byte{byte(a)}) + typ + "\x00\x00\xff\xff\xff\xff\x04"
}

// find returns the line of a command; nil and the byte of the CDB to blame if there is none.
func find(cdb []byte) (c *command, blame int) {
	i := int(commandIndex[cdb[0]]) - 1
	if i < 0 {
		return nil, 0
	}
	if commands[i].action < 0 {
		return &commands[i], 0
	}
	if len(cdb) < 2 {
		return nil, 1
	}
	for ; i < len(commands) && commands[i].op == scsi.OpCode(cdb[0]); i++ {
		if commands[i].action == int(cdb[1]&0x1F) {
			return &commands[i], 0
		}
	}
	return nil, 1
}

const controlNACA = 0x04

// Execute runs the command in cdb, which may be longer than the command needs. out holds the data from the initiator; data for the
// initiator is written to in. Neither is touched after the return. READ and WRITE of warm size do not allocate.
func (n *Nexus) Execute(ctx context.Context, cdb, out, in []byte) Result {
	if len(cdb) == 0 {
		return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeInvalidOpCode))
	}
	c, blame := find(cdb)
	if c != nil {
		// These answer whatever unit attention waits. SAM-5 5.14
		switch c.op {
		case scsi.OpInquiry:
			return n.inquiry(cdb, in)
		case scsi.OpReportLUNs:
			return n.reportLUNs(cdb, in)
		case scsi.OpRequestSense:
			return n.requestSense(cdb, in)
		}
	}
	if c == nil || c.op == scsi.OpPersistentReserveIn || c.op == scsi.OpPersistentReserveOut {
		if code, ok := n.i.takeAttention(); ok {
			return fail(scsi.NewSense(scsi.UnitAttention, code))
		}
		switch {
		case c == nil && blame == 0:
			return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeInvalidOpCode).WithCDBField(0))
		case c == nil:
			return badCDBBit(blame, 4)
		}
		if r, ok := checkControl(cdb); !ok {
			return r
		}
		if c.op == scsi.OpPersistentReserveIn {
			return n.reserveIn(cdb, in)
		}
		return n.reserveOut(ctx, cdb, out)
	}
	need := rights(0)
	if c.group == groupSpecial {
		need = specialNeeds(c.op, cdb)
	} else if int(c.group) < len(groupNeeds) {
		need = groupNeeds[c.group]
	}
	t, attention, conflict := n.i.admit(need)
	if attention != 0 {
		return fail(scsi.NewSense(scsi.UnitAttention, attention))
	}
	if conflict {
		return conflictResult
	}
	r, ok := checkControl(cdb)
	if ok {
		r = c.exec(n, ctx, t, cdb, out, in)
	}
	n.i.leave(t)
	return r
}

// specialNeeds is the conflict table for commands where it depends on the CDB.
func specialNeeds(op scsi.OpCode, cdb []byte) rights {
	switch op {
	case scsi.OpStartStopUnit: // starting is harmless. SBC-3 table 13
		if c, err := scsi.ParseStartStopCDB(cdb); err == nil && c.Start && c.PowerCondition == 0 {
			return 0
		}
	case scsi.OpPreventAllow:
		if prevent, err := scsi.ParsePreventAllowCDB(cdb); err == nil && prevent == 0 {
			return 0
		}
	}
	return mayWrite
}

// checkControl refuses CDBs that are cut off and those that ask for an auto contingent allegiance. SAM-5 5.2
func checkControl(cdb []byte) (Result, bool) {
	size := scsi.OpCode(cdb[0]).CDBLen()
	if len(cdb) < size {
		return malformedCDB(), false
	}
	if cdb[size-1]&controlNACA != 0 {
		return badCDBBit(size-1, 2), false
	}
	return Result{}, true
}

// good is for commands that have nothing to do.
func (n *Nexus) good(context.Context, ticket, []byte, []byte, []byte) Result { return Result{} }
