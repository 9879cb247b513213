// Package vhd reads virtual hard disks in the older VHD format (Virtual Hard Disk Image Format Specification 1.0) over any backing file: fixed, dynamic
// and differencing ones. It never writes.
//
// [Open] gives a [*Disk] with the methods of every disk here; those that would change something fail with [vhdx.ErrReadOnly]. Memory is bounded whatever the
// file claims: 16 MiB for the table of blocks, 4 MiB for bitmaps.
package vhd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"

	"vdbridge/vhdx"
)

// ErrNotVHD: the file has no VHD footer.
var ErrNotVHD = errors.New("not a VHD image")

// Options say how an image is opened.
type Options struct {
	Logger   *slog.Logger  // nil: silent
	Resolver vhdx.Resolver // finds the parents of a differencing disk
	Name     string        // of the image, for messages and to find loops
}

// Info describes an open image. Sizes are in bytes.
type Info struct {
	Kind      vhdx.Kind `json:"kind"`
	Size      int64     `json:"size"`
	BlockSize int64     `json:"block_size,omitempty"`
	ID        string    `json:"id"`
	Creator   string    `json:"creator"`
	Name      string    `json:"name,omitempty"`
	ParentID  string    `json:"parent_id,omitempty"`
	Parent    string    `json:"parent,omitempty"` // where it was found
}

// Disk is an open image. All methods may be called at the same time from any goroutine, but for Close.
type Disk struct {
	b      vhdx.Backing
	f      footer
	h      header
	name   string
	file   int64 // size of the file
	table  []uint32
	bitmap int64 // bytes before the data of a block
	parent *Disk

	mu    sync.Mutex
	bits  map[int64][]byte // bitmaps of blocks, of a differencing disk
	order []int64
}

// Open opens an image for reading and locks it, and the parents of a differencing one, against writers. On success the disk owns the
// backing file and closes it; on an error the caller still does.
func Open(ctx context.Context, b vhdx.Backing, o Options) (*Disk, error) { return open(ctx, b, o, nil) }

type ancestor struct {
	name string
	id   vhdx.GUID
}

func open(ctx context.Context, b vhdx.Backing, o Options, line []ancestor) (*Disk, error) {
	if l, ok := b.(vhdx.Locker); ok {
		if err := l.Lock(ctx, false); err != nil {
			return nil, err
		}
	}
	size, err := b.Size(ctx)
	if err != nil {
		return nil, fmt.Errorf("size of the image: %w", err)
	}
	d := &Disk{b: b, name: o.Name, file: size, bits: make(map[int64][]byte)}
	if d.f, err = readFooter(ctx, b, size); err != nil {
		return nil, err
	}
	if d.f.diskType == typeFixed {
		if d.f.size > size {
			return nil, corrupt("footer", size-footerSize, "the disk has %d bytes, the file only %d", d.f.size, size)
		}
		return d, nil
	}
	if err := d.readTable(ctx); err != nil {
		return nil, err
	}
	if d.f.diskType == typeDifferencing {
		if err := d.openParent(ctx, &o, append(line, ancestor{o.Name, d.f.id})); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// readFooter finds the footer at the end, or its copy at the beginning.
func readFooter(ctx context.Context, b vhdx.Backing, size int64) (footer, error) {
	buf := make([]byte, footerSize)
	var first error
	for _, at := range []int64{size - footerSize, size - footerSize + 1, 0} {
		if at < 0 {
			continue
		}
		n := min(footerSize, size-at)
		if err := readFull(ctx, b, buf[:n], at); err != nil {
			return footer{}, err
		}
		f, ok, err := decodeFooter(buf[:n], at)
		if ok && err == nil {
			if at == 0 && f.diskType == typeFixed {
				continue // that has no copy; it is data
			}
			return f, nil
		}
		if ok && first == nil {
			first = err
		}
	}
	if first != nil {
		return footer{}, first
	}
	return footer{}, ErrNotVHD
}

func (d *Disk) readTable(ctx context.Context) error {
	at := d.f.dataOffset
	if at > uint64(d.file) || int64(at)+headerSize > d.file {
		return corrupt("footer", -1, "the header at %d is outside the file of %d bytes", at, d.file)
	}
	buf := make([]byte, headerSize)
	if err := readFull(ctx, d.b, buf, int64(at)); err != nil {
		return err
	}
	var err error
	if d.h, err = decodeHeader(buf, int64(at)); err != nil {
		return err
	}
	blocks := (d.f.size + d.h.blockSize - 1) / d.h.blockSize
	switch {
	case blocks > int64(d.h.entries):
		return corrupt("header", int64(at), "the table has %d entries where the disk has %d blocks", d.h.entries, blocks)
	case blocks > maxBlocks:
		return fmt.Errorf("a VHD with %d blocks is %w, %d is the most", blocks, vhdx.ErrUnsupported, maxBlocks)
	case d.h.table > d.file || d.h.table+4*blocks > d.file:
		return corrupt("header", int64(at), "the block table at %d (%d entries) is outside the file of %d bytes", d.h.table, blocks, d.file)
	}
	raw := make([]byte, 4*blocks)
	if err := readFull(ctx, d.b, raw, d.h.table); err != nil {
		return err
	}
	d.table = make([]uint32, blocks)
	for i := range d.table {
		d.table[i] = be.Uint32(raw[4*i:])
	}
	d.bitmap = (d.h.blockSize/sectorSize/8 + sectorSize - 1) / sectorSize * sectorSize
	return nil
}

// openParent finds the parent by its ID and opens it.
func (d *Disk) openParent(ctx context.Context, o *Options, line []ancestor) error {
	if o.Resolver == nil {
		return vhdx.ErrDifferencing
	}
	fail := &vhdx.ChainError{Child: o.Name, Kind: vhdx.ErrParentMissing}
	if len(line) >= vhdx.MaxChain {
		fail.Kind, fail.Reason = vhdx.ErrChain, fmt.Sprintf("it has more than %d images", vhdx.MaxChain)
		return fail
	}
	l, err := d.locator(ctx)
	if err != nil {
		return err
	}
	for _, place := range o.Resolver.Places(l) {
		if slices.ContainsFunc(line, func(a ancestor) bool { return a.name == place }) {
			fail.Kind, fail.Reason = vhdx.ErrChain, fmt.Sprintf("it loops: %s comes a second time", place)
			return fail
		}
		b, next, err := o.Resolver.Open(ctx, place, false)
		if err != nil {
			fail.Note(place, err)
			continue
		}
		p, err := d.openPlace(ctx, b, Options{Logger: o.Logger, Resolver: next, Name: place}, line, fail)
		if p != nil {
			d.parent = p
			return nil
		}
		_ = b.Close()
		if err != nil {
			return err
		}
	}
	return fail
}

func (d *Disk) openPlace(ctx context.Context, b vhdx.Backing, o Options, line []ancestor, fail *vhdx.ChainError) (*Disk, error) {
	size, err := b.Size(ctx)
	if err != nil {
		return nil, err
	}
	f, err := readFooter(ctx, b, size)
	switch {
	case errors.Is(err, ErrNotVHD):
		fail.Note(o.Name, err)
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("parent %s: %w", o.Name, err)
	case slices.ContainsFunc(line, func(a ancestor) bool { return a.id == f.id }):
		return nil, &vhdx.ChainError{Child: d.name, Kind: vhdx.ErrChain, Reason: fmt.Sprintf("it loops: %s comes a second time, under another name", o.Name)}
	case f.id != d.h.parentID:
		fail.Kind = vhdx.ErrParentChanged
		fail.Note(o.Name, fmt.Errorf("it is the disk %s, the child was made for %s", idString(f.id), idString(d.h.parentID)))
		return nil, nil
	}
	p, err := open(ctx, b, o, line)
	if err != nil {
		var ce *vhdx.ChainError
		if !errors.As(err, &ce) {
			err = fmt.Errorf("parent %s: %w", o.Name, err)
		}
		return nil, err
	}
	return p, nil
}

// locator reads the paths to the parent, in the form that resolvers take.
func (d *Disk) locator(ctx context.Context) (*vhdx.ParentLocator, error) {
	l := &vhdx.ParentLocator{}
	for _, e := range d.h.locators {
		if e.length > maxPathBytes || e.off > uint64(d.file) || int64(e.off)+int64(e.length) > d.file {
			return nil, corrupt("parent locator", -1, "a path of %d bytes at %d is outside the file of %d bytes, or too long", e.length, e.off, d.file)
		}
		b := make([]byte, e.length)
		if err := readFull(ctx, d.b, b, int64(e.off)); err != nil {
			return nil, err
		}
		r, a := decodePath(e.platform, b)
		if r != "" {
			l.RelativePath = r
		}
		if a != "" {
			l.AbsolutePath = a
		}
	}
	if l.AbsolutePath == "" {
		l.AbsolutePath = d.h.parentName
	}
	return l, nil
}

// idString is the usual form of an ID, which this format stores big-endian.
func idString(g vhdx.GUID) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", g[0:4], g[4:6], g[6:8], g[8:10], g[10:])
}

func readFull(ctx context.Context, b vhdx.Backing, p []byte, off int64) error {
	n, err := b.ReadAt(ctx, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read the image: %d of %d bytes at offset %d: %w", n, len(p), off, err)
}

// Info describes the image.
func (d *Disk) Info() Info {
	i := Info{Kind: vhdx.KindFixed, Size: d.f.size, BlockSize: d.h.blockSize, ID: idString(d.f.id), Creator: d.f.creator, Name: d.name}
	switch d.f.diskType {
	case typeDynamic:
		i.Kind = vhdx.KindDynamic
	case typeDifferencing:
		i.Kind, i.ParentID, i.Parent = vhdx.KindDifferencing, idString(d.h.parentID), d.parent.name
	}
	return i
}

// Parent is the parent of a differencing disk; nil if it has none.
func (d *Disk) Parent() *Disk { return d.parent }
