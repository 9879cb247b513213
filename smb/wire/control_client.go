package wire

// Append appends the fixed part of an IOCTL request; InputCount bytes of input follow it. [MS-SMB2] 2.2.31
func (r *IoctlRequest) Append(b []byte) []byte {
	b = le.AppendUint16(b, 57)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, r.CtlCode)
	b = appendFileID(b, r.FileID)
	b = le.AppendUint32(b, HeaderSize+IoctlRequestFixed)
	b = le.AppendUint32(b, r.InputCount)
	b = le.AppendUint32(b, r.MaxInputResponse)
	b = le.AppendUint32(b, 0) // OutputOffset
	b = le.AppendUint32(b, 0) // OutputCount
	b = le.AppendUint32(b, r.MaxOutputResponse)
	b = le.AppendUint32(b, r.Flags)
	return le.AppendUint32(b, 0)
}

// ParseIoctlResponse decodes an IOCTL reply. [MS-SMB2] 2.2.32
func ParseIoctlResponse(msg []byte) (IoctlResponse, error) {
	r, off, err := ParseIoctlResponseFixed(msg, len(msg))
	if err != nil {
		return r, err
	}
	r.Output, err = span(msg, "IOCTL", IoctlResponseFixed, uint64(off), uint64(r.OutputCount))
	return r, err
}

// ParseIoctlResponseFixed decodes the fixed part of an IOCTL reply, which may be all of msg that has arrived, and returns
// the offset of the output from the header. total is the length of the whole message: the output must lie within it.
func ParseIoctlResponseFixed(msg []byte, total int) (IoctlResponse, int, error) {
	var r IoctlResponse
	b, err := body(msg, "IOCTL", 49, IoctlResponseFixed)
	if err != nil {
		return r, 0, err
	}
	r.CtlCode = le.Uint32(b[4:])
	r.FileID = fileID(b[8:])
	off, n := uint64(le.Uint32(b[32:])), uint64(le.Uint32(b[36:]))
	r.OutputCount = uint32(n)
	r.Flags = le.Uint32(b[40:])
	if n == 0 {
		return r, HeaderSize + IoctlResponseFixed, nil
	}
	if off < HeaderSize+IoctlResponseFixed || off+n > uint64(total) {
		return r, 0, malformed("IOCTL reply has %d bytes of output at %d in a message of %d", n, off, total)
	}
	return r, int(off), nil
}

// Append appends the body of a QUERY_DIRECTORY request. [MS-SMB2] 2.2.33
func (r *QueryDirectoryRequest) Append(b []byte) []byte {
	at := len(b)
	b = le.AppendUint16(b, 33)
	b = append(b, r.InfoClass, r.Flags)
	b = le.AppendUint32(b, r.FileIndex)
	b = appendFileID(b, r.FileID)
	b = le.AppendUint16(b, HeaderSize+32)
	b = le.AppendUint16(b, 0) // FileNameLength
	b = le.AppendUint32(b, r.OutputBufferLength)
	b = AppendName(b, r.Pattern)
	n := len(b) - at - 32
	le.PutUint16(b[at+26:], uint16(n))
	if n == 0 {
		b = append(b, 0)
	}
	return b
}

// ParseOutputResponse decodes the reply of QUERY_DIRECTORY, CHANGE_NOTIFY or QUERY_INFO. [MS-SMB2] 2.2.34, 2.2.36, 2.2.38
func ParseOutputResponse(msg []byte) (OutputResponse, error) {
	var r OutputResponse
	b, err := body(msg, "query", 9, 8)
	if err != nil {
		return r, err
	}
	r.Buffer, err = span(msg, "query", 8, uint64(le.Uint16(b[2:])), uint64(le.Uint32(b[4:])))
	return r, err
}

// Append appends the body of a CHANGE_NOTIFY request. [MS-SMB2] 2.2.35
func (r *ChangeNotifyRequest) Append(b []byte) []byte {
	b = le.AppendUint16(b, 32)
	b = le.AppendUint16(b, r.Flags)
	b = le.AppendUint32(b, r.OutputBufferLength)
	b = appendFileID(b, r.FileID)
	b = le.AppendUint32(b, r.CompletionFilter)
	return le.AppendUint32(b, 0)
}

// Append appends the body of a QUERY_INFO request. [MS-SMB2] 2.2.37
func (r *QueryInfoRequest) Append(b []byte) []byte {
	b = le.AppendUint16(b, 41)
	b = append(b, r.InfoType, r.FileInfoClass)
	b = le.AppendUint32(b, r.OutputBufferLength)
	off := uint16(0)
	if len(r.Input) > 0 {
		off = HeaderSize + 40
	}
	b = le.AppendUint16(b, off)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, uint32(len(r.Input)))
	b = le.AppendUint32(b, r.AdditionalInformation)
	b = le.AppendUint32(b, r.Flags)
	b = appendFileID(b, r.FileID)
	if len(r.Input) == 0 {
		return append(b, 0)
	}
	return append(b, r.Input...)
}

// Append appends the body of a SET_INFO request. [MS-SMB2] 2.2.39
func (r *SetInfoRequest) Append(b []byte) []byte {
	b = le.AppendUint16(b, 33)
	b = append(b, r.InfoType, r.FileInfoClass)
	b = le.AppendUint32(b, uint32(len(r.Buffer)))
	b = le.AppendUint16(b, HeaderSize+32)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, r.AdditionalInformation)
	b = appendFileID(b, r.FileID)
	return append(b, r.Buffer...)
}
