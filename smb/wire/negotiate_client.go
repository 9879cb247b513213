package wire

// Append appends the body of a NEGOTIATE request. [MS-SMB2] 2.2.3
func (r *NegotiateRequest) Append(b []byte) []byte {
	start := len(b) - HeaderSize
	b = le.AppendUint16(b, 36)
	b = le.AppendUint16(b, uint16(len(r.Dialects)))
	b = le.AppendUint16(b, r.SecurityMode)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, r.Capabilities)
	b = append(b, r.ClientGUID[:]...)
	at := len(b)
	b = le.AppendUint64(b, 0) // ClientStartTime, or NegotiateContextOffset, NegotiateContextCount, Reserved2
	for _, d := range r.Dialects {
		b = le.AppendUint16(b, uint16(d))
	}
	if len(r.Contexts) == 0 {
		return b
	}
	b = pad8(b, start)
	le.PutUint32(b[at:], uint32(len(b)-start))
	le.PutUint16(b[at+4:], uint16(len(r.Contexts)))
	for i, c := range r.Contexts {
		if i > 0 {
			b = pad8(b, start)
		}
		b = le.AppendUint16(b, c.Type)
		b = le.AppendUint16(b, uint16(len(c.Data)))
		b = le.AppendUint32(b, 0)
		b = append(b, c.Data...)
	}
	return b
}

// maxNegotiateContexts bounds the contexts of a reply; the specification knows eight types.
const maxNegotiateContexts = 64

// ParseNegotiateResponse decodes a NEGOTIATE reply. The contexts are decoded only for dialect 3.1.1. [MS-SMB2] 2.2.4
func ParseNegotiateResponse(msg []byte) (NegotiateResponse, error) {
	var r NegotiateResponse
	const fixed = 64
	b, err := body(msg, "NEGOTIATE", 65, fixed)
	if err != nil {
		return r, err
	}
	r.SecurityMode = le.Uint16(b[2:])
	r.Dialect = Dialect(le.Uint16(b[4:]))
	count := int(le.Uint16(b[6:]))
	copy(r.ServerGUID[:], b[8:24])
	r.Capabilities = le.Uint32(b[24:])
	r.MaxTransactSize = le.Uint32(b[28:])
	r.MaxReadSize = le.Uint32(b[32:])
	r.MaxWriteSize = le.Uint32(b[36:])
	r.SystemTime = le.Uint64(b[40:])
	r.ServerStartTime = le.Uint64(b[48:])
	r.SecurityBuffer, err = span(msg, "NEGOTIATE", fixed, uint64(le.Uint16(b[56:])), uint64(le.Uint16(b[58:])))
	if err != nil || r.Dialect != Dialect311 {
		return r, err
	}
	if count > maxNegotiateContexts {
		return r, malformed("NEGOTIATE reply has %d contexts", count)
	}
	off := uint64(le.Uint32(b[60:]))
	for i := range count {
		if i > 0 {
			off = (off + 7) &^ 7
		}
		if off < HeaderSize+fixed || off > uint64(len(msg)) || uint64(len(msg))-off < 8 {
			return r, malformed("NEGOTIATE context %d at %d in a message of %d", i, off, len(msg))
		}
		c := NegotiateContext{Type: le.Uint16(msg[off:])}
		n := uint64(le.Uint16(msg[off+2:]))
		if c.Data, err = span(msg, "NEGOTIATE context", fixed, off+8, n); err != nil {
			return r, err
		}
		r.Contexts = append(r.Contexts, c)
		off += 8 + n
	}
	return r, nil
}

// PreauthContext offers SHA-512 with a salt. [MS-SMB2] 2.2.3.1.1
func PreauthContext(salt []byte) NegotiateContext {
	d := le.AppendUint16(nil, 1)
	d = le.AppendUint16(d, uint16(len(salt)))
	d = le.AppendUint16(d, HashSHA512)
	return NegotiateContext{CtxPreauthIntegrity, append(d, salt...)}
}

// EncryptionContext offers ciphers, the preferred one first. [MS-SMB2] 2.2.3.1.2
func EncryptionContext(ciphers []Cipher) NegotiateContext {
	d := le.AppendUint16(nil, uint16(len(ciphers)))
	for _, c := range ciphers {
		d = le.AppendUint16(d, uint16(c))
	}
	return NegotiateContext{CtxEncryption, d}
}

// SigningContext offers signing algorithms, the preferred one first. [MS-SMB2] 2.2.3.1.7
func SigningContext(algorithms []SigningAlgorithm) NegotiateContext {
	d := le.AppendUint16(nil, uint16(len(algorithms)))
	for _, a := range algorithms {
		d = le.AppendUint16(d, uint16(a))
	}
	return NegotiateContext{CtxSigning, d}
}

// NetnameContext tells the server by which name it was reached. [MS-SMB2] 2.2.3.1.4
func NetnameContext(name string) NegotiateContext {
	return NegotiateContext{CtxNetname, AppendName(nil, name)}
}

// Selected returns the one algorithm that a server chose in a pre-authentication, encryption or signing context.
// [MS-SMB2] 2.2.4.1.1, 2.2.4.1.2, 2.2.4.1.7
func (c *NegotiateContext) Selected() (uint16, error) {
	fixed := 2
	if c.Type == CtxPreauthIntegrity {
		fixed = 4
	}
	if len(c.Data) < fixed+2 {
		return 0, malformed("negotiate context %d has %d bytes", c.Type, len(c.Data))
	}
	if n := le.Uint16(c.Data); n != 1 {
		return 0, malformed("negotiate context %d selects %d algorithms, must be one", c.Type, n)
	}
	if c.Type == CtxPreauthIntegrity {
		if n := int(le.Uint16(c.Data[2:])); n > len(c.Data)-fixed-2 {
			return 0, malformed("pre-authentication salt of %d bytes in a context of %d", n, len(c.Data))
		}
	}
	return le.Uint16(c.Data[fixed:]), nil
}

// ValidateNegotiateRequest is the input of FSCTL_VALIDATE_NEGOTIATE_INFO. [MS-SMB2] 2.2.31.4
type ValidateNegotiateRequest struct {
	Capabilities uint32
	ClientGUID   GUID
	SecurityMode uint16
	Dialects     []Dialect
}

// Append appends the structure.
func (r *ValidateNegotiateRequest) Append(b []byte) []byte {
	b = le.AppendUint32(b, r.Capabilities)
	b = append(b, r.ClientGUID[:]...)
	b = le.AppendUint16(b, r.SecurityMode)
	b = le.AppendUint16(b, uint16(len(r.Dialects)))
	for _, d := range r.Dialects {
		b = le.AppendUint16(b, uint16(d))
	}
	return b
}

// ValidateNegotiateResponse is the output of FSCTL_VALIDATE_NEGOTIATE_INFO. [MS-SMB2] 2.2.32.6
type ValidateNegotiateResponse struct {
	Capabilities uint32
	ServerGUID   GUID
	SecurityMode uint16
	Dialect      Dialect
}

// ParseValidateNegotiateResponse decodes the output of FSCTL_VALIDATE_NEGOTIATE_INFO (not a whole message).
func ParseValidateNegotiateResponse(b []byte) (ValidateNegotiateResponse, error) {
	var r ValidateNegotiateResponse
	if len(b) != 24 {
		return r, malformed("VALIDATE_NEGOTIATE_INFO output of %d bytes", len(b))
	}
	r.Capabilities = le.Uint32(b)
	copy(r.ServerGUID[:], b[4:20])
	r.SecurityMode = le.Uint16(b[20:])
	r.Dialect = Dialect(le.Uint16(b[22:]))
	return r, nil
}

// AppendSMB1Negotiate appends a whole SMB_COM_NEGOTIATE request, header included, that offers the named dialects: the
// opening of a multi-protocol negotiation. [MS-SMB2] 3.2.4.2.2.1, [MS-CIFS] 2.2.4.52.1
func AppendSMB1Negotiate(b []byte, dialects ...string) []byte {
	hdr := [32]byte{0xFF, 'S', 'M', 'B', 0x72}
	hdr[9] = 0x18                  // case-insensitive, canonical names
	le.PutUint16(hdr[10:], 0xC853) // Unicode, NT status, extended security, long names, EAs, signing
	le.PutUint16(hdr[26:], 0xFEFF) // PID, any
	le.PutUint16(hdr[24:], 0xFFFF) // TID: none yet
	b = append(b, hdr[:]...)
	b = append(b, 0) // WordCount
	n := 0
	for _, d := range dialects {
		n += len(d) + 2
	}
	b = le.AppendUint16(b, uint16(n))
	for _, d := range dialects {
		b = append(b, 2)
		b = append(b, d...)
		b = append(b, 0)
	}
	return b
}
