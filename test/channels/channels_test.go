package channels

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"vdbridge/client"
	"vdbridge/smb/wire"
)

// TestChannels uses one session on several connections, signed and sealed, in every dialect that has them.
func TestChannels(t *testing.T) {
	both(t, func(t *testing.T, s *sut) {
		for _, d := range []wire.Dialect{wire.Dialect300, wire.Dialect302, wire.Dialect311} {
			for _, seal := range []bool{false, true} {
				ctx := testContext(t)
				sess := s.connect(client.Config{MinDialect: d, MaxDialect: d, Seal: seal}, client.SessionOptions{})
				f := s.open(sess, "a", nil)
				s.bind(sess)
				s.bind(sess)
				if n := live(sess); n != 3 {
					t.Fatalf("SMB %v: %d channels", d, n)
				}
				l := startLoad(t, f, 8, 64<<10, 4096)
				want := bytes.Repeat([]byte("sixteen bytes...x"), 200_000)
				for range 3 {
					if _, err := f.WriteAt(ctx, want, 8<<20); err != nil {
						t.Fatal(err)
					}
				}
				got := make([]byte, len(want))
				if _, err := f.ReadAt(ctx, got, 8<<20); err != nil || !bytes.Equal(got, want) {
					t.Errorf("SMB %v: read: %v", d, err)
				}
				l.until(300)
				l.end()
				for _, ch := range sess.Status().Channels {
					if ch.Requests < 30 {
						t.Errorf("SMB %v sealed %v: channel %+v has had little to do", d, seal, ch)
					}
					if ch.InFlight != 0 {
						t.Errorf("SMB %v sealed %v: idle channel %+v", d, seal, ch)
					}
				}
				must(t, "close", f.Close())
				must(t, "log off", sess.Close())
				must(t, "close the connection", sess.Conn().Close())
			}
		}
	})
}

// TestCutUnderLoad cuts one channel after the other while blocks are written and read. The session opens them again.
func TestCutUnderLoad(t *testing.T) {
	both(t, func(t *testing.T, s *sut) {
		for _, block := range []int{4096, 256 << 10} {
			sess := s.connect(client.Config{Seal: block > 4096}, client.SessionOptions{})
			f := s.open(sess, "disk", nil)
			must(t, "keep channels", sess.KeepChannels(client.ChannelOptions{Count: 3, Addrs: []string{s.net.Addr()}, MinDelay: time.Millisecond}))
			l := startLoad(t, f, 8, 4*block, block)
			for round := range 9 {
				eventually(t, "three channels", func() bool { return live(sess) == 3 })
				l.until(20)
				links := s.net.Links()
				links[round%len(links)].Cut()
				eventually(t, "a lost channel", func() bool { return sess.Status().Lost > uint64(round) || t.Failed() })
			}
			ops := l.end()
			st := sess.Status()
			t.Logf("%d operations of %d bytes, %d channels lost, %d requests sent again", ops, block, st.Lost, st.Replayed)
			if st.Replayed == 0 {
				t.Error("no request was ever sent again")
			}
			must(t, "flush", f.Flush(testContext(t)))
			got := make([]byte, len(l.want))
			if _, err := f.ReadAt(testContext(t), got, 0); err != nil || !bytes.Equal(got, l.want) {
				t.Errorf("the file is not what was written: %v", err)
			}
			must(t, "close", f.Close())
			if disk, err := os.ReadFile(s.file("disk")); err != nil || !bytes.Equal(disk, l.want) {
				t.Errorf("the server's file is not what was written: %v", err)
			}
			must(t, "log off", sess.Close())
			if err := sess.Conn().Close(); !errors.Is(err, client.ErrConnectionLost) {
				t.Errorf("close the first connection, which is lost: %v", err)
			}
		}
	})
}
