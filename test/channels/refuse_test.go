package channels

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"vdbridge/client"
	"vdbridge/server"
	"vdbridge/smb/auth"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// TestOtherServer dials channels that lead to another server, or to the same one with less protection.
func TestOtherServer(t *testing.T) {
	guid := wire.GUID{7}
	s := ours(t, func(c *server.Config) { c.GUID = guid })
	sess := s.connect(client.Config{}, client.SessionOptions{})
	for what, change := range map[string]func(*server.Config){
		"GUID":    func(c *server.Config) { c.GUID = wire.GUID{8} },
		"dialect": func(c *server.Config) { c.GUID, c.MaxDialect = guid, wire.Dialect302 },
		"limits":  func(c *server.Config) { c.GUID, c.Limits.MaxIO = guid, 64<<10 },
	} {
		t.Run(what, func(t *testing.T) {
			o := ours(t, change)
			_, err := sess.Conn().DialSibling(testContext(t), o.net.Addr())
			if !errors.Is(err, client.ErrOtherServer) {
				t.Errorf("dial: %v", err)
			}
			// Nor is such a connection bound that was dialled otherwise.
			c, err := client.Dial(testContext(t), o.net.Addr(), client.Config{})
			must(t, "dial", err)
			defer c.Close()
			if err := sess.Bind(testContext(t), c, s.mechs()...); err == nil {
				t.Error("it was bound")
			}
		})
	}
	if n := live(sess); n != 1 {
		t.Errorf("%d channels", n)
	}
}

// TestBindRefused binds as somebody who may not.
func TestBindRefused(t *testing.T) {
	both(t, func(t *testing.T, s *sut) {
		ctx := testContext(t)
		sess := s.connect(client.Config{}, client.SessionOptions{})
		f := s.open(sess, "disk", nil)
		c, err := sess.Conn().DialSibling(ctx, s.net.Addr())
		must(t, "dial", err)
		defer c.Close()
		wrong := s.user
		wrong.Password = "wrong"
		if err := sess.Bind(ctx, c, auth.NTLM(wrong, "")); !errors.Is(err, ntstatus.LogonFailure) {
			t.Errorf("wrong password: %v", err)
		}
		if s.name == "ours" {
			if err := sess.Bind(ctx, c, auth.NTLM(auth.Credentials{User: "you", Password: "other"}, "")); err == nil {
				t.Error("somebody else's channel was bound")
			}
		}
		if _, err := f.WriteAt(ctx, []byte("x"), 0); err != nil {
			t.Errorf("the session suffers: %v", err)
		}
		if n := live(sess); n != 1 {
			t.Errorf("%d channels", n)
		}
	})
}

// TestNoMultichannel asks for channels where there are none.
func TestNoMultichannel(t *testing.T) {
	s := ours(t, func(c *server.Config) { c.MinDialect = wire.Dialect210 })
	sess := s.connect(client.Config{MinDialect: wire.Dialect210, MaxDialect: wire.Dialect210}, client.SessionOptions{})
	if err := sess.KeepChannels(client.ChannelOptions{Count: 2}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("SMB 2.1: %v", err)
	}
	sess = s.connect(client.Config{}, client.SessionOptions{})
	for _, n := range []int{-1, 0, 33} {
		if err := sess.KeepChannels(client.ChannelOptions{Count: n}); err == nil {
			t.Errorf("%d channels", n)
		}
	}
	tree, err := sess.Tree(testContext(t), s.share)
	must(t, "tree", err)
	_ = tree
}

// watch is a log whose lines can be waited for.
type watch struct {
	mu sync.Mutex
	b  strings.Builder
}

func (w *watch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *watch) has(s string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Contains(w.b.String(), s)
}

// TestKeepRefused does not go on asking when the server says that the password is wrong.
func TestKeepRefused(t *testing.T) {
	s := ours(t, nil)
	var log watch
	sess := s.connect(client.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}, client.SessionOptions{})
	asked := make(chan struct{}, 100)
	wrong := func(context.Context) ([]auth.MechInitiator, error) {
		asked <- struct{}{}
		return []auth.MechInitiator{auth.NTLM(auth.Credentials{User: "me", Password: "wrong"}, "")}, nil
	}
	must(t, "keep", sess.KeepChannels(client.ChannelOptions{Count: 3, Mechs: wrong, MinDelay: time.Millisecond}))
	eventually(t, "the end of it", func() bool { return log.has("no more channels") })
	if n := len(asked); n != 1 {
		t.Errorf("asked %d times", n)
	}
	must(t, "keep", sess.KeepChannels(client.ChannelOptions{Count: 3, MinDelay: time.Millisecond}))
	eventually(t, "three channels", func() bool { return live(sess) == 3 })
}

// TestKeepComesBack has the server's addresses be away for a while, one of them for ever.
func TestKeepComesBack(t *testing.T) {
	s := ours(t, nil)
	sess := s.connect(client.Config{}, client.SessionOptions{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, "listen", err)
	nobody := l.Addr().String()
	must(t, "close", l.Close())
	must(t, "keep", sess.KeepChannels(client.ChannelOptions{Count: 4, Addrs: []string{nobody, s.net.Addr()}, MinDelay: time.Millisecond, MaxDelay: 20 * time.Millisecond}))
	eventually(t, "four channels", func() bool { return live(sess) == 4 })
	f := s.open(sess, "disk", nil)
	load := startLoad(t, f, 4, 64<<10, 4096)
	for i, l := range s.net.Links() {
		if i > 0 {
			l.Cut()
		}
	}
	load.until(20)
	eventually(t, "four channels again", func() bool { return live(sess) == 4 })
	load.end()
	must(t, "log off", sess.Close())
}

// TestInterfaces asks for the addresses of the servers.
func TestInterfaces(t *testing.T) {
	both(t, func(t *testing.T, s *sut) {
		ctx := testContext(t)
		sess := s.connect(client.Config{}, client.SessionOptions{})
		list, err := sess.Interfaces(ctx)
		must(t, "interfaces", err)
		if len(list) == 0 {
			t.Fatal("no addresses")
		}
		for _, i := range list {
			if !i.Addr.IsLoopback() || i.Speed == 0 || i.Index == 0 {
				t.Errorf("%+v", i)
			}
		}
		_, err = sess.Tree(ctx, s.share)
		must(t, "tree", err)
		again, err := sess.Interfaces(ctx)
		if err != nil || len(again) != len(list) {
			t.Errorf("by way of another share: %v, %v", again, err)
		}
	})
}

// TestAbort ends a session without a word while channels are opened and used: nothing of it is left, and the server keeps its open.
func TestAbort(t *testing.T) {
	s := ours(t, nil)
	cfg := client.Config{ClientGUID: wire.GUID{9}}
	for _, first := range []bool{false, true} {
		sess := s.connect(cfg, client.SessionOptions{})
		f := s.open(sess, "disk", &client.DurableRequest{Persistent: true})
		must(t, "keep", sess.KeepChannels(client.ChannelOptions{Count: 4, Addrs: []string{s.net.Addr()}}))
		eventually(t, "a second channel", func() bool { return live(sess) > 1 })
		must(t, "echo", sess.Echo(testContext(t)))
		if first {
			s.net.Links()[0].Cut()
			eventually(t, "the loss", func() bool { return sess.Status().Lost > 0 })
			must(t, "echo on another channel", sess.Echo(testContext(t)))
		}
		sess.Conn().Abort()
		<-sess.Done()
		if _, err := f.WriteAt(testContext(t), []byte("x"), 0); !errors.Is(err, client.ErrConnectionLost) || !errors.Is(err, client.ErrClosed) {
			t.Errorf("write: %v", err)
		}
		again := s.connect(cfg, client.SessionOptions{Previous: sess.ID()})
		tree, err := again.Tree(testContext(t), s.share)
		must(t, "tree", err)
		g, err := tree.Reopen(testContext(t), f)
		must(t, "reopen", err)
		must(t, "close", g.Close())
		again.Abort()
		eventually(t, "the end of every connection", func() bool { return len(s.net.Links()) == 0 })
	}
}

// TestKeepByInterfaces opens channels to the addresses that the servers tell.
func TestKeepByInterfaces(t *testing.T) {
	both(t, func(t *testing.T, s *sut) {
		ctx := testContext(t)
		c, err := client.Dial(ctx, s.addr, client.Config{})
		must(t, "dial", err)
		defer c.Close()
		sess, err := c.Session(ctx, s.user, client.SessionOptions{})
		must(t, "logon", err)
		must(t, "keep", sess.KeepChannels(client.ChannelOptions{Count: 3}))
		eventually(t, "three channels", func() bool { return live(sess) == 3 })
		for _, ch := range sess.Status().Channels {
			if ch.Addr != s.addr {
				t.Errorf("channel %+v, the server is at %s", ch, s.addr)
			}
		}
		must(t, "fewer", sess.KeepChannels(client.ChannelOptions{Count: 1})) // which opens none, and leaves those that there are
		must(t, "log off", sess.Close())
	})
}
