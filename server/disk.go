package server

import (
	"golang.org/x/sys/unix"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// originatorVHDMP is the OriginatorFlags value of an open that wants the file itself, and wants to know whether it is shared. [MS-RSVD] 2.2.4.12
const originatorVHDMP = 4

// originator returns OriginatorFlags of a SVHDX context; both versions have it at the same place. ok is false if the context is too short.
func originator(ctx []byte) (flags uint32, ok bool) {
	// Version 4, HasInitiatorId 1, Reserved 3, InitiatorId 16, Flags 4
	if len(ctx) < 32 {
		return 0, false
	}
	return le.Uint32(ctx[28:]), true
}

// vhdmpCheck handles the SVHDX context on a name without the suffix: it is ignored, but somebody who asks with OriginatorFlags VHDMP is told when the
// file is open as a shared disk. [MS-SMB2] 3.3.5.9.14
func (r *request) vhdmpCheck(a *createArgs) ntstatus.Status {
	if f, ok := originator(a.svhdx); !ok || f != originatorVHDMP {
		return ntstatus.Success
	}
	return ntstatus.VHDShared
}

// openDisk opens a shared virtual disk. The name is locked. [MS-SMB2] 3.3.5.9.14, [MS-RSVD] 3.2.5.1
func (r *request) openDisk(a *createArgs, o *open, resp *wire.CreateResponse, c *contention) ntstatus.Status {
	sh := r.tree.share
	s := sh.srv
	switch {
	case a.Options&wire.OptDirectoryFile != 0 || a.dirOnly:
		return ntstatus.NotADirectory
	case a.Disposition != wire.FileOpen && a.Disposition != wire.FileOpenIf:
		return ntstatus.InvalidParameter // a disk is neither made nor emptied by opening it
	case a.Options&wire.OptDeleteOnClose != 0:
		return ntstatus.AccessDenied
	}
	real, exists, err := sh.resolve(a.rel)
	if err != nil {
		if err == unix.ENOENT || err == unix.ENOTDIR {
			return ntstatus.ObjectPathNotFound
		}
		return statusOf(err)
	}
	if !exists {
		return ntstatus.ObjectNameNotFound
	}
	o.rel = real
	// Held open until the disk is, so that its identity cannot change in between.
	fd, err := sh.openBeneath(real, unix.O_PATH, 0)
	if err != nil {
		return statusOf(err)
	}
	defer unix.Close(fd)
	var m meta
	if err := sh.statAt(fd, "", &m); err != nil {
		return statusOf(err)
	}
	if !m.isReg() {
		return ntstatus.FileIsADirectory
	}
	path, err := readlink(fd)
	if err != nil {
		return statusOf(err)
	}
	if st := a.identify(fd); st != ntstatus.Success {
		return st
	}
	o.granted = a.access
	if a.maximal {
		o.granted |= r.tree.access
	}
	o.isDisk = true
	if st := s.objects.join(m.key, o, c); st != ntstatus.Success || c.waits() {
		return st
	}
	disk, ctx, err := s.cfg.Disks.OpenDisk(r.c.ctx, path, a.svhdx, o.options, o.granted)
	if err != nil {
		r.c.log.Info("open of a shared virtual disk failed", "path", path, "err", err)
		return statusOf(err)
	}
	o.disk = disk
	resp.Action = wire.ActionOpened
	m.fillCreate(resp)
	resp.EndOfFile = uint64(disk.Size())
	resp.AllocationSize = uint64(m.alloc)
	r.replyContexts(a, o, &m, resp)
	if ctx != nil {
		resp.Contexts = append(resp.Contexts, wire.CreateContext{Name: wire.CreateSVHDX, Data: ctx})
	}
	return ntstatus.Success
}

// readlink returns the path of an open descriptor.
func readlink(fd int) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Readlink(procPath(fd, ""), buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// statPath is statAt for a path below the share.
func (sh *share) statPath(rel string, m *meta) error {
	fd, err := sh.openBeneath(rel, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return sh.statAt(fd, "", m)
}
