package scsi

import "fmt"

// Key is a sense key. SPC-4 4.5.6
type Key uint8

// The sense keys.
const (
	NoSense        Key = 0x0
	RecoveredError Key = 0x1
	NotReady       Key = 0x2
	MediumError    Key = 0x3
	HardwareError  Key = 0x4
	IllegalRequest Key = 0x5
	UnitAttention  Key = 0x6
	DataProtect    Key = 0x7
	BlankCheck     Key = 0x8
	VendorSpecific Key = 0x9
	CopyAborted    Key = 0xA
	AbortedCommand Key = 0xB
	VolumeOverflow Key = 0xD
	Miscompare     Key = 0xE
	Completed      Key = 0xF
)

var keyNames = [16]string{"no sense", "recovered error", "not ready", "medium error", "hardware error", "illegal request", "unit attention",
	"data protect", "blank check", "vendor specific", "copy aborted", "aborted command", "reserved sense key 0xc", "volume overflow", "miscompare", "completed"}

// String returns the key in words.
func (k Key) String() string { return keyNames[k&0xF] }

// Code is an additional sense code and its qualifier: ASC<<8 | ASCQ.
type Code uint16

// Sense is sense data, without vendor specific parts. The zero value is "no sense".
type Sense struct {
	Key       Key
	ASC, ASCQ uint8
	Deferred  bool // reports an earlier command
	InfoValid bool
	Info      uint64 // for block commands usually the block in question; only 32 bits fit the fixed format
	// The field of the CDB or of the parameter list that is in error (with IllegalRequest). SPC-4 4.5.2.4.2
	FieldValid bool
	InCDB      bool
	BitValid   bool
	Bit        uint8 // 0 to 7
	Field      uint16
}

// NewSense makes sense data from a key and a code.
func NewSense(k Key, c Code) Sense { return Sense{Key: k, ASC: uint8(c >> 8), ASCQ: uint8(c)} }

// Code returns ASC and ASCQ together.
func (s Sense) Code() Code { return Code(s.ASC)<<8 | Code(s.ASCQ) }

// WithInfo returns s with the information field set.
func (s Sense) WithInfo(v uint64) Sense { s.Info, s.InfoValid = v, true; return s }

// WithCDBField returns s pointing at a byte of the CDB.
func (s Sense) WithCDBField(byteIndex int) Sense {
	s.FieldValid, s.InCDB, s.Field = true, true, uint16(byteIndex)
	return s
}

// WithCDBBit returns s pointing at a bit (the leftmost of the field) of a byte of the CDB.
func (s Sense) WithCDBBit(byteIndex int, bit uint8) Sense {
	s = s.WithCDBField(byteIndex)
	s.BitValid, s.Bit = true, bit&7
	return s
}

// WithParamField returns s pointing at a byte of the parameter list.
func (s Sense) WithParamField(byteIndex int) Sense {
	s.FieldValid, s.InCDB, s.Field = true, false, uint16(byteIndex)
	return s
}

// String returns the sense data in words.
func (s Sense) String() string {
	t := s.Key.String()
	if c := s.Code(); c != 0 {
		t += ", " + c.String()
	}
	if s.FieldValid {
		where := "parameter list"
		if s.InCDB {
			where = "CDB"
		}
		t += fmt.Sprintf(" (byte %d of the %s", s.Field, where)
		if s.BitValid {
			t += fmt.Sprintf(", bit %d", s.Bit)
		}
		t += ")"
	}
	if s.InfoValid {
		t += fmt.Sprintf(" (information %#x)", s.Info)
	}
	if s.Deferred {
		t += " (deferred)"
	}
	return t
}

// FixedSenseSize is the length in bytes of what AppendFixed writes.
const FixedSenseSize = 18

// PutFixed writes s in the fixed format to the first 18 bytes of b, without allocation. SPC-4 4.5.3. An information field that does
// not fit 32 bits is left out.
func (s Sense) PutFixed(b []byte) {
	b = b[:FixedSenseSize]
	clear(b)
	b[0] = 0x70
	if s.Deferred {
		b[0] = 0x71
	}
	if s.InfoValid && s.Info <= 0xFFFFFFFF {
		b[0] |= 0x80
		be.PutUint32(b[3:], uint32(s.Info))
	}
	b[2] = byte(s.Key & 0xF)
	b[7] = FixedSenseSize - 8
	b[12], b[13] = s.ASC, s.ASCQ
	if s.FieldValid {
		s.putSpecific(b[15:])
	}
}

func (s Sense) putSpecific(b []byte) {
	b[0] = 0x80 | flag(s.InCDB, 0x40)
	if s.BitValid {
		b[0] |= 8 | s.Bit&7
	}
	be.PutUint16(b[1:], s.Field)
}

func (s *Sense) parseSpecific(b []byte) {
	if b[0]&0x80 == 0 || s.Key != IllegalRequest {
		return
	}
	s.FieldValid, s.InCDB, s.Field = true, b[0]&0x40 != 0, be.Uint16(b[1:])
	if b[0]&8 != 0 {
		s.BitValid, s.Bit = true, b[0]&7
	}
}

// AppendFixed appends s in the fixed format, 18 bytes.
func (s Sense) AppendFixed(b []byte) []byte {
	var f [FixedSenseSize]byte
	s.PutFixed(f[:])
	return append(b, f[:]...)
}

// AppendDescriptor appends s in the descriptor format. SPC-4 4.5.2
func (s Sense) AppendDescriptor(b []byte) []byte {
	start := len(b)
	b = append(b, 0x72+flag(s.Deferred, 1), byte(s.Key&0xF), s.ASC, s.ASCQ, 0, 0, 0, 0)
	if s.InfoValid {
		b = append(b, 0x00, 0x0A, 0x80, 0)
		b = be.AppendUint64(b, s.Info)
	}
	if s.FieldValid {
		b = append(b, 0x02, 0x06, 0, 0, 0, 0, 0, 0)
		s.putSpecific(b[len(b)-4:])
	}
	b[start+7] = byte(len(b) - start - 8)
	return b
}

// ParseSense decodes sense data in either format. Fixed sense may be cut off after the sense key (3 bytes), as transports with small
// sense areas do; what is missing is zero. Bytes after the additional length are ignored.
func ParseSense(b []byte) (s Sense, err error) {
	if len(b) < 1 {
		return s, fmt.Errorf("%w: no sense data", ErrMalformed)
	}
	switch b[0] & 0x7F {
	case 0x70, 0x71:
		return parseFixedSense(b)
	case 0x72, 0x73:
		return parseDescriptorSense(b)
	}
	return s, fmt.Errorf("%w: sense data with response code %#02x", ErrMalformed, b[0]&0x7F)
}

func parseFixedSense(b []byte) (s Sense, err error) {
	if len(b) < 3 {
		return s, fmt.Errorf("%w: %d bytes of fixed sense data", ErrMalformed, len(b))
	}
	s.Deferred, s.Key = b[0]&1 != 0, Key(b[2]&0xF)
	if len(b) > 8 {
		b = b[:min(len(b), 8+int(b[7]))]
	}
	if b[0]&0x80 != 0 && len(b) >= 7 {
		s.InfoValid, s.Info = true, uint64(be.Uint32(b[3:]))
	}
	if len(b) >= 14 {
		s.ASC, s.ASCQ = b[12], b[13]
	}
	if len(b) >= 18 {
		s.parseSpecific(b[15:])
	}
	return s, nil
}

func parseDescriptorSense(b []byte) (s Sense, err error) {
	if len(b) < 8 {
		return s, fmt.Errorf("%w: %d bytes of descriptor sense data", ErrMalformed, len(b))
	}
	s.Deferred, s.Key, s.ASC, s.ASCQ = b[0]&1 != 0, Key(b[1]&0xF), b[2], b[3]
	if len(b) < 8+int(b[7]) {
		return s, fmt.Errorf("%w: descriptor sense data say %d bytes and have %d", ErrMalformed, 8+int(b[7]), len(b))
	}
	for d := b[8 : 8+int(b[7])]; len(d) > 0; {
		if len(d) < 2 || len(d) < 2+int(d[1]) {
			return s, fmt.Errorf("%w: sense descriptor reaches over the end", ErrMalformed)
		}
		switch {
		case d[0] == 0x00 && d[1] == 0x0A && d[2]&0x80 != 0:
			s.InfoValid, s.Info = true, be.Uint64(d[4:])
		case d[0] == 0x02 && d[1] == 0x06:
			s.parseSpecific(d[4:])
		}
		d = d[2+int(d[1]):]
	}
	return s, nil
}
