package server

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// dirList is an enumeration of a directory that is going on.
type dirList struct {
	started bool
	pattern string // folded; "*" for all
	dots    int    // of "." and ".." how many were looked at
	buf     []byte // entries as the kernel gave them
	rest    []byte
	held    *fscc.DirEntry // did not fit into the last reply
	any     bool           // something was found since the start
	fd      int            // of its own, as the position belongs to the descriptor; 0 if none
}

func (l *dirList) close() {
	if l.fd > 0 {
		unix.Close(l.fd)
		l.fd = 0
	}
}

// queryDirectory handles QUERY_DIRECTORY. [MS-SMB2] 3.3.5.18
func (r *request) queryDirectory() ntstatus.Status {
	req, err := wire.ParseQueryDirectoryRequest(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter
	}
	if st := r.findOpen(req.FileID); st != ntstatus.Success {
		return st
	}
	o := r.file
	switch {
	case !o.dir:
		return ntstatus.InvalidParameter
	case o.granted&wire.AccessReadData == 0:
		return ntstatus.AccessDenied
	case req.OutputBufferLength > uint32(r.c.srv.lim.MaxIO) || !r.checkCharge(req.OutputBufferLength):
		return ntstatus.InvalidParameter
	case !fscc.IsDirectoryClass(req.InfoClass):
		return ntstatus.InvalidInfoClass
	case int(req.OutputBufferLength) < fscc.DirEntryLen(req.InfoClass, "x"):
		return ntstatus.InfoLengthMismatch
	}
	o.listMu.Lock()
	defer o.listMu.Unlock()
	l := &o.list
	restart := req.Flags&(wire.QueryDirRestart|wire.QueryDirReopen) != 0
	if !l.started || req.Flags&wire.QueryDirReopen != 0 {
		if req.Pattern == "" && !l.started {
			return ntstatus.InvalidParameter
		}
		restart = true
	}
	if req.Pattern != "" && (restart || !l.started) {
		if !validPattern(req.Pattern) {
			return ntstatus.ObjectNameInvalid
		}
		l.pattern = foldName(req.Pattern)
		if l.pattern == "*.*" {
			l.pattern = "*"
		}
	}
	if restart {
		if l.fd == 0 {
			fd, err := ignoringEINTR(func() (int, error) {
				return unix.Openat(o.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			})
			if err != nil {
				return statusOf(err)
			}
			l.fd = fd
		} else if _, err := unix.Seek(l.fd, 0, 0); err != nil {
			return statusOf(err)
		}
		l.started, l.dots, l.rest, l.held, l.any = true, 0, nil, nil, false
	}
	return r.listEntries(o, l, req)
}

// listEntries fills the reply with entries.
func (r *request) listEntries(o *open, l *dirList, req *wire.QueryDirectoryRequest) ntstatus.Status {
	limit := int(req.OutputBufferLength)
	r.w.ensure(wire.OutputResponseFixed + min(limit, 64<<10))
	at := len(r.body())
	r.commit(wire.OutputResponseFixed)
	base := len(r.body())
	prev := -1
	for {
		e, err := l.next(r.tree.share, o)
		if err != nil {
			return statusOf(err)
		}
		if e == nil {
			break
		}
		l.any = true
		used := len(r.body()) - base
		if prev >= 0 {
			used = (used + 7) &^ 7
		}
		need := fscc.DirEntryLen(req.InfoClass, e.Name)
		if used+need > limit {
			l.held = e
			if prev < 0 {
				return ntstatus.BufferOverflow
			}
			break
		}
		r.w.ensure(need + 8)
		b := r.body()
		if prev >= 0 {
			b = fscc.LinkDirEntry(b, base, prev)
		}
		prev = len(b)
		r.setBody(fscc.AppendDirEntry(b, req.InfoClass, e))
		if req.Flags&wire.QueryDirSingleEntry != 0 {
			break
		}
	}
	if prev < 0 {
		if !l.any {
			return ntstatus.NoSuchFile
		}
		return ntstatus.NoMoreFiles
	}
	wire.AppendOutputResponse(r.body()[:at], len(r.body())-base)
	return ntstatus.Success
}

// next returns the next entry that matches, nil at the end.
func (l *dirList) next(sh *share, o *open) (*fscc.DirEntry, error) {
	if e := l.held; e != nil {
		l.held = nil
		return e, nil
	}
	for l.dots < 2 {
		name := ".."[:l.dots+1]
		l.dots++
		if l.pattern == "*" || matchName(l.pattern, name) {
			// The share's own directory has no parent that a client may see.
			var m meta
			if err := sh.statAt(o.fd, "", &m); err != nil {
				return nil, err
			}
			if name == ".." && o.currentRel() != "" {
				if fd, err := sh.openBeneath(o.currentRel()+"/..", unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
					_ = sh.statAt(fd, "", &m)
					unix.Close(fd)
				}
			}
			return m.dirEntry(name), nil
		}
	}
	for {
		if len(l.rest) == 0 {
			if l.buf == nil {
				l.buf = make([]byte, 16<<10)
			}
			n, err := ignoringEINTR(func() (int, error) { return unix.Getdents(l.fd, l.buf) })
			if err == unix.ENOENT {
				n, err = 0, nil // the directory was removed
			}
			if err != nil {
				return nil, err
			}
			if n == 0 {
				return nil, nil
			}
			l.rest = l.buf[:n]
		}
		raw, ino, _, reclen := parseDirent(l.rest)
		l.rest = l.rest[reclen:]
		if ino == 0 || string(raw) == "." || string(raw) == ".." {
			continue
		}
		name := string(raw)
		if !validComponent(name) || l.pattern != "*" && !matchName(l.pattern, name) {
			continue
		}
		var m meta
		if err := sh.statAt(l.fd, name, &m); err != nil {
			continue // gone meanwhile
		}
		if m.mode&unix.S_IFMT == unix.S_IFLNK {
			// Shown as what it leads to, if that is inside the share.
			fd, err := sh.openBeneath(join(o.currentRel(), name), unix.O_PATH, 0)
			if err != nil {
				continue
			}
			err = sh.statAt(fd, "", &m)
			unix.Close(fd)
			if err != nil {
				continue
			}
		}
		if !m.isReg() && !m.isDir() || m.isDir() && sh.hidden != "" && m.key == sh.hiddenKey {
			continue
		}
		return m.dirEntry(name), nil
	}
}

// currentRel returns the open's path, which a rename can change.
func (o *open) currentRel() string {
	if o.obj == nil {
		return o.rel
	}
	o.obj.mu.Lock()
	defer o.obj.mu.Unlock()
	return o.rel
}

func (m *meta) dirEntry(name string) *fscc.DirEntry {
	return &fscc.DirEntry{CreationTime: m.creation, LastAccessTime: m.lastAccess, LastWriteTime: m.lastWrite, ChangeTime: m.change,
		EndOfFile: m.size, AllocationSize: m.alloc, Attributes: m.attrs(), FileID: m.key.ino, Name: name}
}

// validPattern says whether a search pattern has only characters of names and wildcards.
func validPattern(p string) bool {
	return len(p) <= 4096 && !strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || strings.ContainsRune(`\/:|`, r) })
}

// Wildcards of patterns. [MS-FSCC] 2.1.4.4
const (
	wildStar  = '<' // DOS_STAR: any characters, but not beyond the last dot
	wildQM    = '>' // DOS_QM: any character; at a dot or at the end, none
	wildDot   = '"' // DOS_DOT: a dot, or nothing at the end
	wildAny   = '*'
	wildAnyQM = '?'
)

// matchName says whether name matches the folded pattern. [MS-FSA] 2.1.4.4
//
// It keeps the set of positions in the pattern that can have been reached, so its time is bounded by the product of the lengths, whatever the pattern.
func matchName(pattern, name string) bool {
	p := []rune(pattern)
	cur := make([]bool, len(p)+1)
	next := make([]bool, len(p)+1)
	cur[0] = true
	lastDot := strings.LastIndexByte(name, '.')
	// closure follows what matches nothing.
	closure := func(set []bool, atEnd bool, r rune) {
		for i, c := range p {
			if !set[i] {
				continue
			}
			switch c {
			case wildAny, wildStar:
				set[i+1] = true
			case wildQM:
				if atEnd || r == '.' {
					set[i+1] = true
				}
			case wildDot:
				if atEnd {
					set[i+1] = true
				}
			}
		}
	}
	for off := 0; off < len(name); {
		r, n := utf8.DecodeRuneInString(name[off:])
		up := unicode.ToUpper(r)
		closure(cur, false, r)
		clear(next)
		any := false
		for i, c := range p {
			if !cur[i] {
				continue
			}
			ok, to := false, i+1
			switch c {
			case wildAny:
				ok, to = true, i
			case wildStar:
				// Everything, except that the last dot ends it.
				ok, to = off != lastDot, i
			case wildAnyQM:
				ok = true
			case wildQM:
				ok = r != '.'
			case wildDot:
				ok = r == '.'
			default:
				ok = c == up
			}
			if ok {
				next[to] = true
				any = true
			}
		}
		if !any {
			return false
		}
		cur, next = next, cur
		off += n
	}
	closure(cur, true, 0)
	return cur[len(p)]
}
