package vhdx

import (
	"context"
	"errors"
	"fmt"
	"unicode/utf16"
)

// CreateOptions describe a new image. Only Size is needed.
type CreateOptions struct {
	Size           int64  // bytes; a positive multiple of LogicalSector, at most 64 TiB
	Fixed          bool   // give every block its space now
	BlockSize      int64  // a power of two from 1 MiB to 256 MiB; 0 means 32 MiB
	LogicalSector  int    // 512 or 4096; 0 means 512
	PhysicalSector int    // 512 or 4096, at least LogicalSector; 0 means 4096
	LogSize        int64  // a multiple of 1 MiB, at most 1 GiB; 0 means 1 MiB
	VirtualDiskID  GUID   // zero: a random one
	DataWriteGUID  GUID   // zero: a random one
	Creator        string // at most 255 UTF-16 units; "" means "vdbridge"
	Sparse         bool   // with Fixed: do not reserve the space on the host
	Overwrite      bool   // allow a backing file that is not empty; what it holds is lost

	parent *ParentLocator // makes it a differencing image; see CreateChild
	extra  []metaItem
}

// Defaults of CreateOptions.
const (
	DefaultBlockSize = 32 * mib
	DefaultLogSize   = mib
	defaultCreator   = "vdbridge"
	metaSpare        = 256 * kib // free space in the metadata region, for items that change
	maxLogSize       = 1 << 30
)

// complete fills in defaults and checks every limit.
func (o CreateOptions) complete() (CreateOptions, error) {
	if o.BlockSize == 0 {
		o.BlockSize = DefaultBlockSize
	}
	if o.LogicalSector == 0 {
		o.LogicalSector = 512
	}
	if o.PhysicalSector == 0 {
		o.PhysicalSector = 4096
	}
	if o.LogSize == 0 {
		o.LogSize = DefaultLogSize
	}
	if o.VirtualDiskID.IsZero() {
		o.VirtualDiskID = NewGUID()
	}
	if o.DataWriteGUID.IsZero() {
		o.DataWriteGUID = NewGUID()
	}
	if o.Creator == "" {
		o.Creator = defaultCreator
	}
	sector := func(n int) bool { return n == 512 || n == 4096 }
	switch {
	case !sector(o.LogicalSector):
		return o, fmt.Errorf("logical sector size %d: it must be 512 or 4096", o.LogicalSector)
	case !sector(o.PhysicalSector):
		return o, fmt.Errorf("physical sector size %d: it must be 512 or 4096", o.PhysicalSector)
	case o.PhysicalSector < o.LogicalSector:
		return o, fmt.Errorf("physical sector size %d: it must not be less than the logical sector size %d", o.PhysicalSector, o.LogicalSector)
	case o.Size <= 0 || o.Size > maxVirtualSize:
		return o, fmt.Errorf("size %d: it must be from one sector to 64 TiB", o.Size)
	case o.Size%int64(o.LogicalSector) != 0:
		return o, fmt.Errorf("size %d: it must be a multiple of the logical sector size %d", o.Size, o.LogicalSector)
	case o.BlockSize < minBlockSize || o.BlockSize > maxBlockSize || o.BlockSize&(o.BlockSize-1) != 0:
		return o, fmt.Errorf("block size %d: it must be a power of two from 1 MiB to 256 MiB", o.BlockSize)
	case o.LogSize < mib || o.LogSize > maxLogSize || o.LogSize%mib != 0:
		return o, fmt.Errorf("log size %d: it must be a multiple of 1 MiB, at most 1 GiB", o.LogSize)
	case len(utf16.Encode([]rune(o.Creator))) >= creatorBytes/2:
		return o, fmt.Errorf("creator: it must have at most %d UTF-16 units", creatorBytes/2-1)
	}
	return o, nil
}

// Create writes a new, empty image and makes it durable. The backing file stays open and the caller's. The signature is written last, so that what a crash leaves
// is not taken for an image.
func Create(ctx context.Context, b Backing, o CreateOptions) error {
	o, err := o.complete()
	if err != nil {
		return fmt.Errorf("create image: %w", err)
	}
	if err := create(ctx, b, &o); err != nil {
		return fmt.Errorf("create image: %w", err)
	}
	return nil
}

func create(ctx context.Context, b Backing, o *CreateOptions) error {
	size, err := b.Size(ctx)
	if err != nil {
		return err
	}
	if size != 0 {
		if !o.Overwrite {
			return ErrNotEmpty
		}
		if err := b.Truncate(ctx, 0); err != nil {
			return err
		}
		if err := b.Flush(ctx); err != nil {
			return err
		}
	}
	p := params{
		blockSize: o.BlockSize, leaveAllocated: o.Fixed, size: o.Size,
		logical: int64(o.LogicalSector), physical: int64(o.PhysicalSector), id: o.VirtualDiskID, extra: o.extra,
	}
	if o.parent != nil {
		p.hasParent = true
		if p.locator, err = o.parent.encode(); err != nil {
			return err
		}
	}
	g := newGeometry(&p)
	l := layout{log: extent{headerSectionLen, o.LogSize}}
	l.meta = extent{l.log.end(), roundUp(p.metaLen()+metaSpare, mib)}
	l.bat = extent{l.meta.end(), roundUp(g.entries*batEntrySize, mib)}
	end := l.bat.end()
	payload := extent{end, 0}
	if o.Fixed {
		payload.n = g.blocks * g.blockSize
		end = payload.end()
	}
	if err := b.Truncate(ctx, end); err != nil {
		return err
	}
	if o.Fixed && !o.Sparse {
		if a, ok := b.(Allocator); ok {
			if err := a.Allocate(ctx, payload.off, payload.n); err != nil && !errors.Is(err, errors.ErrUnsupported) {
				return fmt.Errorf("reserve %d bytes: %w", payload.n, err)
			}
		}
	}
	meta := make([]byte, roundUp(p.metaLen(), logSector))
	p.encode(meta)
	if err := writeFull(ctx, b, meta, l.meta.off); err != nil {
		return err
	}
	if o.Fixed {
		if err := writeFixedBAT(ctx, b, &g, l.bat.off, payload.off); err != nil {
			return err
		}
	}
	table := make([]byte, regionTableSize)
	encodeRegionTable(table, []regionEntry{
		{regionBAT, uint64(l.bat.off), uint32(l.bat.n), true},
		{regionMetadata, uint64(l.meta.off), uint32(l.meta.n), true},
	})
	for _, at := range []int64{region1Offset, region2Offset} {
		if err := writeFull(ctx, b, table, at); err != nil {
			return err
		}
	}
	for slot := range 2 {
		h := header{
			sequence: uint64(slot), fileWriteGUID: NewGUID(), dataWriteGUID: o.DataWriteGUID, version: 1,
			logLength: uint32(l.log.n), logOffset: uint64(l.log.off),
		}
		var hb [headerSize]byte
		h.encode(hb[:])
		if err := writeFull(ctx, b, hb[:], headerOffset(slot)); err != nil {
			return err
		}
	}
	if err := b.Flush(ctx); err != nil {
		return err
	}
	id := make([]byte, 8+creatorBytes)
	copy(id, fileIDSignature)
	for i, u := range utf16.Encode([]rune(o.Creator)) {
		le.PutUint16(id[8+2*i:], u)
	}
	if err := writeFull(ctx, b, id, 0); err != nil {
		return err
	}
	return b.Flush(ctx)
}

// writeFixedBAT writes the entries of a fixed image, whose blocks lie in order from first on.
func writeFixedBAT(ctx context.Context, b Backing, g *geometry, at, first int64) error {
	buf := make([]byte, 0, mib)
	for i := range g.entries {
		var v uint64
		if block, ok := g.blockOf(i); ok {
			v = uint64(first+block<<g.blockShift) | blockPresent
		}
		buf = le.AppendUint64(buf, v)
		if len(buf) == cap(buf) || i == g.entries-1 {
			if err := writeFull(ctx, b, buf, at); err != nil {
				return err
			}
			at += int64(len(buf))
			buf = buf[:0]
		}
	}
	return nil
}
