package bridge

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vdbridge/fusefs"
)

// localTree is a folder of this machine. Nothing outside of it can be reached, whatever symbolic links say.
type localTree struct {
	root *os.Root
	disk func(ctx context.Context, path string, write bool) (fusefs.Volume, error)
}

func openLocalTree(dir string) (*localTree, error) {
	r, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &localTree{root: r}, nil
}

func (t *localTree) Close() error { return t.root.Close() }

// isDiskName says by its name whether a file is a virtual disk.
func isDiskName(name string) bool {
	switch strings.ToLower(path.Ext(name)) {
	case ".vhdx", ".vhd", ".avhdx", ".avhd", ".vhds":
		return true
	}
	return false
}

func (*localTree) IsDisk(name string) bool { return isDiskName(name) }

func (t *localTree) OpenDisk(ctx context.Context, name string, write bool) (fusefs.Volume, error) {
	return t.disk(ctx, name, write)
}

func dot(name string) string {
	if name == "" {
		return "."
	}
	return name
}

// inParent opens the folder that name is in, for system calls that do not follow a link at the end.
func (t *localTree) inParent(name string, do func(dir int, base string) error) error {
	d, err := t.root.Open(path.Dir(dot(name)))
	if err != nil {
		return err
	}
	defer d.Close()
	return do(int(d.Fd()), path.Base(dot(name)))
}

func localAttr(st *unix.Stat_t) fusefs.Attr {
	a := fusefs.Attr{
		Ino: st.Ino, Perm: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Links: uint32(st.Nlink), Size: st.Size, Allocated: st.Blocks * 512, Rdev: st.Rdev,
		Modified: time.Unix(st.Mtim.Unix()), Accessed: time.Unix(st.Atim.Unix()), Meta: time.Unix(st.Ctim.Unix()),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		a.Kind = fusefs.Directory
	case unix.S_IFLNK:
		a.Kind = fusefs.Symlink
	default:
		a.Kind = fusefs.Other
	}
	return a
}

func (t *localTree) Stat(_ context.Context, name string) (fusefs.Attr, error) {
	var st unix.Stat_t
	err := t.inParent(name, func(dir int, base string) error { return unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW) })
	return localAttr(&st), err
}

func (t *localTree) List(ctx context.Context, name string) ([]fusefs.Entry, error) {
	d, err := t.root.Open(dot(name))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var list []fusefs.Entry
	for {
		names, err := d.Readdirnames(1024)
		for _, n := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(int(d.Fd()), n, &st, unix.AT_SYMLINK_NOFOLLOW); errors.Is(err, unix.ENOENT) {
				continue // gone in between
			} else if err != nil {
				return nil, err
			}
			list = append(list, fusefs.Entry{Name: n, Attr: localAttr(&st)})
		}
		if len(names) == 0 || ctx.Err() != nil {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return list, ctx.Err()
}

func (t *localTree) Open(_ context.Context, name string, write, truncate bool) (fusefs.File, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	if truncate {
		flag |= os.O_TRUNC
	}
	f, err := t.root.OpenFile(name, flag|unix.O_NONBLOCK, 0)
	if write && errors.Is(err, fs.ErrPermission) {
		f, err = t.root.OpenFile(name, flag&^os.O_RDWR|os.O_WRONLY|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, err
	}
	return localFile{f}, nil
}

func (t *localTree) Create(_ context.Context, name string, perm uint32, exclusive bool) (fusefs.File, error) {
	f, err := t.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		// The kernel has applied the caller's mask, so ours must not change the mode again.
		if err := unix.Fchmod(int(f.Fd()), perm); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return localFile{f}, nil
	}
	if exclusive || !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if f, err = t.root.OpenFile(name, os.O_RDWR|os.O_TRUNC, 0); err != nil {
		return nil, err
	}
	return localFile{f}, nil
}

func (t *localTree) Mkdir(_ context.Context, name string, perm uint32) error {
	if err := t.root.Mkdir(name, 0o700); err != nil {
		return err
	}
	return t.root.Chmod(name, fs.FileMode(perm&0o777)|extraBits(perm))
}

func extraBits(perm uint32) (m fs.FileMode) {
	if perm&unix.S_ISUID != 0 {
		m |= fs.ModeSetuid
	}
	if perm&unix.S_ISGID != 0 {
		m |= fs.ModeSetgid
	}
	if perm&unix.S_ISVTX != 0 {
		m |= fs.ModeSticky
	}
	return m
}

func (t *localTree) Remove(_ context.Context, name string, dir bool) error {
	flags := 0
	if dir {
		flags = unix.AT_REMOVEDIR
	}
	return t.inParent(name, func(d int, base string) error { return unix.Unlinkat(d, base, flags) })
}

func (t *localTree) Rename(_ context.Context, from, to string, replace bool) error {
	flags := uint(0)
	if !replace {
		flags = unix.RENAME_NOREPLACE
	}
	return t.inParent(from, func(d1 int, b1 string) error {
		return t.inParent(to, func(d2 int, b2 string) error { return unix.Renameat2(d1, b1, d2, b2, flags) })
	})
}

func (t *localTree) Set(_ context.Context, name string, f fusefs.File, c fusefs.Changes) error {
	if c.Size != nil {
		if lf, ok := f.(localFile); ok {
			if err := lf.f.Truncate(*c.Size); err != nil {
				return err
			}
		} else {
			w, err := t.root.OpenFile(name, os.O_WRONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			if err := errors.Join(w.Truncate(*c.Size), w.Close()); err != nil {
				return err
			}
		}
	}
	return t.inParent(name, func(dir int, base string) error {
		if c.UID != nil || c.GID != nil {
			uid, gid := -1, -1
			if c.UID != nil {
				uid = int(*c.UID)
			}
			if c.GID != nil {
				gid = int(*c.GID)
			}
			if err := unix.Fchownat(dir, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
		}
		if c.Perm != nil {
			if err := t.root.Chmod(dot(name), fs.FileMode(*c.Perm&0o777)|extraBits(*c.Perm)); err != nil {
				return err
			}
		}
		if c.Modified != nil || c.Accessed != nil {
			ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
			for i, v := range []*time.Time{c.Accessed, c.Modified} {
				if v != nil {
					ts[i] = unix.NsecToTimespec(v.UnixNano())
				}
			}
			return unix.UtimesNanoAt(dir, base, ts, unix.AT_SYMLINK_NOFOLLOW)
		}
		return nil
	})
}

func (t *localTree) StatFS(context.Context) (fusefs.FS, error) {
	d, err := t.root.Open(".")
	if err != nil {
		return fusefs.FS{}, err
	}
	defer d.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &st); err != nil {
		return fusefs.FS{}, err
	}
	unit := st.Frsize
	if unit == 0 {
		unit = st.Bsize
	}
	return fusefs.FS{
		Total: int64(st.Blocks) * unit, Free: int64(st.Bfree) * unit, Available: int64(st.Bavail) * unit, Files: st.Files, FreeFiles: st.Ffree, MaxName: int(st.Namelen),
	}, nil
}

func (t *localTree) Link(_ context.Context, from, to string) error {
	return t.inParent(from, func(d1 int, b1 string) error {
		return t.inParent(to, func(d2 int, b2 string) error { return unix.Linkat(d1, b1, d2, b2, 0) })
	})
}

func (t *localTree) Symlink(_ context.Context, target, name string) error {
	return t.inParent(name, func(dir int, base string) error { return unix.Symlinkat(target, dir, base) })
}

func (t *localTree) Readlink(_ context.Context, name string) (string, error) {
	return t.root.Readlink(name)
}

// localFile is an open file of a localTree.
type localFile struct{ f *os.File }

func (f localFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return f.f.ReadAt(p, off)
}
func (f localFile) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	return f.f.WriteAt(p, off)
}
func (f localFile) Flush(context.Context) error { return f.f.Sync() }
func (f localFile) Close() error                { return f.f.Close() }

func (f localFile) Stat(context.Context) (fusefs.Attr, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.f.Fd()), &st)
	a := localAttr(&st)
	return a, err
}

func (f localFile) Allocate(_ context.Context, off, n int64, mode uint32) error {
	return unix.Fallocate(int(f.f.Fd()), mode, off, n)
}

func (f localFile) Seek(_ context.Context, off int64, whence int) (int64, error) {
	return unix.Seek(int(f.f.Fd()), off, whence)
}

var (
	_ fusefs.Tree      = (*localTree)(nil)
	_ fusefs.Linker    = (*localTree)(nil)
	_ fusefs.Allocator = localFile{}
)
