package server

import (
	"golang.org/x/sys/unix"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// makeNew makes the file or directory a.rel, whose directory exists.
func (r *request) makeNew(a *createArgs, o *open) (int, ntstatus.Status) {
	sh := r.tree.share
	dir, base := split(a.rel)
	dfd, err := sh.openDir(dir)
	if err != nil {
		if err == unix.ENOENT || err == unix.ENOTDIR {
			return -1, ntstatus.ObjectPathNotFound
		}
		return -1, statusOf(err)
	}
	defer unix.Close(dfd)
	attr := a.FileAttributes
	if a.Options&wire.OptDirectoryFile != 0 || a.dirOnly || attr&fscc.AttrDirectory != 0 && a.Options&wire.OptNonDirectoryFile == 0 && a.Options&wire.OptDirectoryFile != 0 {
		if err := unix.Mkdirat(dfd, base, 0o777); err != nil {
			return -1, statusOf(err)
		}
		fd, err := ignoringEINTR(func() (int, error) {
			return unix.Openat(dfd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		if err != nil {
			return -1, statusOf(err)
		}
		sh.setNewAttrs(fd, attr&^fscc.AttrArchive, fscc.AttrDirectory)
		return fd, ntstatus.Success
	}
	if attr&fscc.AttrDirectory != 0 && a.Options&wire.OptNonDirectoryFile != 0 {
		return -1, ntstatus.InvalidParameter
	}
	mode := uint32(0o666)
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(dfd, base, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	})
	if err != nil {
		if err == unix.EEXIST && a.Disposition != wire.FileCreate {
			return -1, ntstatus.AccessDenied // a symbolic link that leads nowhere
		}
		return -1, statusOf(err)
	}
	sh.setNewAttrs(fd, attr|fscc.AttrArchive, fscc.AttrArchive)
	return fd, ntstatus.Success
}

// setNewAttrs stores the attributes of a new file, as far as they differ from what is there without storing.
func (sh *share) setNewAttrs(fd int, attr, plain uint32) {
	keep := uint32(storedAttrs)
	if plain&fscc.AttrDirectory != 0 {
		keep |= fscc.AttrReadonly
	}
	if attr&keep != plain&keep {
		_ = sh.writeXattr(fd, stored{attr: attr})
	}
	if attr&fscc.AttrReadonly != 0 && plain&fscc.AttrDirectory == 0 {
		sh.setReadonly(fd, true)
	}
}

// setReadonly maps the READONLY attribute to the write permissions.
func (sh *share) setReadonly(fd int, ro bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	mode := st.Mode & 0o7777
	if ro {
		mode &^= 0o222
	} else if mode&0o222 == 0 {
		mode |= 0o200
	}
	return unix.Fchmod(fd, mode)
}
