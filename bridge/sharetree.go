package bridge

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"vdbridge/client"
	"vdbridge/client/link"
	"vdbridge/fusefs"
	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// shareTree is a folder of a share. It has a connection of its own, which is made anew after it was lost; files that were open then fail.
type shareTree struct {
	loc  Location
	opts Options
	disk func(ctx context.Context, path string, write bool) (fusefs.Volume, error)

	mu  sync.Mutex
	rem *Remote
}

func openShareTree(ctx context.Context, loc Location, o Options) (*shareTree, error) {
	r, err := Connect(ctx, loc, o)
	if err != nil {
		return nil, err
	}
	st, err := r.tree().Stat(ctx, loc.Path)
	if err == nil && !st.IsDir() {
		err = ntstatus.NotADirectory
	}
	if err != nil {
		return nil, errors.Join(explainOpen(loc, err), r.Close())
	}
	return &shareTree{loc: loc, opts: o, rem: r}, nil
}

func (t *shareTree) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rem == nil {
		return nil
	}
	return t.rem.Close()
}

// do works on the share. A lost connection is made again for the next call, and for this one if doing it twice does no harm.
func (t *shareTree) do(ctx context.Context, again bool, work func(*client.Tree) error) error {
	for {
		t.mu.Lock()
		if t.rem == nil {
			r, err := Connect(ctx, t.loc, t.opts)
			if err != nil {
				t.mu.Unlock()
				return &DiskError{Errno: Errno(err), Err: err}
			}
			t.rem = r
		}
		r := t.rem
		t.mu.Unlock()
		err := error(client.ErrConnectionLost)
		if w := r.link.Way(); w != nil {
			_, _, tree := link.Parts(w)
			err = work(tree)
		}
		if errors.Is(err, client.ErrConnectionLost) {
			t.mu.Lock()
			if t.rem == r {
				t.rem = nil
				go func() { _ = r.Close() }()
			}
			t.mu.Unlock()
			if again && ctx.Err() == nil {
				again = false
				continue
			}
		}
		return shareError(err)
	}
}

// shareError gives an error of a file the errno that programs expect.
func shareError(err error) error {
	if err == nil {
		return nil
	}
	e := Errno(err)
	if s, ok := ntstatus.Of(err); ok {
		switch s {
		case ntstatus.DirectoryNotEmpty:
			e = syscall.ENOTEMPTY
		case ntstatus.NotADirectory:
			e = syscall.ENOTDIR
		case ntstatus.FileIsADirectory:
			e = syscall.EISDIR
		case ntstatus.NameTooLong:
			e = syscall.ENAMETOOLONG
		case ntstatus.ObjectNameInvalid:
			e = syscall.EINVAL
		case ntstatus.DeletePending:
			e = syscall.ENOENT
		case ntstatus.CannotDelete:
			e = syscall.EPERM
		case ntstatus.NotSameDevice:
			e = syscall.EXDEV
		case ntstatus.StoppedOnSymlink:
			e = syscall.ELOOP
		}
	}
	return &DiskError{Errno: e, Err: err}
}

// name is the path in the share. What a share cannot have in a name, above all a backslash, would mean something else there.
func (t *shareTree) name(path string) (string, error) {
	if i := strings.IndexAny(path, "\\:*?\"<>|"); i >= 0 {
		return "", syscall.EINVAL
	}
	path = strings.ReplaceAll(path, "/", `\`)
	switch {
	case t.loc.Path == "":
		return path, nil
	case path == "":
		return t.loc.Path, nil
	}
	return t.loc.Path + `\` + path, nil
}

// on is do for one path.
func (t *shareTree) on(ctx context.Context, path string, again bool, work func(*client.Tree, string) error) error {
	name, err := t.name(path)
	if err != nil {
		return err
	}
	return t.do(ctx, again, func(c *client.Tree) error { return work(c, name) })
}

func (*shareTree) IsDisk(name string) bool { return isDiskName(name) }

func (t *shareTree) OpenDisk(ctx context.Context, path string, write bool) (fusefs.Volume, error) {
	return t.disk(ctx, path, write)
}

// shareAttr makes attributes of what SMB has: it knows no owners and one permission.
func shareAttr(attributes uint32, size, allocated int64, written, accessed, changed time.Time, id uint64, links uint32) fusefs.Attr {
	a := fusefs.Attr{
		Ino: id, Perm: 0o644, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Links: max(links, 1), Size: size, Allocated: allocated, Modified: written, Accessed: accessed, Meta: changed,
	}
	switch {
	case attributes&fscc.AttrDirectory != 0:
		a.Kind, a.Perm, a.Size = fusefs.Directory, 0o755, 0
	case attributes&fscc.AttrReadonly != 0: // of a directory it means something else
		a.Perm = 0o444
	}
	return a
}

func infoAttr(i client.FileInfo) fusefs.Attr {
	return shareAttr(i.Attributes, i.Size, i.AllocationSize, i.Written, i.Accessed, i.Changed, i.FileID, i.Links)
}

func (t *shareTree) Stat(ctx context.Context, path string) (a fusefs.Attr, err error) {
	err = t.on(ctx, path, true, func(c *client.Tree, name string) error {
		i, err := c.Stat(ctx, name)
		a = infoAttr(i)
		return err
	})
	return a, err
}

func (t *shareTree) List(ctx context.Context, path string) (list []fusefs.Entry, err error) {
	err = t.on(ctx, path, true, func(c *client.Tree, name string) error {
		list = nil
		dir, err := c.Open(ctx, name, client.OpenOptions{
			Access: wire.AccessReadData | wire.AccessReadAttributes, Share: client.ShareAll, Disposition: wire.FileOpen, Options: wire.OptDirectoryFile,
		})
		if err != nil {
			return err
		}
		for e, err := range dir.ReadDir(ctx, "*") {
			if err != nil {
				return errors.Join(err, dir.Close())
			}
			if strings.Contains(e.Name, "/") {
				continue // no name here
			}
			list = append(list, fusefs.Entry{Name: e.Name, Attr: shareAttr(e.Attributes, e.EndOfFile, e.AllocationSize,
				client.FileTime(e.LastWriteTime), client.FileTime(e.LastAccessTime), client.FileTime(e.ChangeTime), e.FileID, 0)})
		}
		return dir.Close()
	})
	return list, err
}

const (
	readAccess  = wire.AccessReadData | wire.AccessReadAttributes | wire.AccessReadControl
	writeAccess = wire.AccessWriteData | wire.AccessAppendData | wire.AccessWriteAttributes
)

func (t *shareTree) open(ctx context.Context, path string, o client.OpenOptions, again bool) (f *shareFile, err error) {
	o.Share = client.ShareAll
	o.Options |= wire.OptNonDirectoryFile
	err = t.on(ctx, path, again, func(c *client.Tree, name string) error {
		file, err := c.Open(ctx, name, o)
		f = &shareFile{file}
		return err
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (t *shareTree) Open(ctx context.Context, path string, write, truncate bool) (fusefs.File, error) {
	o := client.OpenOptions{Access: readAccess, Disposition: wire.FileOpen}
	if write {
		o.Access |= writeAccess
	}
	if truncate {
		o.Disposition = wire.FileOverwrite
	}
	f, err := t.open(ctx, path, o, true)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (t *shareTree) Create(ctx context.Context, path string, perm uint32, exclusive bool) (fusefs.File, error) {
	o := client.OpenOptions{Access: readAccess | writeAccess, Disposition: wire.FileOverwriteIf, Attributes: fscc.AttrNormal}
	if exclusive {
		o.Disposition = wire.FileCreate
	}
	if perm&0o222 == 0 {
		o.Attributes = fscc.AttrReadonly
	}
	f, err := t.open(ctx, path, o, false)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (t *shareTree) Mkdir(ctx context.Context, path string, _ uint32) error {
	return t.on(ctx, path, false, func(c *client.Tree, name string) error { return c.Mkdir(ctx, name) })
}

func (t *shareTree) Remove(ctx context.Context, path string, _ bool) error {
	return t.on(ctx, path, false, func(c *client.Tree, name string) error {
		err := c.Remove(ctx, name)
		if errors.Is(err, ntstatus.CannotDelete) {
			// A read-only file; on Linux the folder's rights decide.
			if serr := t.setAttributes(ctx, c, name, fscc.AttrNormal); serr != nil {
				return err
			}
			err = c.Remove(ctx, name)
		}
		return err
	})
}

func (t *shareTree) setAttributes(ctx context.Context, c *client.Tree, name string, attributes uint32) error {
	f, err := c.Open(ctx, name, client.OpenOptions{Access: wire.AccessReadAttributes | wire.AccessWriteAttributes, Share: client.ShareAll, Disposition: wire.FileOpen})
	if err != nil {
		return err
	}
	return errors.Join(f.SetBasicInfo(ctx, fscc.BasicInfo{Attributes: attributes}), f.Close())
}

func (t *shareTree) Rename(ctx context.Context, from, to string, replace bool) error {
	dest, err := t.name(to)
	if err != nil {
		return err
	}
	return t.on(ctx, from, false, func(c *client.Tree, name string) error {
		err := c.Rename(ctx, name, dest, replace)
		if err == nil || !replace {
			return err
		}
		// SMB replaces no folders. An empty one may be replaced on Linux; one that is not empty is not removed here.
		src, serr := c.Stat(ctx, name)
		old, oerr := c.Stat(ctx, dest)
		if serr != nil || oerr != nil || !src.IsDir() && !old.IsDir() {
			return err
		}
		switch {
		case !old.IsDir():
			return syscall.ENOTDIR
		case !src.IsDir():
			return syscall.EISDIR
		}
		if rerr := c.Remove(ctx, dest); rerr != nil {
			return rerr
		}
		return c.Rename(ctx, name, dest, false)
	})
}

func (t *shareTree) Set(ctx context.Context, path string, f fusefs.File, c fusefs.Changes) error {
	if c.UID != nil && *c.UID != uint32(os.Getuid()) || c.GID != nil && *c.GID != uint32(os.Getgid()) {
		return syscall.EPERM
	}
	if c.Size == nil && c.Perm == nil && c.Modified == nil && c.Accessed == nil {
		return nil
	}
	file, _ := f.(*shareFile)
	if file == nil {
		access := wire.AccessReadAttributes | wire.AccessWriteAttributes
		if c.Size != nil {
			access |= wire.AccessWriteData
		}
		err := t.on(ctx, path, true, func(tr *client.Tree, name string) error {
			o, err := tr.Open(ctx, name, client.OpenOptions{Access: access, Share: client.ShareAll, Disposition: wire.FileOpen})
			file = &shareFile{o}
			return err
		})
		if err != nil {
			return err
		}
		defer file.Close()
	}
	if c.Size != nil {
		if err := file.f.Truncate(ctx, *c.Size); err != nil {
			return shareError(err)
		}
	}
	var b fscc.BasicInfo
	if c.Modified != nil {
		b.LastWriteTime = client.ToFileTime(*c.Modified)
	}
	if c.Accessed != nil {
		b.LastAccessTime = client.ToFileTime(*c.Accessed)
	}
	if c.Perm != nil {
		i, err := file.f.Stat(ctx)
		if err != nil {
			return shareError(err)
		}
		readOnly := *c.Perm&0o222 == 0
		if !i.IsDir() && readOnly != (i.Attributes&fscc.AttrReadonly != 0) {
			b.Attributes = i.Attributes &^ (fscc.AttrReadonly | fscc.AttrNormal)
			if readOnly {
				b.Attributes |= fscc.AttrReadonly
			}
			if b.Attributes == 0 {
				b.Attributes = fscc.AttrNormal
			}
		}
	}
	if b == (fscc.BasicInfo{}) {
		return nil
	}
	return shareError(file.f.SetBasicInfo(ctx, b))
}

func (t *shareTree) StatFS(ctx context.Context) (s fusefs.FS, err error) {
	err = t.do(ctx, true, func(c *client.Tree) error {
		i, err := c.FSInfo(ctx)
		s = fusefs.FS{Total: i.Total, Free: i.Free, Available: i.Available, MaxName: i.MaxName}
		return err
	})
	return s, err
}

// shareFile is an open file of a share.
type shareFile struct{ f *client.File }

func (f *shareFile) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := f.f.ReadAt(ctx, p, off)
	return n, shareReadError(err)
}

func (f *shareFile) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := f.f.WriteAt(ctx, p, off)
	return n, shareError(err)
}

func (f *shareFile) Flush(ctx context.Context) error {
	err := f.f.Flush(ctx)
	if errors.Is(err, ntstatus.AccessDenied) {
		return nil // it was opened for reading only
	}
	return shareError(err)
}

func (f *shareFile) Stat(ctx context.Context) (fusefs.Attr, error) {
	i, err := f.f.Stat(ctx)
	return infoAttr(i), shareError(err)
}

func (f *shareFile) Close() error { return shareError(f.f.Close()) }

// shareReadError leaves the end of a file what it is.
func shareReadError(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return shareError(err)
}
