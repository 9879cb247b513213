package vhdx

import "fmt"

// Known metadata items. [MS-VHDX] 2.6.2
var (
	itemFileParameters = mustGUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
	itemVirtualSize    = mustGUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
	itemVirtualID      = mustGUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
	itemLogicalSector  = mustGUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
	itemPhysicalSector = mustGUID("CDA348C7-445D-4471-9CC9-E9885251C556")
	itemParentLocator  = mustGUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
)

const metaSignature = "metadata"

// metaEntry is one row of the metadata table. [MS-VHDX] 2.6.1.2
type metaEntry struct {
	id              GUID
	offset, length  uint32 // offset from the start of the region
	user, disk, req bool
}

// Bits of the flags of a metadata entry.
const (
	metaIsUser = 1 << iota
	metaIsVirtualDisk
	metaIsRequired
)

// decodeMetadataTable decodes the table at the start of a region of regionLen bytes that lies at offset at.
func decodeMetadataTable(b []byte, regionLen, at int64) ([]metaEntry, error) {
	if len(b) < metaTableSize {
		return nil, corrupt("metadata", at, "%d bytes where %d are needed", len(b), metaTableSize)
	}
	b = b[:metaTableSize]
	if string(b[:8]) != metaSignature {
		return nil, corrupt("metadata", at, "the signature of the table is missing")
	}
	n := int(le.Uint16(b[10:]))
	if n > metaMaxEntries {
		return nil, corrupt("metadata", at, "%d entries where %d is the most", n, metaMaxEntries)
	}
	type key struct {
		id   GUID
		user bool
	}
	out := make([]metaEntry, n)
	seen := make(map[key]bool, n)
	var used []extent
	users := 0
	for i := range out {
		r := b[32+32*i:]
		e := &out[i]
		copy(e.id[:], r)
		e.offset, e.length = le.Uint32(r[16:]), le.Uint32(r[20:])
		flags := le.Uint32(r[24:])
		e.user, e.disk, e.req = flags&metaIsUser != 0, flags&metaIsVirtualDisk != 0, flags&metaIsRequired != 0
		k := key{e.id, e.user}
		switch {
		case seen[k]:
			return nil, corrupt("metadata", at, "item %s is listed twice", e.id)
		case e.length > metaMaxItem:
			return nil, corrupt("metadata", at, "item %s has %d bytes, the most is 1 MiB", e.id, e.length)
		case e.length > 0 && (e.offset < metaTableSize || int64(e.offset)+int64(e.length) > regionLen):
			return nil, corrupt("metadata", at, "item %s at %d (%d bytes) is outside the metadata region of %d bytes", e.id, e.offset, e.length, regionLen)
		}
		seen[k] = true
		if e.user {
			users++
		}
		if e.length > 0 {
			used = append(used, extent{int64(e.offset), int64(e.length)})
		}
	}
	if users > metaMaxUser {
		return nil, corrupt("metadata", at, "%d user items, the most is %d", users, metaMaxUser)
	}
	if i, j, bad := firstOverlap(used); bad {
		return nil, corrupt("metadata", at, "the items at %d and %d overlap", used[i].off, used[j].off)
	}
	return out, nil
}

// encodeMetadataTable fills b, at least metaTableSize long.
func encodeMetadataTable(b []byte, entries []metaEntry) {
	b = b[:metaTableSize]
	clear(b)
	copy(b, metaSignature)
	le.PutUint16(b[10:], uint16(len(entries)))
	for i, e := range entries {
		r := b[32+32*i:]
		copy(r, e.id[:])
		le.PutUint32(r[16:], e.offset)
		le.PutUint32(r[20:], e.length)
		var flags uint32
		if e.user {
			flags |= metaIsUser
		}
		if e.disk {
			flags |= metaIsVirtualDisk
		}
		if e.req {
			flags |= metaIsRequired
		}
		le.PutUint32(r[24:], flags)
	}
}

// params are the known metadata items.
type params struct {
	blockSize      int64
	leaveAllocated bool // a fixed image
	hasParent      bool
	size           int64
	logical        int64
	physical       int64
	id             GUID
	locator        []byte     // the parent locator item, nil when there is none
	extra          []metaItem // for a new image: items besides the known ones
}

// metaItem is a metadata item with what it holds.
type metaItem struct {
	metaEntry
	data []byte
}

// knownItem is a system item that we understand, with its length; length 0 is variable.
type knownItem struct {
	id     GUID
	length uint32
	must   bool
	name   string
}

var knownItems = []knownItem{
	{itemFileParameters, 8, true, "file parameters"},
	{itemVirtualSize, 8, true, "virtual disk size"},
	{itemVirtualID, 16, true, "virtual disk ID"},
	{itemLogicalSector, 4, true, "logical sector size"},
	{itemPhysicalSector, 4, true, "physical sector size"},
	{itemParentLocator, 0, false, "parent locator"},
}

// interpretMetadata reads the known items through item, which returns the bytes of one, and checks their values.
func interpretMetadata(entries []metaEntry, at int64, item func(metaEntry) ([]byte, error)) (params, error) {
	var p params
	found := make(map[GUID][]byte)
	for _, e := range entries {
		var known *knownItem
		for i := range knownItems {
			if knownItems[i].id == e.id && !e.user {
				known = &knownItems[i]
			}
		}
		if known == nil {
			if e.req {
				return p, &requiredError{"metadata item", e.id}
			}
			continue
		}
		if known.length != 0 && e.length != known.length {
			return p, corrupt("metadata", at, "the %s item has %d bytes where %d are needed", known.name, e.length, known.length)
		}
		b, err := item(e)
		if err != nil {
			return p, fmt.Errorf("read the %s: %w", known.name, err)
		}
		found[e.id] = b
	}
	for _, k := range knownItems {
		if _, ok := found[k.id]; k.must && !ok {
			return p, corrupt("metadata", at, "the %s item is missing", k.name)
		}
	}
	fp := found[itemFileParameters]
	p.blockSize = int64(le.Uint32(fp))
	p.leaveAllocated, p.hasParent = fp[4]&1 != 0, fp[4]&2 != 0
	size := le.Uint64(found[itemVirtualSize])
	copy(p.id[:], found[itemVirtualID])
	p.logical = int64(le.Uint32(found[itemLogicalSector]))
	p.physical = int64(le.Uint32(found[itemPhysicalSector]))
	p.locator = found[itemParentLocator]
	switch {
	case p.blockSize < minBlockSize || p.blockSize > maxBlockSize || p.blockSize&(p.blockSize-1) != 0:
		return p, corrupt("metadata", at, "the block size %d is not a power of two from 1 MiB to 256 MiB", p.blockSize)
	case p.logical != 512 && p.logical != 4096:
		return p, corrupt("metadata", at, "the logical sector size %d is neither 512 nor 4096", p.logical)
	case p.physical != 512 && p.physical != 4096:
		return p, corrupt("metadata", at, "the physical sector size %d is neither 512 nor 4096", p.physical)
	case size == 0 || size > maxVirtualSize || size%uint64(p.logical) != 0:
		return p, corrupt("metadata", at, "the virtual disk size %d is not a positive multiple of the sector size %d of at most 64 TiB", size, p.logical)
	case p.hasParent && p.locator == nil:
		return p, corrupt("metadata", at, "the image has a parent but no parent locator")
	}
	p.size = int64(size)
	return p, nil
}

func (p *params) kind() Kind {
	switch {
	case p.hasParent:
		return KindDifferencing
	case p.leaveAllocated:
		return KindFixed
	}
	return KindDynamic
}

// encode writes the known items, and the table before them, into b, which is the beginning of a metadata region.
func (p *params) encode(b []byte) {
	off := uint32(metaTableSize)
	var entries []metaEntry
	put := func(e metaEntry, v []byte) {
		if e.length = uint32(len(v)); len(v) > 0 {
			e.offset = off
			copy(b[off:], v)
		} else {
			e.offset = 0
		}
		entries = append(entries, e)
		off += e.length
	}
	add := func(id GUID, disk bool, v []byte) { put(metaEntry{id: id, disk: disk, req: true}, v) }
	fp := le.AppendUint32(nil, uint32(p.blockSize))
	var flags uint32
	if p.leaveAllocated {
		flags |= 1
	}
	if p.hasParent {
		flags |= 2
	}
	add(itemFileParameters, false, le.AppendUint32(fp, flags))
	add(itemVirtualSize, true, le.AppendUint64(nil, uint64(p.size)))
	add(itemVirtualID, true, p.id[:])
	add(itemLogicalSector, true, le.AppendUint32(nil, uint32(p.logical)))
	add(itemPhysicalSector, true, le.AppendUint32(nil, uint32(p.physical)))
	if p.locator != nil {
		add(itemParentLocator, false, p.locator)
	}
	for _, x := range p.extra {
		put(x.metaEntry, x.data)
	}
	encodeMetadataTable(b, entries)
}

// metaLen is how many bytes of a metadata region encode fills.
func (p *params) metaLen() int64 {
	n := int64(metaTableSize + 40 + len(p.locator))
	for _, x := range p.extra {
		n += int64(len(x.data))
	}
	return n
}

// geometry is the arithmetic that follows from the metadata.
type geometry struct {
	size       int64
	blockSize  int64
	blockShift uint
	ratio      int64 // payload blocks in a chunk, [MS-VHDX] 2.4
	ratioShift uint
	blocks     int64 // payload blocks
	entries    int64 // BAT entries, sector bitmap entries included
}

// newGeometry works for values that interpretMetadata accepted. [MS-VHDX] 2.5
func newGeometry(p *params) geometry {
	g := geometry{size: p.size, blockSize: p.blockSize}
	for 1<<g.blockShift < p.blockSize {
		g.blockShift++
	}
	g.ratio = sectorsPerChunk * p.logical / p.blockSize
	for 1<<g.ratioShift < g.ratio {
		g.ratioShift++
	}
	g.blocks = ceilDiv(p.size, p.blockSize)
	if p.hasParent {
		g.entries = ceilDiv(g.blocks, g.ratio) * (g.ratio + 1)
	} else {
		g.entries = g.blocks + (g.blocks-1)/g.ratio
	}
	return g
}

// entryOf is the BAT index of a payload block.
func (g *geometry) entryOf(block int64) int64 { return block + block>>g.ratioShift }

// bitmapEntry is the BAT index of the sector bitmap of a chunk.
func (g *geometry) bitmapEntry(chunk int64) int64 { return chunk*(g.ratio+1) + g.ratio }

// isBitmap reports whether a BAT index is that of a sector bitmap.
func (g *geometry) isBitmap(entry int64) bool { return entry%(g.ratio+1) == g.ratio }

// blockOf is the payload block of a BAT index; ok is false for a sector bitmap entry or one behind the last block.
func (g *geometry) blockOf(entry int64) (block int64, ok bool) {
	chunk, i := entry/(g.ratio+1), entry%(g.ratio+1)
	block = chunk*g.ratio + i
	return block, i != g.ratio && block < g.blocks
}

// blockLen is how many bytes of the block belong to the disk: less than the block size only for the last one.
func (g *geometry) blockLen(block int64) int64 {
	return min(g.blockSize, g.size-block<<g.blockShift)
}
