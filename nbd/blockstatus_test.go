package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"

	"vdbridge/test/ramdisk"
)

func TestBlockStatus(t *testing.T) {
	variants(t, func(t *testing.T, d *ramdisk.Disk, style replyStyle) {
		ts := startServer(t, oneDisk(d))
		r := enter(t, ts, style)
		if style == styleSimple {
			r.expect(nbdEINVAL, wireRequest{cmd: cmdBlockStatus, length: 4096}, nil)
			return
		}
		r.write(64<<10, make([]byte, 128<<10))
		extents := func(flags uint16, off, n uint64) string {
			t.Helper()
			a := r.expect(0, wireRequest{cmd: cmdBlockStatus, flags: flags, offset: off, length: n}, nil)
			b, s := a.data, ""
			if binary.BigEndian.Uint32(b) != 1 {
				t.Errorf("context %d", binary.BigEndian.Uint32(b))
			}
			if style == styleExtended {
				if a.typ != replyTypeBlockStatusExt || int(binary.BigEndian.Uint32(b[4:])) != (len(b)-8)/16 {
					t.Fatalf("chunk %+v", a)
				}
				for b = b[8:]; len(b) > 0; b = b[16:] {
					s += fmt.Sprintf("%d:%d ", binary.BigEndian.Uint64(b)>>10, binary.BigEndian.Uint64(b[8:]))
				}
				return s
			}
			if a.typ != replyTypeBlockStatus {
				t.Fatalf("chunk %+v", a)
			}
			for b = b[4:]; len(b) > 0; b = b[8:] {
				s += fmt.Sprintf("%d:%d ", binary.BigEndian.Uint32(b)>>10, binary.BigEndian.Uint32(b[4:]))
			}
			return s
		}
		for _, c := range []struct {
			flags  uint16
			off, n uint64
			want   string
		}{
			{0, 0, 64 << 20, "64:3 128:0 65344:3 "},
			{cmdFlagReqOne, 0, 64 << 20, "64:3 "},
			{0, 96 << 10, 64 << 10, "64:0 "},
			{cmdFlagReqOne | cmdFlagFUA, 1 << 20, 1 << 10, "1:3 "},
		} {
			if got := extents(c.flags, c.off, c.n); got != c.want {
				t.Errorf("%+v: %s", c, got)
			}
		}
		if style == styleExtended {
			if r.flags&txBlockStatusPayload == 0 {
				t.Error("BLOCK_STATUS_PAYLOAD is not offered")
			}
			payload := append(binary.BigEndian.AppendUint64(nil, 65536), 0, 0, 0, 1)
			a := r.expect(0, wireRequest{cmd: cmdBlockStatus, length: 12}, payload)
			if len(a.data) != 24 {
				t.Errorf("chunk %+v", a)
			}
			twice := append(append([]byte(nil), payload...), 0, 0, 0, 1)
			r.expect(nbdEINVAL, wireRequest{cmd: cmdBlockStatus, length: 16}, twice)
			payload[11] = 7
			r.expect(nbdEINVAL, wireRequest{cmd: cmdBlockStatus, length: 12}, payload)
			r.expect(nbdEINVAL, wireRequest{cmd: cmdBlockStatus, length: 9}, payload[:9])
			r.expect(nbdEINVAL, wireRequest{cmd: cmdRead, length: 12}, payload)
			r.alive()
		}
	})
}

// bigDisk is an empty disk of any size.
type bigDisk struct {
	ramdisk.Disk
	size int64
	run  int64 // length of each extent; 0: all
}

func (d *bigDisk) Size() int64                  { return d.size }
func (d *bigDisk) BlockSizes() (l, p, o, m int) { return 4096, 4096, 0, 0 }
func (d *bigDisk) Extents(_ context.Context, off, n int64, yield func(int64, bool, bool) bool) error {
	for i := off; n > 0; i++ {
		k := n
		if d.run > 0 {
			k = min(n, d.run)
		}
		if !yield(k, i%2 == 0, true) {
			return nil
		}
		n -= k
	}
	return nil
}

func TestBlockStatusOfHugeExtents(t *testing.T) {
	ts := startServer(t, oneDisk(&bigDisk{size: 64 << 40}))
	r := enter(t, ts, styleExtended)
	a := r.expect(0, wireRequest{cmd: cmdBlockStatus, length: 64 << 40}, nil)
	if len(a.data) != 24 || binary.BigEndian.Uint64(a.data[8:]) != 64<<40 {
		t.Errorf("% x", a.data)
	}
	r = enter(t, ts, styleStructured)
	a = r.expect(0, wireRequest{cmd: cmdBlockStatus, length: 0xfffff000}, nil)
	if len(a.data) != 12 || binary.BigEndian.Uint32(a.data[4:]) != 0xfffff000 {
		t.Errorf("% x", a.data)
	}
	ts = startServer(t, oneDisk(&bigDisk{size: 64 << 40, run: 4096}))
	for _, style := range []replyStyle{styleStructured, styleExtended} {
		r = enter(t, ts, style)
		a = r.expect(0, wireRequest{cmd: cmdBlockStatus, length: 0xfffff000}, nil)
		if want := map[replyStyle]int{styleStructured: 4 + 8*maxExtents, styleExtended: 8 + 16*maxExtents}[style]; len(a.data) != want {
			t.Errorf("%d bytes of extents, want %d", len(a.data), want)
		}
		r.expect(0, wireRequest{cmd: cmdFlush}, nil)
	}
}
