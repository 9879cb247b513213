package wire

// ParseLeaseRequest decodes the data of a CreateLease context in a request; its length tells the version. [MS-SMB2] 2.2.13.2.8, 2.2.13.2.10
func ParseLeaseRequest(b []byte) (Lease, error) {
	const size1, size2 = 32, 52
	if len(b) != size1 && len(b) != size2 {
		return Lease{}, malformed("lease context of %d bytes", len(b))
	}
	l := Lease{Version: 1, Key: GUID(b[:16]), State: le.Uint32(b[16:]), Flags: le.Uint32(b[20:])}
	if len(b) == size2 {
		l.Version, l.Parent, l.Epoch = 2, GUID(b[32:48]), le.Uint16(b[48:])
	}
	return l, nil
}

// Append appends the data of the context of a reply. [MS-SMB2] 2.2.14.2.10, 2.2.14.2.11
func (l *Lease) Append(b []byte) []byte {
	b = append(b, l.Key[:]...)
	b = le.AppendUint32(b, l.State)
	b = le.AppendUint32(b, l.Flags)
	b = le.AppendUint64(b, 0)
	if l.Version >= 2 {
		b = append(b, l.Parent[:]...)
		b = le.AppendUint16(b, l.Epoch)
		b = le.AppendUint16(b, 0)
	}
	return b
}

// Append appends the body of the notification. [MS-SMB2] 2.2.23.2
func (n *LeaseBreak) Append(b []byte) []byte {
	b = le.AppendUint16(b, 44)
	b = le.AppendUint16(b, n.NewEpoch)
	b = le.AppendUint32(b, n.Flags)
	b = append(b, n.Key[:]...)
	b = le.AppendUint32(b, n.Current)
	b = le.AppendUint32(b, n.New)
	return append(b, make([]byte, 12)...)
}

// IsLeaseBreakAck says whether an OPLOCK_BREAK request is about a lease: its StructureSize is 36. [MS-SMB2] 3.3.5.22
func IsLeaseBreakAck(msg []byte) bool {
	return len(msg) >= HeaderSize+2 && le.Uint16(msg[HeaderSize:]) == 36
}

// ParseLeaseBreakAck decodes the acknowledgement of a lease break. [MS-SMB2] 2.2.24.2
func ParseLeaseBreakAck(msg []byte) (LeaseBreakAck, error) {
	b, err := srvBody(msg, "lease break acknowledgement", 36, 36)
	if err != nil {
		return LeaseBreakAck{}, err
	}
	return LeaseBreakAck{Key: GUID(b[8:24]), State: le.Uint32(b[24:])}, nil
}

// Append appends the body of the reply. [MS-SMB2] 2.2.25.2
func (a *LeaseBreakAck) Append(b []byte) []byte {
	b = le.AppendUint16(b, 36)
	b = append(b, 0, 0, 0, 0, 0, 0)
	b = append(b, a.Key[:]...)
	b = le.AppendUint32(b, a.State)
	return le.AppendUint64(b, 0)
}
