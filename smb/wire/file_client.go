package wire

// Append appends the body of a CREATE request. [MS-SMB2] 2.2.13
func (r *CreateRequest) Append(b []byte) []byte {
	start := len(b) - HeaderSize
	at := len(b)
	b = le.AppendUint16(b, 57)
	b = append(b, 0, r.OplockLevel)
	b = le.AppendUint32(b, r.Impersonation)
	b = le.AppendUint64(b, 0) // SmbCreateFlags
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, r.DesiredAccess)
	b = le.AppendUint32(b, r.FileAttributes)
	b = le.AppendUint32(b, r.ShareAccess)
	b = le.AppendUint32(b, r.Disposition)
	b = le.AppendUint32(b, r.Options)
	b = le.AppendUint16(b, HeaderSize+56)
	b = le.AppendUint16(b, 0) // NameLength
	b = le.AppendUint64(b, 0) // CreateContextsOffset, CreateContextsLength
	b = AppendName(b, r.Name)
	n := len(b) - at - 56
	le.PutUint16(b[at+46:], uint16(n))
	if len(r.Contexts) == 0 {
		if n == 0 {
			b = append(b, 0) // the buffer has at least one byte
		}
		return b
	}
	b = pad8(b, start)
	first := len(b)
	for i := range r.Contexts {
		last := i == len(r.Contexts)-1
		b = appendCreateContext(b, start, &r.Contexts[i], last)
	}
	le.PutUint32(b[at+48:], uint32(first-start))
	le.PutUint32(b[at+52:], uint32(len(b)-first))
	return b
}

// appendCreateContext: Next 4, NameOffset 2, NameLength 2, Reserved 2, DataOffset 2, DataLength 4, name, data; name and data
// each begin on a multiple of 8. [MS-SMB2] 2.2.13.2
func appendCreateContext(b []byte, start int, c *CreateContext, last bool) []byte {
	at := len(b)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint16(b, 16)
	b = le.AppendUint16(b, uint16(len(c.Name)))
	b = le.AppendUint32(b, 0) // Reserved, DataOffset
	b = le.AppendUint32(b, uint32(len(c.Data)))
	b = append(b, c.Name...)
	if len(c.Data) > 0 {
		b = pad8(b, start)
		le.PutUint16(b[at+10:], uint16(len(b)-at))
		b = append(b, c.Data...)
	}
	if !last {
		b = pad8(b, start)
		le.PutUint32(b[at:], uint32(len(b)-at))
	}
	return b
}

// maxCreateContexts bounds the contexts of a reply; no request asks for that many.
const maxCreateContexts = 64

// ParseCreateResponse decodes a CREATE reply. [MS-SMB2] 2.2.14
func ParseCreateResponse(msg []byte) (CreateResponse, error) {
	var r CreateResponse
	const fixed = 88
	b, err := body(msg, "CREATE", 89, fixed)
	if err != nil {
		return r, err
	}
	r.OplockLevel = b[2]
	r.Flags = b[3]
	r.Action = le.Uint32(b[4:])
	r.CreationTime = le.Uint64(b[8:])
	r.LastAccessTime = le.Uint64(b[16:])
	r.LastWriteTime = le.Uint64(b[24:])
	r.ChangeTime = le.Uint64(b[32:])
	r.AllocationSize = le.Uint64(b[40:])
	r.EndOfFile = le.Uint64(b[48:])
	r.FileAttributes = le.Uint32(b[56:])
	r.FileID = fileID(b[64:])
	list, err := span(msg, "CREATE contexts", fixed, uint64(le.Uint32(b[80:])), uint64(le.Uint32(b[84:])))
	if err != nil || len(list) == 0 {
		return r, err
	}
	r.Contexts, err = parseCreateContexts(list)
	return r, err
}

func parseCreateContexts(list []byte) ([]CreateContext, error) {
	var out []CreateContext
	for {
		if len(list) < 16 {
			return nil, malformed("create context of %d bytes", len(list))
		}
		next := uint64(le.Uint32(list))
		c := list
		if next != 0 {
			if next < 16 || next&7 != 0 || next > uint64(len(list)) {
				return nil, malformed("create context has Next %d of %d bytes", next, len(list))
			}
			c = list[:next]
		}
		nameOff, nameLen := uint64(le.Uint16(c[4:])), uint64(le.Uint16(c[6:]))
		dataOff, dataLen := uint64(le.Uint16(c[10:])), uint64(le.Uint32(c[12:]))
		if nameOff < 16 || nameOff+nameLen > uint64(len(c)) {
			return nil, malformed("create context name of %d bytes at %d in %d", nameLen, nameOff, len(c))
		}
		e := CreateContext{Name: string(c[nameOff : nameOff+nameLen])}
		if dataLen > 0 {
			if dataOff < 16 || dataOff+dataLen > uint64(len(c)) {
				return nil, malformed("create context data of %d bytes at %d in %d", dataLen, dataOff, len(c))
			}
			e.Data = c[dataOff : dataOff+dataLen : dataOff+dataLen]
		}
		if len(out) == maxCreateContexts {
			return nil, malformed("more than %d create contexts", maxCreateContexts)
		}
		out = append(out, e)
		if next == 0 {
			return out, nil
		}
		list = list[next:]
	}
}

// Append appends the body of a CLOSE request. [MS-SMB2] 2.2.15
func (r *CloseRequest) Append(b []byte) []byte {
	b = le.AppendUint16(b, 24)
	b = le.AppendUint16(b, r.Flags)
	b = le.AppendUint32(b, 0)
	return appendFileID(b, r.FileID)
}

// ParseCloseResponse decodes a CLOSE reply. [MS-SMB2] 2.2.16
func ParseCloseResponse(msg []byte) (CloseResponse, error) {
	b, err := body(msg, "CLOSE", 60, 60)
	if err != nil {
		return CloseResponse{}, err
	}
	return CloseResponse{
		Flags:          le.Uint16(b[2:]),
		CreationTime:   le.Uint64(b[8:]),
		LastAccessTime: le.Uint64(b[16:]),
		LastWriteTime:  le.Uint64(b[24:]),
		ChangeTime:     le.Uint64(b[32:]),
		AllocationSize: le.Uint64(b[40:]),
		EndOfFile:      le.Uint64(b[48:]),
		FileAttributes: le.Uint32(b[56:]),
	}, nil
}

// Append appends the body of a FLUSH request. [MS-SMB2] 2.2.17
func (r *FlushRequest) Append(b []byte) []byte {
	b = le.AppendUint16(b, 24)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, 0)
	return appendFileID(b, r.FileID)
}

// Append appends the body of a READ request. [MS-SMB2] 2.2.19
func (r *ReadRequest) Append(b []byte) []byte {
	b = le.AppendUint16(b, 49)
	b = append(b, r.Padding, r.Flags)
	b = le.AppendUint32(b, r.Length)
	b = le.AppendUint64(b, r.Offset)
	b = appendFileID(b, r.FileID)
	b = le.AppendUint32(b, r.MinimumCount)
	b = le.AppendUint32(b, r.Channel)
	b = le.AppendUint32(b, r.RemainingBytes)
	if len(r.ChannelInfo) == 0 {
		return append(b, 0, 0, 0, 0, 0) // offset, length, and the one byte that the buffer has at least
	}
	b = le.AppendUint16(b, HeaderSize+48)
	b = le.AppendUint16(b, uint16(len(r.ChannelInfo)))
	return append(b, r.ChannelInfo...)
}

// ParseReadResponse decodes a READ reply's fixed part, which may be all of msg that has arrived. total is the length of
// the whole message: the data must lie within it, behind the fixed part. [MS-SMB2] 2.2.20
func ParseReadResponse(msg []byte, total int) (ReadResponse, error) {
	var r ReadResponse
	b, err := body(msg, "READ", 17, ReadResponseFixed)
	if err != nil {
		return r, err
	}
	r.DataOffset = b[2]
	r.DataLength = le.Uint32(b[4:])
	r.DataRemaining = le.Uint32(b[8:])
	r.Flags = le.Uint32(b[12:])
	if r.DataLength == 0 {
		return r, nil
	}
	if r.DataOffset < HeaderSize+ReadResponseFixed || uint64(r.DataOffset)+uint64(r.DataLength) > uint64(total) {
		return r, malformed("READ reply has %d bytes of data at %d in a message of %d", r.DataLength, r.DataOffset, total)
	}
	return r, nil
}

// Append appends the fixed part of a WRITE request (and the channel information, if any); the data follow. DataOffset
// is computed. [MS-SMB2] 2.2.21
func (r *WriteRequest) Append(b []byte) []byte {
	info := len(r.ChannelInfo)
	off := HeaderSize + WriteRequestFixed
	b = le.AppendUint16(b, 49)
	if info > 0 {
		b = le.AppendUint16(b, 0) // the data travel on the channel
	} else {
		b = le.AppendUint16(b, uint16(off))
	}
	b = le.AppendUint32(b, r.Length)
	b = le.AppendUint64(b, r.Offset)
	b = appendFileID(b, r.FileID)
	b = le.AppendUint32(b, r.Channel)
	b = le.AppendUint32(b, r.RemainingBytes)
	if info > 0 {
		b = le.AppendUint16(b, uint16(off))
		b = le.AppendUint16(b, uint16(info))
	} else {
		b = le.AppendUint32(b, 0)
	}
	b = le.AppendUint32(b, r.Flags)
	return append(b, r.ChannelInfo...)
}

// ParseWriteResponse decodes a WRITE reply. [MS-SMB2] 2.2.22
func ParseWriteResponse(msg []byte) (WriteResponse, error) {
	b, err := body(msg, "WRITE", 17, 16)
	if err != nil {
		return WriteResponse{}, err
	}
	return WriteResponse{Count: le.Uint32(b[4:]), Remaining: le.Uint32(b[8:])}, nil
}

// Append appends the body of a LOCK request. [MS-SMB2] 2.2.26
func (r *LockRequest) Append(b []byte) []byte {
	b = le.AppendUint16(b, 48)
	b = le.AppendUint16(b, uint16(len(r.Locks)))
	b = le.AppendUint32(b, r.LockSequence)
	b = appendFileID(b, r.FileID)
	for _, l := range r.Locks {
		b = le.AppendUint64(b, l.Offset)
		b = le.AppendUint64(b, l.Length)
		b = le.AppendUint32(b, l.Flags)
		b = le.AppendUint32(b, 0)
	}
	return b
}

// AppendOplockBreakAck appends the body of an oplock break acknowledgment. [MS-SMB2] 2.2.24.1
func AppendOplockBreakAck(b []byte, r OplockBreak) []byte {
	b = le.AppendUint16(b, 24)
	b = append(b, r.OplockLevel, 0)
	b = le.AppendUint32(b, 0)
	return appendFileID(b, r.FileID)
}

// ParseOplockBreakNotification decodes an oplock break notification or the reply to an acknowledgment. A lease
// break (StructureSize 44 or 36) is an error: see IsLeaseBreak. [MS-SMB2] 2.2.23.1, 2.2.25.1
func ParseOplockBreakNotification(msg []byte) (OplockBreak, error) {
	b, err := body(msg, "OPLOCK_BREAK", 24, 24)
	if err != nil {
		return OplockBreak{}, err
	}
	return OplockBreak{OplockLevel: b[2], FileID: fileID(b[8:])}, nil
}
