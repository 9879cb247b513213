package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"testing"
	"time"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
)

var bg = context.Background()

// protections are the ways in which messages can be protected, as changes of peer and config.
var protections = map[string]func(p *peer, cfg *Config){
	"plain":      func(p *peer, cfg *Config) { cfg.Unsigned = true },
	"GMAC":       func(p *peer, cfg *Config) {},
	"CMAC":       func(p *peer, cfg *Config) { p.signing = wire.SigningAESCMAC },
	"HMAC":       func(p *peer, cfg *Config) { p.dialect = wire.Dialect210; cfg.MinDialect = wire.Dialect210 },
	"3.0":        func(p *peer, cfg *Config) { p.dialect = wire.Dialect300 },
	"sealed":     func(p *peer, cfg *Config) { cfg.Seal = true },
	"CCM":        func(p *peer, cfg *Config) { cfg.Seal = true; p.cipher = wire.CipherAES256CCM },
	"seal asked": func(p *peer, cfg *Config) { p.session = wire.SessionFlagEncryptData },
	"share":      func(p *peer, cfg *Config) { p.share = wire.ShareFlagEncryptData },
}

func TestReadWriteControl(t *testing.T) {
	for name, set := range protections {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t)
			cfg := Config{}
			set(p, &cfg)
			f := p.open(cfg)
			for _, n := range []int{1, 4096, 64 << 10, 64<<10 + 1, 1 << 20, 3<<20 + 5} {
				got := make([]byte, n)
				if m, err := f.ReadAt(bg, got, 4099); m != n || err != nil || !bytes.Equal(got, p.file[4099:4099+n]) {
					t.Fatalf("read %d: %d, %v", n, m, err)
				}
				if m, err := f.WriteAt(bg, p.file[4099:4099+n], 4099); m != n || err != nil {
					t.Fatalf("write %d: %d, %v", n, m, err)
				}
			}
			// Input in two parts, output in two parts; the peer reverses it.
			out1, out2 := make([]byte, 4), make([]byte, 20000)
			in := append([]byte("abcdefgh"), bytes.Repeat([]byte{7}, 19996)...)
			n, err := f.Ioctl(bg, 0x12345678, in[:3], in[3:], out1, out2)
			if n != len(in) || err != nil {
				t.Fatalf("ioctl: %d, %v", n, err)
			}
			want := slices.Clone(in)
			slices.Reverse(want)
			if got := append(out1, out2...); !bytes.Equal(got, want) {
				t.Error("ioctl output differs")
			}
			// Too little room: data and error.
			n, err = f.Ioctl(bg, 0x12345678, in, nil, out1, out2[:4])
			if n != 8 || !errors.Is(err, ntstatus.BufferOverflow) || !bytes.Equal(append(out1[:4:4], out2[:4]...), want[:8]) {
				t.Errorf("ioctl with little room: %d, %v", n, err)
			}
			if n, err := f.ReadAt(bg, make([]byte, 100), int64(len(p.file))-10); n != 10 || err != io.EOF {
				t.Errorf("read across the end: %d, %v", n, err)
			}
			if n, err := f.ReadAt(bg, make([]byte, 3<<20), int64(len(p.file))-10); n != 10 || err != io.EOF {
				t.Errorf("large read across the end: %d, %v", n, err)
			}
			if err := f.Flush(bg); err != nil {
				t.Error(err)
			}
			c := f.t.sess.c
			c.checkIdle(t)
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if _, err := f.ReadAt(bg, make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("read after close: %v", err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			if last := p.commands[len(p.commands)-3:]; !slices.Equal(last, []wire.Command{wire.CmdClose, wire.CmdTreeDisconnect, wire.CmdLogoff}) {
				t.Errorf("the end was %v", last)
			}
			if err := c.Close(); err != nil {
				t.Errorf("second close: %v", err)
			}
			if !errors.Is(c.Err(), ErrClosed) || !errors.Is(c.Err(), ErrConnectionLost) {
				t.Errorf("Err is %v", c.Err())
			}
		})
	}
}

// TestScarceCredits lets the peer grant as little as it may. Every request still gets through, in turn, and no credit is used that was not
// granted (the peer checks that).
func TestScarceCredits(t *testing.T) {
	for _, limit := range []int{1, 2, 3, 7} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			p := newPeer(t)
			given := 1
			p.grant = func(q *query) int {
				// Called in the peer's one goroutine: keeps the client at limit credits in all.
				p.mu.Lock()
				defer p.mu.Unlock()
				given -= max(int(q.CreditCharge), 1)
				n := min(max(limit-given, 1), int(q.Credits))
				given += n
				return n
			}
			f := p.open(Config{})
			var wg sync.WaitGroup
			for w := range 20 {
				wg.Go(func() {
					n := []int{4096, 300 << 10, 1 << 20}[w%3]
					got := make([]byte, n)
					if _, err := f.ReadAt(bg, got, int64(w)*1000); err != nil || !bytes.Equal(got, p.file[w*1000:w*1000+n]) {
						t.Errorf("read of %d: %v", n, err)
					}
				})
			}
			wg.Wait()
			// What cannot be divided says so when the server never grants enough.
			_, err := f.Ioctl(bg, 1, nil, nil, make([]byte, 1<<20), nil)
			if !errors.Is(err, errTooLarge) {
				t.Errorf("ioctl that needs 16 credits: %v", err)
			}
			f.t.sess.c.checkIdle(t)
		})
	}
}

// TestCreditsRunDry has the peer take back the last credit.
func TestCreditsRunDry(t *testing.T) {
	p := newPeer(t)
	p.grant = func(q *query) int {
		if q.Command == wire.CmdRead {
			return 0
		}
		return 1
	}
	f := p.open(Config{})
	if _, err := f.ReadAt(bg, make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	_, err := f.ReadAt(bg, make([]byte, 10), 0)
	if !errors.Is(err, errNoCredits) || !errors.Is(err, ErrConnectionLost) {
		t.Errorf("got %v", err)
	}
}

// TestOutOfOrder answers many reads at once: in reverse order, compounded, after interim replies.
func TestOutOfOrder(t *testing.T) {
	for name, set := range protections {
		for _, how := range []string{"reverse", "compound", "pending"} {
			t.Run(name+" "+how, func(t *testing.T) {
				p := newPeer(t)
				cfg := Config{}
				set(p, &cfg)
				const together = 8
				var held []*query
				p.handle = func(p *peer, q *query) bool {
					if q.Command != wire.CmdRead {
						return false
					}
					if how == "pending" {
						// The interim reply brings the credits, the final one none. It is never signed.
						b := p.build(q, ntstatus.Pending, int(q.Credits), wire.FlagAsync, 1000+q.MessageID, nil)
						p.send(p.protect(q, b))
					}
					held = append(held, q)
					if len(held) < together {
						return true
					}
					slices.Reverse(held)
					var all [][]byte
					for _, q := range held {
						credits, flags := int(q.Credits), uint32(0)
						if how == "pending" {
							credits, flags = 0, wire.FlagAsync
						}
						m := p.build(q, ntstatus.Success, credits, flags, 1000+q.MessageID, p.readBody(q))
						if how == "compound" {
							all = append(all, m)
						} else {
							p.send(p.protect(q, m))
						}
					}
					if how == "compound" {
						p.send(p.protect(q, all...))
					}
					held = nil
					return true
				}
				f := p.open(cfg)
				for round := range 3 {
					var wg sync.WaitGroup
					for w := range together {
						wg.Go(func() {
							n := 1000 + 5000*w
							got := make([]byte, n)
							off := round*100000 + w*7000
							if _, err := f.ReadAt(bg, got, int64(off)); err != nil || !bytes.Equal(got, p.file[off:off+n]) {
								t.Errorf("read: %v, equal %v", err, bytes.Equal(got, p.file[off:off+n]))
							}
						})
					}
					wg.Wait()
				}
				f.t.sess.c.checkIdle(t)
			})
		}
	}
}

// TestCancel cancels a read that the server sits on. The call returns at once, CANCEL is sent, and the late reply neither touches the
// buffer nor upsets the credits.
func TestCancel(t *testing.T) {
	for name, set := range protections {
		for _, async := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s async=%v", name, async), func(t *testing.T) {
				p := newPeer(t)
				cfg := Config{}
				set(p, &cfg)
				var held *query
				got := make(chan struct{}, 1)
				cancelled := make(chan wire.Header, 1)
				p.handle = func(p *peer, q *query) bool {
					switch {
					case q.Command == wire.CmdRead && held == nil:
						held = q
						if async {
							p.send(p.protect(q, p.build(q, ntstatus.Pending, 0, wire.FlagAsync, 4711, nil)))
						}
						got <- struct{}{}
						return true
					case q.Command == wire.CmdCancel:
						cancelled <- q.Header
						return true
					case q.Command == wire.CmdEcho:
						// The late reply comes before that of the ECHO.
						p.reply(held, ntstatus.Success, p.readBody(held))
					}
					return false
				}
				f := p.open(cfg)
				ctx, cancel := context.WithCancel(bg)
				buf := bytes.Repeat([]byte{0xEE}, 5000)
				errc := make(chan error, 1)
				go func() {
					_, err := f.ReadAt(ctx, buf, 0)
					errc <- err
				}()
				<-got
				if async {
					// Another read makes sure that the interim reply has been seen.
					if _, err := f.ReadAt(bg, make([]byte, 1), 0); err != nil {
						t.Fatal(err)
					}
				}
				cancel()
				if err := <-errc; !errors.Is(err, context.Canceled) {
					t.Fatalf("cancelled read: %v", err)
				}
				h := <-cancelled
				if h.MessageID != held.MessageID || async && (h.Flags&wire.FlagAsync == 0 || h.AsyncID != 4711) {
					t.Errorf("CANCEL is %+v, the read was %d", h, held.MessageID)
				}
				if err := f.t.sess.c.Echo(bg); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(buf, bytes.Repeat([]byte{0xEE}, 5000)) {
					t.Error("the buffer was written after the call had returned")
				}
				f.t.sess.c.checkIdle(t)
				if _, err := f.ReadAt(bg, buf, 0); err != nil || !bytes.Equal(buf, p.file[:5000]) {
					t.Errorf("read afterwards: %v", err)
				}
			})
		}
	}
}

// TestCancelWhileFilling cancels when half of the payload has arrived: the call waits for the rest.
func TestCancelWhileFilling(t *testing.T) {
	p := newPeer(t)
	half, rest := make(chan struct{}), make(chan struct{})
	p.handle = func(p *peer, q *query) bool {
		if q.Command != wire.CmdRead {
			return false
		}
		m := p.protect(q, p.build(q, ntstatus.Success, int(q.Credits), 0, 0, p.readBody(q)))
		frame := append([]byte{0, byte(len(m) >> 16), byte(len(m) >> 8), byte(len(m))}, m...)
		raw := p.raw()
		_, _ = raw.Write(frame[:len(frame)/2])
		close(half)
		<-rest
		_, _ = raw.Write(frame[len(frame)/2:])
		return true
	}
	f := p.open(Config{})
	ctx, cancel := context.WithCancel(bg)
	buf := make([]byte, 300<<10)
	errc := make(chan error, 1)
	go func() {
		_, err := f.ReadAt(ctx, buf, 0)
		errc <- err
	}()
	<-half
	// The reader has begun to fill the buffer when the request has left the table.
	for {
		f.t.sess.c.mu.Lock()
		n := len(f.t.sess.c.table)
		f.t.sess.c.mu.Unlock()
		if n == 0 {
			break
		}
		time.Sleep(time.Millisecond) // a state to wait for that has no event
	}
	cancel()
	select {
	case err := <-errc:
		t.Fatalf("returned while the buffer was being filled: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(rest)
	if err := <-errc; err != nil || !bytes.Equal(buf, p.file[:len(buf)]) {
		t.Errorf("got %v", err)
	}
}

// TestCancelInQueue cancels requests that wait for credits; those behind them go on.
func TestCancelInQueue(t *testing.T) {
	p := newPeer(t)
	var held []*query
	got := make(chan struct{}, 1)
	p.grant = func(*query) int { return 1 }
	p.handle = func(p *peer, q *query) bool {
		if q.Command == wire.CmdRead && len(held) == 0 {
			held = append(held, q)
			got <- struct{}{}
			return true
		}
		return false
	}
	f := p.open(Config{})
	errc := make(chan error, 3)
	read := func(ctx context.Context) {
		_, err := f.ReadAt(ctx, make([]byte, 100), 0)
		errc <- err
	}
	go read(bg)
	<-got
	ctx, cancel := context.WithCancel(bg)
	go read(ctx)
	waitQueued(f.t.sess.c, 1)
	go read(bg)
	waitQueued(f.t.sess.c, 2)
	cancel()
	if err := <-errc; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	p.reply(held[0], ntstatus.Success, p.readBody(held[0]))
	for range 2 {
		if err := <-errc; err != nil {
			t.Error(err)
		}
	}
	f.t.sess.c.checkIdle(t)
}

// waitQueued waits until n requests wait for credits.
func waitQueued(c *Conn, n int) {
	for {
		c.mu.Lock()
		m := 0
		for r := c.w.head; r != nil; r = r.next {
			m++
		}
		c.mu.Unlock()
		if m == n {
			return
		}
		time.Sleep(time.Millisecond) // a state to wait for that has no event
	}
}

// TestAbandonedOpen cancels an open that succeeds all the same: the client closes the file.
func TestAbandonedOpen(t *testing.T) {
	p := newPeer(t)
	got := make(chan *query, 1)
	closed := make(chan struct{})
	opens := 0
	p.handle = func(p *peer, q *query) bool {
		if q.Command == wire.CmdCreate {
			if opens++; opens == 2 {
				got <- q
				return true
			}
		}
		if q.Command == wire.CmdCancel {
			return true
		}
		if q.Command == wire.CmdClose {
			if r, _ := wire.ParseCloseRequest(q.msg); r.FileID.Volatile == 99 {
				defer close(closed)
			}
		}
		return false
	}
	f := p.open(Config{})
	ctx, cancel := context.WithCancel(bg)
	errc := make(chan error, 1)
	go func() {
		_, err := f.t.Open(ctx, "other", OpenOptions{Disposition: wire.FileOpen})
		errc <- err
	}()
	q := <-got
	cancel()
	if err := <-errc; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	p.reply(q, ntstatus.Success, bodyOf((&wire.CreateResponse{FileID: wire.FileID{Persistent: 99, Volatile: 99}}).Append))
	<-closed
}

// TestBadReplies sends what no server should. The connection ends with an error that says what kind of trouble it was.
func TestBadReplies(t *testing.T) {
	frame := func(p *peer, q *query, change func(b []byte) []byte) {
		b := p.build(q, ntstatus.Success, 1, 0, 0, p.readBody(q))
		p.send(change(p.protect(q, b)))
	}
	flip := func(at int) func(p *peer, q *query) {
		return func(p *peer, q *query) {
			frame(p, q, func(b []byte) []byte { b[at] ^= 1; return b })
		}
	}
	unsigned := func(p *peer, q *query) {
		q.signed, q.sealed = false, false
		p.reply(q, ntstatus.Success, p.readBody(q))
	}
	for _, c := range []struct {
		name  string
		seal  bool
		reply func(p *peer, q *query)
		want  error
	}{
		{"payload changed", false, flip(1000), ErrSecurity},
		{"header changed", false, flip(33), ErrSecurity},
		{"signature changed", false, flip(50), ErrSecurity},
		{"not signed", false, unsigned, ErrSecurity},
		{"sealed payload changed", true, flip(1000), ErrSecurity},
		{"sealed status changed", true, flip(52 + 8), ErrSecurity},
		{"sealed credits changed", true, flip(52 + 14), ErrSecurity},
		{"sealed message id changed", true, flip(52 + 24), ErrSecurity},
		{"sealed session changed", true, flip(52 + 40), ErrSecurity},
		{"sealed length changed", true, flip(52 + 64 + 4), ErrSecurity},
		{"tag changed", true, flip(5), ErrSecurity},
		{"not sealed", true, unsigned, ErrSecurity},
		{"sealed for another session", true, flip(45), ErrProtocol},
		{"transform flags", true, flip(42), ErrSecurity},
		{"transform size", true, flip(36), ErrProtocol},
		{"protocol id", false, flip(3), ErrProtocol},
		{"compressed", false, func(p *peer, q *query) { frame(p, q, func(b []byte) []byte { b[0] = 0xFC; return b }) }, ErrProtocol},
		{"SMB1", false, func(p *peer, q *query) { frame(p, q, func(b []byte) []byte { b[0] = 0xFF; return b }) }, ErrUnsupportedServer},
		{"header size", false, flip(4), ErrProtocol},
		{"StructureSize", false, flip(64), ErrProtocol},
		{"a request", false, flip(16), ErrProtocol},
		{"another command", false, func(p *peer, q *query) {
			q.Command = wire.CmdWrite
			p.reply(q, ntstatus.Success, bodyOf((&wire.WriteResponse{}).Append))
		}, ErrProtocol},
		{"NextCommand", false, func(p *peer, q *query) { frame(p, q, func(b []byte) []byte { b[20] = 72; b[21] = 0xFF; return b }) }, ErrProtocol},
		{"NextCommand to a truncated header", false, func(p *peer, q *query) { frame(p, q, func(b []byte) []byte { b[20] = 64; return b[:100] }) }, ErrProtocol},
		{"empty", false, func(p *peer, q *query) { p.send(nil) }, ErrProtocol},
		{"short", false, func(p *peer, q *query) { frame(p, q, func(b []byte) []byte { return b[:30] }) }, ErrProtocol},
		{"header only", false, func(p *peer, q *query) { frame(p, q, func(b []byte) []byte { return b[:64] }) }, ErrProtocol},
		{"payload missing", false, func(p *peer, q *query) { frame(p, q, func(b []byte) []byte { return b[:2000] }) }, ErrProtocol},
		{"more than asked for", false, func(p *peer, q *query) {
			body := append(bodyOf((&wire.ReadResponse{DataOffset: 80, DataLength: 5001}).Append), make([]byte, 5001)...)
			p.reply(q, ntstatus.Success, body)
		}, ErrProtocol},
		{"too large", false, func(p *peer, q *query) { p.send(make([]byte, 2<<20)) }, transport.ErrTooLarge},
		{"hang up", false, func(p *peer, q *query) { p.tr.Close() }, ErrConnectionLost},
	} {
		sizes := []int{5000}
		if c.seal {
			sizes = append(sizes, 50_000) // which the reader does not open itself
		}
		for _, size := range sizes {
			t.Run(fmt.Sprintf("%s/%d", c.name, size), func(t *testing.T) {
				p := newPeer(t)
				var others []*query
				p.handle = func(p *peer, q *query) bool {
					if q.Command != wire.CmdRead {
						return false
					}
					if others = append(others, q); len(others) == 4 {
						c.reply(p, q)
					}
					return true
				}
				f := p.open(Config{Seal: c.seal})
				// Everyone who waits gets the error, not only the one whose reply was bad.
				errs := make(chan error)
				for range 4 {
					go func() {
						_, err := f.ReadAt(bg, make([]byte, size), 0)
						errs <- err
					}()
				}
				for range 4 {
					if err := <-errs; !errors.Is(err, c.want) || !errors.Is(err, ErrConnectionLost) {
						t.Errorf("got %v", err)
					}
				}
				<-f.t.sess.c.Done()
				if _, err := f.ReadAt(bg, make([]byte, size), 0); !errors.Is(err, c.want) {
					t.Errorf("later: %v", err)
				}
				if err := f.t.sess.c.Close(); !errors.Is(err, c.want) {
					t.Errorf("close: %v", err)
				}
			})
		}
	}
}

// TestHarmlessSurprises sends what a client must bear.
func TestHarmlessSurprises(t *testing.T) {
	p := newPeer(t)
	broken := make(chan wire.OplockBreak, 1)
	p.handle = func(p *peer, q *query) bool {
		if q.Command != wire.CmdRead {
			return false
		}
		// A reply that nobody waits for.
		other := *q
		other.MessageID += 1000
		p.send(p.protect(q, p.build(&other, ntstatus.Success, 0, 0, 0, p.readBody(q))))
		// An oplock break, a lease break, an unknown notification.
		note := query{Header: wire.Header{Command: wire.CmdOplockBreak, MessageID: noMessageID}}
		p.send(p.build(&note, ntstatus.Success, 0, 0, 0, bodyOf(func(b []byte) []byte {
			return wire.AppendOplockBreakResponse(b, wire.OplockBreak{OplockLevel: 1, FileID: wire.FileID{Persistent: 5, Volatile: 6}})
		})))
		p.send(p.build(&note, ntstatus.Success, 0, 0, 0, append([]byte{44}, make([]byte, 43)...)))
		note.Command = 0x13
		p.send(p.build(&note, ntstatus.Success, 0, 0, 0, []byte{4, 0, 0, 0}))
		// The payload not at its usual place, and padding behind it.
		body := p.readBody(q)
		body[2] = 96
		body = slices.Concat(body[:16], make([]byte, 16), body[16:], make([]byte, 5))
		p.reply(q, ntstatus.Success, body)
		return true
	}
	f := p.open(Config{OnOplockBreak: func(b wire.OplockBreak) { broken <- b }})
	got := make([]byte, 5000)
	if _, err := f.ReadAt(bg, got, 10); err != nil || !bytes.Equal(got, p.file[10:5010]) {
		t.Errorf("read: %v", err)
	}
	if b := <-broken; b.FileID.Volatile != 6 {
		t.Errorf("oplock break %+v", b)
	}
	f.t.sess.c.checkIdle(t)
}

// TestShortIO reads and writes with a server that does less than it is asked.
func TestShortIO(t *testing.T) {
	p := newPeer(t)
	p.handle = func(p *peer, q *query) bool {
		switch q.Command {
		case wire.CmdRead:
			r, _ := wire.ParseReadRequest(q.msg)
			data := p.file[r.Offset:][:min(int(r.Length), 100000)]
			p.reply(q, ntstatus.Success, append(bodyOf((&wire.ReadResponse{DataOffset: 80, DataLength: uint32(len(data))}).Append), data...))
			return true
		case wire.CmdWrite:
			r, _ := wire.ParseWriteRequest(q.msg)
			if !bytes.Equal(q.msg[r.DataOffset:], p.file[r.Offset:r.Offset+uint64(r.Length)]) {
				t.Errorf("write of %d at %d is garbled", r.Length, r.Offset)
			}
			p.reply(q, ntstatus.Success, bodyOf((&wire.WriteResponse{Count: min(r.Length, 100000)}).Append))
			return true
		}
		return false
	}
	f := p.open(Config{})
	got := make([]byte, 3<<20)
	if n, err := f.ReadAt(bg, got, 5); n != len(got) || err != nil || !bytes.Equal(got, p.file[5:5+len(got)]) {
		t.Errorf("read: %d, %v", n, err)
	}
	if n, err := f.WriteAt(bg, p.file[5:5+len(got)], 5); n != len(got) || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
}

// TestSilentServer has the server stop answering.
func TestSilentServer(t *testing.T) {
	p := newPeer(t)
	p.handle = func(p *peer, q *query) bool { return q.Command == wire.CmdRead || q.Command == wire.CmdEcho }
	f := p.open(Config{ServerTimeout: 20 * time.Millisecond})
	if _, err := f.ReadAt(bg, make([]byte, 10), 0); !errors.Is(err, ErrConnectionLost) {
		t.Errorf("got %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(p.commands, wire.CmdEcho) {
		t.Error("no ECHO was sent")
	}
}

// TestCloseFailsWaiters closes the connection under its users.
func TestCloseFailsWaiters(t *testing.T) {
	p := newPeer(t)
	got := make(chan struct{}, 10)
	p.handle = func(p *peer, q *query) bool {
		if q.Command == wire.CmdRead {
			got <- struct{}{}
			return true
		}
		return false
	}
	f := p.open(Config{})
	errs := make(chan error)
	for range 5 {
		go func() {
			_, err := f.ReadAt(bg, make([]byte, 10), 0)
			errs <- err
		}()
	}
	for range 5 {
		<-got
	}
	if err := f.t.sess.c.Close(); err != nil {
		t.Error(err)
	}
	for range 5 {
		if err := <-errs; !errors.Is(err, ErrClosed) || !errors.Is(err, ErrConnectionLost) {
			t.Errorf("got %v", err)
		}
	}
}
