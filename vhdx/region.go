package vhdx

var (
	regionBAT      = mustGUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
	regionMetadata = mustGUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
)

const regionSignature = "regi"

// regionEntry is one row of a region table. [MS-VHDX] 2.2.3.2
type regionEntry struct {
	id       GUID
	offset   uint64
	length   uint32
	required bool
}

func (e regionEntry) extent() extent { return extent{int64(e.offset), int64(e.length)} }

// decodeRegionTable decodes one copy and checks everything that can be checked without the rest of the image. at is its place, for messages.
func decodeRegionTable(b []byte, at int64) ([]regionEntry, error) {
	if len(b) < regionTableSize {
		return nil, corrupt("region table", at, "%d bytes where %d are needed", len(b), regionTableSize)
	}
	b = b[:regionTableSize]
	if string(b[:4]) != regionSignature {
		return nil, corrupt("region table", at, "the signature is missing")
	}
	if got, want := checksum(b, 4), le.Uint32(b[4:]); got != want {
		return nil, corrupt("region table", at, "the checksum is %08x where %08x is stored", got, want)
	}
	n := le.Uint32(b[8:])
	if n > regionMaxEntries {
		return nil, corrupt("region table", at, "%d entries where %d is the most", n, regionMaxEntries)
	}
	out := make([]regionEntry, n)
	seen := make(map[GUID]bool, n)
	for i := range out {
		r := b[16+32*i:]
		e := &out[i]
		copy(e.id[:], r)
		e.offset = le.Uint64(r[16:])
		e.length = le.Uint32(r[24:])
		e.required = le.Uint32(r[28:])&1 != 0
		switch {
		case seen[e.id]:
			return nil, corrupt("region table", at, "region %s is listed twice", e.id)
		case e.offset%mib != 0 || e.offset < headerSectionLen || e.offset > maxFileSize:
			return nil, corrupt("region table", at, "region %s has the offset %d, which is not a multiple of 1 MiB behind the header section", e.id, e.offset)
		case e.length == 0 || e.length%mib != 0:
			return nil, corrupt("region table", at, "region %s has the length %d, which is not a positive multiple of 1 MiB", e.id, e.length)
		}
		seen[e.id] = true
	}
	return out, nil
}

// encodeRegionTable fills b, at least regionTableSize long.
func encodeRegionTable(b []byte, entries []regionEntry) {
	b = b[:regionTableSize]
	clear(b)
	copy(b, regionSignature)
	le.PutUint32(b[8:], uint32(len(entries)))
	for i, e := range entries {
		r := b[16+32*i:]
		copy(r, e.id[:])
		le.PutUint64(r[16:], e.offset)
		le.PutUint32(r[24:], e.length)
		if e.required {
			le.PutUint32(r[28:], 1)
		}
	}
	le.PutUint32(b[4:], checksum(b, 4))
}

// regions is what a region table means to us.
type regions struct {
	bat, meta extent
	others    []regionEntry // optional ones that we do not know: left alone
}

// interpretRegions finds the regions that we know, refuses required ones that we do not, and checks that none overlaps another or the log.
func interpretRegions(entries []regionEntry, log extent, fileSize, at int64) (regions, error) {
	var r regions
	all := []extent{{0, headerSectionLen}, log}
	names := []string{"the header section", "the log"}
	for _, e := range entries {
		x, name := e.extent(), "region "+e.id.String()
		switch e.id {
		case regionBAT:
			r.bat, name = x, "the BAT"
		case regionMetadata:
			r.meta, name = x, "the metadata region"
		default:
			if e.required {
				return r, &requiredError{"region", e.id}
			}
			r.others = append(r.others, e)
		}
		if x.end() > fileSize {
			return r, corrupt("region table", at, "%s at %d (%d bytes) is outside the file of %d bytes", name, x.off, x.n, fileSize)
		}
		all, names = append(all, x), append(names, name)
	}
	if r.bat.n == 0 {
		return r, corrupt("region table", at, "there is no BAT region")
	}
	if r.meta.n == 0 {
		return r, corrupt("region table", at, "there is no metadata region")
	}
	if i, j, bad := firstOverlap(all); bad {
		return r, corrupt("region table", at, "%s and %s overlap", names[i], names[j])
	}
	return r, nil
}
