package rsvd

import (
	"context"
	"encoding/binary"
	"testing"

	"vdbridge/scsi"
)

// FuzzReplies gives a disk the replies of a server that has lost its mind. Whatever comes, nothing panics, loops or writes beyond the
// caller's buffer, and a read succeeds only if all of it came.
func FuzzReplies(f *testing.F) {
	good := make([]byte, 36)
	good[0], good[2], good[5], good[6] = 36, 1, 20, 1
	binary.LittleEndian.PutUint32(good[12:], 512)
	f.Add(append(good, make([]byte, 512)...), false)
	f.Add(append([]byte{16, 0, 1, 0, 10, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0}, make([]byte, 512)...), true)
	f.Add([]byte{36, 0, 0x84, 2, 16, 18, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2a, 5, 0, 0, 0, 0, 0, 0}, false)
	f.Fuzz(func(t *testing.T, reply []byte, other bool) {
		if len(reply) > 3 && (reply[3] == byte(scsi.Busy) || reply[3] == byte(scsi.TaskSetFull)) {
			t.Skip("waits, as it should")
		}
		mad := &madFile{fake: newFake(64 << 10), reply: reply, other: other}
		d := openFake(t, mad.fake, Options{IO: IOSCSI})
		d.file = mad
		ctx, cancel := context.WithCancel(bg)
		defer cancel()
		mad.cancel = cancel
		guard := make([]byte, 512+64)
		err := d.Read(ctx, guard[:512:512], 0)
		for _, b := range guard[512:] {
			if b != 0 {
				t.Fatal("written beyond the buffer")
			}
		}
		if err == nil && len(reply) < 16+512 {
			t.Fatalf("a read of 512 bytes succeeded with a reply of %d", len(reply))
		}
		_ = d.Write(ctx, guard[:512], 0, true)
		_, _ = d.InitialInfo(ctx)
		_, _ = d.DiskInfo(ctx)
		_, _ = d.Validate(ctx)
		_, _ = d.SRBStatus(ctx, 0)
		_, _ = d.ReadKeys(ctx)
		_, _ = d.ReadFullStatus(ctx)
		_, _ = d.ReadReservation(ctx)
		_, _ = d.Capabilities(ctx)
		_ = d.Extents(ctx, 0, 4096, func(n int64, _, _ bool) bool {
			if n <= 0 || n > 4096 {
				t.Fatalf("a run of %d bytes", n)
			}
			return true
		})
	})
}

// madFile answers every operation with the same bytes behind a right tunnel header, and loses patience after a while.
type madFile struct {
	*fake
	reply  []byte
	other  bool // the tunnel header of another operation
	calls  int
	cancel context.CancelFunc
}

func (m *madFile) Ioctl(ctx context.Context, code uint32, in1, in2, out1, out2 []byte) (int, error) {
	if m.calls++; m.calls > 40 {
		m.cancel()
		return 0, context.Canceled
	}
	b := append([]byte{}, in1[:16]...)
	if m.other {
		b[8]++
	}
	b = append(b, m.reply...)
	k := copy(out1, b)
	if k < len(b) {
		k += copy(out2, b[k:])
	}
	return k, nil
}
