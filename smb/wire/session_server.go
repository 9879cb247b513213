package wire

// ParseSessionSetupRequest decodes [MS-SMB2] 2.2.5.
func ParseSessionSetupRequest(msg []byte) (*SessionSetupRequest, error) {
	const fixed = 24
	b, err := srvBody(msg, "SESSION_SETUP request", 25, fixed)
	if err != nil {
		return nil, err
	}
	r := &SessionSetupRequest{Flags: b[2], SecurityMode: b[3], Capabilities: le.Uint32(b[4:]), Channel: le.Uint32(b[8:]),
		PreviousSessionID: le.Uint64(b[16:])}
	r.SecurityBuffer, err = srvSlice(msg, "SESSION_SETUP security", uint32(le.Uint16(b[12:])), uint32(le.Uint16(b[14:])), fixed)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Append appends the body of [MS-SMB2] 2.2.6.
func (r *SessionSetupResponse) Append(b []byte) []byte {
	b = le.AppendUint16(b, 9)
	b = le.AppendUint16(b, r.SessionFlags)
	b = le.AppendUint16(b, HeaderSize+8)
	b = le.AppendUint16(b, srvLen16(len(r.SecurityBuffer)))
	return append(b, r.SecurityBuffer...)
}

// ParseEmptyRequest checks the body of LOGOFF, TREE_DISCONNECT, ECHO and CANCEL requests.
func ParseEmptyRequest(msg []byte) error {
	_, err := srvBody(msg, "request", 4, 4)
	return err
}

// AppendEmptyResponse appends the body of LOGOFF, TREE_DISCONNECT, ECHO, FLUSH and LOCK replies.
func AppendEmptyResponse(b []byte) []byte { return append(b, 4, 0, 0, 0) }

// ParseTreeConnectRequest decodes [MS-SMB2] 2.2.9. With the extension flag (3.1.1) the path is found inside the extension. [MS-SMB2] 2.2.9.1
func ParseTreeConnectRequest(msg []byte) (*TreeConnectRequest, error) {
	const fixed, extension = 8, 4
	b, err := srvBody(msg, "TREE_CONNECT request", 9, fixed)
	if err != nil {
		return nil, err
	}
	r := &TreeConnectRequest{Flags: le.Uint16(b[2:])}
	off := uint32(le.Uint16(b[4:]))
	if r.Flags&extension != 0 {
		// The path offset counts from the start of the buffer here.
		off += HeaderSize + fixed
	}
	raw, err := srvSlice(msg, "TREE_CONNECT path", off, uint32(le.Uint16(b[6:])), fixed)
	if err != nil {
		return nil, err
	}
	if r.Path, err = srvString(raw, "TREE_CONNECT path"); err != nil {
		return nil, err
	}
	return r, nil
}

// Append appends the body of [MS-SMB2] 2.2.10.
func (r *TreeConnectResponse) Append(b []byte) []byte {
	b = le.AppendUint16(b, 16)
	b = append(b, r.ShareType, 0)
	b = le.AppendUint32(b, r.ShareFlags)
	b = le.AppendUint32(b, r.Capabilities)
	return le.AppendUint32(b, r.MaximalAccess)
}

// Append appends the body of [MS-SMB2] 2.2.2. Without data the buffer has one byte, as the specification wants it.
func (r *ErrorResponse) Append(b []byte) []byte {
	b = le.AppendUint16(b, 9)
	b = append(b, r.ContextCount, 0)
	b = le.AppendUint32(b, uint32(len(r.Data)))
	if len(r.Data) == 0 {
		return append(b, 0)
	}
	return append(b, r.Data...)
}
