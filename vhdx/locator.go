package vhdx

import (
	"strings"
	"unicode/utf16"
)

// locatorVHDX is the only type of parent locator that [MS-VHDX] defines. 2.6.2.6.3
var locatorVHDX = mustGUID("B04AEFB7-D19E-4A81-B789-25B8E9445913")

// Keys of a parent locator. [MS-VHDX] 2.6.2.6.3
const (
	keyLinkage  = "parent_linkage"
	keyLinkage2 = "parent_linkage2"
	keyRelative = "relative_path"
	keyVolume   = "volume_path"
	keyAbsolute = "absolute_win32_path"
)

const (
	locatorHeaderSize = 20
	locatorEntrySize  = 12
	// maxLocatorEntries is a limit of our own; five keys are known.
	maxLocatorEntries = 256
	// maxLocatorString bounds a key or value in bytes. A Windows path has at most 32767 UTF-16 units.
	maxLocatorString = 64*kib - 2
)

// A ParentLocator says which image is the parent of a differencing disk, and where it was seen. [MS-VHDX] 2.6.2.6
//
// Paths are as Windows writes them, with backslashes. An empty one is not there; at least one must be.
type ParentLocator struct {
	Linkage  GUID `json:"linkage"`  // DataWriteGUID of the parent
	Linkage2 GUID `json:"linkage2"` // another one that is right too, while a merge runs; zero: none
	// RelativePath is relative to the folder of the child: `..\base\disk.vhdx`.
	RelativePath string `json:"relative_path,omitempty"`
	// VolumePath names the volume by its GUID: `\\?\Volume{…}\base\disk.vhdx`.
	VolumePath string `json:"volume_path,omitempty"`
	// AbsolutePath begins with `\\?\`: `\\?\d:\base\disk.vhdx` or `\\?\UNC\server\share\disk.vhdx`.
	AbsolutePath string `json:"absolute_win32_path,omitempty"`

	others []locatorPair // keys that we do not know: kept
}

type locatorPair struct{ key, value string }

// Matches reports whether a parent with this DataWriteGUID is the right one.
func (l *ParentLocator) Matches(dataWriteGUID GUID) bool {
	return dataWriteGUID == l.Linkage || !l.Linkage2.IsZero() && dataWriteGUID == l.Linkage2
}

// paths lists the paths that are there in the order in which they are to be tried.
func (l *ParentLocator) paths() []string {
	var out []string
	for _, p := range []string{l.RelativePath, l.VolumePath, l.AbsolutePath} {
		if p != "" {
			out = append(out, p)
		}
	}
	return out
}

// decodeLocator decodes the item; at is its place in the file, for messages.
func decodeLocator(b []byte, at int64) (*ParentLocator, error) {
	bad := func(format string, args ...any) (*ParentLocator, error) {
		return nil, corrupt("parent locator", at, format, args...)
	}
	if len(b) < locatorHeaderSize {
		return bad("%d bytes where %d are needed", len(b), locatorHeaderSize)
	}
	if kind := GUID(b[:16]); kind != locatorVHDX {
		return nil, &requiredError{"type of parent locator", kind}
	}
	n := int(le.Uint16(b[18:]))
	switch {
	case n > maxLocatorEntries:
		return bad("%d entries where %d is the most", n, maxLocatorEntries)
	case locatorHeaderSize+n*locatorEntrySize > len(b):
		return bad("%d entries do not fit into its %d bytes", n, len(b))
	}
	text := func(off uint32, length uint16) (string, bool) {
		if off < uint32(locatorHeaderSize) || length == 0 || length%2 != 0 || int64(off)+int64(length) > int64(len(b)) {
			return "", false
		}
		u := make([]uint16, length/2)
		for i := range u {
			if u[i] = le.Uint16(b[int(off)+2*i:]); u[i] == 0 {
				return "", false
			}
		}
		return string(utf16.Decode(u)), true
	}
	l := &ParentLocator{}
	seen := make(map[string]bool, n)
	for i := range n {
		e := b[locatorHeaderSize+i*locatorEntrySize:]
		key, ok := text(le.Uint32(e), le.Uint16(e[8:]))
		if !ok {
			return bad("the key of entry %d is outside the item, empty, or no text", i)
		}
		value, ok := text(le.Uint32(e[4:]), le.Uint16(e[10:]))
		if !ok {
			return bad("the value of %q is outside the item, empty, or no text", key)
		}
		if seen[key] {
			return bad("%q is there twice", key)
		}
		seen[key] = true
		var err error
		switch key {
		case keyLinkage:
			l.Linkage, err = ParseGUID(value)
		case keyLinkage2:
			l.Linkage2, err = ParseGUID(value)
		case keyRelative:
			l.RelativePath = value
		case keyVolume:
			l.VolumePath = value
		case keyAbsolute:
			l.AbsolutePath = value
		default:
			l.others = append(l.others, locatorPair{key, value})
		}
		if err != nil {
			return bad("%s: %v", key, err)
		}
	}
	switch {
	case !seen[keyLinkage]:
		return bad("%s is missing", keyLinkage)
	case len(l.paths()) == 0:
		return bad("there is no path to the parent in it")
	}
	return l, nil
}

// encode returns the item. A string that is too long, or holds a NUL, cannot be stored.
func (l *ParentLocator) encode() ([]byte, error) {
	brace := func(g GUID) string { return "{" + strings.ToLower(g.String()) + "}" }
	pairs := []locatorPair{{keyLinkage, brace(l.Linkage)}}
	if !l.Linkage2.IsZero() {
		pairs = append(pairs, locatorPair{keyLinkage2, brace(l.Linkage2)})
	}
	for _, p := range []locatorPair{{keyRelative, l.RelativePath}, {keyVolume, l.VolumePath}, {keyAbsolute, l.AbsolutePath}} {
		if p.value != "" {
			pairs = append(pairs, p)
		}
	}
	if len(l.paths()) == 0 {
		return nil, corrupt("parent locator", -1, "there is no path to the parent in it")
	}
	pairs = append(pairs, l.others...)
	b := make([]byte, locatorHeaderSize+len(pairs)*locatorEntrySize)
	copy(b, locatorVHDX[:])
	le.PutUint16(b[18:], uint16(len(pairs)))
	for i, p := range pairs {
		for k, s := range []string{p.key, p.value} {
			u := utf16.Encode([]rune(s))
			if len(u)*2 > maxLocatorString || strings.ContainsRune(s, 0) {
				return nil, corrupt("parent locator", -1, "%s cannot be stored: it is too long, or holds a NUL", p.key)
			}
			e := b[locatorHeaderSize+i*locatorEntrySize:]
			le.PutUint32(e[4*k:], uint32(len(b)))
			le.PutUint16(e[8+2*k:], uint16(2*len(u)))
			for _, c := range u {
				b = le.AppendUint16(b, c)
			}
		}
	}
	if len(b) > metaMaxItem {
		return nil, corrupt("parent locator", -1, "it would have %d bytes, the most is 1 MiB", len(b))
	}
	return b, nil
}
