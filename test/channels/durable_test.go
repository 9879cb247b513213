package channels

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"vdbridge/client"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
	"vdbridge/test/faultnet"
)

// TestReopen loses every connection, and gets a durable open back on a new session. [MS-SMB2] 3.2.4.4
func TestReopen(t *testing.T) {
	both(t, func(t *testing.T, s *sut) {
		ctx := testContext(t)
		cfg := client.Config{ClientGUID: wire.GUID{9}}
		sess := s.connect(cfg, client.SessionOptions{})
		f := s.open(sess, "disk", &client.DurableRequest{Persistent: true, Timeout: 20 * time.Second})
		d := f.Durable()
		if !d.Durable || d.Persistent != (s.name == "ours") || d.CreateGUID == (wire.GUID{}) || d.Timeout <= 0 {
			t.Fatalf("granted %+v", d)
		}
		s.bind(sess)
		if _, err := f.WriteAt(ctx, []byte("one"), 0); err != nil {
			t.Fatal(err)
		}
		s.net.CutAll()
		<-sess.Done()
		if err := sess.Err(); !errors.Is(err, client.ErrConnectionLost) {
			t.Errorf("session ended with %v", err)
		}
		if _, err := f.WriteAt(ctx, []byte("lost"), 0); !errors.Is(err, client.ErrConnectionLost) || errors.Is(err, client.ErrOutcomeUnknown) {
			t.Errorf("write on a lost session: %v", err)
		}
		again := s.connect(cfg, client.SessionOptions{Previous: sess.ID()})
		tree, err := again.Tree(ctx, s.share)
		must(t, "tree", err)
		g, err := tree.Reopen(ctx, f)
		must(t, "reopen", err)
		if g.Durable() != d {
			t.Errorf("before %+v, now %+v", d, g.Durable())
		}
		must(t, "settle", g.Settle(ctx))
		if _, err := g.WriteAt(ctx, []byte("two"), 3); err != nil {
			t.Fatal(err)
		}
		// And once more, with channels.
		s.bind(again)
		s.net.CutAll()
		<-again.Done()
		third := s.connect(cfg, client.SessionOptions{Previous: again.ID()})
		tree, err = third.Tree(ctx, s.share)
		must(t, "tree", err)
		h, err := tree.Reopen(ctx, f) // which stands for its successor g
		must(t, "reopen", err)
		s.bind(third)
		s.link(s.net.Accepted() - 1).Cut()
		eventually(t, "the loss", func() bool { return live(third) == 1 })
		if _, err := h.WriteAt(ctx, []byte("three"), 6); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 11)
		if _, err := h.ReadAt(ctx, got, 0); err != nil || string(got) != "onetwothree" {
			t.Errorf("%q, %v", got, err)
		}
		must(t, "close", h.Close())
		if _, err := tree.Reopen(ctx, h); err == nil {
			t.Error("a closed file was reopened")
		}
		if _, err := tree.Reopen(ctx, f); err == nil {
			t.Error("a file was reopened whose successor is closed")
		}
	})
}

// TestReopenDelayed has WRITEs of the lost session arrive after its open is back on a new one and has been written to.
func TestReopenDelayed(t *testing.T) {
	both(t, func(t *testing.T, s *sut) {
		ctx := testContext(t)
		cfg := client.Config{ClientGUID: wire.GUID{9}}
		sess := s.connect(cfg, client.SessionOptions{})
		f := s.open(sess, "disk", &client.DurableRequest{Persistent: true})
		l := s.link(0)
		l.Stall(faultnet.Up)
		failed := make(chan error, 1)
		go func() {
			_, err := f.WriteAt(ctx, []byte("old!"), 0)
			failed <- err
		}()
		eventually(t, "the write to be sent", func() bool { return sess.Status().Channels[0].InFlight > 0 })
		l.Orphan(time.Second)
		if err := <-failed; !errors.Is(err, client.ErrConnectionLost) {
			t.Fatal(err)
		}
		again := s.connect(cfg, client.SessionOptions{Previous: sess.ID()})
		tree, err := again.Tree(ctx, s.share)
		must(t, "tree", err)
		g, err := tree.Reopen(ctx, f)
		must(t, "reopen", err)
		if _, err := g.WriteAt(ctx, []byte("new."), 0); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the old write to arrive", func() bool { return len(s.net.Links()) == 1 })
		stays(t, g, []byte("new."))
		must(t, "close", g.Close())
	})
}

// TestReopenRefused asks for opens that the server has not kept.
func TestReopenRefused(t *testing.T) {
	both(t, func(t *testing.T, s *sut) {
		ctx := testContext(t)
		cfg := client.Config{ClientGUID: wire.GUID{9}}
		sess := s.connect(cfg, client.SessionOptions{})
		plain := s.open(sess, "plain", nil)
		f := s.open(sess, "disk", &client.DurableRequest{Persistent: true})
		s.net.CutAll()
		<-sess.Done()
		stranger := cfg
		stranger.ClientGUID[0]++
		again := s.connect(stranger, client.SessionOptions{})
		tree, err := again.Tree(ctx, s.share)
		must(t, "tree", err)
		if _, err := tree.Reopen(ctx, plain); err == nil {
			t.Error("an open that is not durable was reopened")
		}
		if _, err := tree.Reopen(ctx, f); !errors.Is(err, ntstatus.ObjectNameNotFound) {
			t.Errorf("reopened by another client: %v", err)
		}
	})
}

// TestReplayAcrossSessions loses the reply to the CREATE of a persistent open together with the session, and asks for it again on the next one.
func TestReplayAcrossSessions(t *testing.T) {
	s := ours(t, nil)
	ctx := testContext(t)
	cfg := client.Config{ClientGUID: wire.GUID{9}}
	sess := s.connect(cfg, client.SessionOptions{})
	tree, err := sess.Tree(ctx, s.share)
	must(t, "tree", err)
	o := client.OpenOptions{
		Access: wire.AccessGenericRead | wire.AccessGenericWrite, Disposition: wire.FileCreate, Durable: &client.DurableRequest{CreateGUID: wire.GUID{1, 2, 3}, Persistent: true},
	}
	s.link(0).Hole(faultnet.Down)
	failed := make(chan error, 1)
	go func() {
		_, err := tree.Open(ctx, "disk", o)
		failed <- err
	}()
	eventually(t, "the file to be made", func() bool { _, err := readFile(s.file("disk")); return err == nil })
	s.link(0).Cut()
	if err := <-failed; !errors.Is(err, client.ErrConnectionLost) {
		t.Fatal(err)
	}
	again := s.connect(cfg, client.SessionOptions{Previous: sess.ID()})
	tree, err = again.Tree(ctx, s.share)
	must(t, "tree", err)
	o.Durable.Replay = true
	f, err := tree.Open(ctx, "disk", o)
	must(t, "open again", err)
	if r := f.Reply(); r.Action != wire.ActionCreated || !f.Durable().Persistent {
		t.Errorf("reply %+v, %+v", r, f.Durable())
	}
	if _, err := f.WriteAt(ctx, []byte("x"), 0); err != nil {
		t.Error(err)
	}
	must(t, "close", f.Close())
}

// TestBreaks has others want a file that is open with an oplock or lease: it is given back, so that they need not wait, and the durability is gone with it.
func TestBreaks(t *testing.T) { both(t, testBreaks) }

func testBreaks(t *testing.T, s *sut) {
	s.share = s.plain
	for what, o := range map[string]client.OpenOptions{
		"lease": {Durable: &client.DurableRequest{}},
		"batch": {Durable: &client.DurableRequest{}, Oplock: wire.OplockBatch},
		"RWH":   {Durable: &client.DurableRequest{}, Lease: &client.LeaseRequest{State: wire.LeaseRead | wire.LeaseWrite | wire.LeaseHandle}},
	} {
		for _, channels := range []int{1, 2} {
			t.Run(what, func(t *testing.T) {
				ctx := testContext(t)
				sess := s.connect(client.Config{}, client.SessionOptions{})
				o.Access, o.Share, o.Disposition = wire.AccessGenericRead|wire.AccessGenericWrite, client.ShareAll, wire.FileOpenIf
				tree, err := sess.Tree(ctx, s.share)
				must(t, "tree", err)
				if channels == 2 {
					s.bind(sess)
				}
				f, err := tree.Open(ctx, "wanted", o)
				must(t, "open", err)
				if !f.Durable().Durable {
					t.Fatalf("granted %+v with oplock %#x", f.Durable(), f.Reply().OplockLevel)
				}
				other := s.connect(client.Config{}, client.SessionOptions{})
				tree2, err := other.Tree(ctx, s.share)
				must(t, "tree", err)
				// Without the acknowledgment this takes 35 s.
				began := time.Now()
				_, err = tree2.Open(ctx, "wanted", client.OpenOptions{Access: wire.AccessGenericRead, Disposition: wire.FileOpen})
				if !errors.Is(err, ntstatus.SharingViolation) {
					t.Errorf("open by another: %v", err)
				}
				if d := time.Since(began); d > 20*time.Second {
					t.Errorf("it took %v", d)
				}
				if f.Durable().Durable {
					t.Errorf("still %+v", f.Durable())
				}
				want := bytes.Repeat([]byte("x"), 4096)
				if _, err := f.WriteAt(ctx, want, 0); err != nil {
					t.Error(err)
				}
				must(t, "close", f.Close())
				must(t, "log off", sess.Close())
				must(t, "log off", other.Close())
			})
		}
	}
}
