package server

import (
	"golang.org/x/sys/unix"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// setInfo handles SET_INFO. [MS-SMB2] 3.3.5.21
func (r *request) setInfo() ntstatus.Status {
	req, err := wire.ParseSetInfoRequest(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter
	}
	if st := r.findOpen(req.FileID); st != ntstatus.Success {
		return st
	}
	o := r.file
	switch {
	case len(req.Buffer) == 0 || len(req.Buffer) > r.c.srv.lim.MaxIO || !r.checkCharge(uint32(len(req.Buffer))):
		return ntstatus.InvalidParameter
	case o.pipe != nil:
		if req.InfoType == wire.InfoFile && req.FileInfoClass == fscc.FilePipeInformation {
			r.setBody(wire.AppendSetInfoResponse(r.body()))
			return ntstatus.Success // the pipe never blocks, whatever mode is wanted
		}
		return ntstatus.NotSupported
	}
	var st ntstatus.Status
	switch req.InfoType {
	case wire.InfoFile:
		if o.isDisk {
			st = setDisk(req.FileInfoClass)
		} else {
			st = r.setFile(o, req)
		}
	case wire.InfoFileSystem:
		st = ntstatus.NotSupported
		switch req.FileInfoClass {
		case fscc.FileFsVolumeInformation, fscc.FileFsSizeInformation, fscc.FileFsDeviceInformation, fscc.FileFsAttributeInformation,
			fscc.FileFsFullSizeInformation, fscc.FileFsSectorSizeInformation:
			st = ntstatus.InvalidInfoClass
		}
	case wire.InfoSecurity:
		st = r.setSecurity(o, req)
	case wire.InfoQuota:
		st = ntstatus.NotSupported
	default:
		st = ntstatus.InvalidParameter
	}
	if st == ntstatus.Success {
		r.setBody(wire.AppendSetInfoResponse(r.body()))
	}
	return st
}

// setDisk answers SET_INFO on a shared virtual disk. [MS-RSVD] 3.2.5.9
func setDisk(class uint8) ntstatus.Status {
	switch class {
	case fscc.FileLinkInformation:
		return ntstatus.InvalidParameter
	case fscc.FileRenameInformation, fscc.FileRenameInformationEx:
		return ntstatus.NotSupported
	}
	return ntstatus.NotSupported
}

func (r *request) setFile(o *open, req *wire.SetInfoRequest) ntstatus.Status {
	granted := func(access uint32) bool { return o.granted&access != 0 }
	switch req.FileInfoClass {
	case fscc.FileBasicInformation:
		if !granted(wire.AccessWriteAttributes) {
			return ntstatus.AccessDenied
		}
		return r.setBasic(o, req.Buffer)
	case fscc.FileEndOfFileInformation, fscc.FileAllocationInformation, fscc.FileValidDataLengthInformation:
		if !granted(wire.AccessWriteData) {
			return ntstatus.AccessDenied
		}
		return r.setSize(o, req.FileInfoClass, req.Buffer)
	case fscc.FileDispositionInformation:
		remove, err := fscc.ParseSetDisposition(req.Buffer)
		if err != nil {
			return statusOf(err)
		}
		if !granted(wire.AccessDelete) {
			return ntstatus.AccessDenied
		}
		return r.setDelete(o, remove, false, false)
	case fscc.FileDispositionInformationEx:
		flags, err := fscc.ParseSetUint32(req.Buffer)
		if err != nil {
			return statusOf(err)
		}
		if !granted(wire.AccessDelete) {
			return ntstatus.AccessDenied
		}
		return r.setDelete(o, flags&fscc.DispositionDelete != 0, flags&fscc.DispositionPosixSemantics != 0, flags&fscc.DispositionIgnoreReadonlyAttribute != 0)
	case fscc.FileRenameInformation, fscc.FileRenameInformationEx:
		ren, err := fscc.ParseSetRename(req.Buffer, req.FileInfoClass == fscc.FileRenameInformationEx)
		if err != nil {
			return statusOf(err)
		}
		if !granted(wire.AccessDelete) {
			return ntstatus.AccessDenied
		}
		if ren.RootDirectory != 0 || ren.Name == "" {
			return ntstatus.InvalidParameter
		}
		return r.rename(o, ren.Name, ren.ReplaceIfExists, ren.Flags&fscc.RenamePosixSemantics != 0)
	case fscc.FileLinkInformation:
		ren, err := fscc.ParseSetRename(req.Buffer, false)
		if err != nil {
			return statusOf(err)
		}
		if r.tree.share.cfg.ReadOnly {
			return ntstatus.AccessDenied
		}
		if ren.RootDirectory != 0 || ren.Name == "" {
			return ntstatus.InvalidParameter
		}
		return r.link(o, ren.Name, ren.ReplaceIfExists)
	case fscc.FilePositionInformation:
		v, err := fscc.ParseSetUint64(req.Buffer)
		if err != nil {
			return statusOf(err)
		}
		o.position.Store(v)
		return ntstatus.Success
	case fscc.FileModeInformation:
		mode, err := fscc.ParseSetUint32(req.Buffer)
		if err != nil {
			return statusOf(err)
		}
		const allowed = wire.OptWriteThrough | wire.OptSequentialOnly | wire.OptSynchronousIOAlert | wire.OptSynchronousIONonalert
		if mode&^allowed != 0 {
			return ntstatus.InvalidParameter
		}
		o.modeBits.Store(mode)
		return statusOf(r.c.srv.keep(o))
	case fscc.FileFullEaInformation:
		return ntstatus.EAsNotSupported
	case fscc.FileStandardInformation, fscc.FileInternalInformation, fscc.FileEaInformation, fscc.FileAccessInformation,
		fscc.FileAlignmentInformation, fscc.FileAllInformation, fscc.FileStreamInformation, fscc.FileNetworkOpenInformation,
		fscc.FileAttributeTagInformation, fscc.FileNormalizedNameInformation, fscc.FileNameInformation:
		return ntstatus.InvalidInfoClass
	}
	return ntstatus.NotSupported
}

// setBasic handles FileBasicInformation. [MS-FSA] 2.1.5.15.2
func (r *request) setBasic(o *open, b []byte) ntstatus.Status {
	info, err := fscc.ParseSetBasicInfo(b)
	if err != nil {
		return statusOf(err)
	}
	sh := r.tree.share
	var m meta
	if err := sh.statAt(o.fd, "", &m); err != nil {
		return statusOf(err)
	}
	for _, t := range [...]uint64{info.CreationTime, info.LastAccessTime, info.LastWriteTime, info.ChangeTime} {
		if int64(t) < 0 && t != fscc.TimeFreeze && t != fscc.TimeThaw {
			return ntstatus.InvalidParameter
		}
	}
	filter := uint32(0)
	if a := info.Attributes; a != 0 {
		if a&fscc.AttrDirectory != 0 && !o.dir || a&fscc.AttrTemporary != 0 && o.dir {
			return ntstatus.InvalidParameter
		}
		filter |= fscc.NotifyAttributes
	}
	set := func(t uint64) bool { return t != 0 && t != fscc.TimeFreeze && t != fscc.TimeThaw }
	attr := m.attr
	if info.Attributes != 0 {
		attr = info.Attributes&(storedAttrs|fscc.AttrReadonly) | m.attr&fscc.AttrSparse
	}
	if ro := info.Attributes&fscc.AttrReadonly != 0; info.Attributes != 0 && !o.dir && ro != (m.attr&fscc.AttrReadonly != 0) {
		if err := sh.setReadonly(o.fd, ro); err != nil {
			return statusOf(err)
		}
	}
	times := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	if set(info.LastAccessTime) {
		times[0] = timespec(info.LastAccessTime)
		filter |= fscc.NotifyLastAccess
	}
	if set(info.LastWriteTime) {
		times[1] = timespec(info.LastWriteTime)
		filter |= fscc.NotifyLastWrite
	}
	if times[0].Nsec != unix.UTIME_OMIT || times[1].Nsec != unix.UTIME_OMIT {
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, procPath(o.fd, ""), times[:], 0); err != nil {
			return statusOf(err)
		}
	}
	kept := m.kept
	kept.attr = attr
	if set(info.CreationTime) {
		kept.creation = info.CreationTime
		filter |= fscc.NotifyCreation
	}
	switch {
	case set(info.ChangeTime):
		kept.change, kept.when = info.ChangeTime, m.lastWrite
		if set(info.LastWriteTime) {
			// As Linux will say it: not every file system keeps it exactly.
			var now meta
			if err := sh.statAt(o.fd, "", &now); err != nil {
				return statusOf(err)
			}
			kept.when = now.lastWrite
		}
		filter |= fscc.NotifyAttributes
	case set(info.LastWriteTime) && kept.change != 0 && kept.when == m.lastWrite:
		kept.when = info.LastWriteTime // the change time that was set stays
	}
	const all = storedAttrs | fscc.AttrReadonly
	if kept.attr&all != m.attr&all || kept.creation != m.kept.creation || kept.change != m.kept.change || kept.when != m.kept.when {
		if err := sh.writeXattr(o.fd, kept); err != nil {
			return statusOf(err)
		}
	}
	if filter != 0 {
		r.c.srv.notify.modified(sh, o.currentRel(), filter)
	}
	return ntstatus.Success
}

func timespec(t uint64) unix.Timespec {
	s, n := fscc.FiletimeToUnix(t)
	return unix.Timespec{Sec: s, Nsec: n}
}

// setSize handles FileEndOfFileInformation, FileAllocationInformation and FileValidDataLengthInformation. [MS-FSA] 2.1.5.15.4, 2.1.5.15.1
func (r *request) setSize(o *open, class uint8, b []byte) ntstatus.Status {
	v, err := fscc.ParseSetUint64(b)
	if err != nil {
		return statusOf(err)
	}
	if o.dir || v > maxOffset {
		return ntstatus.InvalidParameter
	}
	var st unix.Stat_t
	if err := unix.Fstat(o.fd, &st); err != nil {
		return statusOf(err)
	}
	defer r.c.srv.wrote(o)
	size := int64(v)
	switch class {
	case fscc.FileValidDataLengthInformation:
		if size > st.Size {
			return ntstatus.InvalidParameter
		}
		return ntstatus.Success // Linux keeps no such length
	case fscc.FileAllocationInformation:
		if size >= st.Size {
			if size > st.Size {
				switch err := unix.Fallocate(o.fd, unix.FALLOC_FL_KEEP_SIZE, 0, size); err {
				case nil, unix.EOPNOTSUPP, unix.EINTR:
				default:
					return statusOf(err)
				}
			}
			return ntstatus.Success
		}
	}
	if size == st.Size {
		return ntstatus.Success
	}
	if o.obj.locked.Load() {
		from, to := uint64(min(size, st.Size)), uint64(max(size, st.Size))
		if !o.obj.mayWrite(o, from, to-from) {
			return ntstatus.FileLockConflict
		}
	}
	for {
		err := unix.Ftruncate(o.fd, size)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return statusOf(err)
		}
		break
	}
	r.c.srv.notify.modified(r.tree.share, o.currentRel(), fscc.NotifySize|fscc.NotifyLastWrite)
	return o.settle()
}

// setDelete makes the file go away with its last open, or not. [MS-FSA] 2.1.5.15.3
func (r *request) setDelete(o *open, remove, posix, ignoreReadonly bool) ntstatus.Status {
	if remove {
		var m meta
		if err := r.tree.share.statAt(o.fd, "", &m); err != nil {
			return statusOf(err)
		}
		if m.attr&fscc.AttrReadonly != 0 && !ignoreReadonly && !o.dir || o.currentRel() == "" {
			return ntstatus.CannotDelete
		}
		if o.dir {
			empty, err := emptyDir(o.fd)
			if err != nil {
				return statusOf(err)
			}
			if !empty {
				return ntstatus.DirectoryNotEmpty
			}
		}
		if st := r.contend(o, opDelete); st != ntstatus.Success {
			return st
		}
	}
	if !o.obj.setDelete(o, remove, posix) {
		return ntstatus.CannotDelete
	}
	return statusOf(r.c.srv.keepAll(o.obj))
}

// setDelete marks a file that is no shared disk.
func (obj *object) setDelete(o *open, remove, posix bool) bool {
	obj.mu.Lock()
	defer obj.mu.Unlock()
	for _, e := range obj.opens {
		if e.isDisk && remove {
			return false
		}
	}
	obj.deletePending = remove
	if !remove {
		o.deleteOnClose = false
	}
	obj.posixDelete = remove && posix
	if obj.posixDelete {
		o.deleteOnClose = true
	}
	return true
}

// setSecurity accepts a security descriptor only as far as that is the truth: the server keeps none. Owners and groups cannot be changed; a DACL is accepted and has no
// effect, as programs that copy files set one and would otherwise fail. [MS-SMB2] 3.3.5.21.3
func (r *request) setSecurity(o *open, req *wire.SetInfoRequest) ntstatus.Status {
	want := req.AdditionalInformation
	switch {
	case want&secSACL != 0 && o.granted&wire.AccessSystemSecurity == 0,
		want&secDACL != 0 && o.granted&wire.AccessWriteDAC == 0,
		want&(secOwner|secGroup) != 0 && o.granted&wire.AccessWriteOwner == 0:
		return ntstatus.AccessDenied
	case len(req.Buffer) < 20 || req.Buffer[0] != 1:
		return ntstatus.InvalidSecurityDescr
	case want&^secDACL != 0:
		return ntstatus.NotSupported
	}
	return ntstatus.Success
}
