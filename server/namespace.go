package server

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// remove unlinks rel if it still is the file key, or a link. The name is locked.
func (sh *share) remove(rel string, key fileKey, dir bool) error {
	parent, base := split(rel)
	fd, err := sh.openDir(parent)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var m meta
	if err := sh.statAt(fd, base, &m); err != nil {
		return err
	}
	flags := 0
	switch {
	case m.mode&unix.S_IFMT == unix.S_IFLNK:
		// The client saw what the link leads to; what it deletes is the link.
	case m.key != key:
		return ntstatus.ObjectNameNotFound // somebody has put another file there
	case dir:
		flags = unix.AT_REMOVEDIR
	}
	return unix.Unlinkat(fd, base, flags)
}

// emptyDir says whether a directory has no entries.
func emptyDir(fd int) (bool, error) {
	d, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return false, err
	}
	defer unix.Close(d)
	buf := getBuffer(4096)
	defer buf.free()
	for {
		n, err := ignoringEINTR(func() (int, error) { return unix.Getdents(d, buf.b) })
		if err != nil {
			return false, err
		}
		if n == 0 {
			return true, nil
		}
		for rest := buf.b[:n]; len(rest) > 0; {
			name, ino, _, reclen := parseDirent(rest)
			rest = rest[reclen:]
			if s := string(name); ino != 0 && s != "." && s != ".." {
				return false, nil
			}
		}
	}
}

// rename gives the open file another name. replace allows that the target exists, posix that it is open. Clients that keep what they have closed open in
// case it is wanted again are asked to let go first. [MS-FSA] 2.1.5.15.11
func (r *request) rename(o *open, target string, replace, posix bool) ntstatus.Status {
	if st := r.contend(o, opRename); st != ntstatus.Success {
		return st
	}
	for {
		var c contention
		st := r.renameOnce(o, target, replace, posix, &c)
		again := c.waits()
		if wst := r.await(&c); !again || wst != ntstatus.Success {
			return st
		}
	}
}

// renameOnce is rename without waiting. If c.waits, nothing has been done.
func (r *request) renameOnce(o *open, target string, replace, posix bool, c *contention) ntstatus.Status {
	sh := r.tree.share
	to, st := r.targetName(target)
	if st != ntstatus.Success {
		return st
	}
	from := o.currentRel()
	if from == "" || to == "" {
		return ntstatus.AccessDenied
	}
	unlock := sh.lockNames(from, to)
	defer func() { unlock() }()
	for now := o.currentRel(); now != from; now = o.currentRel() {
		unlock()
		from = now
		unlock = sh.lockNames(from, to)
	}
	real, exists, err := sh.resolve(to)
	if err != nil {
		if err == unix.ENOENT || err == unix.ENOTDIR {
			return ntstatus.ObjectPathNotFound
		}
		return statusOf(err)
	}
	sameEntry := exists && real == from
	if sameEntry {
		// Only the case changes, or nothing does.
		dir, _ := split(real)
		_, base := split(to)
		real = join(dir, base)
		if real == from {
			return ntstatus.Success
		}
	}
	if o.dir && strings.HasPrefix(real+"/", from+"/") && !sameEntry {
		return ntstatus.AccessDenied // into itself
	}
	if o.dir && (sh.carriesState(o.fd) || r.c.srv.objects.openBelow(o, sh, from, c)) {
		return ntstatus.AccessDenied
	}
	for _, p := range []string{from, real} {
		if st := r.parentAllows(p); st != ntstatus.Success {
			return st
		}
	}
	if exists && !sameEntry {
		if st := r.replaceTarget(o, real, replace, posix, c); st != ntstatus.Success {
			return st
		}
	}
	if st := o.obj.renaming(from, real, sh); st != ntstatus.Success {
		return st
	}
	if st := sh.renameEntry(from, real, o.obj.key, !replace && !sameEntry); st != ntstatus.Success {
		o.obj.renamed(from, from, sh)
		return st
	}
	o.obj.renamed(from, real, sh)
	r.c.srv.notify.renamed(sh, from, real, o.dir)
	if o.options&wire.OptWriteThrough != 0 {
		for _, p := range []string{from, real} {
			if err := sh.syncParent(p); err != nil {
				return statusOf(err)
			}
		}
	}
	return ntstatus.Success
}

// renaming notes in the database which name the persistent opens of a file are about to get: if the server ends in the middle, the file has one of both.
func (obj *object) renaming(from, to string, sh *share) ntstatus.Status {
	if sh.srv.db == nil {
		return ntstatus.Success
	}
	obj.mu.Lock()
	any := false
	for _, e := range obj.opens {
		if e.rel == from && e.tree.share == sh && e.durable != nil && !e.isDisk {
			e.nextRel, any = to, true
		}
	}
	obj.mu.Unlock()
	if !any {
		return ntstatus.Success
	}
	st := statusOf(sh.srv.keepAll(obj))
	if st != ntstatus.Success {
		obj.renamed(from, from, sh)
	}
	return st
}

// renamed tells the opens of a file its name.
func (obj *object) renamed(from, to string, sh *share) {
	obj.mu.Lock()
	var kept []*durable
	for _, e := range obj.opens {
		if e.rel == from && e.tree.share == sh {
			e.rel, e.nextRel = to, ""
			if e.durable != nil && !e.isDisk {
				kept = append(kept, e.durable)
			}
		}
	}
	obj.mu.Unlock()
	if len(kept) == 0 {
		return
	}
	if to != from {
		sh.srv.durables.renamed(kept, to)
	}
	if err := sh.srv.keepAll(obj); err != nil {
		sh.srv.log.Error("the name of a persistent open cannot be kept", "path", to, "err", err)
	}
}

// parentAllows says whether the opens of the directory that holds rel let its entries be renamed: none may be about to delete it, nor keep others from
// changing it. [MS-FSA] 2.1.5.15.11
func (r *request) parentAllows(rel string) ntstatus.Status {
	dir, _ := split(rel)
	fd, err := r.tree.share.openDir(dir)
	if err != nil {
		return statusOf(err)
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &st); err != nil {
		return statusOf(err)
	}
	var m meta
	m.fromStatx(&st)
	obj := r.c.srv.objects.lookup(m.key)
	if obj == nil {
		return ntstatus.Success
	}
	obj.mu.Lock()
	defer obj.mu.Unlock()
	for _, e := range obj.opens {
		if access, share := e.shareMode(); access&accessDelete != 0 || share&wire.ShareWrite == 0 {
			return ntstatus.SharingViolation
		}
	}
	return ntstatus.Success
}

// targetName checks the name in a rename or link request.
func (r *request) targetName(target string) (string, ntstatus.Status) {
	to, kind, dirOnly, st := parseName(strings.TrimPrefix(target, `\`))
	switch {
	case st != ntstatus.Success:
		return "", st
	case kind != streamNone:
		return "", ntstatus.ObjectNameInvalid
	case dirOnly:
		return "", ntstatus.ObjectNameInvalid
	}
	return to, ntstatus.Success
}

// replaceTarget says whether the existing entry real may be replaced.
func (r *request) replaceTarget(o *open, real string, replace, posix bool, c *contention) ntstatus.Status {
	sh := r.tree.share
	if !replace {
		return ntstatus.ObjectNameCollision
	}
	dir, base := split(real)
	fd, err := sh.openDir(dir)
	if err != nil {
		return statusOf(err)
	}
	defer unix.Close(fd)
	var m meta
	if err := sh.statAt(fd, base, &m); err != nil {
		return statusOf(err)
	}
	if m.isDir() || o.dir {
		return ntstatus.AccessDenied
	}
	if m.attr&1 != 0 && !posix {
		return ntstatus.AccessDenied
	}
	if obj := r.c.srv.objects.lookup(m.key); obj != nil && obj != o.obj && !posix {
		obj.mu.Lock()
		open := len(obj.opens) > 0
		obj.contend(o, opDelete, c)
		obj.mu.Unlock()
		if open {
			return ntstatus.AccessDenied
		}
	}
	return ntstatus.Success
}

// renameEntry renames after checking that from still is the file.
func (sh *share) renameEntry(from, to string, key fileKey, exclusive bool) ntstatus.Status {
	fdir, fbase := split(from)
	tdir, tbase := split(to)
	ffd, err := sh.openDir(fdir)
	if err != nil {
		return statusOf(err)
	}
	defer unix.Close(ffd)
	tfd, err := sh.openDir(tdir)
	if err != nil {
		if err == unix.ENOENT || err == unix.ENOTDIR {
			return ntstatus.ObjectPathNotFound
		}
		return statusOf(err)
	}
	defer unix.Close(tfd)
	var m meta
	if err := sh.statAt(ffd, fbase, &m); err != nil {
		return statusOf(err)
	}
	if m.key != key && m.mode&unix.S_IFMT != unix.S_IFLNK {
		return ntstatus.ObjectNameNotFound
	}
	flags := uint(0)
	if exclusive {
		flags = unix.RENAME_NOREPLACE
	}
	err = unix.Renameat2(ffd, fbase, tfd, tbase, flags)
	if err == unix.EINVAL && exclusive {
		// The file system does not know the flag. Nobody but local programs can be in the way: the name is locked.
		err = unix.Renameat(ffd, fbase, tfd, tbase)
	}
	return statusOf(err)
}

// link makes a hard link to the open file. [MS-FSA] 2.1.5.15.6
func (r *request) link(o *open, target string, replace bool) ntstatus.Status {
	if st := r.contend(o, opRename); st != ntstatus.Success {
		return st
	}
	for {
		var c contention
		st := r.linkOnce(o, target, replace, &c)
		again := c.waits()
		if wst := r.await(&c); !again || wst != ntstatus.Success {
			return st
		}
	}
}

// linkOnce is link without waiting. If c.waits, nothing has been done.
func (r *request) linkOnce(o *open, target string, replace bool, c *contention) ntstatus.Status {
	sh := r.tree.share
	to, st := r.targetName(target)
	if st != ntstatus.Success {
		return st
	}
	if o.dir {
		return ntstatus.FileIsADirectory
	}
	if to == "" {
		return ntstatus.ObjectNameCollision
	}
	defer sh.lockName(to)()
	real, exists, err := sh.resolve(to)
	if err != nil {
		return ntstatus.ObjectPathNotFound
	}
	dir, base := split(real)
	fd, err := sh.openDir(dir)
	if err != nil {
		return statusOf(err)
	}
	defer unix.Close(fd)
	if exists {
		if st := r.replaceTarget(o, real, replace, false, c); st != ntstatus.Success {
			return st
		}
		if err := unix.Unlinkat(fd, base, 0); err != nil {
			return statusOf(err)
		}
	}
	if err := unix.Linkat(unix.AT_FDCWD, procPath(o.fd, ""), fd, base, unix.AT_SYMLINK_FOLLOW); err != nil {
		return statusOf(err)
	}
	r.c.srv.notify.added(sh, real, false)
	return ntstatus.Success
}

// openBelow says whether anything below the directory rel is open. Who only keeps something open is asked to close it.
func (t *objectTable) openBelow(o *open, sh *share, rel string, c *contention) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := false
	for _, obj := range t.m {
		obj.mu.Lock()
		if slices.ContainsFunc(obj.opens, func(e *open) bool { return e.tree.share == sh && strings.HasPrefix(e.rel, rel+"/") }) {
			found = true
			obj.contend(o, opDelete, c)
		}
		obj.mu.Unlock()
	}
	return found
}
