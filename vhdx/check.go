package vhdx

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// maxFindings bounds the list of a report.
const maxFindings = 1000

// checker collects findings.
type checker struct {
	o *CheckOptions
	r Report
}

func (c *checker) add(code string, s Severity, structure string, off int64, format string, args ...any) {
	if s == Damage {
		c.r.State = StateCorrupt
	}
	if len(c.r.Findings) >= maxFindings {
		c.r.MoreFindings++
		return
	}
	c.r.Findings = append(c.r.Findings, Finding{
		Code: code, Severity: s, Structure: structure, Offset: off, Message: fmt.Sprintf(format, args...), Advice: advice[code],
	})
}

// addError turns damage into a finding; any other error is returned.
func (c *checker) addError(err error) error {
	var ce *CorruptError
	if !errors.As(err, &ce) {
		return err
	}
	c.add(strings.ReplaceAll(ce.Structure, " ", "-")+"-damaged", Damage, ce.Structure, ce.Offset, "%s", ce.Reason)
	return nil
}

func check(ctx context.Context, b Backing, o *CheckOptions) (Report, error) {
	c := checker{o: o, r: Report{State: StateClean}}
	size, err := b.Size(ctx)
	if err != nil {
		return c.r, fmt.Errorf("check: size of the image: %w", err)
	}
	p := &image{file: b, fileSize: size}
	if err := c.run(ctx, b, p); err != nil {
		return c.r, fmt.Errorf("check: %w", err)
	}
	return c.r, nil
}

// run goes through the structures in the order in which they depend on each other and stops at the first that nothing behind can do without.
func (c *checker) run(ctx context.Context, b Backing, p *image) error {
	c.r.Info = Info{FileSize: p.fileSize}
	if err := p.readHeaders(ctx); err != nil {
		return c.addError(err)
	}
	for i, err := range p.headers.err {
		if err != nil {
			c.add(CodeHeaderSpare, Warning, "header", headerOffset(i), "header %d is not valid (%s); the other one is used", i+1, reason(err))
		}
	}
	h := &p.headers.h[p.headers.current]
	if other := &p.headers.h[1-p.headers.current]; p.headers.err[1-p.headers.current] == nil && other.sequence == h.sequence {
		c.add(CodeHeadersEqual, Note, "header", -1, "both headers are equal, as Disk2VHD writes them")
	}
	c.r.Info.Creator, c.r.Info.FileWriteGUID, c.r.Info.DataWriteGUID = p.creator, h.fileWriteGUID, h.dataWriteGUID
	if err := h.validate(headerOffset(p.headers.current), p.fileSize); err != nil {
		return c.addError(err)
	}
	p.layout.log = extent{int64(h.logOffset), int64(h.logLength)}
	if err := c.log(ctx, b, p, h); err != nil {
		return err
	}
	if ok, err := c.regions(ctx, p); err != nil || !ok {
		return err
	}
	if err := p.readMetadata(ctx); err != nil {
		return c.addError(err)
	}
	g := newGeometry(&p.params)
	c.r.Info = p.info(&g)
	if err := c.parents(ctx, p); err != nil {
		return err
	}
	if need := g.entries * batEntrySize; need > p.layout.bat.n {
		c.add("BAT-damaged", Damage, "BAT", p.layout.bat.off, "its region has %d bytes, the disk needs %d", p.layout.bat.n, need)
		return nil
	}
	return c.bat(ctx, p, &g)
}

// log examines the log and replays it in memory, so that the rest is judged as the next open will see it.
func (c *checker) log(ctx context.Context, b Backing, p *image, h *header) error {
	err := p.replay(ctx, b, h, false)
	switch {
	case err != nil:
		return c.addError(err)
	case p.logState == LogReplayed:
		if c.r.State == StateClean {
			c.r.State = StateDirty
		}
		c.add(CodeLogDirty, Note, "log", int64(h.logOffset), "the image was not closed: %d log entries are to be replayed (sequence numbers %d to %d)",
			len(p.scan.active), p.scan.active[0].sequence, p.scan.head.sequence)
		if p.scan.invalid > 0 {
			c.add(CodeLogIncomplete, Note, "log", int64(h.logOffset), "%d log entries are incomplete and will be ignored", p.scan.invalid)
		}
	case p.logState == LogEmpty:
		c.r.State = StateDirty
		c.add(CodeLogEmpty, Warning, "log", int64(h.logOffset), "the log is marked as in use but has no entry: its writer died before the first; there is nothing to replay")
	}
	return nil
}

// regions examines both copies of the region table and takes the first that is right.
func (c *checker) regions(ctx context.Context, p *image) (ok bool, err error) {
	var tables [2][]byte
	var errs [2]error
	for i, at := range []int64{region1Offset, region2Offset} {
		tables[i] = make([]byte, regionTableSize)
		if err := readFull(ctx, p.file, tables[i], at); err != nil {
			return false, fmt.Errorf("read the region table: %w", err)
		}
		entries, err := decodeRegionTable(tables[i], at)
		var r regions
		if err == nil {
			r, err = interpretRegions(entries, p.layout.log, p.fileSize, at)
		}
		if errs[i] = err; err != nil {
			if !errors.Is(err, ErrCorrupt) {
				return false, err
			}
			continue
		}
		if !ok {
			ok = true
			p.layout.bat, p.layout.meta, p.layout.others = r.bat, r.meta, r.others
		}
	}
	for i, err := range errs {
		switch {
		case err != nil && !ok:
			if err := c.addError(err); err != nil {
				return false, err
			}
		case err != nil:
			c.add(CodeRegionSpare, Warning, "region table", int64(region1Offset+i*regionTableSize), "copy %d is damaged (%s); the other one is used", i+1, reason(err))
		}
	}
	if errs[0] == nil && errs[1] == nil && string(tables[0]) != string(tables[1]) {
		c.add(CodeRegionDiffers, Warning, "region table", -1, "the two copies differ; the first one is used")
	}
	for _, e := range p.layout.others {
		c.add(CodeRegionUnknown, Note, "region table", int64(e.offset), "there is an optional region %s (%d bytes) that is not known; it is left alone", e.id, e.length)
	}
	return ok, nil
}

// parents looks at the locator of a differencing image, and for the parents that it names.
func (c *checker) parents(ctx context.Context, p *image) error {
	l, err := p.parentLocator()
	if err != nil {
		return c.addError(err)
	}
	if l == nil {
		return nil
	}
	c.r.Info.Parent = &ParentInfo{ParentLocator: *l}
	at := p.layout.meta.off
	if c.o.Resolver == nil {
		c.add(CodeParentUnchecked, Note, "parent locator", at, "the image is a differencing image; its parent was not looked at")
		return nil
	}
	o := Options{Resolver: c.o.Resolver, Name: c.o.Name}
	d, err := openParent(ctx, l, &o, []ancestor{{c.o.Name, p.headers.h[p.headers.current].fileWriteGUID}}, false)
	var ce *ChainError
	switch {
	case errors.As(err, &ce):
		code := map[error]string{ErrParentMissing: CodeParentMissing, ErrParentChanged: CodeParentChanged, ErrChain: CodeChain}[ce.Kind]
		c.add(code, Damage, "parent locator", at, "%v", ce)
		return nil
	case err != nil:
		return c.addError(err)
	}
	c.r.Info.Parent.Place = d.info.Name
	if d.params.logical != p.params.logical {
		c.add(CodeChain, Damage, "metadata", at, "the sectors of the image have %d bytes, those of its parent %d", p.params.logical, d.params.logical)
	}
	return d.Close()
}

// bat examines every entry.
func (c *checker) bat(ctx context.Context, p *image, g *geometry) error {
	var used usageMap
	last := int64(0)
	for _, x := range p.layout.structures() {
		used.add(x)
		last = max(last, x.end())
	}
	fixedHoles := g.blocks
	bitmaps, partial := map[int64]bool{}, map[int64]int64{} // by chunk; the first block that needs the bitmap, plus one
	err := eachEntry(ctx, p.file, p.layout.bat, g.entries, func(i int64, v uint64) error {
		at := p.layout.bat.off + i*batEntrySize
		if v&^(offsetMask|stateMask) != 0 {
			c.add(CodeReservedBits, Warning, "BAT", at, "entry %d: reserved bits are set (%016x)", i, v)
		}
		block, payload := g.blockOf(i)
		n := g.blockSize
		if !payload {
			if !g.isBitmap(i) {
				return nil // behind the last block
			}
			if why, good := checkBitmapEntry(v, p.fileSize, p.params.hasParent); !good {
				c.add(CodeBitmapBad, Damage, "BAT", at, "entry %d, of the sector bitmap of chunk %d: %s", i, i/(g.ratio+1), why)
				return nil
			}
			if notPresent(v) {
				return nil
			}
			bitmaps[i/(g.ratio+1)] = true
			n = bitmapBlock
		} else {
			if why, good := checkEntryValue(v, g.blockLen(block), p.fileSize, p.params.hasParent); !good {
				c.add(CodeBlockBad, Damage, "BAT", at, "block %d: %s", block, why)
				c.r.Usage.DamagedEntries++
				return nil
			}
			c.r.Usage.count(v, g.blockSize)
			switch v & stateMask {
			case blockPresent:
				fixedHoles--
			case blockPartPresent:
				if chunk := block >> g.ratioShift; partial[chunk] == 0 {
					partial[chunk] = block + 1
				}
			}
			if !reservesSpace(v) {
				return nil
			}
		}
		x := extent{int64(v & offsetMask), n}
		if x.off < headerSectionLen || x.off > maxFileSize || x.off >= p.fileSize {
			c.add(CodeStalePlace, Note, "BAT", at, "block %d is trimmed and remembers a place outside the file, which is ignored", block)
			return nil
		}
		if clash := used.add(x); clash >= 0 {
			c.add(CodeOverlap, Damage, "BAT", at, "entry %d (%s) uses the space at %d, which something else uses too", i, c.nameEntry(block, payload), clash)
			return nil
		}
		last = max(last, x.end())
		return nil
	})
	if err != nil {
		return err
	}
	for _, chunk := range slices.Sorted(maps.Keys(partial)) {
		if !bitmaps[chunk] {
			c.add(CodeBitmapMissing, Damage, "BAT", p.layout.bat.off+g.bitmapEntry(chunk)*batEntrySize,
				"block %d is partially present, but chunk %d has no sector bitmap", partial[chunk]-1, chunk)
		}
	}
	if p.params.kind() == KindFixed && fixedHoles > 0 {
		c.add(CodeFixedHoles, Note, "BAT", p.layout.bat.off, "the image is fixed but %d of its %d blocks have no place", fixedHoles, g.blocks)
	}
	used.gaps(p.fileSize/mib*mib, func(x extent) bool {
		c.r.LeakedBytes += x.n
		return ctx.Err() == nil
	})
	if c.r.LeakedBytes > 0 {
		c.add(CodeLeaked, Note, "file", -1, "%d bytes of the file are used by nothing; a writer uses them again", c.r.LeakedBytes)
	}
	return ctx.Err()
}

func (c *checker) nameEntry(block int64, payload bool) string {
	if payload {
		return fmt.Sprintf("block %d", block)
	}
	return "sector bitmap"
}
