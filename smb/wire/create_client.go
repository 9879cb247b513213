package wire

import "net/netip"

// AppendDurableRequest2 appends the data of a CreateDurableRequest2 context. [MS-SMB2] 2.2.13.2.11
func AppendDurableRequest2(b []byte, r DurableRequest2) []byte {
	b = le.AppendUint32(b, r.Timeout)
	b = le.AppendUint32(b, r.Flags)
	b = le.AppendUint64(b, 0)
	return append(b, r.CreateGUID[:]...)
}

// ParseDurableResponse2 decodes the data of a CreateDurableRequest2 context in a reply. [MS-SMB2] 2.2.14.2.12
func ParseDurableResponse2(b []byte) (DurableResponse2, error) {
	if len(b) < 8 {
		return DurableResponse2{}, malformed("durable response of %d bytes", len(b))
	}
	return DurableResponse2{le.Uint32(b), le.Uint32(b[4:])}, nil
}

// AppendDurableConnect2 appends the data of a CreateDurableConnect2 context. [MS-SMB2] 2.2.13.2.12
func AppendDurableConnect2(b []byte, r DurableConnect2) []byte {
	b = appendFileID(b, r.FileID)
	b = append(b, r.CreateGUID[:]...)
	return le.AppendUint32(b, r.Flags)
}

// AppendAppInstanceID appends the data of a CreateAppInstanceID context. [MS-SMB2] 2.2.13.2.13
func AppendAppInstanceID(b []byte, id GUID) []byte {
	b = append(b, 20, 0, 0, 0)
	return append(b, id[:]...)
}

// AppendAppInstanceVersion appends the data of a CreateAppInstanceVer context. [MS-SMB2] 2.2.13.2.15
func AppendAppInstanceVersion(b []byte, high, low uint64) []byte {
	b = append(b, 24, 0, 0, 0, 0, 0, 0, 0)
	b = le.AppendUint64(b, high)
	return le.AppendUint64(b, low)
}

// AppendLease appends the data of a CreateLease context, in version 2 unless l says 1. [MS-SMB2] 2.2.13.2.8, 2.2.13.2.10
func AppendLease(b []byte, l Lease) []byte {
	b = append(b, l.Key[:]...)
	b = le.AppendUint32(b, l.State)
	if l.Version == 1 {
		return append(b, make([]byte, 12)...)
	}
	b = le.AppendUint32(b, l.Flags)
	b = le.AppendUint64(b, 0)
	b = append(b, l.Parent[:]...)
	b = le.AppendUint16(b, l.Epoch)
	return append(b, 0, 0)
}

// ParseLease decodes the data of a CreateLease context in a reply. [MS-SMB2] 2.2.14.2.10, 2.2.14.2.11
func ParseLease(b []byte) (Lease, error) {
	if len(b) != 32 && len(b) != 52 {
		return Lease{}, malformed("lease of %d bytes", len(b))
	}
	l := Lease{Key: GUID(b), State: le.Uint32(b[16:]), Flags: le.Uint32(b[20:]), Version: 1}
	if len(b) == 52 {
		l.Version = 2
		l.Parent = GUID(b[32:48])
		l.Epoch = le.Uint16(b[48:])
	}
	return l, nil
}

// IsLeaseBreak says whether an OPLOCK_BREAK notification or reply is about a lease. [MS-SMB2] 3.2.5.19
func IsLeaseBreak(msg []byte) bool {
	if len(msg) < HeaderSize+2 {
		return false
	}
	size := le.Uint16(msg[HeaderSize:])
	return size == 44 || size == 36
}

// ParseLeaseBreak decodes a lease break notification. [MS-SMB2] 2.2.23.2
func ParseLeaseBreak(msg []byte) (LeaseBreak, error) {
	b, err := body(msg, "lease break", 44, 44)
	if err != nil {
		return LeaseBreak{}, err
	}
	return LeaseBreak{NewEpoch: le.Uint16(b[2:]), Flags: le.Uint32(b[4:]), Key: GUID(b[8:24]), Current: le.Uint32(b[24:]), New: le.Uint32(b[28:])}, nil
}

// AppendLeaseBreakAck appends the body of a lease break acknowledgment. [MS-SMB2] 2.2.24.2
func AppendLeaseBreakAck(b []byte, a LeaseBreakAck) []byte {
	b = append(b, 36, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, a.Key[:]...)
	b = le.AppendUint32(b, a.State)
	return le.AppendUint64(b, 0)
}

// ParseLeaseBreakResponse decodes the reply to a lease break acknowledgment. [MS-SMB2] 2.2.25.2
func ParseLeaseBreakResponse(msg []byte) (LeaseBreakAck, error) {
	b, err := body(msg, "lease break", 36, 36)
	if err != nil {
		return LeaseBreakAck{}, err
	}
	return LeaseBreakAck{Key: GUID(b[8:24]), State: le.Uint32(b[24:])}, nil
}

const (
	interfaceFixed = 24  // before the address
	interfaceSize  = 152 // with it
	familyIPv4     = 0x0002
	familyIPv6     = 0x0017
	// maxInterfaces bounds the list; no server has as many addresses.
	maxInterfaces = 1024
)

// ParseNetworkInterfaces decodes the output of FSCTL_QUERY_NETWORK_INTERFACE_INFO. Addresses of families other than IPv4 and IPv6 are left
// out. [MS-SMB2] 2.2.32.5
func ParseNetworkInterfaces(b []byte) ([]NetworkInterface, error) {
	var out []NetworkInterface
	for n := 0; len(b) > 0; n++ {
		if n == maxInterfaces {
			return nil, malformed("more than %d network interfaces", maxInterfaces)
		}
		next := uint64(0)
		if len(b) >= 4 {
			next = uint64(le.Uint32(b))
		}
		// The last one may come without what is reserved at the end of the address.
		if len(b) < interfaceFixed+2+26 || next != 0 && (next < interfaceSize || next&7 != 0 || next >= uint64(len(b))) {
			return nil, malformed("network interface of %d bytes, next at %d", len(b), next)
		}
		v := NetworkInterface{Index: le.Uint32(b[4:]), Capability: le.Uint32(b[8:]), LinkSpeed: le.Uint64(b[16:])}
		a := b[interfaceFixed:]
		switch le.Uint16(a) {
		case familyIPv4:
			v.Addr = netip.AddrFrom4([4]byte(a[4:8]))
		case familyIPv6:
			v.Addr = netip.AddrFrom16([16]byte(a[8:24]))
		}
		if v.Addr.IsValid() {
			out = append(out, v)
		}
		if next == 0 {
			break
		}
		b = b[next:]
	}
	return out, nil
}
