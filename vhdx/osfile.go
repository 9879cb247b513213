package vhdx

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// OSFile is a [Backing] on a local file. It also locks, punches holes, zeroes, reserves space and finds data where the system can.
type OSFile struct {
	f        *os.File
	readOnly bool
}

// NewOSFile takes over an open file: Close closes it.
func NewOSFile(f *os.File) *OSFile { return &OSFile{f: f} }

// OpenOSFile opens a local file that exists.
func OpenOSFile(path string, readOnly bool) (*OSFile, error) {
	flag := os.O_RDWR
	if readOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err == nil && st.IsDir() {
		_ = f.Close()
		return nil, fmt.Errorf("open %s: it is a directory", path)
	}
	return &OSFile{f: f, readOnly: readOnly}, nil
}

// Name is the path that the file was opened with.
func (o *OSFile) Name() string { return o.f.Name() }

// ReadAt is [Backing.ReadAt].
func (o *OSFile) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return o.f.ReadAt(p, off)
}

// WriteAt is [Backing.WriteAt].
func (o *OSFile) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return o.f.WriteAt(p, off)
}

// Flush is [Backing.Flush].
func (o *OSFile) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return o.dataSync()
}

// Size is [Backing.Size]; block devices have one too.
func (o *OSFile) Size(context.Context) (int64, error) {
	st, err := o.f.Stat()
	if err != nil {
		return 0, err
	}
	if st.Mode().IsRegular() {
		return st.Size(), nil
	}
	return o.f.Seek(0, io.SeekEnd)
}

// Truncate is [Backing.Truncate].
func (o *OSFile) Truncate(ctx context.Context, size int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return o.f.Truncate(size)
}

// Close closes the file, which also gives up its lock.
func (o *OSFile) Close() error { return o.f.Close() }

// OpenFile opens the image in a local file, and its parents, and locks them: for writing against everybody, read-only against writers.
func OpenFile(ctx context.Context, path string, o Options) (*Disk, error) {
	f, err := OpenOSFile(path, o.ReadOnly)
	if err != nil {
		return nil, err
	}
	if o.Name == "" {
		o.Name = CanonicalFile(path)
	}
	if o.Resolver == nil {
		o.Resolver = localResolver(o.Name)
	}
	d, err := Open(ctx, f, o)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return d, nil
}

// CreateFile makes a new image in a new local file. A file that exists is only replaced with o.Overwrite; when it fails, a file that it made is removed.
func CreateFile(ctx context.Context, path string, o CreateOptions) error {
	return createFile(ctx, path, o.Overwrite, func(b Backing) error { return Create(ctx, b, o) })
}

// localResolver finds the parents of a local file.
func localResolver(name string) Resolver { return FileResolver{Dir: filepath.Dir(name)} }

func removeFile(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
