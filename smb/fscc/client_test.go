package fscc

import (
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"

	"vdbridge/smb/wire"
)

func wantHex(t *testing.T, what string, got []byte, want string) {
	t.Helper()
	if w := strings.ToLower(strings.Join(strings.Fields(want), "")); hex.EncodeToString(got) != w {
		t.Errorf("%s:\n got %x\nwant %s", what, got, w)
	}
}

func TestClientGolden(t *testing.T) {
	wantHex(t, "rename", (&RenameInfo{ReplaceIfExists: true, Name: "ab"}).Append(nil), "01 00000000000000 0000000000000000 04000000 6100 6200")
	wantHex(t, "short rename", (&RenameInfo{Name: "a"}).Append(nil), "00 00000000000000 0000000000000000 02000000 6100 0000")
	wantHex(t, "end of file", AppendEndOfFile(nil, 0x1234), "3412000000000000")
	wantHex(t, "disposition", AppendDisposition(nil, true), "01")
	wantHex(t, "zero data", AppendZeroData(nil, ZeroData{1, 2}), "0100000000000000 0200000000000000")
	wantHex(t, "range", AppendRange(nil, Range{1, 2}), "0100000000000000 0200000000000000")
	wantHex(t, "trim", AppendTrim(nil, []Range{{1, 2}}), "00000000 01000000 0100000000000000 0200000000000000")
	wantHex(t, "basic", AppendBasicInfo(nil, BasicInfo{1, 2, 3, 4, 5}),
		"0100000000000000 0200000000000000 0300000000000000 0400000000000000 05000000 00000000")
}

type clientCase struct {
	b      []byte
	min    int // bytes below which it must be refused
	decode func([]byte) (any, error)
	want   any
}

func dirOf(names ...string) []byte {
	var b []byte
	prev := -1
	for i, n := range names {
		if prev >= 0 {
			for len(b)%8 != 0 {
				b = append(b, 0)
			}
			cle.PutUint32(b[prev:], uint32(len(b)-prev))
		}
		prev = len(b)
		b = AppendDirEntry(b, FileIdBothDirectoryInformation, &DirEntry{CreationTime: 1, LastAccessTime: 2, LastWriteTime: 3, ChangeTime: 4, EndOfFile: int64(i), AllocationSize: 6,
			Attributes: 7, EASize: 8, FileID: 9, Name: n})
	}
	return b
}

func clientCases() map[string]clientCase {
	all := AllInfo{BasicInfo{1, 2, 3, 4, 5}, StandardInfo{6, 7, 8, true, true}, 9, 10, 11, 12, 13, 14, "name"}
	entries := []DirEntry{}
	for i, n := range []string{".", "ä", "longer name.txt"} {
		entries = append(entries, DirEntry{CreationTime: 1, LastAccessTime: 2, LastWriteTime: 3, ChangeTime: 4, EndOfFile: int64(i), AllocationSize: 6,
			Attributes: 7, EASize: 8, FileID: 9, Name: n})
	}
	dir := dirOf(".", "ä", "longer name.txt")
	vol := FSVolumeInfo{1, 2, true, "label"}
	attr := FSAttributeInfo{1, 2, "NTFS"}
	return map[string]clientCase{
		"basic":        {(&all.Basic).Append(nil), 36, func(b []byte) (any, error) { return ParseBasicInfo(b) }, all.Basic},
		"standard":     {(&all.Standard).Append(nil), 22, func(b []byte) (any, error) { return ParseStandardInfo(b) }, all.Standard},
		"all":          {all.Append(nil), 100, func(b []byte) (any, error) { return ParseAllInfo(b) }, all},
		"network open": {(&NetworkOpenInfo{1, 2, 3, 4, 5, 6, 7}).Append(nil), 52, func(b []byte) (any, error) { return ParseNetworkOpenInfo(b) }, NetworkOpenInfo{1, 2, 3, 4, 5, 6, 7}},
		"internal":     {[]byte{1, 0, 0, 0, 0, 0, 0, 0}, 8, func(b []byte) (any, error) { return ParseInternalInfo(b) }, uint64(1)},
		"directory":    {dir, len(dir), func(b []byte) (any, error) { return ParseIDBothDirectory(b) }, entries},
		"volume":       {vol.Append(nil), len(vol.Append(nil)), func(b []byte) (any, error) { return ParseFSVolumeInfo(b) }, vol},
		"attribute":    {attr.Append(nil), len(attr.Append(nil)), func(b []byte) (any, error) { return ParseFSAttributeInfo(b) }, attr},
		"size":         {(&FSSizeInfo{1, 2, 3, 4}).Append(nil), 24, func(b []byte) (any, error) { return ParseFSSizeInfo(b) }, FSSizeInfo{1, 2, 3, 4}},
		"full size":    {(&FSFullSizeInfo{1, 2, 3, 4, 5}).Append(nil), 32, func(b []byte) (any, error) { return ParseFSFullSizeInfo(b) }, FSFullSizeInfo{1, 2, 3, 4, 5}},
		"sector size":  {(&FSSectorSizeInfo{1, 2, 3, 4, 5, 6, 7}).Append(nil), 28, func(b []byte) (any, error) { return ParseFSSectorSizeInfo(b) }, FSSectorSizeInfo{1, 2, 3, 4, 5, 6, 7}},
		"ranges": {AppendRange(AppendRange(nil, Range{1, 2}), Range{5, 6}), 0, func(b []byte) (any, error) { return ParseRanges(b) },
			[]Range{{1, 2}, {5, 6}}},
	}
}

func TestClientDecodesServerHalf(t *testing.T) {
	for name, c := range clientCases() {
		got, err := c.decode(c.b)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, c.want)
		}
		for n := range c.min {
			if _, err := c.decode(c.b[:n:n]); !errors.Is(err, wire.ErrMalformed) {
				t.Errorf("%s: the first %d of %d bytes: %v", name, n, len(c.b), err)
			}
		}
	}
	for _, b := range [][]byte{make([]byte, 15), AppendRange(AppendRange(nil, Range{5, 6}), Range{1, 2}), AppendRange(nil, Range{1 << 62, 1 << 62}), AppendRange(nil, Range{-1, 1})} {
		if _, err := ParseRanges(b); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("ranges %x: %v", b, err)
		}
	}
}

func FuzzClientInfo(f *testing.F) {
	for _, c := range clientCases() {
		f.Add(c.b)
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		for _, c := range clientCases() {
			_, _ = c.decode(b)
		}
	})
}
