package partition_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"vdbridge/partition"
)

// memory is a disk whose beginning and end are given; the rest is zeros.
type memory struct {
	head, tail []byte
	size       int64
	sector     int
}

func (m *memory) Read(_ context.Context, p []byte, off int64) error {
	if off < 0 || off%int64(m.sector) != 0 || len(p)%m.sector != 0 || off+int64(len(p)) > m.size {
		return errors.New("not whole sectors of the disk")
	}
	clear(p)
	if off < int64(len(m.head)) {
		copy(p, m.head[off:])
	}
	if at := m.size - int64(len(m.tail)) - off; at < int64(len(p)) {
		if at >= 0 {
			copy(p[at:], m.tail)
		} else if -at < int64(len(m.tail)) {
			copy(p, m.tail[-at:])
		}
	}
	return nil
}
func (m *memory) Size() int64                     { return m.size }
func (m *memory) BlockSizes() (_, _, _, most int) { return m.sector, m.sector, 0, 0 }

// FuzzInspect looks for reads outside the disk, partitions outside it, and work without bound.
func FuzzInspect(f *testing.F) {
	mbr := make([]byte, 1024)
	mbr[510], mbr[511], mbr[450] = 0x55, 0xAA, 5
	binary.LittleEndian.PutUint32(mbr[454:], 1)
	binary.LittleEndian.PutUint32(mbr[458:], 100)
	f.Add(mbr, []byte{}, int64(1<<20), false)
	g := image(f, 1<<20, 4096)
	gpt4k(f, g)
	if b, err := os.ReadFile(g.f.Name()); err == nil {
		f.Add(b[:24<<10], b[len(b)-20<<10:], int64(len(b)), true)
	}
	f.Add(bytes.Repeat([]byte("EFI PART"), 300), []byte{}, int64(4096), false)
	f.Fuzz(func(t *testing.T, head, tail []byte, size int64, large bool) {
		m := &memory{head: head, tail: tail, sector: 512}
		if large {
			m.sector = 4096
		}
		if size < 0 || size > 1<<50 || int64(len(head)) > size || int64(len(tail)) > size {
			return
		}
		m.size = size / int64(m.sector) * int64(m.sector)
		m.tail = tail[:min(int64(len(tail)), m.size)]
		l, err := partition.Inspect(context.Background(), m)
		if err != nil {
			t.Fatal(err)
		}
		if len(l.Partitions) > 4096+256+4 || len(l.Notes) > 30 {
			t.Fatalf("%d partitions, %d notes", len(l.Partitions), len(l.Notes))
		}
		for _, p := range l.Partitions {
			if p.Start < 0 || p.Size <= 0 || p.End() > m.size || p.End() < p.Start {
				t.Fatalf("partition %+v of a disk of %d bytes", p, m.size)
			}
		}
	})
}
