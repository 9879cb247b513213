package wire

func srvFileID(b []byte) FileID {
	return FileID{Persistent: le.Uint64(b), Volatile: le.Uint64(b[8:])}
}

func srvAppendFileID(b []byte, id FileID) []byte {
	b = le.AppendUint64(b, id.Persistent)
	return le.AppendUint64(b, id.Volatile)
}

// ParseCreateRequest decodes [MS-SMB2] 2.2.13 with its create contexts.
func ParseCreateRequest(msg []byte) (*CreateRequest, error) {
	const fixed = 56
	b, err := srvBody(msg, "CREATE request", 57, fixed)
	if err != nil {
		return nil, err
	}
	r := &CreateRequest{OplockLevel: b[3], Impersonation: le.Uint32(b[4:]), DesiredAccess: le.Uint32(b[24:]),
		FileAttributes: le.Uint32(b[28:]), ShareAccess: le.Uint32(b[32:]), Disposition: le.Uint32(b[36:]), Options: le.Uint32(b[40:])}
	raw, err := srvSlice(msg, "CREATE name", uint32(le.Uint16(b[44:])), uint32(le.Uint16(b[46:])), fixed)
	if err != nil {
		return nil, err
	}
	if r.Name, err = srvString(raw, "CREATE name"); err != nil {
		return nil, err
	}
	ctx, err := srvSlice(msg, "CREATE contexts", le.Uint32(b[48:]), le.Uint32(b[52:]), fixed)
	if err != nil {
		return nil, err
	}
	if r.Contexts, err = srvCreateContexts(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// srvCreateContexts decodes a chain of create contexts. [MS-SMB2] 2.2.13.2
func srvCreateContexts(b []byte) ([]CreateContext, error) {
	var out []CreateContext
	for len(b) > 0 {
		if len(b) < 16 {
			return nil, malformed("create context of %d bytes", len(b))
		}
		next := uint64(le.Uint32(b))
		one := b
		if next != 0 {
			if next < 16 || next&7 != 0 || next > uint64(len(b)) {
				return nil, malformed("create context says that the next one is at %d of %d", next, len(b))
			}
			one = b[:next]
		}
		nameOff, nameLen := uint64(le.Uint16(b[4:])), uint64(le.Uint16(b[6:]))
		dataOff, dataLen := uint64(le.Uint16(b[10:])), uint64(le.Uint32(b[12:]))
		if nameLen < 4 || nameOff < 16 || nameOff+nameLen > uint64(len(one)) {
			return nil, malformed("create context name at %d, %d bytes, in %d", nameOff, nameLen, len(one))
		}
		c := CreateContext{Name: string(one[nameOff : nameOff+nameLen])}
		if dataLen != 0 {
			if dataOff < nameOff+nameLen || dataOff&7 != 0 || dataOff+dataLen > uint64(len(one)) {
				return nil, malformed("create context data at %d, %d bytes, in %d", dataOff, dataLen, len(one))
			}
			c.Data = one[dataOff : dataOff+dataLen : dataOff+dataLen]
		}
		out = append(out, c)
		if next == 0 {
			break
		}
		b = b[next:]
		if len(b) == 0 {
			return nil, malformed("create context chain ends behind its buffer")
		}
	}
	return out, nil
}

// Append appends the body of [MS-SMB2] 2.2.14.
func (r *CreateResponse) Append(b []byte) []byte {
	start := len(b)
	const fixed = 88
	b = le.AppendUint16(b, 89)
	b = append(b, r.OplockLevel, r.Flags)
	b = le.AppendUint32(b, r.Action)
	b = le.AppendUint64(b, r.CreationTime)
	b = le.AppendUint64(b, r.LastAccessTime)
	b = le.AppendUint64(b, r.LastWriteTime)
	b = le.AppendUint64(b, r.ChangeTime)
	b = le.AppendUint64(b, r.AllocationSize)
	b = le.AppendUint64(b, r.EndOfFile)
	b = le.AppendUint32(b, r.FileAttributes)
	b = le.AppendUint32(b, 0)
	b = srvAppendFileID(b, r.FileID)
	if len(r.Contexts) == 0 {
		return srvZero(b, 8)
	}
	b = le.AppendUint32(b, HeaderSize+fixed)
	lenAt := len(b)
	b = le.AppendUint32(b, 0)
	for i, c := range r.Contexts {
		at := len(b)
		dataOff := (16 + len(c.Name) + 7) &^ 7
		b = le.AppendUint32(b, 0)
		b = le.AppendUint16(b, 16)
		b = le.AppendUint16(b, srvLen16(len(c.Name)))
		b = le.AppendUint16(b, 0)
		if len(c.Data) == 0 {
			b = le.AppendUint16(b, 0)
		} else {
			b = le.AppendUint16(b, uint16(dataOff))
		}
		b = le.AppendUint32(b, uint32(len(c.Data)))
		b = append(b, c.Name...)
		if len(c.Data) > 0 {
			b = srvZero(b, at+dataOff-len(b))
			b = append(b, c.Data...)
		}
		if i < len(r.Contexts)-1 {
			b = srvPad(b, start)
			le.PutUint32(b[at:], uint32(len(b)-at))
		}
	}
	le.PutUint32(b[lenAt:], uint32(len(b)-start-fixed))
	return b
}

// ParseCloseRequest decodes [MS-SMB2] 2.2.15.
func ParseCloseRequest(msg []byte) (CloseRequest, error) {
	b, err := srvBody(msg, "CLOSE request", 24, 24)
	if err != nil {
		return CloseRequest{}, err
	}
	return CloseRequest{Flags: le.Uint16(b[2:]), FileID: srvFileID(b[8:])}, nil
}

// Append appends the body of [MS-SMB2] 2.2.16.
func (r *CloseResponse) Append(b []byte) []byte {
	b = le.AppendUint16(b, 60)
	b = le.AppendUint16(b, r.Flags)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, r.CreationTime)
	b = le.AppendUint64(b, r.LastAccessTime)
	b = le.AppendUint64(b, r.LastWriteTime)
	b = le.AppendUint64(b, r.ChangeTime)
	b = le.AppendUint64(b, r.AllocationSize)
	b = le.AppendUint64(b, r.EndOfFile)
	return le.AppendUint32(b, r.FileAttributes)
}

// ParseFlushRequest decodes [MS-SMB2] 2.2.17.
func ParseFlushRequest(msg []byte) (FlushRequest, error) {
	b, err := srvBody(msg, "FLUSH request", 24, 24)
	if err != nil {
		return FlushRequest{}, err
	}
	return FlushRequest{FileID: srvFileID(b[8:])}, nil
}

// ParseReadRequest decodes [MS-SMB2] 2.2.19.
func ParseReadRequest(msg []byte) (ReadRequest, error) {
	const fixed = 48
	b, err := srvBody(msg, "READ request", 49, fixed)
	if err != nil {
		return ReadRequest{}, err
	}
	r := ReadRequest{Padding: b[2], Flags: b[3], Length: le.Uint32(b[4:]), Offset: le.Uint64(b[8:]), FileID: srvFileID(b[16:]),
		MinimumCount: le.Uint32(b[32:]), Channel: le.Uint32(b[36:]), RemainingBytes: le.Uint32(b[40:])}
	if r.Channel != ChannelNone {
		r.ChannelInfo, err = srvSlice(msg, "READ channel", uint32(le.Uint16(b[44:])), uint32(le.Uint16(b[46:])), fixed)
		if err != nil {
			return ReadRequest{}, err
		}
	}
	return r, nil
}

// Append appends the fixed part of [MS-SMB2] 2.2.20; the data follow.
func (r *ReadResponse) Append(b []byte) []byte {
	b = le.AppendUint16(b, 17)
	b = append(b, r.DataOffset, 0)
	b = le.AppendUint32(b, r.DataLength)
	b = le.AppendUint32(b, r.DataRemaining)
	return le.AppendUint32(b, r.Flags)
}

// ParseWriteRequest decodes [MS-SMB2] 2.2.21 and checks that the data lie inside msg, behind the fixed part.
func ParseWriteRequest(msg []byte) (WriteRequest, error) {
	b, err := srvBody(msg, "WRITE request", 49, WriteRequestFixed)
	if err != nil {
		return WriteRequest{}, err
	}
	r := WriteRequest{DataOffset: le.Uint16(b[2:]), Length: le.Uint32(b[4:]), Offset: le.Uint64(b[8:]), FileID: srvFileID(b[16:]),
		Channel: le.Uint32(b[32:]), RemainingBytes: le.Uint32(b[36:]), Flags: le.Uint32(b[44:])}
	if r.Channel != ChannelNone {
		r.ChannelInfo, err = srvSlice(msg, "WRITE channel", uint32(le.Uint16(b[40:])), uint32(le.Uint16(b[42:])), WriteRequestFixed)
		if err != nil {
			return WriteRequest{}, err
		}
	}
	if _, err = srvSlice(msg, "WRITE data", uint32(r.DataOffset), r.Length, WriteRequestFixed); err != nil {
		return WriteRequest{}, err
	}
	if r.Length == 0 {
		r.DataOffset = HeaderSize + WriteRequestFixed
		if int(r.DataOffset) > len(msg) {
			return WriteRequest{}, malformed("WRITE request is cut off")
		}
	}
	return r, nil
}

// Append appends the body of [MS-SMB2] 2.2.22.
func (r *WriteResponse) Append(b []byte) []byte {
	b = le.AppendUint16(b, 17)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, r.Count)
	b = le.AppendUint32(b, r.Remaining)
	return le.AppendUint32(b, 0)
}

// ParseLockRequest decodes [MS-SMB2] 2.2.26.
func ParseLockRequest(msg []byte) (*LockRequest, error) {
	b, err := srvBody(msg, "LOCK request", 48, 24)
	if err != nil {
		return nil, err
	}
	n := int(le.Uint16(b[2:]))
	if n == 0 || len(b) < 24+24*n {
		return nil, malformed("LOCK request has %d bytes for %d locks", len(b)-24, n)
	}
	r := &LockRequest{LockSequence: le.Uint32(b[4:]), FileID: srvFileID(b[8:]), Locks: make([]LockElement, n)}
	for i := range r.Locks {
		e := b[24+24*i:]
		r.Locks[i] = LockElement{Offset: le.Uint64(e), Length: le.Uint64(e[8:]), Flags: le.Uint32(e[16:])}
	}
	return r, nil
}
