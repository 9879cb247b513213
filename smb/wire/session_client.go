package wire

// Append appends the body of a SESSION_SETUP request. [MS-SMB2] 2.2.5
func (r *SessionSetupRequest) Append(b []byte) []byte {
	b = le.AppendUint16(b, 25)
	b = append(b, r.Flags, r.SecurityMode)
	b = le.AppendUint32(b, r.Capabilities)
	b = le.AppendUint32(b, r.Channel)
	b = le.AppendUint16(b, HeaderSize+24)
	b = le.AppendUint16(b, uint16(len(r.SecurityBuffer)))
	b = le.AppendUint64(b, r.PreviousSessionID)
	return append(b, r.SecurityBuffer...)
}

// ParseSessionSetupResponse decodes a SESSION_SETUP reply with status SUCCESS or MORE_PROCESSING_REQUIRED. [MS-SMB2] 2.2.6
func ParseSessionSetupResponse(msg []byte) (SessionSetupResponse, error) {
	var r SessionSetupResponse
	b, err := body(msg, "SESSION_SETUP", 9, 8)
	if err != nil {
		return r, err
	}
	r.SessionFlags = le.Uint16(b[2:])
	r.SecurityBuffer, err = span(msg, "SESSION_SETUP", 8, uint64(le.Uint16(b[4:])), uint64(le.Uint16(b[6:])))
	return r, err
}

// Append appends the body of a TREE_CONNECT request. [MS-SMB2] 2.2.9
func (r *TreeConnectRequest) Append(b []byte) []byte {
	at := len(b)
	b = le.AppendUint16(b, 9)
	b = le.AppendUint16(b, r.Flags)
	b = le.AppendUint16(b, HeaderSize+8)
	b = le.AppendUint16(b, 0)
	b = AppendName(b, r.Path)
	le.PutUint16(b[at+6:], uint16(len(b)-at-8))
	return b
}

// ParseTreeConnectResponse decodes a TREE_CONNECT reply. [MS-SMB2] 2.2.10
func ParseTreeConnectResponse(msg []byte) (TreeConnectResponse, error) {
	b, err := body(msg, "TREE_CONNECT", 16, 16)
	if err != nil {
		return TreeConnectResponse{}, err
	}
	return TreeConnectResponse{
		ShareType:     b[2],
		ShareFlags:    le.Uint32(b[4:]),
		Capabilities:  le.Uint32(b[8:]),
		MaximalAccess: le.Uint32(b[12:]),
	}, nil
}
