package server

import (
	"golang.org/x/sys/unix"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// queryInfo handles QUERY_INFO. [MS-SMB2] 3.3.5.20
func (r *request) queryInfo() ntstatus.Status {
	req, err := wire.ParseQueryInfoRequest(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter
	}
	if st := r.findOpen(req.FileID); st != ntstatus.Success {
		return st
	}
	o := r.file
	if req.OutputBufferLength > uint32(r.c.srv.lim.MaxIO) || !r.checkCharge(max(req.OutputBufferLength, uint32(len(req.Input)))) {
		return ntstatus.InvalidParameter
	}
	r.w.ensure(wire.OutputResponseFixed + 1024)
	at := len(r.body())
	r.commit(wire.OutputResponseFixed)
	begin := len(r.body())
	var st ntstatus.Status
	fixed := 0
	switch req.InfoType {
	case wire.InfoFile:
		fixed, st = r.queryFile(o, req)
	case wire.InfoFileSystem:
		fixed, st = r.queryFS(o, req)
	case wire.InfoSecurity:
		st = r.querySecurity(o, req)
	case wire.InfoQuota:
		st = ntstatus.NotSupported
	default:
		st = ntstatus.InvalidParameter
	}
	if st != ntstatus.Success {
		return st
	}
	b := r.body()
	n := len(b) - begin
	if limit := int(req.OutputBufferLength); n > limit {
		switch {
		case req.InfoType == wire.InfoSecurity:
			// The client is told how much it needs. [MS-SMB2] 3.3.5.20.3
			r.resetBody()
			e := wire.ErrorResponse{Data: le.AppendUint32(nil, uint32(n))}
			if r.c.dialect == wire.Dialect311 {
				e.ContextCount = 1
				e.Data = append(le.AppendUint32(le.AppendUint32(nil, 4), 0), e.Data...)
			}
			r.keepBody = true
			r.setBody(e.Append(r.body()))
			return ntstatus.BufferTooSmall
		case limit < fixed:
			return ntstatus.InfoLengthMismatch
		}
		n = limit
		r.setBody(b[:begin+n])
		r.keepBody = true
		st = ntstatus.BufferOverflow
	}
	wire.AppendOutputResponse(b[:at], n)
	return st
}

// queryFile appends a file information structure. fixed is what the client's buffer must hold at least. [MS-FSCC] 2.4
func (r *request) queryFile(o *open, req *wire.QueryInfoRequest) (fixed int, st ntstatus.Status) {
	if o.pipe != nil {
		return r.queryPipe(o, req)
	}
	sh := r.tree.share
	b := r.body()
	need := func(access uint32) bool { return o.granted&access == access }
	var m meta
	switch req.FileInfoClass {
	case fscc.FileAccessInformation, fscc.FilePositionInformation, fscc.FileModeInformation, fscc.FileAlignmentInformation, fscc.FileEaInformation:
	default:
		if st := r.statOpen(o, &m); st != ntstatus.Success {
			return 0, st
		}
	}
	switch req.FileInfoClass {
	case fscc.FileBasicInformation:
		if !need(wire.AccessReadAttributes) {
			return 0, ntstatus.AccessDenied
		}
		i := m.basic()
		b, fixed = i.Append(b), 40
	case fscc.FileStandardInformation:
		i := o.standard(&m)
		b, fixed = i.Append(b), 24
	case fscc.FileInternalInformation:
		b, fixed = le.AppendUint64(b, m.key.ino), 8
	case fscc.FileEaInformation:
		b, fixed = le.AppendUint32(b, 0), 4
	case fscc.FileAccessInformation:
		b, fixed = le.AppendUint32(b, o.granted), 4
	case fscc.FilePositionInformation:
		b, fixed = le.AppendUint64(b, o.position.Load()), 8
	case fscc.FileModeInformation:
		b, fixed = le.AppendUint32(b, o.mode()), 4
	case fscc.FileAlignmentInformation:
		b, fixed = le.AppendUint32(b, 0), 4
	case fscc.FileAllInformation:
		if !need(wire.AccessReadAttributes) {
			return 0, ntstatus.AccessDenied
		}
		i := fscc.AllInfo{Basic: m.basic(), Standard: o.standard(&m), FileID: m.key.ino, AccessFlags: o.granted,
			Position: int64(o.position.Load()), Mode: o.mode(), Name: `\` + wireName(o.currentRel())}
		r.w.ensure(1024 + 2*len(i.Name))
		b, fixed = i.Append(r.body()), 104
	case fscc.FileNetworkOpenInformation:
		if !need(wire.AccessReadAttributes) {
			return 0, ntstatus.AccessDenied
		}
		i := fscc.NetworkOpenInfo{CreationTime: m.creation, LastAccessTime: m.lastAccess, LastWriteTime: m.lastWrite, ChangeTime: m.change,
			AllocationSize: m.alloc, EndOfFile: m.size, Attributes: m.attrs()}
		b, fixed = i.Append(b), 56
	case fscc.FileAttributeTagInformation:
		if !need(wire.AccessReadAttributes) {
			return 0, ntstatus.AccessDenied
		}
		b, fixed = le.AppendUint32(le.AppendUint32(b, m.attrs()), 0), 8
	case fscc.FileCompressionInformation:
		b = le.AppendUint64(b, uint64(m.size))
		b, fixed = append(b, 0, 0, 0, 0, 0, 0, 0, 0), 16
	case fscc.FileStreamInformation:
		if o.dir {
			return 0, ntstatus.Success // a directory has no stream
		}
		b, fixed = fscc.AppendStreams(b, []fscc.StreamInfo{{Size: m.size, AllocationSize: m.alloc, Name: "::$DATA"}}), 32
	case fscc.FileNormalizedNameInformation:
		if r.c.dialect < wire.Dialect311 {
			return 0, ntstatus.NotSupported
		}
		name := wireName(o.currentRel())
		r.w.ensure(64 + 2*len(name))
		b, fixed = fscc.AppendName(r.body(), name), 8
	case fscc.FileNameInformation:
		name := `\` + wireName(o.currentRel())
		r.w.ensure(64 + 2*len(name))
		b, fixed = fscc.AppendName(r.body(), name), 8
	case fscc.FileIdInformation:
		b = le.AppendUint64(b, m.key.dev)
		b = le.AppendUint64(b, m.key.ino)
		b, fixed = le.AppendUint64(b, 0), 24
	case fscc.FileAlternateNameInformation:
		return 0, ntstatus.ObjectNameNotFound // no short names are made
	case fscc.FileFullEaInformation:
		return 0, ntstatus.EAsNotSupported
	case fscc.FilePipeInformation:
		return 0, ntstatus.InvalidParameter
	default:
		return 0, ntstatus.InvalidInfoClass
	}
	_ = sh
	if o.isDisk && fixed > int(req.OutputBufferLength) {
		switch req.FileInfoClass {
		case fscc.FileStandardInformation, fscc.FileNetworkOpenInformation, fscc.FileEndOfFileInformation:
			return 0, ntstatus.BufferTooSmall // [MS-RSVD] 3.2.5.8
		}
	}
	r.setBody(b)
	return fixed, ntstatus.Success
}

// statOpen fills in m for an open. The size of a shared virtual disk is that of the disk.
func (r *request) statOpen(o *open, m *meta) ntstatus.Status {
	sh := r.tree.share
	if !o.isDisk {
		return statusOf(sh.statAt(o.fd, "", m))
	}
	fd, err := sh.openBeneath(o.currentRel(), unix.O_PATH, 0)
	if err != nil {
		return statusOf(err)
	}
	defer unix.Close(fd)
	if err := sh.statAt(fd, "", m); err != nil {
		return statusOf(err)
	}
	m.size = o.disk.Size()
	return ntstatus.Success
}

func (m *meta) basic() fscc.BasicInfo {
	return fscc.BasicInfo{CreationTime: m.creation, LastAccessTime: m.lastAccess, LastWriteTime: m.lastWrite, ChangeTime: m.change, Attributes: m.attrs()}
}

func (o *open) standard(m *meta) fscc.StandardInfo {
	i := fscc.StandardInfo{AllocationSize: m.alloc, EndOfFile: m.size, Links: m.links, Directory: m.isDir()}
	o.obj.mu.Lock()
	i.DeletePending = o.obj.deletePending
	o.obj.mu.Unlock()
	if i.DeletePending && i.Links > 0 {
		i.Links--
	}
	return i
}

func (o *open) mode() uint32 {
	return (o.options | o.modeBits.Load()) & (wire.OptWriteThrough | wire.OptSequentialOnly | wire.OptNoIntermediateBuffering | wire.OptDeleteOnClose | wire.OptSynchronousIOAlert | wire.OptSynchronousIONonalert)
}

// queryPipe answers the classes that RPC clients ask for.
func (r *request) queryPipe(o *open, req *wire.QueryInfoRequest) (int, ntstatus.Status) {
	if req.FileInfoClass != fscc.FileStandardInformation {
		return 0, ntstatus.InvalidInfoClass
	}
	i := fscc.StandardInfo{AllocationSize: 4096, Links: 1, DeletePending: true}
	r.setBody(i.Append(r.body()))
	return 24, ntstatus.Success
}

// queryFS appends a file system information structure. [MS-FSCC] 2.5
func (r *request) queryFS(o *open, req *wire.QueryInfoRequest) (fixed int, st ntstatus.Status) {
	sh := r.tree.share
	if sh.ipc {
		return 0, ntstatus.InvalidDeviceRequest
	}
	var fs unix.Statfs_t
	for {
		err := unix.Fstatfs(sh.root, &fs)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, statusOf(err)
		}
		break
	}
	const sector = 512
	unit := max(uint32(fs.Frsize), sector)
	b := r.body()
	switch req.FileInfoClass {
	case fscc.FileFsVolumeInformation:
		var m meta
		if err := sh.statAt(sh.root, "", &m); err != nil {
			return 0, statusOf(err)
		}
		i := fscc.FSVolumeInfo{CreationTime: m.creation, SerialNumber: uint32(m.key.dev>>32)<<16 ^ uint32(m.key.dev), Label: sh.cfg.Name}
		b, fixed = i.Append(b), 24
	case fscc.FileFsSizeInformation:
		i := fscc.FSSizeInfo{TotalUnits: int64(fs.Blocks), AvailableUnits: int64(fs.Bavail), SectorsPerUnit: unit / sector, BytesPerSector: sector}
		b, fixed = i.Append(b), 24
	case fscc.FileFsFullSizeInformation:
		i := fscc.FSFullSizeInfo{TotalUnits: int64(fs.Blocks), CallerAvailableUnits: int64(fs.Bavail), ActualAvailableUnits: int64(fs.Bfree),
			SectorsPerUnit: unit / sector, BytesPerSector: sector}
		b, fixed = i.Append(b), 32
	case fscc.FileFsDeviceInformation:
		const disk, mounted, readOnly = 7, 0x20, 0x02
		c := uint32(mounted)
		if sh.cfg.ReadOnly {
			c |= readOnly
		}
		b, fixed = fscc.AppendFSDevice(b, disk, c), 8
	case fscc.FileFsAttributeInformation:
		i := fscc.FSAttributeInfo{Attributes: fscc.FSCasePreserved | fscc.FSUnicode | fscc.FSSparseFiles | fscc.FSHardLinks, MaxNameLength: 255, Name: "NTFS"}
		if sh.cfg.ReadOnly {
			i.Attributes |= fscc.FSReadOnlyVolume
		}
		b, fixed = i.Append(b), 16
	case fscc.FileFsObjectIdInformation:
		b = append(b, r.c.srv.guid[:]...)
		b, fixed = append(b, make([]byte, 48)...), 64
	case fscc.FileFsSectorSizeInformation:
		i := fscc.FSSectorSizeInfo{Logical: sector, PhysicalForAtomicity: unit, PhysicalForPerformance: unit, EffectiveForAtomicity: unit,
			Flags: fscc.SectorAlignedDevice | fscc.SectorPartitionAligned}
		b, fixed = i.Append(b), 28
	case fscc.FileFsControlInformation:
		b, fixed = append(b, make([]byte, 48)...), 48
	default:
		return 0, ntstatus.InvalidInfoClass
	}
	r.setBody(b)
	return fixed, ntstatus.Success
}

// Parts of a security descriptor that can be asked for. [MS-SMB2] 2.2.37
const (
	secOwner = 1
	secGroup = 2
	secDACL  = 4
	secSACL  = 8
)

// querySecurity appends a security descriptor that says what is true: whoever may use the share may do everything (on a share that is
// read-only: read), and owner and group are those of the Linux file, as "Unix users" and "Unix groups". [MS-DTYP] 2.4.6
func (r *request) querySecurity(o *open, req *wire.QueryInfoRequest) ntstatus.Status {
	if o.pipe != nil {
		return ntstatus.NotSupported
	}
	want := req.AdditionalInformation
	if want&(secOwner|secGroup|secDACL) != 0 && o.granted&wire.AccessReadControl == 0 {
		return ntstatus.AccessDenied
	}
	if want&secSACL != 0 && o.granted&wire.AccessSystemSecurity == 0 {
		return ntstatus.AccessDenied
	}
	var st unix.Stat_t
	if !o.isDisk {
		if err := unix.Fstat(o.fd, &st); err != nil {
			return statusOf(err)
		}
	}
	b := r.body()
	at := len(b)
	const selfRelative, daclPresent = 0x8000, 0x0004
	b = append(b, 1, 0, 0, 0)
	b = append(b, make([]byte, 16)...)
	control := uint16(selfRelative)
	if want&secOwner != 0 {
		le.PutUint32(b[at+4:], uint32(len(b)-at))
		b = appendSID(b, 22, 1, st.Uid)
	}
	if want&secGroup != 0 {
		le.PutUint32(b[at+8:], uint32(len(b)-at))
		b = appendSID(b, 22, 2, st.Gid)
	}
	if want&secDACL != 0 {
		control |= daclPresent
		le.PutUint32(b[at+16:], uint32(len(b)-at))
		flags := byte(0)
		if o.dir {
			flags = 3 // inherited by files and directories below
		}
		b = append(b, 2, 0, 28, 0, 1, 0, 0, 0) // one entry
		b = append(b, 0, flags, 20, 0)         // that allows
		b = le.AppendUint32(b, r.tree.access)
		b = appendSID(b, 1, 0) // Everyone
	}
	le.PutUint16(b[at+2:], control)
	r.setBody(b)
	return ntstatus.Success
}

// appendSID appends S-1-authority-sub…
func appendSID(b []byte, authority byte, sub ...uint32) []byte {
	b = append(b, 1, byte(len(sub)), 0, 0, 0, 0, 0, authority)
	for _, s := range sub {
		b = le.AppendUint32(b, s)
	}
	return b
}
