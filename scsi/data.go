package scsi

import "fmt"

// Capacity is the data of READ CAPACITY(16); READ CAPACITY(10) has the first two. SBC-3 5.15, 5.16
type Capacity struct {
	LastLBA         uint64
	BlockLength     uint32 // bytes
	PhysicalExp     uint8  // log2 of logical blocks per physical block
	Provisioned     bool   // LBPME: logical block provisioning
	ReadZeros       bool   // LBPRZ
	LowestAlignedLB uint16
}

// Append10 appends the data of READ CAPACITY(10), 8 bytes; a last block that does not fit becomes 0xFFFFFFFF.
func (c *Capacity) Append10(b []byte) []byte {
	b = be.AppendUint32(b, uint32(min(c.LastLBA, 0xFFFFFFFF)))
	return be.AppendUint32(b, c.BlockLength)
}

// Append16 appends the data of READ CAPACITY(16), 32 bytes.
func (c *Capacity) Append16(b []byte) []byte {
	b = be.AppendUint64(b, c.LastLBA)
	b = be.AppendUint32(b, c.BlockLength)
	b = append(b, 0, c.PhysicalExp&0xF, flag(c.Provisioned, 0x80)|flag(c.ReadZeros, 0x40)|byte(c.LowestAlignedLB>>8)&0x3F, byte(c.LowestAlignedLB))
	return append(b, make([]byte, 16)...)
}

// ParseCapacity10 decodes the data of READ CAPACITY(10). A LastLBA of 0xFFFFFFFF means: ask READ CAPACITY(16).
func ParseCapacity10(b []byte) (c Capacity, err error) {
	if len(b) < 8 {
		return c, fmt.Errorf("%w: %d bytes of READ CAPACITY(10) data", ErrMalformed, len(b))
	}
	return Capacity{LastLBA: uint64(be.Uint32(b)), BlockLength: be.Uint32(b[4:])}, nil
}

// ParseCapacity16 decodes the data of READ CAPACITY(16); 12 bytes are enough for the size.
func ParseCapacity16(b []byte) (c Capacity, err error) {
	if len(b) < 12 {
		return c, fmt.Errorf("%w: %d bytes of READ CAPACITY(16) data", ErrMalformed, len(b))
	}
	c = Capacity{LastLBA: be.Uint64(b), BlockLength: be.Uint32(b[8:])}
	if len(b) >= 16 {
		c.PhysicalExp, c.Provisioned, c.ReadZeros, c.LowestAlignedLB = b[13]&0xF, b[14]&0x80 != 0, b[14]&0x40 != 0, be.Uint16(b[14:])&0x3FFF
	}
	return c, nil
}

// Block status values of GET LBA STATUS. SBC-3 5.5.2
const (
	LBAMapped      uint8 = 0
	LBADeallocated uint8 = 1
	LBAAnchored    uint8 = 2
)

// LBAStatus is one descriptor of GET LBA STATUS.
type LBAStatus struct {
	LBA    uint64
	Blocks uint32
	Status uint8
}

// AppendLBAStatus appends the data of GET LBA STATUS.
func AppendLBAStatus(b []byte, list ...LBAStatus) []byte {
	b = be.AppendUint32(b, uint32(4+16*len(list)))
	b = append(b, 0, 0, 0, 0)
	for _, d := range list {
		b = be.AppendUint64(b, d.LBA)
		b = be.AppendUint32(b, d.Blocks)
		b = append(b, d.Status&0xF, 0, 0, 0)
	}
	return b
}

// ParseLBAStatus decodes the data of GET LBA STATUS, possibly cut by the allocation length.
func ParseLBAStatus(b []byte) (list []LBAStatus, err error) {
	if len(b) < 8 || be.Uint32(b) < 4 {
		return nil, fmt.Errorf("%w: %d bytes of GET LBA STATUS data", ErrMalformed, len(b))
	}
	n := min(uint64(be.Uint32(b))-4, uint64(len(b)-8))
	for p := b[8 : 8+n]; len(p) >= 16; p = p[16:] {
		list = append(list, LBAStatus{be.Uint64(p), be.Uint32(p[8:]), p[12] & 0xF})
	}
	return list, nil
}

// UnmapRange is one descriptor of UNMAP.
type UnmapRange struct {
	LBA    uint64
	Blocks uint32
}

// UnmapListSize returns the length in bytes of the parameter list of UNMAP with n ranges.
func UnmapListSize(n int) int { return 8 + 16*n }

// AppendUnmapList appends the parameter list of UNMAP. SBC-3 5.25.2
func AppendUnmapList(b []byte, ranges ...UnmapRange) []byte {
	b = be.AppendUint16(b, uint16(6+16*len(ranges)))
	b = be.AppendUint16(b, uint16(16*len(ranges)))
	b = append(b, 0, 0, 0, 0)
	for _, r := range ranges {
		b = be.AppendUint64(b, r.LBA)
		b = be.AppendUint32(b, r.Blocks)
		b = append(b, 0, 0, 0, 0)
	}
	return b
}

// ParseUnmapList decodes the parameter list of UNMAP. As the standard has it, a block descriptor length that is no multiple of 16 or
// reaches over the list leaves the incomplete descriptor out. It needs 8 bytes; fewer are an error.
func ParseUnmapList(b []byte) (ranges []UnmapRange, err error) {
	if len(b) < 8 {
		return nil, fmt.Errorf("%w: UNMAP parameter list of %d bytes", ErrMalformed, len(b))
	}
	for p := b[8:][:min(int(be.Uint16(b[2:])), len(b)-8)]; len(p) >= 16; p = p[16:] {
		ranges = append(ranges, UnmapRange{be.Uint64(p), be.Uint32(p[8:])})
	}
	return ranges, nil
}

// AppendLUNs appends the data of REPORT LUNS. SPC-4 6.33
func AppendLUNs(b []byte, luns ...uint64) []byte {
	b = be.AppendUint32(b, uint32(8*len(luns)))
	b = append(b, 0, 0, 0, 0)
	for _, l := range luns {
		b = be.AppendUint64(b, l)
	}
	return b
}

// ParseLUNs decodes the data of REPORT LUNS, possibly cut by the allocation length.
func ParseLUNs(b []byte) (luns []uint64, err error) {
	if len(b) < 8 {
		return nil, fmt.Errorf("%w: %d bytes of REPORT LUNS data", ErrMalformed, len(b))
	}
	for p := b[8:][:min(uint64(be.Uint32(b)), uint64(len(b)-8))]; len(p) >= 8; p = p[8:] {
		luns = append(luns, be.Uint64(p))
	}
	return luns, nil
}

// SupportedCommand is one command of REPORT SUPPORTED OPERATION CODES. SPC-4 6.35
type SupportedCommand struct {
	Op        OpCode
	HasAction bool
	Action    uint16
	CDBLength uint16
	Usage     []byte // one-command format: which bits of the CDB the device looks at
}

// AppendCommands appends the all_commands data. With timeouts each descriptor has a timeouts descriptor that reports none.
func AppendCommands(b []byte, timeouts bool, list []SupportedCommand) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	for _, c := range list {
		b = append(b, byte(c.Op), 0, byte(c.Action>>8), byte(c.Action), 0, flag(timeouts, 2)|flag(c.HasAction, 1), byte(c.CDBLength>>8), byte(c.CDBLength))
		if timeouts {
			b = append(b, timeoutsDescriptor[:]...)
		}
	}
	be.PutUint32(b[start:], uint32(len(b)-start-4))
	return b
}

var timeoutsDescriptor = [12]byte{1: 0x0A}

// AppendCommand appends the one_command data: support 3 for a command as in the standard (then Usage matters), 1 for one that is not
// supported.
func AppendCommand(b []byte, timeouts bool, support uint8, c SupportedCommand) []byte {
	b = append(b, 0, flag(timeouts && support == 3, 0x80)|support&7, byte(len(c.Usage)>>8), byte(len(c.Usage)))
	b = append(b, c.Usage...)
	if timeouts && support == 3 {
		b = append(b, timeoutsDescriptor[:]...)
	}
	return b
}

// ParseCommands decodes the all_commands data, possibly cut by the allocation length.
func ParseCommands(b []byte) (list []SupportedCommand, err error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("%w: %d bytes of REPORT SUPPORTED OPERATION CODES data", ErrMalformed, len(b))
	}
	for p := b[4:][:min(uint64(be.Uint32(b)), uint64(len(b)-4))]; len(p) >= 8; {
		list = append(list, SupportedCommand{Op: OpCode(p[0]), Action: be.Uint16(p[2:]), HasAction: p[5]&1 != 0, CDBLength: be.Uint16(p[6:])})
		n := 8
		if p[5]&2 != 0 {
			if n += 12; len(p) < n {
				break
			}
		}
		p = p[n:]
	}
	return list, nil
}

// ParseCommand decodes the one_command data: support as in AppendCommand, usage aliases b.
func ParseCommand(b []byte) (support uint8, usage []byte, err error) {
	if len(b) < 4 || len(b) < 4+int(be.Uint16(b[2:])) {
		return 0, nil, fmt.Errorf("%w: %d bytes of REPORT SUPPORTED OPERATION CODES data", ErrMalformed, len(b))
	}
	return b[1] & 7, b[4 : 4+be.Uint16(b[2:])], nil
}
