package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	filesEach = 3
	remember  = 25 // operations for the report
)

// file is a file and what must be in it.
type file struct {
	path string
	f    *os.File
	want []byte
}

type worker struct {
	dir  string
	id   int
	max  int64
	maps bool
	rng  *rand.Rand

	files []*file
	stamp uint64
	names int
	log   []string
}

func (w *worker) note(format string, args ...any) {
	if len(w.log) == remember {
		w.log = w.log[1:]
	}
	w.log = append(w.log, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// cut says that the kernel has given something up because the server went away in the middle: Linux's cifs says so then, whether it was carried out or not.
func cut(err error) bool {
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EHOSTDOWN) || errors.Is(err, unix.ECONNABORTED)
}

// lost is cut for what has to do with names, of which cifs says EIO too. Of reading, writing and syncing that is a failure.
func lost(err error) bool { return cut(err) || errors.Is(err, unix.EIO) }

// again repeats what was lost. All that is done this way has the same effect when it is done twice.
func again(f func() error) error { return repeat(lost, f) }

func repeat(while func(error) bool, f func() error) error {
	for range 1000 {
		if err := f(); !while(err) {
			return err
		}
		t := time.NewTimer(20 * time.Millisecond)
		<-t.C
	}
	return f()
}

func fsync(f *os.File) error { return repeat(cut, f.Sync) }

// open opens a file that is there.
func (f *file) open(flags int) error {
	return again(func() (err error) {
		f.f, err = os.OpenFile(f.path, flags, 0o644)
		return err
	})
}

// rename renames a file; a target that is there after an error is our own.
func rename(from, to string) error {
	tried := false
	return again(func() error {
		err := os.Rename(from, to)
		if tried && errors.Is(err, os.ErrNotExist) {
			if _, serr := os.Stat(to); serr == nil {
				return nil
			}
		}
		tried = tried || lost(err)
		return err
	})
}

// remove removes a file.
func remove(path string) error {
	tried := false
	return again(func() error {
		err := os.Remove(path)
		if tried && errors.Is(err, os.ErrNotExist) {
			return nil
		}
		tried = tried || lost(err)
		return err
	})
}

func (w *worker) newPath() string {
	w.names++
	return filepath.Join(w.dir, fmt.Sprintf("w%d-%d", w.id, w.names))
}

// run works until the context ends, then verifies and closes everything.
func (w *worker) run(ctx context.Context) (n int, err error) {
	for range filesEach {
		f := &file{path: w.newPath()}
		if err = f.open(os.O_RDWR | os.O_CREATE); err != nil {
			return n, err
		}
		w.files = append(w.files, f)
	}
	for ctx.Err() == nil {
		if err := w.step(w.files[w.rng.IntN(len(w.files))]); err != nil {
			return n, err
		}
		n++
	}
	for _, f := range w.files {
		if err := errors.Join(w.verify(f, 0, int64(len(f.want))+10), f.f.Sync(), f.f.Close()); err != nil {
			return n, err
		}
		if err = f.open(os.O_RDONLY); err != nil {
			return n, err
		}
		if err := errors.Join(w.verify(f, 0, int64(len(f.want))+10), f.f.Close()); err != nil {
			return n, fmt.Errorf("opened again in the end: %w", err)
		}
	}
	return n, nil
}

// fresh fills p with bytes that were never written before.
func (w *worker) fresh(p []byte) {
	w.stamp++
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], w.stamp<<16|uint64(w.id))
	for i := range p {
		p[i] = b[i%8] + byte(i>>8)
	}
}

// extent is a range for an operation: often small, sometimes page by page, sometimes large.
func (w *worker) extent() (off, n int64) {
	off = w.rng.Int64N(w.max)
	switch w.rng.IntN(4) {
	case 0:
		n = 1 + w.rng.Int64N(100)
	case 1:
		off &^= 4095
		n = 4096 * (1 + w.rng.Int64N(8))
	default:
		n = 1 + w.rng.Int64N(w.max/4)
	}
	return off, min(n, w.max-off)
}

func (f *file) grow(n int64) {
	if n > int64(len(f.want)) {
		f.want = append(f.want, make([]byte, n-int64(len(f.want)))...)
	}
}

func (w *worker) step(f *file) error {
	off, n := w.extent()
	fd := int(f.f.Fd())
	name := filepath.Base(f.path)
	switch r := w.rng.IntN(100); {
	case r < 35:
		w.note("%s: write %d at %d", name, n, off)
		p := make([]byte, n)
		w.fresh(p)
		err := repeat(cut, func() error { _, err := f.f.WriteAt(p, off); return err })
		if err != nil {
			return err
		}
		f.grow(off + n)
		copy(f.want[off:], p)
	case r < 70:
		w.note("%s: read %d at %d", name, n, off)
		return w.verify(f, off, n)
	case r < 76:
		w.note("%s: size %d", name, off)
		if err := again(func() error { return f.f.Truncate(off) }); err != nil {
			return err
		}
		f.grow(off)
		f.want = f.want[:off]
	case r < 80 && len(f.want) > 0:
		off %= int64(len(f.want))
		n = min(n, int64(len(f.want))-off)
		w.note("%s: punch %d at %d", name, n, off)
		err := again(func() error { return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n) })
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("punch: %w", err)
		}
		clear(f.want[off : off+n])
	case r < 86:
		w.note("%s: sync", name)
		return fsync(f.f)
	case r < 90: // what is cached is forgotten, so that the next read asks the server
		w.note("%s: sync, forget", name)
		if err := fsync(f.f); err != nil {
			return err
		}
		return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	case r < 93:
		w.note("%s: open again", name)
		if err := f.f.Close(); err != nil {
			return fmt.Errorf("close: %w", err)
		}
		return f.open(os.O_RDWR)
	case r < 95:
		to := w.newPath()
		w.note("%s: close, rename to %s, open", name, filepath.Base(to))
		if err := f.f.Close(); err != nil {
			return fmt.Errorf("close: %w", err)
		}
		if err := rename(f.path, to); err != nil {
			return err
		}
		f.path = to
		return f.open(os.O_RDWR)
	case r < 96:
		w.note("%s: remove, make anew", name)
		if err := errors.Join(f.f.Close(), remove(f.path)); err != nil {
			return err
		}
		f.path, f.want = w.newPath(), nil
		return f.open(os.O_RDWR | os.O_CREATE)
	case w.maps && len(f.want) > 0:
		w.note("%s: map", name)
		return w.mapped(f)
	}
	return nil
}

// verify reads a range, which may reach beyond the end, and compares.
func (w *worker) verify(f *file, off, n int64) error {
	p := make([]byte, n)
	var got int
	err := repeat(cut, func() (err error) { got, err = f.f.ReadAt(p, off); return err })
	if err != nil && err != io.EOF {
		return err
	}
	var want []byte
	if off < int64(len(f.want)) {
		want = f.want[off:min(off+n, int64(len(f.want)))]
	}
	if got != len(want) {
		return fmt.Errorf("%w: %s: %d bytes at %d of %d, must be %d bytes", errWrong, f.path, got, off, n, len(want))
	}
	return compare(f.path, p[:got], want, off)
}

func compare(path string, got, want []byte, off int64) error {
	for i := range got {
		if got[i] == want[i] {
			continue
		}
		last := i
		for j := i; j < len(got); j++ {
			if got[j] != want[j] {
				last = j
			}
		}
		return fmt.Errorf("%w: %s: bytes %d to %d differ, the first is %#02x and must be %#02x", errWrong, path, off+int64(i), off+int64(last), got[i], want[i])
	}
	return nil
}

// mapped changes a range through a memory map and reads the whole map.
func (w *worker) mapped(f *file) error {
	m, err := unix.Mmap(int(f.f.Fd()), 0, len(f.want), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	off := w.rng.IntN(len(f.want))
	p := f.want[off:min(len(f.want), off+1+w.rng.IntN(10_000))]
	w.fresh(p)
	copy(m[off:], p)
	err = compare(f.path, m, f.want, 0)
	return errors.Join(err, unix.Msync(m, unix.MS_SYNC), unix.Munmap(m))
}
