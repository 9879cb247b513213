package scsi

import (
	"fmt"
	"strings"
)

// InquiryData is the standard INQUIRY data. SPC-4 6.6.2
type InquiryData struct {
	Qualifier    uint8 // peripheral qualifier; 0 connected
	DeviceType   uint8 // 0 direct access block device
	Removable    bool
	Version      uint8 // 6: SPC-4
	Protect      bool
	ThirdParty   bool  // 3PC
	TPGS         uint8 // asymmetric access
	CommandQueue bool  // CMDQUE
	Vendor       string
	Product      string
	Revision     string
	Standards    []uint16 // version descriptors, at most 8
}

// InquirySize is the length in bytes of the standard data that Append writes.
const InquirySize = 96

func padded(b []byte, s string, n int) []byte {
	for i := range n {
		c := byte(' ')
		if i < len(s) && s[i] >= 0x20 && s[i] < 0x7F {
			c = s[i]
		}
		b = append(b, c)
	}
	return b
}

// Append appends the standard data. Vendor, product and revision are cut to 8, 16 and 4 characters of ASCII.
func (d *InquiryData) Append(b []byte) []byte {
	b = append(b, d.Qualifier<<5|d.DeviceType&0x1F, flag(d.Removable, 0x80), d.Version, 0x02, InquirySize-5,
		d.TPGS&3<<4|flag(d.ThirdParty, 8)|flag(d.Protect, 1), 0, flag(d.CommandQueue, 2))
	b = padded(b, d.Vendor, 8)
	b = padded(b, d.Product, 16)
	b = padded(b, d.Revision, 4)
	b = append(b, make([]byte, 22)...)
	for i := range 8 {
		var v uint16
		if i < len(d.Standards) {
			v = d.Standards[i]
		}
		b = be.AppendUint16(b, v)
	}
	return append(b, make([]byte, 22)...)
}

// ParseInquiry decodes standard data of at least 36 bytes.
func ParseInquiry(b []byte) (d InquiryData, err error) {
	if len(b) < 36 {
		return d, fmt.Errorf("%w: %d bytes of INQUIRY data", ErrMalformed, len(b))
	}
	d = InquiryData{Qualifier: b[0] >> 5, DeviceType: b[0] & 0x1F, Removable: b[1]&0x80 != 0, Version: b[2], TPGS: b[5] >> 4 & 3,
		ThirdParty: b[5]&8 != 0, Protect: b[5]&1 != 0, CommandQueue: b[7]&2 != 0, Vendor: strings.TrimRight(string(b[8:16]), " \x00"),
		Product: strings.TrimRight(string(b[16:32]), " \x00"), Revision: strings.TrimRight(string(b[32:36]), " \x00")}
	b = b[:min(len(b), 5+int(b[4]))]
	for i := 58; i+2 <= len(b) && i < 74; i += 2 {
		if v := be.Uint16(b[i:]); v != 0 {
			d.Standards = append(d.Standards, v)
		}
	}
	return d, nil
}

// VPDPage is a page code of vital product data. SPC-4 7.8, SBC-3 6.5
type VPDPage uint8

// The pages that this project knows.
const (
	VPDSupportedPages           VPDPage = 0x00
	VPDUnitSerialNumber         VPDPage = 0x80
	VPDDeviceIdentification     VPDPage = 0x83
	VPDBlockLimits              VPDPage = 0xB0
	VPDBlockCharacteristics     VPDPage = 0xB1
	VPDLogicalBlockProvisioning VPDPage = 0xB2
)

// beginVPD appends the header of a page of a direct access block device; endVPD sets its length.
func beginVPD(b []byte, p VPDPage) ([]byte, int) {
	return append(b, 0, byte(p), 0, 0), len(b)
}

func endVPD(b []byte, start int) []byte {
	be.PutUint16(b[start+2:], uint16(len(b)-start-4))
	return b
}

// ParseVPD checks that b is the given page and returns what follows its header of 4 bytes. A page that the allocation length has cut is
// an error.
func ParseVPD(b []byte, page VPDPage) ([]byte, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("%w: %d bytes of vital product data", ErrMalformed, len(b))
	}
	if VPDPage(b[1]) != page {
		return nil, fmt.Errorf("%w: VPD page %#02x in place of %#02x", ErrMalformed, b[1], uint8(page))
	}
	n := int(be.Uint16(b[2:]))
	if len(b) < 4+n {
		return nil, fmt.Errorf("%w: VPD page %#02x says %d bytes and has %d", ErrMalformed, uint8(page), n, len(b)-4)
	}
	return b[4 : 4+n], nil
}

// AppendSupportedPages appends VPD page 00.
func AppendSupportedPages(b []byte, pages ...VPDPage) []byte {
	b, at := beginVPD(b, VPDSupportedPages)
	for _, p := range pages {
		b = append(b, byte(p))
	}
	return endVPD(b, at)
}

// ParseSupportedPages decodes VPD page 00.
func ParseSupportedPages(b []byte) ([]VPDPage, error) {
	p, err := ParseVPD(b, VPDSupportedPages)
	if err != nil {
		return nil, err
	}
	pages := make([]VPDPage, len(p))
	for i, v := range p {
		pages[i] = VPDPage(v)
	}
	return pages, nil
}

// AppendSerialNumber appends VPD page 80.
func AppendSerialNumber(b []byte, serial string) []byte {
	b, at := beginVPD(b, VPDUnitSerialNumber)
	return endVPD(padded(b, serial, len(serial)), at)
}

// ParseSerialNumber decodes VPD page 80.
func ParseSerialNumber(b []byte) (string, error) {
	p, err := ParseVPD(b, VPDUnitSerialNumber)
	return strings.TrimSpace(string(p)), err
}

// Designator types and code sets of VPD page 83. SPC-4 7.8.5
const (
	DesignatorVendor   uint8 = 0x0
	DesignatorT10      uint8 = 0x1
	DesignatorEUI64    uint8 = 0x2
	DesignatorNAA      uint8 = 0x3
	DesignatorPort     uint8 = 0x4 // relative target port
	DesignatorSCSIName uint8 = 0x8
	DesignatorUUID     uint8 = 0xA

	CodeSetBinary uint8 = 1
	CodeSetASCII  uint8 = 2
	CodeSetUTF8   uint8 = 3
)

// Designator is one descriptor of VPD page 83. Association 0 is the logical unit.
type Designator struct {
	CodeSet, Association, Type uint8
	Value                      []byte
}

// AppendDeviceIdentification appends VPD page 83.
func AppendDeviceIdentification(b []byte, list ...Designator) []byte {
	b, at := beginVPD(b, VPDDeviceIdentification)
	for _, d := range list {
		b = append(b, d.CodeSet&0xF, d.Association&3<<4|d.Type&0xF, 0, byte(len(d.Value)))
		b = append(b, d.Value...)
	}
	return endVPD(b, at)
}

// ParseDeviceIdentification decodes VPD page 83. Values alias b.
func ParseDeviceIdentification(b []byte) (list []Designator, err error) {
	p, err := ParseVPD(b, VPDDeviceIdentification)
	if err != nil {
		return nil, err
	}
	for len(p) > 0 {
		if len(p) < 4 || len(p) < 4+int(p[3]) {
			return nil, fmt.Errorf("%w: designator reaches over the end of VPD page 83", ErrMalformed)
		}
		n := 4 + int(p[3])
		list = append(list, Designator{p[0] & 0xF, p[1] >> 4 & 3, p[1] & 0xF, p[4:n:n]})
		p = p[n:]
	}
	return list, nil
}

// BlockLimits is VPD page B0. SBC-3 6.5.3. Counts are in logical blocks; zero means not reported.
type BlockLimits struct {
	WriteSameNonZero       bool // WSNZ: WRITE SAME with 0 blocks is refused
	MaxCompareAndWrite     uint8
	OptimalGranularity     uint16
	MaxTransfer            uint32
	OptimalTransfer        uint32
	MaxPrefetch            uint32
	MaxUnmapBlocks         uint32
	MaxUnmapDescriptors    uint32
	UnmapGranularity       uint32
	UnmapAlignmentValid    bool
	UnmapAlignment         uint32
	MaxWriteSame           uint64
	MaxAtomicTransfer      uint32
	AtomicAlignment        uint32
	AtomicGranularity      uint32
	MaxAtomicWithBoundary  uint32
	MaxAtomicBoundaryBlock uint32
}

// Append appends VPD page B0, 64 bytes.
func (l *BlockLimits) Append(b []byte) []byte {
	b, at := beginVPD(b, VPDBlockLimits)
	b = append(b, flag(l.WriteSameNonZero, 1), l.MaxCompareAndWrite)
	b = be.AppendUint16(b, l.OptimalGranularity)
	for _, v := range [...]uint32{l.MaxTransfer, l.OptimalTransfer, l.MaxPrefetch, l.MaxUnmapBlocks, l.MaxUnmapDescriptors, l.UnmapGranularity} {
		b = be.AppendUint32(b, v)
	}
	align := l.UnmapAlignment & 0x7FFFFFFF
	if l.UnmapAlignmentValid {
		align |= 0x80000000
	}
	b = be.AppendUint32(b, align)
	b = be.AppendUint64(b, l.MaxWriteSame)
	for _, v := range [...]uint32{l.MaxAtomicTransfer, l.AtomicAlignment, l.AtomicGranularity, l.MaxAtomicWithBoundary, l.MaxAtomicBoundaryBlock} {
		b = be.AppendUint32(b, v)
	}
	return endVPD(b, at)
}

// ParseBlockLimits decodes VPD page B0; a short page of SBC-2 leaves the later fields zero.
func ParseBlockLimits(b []byte) (l BlockLimits, err error) {
	p, err := ParseVPD(b, VPDBlockLimits)
	if err != nil {
		return l, err
	}
	if len(p) < 12 {
		return l, fmt.Errorf("%w: VPD page B0 of %d bytes", ErrMalformed, len(p))
	}
	var f [60]byte
	copy(f[:], p)
	u32 := func(i int) uint32 { return be.Uint32(f[i-4:]) } // i as the standard counts, from the header
	return BlockLimits{f[0]&1 != 0, f[1], be.Uint16(f[2:]), u32(8), u32(12), u32(16), u32(20), u32(24), u32(28), u32(32)>>31 != 0,
		u32(32) & 0x7FFFFFFF, be.Uint64(f[32:]), u32(44), u32(48), u32(52), u32(56), u32(60)}, nil
}

// BlockCharacteristics is VPD page B1. SBC-3 6.5.2
type BlockCharacteristics struct {
	RotationRate uint16 // 0 not reported, 1 does not rotate, otherwise per minute
	FormFactor   uint8
}

// Append appends VPD page B1, 64 bytes.
func (c *BlockCharacteristics) Append(b []byte) []byte {
	b, at := beginVPD(b, VPDBlockCharacteristics)
	b = be.AppendUint16(b, c.RotationRate)
	b = append(b, 0, c.FormFactor&0xF)
	return endVPD(append(b, make([]byte, 56)...), at)
}

// ParseBlockCharacteristics decodes VPD page B1.
func ParseBlockCharacteristics(b []byte) (c BlockCharacteristics, err error) {
	p, err := ParseVPD(b, VPDBlockCharacteristics)
	if err != nil {
		return c, err
	}
	if len(p) < 4 {
		return c, fmt.Errorf("%w: VPD page B1 of %d bytes", ErrMalformed, len(p))
	}
	return BlockCharacteristics{be.Uint16(p), p[3] & 0xF}, nil
}

// Provisioning types of VPD page B2.
const (
	ProvisioningFull     uint8 = 0
	ProvisioningResource uint8 = 1
	ProvisioningThin     uint8 = 2
)

// LogicalBlockProvisioning is VPD page B2. SBC-3 6.5.4
type LogicalBlockProvisioning struct {
	Unmap       bool // LBPU: UNMAP
	WriteSame16 bool // LBPWS: WRITE SAME(16) with the UNMAP bit
	WriteSame10 bool // LBPWS10
	ReadZeros   bool // LBPRZ: unmapped blocks read as zeros
	Anchor      bool // ANC_SUP
	Type        uint8
}

// Append appends VPD page B2, 8 bytes.
func (p *LogicalBlockProvisioning) Append(b []byte) []byte {
	b, at := beginVPD(b, VPDLogicalBlockProvisioning)
	b = append(b, 0, flag(p.Unmap, 0x80)|flag(p.WriteSame16, 0x40)|flag(p.WriteSame10, 0x20)|flag(p.ReadZeros, 4)|flag(p.Anchor, 2), p.Type&7, 0)
	return endVPD(b, at)
}

// ParseLogicalBlockProvisioning decodes VPD page B2.
func ParseLogicalBlockProvisioning(b []byte) (l LogicalBlockProvisioning, err error) {
	p, err := ParseVPD(b, VPDLogicalBlockProvisioning)
	if err != nil {
		return l, err
	}
	if len(p) < 4 {
		return l, fmt.Errorf("%w: VPD page B2 of %d bytes", ErrMalformed, len(p))
	}
	return LogicalBlockProvisioning{p[1]&0x80 != 0, p[1]&0x40 != 0, p[1]&0x20 != 0, p[1]&4 != 0, p[1]&2 != 0, p[2] & 7}, nil
}
