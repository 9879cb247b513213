package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vdbridge/client"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// world is a link to a fake server, in a bubble of synctest: time stands still while anybody has something to do.
type world struct {
	t *testing.T
	s *fakeServer
	l *Link
	f *File
}

func inWorld(t *testing.T, policy Policy, change func(*Config, *fakeServer, *Hooks), test func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		cfg := Config{Addresses: []string{"a:1"}, Dial: s.dial, Policy: policy, Logger: slog.New(slog.DiscardHandler)}
		var hooks Hooks
		if change != nil {
			change(&cfg, s, &hooks)
		}
		l, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		f, err := l.Open(t.Context(), "x", client.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		f.Protect(hooks)
		defer func() {
			_ = f.Close()
			_ = l.Close()
		}()
		test(&world{t, s, l, f})
	})
}

func (w *world) write(off int64) error {
	_, err := w.f.WriteAt(w.t.Context(), make([]byte, 8), off)
	return err
}

// count is how often the server carried out what begins so.
func (w *world) count(prefix string) (n int) {
	for _, s := range w.s.done() {
		if strings.HasPrefix(s, prefix) {
			n++
		}
	}
	return n
}

// background carries out f and says later what came of it.
func background(f func() error) chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

func pending(done chan error) bool {
	synctest.Wait()
	select {
	case err := <-done:
		done <- err
		return false
	default:
		return true
	}
}

// What is under way when the server is lost is carried out when it is back, once, and nobody hears of it.
func TestHold(t *testing.T) {
	inWorld(t, Hold, nil, func(w *world) {
		w.s.stallAll()
		var all []chan error
		for i := range 64 {
			all = append(all, background(func() error { return w.write(int64(i)) }))
		}
		synctest.Wait()
		w.s.down()
		synctest.Wait()
		if s := w.l.Status(); s.State != Reconnecting || s.LastError == nil || s.Losses != 1 {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Hour)
		for _, c := range all {
			if !pending(c) {
				t.Fatalf("a write has ended: %v", <-c)
			}
		}
		w.s.start(func(s *fakeServer) { s.stall = nil })
		for _, c := range all {
			if err := <-c; err != nil {
				t.Error(err)
			}
		}
		if n := w.count("write"); n != 64 {
			t.Errorf("%d writes were carried out", n)
		}
		s := w.l.Status()
		if s.State != Connected || s.Reconnects != 1 || s.Repeated != 64 || s.LastError != nil {
			t.Errorf("%+v", s)
		}
		if w.s.previous()[1] != 1 {
			t.Errorf("the new session names %d as its predecessor", w.s.previous()[1])
		}
	})
}

// The time between attempts grows, and stays below its bound.
func TestBackOff(t *testing.T) {
	inWorld(t, Hold, nil, func(w *world) {
		w.s.down()
		time.Sleep(time.Second)
		first := w.s.dialled()
		time.Sleep(24 * time.Hour)
		all := w.s.dialled()
		if first < 3 || first > 20 {
			t.Errorf("%d attempts in the first second", first)
		}
		if low, high := int(24*time.Hour/(lastWait*3/2)), int(24*time.Hour/(lastWait/2)); all < low || all > high {
			t.Errorf("%d attempts in a day, want %d to %d", all, low, high)
		}
		w.s.start(nil)
		start := time.Now()
		if err := w.write(1); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > lastWait*3/2 {
			t.Errorf("it took %v to find the server", d)
		}
	})
}

// A refused logon is not tried often: accounts get locked.
func TestRefusedLogonIsNotRepeatedFast(t *testing.T) {
	inWorld(t, Hold, nil, func(w *world) {
		w.s.down()
		w.s.start(func(s *fakeServer) { s.refuse = fmt.Errorf("log on: %w", ntstatus.LogonFailure) })
		time.Sleep(10 * time.Minute)
		if n := w.s.dialled(); n > 22 {
			t.Errorf("%d attempts in ten minutes", n)
		}
	})
}

func TestFailAfter(t *testing.T) {
	inWorld(t, FailAfter(30*time.Second), nil, func(w *world) {
		w.s.down()
		start := time.Now()
		err := w.write(1)
		if d := time.Since(start); !errors.Is(err, client.ErrConnectionLost) || d < 29*time.Second || d > 31*time.Second {
			t.Errorf("after %v: %v", d, err)
		}
		start = time.Now()
		if err := w.write(2); err == nil || time.Since(start) > 0 {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		w.s.start(nil)
		time.Sleep(10 * time.Second)
		if err := w.write(3); err != nil {
			t.Errorf("the server is back: %v", err)
		}
		// The time counts anew.
		w.s.down()
		c := background(func() error { return w.write(4) })
		time.Sleep(25 * time.Second)
		if !pending(c) {
			t.Errorf("too soon: %v", <-c)
		}
		w.s.start(nil)
		if err := <-c; err != nil {
			t.Error(err)
		}
	})
}

func TestFail(t *testing.T) {
	inWorld(t, Fail, nil, func(w *world) {
		w.s.down()
		synctest.Wait()
		if err := w.write(1); !errors.Is(err, client.ErrConnectionLost) {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		if s := w.l.Status(); s.State != Failed || w.s.dialled() != 1 {
			t.Errorf("%+v, %d dials", s, w.s.dialled())
		}
	})
}

// At the end nobody waits for a lost server, whether it was lost before or is lost then.
func TestGiveUp(t *testing.T) {
	for _, before := range []bool{true, false} {
		inWorld(t, Hold, nil, func(w *world) {
			if before {
				w.s.down()
			}
			w.s.stallAll()
			c := background(func() error { return w.write(1) })
			if !pending(c) {
				t.Fatal(<-c)
			}
			start := time.Now()
			w.l.GiveUp()
			if !before {
				if !pending(c) {
					t.Fatalf("a server that works was given up: %v", <-c)
				}
				w.s.down()
			}
			if err := <-c; !errors.Is(err, client.ErrConnectionLost) || time.Since(start) > 0 {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
		})
	}
}

// A caller that gives up stops waiting, and its write is not sent any more.
func TestContextEndsTheWait(t *testing.T) {
	inWorld(t, Hold, nil, func(w *world) {
		w.s.down()
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
		defer cancel()
		if _, err := w.f.WriteAt(ctx, make([]byte, 8), 1); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "lost") {
			t.Error(err)
		}
		w.s.start(nil)
		time.Sleep(time.Minute)
		if n := w.count("write"); n != 0 {
			t.Error("the write was sent")
		}
	})
}

// Close ends those who wait, and the attempts, at once.
func TestCloseWhileReconnecting(t *testing.T) {
	inWorld(t, Hold, func(c *Config, s *fakeServer, _ *Hooks) {
		c.Dial = func(ctx context.Context, addr string, previous uint64) (Way, error) {
			if previous != 0 { // an address that does not answer
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return s.dial(ctx, addr, previous)
		}
	}, func(w *world) {
		w.s.down()
		c := background(func() error { return w.write(1) })
		if !pending(c) {
			t.Fatal(<-c)
		}
		start := time.Now()
		if err := w.f.Close(); !errors.Is(err, client.ErrConnectionLost) {
			t.Errorf("close: %v", err)
		}
		if err := <-c; !errors.Is(err, ErrClosed) {
			t.Errorf("write: %v", err)
		}
		if err := w.l.Close(); err != nil || time.Since(start) > 0 {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		if s := w.l.Status(); s.State != Closed {
			t.Errorf("%+v", s)
		}
	})
}

// Nothing is sent to another server; when the right one is back, it goes on.
func TestOtherServer(t *testing.T) {
	for name, change := range map[string]func(*Server){
		"GUID":    func(s *Server) { s.GUID[0]++ },
		"dialect": func(s *Server) { s.Dialect = wire.Dialect302 },
		"cipher":  func(s *Server) { s.Cipher++ },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, Hold, nil, func(w *world) {
				was := w.s.identity()
				w.s.down()
				c := background(func() error { return w.write(1) })
				w.s.start(func(s *fakeServer) { change(&s.id) })
				time.Sleep(time.Minute)
				if !pending(c) {
					t.Fatalf("the write has ended: %v", <-c)
				}
				if s := w.l.Status(); s.State != Reconnecting || !errors.Is(s.LastError, client.ErrOtherServer) {
					t.Errorf("%+v", s)
				}
				if n := len(w.s.done()); n != 1 {
					t.Errorf("the other server was sent %v", w.s.done()[1:])
				}
				w.s.start(func(s *fakeServer) { s.id = was })
				if err := <-c; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestAddressesInTurn(t *testing.T) {
	var b *fakeServer
	var asked []string
	inWorld(t, Hold, func(c *Config, s *fakeServer, _ *Hooks) {
		b = newServer()
		b.up = false
		c.Addresses = []string{"a:1", "b:2"}
		c.Dial = func(ctx context.Context, addr string, previous uint64) (Way, error) {
			asked = append(asked, addr)
			if addr == "b:2" {
				return b.dial(ctx, addr, previous)
			}
			return s.dial(ctx, addr, previous)
		}
	}, func(w *world) {
		w.s.down()
		b.start(nil)
		if err := w.write(1); err != nil {
			t.Fatal(err)
		}
		if s := w.l.Status(); s.Server.Address != "b:2" {
			t.Errorf("%+v", s.Server)
		}
		if got := strings.Join(asked, " "); got != "a:1 a:1 b:2" {
			t.Errorf("asked: %s", got)
		}
		if n := w.count("write"); n != 0 {
			t.Error("the first server has the write")
		}
	})
}

// Who is shut out when the server is back has the outstanding changes fail, and never sent; reading goes on, and after Unfence all does.
func TestFence(t *testing.T) {
	why := errors.New("pre-empted")
	inWorld(t, Hold, func(_ *Config, _ *fakeServer, h *Hooks) {
		h.Verify = func(context.Context, Handle, bool) error { return &FencedError{why} }
	}, func(w *world) {
		w.s.stallAll()
		ctx := w.t.Context()
		changes := []chan error{
			background(func() error { return w.write(1) }),
			background(func() error { _, err := w.f.Control(ctx, Write, 2, nil, nil, nil, nil); return err }),
			background(func() error { _, err := w.f.Control(ctx, OnceWrite, 3, nil, nil, nil, nil); return err }),
			background(func() error { _, err := w.f.Control(ctx, Durable, 4, nil, nil, nil, nil); return err }),
			background(func() error { return w.f.Flush(ctx) }),
			background(func() error { return w.f.Truncate(ctx, 5) }),
		}
		read := background(func() error { _, err := w.f.ReadAt(ctx, make([]byte, 8), 1); return err })
		synctest.Wait()
		w.s.down()
		changes = append(changes, background(func() error { return w.write(6) })) // issued while nobody knows
		synctest.Wait()
		w.s.start(func(s *fakeServer) { s.stall = nil })
		for i, c := range changes {
			if err := <-c; !errors.Is(err, ErrFenced) || !errors.Is(err, why) {
				t.Errorf("change %d: %v", i, err)
			}
		}
		if err := <-read; err != nil {
			t.Errorf("read: %v", err)
		}
		if err := w.write(7); !errors.Is(err, why) {
			t.Errorf("a new write: %v", err)
		}
		if _, err := w.f.Control(ctx, Once, 8, nil, nil, nil, nil); err != nil {
			t.Errorf("the way back in is closed: %v", err)
		}
		w.f.Unfence()
		if err := w.write(9); err != nil {
			t.Error(err)
		}
		if got := fmt.Sprint(w.s.done()); got != "[open x open x read 1 once 8 write 9]" {
			t.Errorf("carried out: %s", got)
		}
	})
}

// A flush fails once if, and only if, the server may have lost something that was not flushed.
func TestFlushAfterRestart(t *testing.T) {
	for name, tc := range map[string]struct {
		lasting LastingKind
		gone    bool
		started uint64
		clean   bool
		fails   bool
	}{
		"restarted":                     {started: 8, fails: true},
		"does not say":                  {started: 0, fails: true},
		"was running all the time":      {started: 7},
		"restarted, but all flushed":    {started: 8, clean: true},
		"restarted, persistent":         {started: 8, lasting: LastingPersistent},
		"restarted, persistent, lost":   {started: 8, lasting: LastingPersistent, gone: true, fails: true},
		"durable":                       {started: 0, lasting: LastingDurable},
		"durable, lost, still the same": {started: 7, lasting: LastingDurable, gone: true},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, Hold, func(_ *Config, s *fakeServer, _ *Hooks) { s.lasting = tc.lasting }, func(w *world) {
				if err := w.write(1); err != nil {
					t.Fatal(err)
				}
				if tc.clean {
					if err := w.f.Flush(w.t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				w.s.down()
				w.s.start(func(s *fakeServer) { s.id.Started, s.gone = tc.started, tc.gone })
				if err := w.f.Flush(w.t.Context()); errors.Is(err, ErrWritesLost) != tc.fails || err != nil && !tc.fails {
					t.Errorf("flush: %v", err)
				}
				if err := w.f.Flush(w.t.Context()); err != nil {
					t.Errorf("second flush: %v", err)
				}
				// Nothing of it stays for the next time.
				w.s.down()
				w.s.start(nil)
				if err := w.f.Flush(w.t.Context()); err != nil {
					t.Errorf("third flush: %v", err)
				}
			})
		})
	}
}

// All flushes that are under way then are told, and none afterwards.
func TestFlushesUnderWayAreTold(t *testing.T) {
	inWorld(t, Hold, nil, func(w *world) {
		if err := w.write(1); err != nil {
			t.Fatal(err)
		}
		w.s.stallAll()
		a := background(func() error { return w.f.Flush(w.t.Context()) })
		b := background(func() error { _, err := w.f.Control(w.t.Context(), Sync, 1, nil, nil, nil, nil); return err })
		synctest.Wait()
		w.s.down()
		w.s.start(func(s *fakeServer) { s.stall, s.id.Started = nil, 8 })
		if ea, eb := <-a, <-b; !errors.Is(ea, ErrWritesLost) || !errors.Is(eb, ErrWritesLost) {
			t.Errorf("%v, %v", ea, eb)
		}
		if err := w.f.Flush(w.t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A write whose acknowledgement meets the news that its server may have lost it is sent again.
func TestAcknowledgedWhileLost(t *testing.T) {
	inWorld(t, Hold, nil, func(w *world) {
		in := w.f.cur.Load()
		w.s.down()
		w.s.start(func(s *fakeServer) { s.id.Started = 8 })
		time.Sleep(time.Minute)
		if in == w.f.cur.Load() {
			t.Fatal("not reconnected")
		}
		if !w.f.ledger.wrote(in) {
			t.Error("the write is not sent again")
		}
		if w.f.ledger.wrote(w.f.cur.Load()) {
			t.Error("a write on the new connection is sent again")
		}
	})
}

// What must not be repeated ends with an error that says so, after the server cannot carry it out any more.
func TestInterrupted(t *testing.T) {
	inWorld(t, Hold, func(_ *Config, s *fakeServer, _ *Hooks) { s.lasting = LastingPersistent }, func(w *world) {
		w.s.stallAll()
		c := background(func() error { _, err := w.f.Ioctl(w.t.Context(), 5, nil, nil, nil, nil); return err })
		synctest.Wait()
		w.s.down()
		if !pending(c) {
			t.Fatalf("it ended before the server was back: %v", <-c)
		}
		w.s.start(func(s *fakeServer) { s.stall = nil })
		err := <-c
		var i interface{ Interrupted() bool }
		if !errors.As(err, &i) || !i.Interrupted() || !errors.Is(err, client.ErrConnectionLost) {
			t.Error(err)
		}
		if got := fmt.Sprint(w.s.done()); got != "[open x reopen settle]" {
			t.Errorf("carried out: %s", got)
		}
	})
}

// A request that kills the server each time is given up in the end.
func TestPoison(t *testing.T) {
	inWorld(t, Hold, nil, func(w *world) {
		var mu sync.Mutex
		sent := 0
		err := w.f.do(w.t.Context(), true, func(h Handle) error {
			mu.Lock()
			sent++
			mu.Unlock()
			w.s.mu.Lock()
			w.s.cutLocked()
			w.s.mu.Unlock()
			return h.(*fakeHandle).w.Err()
		})
		if !errors.Is(err, client.ErrConnectionLost) || sent != maxRepeats+1 {
			t.Errorf("after %d times: %v", sent, err)
		}
		if err := w.write(1); err != nil {
			t.Errorf("another request: %v", err)
		}
	})
}

// A CREATE whose reply was lost is sent again under the same name, so that the server does not end up with two opens.
func TestLostReplyToCreate(t *testing.T) {
	inWorld(t, Hold, nil, func(w *world) {
		w.f.opts.Durable = &client.DurableRequest{Persistent: true}
		w.s.down()
		w.s.start(func(s *fakeServer) { s.lose = true })
		if err := w.write(1); err != nil {
			t.Fatal(err)
		}
		w.s.down()
		w.s.start(nil)
		if err := w.write(2); err != nil {
			t.Fatal(err)
		}
		var ids []wire.GUID
		var replay []bool
		for _, o := range w.s.opened()[1:] {
			ids, replay = append(ids, o.Durable.CreateGUID), append(replay, o.Durable.Replay)
		}
		if !slices.Equal(replay, []bool{false, true, false}) || ids[0] != ids[1] || ids[1] == ids[2] || ids[0] == (wire.GUID{}) {
			t.Errorf("%v %x", replay, ids)
		}
	})
}

// An end that Verify calls final is one.
func TestFinal(t *testing.T) {
	why := errors.New("somebody changed it")
	inWorld(t, Hold, func(_ *Config, _ *fakeServer, h *Hooks) {
		h.Verify = func(context.Context, Handle, bool) error { return &FinalError{why} }
	}, func(w *world) {
		w.s.down()
		w.s.start(nil)
		if err := w.write(1); !errors.Is(err, why) {
			t.Error(err)
		}
		dials := w.s.dialled()
		time.Sleep(time.Hour)
		if s := w.l.Status(); s.State != Failed || w.s.dialled() != dials || w.count("write") != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A loss is told once, and its end once something got done.
func TestLog(t *testing.T) {
	var log strings.Builder
	inWorld(t, Hold, func(c *Config, _ *fakeServer, _ *Hooks) {
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}, func(w *world) {
		w.s.stallAll()
		var all []chan error
		for i := range 16 {
			all = append(all, background(func() error { return w.write(int64(i)) }))
		}
		synctest.Wait()
		w.s.down()
		time.Sleep(time.Minute)
		w.s.start(func(s *fakeServer) { s.stall = nil })
		for _, c := range all {
			<-c
		}
		if n := strings.Count(log.String(), "the server is lost"); n != 1 {
			t.Errorf("told %d times:\n%s", n, &log)
		}
		if n := strings.Count(log.String(), "the server is back"); n != 1 {
			t.Errorf("the end was told %d times:\n%s", n, &log)
		}
	})
}

func TestParsePolicy(t *testing.T) {
	for _, s := range []string{"hold", "fail", "fail-after=30s", "fail-after=1m30s"} {
		p, err := ParsePolicy(s)
		if err != nil || p.String() != s {
			t.Errorf("%s: %v %v", s, p, err)
		}
	}
	for _, s := range []string{"", "Hold", "fail-after", "fail-after=", "fail-after=0s", "fail-after=-1s", "fail-after=30", "wait"} {
		if _, err := ParsePolicy(s); err == nil {
			t.Errorf("%q is a policy", s)
		}
	}
}

// All files of a link come back together, and one that was closed meanwhile does not.
func TestSeveralFiles(t *testing.T) {
	inWorld(t, Hold, func(_ *Config, s *fakeServer, _ *Hooks) { s.lasting = LastingPersistent }, func(w *world) {
		open := func(name string) *File {
			f, err := w.l.Open(w.t.Context(), name, client.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		y, z, late := open("y"), open("z"), open("late")
		y.Protect(Hooks{})
		z.Protect(Hooks{})
		w.s.down()
		synctest.Wait()
		if err := z.Close(); !errors.Is(err, client.ErrConnectionLost) {
			t.Errorf("close: %v", err)
		}
		w.s.start(nil)
		if _, err := y.ReadAt(w.t.Context(), make([]byte, 8), 1); err != nil {
			t.Error(err)
		}
		if err := w.write(2); err != nil {
			t.Error(err)
		}
		if _, err := z.ReadAt(w.t.Context(), make([]byte, 8), 3); !errors.Is(err, ErrClosed) {
			t.Errorf("a closed file: %v", err)
		}
		if n := w.count("reopen"); n != 2 {
			t.Errorf("%d files came back", n)
		}
		late.Protect(Hooks{}) // it was opened on the connection that is lost
		if _, err := late.ReadAt(w.t.Context(), make([]byte, 8), 4); err != nil {
			t.Error(err)
		}
		if err := w.write(5); err != nil {
			t.Error(err)
		}
	})
}

// A message that is not authentic costs the connection, and is counted.
func TestForged(t *testing.T) {
	inWorld(t, Hold, nil, func(w *world) {
		w.s.start(func(s *fakeServer) {
			s.cause = fmt.Errorf("%w: signature", client.ErrSecurity)
			s.cutLocked()
		})
		if err := w.write(1); err != nil {
			t.Error(err)
		}
		if s := w.l.Status(); s.Forged != 1 || s.Losses != 1 {
			t.Errorf("%+v", s)
		}
	})
}
