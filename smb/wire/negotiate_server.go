package wire

// ParseNegotiateRequest decodes [MS-SMB2] 2.2.3. Contexts are read only if the 3.1.1 dialect is offered, as their place holds
// something else otherwise.
func ParseNegotiateRequest(msg []byte) (*NegotiateRequest, error) {
	const fixed = 36
	b, err := srvBody(msg, "NEGOTIATE request", 36, fixed)
	if err != nil {
		return nil, err
	}
	r := &NegotiateRequest{SecurityMode: le.Uint16(b[4:]), Capabilities: le.Uint32(b[8:])}
	copy(r.ClientGUID[:], b[12:28])
	n := int(le.Uint16(b[2:]))
	if len(b) < fixed+2*n {
		return nil, malformed("NEGOTIATE request has %d bytes for %d dialects", len(b)-fixed, n)
	}
	has311 := false
	r.Dialects = make([]Dialect, n)
	for i := range r.Dialects {
		r.Dialects[i] = Dialect(le.Uint16(b[fixed+2*i:]))
		has311 = has311 || r.Dialects[i] == Dialect311
	}
	if !has311 {
		return r, nil
	}
	off, count := uint64(le.Uint32(b[28:])), int(le.Uint16(b[32:]))
	if count == 0 {
		return r, nil
	}
	if off < uint64(HeaderSize+fixed+2*n) || off > uint64(len(msg)) || off&7 != 0 {
		return nil, malformed("NEGOTIATE context list at %d of %d", off, len(msg))
	}
	rest := msg[off:]
	for i := range count {
		if len(rest) < 8 {
			return nil, malformed("NEGOTIATE context %d of %d is cut off", i, count)
		}
		l := int(le.Uint16(rest[2:]))
		if len(rest) < 8+l {
			return nil, malformed("NEGOTIATE context %d needs %d bytes, have %d", i, 8+l, len(rest))
		}
		r.Contexts = append(r.Contexts, NegotiateContext{Type: le.Uint16(rest), Data: rest[8 : 8+l : 8+l]})
		next := (8 + l + 7) &^ 7
		rest = rest[min(next, len(rest)):]
	}
	return r, nil
}

// Append appends the body of [MS-SMB2] 2.2.4.
func (r *NegotiateResponse) Append(b []byte) []byte {
	start := len(b)
	const fixed = 64
	ctxOff := uint32(0)
	if len(r.Contexts) > 0 {
		ctxOff = uint32(HeaderSize+fixed+len(r.SecurityBuffer)+7) &^ 7
	}
	b = le.AppendUint16(b, 65)
	b = le.AppendUint16(b, r.SecurityMode)
	b = le.AppendUint16(b, uint16(r.Dialect))
	b = le.AppendUint16(b, srvLen16(len(r.Contexts)))
	b = append(b, r.ServerGUID[:]...)
	b = le.AppendUint32(b, r.Capabilities)
	b = le.AppendUint32(b, r.MaxTransactSize)
	b = le.AppendUint32(b, r.MaxReadSize)
	b = le.AppendUint32(b, r.MaxWriteSize)
	b = le.AppendUint64(b, r.SystemTime)
	b = le.AppendUint64(b, r.ServerStartTime)
	b = le.AppendUint16(b, HeaderSize+fixed)
	b = le.AppendUint16(b, srvLen16(len(r.SecurityBuffer)))
	b = le.AppendUint32(b, ctxOff)
	b = append(b, r.SecurityBuffer...)
	for i, c := range r.Contexts {
		b = srvPad(b, start)
		_ = i
		b = le.AppendUint16(b, c.Type)
		b = le.AppendUint16(b, srvLen16(len(c.Data)))
		b = le.AppendUint32(b, 0)
		b = append(b, c.Data...)
	}
	return b
}

// ParsePreauthOffer decodes the data of a pre-authentication integrity context: the hash algorithms that the client offers.
// [MS-SMB2] 2.2.3.1.1
func ParsePreauthOffer(data []byte) (hashes []uint16, err error) {
	if len(data) < 4 {
		return nil, malformed("pre-authentication context of %d bytes", len(data))
	}
	n, salt := int(le.Uint16(data)), int(le.Uint16(data[2:]))
	if n == 0 || len(data) < 4+2*n+salt {
		return nil, malformed("pre-authentication context of %d bytes for %d hashes and %d bytes of salt", len(data), n, salt)
	}
	for i := range n {
		hashes = append(hashes, le.Uint16(data[4+2*i:]))
	}
	return hashes, nil
}

// AppendPreauthChoice appends the data of the server's pre-authentication integrity context. [MS-SMB2] 2.2.4.1.1
func AppendPreauthChoice(b []byte, hash uint16, salt []byte) []byte {
	b = le.AppendUint16(b, 1)
	b = le.AppendUint16(b, srvLen16(len(salt)))
	b = le.AppendUint16(b, hash)
	return append(b, salt...)
}

// ParseAlgorithmOffer decodes the data of an encryption or a signing context: a counted list of 16-bit algorithm numbers, in the
// client's order of preference. [MS-SMB2] 2.2.3.1.2, 2.2.3.1.7
func ParseAlgorithmOffer(data []byte) ([]uint16, error) {
	if len(data) < 2 {
		return nil, malformed("algorithm context of %d bytes", len(data))
	}
	n := int(le.Uint16(data))
	if n == 0 || len(data) < 2+2*n {
		return nil, malformed("algorithm context of %d bytes for %d algorithms", len(data), n)
	}
	out := make([]uint16, n)
	for i := range out {
		out[i] = le.Uint16(data[2+2*i:])
	}
	return out, nil
}

// AppendAlgorithmChoice appends the data of the server's encryption or signing context: the one algorithm chosen. [MS-SMB2] 2.2.4.1
func AppendAlgorithmChoice(b []byte, alg uint16) []byte {
	b = le.AppendUint16(b, 1)
	return le.AppendUint16(b, alg)
}

// ParseSMB1Negotiate decodes an SMB_COM_NEGOTIATE and returns its dialect strings; that is all of SMB1 that an SMB2 server needs.
// [MS-SMB2] 3.3.5.3, [MS-CIFS] 2.2.4.52.1
func ParseSMB1Negotiate(msg []byte) (dialects []string, err error) {
	const header, negotiate = 32, 0x72
	if len(msg) < header+3 || le.Uint32(msg) != ProtocolSMB1 || msg[4] != negotiate {
		return nil, malformed("not an SMB_COM_NEGOTIATE")
	}
	words := int(msg[header])
	off := header + 1 + 2*words
	if len(msg) < off+2 {
		return nil, malformed("SMB_COM_NEGOTIATE is cut off")
	}
	n := int(le.Uint16(msg[off:]))
	rest := msg[off+2:]
	if len(rest) < n {
		return nil, malformed("SMB_COM_NEGOTIATE has %d of %d bytes", len(rest), n)
	}
	rest = rest[:n]
	for len(rest) > 0 {
		if rest[0] != 2 {
			return nil, malformed("SMB_COM_NEGOTIATE buffer format %d", rest[0])
		}
		end := -1
		for i, c := range rest {
			if c == 0 {
				end = i
				break
			}
		}
		if end < 1 {
			return nil, malformed("SMB_COM_NEGOTIATE dialect without an end")
		}
		dialects = append(dialects, string(rest[1:end]))
		rest = rest[end+1:]
	}
	return dialects, nil
}
