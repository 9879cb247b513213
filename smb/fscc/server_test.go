package fscc

import (
	"encoding/hex"
	"errors"
	"reflect"
	"testing"
	"time"

	"vdbridge/smb/ntstatus"
)

// TestServerGolden compares what the server sends with bytes laid out by hand from [MS-FSCC].
func TestServerGolden(t *testing.T) {
	const times = "0100000000000000" + "0200000000000000" + "0300000000000000" + "0400000000000000"
	e := &DirEntry{FileIndex: 5, CreationTime: 1, LastAccessTime: 2, LastWriteTime: 3, ChangeTime: 4, EndOfFile: 6, AllocationSize: 7, Attributes: 0x20, EASize: 8,
		ShortName: "A~1", FileID: 9, Name: "ab"}
	const common = "00000000" + "05000000" + times + "0600000000000000" + "0700000000000000" + "20000000" + "04000000"
	const short = "06" + "00" + "41007e003100" + "000000000000000000000000000000000000"
	for what, c := range map[string]struct {
		got  []byte
		want string
	}{
		"basic":        {(&BasicInfo{1, 2, 3, 4, 0x10}).Append(nil), times + "10000000" + "00000000"},
		"standard":     {(&StandardInfo{1, 2, 3, true, false}).Append(nil), "0100000000000000" + "0200000000000000" + "03000000" + "01" + "00" + "0000"},
		"network open": {(&NetworkOpenInfo{1, 2, 3, 4, 5, 6, 7}).Append(nil), times + "0500000000000000" + "0600000000000000" + "07000000" + "00000000"},
		"name":         {AppendName(nil, "\U0001F600"), "04000000" + "3dd800de"},
		"directory":    {AppendDirEntry(nil, FileDirectoryInformation, e), common + "61006200"},
		"full":         {AppendDirEntry(nil, FileFullDirectoryInformation, e), common + "08000000" + "61006200"},
		"both":         {AppendDirEntry(nil, FileBothDirectoryInformation, e), common + "08000000" + short + "61006200"},
		"names":        {AppendDirEntry(nil, FileNamesInformation, e), "00000000" + "05000000" + "04000000" + "61006200"},
		"id both":      {AppendDirEntry(nil, FileIdBothDirectoryInformation, e), common + "08000000" + short + "0000" + "0900000000000000" + "61006200"},
		"id full":      {AppendDirEntry(nil, FileIdFullDirectoryInformation, e), common + "08000000" + "00000000" + "0900000000000000" + "61006200"},
		"streams":      {AppendStreams(nil, []StreamInfo{{1, 2, "::"}, {3, 4, "a"}}), "20000000" + "04000000" + "0100000000000000" + "0200000000000000" + "3a003a00" + "00000000" + "00000000" + "02000000" + "0300000000000000" + "0400000000000000" + "6100"},
		"notify":       {AppendNotify(nil, []NotifyEntry{{1, "a"}, {2, "b"}}), "10000000" + "01000000" + "02000000" + "61000000" + "00000000" + "02000000" + "02000000" + "6200"},
		"fs volume":    {(&FSVolumeInfo{1, 2, false, "L"}).Append(nil), "0100000000000000" + "02000000" + "02000000" + "00" + "00" + "4c00"},
		"fs size":      {(&FSSizeInfo{1, 2, 3, 4}).Append(nil), "0100000000000000" + "0200000000000000" + "03000000" + "04000000"},
		"fs full size": {(&FSFullSizeInfo{1, 2, 3, 4, 5}).Append(nil), "0100000000000000" + "0200000000000000" + "0300000000000000" + "04000000" + "05000000"},
		"fs device":    {AppendFSDevice(nil, 7, 0x20), "07000000" + "20000000"},
		"fs attribute": {(&FSAttributeInfo{1, 255, "N"}).Append(nil), "01000000" + "ff000000" + "02000000" + "4e00"},
		"range":        {AppendFileRange(nil, Range{1, 2}), "0100000000000000" + "0200000000000000"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", what, got, c.want)
		}
	}
	for _, class := range []uint8{1, 2, 3, 12, 37, 38} {
		if got := len(AppendDirEntry(nil, class, e)); got != DirEntryLen(class, e.Name) {
			t.Errorf("class %d: %d bytes, DirEntryLen says %d", class, got, DirEntryLen(class, e.Name))
		}
	}
}

// TestServerDecodes decodes what clients set, and every prefix of it.
func TestServerDecodes(t *testing.T) {
	basic := BasicInfo{1, 2, 3, 4, 0x20}
	ren := RenameInfo{ReplaceIfExists: true, Name: `a\b`}
	for what, c := range map[string]struct {
		body  []byte
		min   int // shorter ones must fail
		parse func([]byte) (any, error)
		want  any
	}{
		"basic":       {AppendBasicInfo(nil, basic), 36, func(b []byte) (any, error) { return ParseSetBasicInfo(b) }, basic},
		"rename":      {ren.Append(nil), len(ren.Append(nil)), func(b []byte) (any, error) { return ParseSetRename(b, false) }, SetRename{RenameInfo: ren}},
		"end of file": {AppendEndOfFile(nil, 77), 8, func(b []byte) (any, error) { return ParseSetUint64(b) }, uint64(77)},
		"disposition": {AppendDisposition(nil, true), 1, func(b []byte) (any, error) { return ParseSetDisposition(b) }, true},
		"zero data":   {AppendZeroData(nil, ZeroData{1, 2}), 16, func(b []byte) (any, error) { return ParseZeroData(b) }, ZeroData{1, 2}},
		"range":       {AppendRange(nil, Range{1, 2}), 16, func(b []byte) (any, error) { return ParseFileRange(b) }, Range{1, 2}},
		"trim":        {AppendTrim(nil, []Range{{1, 2}, {3, 4}}), 40, func(b []byte) (any, error) { return ParseTrim(b) }, []Range{{1, 2}, {3, 4}}},
	} {
		got, err := c.parse(c.body)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
		for n := range c.min {
			if _, err := c.parse(c.body[:n:n]); err == nil {
				t.Errorf("%s: no error for %d of %d bytes", what, n, len(c.body))
			} else if _, ok := ntstatus.Of(err); !ok {
				t.Errorf("%s: %v has no status", what, err)
			}
		}
	}
	if r, err := ParseSetRename([]byte("\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00a\x00"), true); err != nil || !r.ReplaceIfExists || r.Flags != 3 || r.Name != "a" {
		t.Errorf("rename with flags: %+v, %v", r, err)
	}
	if _, err := ParseSetRename(append(make([]byte, 16), 2, 0, 0, 0, 0, 0xD8), false); !errors.Is(err, ntstatus.ObjectNameInvalid) {
		t.Errorf("name with half a surrogate: %v", err)
	}
}

func TestFiletime(t *testing.T) {
	for _, c := range []struct {
		t    time.Time
		want uint64
	}{{time.Unix(0, 0), 116444736000000000}, {time.Date(1601, 1, 1, 0, 0, 0, 100, time.UTC), 1}, {time.Date(1500, 1, 1, 0, 0, 0, 0, time.UTC), 0}, {time.Unix(-1, 500), 116444735990000005}} {
		if got := Filetime(c.t); got != c.want {
			t.Errorf("%v: %d, want %d", c.t, got, c.want)
		}
		if s, n := FiletimeToUnix(c.want); c.want != 0 && !time.Unix(s, n).Equal(c.t) {
			t.Errorf("%d: %v", c.want, time.Unix(s, n))
		}
	}
}

func FuzzServerDecodes(f *testing.F) {
	f.Add((&RenameInfo{Name: "x"}).Append(nil))
	f.Add(AppendTrim(nil, []Range{{1, 2}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = ParseSetBasicInfo(b)
		_, _ = ParseSetRename(b, false)
		_, _ = ParseSetRename(b, true)
		_, _ = ParseSetUint64(b)
		_, _ = ParseSetUint32(b)
		_, _ = ParseSetDisposition(b)
		_, _ = ParseZeroData(b)
		_, _ = ParseFileRange(b)
		_, _ = ParseTrim(b)
	})
}
