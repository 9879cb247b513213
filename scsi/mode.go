package scsi

import "fmt"

// Mode pages. SPC-4 7.5, SBC-3 6.4
const (
	ModeCaching       uint8 = 0x08
	ModeControl       uint8 = 0x0A
	ModeInfoException uint8 = 0x1C
	ModeAllPages      uint8 = 0x3F
)

// ModeData is the data of MODE SENSE of either length.
type ModeData struct {
	WriteProtect bool
	DPOFUA       bool   // READ and WRITE honour FUA
	HasBlocks    bool   // a block descriptor is present
	Blocks       uint64 // cut to 32 bits in a short descriptor
	BlockLength  uint32
	Pages        []byte // the mode pages, one after the other
}

func (m *ModeData) device() byte { return flag(m.WriteProtect, 0x80) | flag(m.DPOFUA, 0x10) }

func (m *ModeData) descriptor(b []byte, long bool) []byte {
	switch {
	case !m.HasBlocks:
		return b
	case long:
		b = be.AppendUint64(b, m.Blocks)
		b = append(b, 0, 0, 0, 0)
		return be.AppendUint32(b, m.BlockLength)
	}
	b = be.AppendUint32(b, uint32(min(m.Blocks, 0xFFFFFFFF)))
	return be.AppendUint32(b, m.BlockLength&0xFFFFFF)
}

// Append6 appends the data of MODE SENSE(6).
func (m *ModeData) Append6(b []byte) []byte {
	start := len(b)
	b = append(b, 0, 0, m.device(), flag(m.HasBlocks, 8))
	b = append(m.descriptor(b, false), m.Pages...)
	b[start] = byte(min(len(b)-start-1, 255))
	return b
}

// Append10 appends the data of MODE SENSE(10).
func (m *ModeData) Append10(b []byte, longLBA bool) []byte {
	start := len(b)
	n := byte(0)
	if m.HasBlocks {
		n = 8 + flag(longLBA, 8)
	}
	b = append(b, 0, 0, 0, m.device(), flag(longLBA && m.HasBlocks, 1), 0, 0, n)
	b = append(m.descriptor(b, longLBA), m.Pages...)
	be.PutUint16(b[start:], uint16(len(b)-start-2))
	return b
}

// ParseMode6 decodes the data of MODE SENSE(6), possibly cut by the allocation length. Pages alias b.
func ParseMode6(b []byte) (m ModeData, err error) {
	if len(b) < 4 {
		return m, fmt.Errorf("%w: %d bytes of MODE SENSE(6) data", ErrMalformed, len(b))
	}
	m.WriteProtect, m.DPOFUA = b[2]&0x80 != 0, b[2]&0x10 != 0
	return m, m.parseRest(b[4:min(len(b), max(4, 1+int(b[0])))], int(b[3]), false)
}

// ParseMode10 decodes the data of MODE SENSE(10), possibly cut by the allocation length. Pages alias b.
func ParseMode10(b []byte) (m ModeData, err error) {
	if len(b) < 8 {
		return m, fmt.Errorf("%w: %d bytes of MODE SENSE(10) data", ErrMalformed, len(b))
	}
	m.WriteProtect, m.DPOFUA = b[3]&0x80 != 0, b[3]&0x10 != 0
	return m, m.parseRest(b[8:min(len(b), max(8, 2+int(be.Uint16(b))))], int(be.Uint16(b[6:])), b[4]&1 != 0)
}

func (m *ModeData) parseRest(b []byte, descriptors int, long bool) error {
	if descriptors > len(b) {
		return fmt.Errorf("%w: mode block descriptors reach over the end", ErrMalformed)
	}
	switch {
	case long && descriptors >= 16:
		m.HasBlocks, m.Blocks, m.BlockLength = true, be.Uint64(b), be.Uint32(b[12:])
	case !long && descriptors >= 8:
		m.HasBlocks, m.Blocks, m.BlockLength = true, uint64(be.Uint32(b)), be.Uint32(b[4:])&0xFFFFFF
	}
	m.Pages = b[descriptors:]
	return nil
}

// Page returns a page with its header, or nil if it is not there or not complete.
func (m *ModeData) Page(code uint8) []byte {
	for p := m.Pages; len(p) >= 2; {
		n := 2 + int(p[1])
		if p[0]&0x40 != 0 {
			if len(p) < 4 {
				return nil
			}
			n = 4 + int(be.Uint16(p[2:]))
		}
		if len(p) < n {
			return nil
		}
		if p[0]&0x7F == code {
			return p[:n]
		}
		p = p[n:]
	}
	return nil
}

// CachingPage is the part of the caching mode page that this project uses.
type CachingPage struct {
	WriteCache  bool // WCE: a write may be volatile until SYNCHRONIZE CACHE
	ReadNoCache bool // RCD
}

// Append appends the caching page, 20 bytes.
func (c CachingPage) Append(b []byte) []byte {
	b = append(b, ModeCaching, 0x12, flag(c.WriteCache, 4)|flag(c.ReadNoCache, 1))
	return append(b, make([]byte, 17)...)
}

// ParseCachingPage decodes a caching page with its header.
func ParseCachingPage(p []byte) (c CachingPage, err error) {
	if len(p) < 3 || p[0]&0x3F != ModeCaching {
		return c, fmt.Errorf("%w: no caching mode page", ErrMalformed)
	}
	return CachingPage{p[2]&4 != 0, p[2]&1 != 0}, nil
}

// ControlPage is the part of the control mode page that this project uses.
type ControlPage struct {
	DescriptorSense bool  // D_SENSE
	Reorder         bool  // QUEUE ALGORITHM MODIFIER 1: commands may be reordered without restriction
	TaskAborted     bool  // TAS: commands aborted by another initiator end with TASK ABORTED
	WriteProtect    bool  // SWP
	TaskSetType     uint8 // TST
}

// Append appends the control page, 12 bytes.
func (c ControlPage) Append(b []byte) []byte {
	return append(b, ModeControl, 0x0A, c.TaskSetType&7<<5|flag(c.DescriptorSense, 4), flag(c.Reorder, 0x10), flag(c.WriteProtect, 8),
		flag(c.TaskAborted, 0x40), 0, 0, 0, 0, 0, 0)
}

// ParseControlPage decodes a control page with its header.
func ParseControlPage(p []byte) (c ControlPage, err error) {
	if len(p) < 6 || p[0]&0x3F != ModeControl {
		return c, fmt.Errorf("%w: no control mode page", ErrMalformed)
	}
	return ControlPage{p[2]&4 != 0, p[3]>>4 == 1, p[5]&0x40 != 0, p[4]&8 != 0, p[2] >> 5}, nil
}
