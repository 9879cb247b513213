package wire

// ParseIoctlRequest decodes [MS-SMB2] 2.2.31.
func ParseIoctlRequest(msg []byte) (IoctlRequest, error) {
	b, err := srvBody(msg, "IOCTL request", 57, IoctlRequestFixed)
	if err != nil {
		return IoctlRequest{}, err
	}
	r := IoctlRequest{CtlCode: le.Uint32(b[4:]), FileID: srvFileID(b[8:]), InputCount: le.Uint32(b[28:]),
		MaxInputResponse: le.Uint32(b[32:]), MaxOutputResponse: le.Uint32(b[44:]), Flags: le.Uint32(b[48:])}
	r.Input, err = srvSlice(msg, "IOCTL input", le.Uint32(b[24:]), r.InputCount, IoctlRequestFixed)
	if err != nil {
		return IoctlRequest{}, err
	}
	return r, nil
}

// Append appends the fixed part of [MS-SMB2] 2.2.32; the output follows.
func (r *IoctlResponse) Append(b []byte) []byte {
	const bufferAt = HeaderSize + IoctlResponseFixed
	b = le.AppendUint16(b, 49)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, r.CtlCode)
	b = srvAppendFileID(b, r.FileID)
	b = le.AppendUint32(b, bufferAt)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, bufferAt)
	b = le.AppendUint32(b, r.OutputCount)
	b = le.AppendUint32(b, r.Flags)
	return le.AppendUint32(b, 0)
}

// ParseQueryDirectoryRequest decodes [MS-SMB2] 2.2.33.
func ParseQueryDirectoryRequest(msg []byte) (*QueryDirectoryRequest, error) {
	const fixed = 32
	b, err := srvBody(msg, "QUERY_DIRECTORY request", 33, fixed)
	if err != nil {
		return nil, err
	}
	r := &QueryDirectoryRequest{InfoClass: b[2], Flags: b[3], FileIndex: le.Uint32(b[4:]), FileID: srvFileID(b[8:]),
		OutputBufferLength: le.Uint32(b[28:])}
	raw, err := srvSlice(msg, "QUERY_DIRECTORY pattern", uint32(le.Uint16(b[24:])), uint32(le.Uint16(b[26:])), fixed)
	if err != nil {
		return nil, err
	}
	if r.Pattern, err = srvString(raw, "QUERY_DIRECTORY pattern"); err != nil {
		return nil, err
	}
	return r, nil
}

// OutputResponseFixed is the length in bytes of an OutputResponse before its buffer.
const OutputResponseFixed = 8

// AppendOutputResponse appends the fixed part of an OutputResponse for n bytes, which follow. [MS-SMB2] 2.2.34, 2.2.36, 2.2.38
func AppendOutputResponse(b []byte, n int) []byte {
	b = le.AppendUint16(b, 9)
	if n == 0 {
		b = le.AppendUint16(b, 0)
	} else {
		b = le.AppendUint16(b, HeaderSize+OutputResponseFixed)
	}
	return le.AppendUint32(b, uint32(n))
}

// Append appends the body of [MS-SMB2] 2.2.34, 2.2.36 or 2.2.38.
func (r *OutputResponse) Append(b []byte) []byte {
	return append(AppendOutputResponse(b, len(r.Buffer)), r.Buffer...)
}

// ParseChangeNotifyRequest decodes [MS-SMB2] 2.2.35.
func ParseChangeNotifyRequest(msg []byte) (ChangeNotifyRequest, error) {
	b, err := srvBody(msg, "CHANGE_NOTIFY request", 32, 32)
	if err != nil {
		return ChangeNotifyRequest{}, err
	}
	return ChangeNotifyRequest{Flags: le.Uint16(b[2:]), OutputBufferLength: le.Uint32(b[4:]), FileID: srvFileID(b[8:]),
		CompletionFilter: le.Uint32(b[24:])}, nil
}

// ParseQueryInfoRequest decodes [MS-SMB2] 2.2.37.
func ParseQueryInfoRequest(msg []byte) (*QueryInfoRequest, error) {
	const fixed = 40
	b, err := srvBody(msg, "QUERY_INFO request", 41, fixed)
	if err != nil {
		return nil, err
	}
	r := &QueryInfoRequest{InfoType: b[2], FileInfoClass: b[3], OutputBufferLength: le.Uint32(b[4:]),
		AdditionalInformation: le.Uint32(b[16:]), Flags: le.Uint32(b[20:]), FileID: srvFileID(b[24:])}
	if r.Input, err = srvSlice(msg, "QUERY_INFO input", uint32(le.Uint16(b[8:])), le.Uint32(b[12:]), fixed); err != nil {
		return nil, err
	}
	return r, nil
}

// ParseSetInfoRequest decodes [MS-SMB2] 2.2.39.
func ParseSetInfoRequest(msg []byte) (*SetInfoRequest, error) {
	const fixed = 32
	b, err := srvBody(msg, "SET_INFO request", 33, fixed)
	if err != nil {
		return nil, err
	}
	r := &SetInfoRequest{InfoType: b[2], FileInfoClass: b[3], AdditionalInformation: le.Uint32(b[12:]), FileID: srvFileID(b[16:])}
	if r.Buffer, err = srvSlice(msg, "SET_INFO buffer", uint32(le.Uint16(b[8:])), le.Uint32(b[4:]), fixed); err != nil {
		return nil, err
	}
	return r, nil
}

// AppendSetInfoResponse appends the body of [MS-SMB2] 2.2.40.
func AppendSetInfoResponse(b []byte) []byte { return append(b, 2, 0) }

// ParseOplockBreakAck decodes the acknowledgement of an oplock break. A lease break's has StructureSize 36 and is not meant. [MS-SMB2] 2.2.24.1
func ParseOplockBreakAck(msg []byte) (OplockBreak, error) {
	b, err := srvBody(msg, "OPLOCK_BREAK acknowledgement", 24, 24)
	if err != nil {
		return OplockBreak{}, err
	}
	return OplockBreak{OplockLevel: b[2], FileID: srvFileID(b[8:])}, nil
}

// AppendOplockBreakResponse appends a notification or the reply to an acknowledgement. [MS-SMB2] 2.2.23.1, 2.2.25.1
func AppendOplockBreakResponse(b []byte, r OplockBreak) []byte {
	b = le.AppendUint16(b, 24)
	b = append(b, r.OplockLevel, 0, 0, 0, 0, 0)
	return srvAppendFileID(b, r.FileID)
}
