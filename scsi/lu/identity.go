package lu

import (
	"context"
	"encoding/hex"
	"math/bits"

	"vdbridge/scsi"
)

// Version descriptors. SPC-4 annex D.8
const (
	standardSAM5 = 0x00A0
	standardSPC4 = 0x0460
	standardSBC3 = 0x04C0
)

func (n *Nexus) inquiry(cdb, in []byte) Result {
	c, err := scsi.ParseInquiryCDB(cdb)
	if err != nil {
		return malformedCDB()
	}
	if r, ok := checkControl(cdb); !ok {
		return r
	}
	o := &n.lu.opt
	if !c.EVPD {
		if c.Page != 0 {
			return badCDBField(2)
		}
		return give(in, (&scsi.InquiryData{Version: 6, CommandQueue: true, Vendor: o.Vendor, Product: o.Product, Revision: o.Revision,
			Standards: []uint16{standardSAM5, standardSPC4, standardSBC3}}).Append(nil), uint64(c.Alloc))
	}
	var b []byte
	switch c.Page {
	case scsi.VPDSupportedPages:
		b = scsi.AppendSupportedPages(nil, scsi.VPDSupportedPages, scsi.VPDUnitSerialNumber, scsi.VPDDeviceIdentification,
			scsi.VPDBlockLimits, scsi.VPDBlockCharacteristics, scsi.VPDLogicalBlockProvisioning)
	case scsi.VPDUnitSerialNumber:
		b = scsi.AppendSerialNumber(nil, n.lu.serial())
	case scsi.VPDDeviceIdentification:
		b = n.lu.designators()
	case scsi.VPDBlockLimits:
		b = n.lu.blockLimits()
	case scsi.VPDBlockCharacteristics:
		b = (&scsi.BlockCharacteristics{RotationRate: 1}).Append(nil)
	case scsi.VPDLogicalBlockProvisioning:
		p := scsi.LogicalBlockProvisioning{Unmap: true, WriteSame16: true, WriteSame10: true, ReadZeros: true, Type: scsi.ProvisioningResource}
		if o.Thin {
			p.Type = scsi.ProvisioningThin
		}
		b = p.Append(nil)
	default:
		return badCDBField(2)
	}
	return give(in, b, uint64(c.Alloc))
}

// serial is the identifier of the disk in hexadecimal digits.
func (l *LU) serial() string { return hex.EncodeToString(l.opt.ID[:]) }

// designators make VPD page 83h: a name of ours, a locally assigned NAA from the identifier's better half, and the identifier as a UUID.
func (l *LU) designators() []byte {
	id := l.opt.ID
	name := []byte(l.opt.Vendor + "        ")[:8]
	name = append(name, l.serial()...)
	naa := append([]byte(nil), id[8:]...)
	naa[0] = 0x30 | naa[0]&0x0F
	// A UUID is big-endian throughout; the identifier's first three fields are little-endian. SPC-5 7.7.6.12
	uuid := []byte{0x10, 0, id[3], id[2], id[1], id[0], id[5], id[4], id[7], id[6]}
	uuid = append(uuid, id[8:]...)
	return scsi.AppendDeviceIdentification(nil,
		scsi.Designator{CodeSet: scsi.CodeSetASCII, Type: scsi.DesignatorT10, Value: name},
		scsi.Designator{CodeSet: scsi.CodeSetBinary, Type: scsi.DesignatorNAA, Value: naa},
		scsi.Designator{CodeSet: scsi.CodeSetBinary, Type: scsi.DesignatorUUID, Value: uuid},
		scsi.Designator{CodeSet: scsi.CodeSetBinary, Association: 1, Type: scsi.DesignatorPort, Value: []byte{0, 0, 0, relativeTargetPort}})
}

func (l *LU) blockLimits() []byte {
	_, physical, optimal, _ := l.disk.BlockSizes()
	b := scsi.BlockLimits{
		WriteSameNonZero:    true,
		MaxCompareAndWrite:  maxCompareAndWrite,
		OptimalGranularity:  uint16(min(int64(physical)/l.bs, 0xFFFF)),
		MaxTransfer:         uint32(int64(l.maxTransfer()) / l.bs),
		OptimalTransfer:     uint32(int64(optimal) / l.bs),
		MaxUnmapBlocks:      0xFFFFFFFF,
		MaxUnmapDescriptors: maxUnmapDescriptors,
		UnmapGranularity:    uint32(int64(physical) / l.bs),
		UnmapAlignmentValid: true,
		MaxWriteSame:        uint64(maxWriteSameBytes / l.bs),
	}
	if g, ok := l.disk.(TrimGranularity); ok {
		if v := g.TrimGranularity() / l.bs; v > 0 {
			b.UnmapGranularity = uint32(min(v, 0x7FFFFFFF))
		}
	}
	return b.Append(nil)
}

// requestSense is REQUEST SENSE: the pending unit attention is its data, not its end. SPC-4 6.39
func (n *Nexus) requestSense(cdb, in []byte) Result {
	c, err := scsi.ParseRequestSenseCDB(cdb)
	if err != nil {
		return malformedCDB()
	}
	if r, ok := checkControl(cdb); !ok {
		return r
	}
	var s scsi.Sense
	if code, ok := n.i.takeAttention(); ok {
		s = scsi.NewSense(scsi.UnitAttention, code)
	}
	if c.Descriptor {
		return give(in, s.AppendDescriptor(nil), uint64(c.Alloc))
	}
	return give(in, s.AppendFixed(nil), uint64(c.Alloc))
}

func (n *Nexus) reportLUNs(cdb, in []byte) Result {
	c, err := scsi.ParseReportLUNsCDB(cdb)
	if err != nil {
		return malformedCDB()
	}
	if r, ok := checkControl(cdb); !ok {
		return r
	}
	switch c.Select {
	case 0x00, 0x02:
		return give(in, scsi.AppendLUNs(nil, 0), uint64(c.Alloc))
	case 0x01, 0x10, 0x11, 0x12: // well known or administrative units: there are none
		return give(in, scsi.AppendLUNs(nil), uint64(c.Alloc))
	}
	return badCDBField(2)
}

func (l *LU) geometry() scsi.Capacity {
	logical, physical, _, _ := l.disk.BlockSizes()
	return scsi.Capacity{LastLBA: l.capacity() - 1, BlockLength: uint32(logical), PhysicalExp: uint8(bits.TrailingZeros(uint(physical / logical))),
		Provisioned: true, ReadZeros: true}
}

func (n *Nexus) readCapacity10(_ context.Context, _ ticket, cdb, _, in []byte) Result {
	c, err := scsi.ParseReadCapacity10CDB(cdb)
	if err != nil {
		return malformedCDB()
	}
	if c.LBA != 0 && !c.PMI {
		return badCDBField(2)
	}
	g := n.lu.geometry()
	return give(in, g.Append10(nil), 8)
}

func (n *Nexus) readCapacity16(_ context.Context, _ ticket, cdb, _, in []byte) Result {
	c, err := scsi.ParseServiceActionIn16CDB(cdb)
	if err != nil {
		return malformedCDB()
	}
	if c.LBA != 0 && !c.PMI {
		return badCDBField(2)
	}
	g := n.lu.geometry()
	return give(in, g.Append16(nil), uint64(c.Alloc))
}

// maxLBADescriptors bounds the reply of GET LBA STATUS.
const maxLBADescriptors = 1024

func (n *Nexus) lbaStatus(ctx context.Context, _ ticket, cdb, _, in []byte) Result {
	c, err := scsi.ParseServiceActionIn16CDB(cdb)
	if err != nil {
		return malformedCDB()
	}
	size := n.lu.capacity()
	if c.LBA >= size {
		return outOfRange(c.LBA)
	}
	room := 1
	if c.Alloc >= 24 {
		room = int(min((c.Alloc-8)/16, maxLBADescriptors))
	}
	var list []scsi.LBAStatus
	lba := c.LBA
	err = n.lu.disk.Extents(ctx, int64(lba)*n.lu.bs, int64(size-lba)*n.lu.bs, func(run int64, hole, zero bool) bool {
		status := scsi.LBAMapped
		if hole && zero {
			status = scsi.LBADeallocated
		}
		for left := uint64(run / n.lu.bs); left > 0; {
			if last := len(list) - 1; last >= 0 && list[last].Status == status && list[last].Blocks < 0xFFFFFFFF {
				k := min(left, uint64(0xFFFFFFFF-list[last].Blocks))
				list[last].Blocks += uint32(k)
				left, lba = left-k, lba+k
				continue
			}
			if len(list) == room {
				return false
			}
			list = append(list, scsi.LBAStatus{LBA: lba, Status: status})
		}
		return true
	})
	if err != nil {
		return diskError(err, false, c.LBA)
	}
	return give(in, scsi.AppendLBAStatus(nil, list...), uint64(c.Alloc))
}

func (n *Nexus) reportOpCodes(_ context.Context, _ ticket, cdb, _, in []byte) Result {
	c, err := scsi.ParseReportOpCodesCDB(cdb)
	if err != nil {
		return malformedCDB()
	}
	if c.Options == 0 {
		list := make([]scsi.SupportedCommand, len(commands))
		for i := range commands {
			list[i] = commands[i].supported()
		}
		return give(in, scsi.AppendCommands(nil, c.Timeouts, list), uint64(c.Alloc))
	}
	line := commandIndex[c.Op]
	hasActions := line != 0 && commands[line-1].action >= 0
	switch {
	case c.Options > 3, c.Options == 1 && hasActions, c.Options == 2 && line != 0 && !hasActions:
		return badCDBBit(2, 2)
	}
	for i := range commands {
		if s := commands[i].supported(); s.Op == c.Op && (!s.HasAction && (c.Options != 3 || c.Action == 0) || s.HasAction && s.Action == c.Action) {
			return give(in, scsi.AppendCommand(nil, c.Timeouts, 3, s), uint64(c.Alloc))
		}
	}
	return give(in, scsi.AppendCommand(nil, false, 1, scsi.SupportedCommand{}), uint64(c.Alloc))
}

func (c *command) supported() scsi.SupportedCommand {
	s := scsi.SupportedCommand{Op: c.op, CDBLength: uint16(c.op.CDBLen()), Usage: []byte(c.usage)}
	if c.action >= 0 {
		s.HasAction, s.Action = true, uint16(c.action)
	}
	return s
}

func (n *Nexus) modeSense(_ context.Context, _ ticket, cdb, _, in []byte) Result {
	c, err := scsi.ParseModeSenseCDB(cdb)
	if err != nil {
		return malformedCDB()
	}
	if c.Control == 3 {
		return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeSavingNotSupported))
	}
	if c.Subpage != 0 && (c.Subpage != 0xFF || c.Page != scsi.ModeAllPages) {
		return badCDBField(3)
	}
	var pages []byte
	add := func(code uint8, page []byte) {
		if c.Page == code || c.Page == scsi.ModeAllPages {
			if c.Control == 1 { // nothing can be changed
				clear(page[2:])
			}
			pages = append(pages, page...)
		}
	}
	add(scsi.ModeCaching, scsi.CachingPage{WriteCache: !n.lu.disk.ReadOnly() && !n.through}.Append(nil))
	add(scsi.ModeControl, scsi.ControlPage{Reorder: true, TaskAborted: true}.Append(nil))
	add(scsi.ModeInfoException, append([]byte{scsi.ModeInfoException, 0x0A}, make([]byte, 10)...))
	if len(pages) == 0 {
		return badCDBBit(2, 5)
	}
	m := scsi.ModeData{WriteProtect: n.readOnly, DPOFUA: true, HasBlocks: !c.NoBlockDescriptor, Blocks: n.lu.capacity(),
		BlockLength: uint32(n.lu.bs), Pages: pages}
	if c.Long {
		return give(in, m.Append10(nil, c.LongLBA), uint64(c.Alloc))
	}
	return give(in, m.Append6(nil), uint64(c.Alloc))
}
