package vhdx

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// image is what the structures of a file say, before it becomes a disk.
type image struct {
	file     Backing // the file, or an overlay with the log replayed
	fileSize int64   // after the replay
	creator  string
	headers  headerPair
	scan     logScan
	logState LogState
	layout   layout
	params   params
	meta     []metaEntry
}

// parseImage reads everything but the BAT. With replay entries of the log go into the file, which is made durable; the log itself is left
// as it is. Otherwise they are replayed in memory.
func parseImage(ctx context.Context, b Backing, replay bool) (*image, error) {
	size, err := b.Size(ctx)
	if err != nil {
		return nil, fmt.Errorf("size of the image: %w", err)
	}
	p := &image{file: b, fileSize: size}
	if err := p.readHeaders(ctx); err != nil {
		return nil, err
	}
	h := &p.headers.h[p.headers.current]
	if err := h.validate(headerOffset(p.headers.current), size); err != nil {
		return nil, err
	}
	if err := p.replay(ctx, b, h, replay); err != nil {
		return nil, err
	}
	p.layout.log = extent{int64(h.logOffset), int64(h.logLength)}
	if err := p.readRegions(ctx); err != nil {
		return nil, err
	}
	return p, p.readMetadata(ctx)
}

// readHeaders reads the file type identifier and both headers.
func (p *image) readHeaders(ctx context.Context) error {
	var id [8 + creatorBytes]byte
	n, err := p.file.ReadAt(ctx, id[:], 0)
	if n < len(id) && err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the image: %w", err)
	}
	if n < 8 || string(id[:8]) != fileIDSignature {
		return ErrNotVHDX
	}
	p.creator = decodeCreator(id[8:n])
	if p.fileSize < headerSectionLen {
		return corrupt("file", -1, "it has %d bytes, less than the header section", p.fileSize)
	}
	var slots [2][headerSize]byte
	for i := range slots {
		if err := readFull(ctx, p.file, slots[i][:], headerOffset(i)); err != nil {
			return fmt.Errorf("read the headers: %w", err)
		}
	}
	p.headers, err = parseHeaders(slots[0][:], slots[1][:])
	return err
}

func (p *image) replay(ctx context.Context, b Backing, h *header, inFile bool) error {
	p.logState = LogClean
	if h.logGUID.IsZero() {
		return nil
	}
	r, s, err := findLog(ctx, b, h, p.fileSize)
	if err != nil {
		return err
	}
	p.scan = s
	if len(s.active) == 0 {
		p.logState = LogEmpty
		return nil
	}
	p.logState = LogReplayed
	if !inFile {
		o := newOverlay(b, p.fileSize)
		if err := replayLog(ctx, r, &s, o); err != nil {
			return err
		}
		p.file, p.fileSize = o, o.size
		return nil
	}
	// The file gets a new FileWriteGuid before the first change, and the log is replayed in memory first, so that a log that turns out to be
	// impossible half way leaves the file as it was.
	check := newOverlay(b, p.fileSize)
	switch err := replayLog(ctx, r, &s, check); {
	case errors.Is(err, errOverlay): // too large for memory: it goes unchecked
	case err != nil:
		return err
	default:
		trial := image{file: check, fileSize: check.size, layout: layout{log: r.log}}
		if err := trial.readRegions(ctx); err != nil {
			return err
		}
		if err := trial.readMetadata(ctx); err != nil {
			return err
		}
	}
	sess := newSession(b, *h, p.headers.current)
	if err := sess.setLog(ctx, h.logGUID); err != nil {
		return err
	}
	p.headers.h[sess.slot], p.headers.current = sess.current, sess.slot
	t := &fileTarget{b: b, size: p.fileSize}
	if err := replayLog(ctx, r, &s, t); err != nil {
		return err
	}
	if err := b.Flush(ctx); err != nil {
		return fmt.Errorf("flush the replayed log: %w", err)
	}
	p.fileSize = t.size
	return nil
}

// readRegions reads the region table, from its second copy if the first is damaged.
func (p *image) readRegions(ctx context.Context) error {
	b := make([]byte, regionTableSize)
	var first error
	for _, at := range []int64{region1Offset, region2Offset} {
		if err := readFull(ctx, p.file, b, at); err != nil {
			return fmt.Errorf("read the region table: %w", err)
		}
		entries, err := decodeRegionTable(b, at)
		if err == nil {
			var r regions
			r, err = interpretRegions(entries, p.layout.log, p.fileSize, at)
			if err == nil || !errors.Is(err, ErrCorrupt) {
				p.layout.bat, p.layout.meta, p.layout.others = r.bat, r.meta, r.others
				return err
			}
		}
		if first == nil {
			first = err
		}
	}
	return first
}

func (p *image) readMetadata(ctx context.Context) error {
	m := p.layout.meta
	b := make([]byte, metaTableSize)
	if err := readFull(ctx, p.file, b, m.off); err != nil {
		return fmt.Errorf("read the metadata: %w", err)
	}
	var err error
	if p.meta, err = decodeMetadataTable(b, m.n, m.off); err != nil {
		return err
	}
	p.params, err = interpretMetadata(p.meta, m.off, func(e metaEntry) ([]byte, error) {
		v := make([]byte, e.length)
		return v, readFull(ctx, p.file, v, m.off+int64(e.offset))
	})
	return err
}

// info fills in what is known of an image.
func (p *image) info(g *geometry) Info {
	h := &p.headers.h[p.headers.current]
	i := Info{
		Kind: p.params.kind(), Size: p.params.size, BlockSize: p.params.blockSize, Blocks: g.blocks,
		LogicalSectorSize: int(p.params.logical), PhysicalSectorSize: int(p.params.physical),
		VirtualDiskID: p.params.id, FileWriteGUID: h.fileWriteGUID, DataWriteGUID: h.dataWriteGUID, Creator: p.creator,
		LogState: p.logState, LogEntriesReplayed: len(p.scan.active), LogOffset: p.layout.log.off, LogLength: p.layout.log.n,
		BATOffset: p.layout.bat.off, BATLength: p.layout.bat.n,
		MetadataOffset: p.layout.meta.off, MetadataLength: p.layout.meta.n, FileSize: p.fileSize,
	}
	for _, e := range p.meta {
		if e.user {
			i.UserMetadataItems++
		}
	}
	return i
}
