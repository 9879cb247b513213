package bridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"vdbridge/vhdx"
)

// rawDisk is a disk that lies in a file, or on a block device, byte for byte.
type rawDisk struct {
	file     vhdx.Backing
	size     int64
	logical  int
	readOnly bool
}

// newRawDisk takes a file over. A size that is not a whole number of sectors makes the sector one byte: nothing of the file is hidden.
func newRawDisk(ctx context.Context, f vhdx.Backing, readOnly bool) (*rawDisk, error) {
	size, err := f.Size(ctx)
	if err != nil {
		return nil, err
	}
	d := &rawDisk{file: f, size: size, logical: 512, readOnly: readOnly}
	if size%512 != 0 {
		d.logical = 1
	}
	return d, nil
}

func (d *rawDisk) check(off, n int64, write bool) error {
	switch {
	case write && d.readOnly:
		return vhdx.ErrReadOnly
	case off < 0 || n < 0 || n > d.size-off || (off|n)%int64(d.logical) != 0:
		return vhdx.ErrRange
	}
	return nil
}

func (d *rawDisk) Read(ctx context.Context, p []byte, off int64) error {
	if err := d.check(off, int64(len(p)), false); err != nil {
		return err
	}
	n, err := d.file.ReadAt(ctx, p, off)
	if n == len(p) {
		return nil
	}
	return err
}

func (d *rawDisk) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := d.check(off, int64(len(p)), true); err != nil {
		return err
	}
	if _, err := d.file.WriteAt(ctx, p, off); err != nil {
		return err
	}
	if fua {
		return d.file.Flush(ctx)
	}
	return nil
}

func (d *rawDisk) Flush(ctx context.Context) error {
	if d.readOnly {
		return nil
	}
	return d.file.Flush(ctx)
}

func (d *rawDisk) Trim(ctx context.Context, off, n int64) error {
	if err := d.check(off, n, true); err != nil {
		return err
	}
	if p, ok := d.file.(vhdx.HolePuncher); ok {
		if err := p.PunchHole(ctx, off, n); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	return nil // advisory
}

// zeroPiece is how much is zeroed by writing at once.
const zeroPiece = 1 << 20

var zeros [zeroPiece]byte

func (d *rawDisk) WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error {
	if err := d.check(off, n, true); err != nil {
		return err
	}
	if err := d.zero(ctx, off, n, unmap); err != nil {
		return err
	}
	if fua {
		return d.file.Flush(ctx)
	}
	return nil
}

func (d *rawDisk) zero(ctx context.Context, off, n int64, unmap bool) error {
	if n == 0 {
		return nil
	}
	if p, ok := d.file.(vhdx.HolePuncher); ok && unmap {
		if err := p.PunchHole(ctx, off, n); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	if z, ok := d.file.(vhdx.Zeroer); ok {
		if err := z.ZeroRange(ctx, off, n); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	for n > 0 {
		k := min(n, zeroPiece)
		if _, err := d.file.WriteAt(ctx, zeros[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

func (d *rawDisk) Extents(ctx context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error {
	if err := d.check(off, n, false); err != nil {
		return err
	}
	q, ok := d.file.(vhdx.RangeQuerier)
	if !ok {
		if n > 0 {
			yield(n, false, false)
		}
		return nil
	}
	at, end, more := off, off+n, true
	unit := int64(d.logical)
	err := q.AllocatedRanges(ctx, off, n, func(o, k int64) bool {
		// Whole sectors that touch data are data.
		o, stop := max(o/unit*unit, at), min((o+k+unit-1)/unit*unit, end)
		if o >= stop {
			return true
		}
		if o > at {
			if more = yield(o-at, true, true); !more {
				return false
			}
		}
		more = yield(stop-o, false, false)
		at = stop
		return more
	})
	switch {
	case errors.Is(err, errors.ErrUnsupported) && at == off:
		if n > 0 {
			yield(n, false, false)
		}
		return nil
	case err != nil:
		return err
	case more && at < end:
		yield(end-at, true, true)
	}
	return nil
}

func (d *rawDisk) Size() int64 { return d.size }

func (d *rawDisk) BlockSizes() (logical, physical, optimal, maxTransfer int) {
	return d.logical, max(d.logical, min(4096, d.logical*8)), 0, 0
}

func (d *rawDisk) ReadOnly() bool { return d.readOnly }

func (d *rawDisk) FastZero() bool {
	_, punch := d.file.(vhdx.HolePuncher)
	_, zero := d.file.(vhdx.Zeroer)
	return punch || zero
}

func (d *rawDisk) Close() error { return d.file.Close() }

// Format is how a disk lies in its file.
type Format string

// The formats.
const (
	FormatAuto Format = "" // by name and kind of the file
	FormatVHDX Format = "vhdx"
	FormatVHD  Format = "vhd"
	FormatRaw  Format = "raw"
)

// ParseFormat reads a format; "" is FormatAuto.
func ParseFormat(s string) (Format, error) {
	switch f := Format(strings.ToLower(s)); f {
	case "auto":
		return FormatAuto, nil
	case FormatAuto, FormatVHDX, FormatVHD, FormatRaw:
		return f, nil
	}
	return "", Usagef("the format %q is not known; it is vhdx, vhd or raw", s)
}

// formatOf guesses the format of a file by its name, and of what exists on this machine by its kind. Never by its content: who writes into a raw disk could
// make it look like an image of another kind, and so reach files outside.
func formatOf(loc Location) Format {
	switch strings.ToLower(path.Ext(loc.Base())) {
	case ".vhdx", ".avhdx", ".vhds":
		return FormatVHDX
	case ".vhd", ".avhd":
		return FormatVHD
	case ".raw", ".img", ".iso", ".bin", ".dd":
		return FormatRaw
	}
	if loc.Local {
		if st, err := os.Stat(loc.Path); err == nil && st.Mode()&os.ModeDevice != 0 {
			return FormatRaw
		}
	}
	return FormatAuto
}

// OpenFormat opens a disk as Open does, and also what lies in its file as it is (raw). With FormatAuto the name decides; a name that tells nothing is opened as Open
// does it.
func OpenFormat(ctx context.Context, loc Location, o Options, f Format) (*Disk, error) {
	if f == FormatAuto {
		f = formatOf(loc)
	}
	switch f {
	case FormatVHD:
		return openVHD(ctx, loc, o)
	case FormatRaw:
	default:
		return Open(ctx, loc, o)
	}
	if loc.Local {
		file, err := vhdx.OpenOSFile(loc.Path, o.ReadOnly)
		if err != nil {
			return nil, explainOpen(loc, err)
		}
		if err := file.Lock(ctx, !o.ReadOnly); err != nil {
			return nil, errors.Join(explainOpen(loc, err), file.Close())
		}
		return rawOver(ctx, loc, o, file, nil)
	}
	if o.Mode == ModeRSVD {
		return nil, Usagef("%s is a raw image; a shared disk (--mode rsvd) is a .vhdx", loc)
	}
	r, err := Connect(ctx, loc, o)
	if err != nil {
		return nil, err
	}
	file, err := r.openFile(ctx, !o.ReadOnly, o.durable(imageTimeout))
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	d, err := rawOver(ctx, loc, o, backing{file}, r)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	d.file = file
	if err := r.protectRaw(ctx, file, !o.ReadOnly, d.back.Size()); err != nil {
		return nil, errors.Join(explainOpen(loc, err), d.Close())
	}
	return d, nil
}

func rawOver(ctx context.Context, loc Location, o Options, file vhdx.Backing, r *Remote) (*Disk, error) {
	raw, err := newRawDisk(ctx, file, o.ReadOnly)
	if err != nil {
		return nil, errors.Join(explainOpen(loc, err), file.Close())
	}
	if raw.size == 0 {
		return nil, errors.Join(&Error{ClassCorrupt, fmt.Sprintf("%s is empty: there is no disk in it", loc), vhdx.ErrRange}, file.Close())
	}
	d := newDisk(raw, loc, ModeFile, o.logger())
	d.remote = r
	return d, nil
}
