package vhdx

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// The same accesses on an image and on a raw file of the same size, both in the page cache: the difference is what the format costs.
func BenchmarkIO(b *testing.B) {
	const size = 256 * mib
	d := warmDisk(b, size)
	f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	fill := make([]byte, mib)
	noise(fill, 1)
	for off := int64(0); off < size; off += mib {
		if _, err := f.WriteAt(fill, off); err != nil {
			b.Fatal(err)
		}
	}
	raw := NewOSFile(f)
	ctx := context.Background()
	for _, on := range []struct {
		name        string
		read, write func(p []byte, off int64) error
	}{
		{"vhdx", func(p []byte, off int64) error { return d.Read(ctx, p, off) }, func(p []byte, off int64) error { return d.Write(ctx, p, off, false) }},
		{"raw", func(p []byte, off int64) error { return readFull(ctx, raw, p, off) }, func(p []byte, off int64) error { return writeFull(ctx, raw, p, off) }},
	} {
		for _, op := range []struct {
			name string
			fn   func(p []byte, off int64) error
		}{{"read", on.read}, {"write", on.write}} {
			b.Run("seq1M-"+op.name+"/"+on.name, func(b *testing.B) {
				p := make([]byte, mib)
				b.SetBytes(mib)
				for i := 0; b.Loop(); i++ {
					if err := op.fn(p, int64(i)%(size/mib)*mib); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("rand4k-"+op.name+"/"+on.name, func(b *testing.B) {
				p := make([]byte, 4096)
				rng := rand.New(rand.NewPCG(1, 1))
				b.SetBytes(4096)
				b.ReportAllocs()
				for b.Loop() {
					if err := op.fn(p, rng.Int64N(size/4096)*4096); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("rand4k-parallel-"+op.name+"/"+on.name, func(b *testing.B) {
				var seed atomic.Uint64
				b.SetBytes(4096)
				b.SetParallelism(8)
				b.RunParallel(func(pb *testing.PB) {
					p := make([]byte, 4096)
					rng := rand.New(rand.NewPCG(1, seed.Add(1)))
					for pb.Next() {
						if err := op.fn(p, rng.Int64N(size/4096)*4096); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}

// BenchmarkFill writes a new dynamic image from the beginning, 1 MiB at a time, with one flush at the end.
func BenchmarkFill(b *testing.B) {
	ctx := context.Background()
	const size = 256 * mib
	p := make([]byte, mib)
	noise(p, 1)
	b.SetBytes(size)
	for i := 0; b.Loop(); i++ {
		path := filepath.Join(b.TempDir(), "fill.vhdx")
		if err := CreateFile(ctx, path, CreateOptions{Size: size, BlockSize: mib}); err != nil {
			b.Fatal(err)
		}
		d, err := OpenFile(ctx, path, Options{})
		if err != nil {
			b.Fatal(err)
		}
		for off := int64(0); off < size; off += mib {
			if err := d.Write(ctx, p, off, false); err != nil {
				b.Fatal(err)
			}
		}
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
		_ = os.Remove(path)
	}
}
