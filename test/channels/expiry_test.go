package channels

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"vdbridge/client"
	"vdbridge/server"
	"vdbridge/smb/auth"
	"vdbridge/smb/ntstatus"
)

// TestExpiry has the server want a new proof of identity again and again while blocks are written and read. Nobody notices.
func TestExpiry(t *testing.T) {
	for _, seal := range []bool{false, true} { // the server looks at its sessions every other second
		s := ours(t, func(c *server.Config) { c.Limits.SessionLifetime = 50 * time.Millisecond })
		sess := s.connect(client.Config{Seal: seal}, client.SessionOptions{})
		f := s.open(sess, "disk", nil)
		s.bind(sess)
		l := startLoad(t, f, 8, 64<<10, 4096)
		eventually(t, "renewals", func() bool { return sess.Status().Renewed >= 1 || t.Failed() })
		// Also on a channel that is not the first.
		s.link(s.net.Links()[0].ID()).Cut()
		n := sess.Status().Renewed
		eventually(t, "more renewals", func() bool { return sess.Status().Renewed >= n+1 || t.Failed() })
		t.Logf("%d operations, %+v", l.end(), sess.Status())
		must(t, "session", sess.Err())
		must(t, "close", f.Close())
	}
}

// TestReauthenticate proves the identity again without need, while I/O goes on, at both servers.
func TestReauthenticate(t *testing.T) {
	both(t, func(t *testing.T, s *sut) {
		for _, seal := range []bool{false, true} {
			sess := s.connect(client.Config{Seal: seal}, client.SessionOptions{})
			f := s.open(sess, "disk", nil)
			s.bind(sess)
			l := startLoad(t, f, 4, 64<<10, 4096)
			for range 4 {
				must(t, "log on again", sess.Reauthenticate(testContext(t)))
				must(t, "log on again with mechanisms", sess.Reauthenticate(testContext(t), s.mechs()...))
				l.until(20)
			}
			l.end()
			if n := sess.Status().Renewed; n != 8 {
				t.Errorf("renewed %d times", n)
			}
			if !sess.Expiry().IsZero() {
				t.Errorf("NTLM expires at %v", sess.Expiry())
			}
			must(t, "close", f.Close())
			must(t, "log off", sess.Close())
		}
	})
}

// TestExpiredForGood has the server refuse the new proof of identity: requests fail with the reason, and the session ends.
func TestExpiredForGood(t *testing.T) {
	s := ours(t, func(c *server.Config) { c.Limits.SessionLifetime = 50 * time.Millisecond })
	sess := s.connect(client.Config{}, client.SessionOptions{Renew: func(context.Context) ([]auth.MechInitiator, error) {
		return []auth.MechInitiator{auth.NTLM(auth.Credentials{User: "me", Password: "changed"}, "")}, nil
	}})
	f := s.open(sess, "disk", nil)
	ctx := testContext(t)
	var err error
	for err == nil {
		_, err = f.WriteAt(ctx, []byte("x"), 0)
	}
	if !errors.Is(err, client.ErrConnectionLost) || !errors.Is(err, ntstatus.LogonFailure) {
		t.Errorf("write: %v", err)
	}
	<-sess.Done()
	if err := sess.Err(); !errors.Is(err, ntstatus.LogonFailure) {
		t.Errorf("session: %v", err)
	}
}

// TestHalfOpen has one connection become a black hole: what is under way on it goes to the other one, within a bounded time. An idle session notices as well.
func TestHalfOpen(t *testing.T) {
	both(t, func(t *testing.T, s *sut) {
		cfg := client.Config{ServerTimeout: 2 * time.Second, IdleEcho: 200 * time.Millisecond}
		sess := s.connect(cfg, client.SessionOptions{})
		f := s.open(sess, "disk", nil)
		s.bind(sess)
		l := startLoad(t, f, 8, 64<<10, 4096)
		l.until(50)
		hole(s, 0)
		eventually(t, "the loss", func() bool { return live(sess) == 1 || t.Failed() })
		l.until(50)
		l.end()
		want := bytes.Clone(l.want)
		got := make([]byte, len(want))
		if _, err := f.ReadAt(testContext(t), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read: %v", err)
		}
		hole(s, 1)
		<-sess.Done()
	})
}

// mortal is a mechanism whose proof of identity ends.
type mortal struct {
	auth.MechInitiator
	end time.Time
}

func (m mortal) Expiry() time.Time { return m.end }

// TestRenewedAhead has proofs of identity that end soon: they are renewed before, and nothing waits. One that lasts no longer than the last is no reason
// to go on asking, and a later one that does is renewed again.
func TestRenewedAhead(t *testing.T) {
	both(t, func(t *testing.T, s *sut) {
		ctx := testContext(t)
		var mu sync.Mutex
		end := time.Now().Add(time.Hour)
		life := 400 * time.Millisecond // 0: it always ends at end
		mech := func(context.Context) ([]auth.MechInitiator, error) {
			mu.Lock()
			defer mu.Unlock()
			if life > 0 {
				end = time.Now().Add(life)
			}
			return []auth.MechInitiator{mortal{s.mechs()[0], end}}, nil
		}
		set := func(d time.Duration) {
			mu.Lock()
			life = d
			mu.Unlock()
		}
		c, err := client.Dial(ctx, s.net.Addr(), client.Config{})
		must(t, "dial", err)
		defer c.Close()
		first, _ := mech(ctx)
		sess, err := c.SessionWith(ctx, client.SessionOptions{Renew: mech}, first...)
		must(t, "logon", err)
		was := sess.Expiry()
		if was.IsZero() {
			t.Fatal("the end is not known")
		}
		f := s.open(sess, "disk", nil)
		l := startLoad(t, f, 4, 64<<10, 4096)
		eventually(t, "renewals", func() bool { return sess.Status().Renewed >= 3 || t.Failed() })
		if !sess.Expiry().After(was) {
			t.Errorf("expires at %v, before at %v", sess.Expiry(), was)
		}
		set(0)
		n := sess.Status().Renewed
		eventually(t, "one that lasts no longer", func() bool { return sess.Status().Renewed > n || t.Failed() })
		n = sess.Status().Renewed
		l.until(50)
		set(300 * time.Millisecond)
		must(t, "log on again", sess.Reauthenticate(ctx))
		eventually(t, "renewals again", func() bool { return sess.Status().Renewed >= n+3 || t.Failed() })
		l.end()
		must(t, "close", f.Close())
	})
}
