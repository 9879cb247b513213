package server

import (
	"fmt"

	"golang.org/x/sys/unix"

	"vdbridge/smb/fscc"
)

// meta is what the server tells of a file.
type meta struct {
	key                                     fileKey
	creation, lastAccess, lastWrite, change uint64 // FILETIME
	size, alloc                             int64
	links                                   uint32
	attr                                    uint32
	mode                                    uint32 // Linux type and permissions
	kept                                    stored
}

func (m *meta) isDir() bool { return m.mode&unix.S_IFMT == unix.S_IFDIR }
func (m *meta) isReg() bool { return m.mode&unix.S_IFMT == unix.S_IFREG }

// xattrName holds the attributes that Linux has no place for, and times that were set and that Linux does not let be set: 4 bytes of attributes, then as FILETIME (0 for
// none) the creation time, the change time, and the write time that the file had when the change time was set: after the next write, the change time is Linux's again.
const xattrName = "user.vdbridge.dos"

// stored is what is in the extended attribute.
type stored struct {
	attr                   uint32
	creation, change, when uint64
}

const storedSize = 28

const storedAttrs = fscc.AttrHidden | fscc.AttrSystem | fscc.AttrArchive | fscc.AttrTemporary | fscc.AttrNotIndexed | fscc.AttrOffline

const statxMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME

// statAt fills in m for name in the directory dir, or for dir itself if name is empty. follow follows a symbolic link, which the caller must know
// to stay inside the share.
func (sh *share) statAt(dir int, name string, m *meta) error {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_STATX_SYNC_AS_STAT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Statx_t
	for {
		err := unix.Statx(dir, name, flags, statxMask, &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	m.fromStatx(&st)
	if m.isReg() || m.isDir() {
		sh.readXattr(dir, name, m)
	}
	return nil
}

func (m *meta) fromStatx(st *unix.Statx_t) {
	*m = meta{
		key:        fileKey{dev: uint64(st.Dev_major)<<32 | uint64(st.Dev_minor), ino: st.Ino},
		lastAccess: fscc.FiletimeOfUnix(st.Atime.Sec, int64(st.Atime.Nsec)),
		lastWrite:  fscc.FiletimeOfUnix(st.Mtime.Sec, int64(st.Mtime.Nsec)),
		change:     fscc.FiletimeOfUnix(st.Ctime.Sec, int64(st.Ctime.Nsec)),
		size:       int64(st.Size),
		alloc:      int64(st.Blocks) * 512,
		links:      st.Nlink,
		mode:       uint32(st.Mode),
	}
	// Linux does not let the change time be set; a write time in the future must not be after it.
	m.change = max(m.change, m.lastWrite)
	m.creation = m.lastWrite
	if st.Mask&unix.STATX_BTIME != 0 && st.Btime.Sec > 0 {
		m.creation = fscc.FiletimeOfUnix(st.Btime.Sec, int64(st.Btime.Nsec))
	}
	switch {
	case m.isDir():
		m.attr = fscc.AttrDirectory
		m.size, m.alloc, m.links = 0, 0, 1
	default:
		m.attr = fscc.AttrArchive
	}
	if !m.isDir() && m.mode&0o222 == 0 {
		m.attr |= fscc.AttrReadonly
	}
	if st.Attributes&unix.STATX_ATTR_COMPRESSED != 0 {
		m.attr |= fscc.AttrCompressed
	}
}

// readXattr adds the stored attributes.
func (sh *share) readXattr(dir int, name string, m *meta) {
	if sh.noXattr.Load() {
		return
	}
	var buf [storedSize]byte
	get := unix.Lgetxattr
	if name == "" {
		get = unix.Getxattr // the path is a link to the open file
	}
	n, err := get(procPath(dir, name), xattrName, buf[:])
	if err == unix.EOPNOTSUPP {
		sh.noXattr.Store(true)
	}
	if err != nil || n != len(buf) {
		return
	}
	m.kept = parseStored(&buf)
	if m.isDir() {
		m.attr |= m.kept.attr & fscc.AttrReadonly // of files it is in the permissions
	}
	m.attr = m.attr&^storedAttrs | m.kept.attr&(storedAttrs|fscc.AttrSparse)
	if m.kept.creation != 0 {
		m.creation = m.kept.creation
	}
	if m.kept.change != 0 && m.kept.when == m.lastWrite {
		m.change = m.kept.change
	}
}

func parseStored(buf *[storedSize]byte) stored {
	return stored{le.Uint32(buf[:]), le.Uint64(buf[4:]), le.Uint64(buf[12:]), le.Uint64(buf[20:])}
}

// writeXattr stores attributes and times.
func (sh *share) writeXattr(fd int, s stored) error {
	var buf [storedSize]byte
	le.PutUint32(buf[:], s.attr&(storedAttrs|fscc.AttrSparse|fscc.AttrReadonly))
	le.PutUint64(buf[4:], s.creation)
	le.PutUint64(buf[12:], s.change)
	le.PutUint64(buf[20:], s.when)
	err := unix.Setxattr(procPath(fd, ""), xattrName, buf[:], 0)
	if err == unix.EOPNOTSUPP || err == unix.EPERM {
		return nil // a file system without extended attributes keeps no more than Linux has
	}
	return err
}

// procPath names an open file, or an entry of an open directory, for the system calls that take only a path.
func procPath(fd int, name string) string {
	if name == "" {
		return fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)
}

// attrs returns the attributes for the wire, where a file without any has NORMAL.
func (m *meta) attrs() uint32 {
	if m.attr == 0 {
		return fscc.AttrNormal
	}
	return m.attr
}
