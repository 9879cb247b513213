package lu

import (
	"context"
	"math/rand/v2"
	"testing"

	"vdbridge/scsi"
	"vdbridge/scsi/lu/lutest"
)

// The cost of a 4 KiB command over a disk in memory, from one initiator and from many goroutines of it.
func BenchmarkExecute(b *testing.B) {
	for _, name := range []string{"READ", "WRITE"} {
		b.Run(name, func(b *testing.B) {
			n := newLU(b, lutest.New(64<<20), Options{}).Attach(idA, false)
			b.SetParallelism(32)
			b.SetBytes(4096)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				buf := make([]byte, 4096)
				for pb.Next() {
					lba := rand.Uint64N(16384) * 8
					cdb := scsi.Read16(lba, 8, false)
					if name == "WRITE" {
						cdb = scsi.Write16(lba, 8, false)
					}
					if r := n.Execute(context.Background(), cdb.Bytes(), buf, buf); r.Status != scsi.Good && name == "READ" {
						b.Fatal(r.Sense)
					}
				}
			})
		})
	}
}

// A lock of one range while many others are held.
func BenchmarkRangeLock(b *testing.B) {
	var l rangeLocks
	for i := range int64(1024) {
		r := l.newRequest(true)
		r.add(1<<30+i*4096*257, 4096)
		if err := l.acquire(context.Background(), r); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		r := l.newRequest(true)
		r.add(4096, 4096)
		if err := l.acquire(context.Background(), r); err != nil {
			b.Fatal(err)
		}
		l.release(r)
	}
}
