package fusefs

import (
	"context"
	"errors"
	"strings"
	"time"
)

// Tree is a folder that is shown as it is, wherever it lies. Paths are relative to it, separated by slashes; "" is the folder itself. Calls may overlap.
// Errors should unwrap to a syscall.Errno.
type Tree interface {
	Stat(ctx context.Context, path string) (Attr, error) // of the thing itself, not of what a symbolic link leads to
	List(ctx context.Context, path string) ([]Entry, error)
	// Open opens a file that exists; with truncate it is emptied.
	Open(ctx context.Context, path string, write, truncate bool) (File, error)
	// Create makes a file and opens it for reading and writing. If there is one already, exclusive makes that an error, and otherwise it is opened and emptied.
	Create(ctx context.Context, path string, perm uint32, exclusive bool) (File, error)
	Mkdir(ctx context.Context, path string, perm uint32) error
	Remove(ctx context.Context, path string, dir bool) error
	Rename(ctx context.Context, from, to string, replace bool) error
	// Set changes attributes; f is an open file of path, or nil.
	Set(ctx context.Context, path string, f File, c Changes) error
	StatFS(ctx context.Context) (FS, error)

	// IsDisk says by its name whether a file is a virtual disk, which is shown as a folder too.
	IsDisk(path string) bool
	// OpenDisk opens the disk in a file. Its Close is called when it is not needed any more.
	OpenDisk(ctx context.Context, path string, write bool) (Volume, error)
}

// Linker is an optional ability of a Tree.
type Linker interface {
	Link(ctx context.Context, from, to string) error
	Symlink(ctx context.Context, target, path string) error
	Readlink(ctx context.Context, path string) (string, error)
}

// File is an open file of a Tree. Calls may overlap.
type File interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)  // as io.ReaderAt
	WriteAt(ctx context.Context, p []byte, off int64) (int, error) // as io.WriterAt
	Flush(ctx context.Context) error
	Stat(ctx context.Context) (Attr, error)
	Close() error
}

// Allocator is an optional ability of a File: fallocate(2) and lseek(2) with SEEK_DATA and SEEK_HOLE.
type Allocator interface {
	Allocate(ctx context.Context, off, n int64, mode uint32) error
	Seek(ctx context.Context, off int64, whence int) (int64, error)
}

// Kind is what a name stands for.
type Kind int

// The kinds.
const (
	Regular Kind = iota
	Directory
	Symlink
	Other // a device, socket or pipe
)

// Attr are the attributes of a file. Sizes are in bytes.
type Attr struct {
	Kind                     Kind
	Ino                      uint64 // 0: not known
	Perm                     uint32 // permission bits
	UID, GID                 uint32
	Links                    uint32
	Size, Allocated          int64
	Modified, Accessed, Meta time.Time // Meta: the last change of the attributes; zero: as Modified
	Rdev                     uint64
}

// Entry is a line of a listing.
type Entry struct {
	Name string
	Attr
}

// Changes are the attributes to set; nil stays as it is.
type Changes struct {
	Size               *int64
	Perm               *uint32
	UID, GID           *uint32
	Modified, Accessed *time.Time
}

// FS says how large the file system of a Tree is and what is left, in bytes.
type FS struct {
	Total, Free, Available int64
	Files, FreeFiles       uint64 // 0: not known
	MaxName                int    // 0: not known
}

// FolderSuffix is behind the name of a virtual disk in the name of the folder that shows what is in it: x.vhdx.d for x.vhdx.
const FolderSuffix = ".d"

// TreeOptions say how a tree is shown.
type TreeOptions struct {
	Options                // Info, Reservations and Parts are those of each Volume
	MaxDisks int           // open at once; 0: 16
	Idle     time.Duration // after which a disk that nobody uses is closed; 0: 10 s
}

// ServeTree shows t in dir until somebody unmounts it, or ctx is done and the unmounting has succeeded, as Serve does; then it closes the disks that it has opened.
func ServeTree(ctx context.Context, dir string, t Tree, o TreeOptions) error {
	if o.MaxDisks <= 0 {
		o.MaxDisks = 16
	}
	if o.Idle <= 0 {
		o.Idle = 10 * time.Second
	}
	c := o.common()
	m := &treeMount{common: c, tree: t, writers: map[string]int{}}
	m.linker, _ = t.(Linker)
	m.pool = newPool(m.openDisk, o.MaxDisks, o.Idle, c.readOnly, c.log)
	root := &treeNode{m: m, kind: Directory}
	mnt, err := start(dir, root, c, o.Options)
	if err != nil {
		return errors.Join(err, m.pool.close())
	}
	return errors.Join(mnt.serve(ctx, o.Options), m.pool.close())
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// diskOf is the path of the disk whose folder path is, if it is one by its name.
func (m *treeMount) diskOf(path string) (disk string, ok bool) {
	disk, ok = strings.CutSuffix(path, FolderSuffix)
	return disk, ok && m.tree.IsDisk(disk)
}
