package server

import (
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"vdbridge/smb/ntstatus"
)

// share is an open share: a directory below which everything stays. Nothing in this file follows a path that leads out of it: the kernel
// resolves names with RESOLVE_BENEATH, or, where that is missing, one component after the other without symbolic links.
type share struct {
	srv  *Server
	cfg  Share
	dir  string // absolute, without links
	ipc  bool
	root int // descriptor of the directory, -1 for IPC$

	// hidden is the path of the server's state directory if that is inside of the share, and hiddenKey is what it is. Constant.
	hidden    string
	hiddenKey fileKey

	noOpenat2 atomic.Bool
	noXattr   atomic.Bool
	closeOnce sync.Once

	stripes [128]sync.Mutex // by directory entry; see lockName
	seed    maphash.Seed
}

func newShare(s *Server, cfg Share) (*share, error) {
	if st := checkShareName(cfg.Name); st != "" {
		return nil, fmt.Errorf("share name %q: %s", cfg.Name, st)
	}
	dir, err := filepath.EvalSymlinks(cfg.Dir)
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("share %s: %w", cfg.Name, err)
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("share %s: %w", cfg.Name, &os.PathError{Op: "open", Path: dir, Err: err})
	}
	sh := &share{srv: s, cfg: cfg, dir: dir, root: fd, seed: maphash.MakeSeed()}
	if s.state != nil {
		state, err := filepath.EvalSymlinks(s.state.dir)
		if err == nil {
			state, err = filepath.Abs(state)
		}
		if err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("share %s: %w", cfg.Name, err)
		}
		if state == dir {
			unix.Close(fd)
			return nil, fmt.Errorf("share %s: its directory is the state directory; give another one for the state", cfg.Name)
		}
		if rel, err := filepath.Rel(dir, state); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			sh.hidden, sh.hiddenKey = state, s.state.key
		}
	}
	return sh, nil
}

// conceals says whether a descriptor is the server's state directory or something in it, by whatever name it was reached.
func (sh *share) conceals(fd int) bool {
	if sh.hidden == "" {
		return false
	}
	path, err := readlink(fd)
	return err != nil || path == sh.hidden || strings.HasPrefix(path, sh.hidden+"/")
}

// carriesState says whether a descriptor is a directory with the server's state directory below it. It keeps its name, as the state is known by its path.
func (sh *share) carriesState(fd int) bool {
	if sh.hidden == "" {
		return false
	}
	path, err := readlink(fd)
	return err != nil || strings.HasPrefix(sh.hidden, path+"/")
}

func checkShareName(name string) string {
	switch {
	case name == "" || utf8.RuneCountInString(name) > 80 || !utf8.ValidString(name):
		return "must have 1 to 80 characters"
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || strings.ContainsRune(`"/\[]:|<>+=;,*?`, r) }):
		return `must not contain " / \ [ ] : | < > + = ; , * ?`
	case foldName(name) == foldName(ipcName):
		return "is reserved"
	}
	return ""
}

func (sh *share) close() {
	sh.closeOnce.Do(func() {
		if sh.root >= 0 {
			unix.Close(sh.root)
		}
	})
}

// foldName returns what names have in common that differ only in case.
func foldName(s string) string { return strings.Map(unicode.ToUpper, s) }

// lockName locks the directory entry rel, whatever its case, and returns the function that unlocks it.
func (sh *share) lockName(rel string) func() {
	m := &sh.stripes[sh.stripe(rel)]
	m.Lock()
	return m.Unlock
}

func (sh *share) stripe(rel string) uint64 {
	return maphash.String(sh.seed, foldName(rel)) % uint64(len(sh.stripes))
}

// lockNames locks two directory entries.
func (sh *share) lockNames(a, b string) func() {
	i, j := sh.stripe(a), sh.stripe(b)
	if i == j {
		sh.stripes[i].Lock()
		return sh.stripes[i].Unlock
	}
	if i > j {
		i, j = j, i
	}
	sh.stripes[i].Lock()
	sh.stripes[j].Lock()
	return func() { sh.stripes[j].Unlock(); sh.stripes[i].Unlock() }
}

// streamKind says what follows the colon in a name.
type streamKind int

const (
	streamNone   streamKind = iota // no colon, or the unnamed data stream
	streamDisk                     // :SharedVirtualDisk
	streamDirect                   // ::$INDEX_ALLOCATION
)

// parseName turns a name of the wire into a path below the share, with slashes, "" for the share itself. [MS-FSCC] 2.1.5
func parseName(name string) (rel string, kind streamKind, dirOnly bool, st ntstatus.Status) {
	if name == "" {
		return "", streamNone, false, ntstatus.Success
	}
	if name[0] == '\\' {
		return "", 0, false, ntstatus.InvalidParameter
	}
	if len(name) > 32<<10 {
		return "", 0, false, ntstatus.ObjectNameInvalid
	}
	if i := strings.IndexByte(name, ':'); i >= 0 {
		stream := name[i+1:]
		name = name[:i]
		if strings.Contains(stream, `\`) || name == "" {
			return "", 0, false, ntstatus.ObjectNameInvalid
		}
		switch s, typ, _ := strings.Cut(stream, ":"); {
		case s == "" && strings.EqualFold(typ, "$DATA"):
		case strings.EqualFold(s, "SharedVirtualDisk") && (typ == "" || strings.EqualFold(typ, "$DATA")):
			kind = streamDisk
		case (s == "" || strings.EqualFold(s, "$I30")) && strings.EqualFold(typ, "$INDEX_ALLOCATION"):
			kind = streamDirect
		default:
			return "", 0, false, ntstatus.ObjectNameInvalid
		}
	}
	if n, ok := strings.CutSuffix(name, `\`); ok {
		name, dirOnly = n, true
	}
	for part := range strings.SplitSeq(name, `\`) {
		switch {
		case part == "":
			return "", 0, false, ntstatus.ObjectNameInvalid
		case part == "..":
			return "", 0, false, ntstatus.ObjectPathSyntaxBad
		case part == ".":
			return "", 0, false, ntstatus.ObjectNameInvalid
		case !validComponent(part):
			return "", 0, false, ntstatus.ObjectNameInvalid
		}
	}
	if top, _, _ := strings.Cut(name, `\`); strings.EqualFold(top, StateDirName) {
		return "", 0, false, ntstatus.ObjectNameNotFound // also where there is none: a client must not make one
	}
	return strings.ReplaceAll(name, `\`, "/"), kind, dirOnly, ntstatus.Success
}

// validComponent says whether a name can stand in a directory on the wire. [MS-FSCC] 2.1.5.2
func validComponent(s string) bool {
	if s == "" || len(s) > 255 || !utf8.ValidString(s) {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c < 0x20:
			return false
		case c >= utf8.RuneSelf:
		case strings.IndexByte(`"*/:<>?\|`, c) >= 0:
			return false
		}
	}
	return true
}

// wireName is the opposite of parseName.
func wireName(rel string) string { return strings.ReplaceAll(rel, "/", `\`) }

// split cuts a path into its directory and its last component.
func split(rel string) (dir, base string) {
	if i := strings.LastIndexByte(rel, '/'); i >= 0 {
		return rel[:i], rel[i+1:]
	}
	return "", rel
}

func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}

// openBeneath opens rel below the share. Symbolic links are followed as long as they stay inside, unless flags has O_NOFOLLOW. The state of the server
// does not exist here.
func (sh *share) openBeneath(rel string, flags int, mode uint32) (int, error) {
	fd, err := sh.openAnything(rel, flags, mode)
	if err == nil && sh.conceals(fd) {
		unix.Close(fd)
		return -1, unix.ENOENT
	}
	return fd, err
}

func (sh *share) openAnything(rel string, flags int, mode uint32) (int, error) {
	if rel == "" {
		rel = "."
	}
	flags |= unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_NONBLOCK
	if flags&unix.O_PATH != 0 {
		flags &= unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_DIRECTORY
	}
	if !sh.noOpenat2.Load() {
		how := unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
		if flags&unix.O_CREAT != 0 {
			how.Mode = uint64(mode)
		}
		for {
			fd, err := unix.Openat2(sh.root, rel, &how)
			switch err {
			case unix.EINTR, unix.EAGAIN: // EAGAIN: something was renamed meanwhile
				continue
			case unix.ENOSYS, unix.EPERM:
				if err == unix.EPERM && !sh.probeOpenat2() {
					return -1, err
				}
				sh.noOpenat2.Store(true)
			default:
				return fd, err
			}
			break
		}
	}
	return sh.openStepwise(rel, flags, mode)
}

// probeOpenat2 says whether openat2 is refused altogether, by a sandbox.
func (sh *share) probeOpenat2() bool {
	fd, err := unix.Openat2(sh.root, ".", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC})
	if err == nil {
		unix.Close(fd)
	}
	return err == unix.EPERM
}

// openStepwise is openBeneath for kernels without openat2. It follows no links at all.
func (sh *share) openStepwise(rel string, flags int, mode uint32) (int, error) {
	dir := sh.root
	defer func() {
		if dir != sh.root {
			unix.Close(dir)
		}
	}()
	for {
		part, rest, more := strings.Cut(rel, "/")
		if !more {
			return ignoringEINTR(func() (int, error) { return unix.Openat(dir, part, flags|unix.O_NOFOLLOW, mode) })
		}
		fd, err := ignoringEINTR(func() (int, error) {
			return unix.Openat(dir, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		if err != nil {
			return -1, err
		}
		if dir != sh.root {
			unix.Close(dir)
		}
		dir, rel = fd, rest
	}
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// openDir opens the directory rel for the system calls that take a directory and a name.
func (sh *share) openDir(rel string) (int, error) {
	return sh.openBeneath(rel, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// resolve finds the entry rel whatever the case of its components, which all but the last must exist. It returns its real path, and whether the last
// component exists.
func (sh *share) resolve(rel string) (real string, exists bool, err error) {
	if rel == "" {
		return "", true, nil
	}
	dir, base := split(rel)
	if fd, err := sh.openDir(dir); err == nil {
		// The usual case: the directory's name is right.
		defer unix.Close(fd)
		name, found, err := findEntry(fd, base)
		return join(dir, name), found, err
	} else if err != unix.ENOENT && err != unix.ENOTDIR || dir == "" {
		return "", false, err
	}
	real, found, err := sh.resolve(dir)
	if err != nil {
		return "", false, err
	}
	if !found {
		return "", false, errNoParent
	}
	fd, err := sh.openDir(real)
	if err != nil {
		if err == unix.ENOTDIR {
			err = errNoParent
		}
		return "", false, err
	}
	defer unix.Close(fd)
	name, found, err := findEntry(fd, base)
	return join(real, name), found, err
}

var errNoParent = fmt.Errorf("%w", ntstatus.ObjectPathNotFound)

// findEntry finds name in a directory, whatever its case; an exact match is preferred. Without a match it returns name itself.
func findEntry(dir int, name string) (string, bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		return name, true, nil
	}
	if err != unix.ENOENT {
		return "", false, err
	}
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return "", false, err
	}
	defer unix.Close(fd)
	want := foldName(name)
	buf := getBuffer(32 << 10)
	defer buf.free()
	for {
		n, err := ignoringEINTR(func() (int, error) { return unix.Getdents(fd, buf.b) })
		if err != nil {
			return "", false, err
		}
		if n == 0 {
			return name, false, nil
		}
		for rest := buf.b[:n]; len(rest) > 0; {
			entry, _, _, reclen := parseDirent(rest)
			rest = rest[reclen:]
			if len(entry) > 0 && foldEqual(entry, want) {
				return string(entry), true, nil
			}
		}
	}
}

// foldEqual says whether b, folded, is want.
func foldEqual(b []byte, want string) bool {
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n <= 1 || want == "" {
			return false
		}
		w, m := utf8.DecodeRuneInString(want)
		if unicode.ToUpper(r) != w {
			return false
		}
		b, want = b[n:], want[m:]
	}
	return want == ""
}

// parseDirent takes one linux_dirent64 apart. A broken one is skipped with all that follows.
func parseDirent(b []byte) (name []byte, ino uint64, typ byte, reclen int) {
	if len(b) < 20 {
		return nil, 0, 0, len(b)
	}
	reclen = int(le.Uint16(b[16:]))
	if reclen < 20 || reclen > len(b) {
		return nil, 0, 0, len(b)
	}
	name = b[19:reclen]
	for i, c := range name {
		if c == 0 {
			name = name[:i]
			break
		}
	}
	return name, le.Uint64(b), b[18], reclen
}

// statusOf translates an error of the local file system. [MS-SMB2] 3.3.4.4
func statusOf(err error) ntstatus.Status {
	if err == nil {
		return ntstatus.Success
	}
	if st, ok := ntstatus.Of(err); ok && st != ntstatus.Success {
		return st
	}
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return ntstatus.UnexpectedNetworkError
	}
	switch errno {
	case unix.ENOENT:
		return ntstatus.ObjectNameNotFound
	case unix.ENOTDIR:
		return ntstatus.ObjectPathNotFound
	case unix.EACCES, unix.EPERM, unix.EXDEV, unix.ELOOP, unix.ETXTBSY:
		return ntstatus.AccessDenied
	case unix.EEXIST:
		return ntstatus.ObjectNameCollision
	case unix.EISDIR:
		return ntstatus.FileIsADirectory
	case unix.ENOTEMPTY:
		return ntstatus.DirectoryNotEmpty
	case unix.ENOSPC, unix.EDQUOT, unix.EFBIG:
		return ntstatus.DiskFull
	case unix.EROFS:
		return ntstatus.MediaWriteProtected
	case unix.ENAMETOOLONG, unix.EILSEQ:
		return ntstatus.ObjectNameInvalid
	case unix.EINVAL:
		return ntstatus.InvalidParameter
	case unix.EMFILE, unix.ENFILE:
		return ntstatus.TooManyOpenedFiles
	case unix.ENOMEM:
		return ntstatus.InsufficientResources
	case unix.EIO:
		return ntstatus.IODeviceError
	case unix.EBUSY:
		return ntstatus.SharingViolation
	case unix.EOPNOTSUPP, unix.ENOSYS:
		return ntstatus.NotSupported
	case unix.ENXIO, unix.ENODEV:
		return ntstatus.AccessDenied
	case unix.EMLINK:
		return ntstatus.InsufficientResources
	case unix.ESTALE:
		return ntstatus.FileClosed
	}
	return ntstatus.Unsuccessful
}
