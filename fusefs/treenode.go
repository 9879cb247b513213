package fusefs

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// treeMount is a mounted tree.
type treeMount struct {
	*common
	tree   Tree
	linker Linker // nil: there are no links
	pool   *pool

	mu      sync.Mutex
	writers map[string]int // files of disks that are open for writing as files
}

// openDisk opens a disk for the pool. Who writes to its file as a file keeps it closed, as its structures change under us.
func (m *treeMount) openDisk(ctx context.Context, path string, write bool) (Volume, error) {
	m.mu.Lock()
	busy := m.writers[path] > 0
	m.mu.Unlock()
	if busy {
		return Volume{}, syscall.ETXTBSY
	}
	return m.tree.OpenDisk(ctx, path, write)
}

// treeNode is a file, a folder or a link of the tree.
type treeNode struct {
	fs.Inode
	m    *treeMount
	kind Kind

	mu     sync.Mutex
	listed map[string]Attr // of the last listing, for the questions that follow it
	asOf   time.Time
}

// treeHandle is an open file.
type treeHandle struct {
	f    File
	disk string // path of a disk that is open for writing as a file
	once sync.Once
}

var (
	_ fs.NodeStatfser   = (*treeNode)(nil)
	_ fs.NodeGetattrer  = (*treeNode)(nil)
	_ fs.NodeSetattrer  = (*treeNode)(nil)
	_ fs.NodeLookuper   = (*treeNode)(nil)
	_ fs.NodeReaddirer  = (*treeNode)(nil)
	_ fs.NodeOpener     = (*treeNode)(nil)
	_ fs.NodeCreater    = (*treeNode)(nil)
	_ fs.NodeMkdirer    = (*treeNode)(nil)
	_ fs.NodeUnlinker   = (*treeNode)(nil)
	_ fs.NodeRmdirer    = (*treeNode)(nil)
	_ fs.NodeRenamer    = (*treeNode)(nil)
	_ fs.NodeLinker     = (*treeNode)(nil)
	_ fs.NodeSymlinker  = (*treeNode)(nil)
	_ fs.NodeReadlinker = (*treeNode)(nil)
	_ fs.NodeReader     = (*treeNode)(nil)
	_ fs.NodeWriter     = (*treeNode)(nil)
	_ fs.NodeFlusher    = (*treeNode)(nil)
	_ fs.NodeFsyncer    = (*treeNode)(nil)
	_ fs.NodeReleaser   = (*treeNode)(nil)
	_ fs.NodeAllocater  = (*treeNode)(nil)
	_ fs.NodeLseeker    = (*treeNode)(nil)
)

// listingLasts is for how long the attributes of a listing answer the questions for each of its entries.
const listingLasts = time.Second

func (n *treeNode) path() string          { return n.Path(n.Root()) }
func (n *treeNode) at(name string) string { return join(n.path(), name) }

func (n *treeNode) fail(op, path string, err error) syscall.Errno {
	switch e := errno(err); e {
	case syscall.EIO, syscall.ENOTCONN, syscall.EBUSY, syscall.ENFILE:
		return n.m.failed(op, path, 0, 0, err)
	default:
		return e // what programs ask for all the time and handle
	}
}

var kindModes = map[Kind]uint32{Regular: fuse.S_IFREG, Directory: fuse.S_IFDIR, Symlink: fuse.S_IFLNK, Other: syscall.S_IFIFO}

func (a *Attr) fill(out *fuse.Attr) {
	out.Mode = kindModes[a.Kind] | a.Perm&0o7777
	out.Size, out.Blocks, out.Blksize = uint64(a.Size), uint64(a.Allocated+511)/512, reportedBlock
	out.Ino = a.Ino
	out.Uid, out.Gid, out.Rdev = a.UID, a.GID, uint32(a.Rdev)
	out.Nlink = a.Links
	meta := a.Meta
	if meta.IsZero() {
		meta = a.Modified
	}
	out.SetTimes(&a.Accessed, &a.Modified, &meta)
}

// stable is what identifies a file. Numbers that the library gives to nodes of its own are not taken from the tree.
func (a *Attr) stable() fs.StableAttr {
	s := fs.StableAttr{Mode: kindModes[a.Kind], Ino: a.Ino}
	if s.Ino <= 1 || s.Ino >= 1<<63 {
		s.Ino = 0
	}
	return s
}

func (n *treeNode) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	s, err := n.m.tree.StatFS(ctx)
	if err != nil {
		return n.fail("statfs", n.path(), err)
	}
	out.Bsize, out.Frsize = reportedBlock, reportedBlock
	out.Blocks, out.Bfree, out.Bavail = uint64(s.Total)/reportedBlock, uint64(s.Free)/reportedBlock, uint64(s.Available)/reportedBlock
	out.Files, out.Ffree, out.NameLen = s.Files, s.FreeFiles, uint32(s.MaxName)
	if out.NameLen == 0 {
		out.NameLen = 255
	}
	return 0
}

func (n *treeNode) Getattr(ctx context.Context, f fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	ctx, done := n.m.operation(ctx)
	defer done()
	var a Attr
	var err error
	if h, ok := f.(*treeHandle); ok {
		a, err = h.f.Stat(ctx)
	} else {
		a, err = n.m.tree.Stat(ctx, n.path())
	}
	if err != nil {
		return n.fail("stat", n.path(), err)
	}
	a.fill(&out.Attr)
	return 0
}

func (n *treeNode) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if n.m.readOnly {
		return syscall.EROFS
	}
	ctx, done := n.m.operation(ctx)
	defer done()
	var c Changes
	if v, ok := in.GetSize(); ok {
		if v > 1<<62 {
			return syscall.EFBIG
		}
		size := int64(v)
		c.Size = &size
	}
	if v, ok := in.GetMode(); ok {
		v &= 0o7777
		c.Perm = &v
	}
	if v, ok := in.GetUID(); ok {
		c.UID = &v
	}
	if v, ok := in.GetGID(); ok {
		c.GID = &v
	}
	if v, ok := in.GetMTime(); ok {
		c.Modified = &v
	}
	if v, ok := in.GetATime(); ok {
		c.Accessed = &v
	}
	var file File
	if h, ok := f.(*treeHandle); ok {
		file = h.f
	} else if c.Size != nil && n.m.tree.IsDisk(n.path()) && n.m.pool.inUse(ctx, n.path()) {
		return syscall.ETXTBSY
	}
	n.forgetListing()
	if err := n.m.tree.Set(ctx, n.path(), file, c); err != nil {
		return n.fail("set attributes of", n.path(), err)
	}
	return n.Getattr(ctx, f, out)
}

// forgetListing drops what the last listing of the parent said.
func (n *treeNode) forgetListing() {
	if _, p := n.Parent(); p != nil {
		if dir, ok := p.Operations().(*treeNode); ok {
			dir.drop()
		}
	}
}

func (n *treeNode) drop() {
	n.mu.Lock()
	n.listed = nil
	n.mu.Unlock()
}

// stat is what the last listing said, if that was just now, or asks.
func (n *treeNode) stat(ctx context.Context, name string) (Attr, error) {
	n.mu.Lock()
	if n.listed != nil && time.Since(n.asOf) > listingLasts {
		n.listed = nil
	}
	a, ok := n.listed[name]
	n.mu.Unlock()
	if ok {
		return a, nil
	}
	return n.m.tree.Stat(ctx, n.at(name))
}

func (n *treeNode) child(ctx context.Context, a *Attr, out *fuse.EntryOut) *fs.Inode {
	a.fill(&out.Attr)
	return n.NewInode(ctx, &treeNode{m: n.m, kind: a.Kind}, a.stable())
}

func (n *treeNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	ctx, done := n.m.operation(ctx)
	defer done()
	a, err := n.stat(ctx, name)
	if errno(err) == syscall.ENOENT {
		if node, e := n.folder(ctx, name, out); e != syscall.ENOENT {
			return node, e
		}
	}
	if err != nil {
		return nil, n.fail("stat", n.at(name), err)
	}
	return n.child(ctx, &a, out), 0
}

// folder makes the node of a disk's folder, if name is one.
func (n *treeNode) folder(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	disk, ok := n.m.diskOf(name)
	if !ok {
		return nil, syscall.ENOENT
	}
	a, err := n.stat(ctx, disk)
	if err != nil {
		return nil, errno(err)
	}
	if a.Kind != Regular {
		return nil, syscall.ENOENT
	}
	node := n.GetChild(name)
	if node == nil {
		// The folder may be moved together with the one that it is in.
		src := &fromPool{p: n.m.pool, path: func() string { return n.at(disk) }}
		node = n.NewInode(ctx, &dirNode{shown: newShown(n.m.common, src, join(n.path(), name), true, true)}, fs.StableAttr{Mode: fuse.S_IFDIR})
	}
	d, ok := node.Operations().(*dirNode)
	if !ok {
		return nil, syscall.ENOENT
	}
	d.directory(&out.Attr)
	out.SetTimes(&a.Accessed, &a.Modified, &a.Modified)
	return node, 0
}

func (n *treeNode) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	ctx, done := n.m.operation(ctx)
	defer done()
	entries, err := n.m.tree.List(ctx, n.path())
	if err != nil {
		return nil, n.fail("list", n.path(), err)
	}
	listed := make(map[string]Attr, len(entries))
	for _, e := range entries {
		listed[e.Name] = e.Attr
	}
	list := make([]fuse.DirEntry, 0, len(entries))
	for _, e := range entries {
		list = append(list, fuse.DirEntry{Name: e.Name, Mode: kindModes[e.Kind], Ino: e.stable().Ino})
		if _, taken := listed[e.Name+FolderSuffix]; e.Kind == Regular && !taken && n.m.tree.IsDisk(e.Name) {
			list = append(list, fuse.DirEntry{Name: e.Name + FolderSuffix, Mode: fuse.S_IFDIR})
		}
	}
	n.mu.Lock()
	n.listed, n.asOf = listed, time.Now()
	n.mu.Unlock()
	time.AfterFunc(2*listingLasts, func() { // gives the memory back
		n.mu.Lock()
		defer n.mu.Unlock()
		if time.Since(n.asOf) > listingLasts {
			n.listed = nil
		}
	})
	return fs.NewListDirStream(list), 0
}

// opening readies a file that is opened for writing.
func (n *treeNode) opening(ctx context.Context, path string, write bool) (disk string, e syscall.Errno) {
	switch {
	case write && n.m.readOnly:
		return "", syscall.EROFS
	case !write || !n.m.tree.IsDisk(path):
		return "", 0
	}
	n.m.mu.Lock()
	n.m.writers[path]++
	n.m.mu.Unlock()
	if n.m.pool.inUse(ctx, path) {
		n.m.closed(path)
		return "", syscall.ETXTBSY
	}
	return path, 0
}

func (m *treeMount) closed(disk string) {
	if disk == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.writers[disk]--; m.writers[disk] <= 0 {
		delete(m.writers, disk)
	}
}

func (n *treeNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	ctx, done := n.m.operation(ctx)
	defer done()
	write := flags&syscall.O_ACCMODE != syscall.O_RDONLY
	path := n.path()
	disk, e := n.opening(ctx, path, write)
	if e != 0 {
		return nil, 0, e
	}
	f, err := n.m.tree.Open(ctx, path, write, write && flags&syscall.O_TRUNC != 0)
	if err != nil {
		n.m.closed(disk)
		return nil, 0, n.fail("open", path, err)
	}
	// Others change the files of a share, so nothing is cached.
	return &treeHandle{f: f, disk: disk}, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES, 0
}

func (n *treeNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	ctx, done := n.m.operation(ctx)
	defer done()
	path := n.at(name)
	disk, e := n.opening(ctx, path, true)
	if e != 0 {
		return nil, nil, 0, e
	}
	n.drop()
	f, err := n.m.tree.Create(ctx, path, mode&0o7777, flags&syscall.O_EXCL != 0)
	var a Attr
	if err == nil {
		if a, err = f.Stat(ctx); err != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		n.m.closed(disk)
		return nil, nil, 0, n.fail("create", path, err)
	}
	return n.child(ctx, &a, out), &treeHandle{f: f, disk: disk}, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES, 0
}

func (n *treeNode) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if n.m.readOnly {
		return nil, syscall.EROFS
	}
	ctx, done := n.m.operation(ctx)
	defer done()
	if err := n.m.tree.Mkdir(ctx, n.at(name), mode&0o7777); err != nil {
		return nil, n.fail("make folder", n.at(name), err)
	}
	n.drop()
	return n.Lookup(ctx, name, out)
}

// leave readies a name that is to go. A disk in use stays.
func (n *treeNode) leave(ctx context.Context, path string) syscall.Errno {
	if n.m.readOnly {
		return syscall.EROFS
	}
	if _, ok := n.m.diskOf(path); ok {
		if _, err := n.m.tree.Stat(ctx, path); errno(err) == syscall.ENOENT {
			return syscall.EPERM // the folder of a disk
		}
	}
	if n.m.pool.inUse(ctx, path) {
		return syscall.EBUSY
	}
	n.drop()
	return 0
}

func (n *treeNode) remove(ctx context.Context, name string, dir bool) syscall.Errno {
	ctx, done := n.m.operation(ctx)
	defer done()
	path := n.at(name)
	if e := n.leave(ctx, path); e != 0 {
		return e
	}
	defer n.drop()
	if err := n.m.tree.Remove(ctx, path, dir); err != nil {
		return n.fail("remove", path, err)
	}
	return 0
}

func (n *treeNode) Unlink(ctx context.Context, name string) syscall.Errno {
	return n.remove(ctx, name, false)
}

func (n *treeNode) Rmdir(ctx context.Context, name string) syscall.Errno {
	return n.remove(ctx, name, true)
}

func (n *treeNode) Rename(ctx context.Context, name string, newParent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	ctx, done := n.m.operation(ctx)
	defer done()
	to, ok := newParent.(*treeNode)
	if !ok {
		return syscall.EPERM // into a disk's folder
	}
	if flags&^unix.RENAME_NOREPLACE != 0 {
		return syscall.EINVAL
	}
	from, dest := n.at(name), to.at(newName)
	if e := n.leave(ctx, from); e != 0 {
		return e
	}
	if _, err := n.m.tree.Stat(ctx, dest); err == nil {
		if e := to.leave(ctx, dest); e != 0 {
			return e
		}
	}
	defer n.drop()
	defer to.drop()
	if err := n.m.tree.Rename(ctx, from, dest, flags&unix.RENAME_NOREPLACE == 0); err != nil {
		return n.fail("rename", from, err)
	}
	return 0
}

func (n *treeNode) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	from, ok := target.(*treeNode)
	switch {
	case !ok || n.m.linker == nil:
		return nil, syscall.EPERM
	case n.m.readOnly:
		return nil, syscall.EROFS
	}
	ctx, done := n.m.operation(ctx)
	defer done()
	if err := n.m.linker.Link(ctx, from.path(), n.at(name)); err != nil {
		return nil, n.fail("link", n.at(name), err)
	}
	n.drop()
	from.forgetListing()
	return n.Lookup(ctx, name, out)
}

func (n *treeNode) Symlink(ctx context.Context, target, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	switch {
	case n.m.linker == nil:
		return nil, syscall.EPERM
	case n.m.readOnly:
		return nil, syscall.EROFS
	}
	ctx, done := n.m.operation(ctx)
	defer done()
	if err := n.m.linker.Symlink(ctx, target, n.at(name)); err != nil {
		return nil, n.fail("link", n.at(name), err)
	}
	n.drop()
	return n.Lookup(ctx, name, out)
}

func (n *treeNode) Readlink(ctx context.Context) ([]byte, syscall.Errno) {
	if n.m.linker == nil {
		return nil, syscall.EINVAL
	}
	s, err := n.m.linker.Readlink(ctx, n.path())
	if err != nil {
		return nil, n.fail("read link", n.path(), err)
	}
	return []byte(s), 0
}

func (n *treeNode) Read(ctx context.Context, f fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	h, ok := f.(*treeHandle)
	if !ok {
		return nil, syscall.EBADF
	}
	ctx, done := n.m.operation(ctx)
	defer done()
	got, err := h.f.ReadAt(ctx, dest, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, n.m.failed("read", n.path(), off, int64(len(dest)), err)
	}
	return fuse.ReadResultData(dest[:got]), 0
}

func (n *treeNode) Write(ctx context.Context, f fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	h, ok := f.(*treeHandle)
	if !ok {
		return 0, syscall.EBADF
	}
	ctx, done := n.m.operation(ctx)
	defer done()
	n.forgetListing()
	put, err := h.f.WriteAt(ctx, data, off)
	if err != nil && put == 0 {
		return 0, n.m.failed("write", n.path(), off, int64(len(data)), err)
	}
	return uint32(put), 0
}

func (n *treeNode) Flush(context.Context, fs.FileHandle) syscall.Errno { return 0 }

func (n *treeNode) Fsync(ctx context.Context, f fs.FileHandle, _ uint32) syscall.Errno {
	h, ok := f.(*treeHandle)
	if !ok {
		return 0 // a folder
	}
	ctx, done := n.m.operation(ctx)
	defer done()
	return n.m.failed("flush", n.path(), 0, 0, h.f.Flush(ctx))
}

func (n *treeNode) Release(_ context.Context, f fs.FileHandle) syscall.Errno {
	h, ok := f.(*treeHandle)
	if !ok {
		return 0
	}
	h.once.Do(func() {
		n.forgetListing()
		if err := h.f.Close(); err != nil {
			n.m.failed("close", n.path(), 0, 0, err)
		}
		n.m.closed(h.disk)
	})
	return 0
}

func (n *treeNode) Allocate(ctx context.Context, f fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	h, ok := f.(*treeHandle)
	if !ok {
		return syscall.EBADF
	}
	a, ok := h.f.(Allocator)
	switch {
	case !ok:
		return syscall.EOPNOTSUPP
	case off > 1<<62 || size > 1<<62:
		return syscall.EFBIG
	}
	ctx, done := n.m.operation(ctx)
	defer done()
	n.forgetListing()
	if err := a.Allocate(ctx, int64(off), int64(size), mode); err != nil {
		return n.fail("allocate", n.path(), err)
	}
	return 0
}

func (n *treeNode) Lseek(ctx context.Context, f fs.FileHandle, off uint64, whence uint32) (uint64, syscall.Errno) {
	h, ok := f.(*treeHandle)
	if !ok {
		return 0, syscall.EBADF
	}
	ctx, done := n.m.operation(ctx)
	defer done()
	if a, ok := h.f.(Allocator); ok && off < 1<<62 {
		at, err := a.Seek(ctx, int64(off), int(whence))
		if err != nil {
			return 0, n.fail("seek", n.path(), err)
		}
		return uint64(at), 0
	}
	// Without knowledge of holes all is data.
	st, err := h.f.Stat(ctx)
	switch {
	case err != nil:
		return 0, n.fail("seek", n.path(), err)
	case off >= uint64(st.Size):
		return 0, syscall.ENXIO
	case whence == unix.SEEK_HOLE:
		return uint64(st.Size), 0
	}
	return off, 0
}
