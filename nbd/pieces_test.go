package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"syscall"
	"testing"

	"vdbridge/test/ramdisk"
)

// badRange is a disk in memory that fails whatever touches one byte.
type badRange struct {
	*ramdisk.Disk
	at int64
}

func (d badRange) touches(p []byte, off int64) bool { return off <= d.at && d.at < off+int64(len(p)) }

func (d badRange) Read(ctx context.Context, p []byte, off int64) error {
	_, err := d.ReadHole(ctx, p, off)
	return err
}

func (d badRange) ReadHole(ctx context.Context, p []byte, off int64) (bool, error) {
	if d.touches(p, off) {
		return false, syscall.EIO
	}
	return d.Disk.ReadHole(ctx, p, off)
}

func (d badRange) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	if d.touches(p, off) {
		return syscall.ENOSPC
	}
	return d.Disk.Write(ctx, p, off, fua)
}

func TestPiecesReportAnErrorAtTheEnd(t *testing.T) {
	for _, style := range []replyStyle{styleSimple, styleStructured, styleExtended} {
		for _, network := range [][]string{nil, {"tcp"}} {
			ts := startServer(t, oneDisk(badRange{ramdisk.New(16<<20, 512), 3<<20 + 5}), network...)
			r := enter(t, ts, style)
			p := pattern(4<<20, 1)
			r.write(0, p[:3<<20])
			r.expect(nbdENOSPC, wireRequest{cmd: cmdWrite, offset: 2<<20 + 512, length: 2 << 20}, p[:2<<20])
			r.write(5<<20+512, p)
			r.expect(nbdEIO, wireRequest{cmd: cmdRead, offset: 2<<20 + 512, length: 2 << 20}, nil)
			r.expect(nbdEIO, wireRequest{cmd: cmdRead, flags: dfIf(style), offset: 2<<20 + 512, length: 2 << 20}, nil)
			if !bytes.Equal(r.read(5<<20+512, 4<<20), p) || !bytes.Equal(r.read(512, 2<<20-512), p[512:2<<20]) {
				t.Errorf("style %d: other data", style)
			}
		}
	}
}

func dfIf(style replyStyle) uint16 {
	if style == styleSimple {
		return 0
	}
	return cmdFlagDF
}

func TestReadPieces(t *testing.T) {
	ts := startServer(t, oneDisk(ramdisk.New(16<<20, 512)))
	r := enter(t, ts, styleStructured)
	p := pattern(1<<20, 9)
	r.write(2<<20, p)
	whole := append(append(make([]byte, 2<<20), p...), make([]byte, 3<<20)...)
	if !bytes.Equal(r.read(0, uint64(len(whole))), whole) {
		t.Error("holes around data: other data")
	}
	if !bytes.Equal(r.read(512, uint64(len(whole)-1024)), whole[512:len(whole)-512]) {
		t.Error("unaligned: other data")
	}
	if a := r.expect(0, wireRequest{cmd: cmdRead, flags: cmdFlagDF, length: 6 << 20}, nil); len(a.data) != 8+6<<20 {
		t.Errorf("DF: a chunk of %d bytes", len(a.data))
	}
	// Neighbouring holes are told as one.
	r.request(wireRequest{cmd: cmdRead, cookie: 7, length: 4 << 20}, nil)
	for i, want := range []struct {
		typ    uint16
		at, n  uint64
		chunks int
	}{{replyTypeOffsetHole, 0, 2 << 20, 1}, {replyTypeOffsetData, 2 << 20, readPieceBytes, 1 << 20 / readPieceBytes}, {replyTypeOffsetHole, 3 << 20, 1 << 20, 1}} {
		for k := range want.chunks {
			a := r.answer(nil)
			at, n := binary.BigEndian.Uint64(a.data), uint64(len(a.data)-8)
			if a.typ == replyTypeOffsetHole {
				n = uint64(binary.BigEndian.Uint32(a.data[8:]))
			}
			if a.typ != want.typ || n != want.n || at != want.at+uint64(k)*readPieceBytes || (a.flags == replyFlagDone) != (i == 2) {
				t.Errorf("%d.%d: type %d, flags %d, %d bytes at %d", i, k, a.typ, a.flags, n, at)
			}
		}
	}
	r.alive()
}
