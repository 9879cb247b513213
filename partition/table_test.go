package partition_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vdbridge/partition"
	"vdbridge/test/lab"
)

// file is an image as a disk.
type file struct {
	f      *os.File
	size   int64
	sector int
}

func (f *file) Read(_ context.Context, p []byte, off int64) error {
	if off%int64(f.sector) != 0 || len(p)%f.sector != 0 || off+int64(len(p)) > f.size {
		return fmt.Errorf("%d bytes at %d are not whole sectors of the disk", len(p), off)
	}
	_, err := f.f.ReadAt(p, off)
	return err
}
func (f *file) Size() int64                     { return f.size }
func (f *file) BlockSizes() (_, _, _, most int) { return f.sector, f.sector, 0, 64 << 10 }

func image(t testing.TB, size int64, sector int) *file {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return &file{f, size, sector}
}

func (f *file) poke(t testing.TB, off int64, b []byte) {
	t.Helper()
	if _, err := f.f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, stdin, name string, args ...string) string {
	t.Helper()
	path, err := lab.Look(name)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func table(t testing.TB, src partition.Source) *partition.Table {
	t.Helper()
	tab, err := partition.ReadTable(context.Background(), src)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// TestAsSfdisk has sfdisk make tables, and compares what it lists with what we read.
func TestAsSfdisk(t *testing.T) {
	lab.Need(t, "sfdisk")
	for name, script := range map[string]string{
		"one":      "label: dos\n,,83\n",
		"four":     "label: dos\n,10M,7,*\n,5M,c\n,1M,82\n,,8e\n",
		"logical":  "label: dos\n,10M,83\n,60M,5\n,20M,83\n,10M,82\n,5M,7\n",
		"extended": "label: dos\n,200M,f\n,5M,83\n,5M,83\n,5M,83\n,5M,83\n,5M,83\n,5M,83\n,5M,83\n",
		"gpt":      "label: gpt\nsize=10M,name=\"first one\",type=U\nsize=20M,type=L,name=\"größer\"\nsize=30M,type=S\n",
		"gap":      "label: gpt\n1: size=10M\n7: size=20M\n128: size=5M\n",
		"none":     "",
	} {
		t.Run(name, func(t *testing.T) {
			f := image(t, 256<<20, 512)
			if script != "" {
				run(t, script, "sfdisk", "-q", f.f.Name())
			}
			got := table(t, f)
			if script == "" {
				if got.Scheme != partition.None || len(got.Partitions) != 0 {
					t.Errorf("an empty disk has %v", got)
				}
				return
			}
			var want struct {
				PartitionTable struct {
					Label, ID  string
					Partitions []struct {
						Node             string
						Start, Size      int64
						Type, UUID, Name string
						Bootable         bool
					}
				}
			}
			if err := json.Unmarshal([]byte(run(t, "", "sfdisk", "--json", f.f.Name())), &want); err != nil {
				t.Fatal(err)
			}
			w := want.PartitionTable
			if scheme := map[string]partition.Scheme{"dos": partition.MBR, "gpt": partition.GPT}[w.Label]; got.Scheme != scheme {
				t.Errorf("scheme %v, sfdisk says %s", got.Scheme, w.Label)
			}
			if !strings.EqualFold(got.ID, strings.TrimPrefix(w.ID, "0x")) {
				t.Errorf("id %s, sfdisk says %s", got.ID, w.ID)
			}
			if len(got.Partitions) != len(w.Partitions) || len(got.Notes) != 0 {
				t.Fatalf("%d partitions, sfdisk has %d; notes %q", len(got.Partitions), len(w.Partitions), got.Notes)
			}
			for i, p := range got.Partitions {
				w := w.Partitions[i]
				number, _ := strconv.Atoi(strings.TrimPrefix(w.Node, f.f.Name()))
				kind, _ := strconv.ParseUint(p.Type, 16, 8)
				wkind, _ := strconv.ParseUint(w.Type, 16, 8)
				if p.Number != number || p.Start != w.Start*512 || p.Size != w.Size*512 || p.Name != w.Name || !strings.EqualFold(p.ID, w.UUID) || p.Bootable != w.Bootable ||
					got.Scheme == partition.GPT && !strings.EqualFold(p.Type, w.Type) || kind != wkind {
					t.Errorf("partition %+v, sfdisk has %+v", p, w)
				}
			}
		})
	}
}

// TestBackup damages copies of a table that sgdisk made.
func TestBackup(t *testing.T) {
	lab.Need(t, "sgdisk")
	for _, sector := range []int{512, 4096} {
		for name, tc := range map[string]struct {
			damage func(*file)
			note   string
			broken bool
		}{
			"sound":          {func(*file) {}, "", false},
			"header":         {func(f *file) { f.poke(t, int64(sector)+60, []byte{1}) }, "checksum of the header", false},
			"entries":        {func(f *file) { f.poke(t, 2*int64(sector)+40, []byte{9}) }, "checksum of the entries", false},
			"wiped":          {func(f *file) { f.poke(t, int64(sector), make([]byte, 20*sector)) }, "there is no header", false},
			"backup":         {func(f *file) { f.poke(t, f.size-int64(sector), make([]byte, 100)) }, "backup of the GPT is damaged", false},
			"backup entries": {func(f *file) { f.poke(t, f.size-3*int64(sector), []byte{1, 2, 3}) }, "backup of the GPT is damaged", false},
			"grown":          {func(f *file) { f.size += 1 << 20; f.f.Truncate(f.size) }, "not at the end", false},
			"both": {func(f *file) {
				f.poke(t, int64(sector), make([]byte, 20*sector))
				f.poke(t, f.size-int64(sector), make([]byte, 100))
			}, "", true},
		} {
			t.Run(fmt.Sprintf("%s %d", name, sector), func(t *testing.T) {
				f := image(t, 64<<20, sector)
				if sector == 512 {
					run(t, "", "sgdisk", "-n1:0:+10M", "-n3:0:+5M", "-c1:one", f.f.Name())
				} else {
					gpt4k(t, f)
				}
				tc.damage(f)
				tab, err := partition.ReadTable(context.Background(), f)
				if tc.broken {
					if !errors.Is(err, partition.ErrDamaged) {
						t.Errorf("both copies are damaged: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if len(tab.Partitions) != 2 || tab.Partitions[0].Size != 10<<20 || tab.Partitions[1].Number != 3 || tab.Partitions[1].Size != 5<<20 {
					t.Errorf("partitions: %+v", tab.Partitions)
				}
				if all := strings.Join(tab.Notes, "; "); tc.note == "" && all != "" || !strings.Contains(all, tc.note) {
					t.Errorf("notes %q, want %q", all, tc.note)
				}
			})
		}
	}
}

// gpt4k writes a table in sectors of 4096 bytes, which sgdisk does on block devices only.
func gpt4k(t testing.TB, f *file) {
	le := binary.LittleEndian
	mbr := make([]byte, 512)
	mbr[510], mbr[511], mbr[446+4] = 0x55, 0xAA, 0xEE
	le.PutUint32(mbr[446+8:], 1)
	le.PutUint32(mbr[446+12:], 0xFFFFFFFF)
	f.poke(t, 0, mbr)
	entries := make([]byte, 128*128)
	entry := func(i int, start, end uint64) {
		e := entries[i*128:]
		e[0], e[16] = 1, byte(i+1)
		le.PutUint64(e[32:], start)
		le.PutUint64(e[40:], end)
	}
	entry(0, 256, 256+2560-1)
	entry(2, 4096, 4096+1280-1)
	last := uint64(f.size/4096) - 1
	header := func(at, other, entriesAt uint64) {
		h := make([]byte, 92)
		copy(h, "EFI PART\x00\x00\x01\x00")
		le.PutUint32(h[12:], 92)
		le.PutUint64(h[24:], at)
		le.PutUint64(h[32:], other)
		le.PutUint64(h[40:], 6)
		le.PutUint64(h[48:], last-5)
		h[56] = 77
		le.PutUint64(h[72:], entriesAt)
		le.PutUint32(h[80:], 128)
		le.PutUint32(h[84:], 128)
		le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
		f.poke(t, int64(at)*4096, h)
		f.poke(t, int64(entriesAt)*4096, entries)
	}
	header(1, last, 2)
	header(last, 1, last-4)
}

// TestOtherSector reads the table of a disk with 4096-byte sectors through an image that knows nothing of them, and the other way round.
func TestOtherSector(t *testing.T) {
	f := image(t, 64<<20, 4096)
	gpt4k(t, f)
	f.sector = 512
	if tab := table(t, f); tab.SectorSize != 4096 || len(tab.Partitions) != 2 || len(tab.Notes) != 1 {
		t.Errorf("%+v", tab)
	}
}

// TestHostileMBR has chains that loop, leave the disk, or do not end.
func TestHostileMBR(t *testing.T) {
	const size = 8 << 20
	record := func(entries ...[4]uint32) []byte {
		b := make([]byte, 512)
		for i, e := range entries {
			b[446+16*i+4] = byte(e[0])
			binary.LittleEndian.PutUint32(b[446+16*i+8:], e[1])
			binary.LittleEndian.PutUint32(b[446+16*i+12:], e[2])
		}
		b[510], b[511] = 0x55, 0xAA
		return b
	}
	for name, tc := range map[string]struct {
		first []byte
		ebr   map[int64][]byte
		parts int
		note  string
	}{
		"loop":   {record([4]uint32{5, 100, 10000}), map[int64][]byte{100: record([4]uint32{0x83, 1, 10}, [4]uint32{5, 50, 1}), 150: record([4]uint32{0x83, 1, 10}, [4]uint32{5, 50, 1})}, 3, "does not end"},
		"out":    {record([4]uint32{5, 100, 10000}), map[int64][]byte{100: record([4]uint32{0x83, 1, 10}, [4]uint32{5, 20000, 1})}, 2, "leaves the extended"},
		"blank":  {record([4]uint32{5, 100, 10000}), nil, 1, "is damaged"},
		"behind": {record([4]uint32{0x83, 1 << 30, 10}, [4]uint32{0x83, 10, 10}), nil, 1, "begins behind"},
		"over":   {record([4]uint32{0x83, 10, 0xFFFFFFFF}), nil, 1, "goes beyond"},
		"twice":  {record([4]uint32{0x83, 10, 100}, [4]uint32{0x83, 50, 100}), nil, 2, "overlap"},
	} {
		t.Run(name, func(t *testing.T) {
			f := image(t, size, 512)
			f.poke(t, 0, tc.first)
			for at, b := range tc.ebr {
				f.poke(t, at*512, b)
			}
			tab := table(t, f)
			if len(tab.Partitions) != tc.parts || !strings.Contains(strings.Join(tab.Notes, "; "), tc.note) {
				t.Errorf("%+v, want %d partitions and a note %q", tab, tc.parts, tc.note)
			}
			for _, p := range tab.Partitions {
				if p.Start < 0 || p.Size <= 0 || p.End() > size {
					t.Errorf("partition %+v is not on the disk", p)
				}
			}
		})
	}
}
