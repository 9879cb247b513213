package vhdx

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
)

// Structures besides BAT and bitmaps change seldom, and then several sectors at once or none: one log entry holds them all.

// atomic makes changes of sectors durable, all or none, together with every payload that was written before. The updates are in place, and no older
// log entry counts any more, when it returns. It is for callers who keep everybody else out.
func (c *committer) atomic(ctx context.Context, updates []logUpdate) error {
	select {
	case c.sem <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.sem }()
	if err := c.failed(); err != nil {
		return err
	}
	if err := c.log.start(ctx, c.space.stable.Load(), c.space.end.Load()); err != nil {
		return fmt.Errorf("start the log: %w", err)
	}
	k := 0
	for range c.log.log.n / logSector { // until the head has come round to where there is room, at the latest
		if err := c.makeRoom(ctx); err != nil {
			return err
		}
		if k, _ = c.log.room(len(updates)); k == len(updates) {
			break
		}
		if k == 0 {
			continue
		}
		// The end of the log is near: fill it with something that changes nothing.
		fill := logUpdate{off: updates[0].off, data: new([logSector]byte)}
		if err := readFull(ctx, c.b, fill.data[:], fill.off); err != nil {
			return err
		}
		if err := c.write(ctx, slices.Repeat([]logUpdate{fill}, k)); err != nil {
			return err
		}
	}
	if k < len(updates) {
		return fmt.Errorf("the log of %d bytes is too small for a change of %d sectors at once: %w", c.log.log.n, len(updates), ErrUnsupported)
	}
	// From here on nobody may give up half way: whether the entry is durable would not be known, and what is in memory would no longer fit.
	ctx = context.WithoutCancel(ctx)
	err := c.write(ctx, updates)
	if err == nil {
		err = c.makeRoom(ctx)
	}
	if err != nil {
		final := fmt.Errorf("an earlier change of the structure failed half way; close the image and open it again: %w", err)
		c.broken.CompareAndSwap(nil, &final)
	}
	return err
}

// write writes one log entry, makes it durable, and puts the updates in place. sem is held.
func (c *committer) write(ctx context.Context, updates []logUpdate) error {
	if err := c.log.append(ctx, updates, c.space.stable.Load(), c.space.end.Load()); err != nil {
		return err
	}
	if err := c.flush(ctx); err != nil {
		return err
	}
	c.entries.Add(1)
	c.log.advance(entryLen(len(updates)))
	return c.apply(ctx, slices.Clone(updates))
}

// diffSectors lists the sectors in which new differs from old, which lies at off. Both are whole sectors long.
func diffSectors(off int64, old, new []byte) []logUpdate {
	var out []logUpdate
	for i := 0; i < len(new); i += logSector {
		if !bytes.Equal(old[i:i+logSector], new[i:i+logSector]) {
			u := logUpdate{off: off + int64(i), data: sectorOf(new[i : i+logSector])}
			out = append(out, u)
		}
	}
	return out
}

func sectorOf(b []byte) *[logSector]byte {
	s := [logSector]byte(b)
	return &s
}

// planMetadata writes items to free space in the metadata region, where nothing refers to them, and returns the changes of the table that put
// them in the place of those with the same ID, and take out the ones in remove.
func (d *Disk) planMetadata(ctx context.Context, items []metaItem, remove []metaEntry) ([]logUpdate, []metaEntry, error) {
	region := d.layout.meta
	entries := slices.Clone(d.meta)
	same := func(a, b metaEntry) bool { return a.id == b.id && a.user == b.user }
	var used []extent
	for _, e := range entries {
		if e.length > 0 {
			used = append(used, extent{int64(e.offset), int64(e.length)})
		}
	}
	entries = slices.DeleteFunc(entries, func(e metaEntry) bool {
		return slices.ContainsFunc(remove, func(r metaEntry) bool { return same(e, r) })
	})
	for _, it := range items {
		e := it.metaEntry
		e.offset, e.length = 0, uint32(len(it.data))
		if e.length > 0 {
			slices.SortFunc(used, func(a, b extent) int { return cmp.Compare(a.off, b.off) })
			at := int64(metaTableSize)
			for _, u := range used {
				if u.off-at >= int64(e.length) {
					break
				}
				at = max(at, u.end())
			}
			if at+int64(e.length) > region.n {
				return nil, nil, fmt.Errorf("the metadata region of %d bytes has no room for an item of %d bytes: %w", region.n, e.length, ErrUnsupported)
			}
			e.offset = uint32(at)
			used = append(used, extent{at, int64(e.length)})
			if err := writeFull(ctx, d.file, it.data, region.off+at); err != nil {
				return nil, nil, fmt.Errorf("write a metadata item: %w", err)
			}
		}
		if i := slices.IndexFunc(entries, func(o metaEntry) bool { return same(o, e) }); i >= 0 {
			entries[i] = e
		} else {
			entries = append(entries, e)
		}
	}
	if len(entries) > metaMaxEntries {
		return nil, nil, fmt.Errorf("%d metadata items, the most is %d: %w", len(entries), metaMaxEntries, ErrUnsupported)
	}
	old, table := make([]byte, metaTableSize), make([]byte, metaTableSize)
	if err := readFull(ctx, d.file, old, region.off); err != nil {
		return nil, nil, fmt.Errorf("read the metadata: %w", err)
	}
	encodeMetadataTable(table, entries)
	return diffSectors(region.off, old, table), entries, nil
}

// planRegion returns the changes of both region tables that move the BAT.
func (d *Disk) planRegion(ctx context.Context, bat extent) ([]logUpdate, error) {
	var tables [2][]byte
	good := -1
	for i, at := range []int64{region1Offset, region2Offset} {
		tables[i] = make([]byte, regionTableSize)
		if err := readFull(ctx, d.file, tables[i], at); err != nil {
			return nil, fmt.Errorf("read the region table: %w", err)
		}
		if _, err := decodeRegionTable(tables[i], at); err == nil && good < 0 {
			good = i
		} else if err != nil && !errors.Is(err, ErrCorrupt) {
			return nil, err
		}
	}
	if good < 0 {
		return nil, corrupt("region table", -1, "neither copy is valid")
	}
	table := slices.Clone(tables[good])
	for i := range int(le.Uint32(table[8:])) {
		if r := table[16+32*i:]; GUID(r[:16]) == regionBAT {
			le.PutUint64(r[16:], uint64(bat.off))
			le.PutUint32(r[24:], uint32(bat.n))
		}
	}
	le.PutUint32(table[4:], checksum(table, 4))
	return append(diffSectors(region1Offset, tables[0], table), diffSectors(region2Offset, tables[1], table)...), nil
}

// exclusive runs fn while no request is inside, with everything durable that was done before. Requests that come meanwhile wait.
// data says that what the disk holds may change, and not only how it lies in the file.
func (d *Disk) exclusive(ctx context.Context, data bool, fn func() error) error {
	if d.readOnly {
		return ErrReadOnly
	}
	if err := d.gate.shut(ctx, false); err != nil {
		return err
	}
	defer d.gate.open()
	if err := d.commit.failed(); err != nil {
		return err
	}
	begin := d.session.touch
	if data {
		begin = d.session.begin
	}
	if err := begin(ctx); err != nil {
		return err
	}
	if err := d.ensureScan(ctx); err != nil {
		return err
	}
	if err := d.commit.sync(ctx); err != nil {
		return err
	}
	return fn()
}

// SetParent makes another image, or the same in another place, the parent of a differencing disk: only the locator changes, no data. The caller
// vouches that the new parent, with what this disk has itself, shows the same content. The disk goes on with the parent that it has open;
// the next open finds the new one. l.Linkage must be the DataWriteGuid of the new parent. The change is made durable, all or nothing.
func (d *Disk) SetParent(ctx context.Context, l ParentLocator) error {
	if d.locator == nil {
		return fmt.Errorf("set the parent: the disk is not a differencing disk: %w", ErrUnsupported)
	}
	if err := d.exclusive(ctx, false, func() error { return d.setLocator(ctx, l) }); err != nil {
		return fmt.Errorf("set the parent: %w", err)
	}
	return nil
}

// setLocator changes the locator. It is called in exclusive.
func (d *Disk) setLocator(ctx context.Context, l ParentLocator) error {
	l.others = d.locator.others
	b, err := l.encode()
	if err != nil {
		return err
	}
	updates, entries, err := d.planMetadata(ctx, []metaItem{{metaEntry{id: itemParentLocator, req: true}, b}}, nil)
	if err != nil {
		return err
	}
	if err := d.commit.atomic(ctx, updates); err != nil {
		return err
	}
	d.meta = entries
	d.infoMu.Lock()
	defer d.infoMu.Unlock()
	d.locator = &l
	p := *d.info.Parent
	p.ParentLocator = l
	d.info.Parent = &p
	return nil
}
