package vhdx

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
)

// Options say how an image is opened. The zero value opens for reading and writing.
type Options struct {
	ReadOnly bool
	Logger   *slog.Logger // nil: silent
	// BATCacheBytes bounds the memory for cached BAT pages; 0 means 16 MiB.
	BATCacheBytes int64
	// Resolver finds the parents of a differencing disk. Without one such a disk is an ErrDifferencing. OpenFile fills in a FileResolver.
	Resolver Resolver
	// Name is what messages call the image; a chain that leads back to it is a loop. OpenFile fills in the canonical path.
	Name string

	detached bool // open a differencing disk without its parent: what it does not have cannot be read
}

// A Disk is an open image. All methods may be called at the same time from any goroutine.
//
// Offsets and lengths are in bytes, multiples of the logical sector size, and within the disk; else the error is an [ErrRange] and
// nothing was done. Methods of a closed disk return [ErrClosed].
type Disk struct {
	file     Backing // what is read; the overlay when a log was replayed in memory
	readOnly bool
	log      *slog.Logger

	layout layout
	params params
	geo    geometry
	meta   []metaEntry

	size       atomic.Int64 // of the disk; geo changes only while nobody is inside the gate
	cacheBytes int64

	opts Options // how it was opened

	infoMu  sync.Mutex
	info    Info
	locator *ParentLocator

	gate    *gate
	bat     *batTable
	bits    *bitmapTable // of a differencing disk
	parent  *Disk        // read-only, owned; nil without one
	space   *space
	session *session
	opened  knownHeaders // when it was opened
	commit  *committer
	moving  mover
	working chan struct{} // 1 token: held by Compact

	// A block gets its place, and loses it, under the lock of its stripe. Reads and writes of blocks that have a place take none.
	stripes [256]sync.Mutex

	scanned atomic.Bool   // free space is known
	scanSem chan struct{} // 1 token: held by the scan
}

// Open opens an image. On success the disk owns the backing file and closes it; on an error the caller still does.
//
// An image with entries in its log is replayed: into the file, or in memory when o.ReadOnly is set. The parents of a differencing disk are found by
// o.Resolver, opened read-only, locked against writers where their files have locks, and closed with the disk. Each must have the DataWriteGuid that its child
// was made for. What is not a VHDX image is an [ErrNotVHDX], a damaged one a [*CorruptError], one that needs more than this package can do an
// [ErrUnsupported], one whose parent is missing or another a [*ChainError].
func Open(ctx context.Context, b Backing, o Options) (*Disk, error) { return open(ctx, b, o, nil) }

func open(ctx context.Context, b Backing, o Options, line []ancestor) (*Disk, error) {
	lg := o.Logger
	if lg == nil {
		lg = slog.New(slog.DiscardHandler)
	}
	if l, ok := b.(Locker); ok {
		if err := l.Lock(ctx, !o.ReadOnly); err != nil {
			return nil, err
		}
	}
	// The chain is looked at before the log is replayed: an image that cannot be used is not changed.
	p, err := parseImage(ctx, b, false)
	if errors.Is(err, errOverlay) && !o.ReadOnly {
		p, err = parseImage(ctx, b, true)
	}
	if err != nil {
		return nil, err
	}
	d := &Disk{readOnly: o.ReadOnly, log: lg, gate: newGate(), scanSem: make(chan struct{}, 1), working: make(chan struct{}, 1)}
	if d.locator, err = p.parentLocator(); err != nil {
		return nil, err
	}
	if d.locator != nil && !o.detached {
		if o.Resolver == nil {
			return nil, ErrDifferencing
		}
		line = append(line, ancestor{o.Name, p.headers.h[p.headers.current].fileWriteGUID})
		if d.parent, err = openParent(ctx, d.locator, &o, line, false); err != nil {
			return nil, err
		}
		if d.parent.params.logical != p.params.logical {
			err = corrupt("metadata", p.layout.meta.off, "the sectors of the image have %d bytes, those of its parent %d", p.params.logical, d.parent.params.logical)
		}
	}
	if err == nil {
		err = d.open(ctx, b, p, &o)
	}
	if err != nil && d.parent != nil {
		_ = d.parent.Close()
	}
	if err != nil {
		return nil, err
	}
	lg.Debug("opened VHDX image", "kind", d.info.Kind, "size", d.info.Size, "block_size", d.info.BlockSize,
		"log", d.info.LogState, "read_only", o.ReadOnly)
	if d.info.LogState == LogReplayed {
		lg.Info("replayed the log of a VHDX image that was not closed", "entries", d.info.LogEntriesReplayed, "in_memory", o.ReadOnly)
	}
	return d, nil
}

// open makes the disk of what was read.
func (d *Disk) open(ctx context.Context, b Backing, p *image, o *Options) error {
	if _, inMemory := p.file.(*overlay); inMemory && !o.ReadOnly {
		var err error
		if p, err = parseImage(ctx, b, true); err != nil {
			return err
		}
	}
	d.file, d.layout, d.params, d.geo, d.meta = p.file, p.layout, p.params, newGeometry(&p.params), p.meta
	if need := d.geo.entries * batEntrySize; need > p.layout.bat.n {
		return corrupt("BAT", p.layout.bat.off, "its region has %d bytes, the disk needs %d", p.layout.bat.n, need)
	}
	d.size.Store(d.geo.size)
	d.cacheBytes, d.opts = o.BATCacheBytes, *o
	d.info = p.info(&d.geo)
	d.info.Name = o.Name
	if d.locator != nil {
		d.info.Parent = &ParentInfo{ParentLocator: *d.locator}
		if d.parent != nil {
			d.info.Parent.Place = d.parent.info.Name
		}
	}
	d.space = newSpace(d.file, d.geo.blockSize, p.fileSize, d.gate)
	d.bat = newBATTable(d.file, p.layout.bat, &d.geo, p.params.hasParent, o.BATCacheBytes, d.space.size.Load)
	if p.params.hasParent {
		d.bits = newBitmapTable(d.bat, maxBitPages)
	}
	d.opened = knownHeaders{current: p.headers.h[p.headers.current], slot: p.headers.current}
	if o.ReadOnly {
		return nil
	}
	d.session = newSession(b, d.opened.current, d.opened.slot)
	if err := d.recover(ctx, p); err != nil {
		return err
	}
	d.commit = &committer{
		b: b, bat: d.bat, space: d.space, sem: make(chan struct{}, 1),
		log: &logWriter{b: b, log: p.layout.log, bat: p.layout.bat, s: d.session},
	}
	if d.geo.entries <= scanAtOpen {
		return d.ensureScan(ctx)
	}
	return nil
}

// scanAtOpen is the number of BAT entries up to which an open for writing reads them all at once, and so finds damage early. With more the
// scan waits until the first change of the BAT.
const scanAtOpen = 1 << 17

// recover puts the log out of use after its entries were replayed into the file.
func (d *Disk) recover(ctx context.Context, p *image) error {
	if p.logState == LogClean {
		return nil
	}
	if err := d.session.setLog(ctx, GUID{}); err != nil {
		return fmt.Errorf("clear the log: %w", err)
	}
	d.info.FileWriteGUID = d.session.header().fileWriteGUID
	return nil
}

func (d *Disk) ensureScan(ctx context.Context) error {
	if d.scanned.Load() {
		return nil
	}
	select {
	case d.scanSem <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.scanSem }()
	if d.scanned.Load() {
		return nil
	}
	if err := d.scanSpace(ctx, false); err != nil {
		return err
	}
	d.scanned.Store(true)
	return nil
}

// Size is the size of the virtual disk in bytes.
func (d *Disk) Size() int64 { return d.size.Load() }

// BlockSizes returns the sector sizes of the virtual disk in bytes. There is no best and no largest size of a request.
func (d *Disk) BlockSizes() (logical, physical, optimal, maxTransfer int) {
	return int(d.params.logical), int(d.params.physical), 0, 0
}

// ReadOnly reports whether the disk was opened read-only.
func (d *Disk) ReadOnly() bool { return d.readOnly }

// FastZero reports whether WriteZeroes is faster than writing zeros.
func (d *Disk) FastZero() bool {
	_, punch := d.file.(HolePuncher)
	_, zero := d.file.(Zeroer)
	return punch || zero
}

// Info describes the image. It does no I/O.
func (d *Disk) Info() Info {
	d.infoMu.Lock()
	i := d.info
	d.infoMu.Unlock()
	i.FileSize = d.space.size.Load()
	if d.session != nil {
		h := d.session.header()
		i.FileWriteGUID, i.DataWriteGUID = h.fileWriteGUID, h.dataWriteGUID
	}
	return i
}

// Usage counts how the blocks are used. It reads the whole BAT.
func (d *Disk) Usage(ctx context.Context) (Usage, error) {
	c, err := d.gate.enter(ctx, 0)
	if err != nil {
		return Usage{}, err
	}
	defer d.gate.leave(c)
	var u Usage
	for b := int64(0); b < d.geo.blocks; {
		if d.bat.unused(d.geo.entryOf(b)) {
			b += max(d.bat.run(ctx, b, notPresent), 1)
			continue
		}
		v, err := d.bat.entry(ctx, d.geo.entryOf(b))
		if err != nil {
			return u, err
		}
		u.count(v, d.geo.blockSize)
		b++
	}
	return u, nil
}

func (u *Usage) count(v uint64, blockSize int64) {
	switch v & stateMask {
	case blockPresent, blockPartPresent:
		if v&stateMask == blockPartPresent {
			u.PartialBlocks++
		}
		u.AllocatedBlocks++
		u.AllocatedBytes += blockSize
	case blockZero:
		u.ZeroBlocks++
	case blockUnmapped, blockUndefined:
		u.UnmappedBlocks++
	case blockBad:
		u.DamagedEntries++
	}
}
