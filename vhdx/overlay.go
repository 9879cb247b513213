package vhdx

import (
	"context"
	"fmt"
	"io"
)

// errOverlay says that a log is too large to be replayed in memory.
var errOverlay = fmt.Errorf("too much to replay in memory; open the image for writing once: %w", ErrUnsupported)

// maxOverlay bounds the memory that a replay in memory may take.
const maxOverlay = 64 * mib

// overlay is a backing file as it would be after its log was replayed. It cannot be written to.
type overlay struct {
	Backing
	fileSize int64 // of the file itself
	size     int64
	sectors  map[int64]*[logSector]byte
	zeros    []extent
	lo, hi   int64 // everything changed lies in here
}

func newOverlay(b Backing, size int64) *overlay {
	return &overlay{Backing: b, fileSize: size, size: size, sectors: make(map[int64]*[logSector]byte), lo: maxFileSize}
}

func (o *overlay) touch(off, n int64) {
	o.lo, o.hi, o.size = min(o.lo, off), max(o.hi, off+n), max(o.size, off+n)
}

func (o *overlay) writeSector(_ context.Context, off int64, data []byte) error {
	s := o.sectors[off]
	if s == nil {
		if len(o.sectors) >= maxOverlay/logSector {
			return fmt.Errorf("the log changes more than %d MiB: %w", maxOverlay/mib, errOverlay)
		}
		s = new([logSector]byte)
		o.sectors[off] = s
	}
	copy(s[:], data)
	o.touch(off, logSector)
	return nil
}

func (o *overlay) zero(_ context.Context, off, n int64) error {
	if n == 0 {
		return nil
	}
	if n/logSector < int64(len(o.sectors)) {
		for at := off; at < off+n; at += logSector {
			delete(o.sectors, at)
		}
	} else {
		for at := range o.sectors {
			if at >= off && at < off+n {
				delete(o.sectors, at)
			}
		}
	}
	if k := len(o.zeros); k > 0 && o.zeros[k-1].off <= off && off <= o.zeros[k-1].end() {
		o.zeros[k-1].n = max(o.zeros[k-1].end(), off+n) - o.zeros[k-1].off
	} else {
		if len(o.zeros) >= 1<<16 {
			return fmt.Errorf("the log zeroes too many places: %w", errOverlay)
		}
		o.zeros = append(o.zeros, extent{off, n})
	}
	o.touch(off, n)
	return nil
}

func (o *overlay) grow(_ context.Context, size int64) error {
	o.size = max(o.size, size)
	return nil
}

// ReadAt reads the file with the changes of the log in place.
func (o *overlay) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if end := off + int64(len(p)); end <= o.fileSize && (end <= o.lo || off >= o.hi) {
		return o.Backing.ReadAt(ctx, p, off)
	}
	if off >= o.size {
		return 0, io.EOF
	}
	var short error
	if left := o.size - off; int64(len(p)) > left {
		p, short = p[:left], io.EOF
	}
	inFile := min(int64(len(p)), max(0, o.fileSize-off))
	if inFile > 0 {
		if err := readFull(ctx, o.Backing, p[:inFile], off); err != nil {
			return 0, err
		}
	}
	clear(p[inFile:])
	x := extent{off, int64(len(p))}
	for _, z := range o.zeros {
		if z.overlaps(x) {
			clear(p[max(z.off, off)-off : min(z.end(), x.end())-off])
		}
	}
	for at := off / logSector * logSector; at < x.end(); at += logSector {
		s := o.sectors[at]
		if s == nil {
			continue
		}
		from := max(at, off)
		copy(p[from-off:], s[from-at:])
	}
	return len(p), short
}

// Size is the size after the replay.
func (o *overlay) Size(context.Context) (int64, error) { return o.size, nil }

// WriteAt refuses.
func (o *overlay) WriteAt(context.Context, []byte, int64) (int, error) { return 0, ErrReadOnly }

// Truncate refuses.
func (o *overlay) Truncate(context.Context, int64) error { return ErrReadOnly }

// fileTarget replays into the file itself.
type fileTarget struct {
	b    Backing
	size int64
}

func (t *fileTarget) writeSector(ctx context.Context, off int64, data []byte) error {
	if err := writeFull(ctx, t.b, data, off); err != nil {
		return err
	}
	t.size = max(t.size, off+int64(len(data)))
	return nil
}

func (t *fileTarget) zero(ctx context.Context, off, n int64) error {
	if err := t.grow(ctx, off+n); err != nil {
		return err
	}
	return zeroRange(ctx, t.b, off, n, true)
}

func (t *fileTarget) grow(ctx context.Context, size int64) error {
	if size <= t.size {
		return nil
	}
	if err := t.b.Truncate(ctx, size); err != nil {
		return err
	}
	t.size = size
	return nil
}
