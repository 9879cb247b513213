package scsi

import "fmt"

// PRInAction is a service action of PERSISTENT RESERVE IN. SPC-4 6.15
type PRInAction uint8

// The service actions of PERSISTENT RESERVE IN.
const (
	PRReadKeys           PRInAction = 0
	PRReadReservation    PRInAction = 1
	PRReportCapabilities PRInAction = 2
	PRReadFullStatus     PRInAction = 3
)

// String returns the standard's name.
func (a PRInAction) String() string {
	if n := [...]string{"READ KEYS", "READ RESERVATION", "REPORT CAPABILITIES", "READ FULL STATUS"}; int(a) < len(n) {
		return n[a]
	}
	return fmt.Sprintf("service action %#02x", uint8(a))
}

// PROutAction is a service action of PERSISTENT RESERVE OUT. SPC-4 6.16.2
type PROutAction uint8

// The service actions of PERSISTENT RESERVE OUT.
const (
	PRRegister          PROutAction = 0
	PRReserve           PROutAction = 1
	PRRelease           PROutAction = 2
	PRClear             PROutAction = 3
	PRPreempt           PROutAction = 4
	PRPreemptAndAbort   PROutAction = 5
	PRRegisterAndIgnore PROutAction = 6 // REGISTER AND IGNORE EXISTING KEY
	PRRegisterAndMove   PROutAction = 7
)

// String returns the standard's name.
func (a PROutAction) String() string {
	if n := [...]string{"REGISTER", "RESERVE", "RELEASE", "CLEAR", "PREEMPT", "PREEMPT AND ABORT", "REGISTER AND IGNORE EXISTING KEY",
		"REGISTER AND MOVE"}; int(a) < len(n) {
		return n[a]
	}
	return fmt.Sprintf("service action %#02x", uint8(a))
}

// PRType is a type of persistent reservation. SPC-4 6.15.3.4
type PRType uint8

// The types. Zero is no type.
const (
	WriteExclusive                 PRType = 1
	ExclusiveAccess                PRType = 3
	WriteExclusiveRegistrantsOnly  PRType = 5
	ExclusiveAccessRegistrantsOnly PRType = 6
	WriteExclusiveAllRegistrants   PRType = 7
	ExclusiveAccessAllRegistrants  PRType = 8
)

// Valid says whether the standard has this type.
func (t PRType) Valid() bool {
	switch t {
	case WriteExclusive, ExclusiveAccess, WriteExclusiveRegistrantsOnly, ExclusiveAccessRegistrantsOnly, WriteExclusiveAllRegistrants,
		ExclusiveAccessAllRegistrants:
		return true
	}
	return false
}

// AllRegistrants says whether every registrant holds a reservation of this type.
func (t PRType) AllRegistrants() bool {
	return t == WriteExclusiveAllRegistrants || t == ExclusiveAccessAllRegistrants
}

// Registrants says whether registrants may do what the holder may: the types "registrants only" and "all registrants".
func (t PRType) Registrants() bool { return t >= WriteExclusiveRegistrantsOnly && t.Valid() }

// ReadsAllowed says whether everybody may read: the types "write exclusive".
func (t PRType) ReadsAllowed() bool {
	return t == WriteExclusive || t == WriteExclusiveRegistrantsOnly || t == WriteExclusiveAllRegistrants
}

// String returns the standard's name.
func (t PRType) String() string {
	switch t {
	case WriteExclusive:
		return "Write Exclusive"
	case ExclusiveAccess:
		return "Exclusive Access"
	case WriteExclusiveRegistrantsOnly:
		return "Write Exclusive, Registrants Only"
	case ExclusiveAccessRegistrantsOnly:
		return "Exclusive Access, Registrants Only"
	case WriteExclusiveAllRegistrants:
		return "Write Exclusive, All Registrants"
	case ExclusiveAccessAllRegistrants:
		return "Exclusive Access, All Registrants"
	}
	return fmt.Sprintf("reservation type %#x", uint8(t))
}

// PRKeys is the data of READ KEYS. SPC-4 6.15.2
type PRKeys struct {
	Generation uint32
	Keys       []uint64
	Truncated  bool // Parse only: more keys exist than the allocation length let through
}

// Append appends the data of READ KEYS.
func (k *PRKeys) Append(b []byte) []byte {
	b = be.AppendUint32(b, k.Generation)
	b = be.AppendUint32(b, uint32(8*len(k.Keys)))
	for _, v := range k.Keys {
		b = be.AppendUint64(b, v)
	}
	return b
}

// prBody splits generation and the list behind it, which the allocation length may have cut.
func prBody(b []byte, what string) (gen uint32, body []byte, total uint64, err error) {
	if len(b) < 8 {
		return 0, nil, 0, fmt.Errorf("%w: %d bytes of %s data", ErrMalformed, len(b), what)
	}
	total = uint64(be.Uint32(b[4:]))
	return be.Uint32(b), b[8:][:min(total, uint64(len(b)-8))], total, nil
}

// ParsePRKeys decodes the data of READ KEYS, possibly cut by the allocation length.
func ParsePRKeys(b []byte) (k PRKeys, err error) {
	gen, body, total, err := prBody(b, "READ KEYS")
	if err != nil {
		return k, err
	}
	if total%8 != 0 {
		return k, fmt.Errorf("%w: READ KEYS list of %d bytes", ErrMalformed, total)
	}
	k.Generation, k.Truncated = gen, total > uint64(len(body))
	for ; len(body) >= 8; body = body[8:] {
		k.Keys = append(k.Keys, be.Uint64(body))
	}
	return k, nil
}

// PRReservation is the data of READ RESERVATION. SPC-4 6.15.3
type PRReservation struct {
	Generation uint32
	Held       bool
	Key        uint64 // of the holder; zero for the "all registrants" types
	Scope      uint8
	Type       PRType
}

// Append appends the data of READ RESERVATION.
func (r *PRReservation) Append(b []byte) []byte {
	b = be.AppendUint32(b, r.Generation)
	if !r.Held {
		return be.AppendUint32(b, 0)
	}
	b = be.AppendUint32(b, 16)
	b = be.AppendUint64(b, r.Key)
	return append(b, 0, 0, 0, 0, 0, r.Scope<<4|byte(r.Type), 0, 0)
}

// ParsePRReservation decodes the data of READ RESERVATION.
func ParsePRReservation(b []byte) (r PRReservation, err error) {
	gen, body, total, err := prBody(b, "READ RESERVATION")
	if err != nil {
		return r, err
	}
	r.Generation = gen
	if total == 0 {
		return r, nil
	}
	if total < 16 || len(body) < 16 {
		return r, fmt.Errorf("%w: READ RESERVATION descriptor of %d bytes", ErrMalformed, len(body))
	}
	r.Held, r.Key, r.Scope, r.Type = true, be.Uint64(body), body[13]>>4, PRType(body[13]&0xF)
	return r, nil
}

// PRCapabilities is the data of REPORT CAPABILITIES. SPC-4 6.15.4
type PRCapabilities struct {
	ReplaceLost         bool // RLR_C
	CompatibleReserve   bool // CRH
	SpecifyInitiators   bool // SIP_C
	AllTargetPorts      bool // ATP_C
	PersistThroughPower bool // PTPL_C
	PersistActive       bool // PTPL_A
	AllowCommands       uint8
	TypesValid          bool
	Types               []PRType
}

// bits of the type mask, byte 4 in the upper half
var prTypeBits = [...]struct {
	t   PRType
	bit uint16
}{
	{WriteExclusive, 0x0200}, {ExclusiveAccess, 0x0800}, {WriteExclusiveRegistrantsOnly, 0x2000}, {ExclusiveAccessRegistrantsOnly, 0x4000},
	{WriteExclusiveAllRegistrants, 0x8000}, {ExclusiveAccessAllRegistrants, 0x0001},
}

// Append appends the data of REPORT CAPABILITIES, 8 bytes.
func (c *PRCapabilities) Append(b []byte) []byte {
	var mask uint16
	for _, t := range c.Types {
		for _, p := range prTypeBits {
			if p.t == t {
				mask |= p.bit
			}
		}
	}
	b = append(b, 0, 8,
		flag(c.ReplaceLost, 0x80)|flag(c.CompatibleReserve, 0x10)|flag(c.SpecifyInitiators, 8)|flag(c.AllTargetPorts, 4)|flag(c.PersistThroughPower, 1),
		flag(c.TypesValid, 0x80)|c.AllowCommands&7<<4|flag(c.PersistActive, 1))
	b = be.AppendUint16(b, mask)
	return append(b, 0, 0)
}

// ParsePRCapabilities decodes the data of REPORT CAPABILITIES.
func ParsePRCapabilities(b []byte) (c PRCapabilities, err error) {
	if len(b) < 8 || be.Uint16(b) < 8 {
		return c, fmt.Errorf("%w: %d bytes of REPORT CAPABILITIES data", ErrMalformed, len(b))
	}
	c = PRCapabilities{ReplaceLost: b[2]&0x80 != 0, CompatibleReserve: b[2]&0x10 != 0, SpecifyInitiators: b[2]&8 != 0, AllTargetPorts: b[2]&4 != 0,
		PersistThroughPower: b[2]&1 != 0, PersistActive: b[3]&1 != 0, AllowCommands: b[3] >> 4 & 7, TypesValid: b[3]&0x80 != 0}
	if mask := be.Uint16(b[4:]); c.TypesValid {
		for _, p := range prTypeBits {
			if mask&p.bit != 0 {
				c.Types = append(c.Types, p.t)
			}
		}
	}
	return c, nil
}

// PRFullStatus is the data of READ FULL STATUS. SPC-4 6.15.5
type PRFullStatus struct {
	Generation    uint32
	Registrations []PRRegistration
	Truncated     bool // Parse only
}

// PRRegistration is one descriptor of READ FULL STATUS.
type PRRegistration struct {
	Key            uint64
	AllTargetPorts bool
	Holder         bool
	Scope          uint8  // of the reservation, with Holder
	Type           PRType // of the reservation, with Holder
	TargetPort     uint16 // relative target port identifier
	TransportID    []byte
}

// Append appends the data of READ FULL STATUS.
func (f *PRFullStatus) Append(b []byte) []byte {
	start := len(b)
	b = be.AppendUint32(b, f.Generation)
	b = append(b, 0, 0, 0, 0)
	for i := range f.Registrations {
		r := &f.Registrations[i]
		b = be.AppendUint64(b, r.Key)
		b = append(b, 0, 0, 0, 0, flag(r.AllTargetPorts, 2)|flag(r.Holder, 1), 0)
		if r.Holder {
			b[len(b)-1] = r.Scope<<4 | byte(r.Type)
		}
		b = append(b, 0, 0, 0, 0)
		b = be.AppendUint16(b, r.TargetPort)
		b = be.AppendUint32(b, uint32(len(r.TransportID)))
		b = append(b, r.TransportID...)
	}
	be.PutUint32(b[start+4:], uint32(len(b)-start-8))
	return b
}

// ParsePRFullStatus decodes the data of READ FULL STATUS, possibly cut by the allocation length. Transport IDs alias b.
func ParsePRFullStatus(b []byte) (f PRFullStatus, err error) {
	gen, body, total, err := prBody(b, "READ FULL STATUS")
	if err != nil {
		return f, err
	}
	cut := total > uint64(len(body))
	f.Generation, f.Truncated = gen, cut
	for len(body) > 0 {
		if len(body) < 24 || uint64(len(body)-24) < uint64(be.Uint32(body[20:])) {
			if cut {
				return f, nil
			}
			return f, fmt.Errorf("%w: READ FULL STATUS descriptor reaches over the end", ErrMalformed)
		}
		n := 24 + int(be.Uint32(body[20:]))
		r := PRRegistration{Key: be.Uint64(body), AllTargetPorts: body[12]&2 != 0, Holder: body[12]&1 != 0, TargetPort: be.Uint16(body[18:]), TransportID: body[24:n:n]}
		if r.Holder {
			r.Scope, r.Type = body[13]>>4, PRType(body[13]&0xF)
		}
		f.Registrations = append(f.Registrations, r)
		body = body[n:]
	}
	return f, nil
}

// PROutListSize is the length in bytes of the basic parameter list of PERSISTENT RESERVE OUT. SPC-4 6.16.3
const PROutListSize = 24

// PROutList is the basic parameter list of PERSISTENT RESERVE OUT: of every service action but REGISTER AND MOVE.
type PROutList struct {
	Key            uint64 // of the sender, as registered
	ActionKey      uint64 // the new key, or the key to preempt
	AllTargetPorts bool   // ALL_TG_PT
	PersistPower   bool   // APTPL
	// TransportIDs are further initiators to register (SPEC_I_PT is set when it is not nil).
	TransportIDs []TransportID
}

// Append appends the parameter list.
func (l *PROutList) Append(b []byte) []byte {
	b = be.AppendUint64(b, l.Key)
	b = be.AppendUint64(b, l.ActionKey)
	b = append(b, 0, 0, 0, 0, flag(l.TransportIDs != nil, 8)|flag(l.AllTargetPorts, 4)|flag(l.PersistPower, 1), 0, 0, 0)
	if l.TransportIDs != nil {
		at := len(b)
		b = append(b, 0, 0, 0, 0)
		for i := range l.TransportIDs {
			b = l.TransportIDs[i].Append(b)
		}
		be.PutUint32(b[at:], uint32(len(b)-at-4))
	}
	return b
}

// ParsePROutList decodes a basic parameter list; b has exactly the parameter list length.
func ParsePROutList(b []byte) (l PROutList, err error) {
	if len(b) < PROutListSize {
		return l, fmt.Errorf("%w: parameter list of %d bytes", ErrMalformed, len(b))
	}
	l = PROutList{Key: be.Uint64(b), ActionKey: be.Uint64(b[8:]), AllTargetPorts: b[20]&4 != 0, PersistPower: b[20]&1 != 0}
	if b[20]&8 == 0 {
		if len(b) != PROutListSize {
			return l, fmt.Errorf("%w: parameter list of %d bytes", ErrMalformed, len(b))
		}
		return l, nil
	}
	if len(b) < 28 || uint64(be.Uint32(b[24:])) != uint64(len(b)-28) {
		return l, fmt.Errorf("%w: list of transport IDs does not fill the parameter list of %d bytes", ErrMalformed, len(b))
	}
	l.TransportIDs = []TransportID{}
	for b = b[28:]; len(b) > 0; {
		t, n, err := ParseTransportID(b)
		if err != nil {
			return l, err
		}
		l.TransportIDs, b = append(l.TransportIDs, t), b[n:]
	}
	return l, nil
}

// PRMoveList is the parameter list of REGISTER AND MOVE. SPC-4 6.16.4
type PRMoveList struct {
	Key          uint64
	ActionKey    uint64 // key to register for the receiver
	Unregister   bool   // UNREG: the sender gives up its registration
	PersistPower bool   // APTPL
	TargetPort   uint16 // relative target port identifier
	TransportID  TransportID
}

// Append appends the parameter list.
func (l *PRMoveList) Append(b []byte) []byte {
	b = be.AppendUint64(b, l.Key)
	b = be.AppendUint64(b, l.ActionKey)
	b = append(b, 0, flag(l.Unregister, 2)|flag(l.PersistPower, 1))
	b = be.AppendUint16(b, l.TargetPort)
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	b = l.TransportID.Append(b)
	be.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

// ParsePRMoveList decodes the parameter list of REGISTER AND MOVE; b has exactly the parameter list length.
func ParsePRMoveList(b []byte) (l PRMoveList, err error) {
	if len(b) < 24 || uint64(be.Uint32(b[20:])) != uint64(len(b)-24) {
		return l, fmt.Errorf("%w: REGISTER AND MOVE parameter list of %d bytes", ErrMalformed, len(b))
	}
	l = PRMoveList{Key: be.Uint64(b), ActionKey: be.Uint64(b[8:]), Unregister: b[17]&2 != 0, PersistPower: b[17]&1 != 0, TargetPort: be.Uint16(b[18:])}
	t, n, err := ParseTransportID(b[24:])
	if err != nil {
		return l, err
	}
	if n != len(b)-24 {
		return l, fmt.Errorf("%w: more than one transport ID in REGISTER AND MOVE", ErrMalformed)
	}
	l.TransportID = t
	return l, nil
}
