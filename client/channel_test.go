package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vdbridge/smb/auth"
	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// several is a session on several scripted servers.
type several struct {
	t     *testing.T
	peers []*peer
	f     *File
	s     *Session

	mu   sync.Mutex
	seen []sight
	hook func(p *peer, at int, q *query) bool // comes first
}

// sight is a request that arrived.
type sight struct {
	peer   int
	cmd    wire.Command
	seq    uint16
	replay bool
	q      *query
}

func (s sight) String() string {
	r := ""
	if s.replay {
		r = " replay"
	}
	return fmt.Sprintf("%d %s %d%s", s.peer, s.cmd, s.seq, r)
}

const allCaps = wire.CapLargeMTU | wire.CapEncryption | wire.CapMultiChannel | wire.CapPersistentHandles | wire.CapLeasing | wire.CapDirectoryLeasing

// openSeveral opens a file on a session with n channels. handle answers some requests to the peer with that number.
func openSeveral(t *testing.T, n int, cfg Config, handle func(v *several, at int, q *query) bool) *several {
	t.Helper()
	v := &several{t: t}
	for i := range n {
		p := newPeer(t)
		p.caps = allCaps
		if i > 0 {
			p.host = v.peers[0]
		}
		p.handle = func(p *peer, q *query) bool {
			if q.Command == wire.CmdNegotiate || q.Command == wire.CmdSessionSetup || q.Command == wire.CmdTreeConnect {
				return false
			}
			v.mu.Lock()
			hook := v.hook
			v.mu.Unlock()
			if hook != nil && hook(p, i, q) {
				return true
			}
			v.mu.Lock()
			v.seen = append(v.seen, sight{i, q.Command, uint16(q.Status), q.Flags&wire.FlagReplayOperation != 0, q})
			v.mu.Unlock()
			return handle != nil && handle(v, i, q)
		}
		v.peers = append(v.peers, p)
	}
	cfg = v.peers[0].config(cfg, v.peers[1:]...)
	c, err := Dial(bg, "peer:445", cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if v.s, err = c.Session(bg, user, SessionOptions{}); err != nil {
		t.Fatal(err)
	}
	tree, err := v.s.Tree(bg, "share")
	if err != nil {
		t.Fatal(err)
	}
	if v.f, err = tree.Open(bg, "file", OpenOptions{Access: wire.AccessGenericRead | wire.AccessGenericWrite, Disposition: wire.FileOpen}); err != nil {
		t.Fatal(err)
	}
	for range n - 1 {
		v.bind()
	}
	v.mu.Lock()
	v.seen = nil
	v.mu.Unlock()
	return v
}

func (v *several) bind() {
	v.t.Helper()
	c, err := v.s.c.DialSibling(bg, "peer:445")
	if err == nil {
		err = v.s.Bind(bg, c, auth.NTLM(user, ""))
	}
	if err != nil {
		v.t.Fatal(err)
	}
}

// sights are the requests that arrived and that ok wants.
func (v *several) sights(ok func(s sight) bool) []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var list []string
	for _, s := range v.seen {
		if ok(s) {
			list = append(list, s.String())
		}
	}
	return list
}

func (v *several) count(ok func(s sight) bool) int { return len(v.sights(ok)) }

// hang closes the connection to a peer.
func (v *several) hang(at int) { _ = v.peers[at].raw().Close() }

// await waits until ok.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestBind looks at how a channel is opened, and refuses those that are not what they should be. [MS-SMB2] 3.2.4.2.3, 3.2.5.3.3
func TestBind(t *testing.T) {
	for _, seal := range []bool{false, true} {
		v := openSeveral(t, 3, Config{Seal: seal}, nil)
		if n := len(v.s.Status().Channels); n != 3 {
			t.Fatalf("%d channels", n)
		}
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() {
				if _, err := v.f.WriteAt(bg, testFile[i*4096:(i+1)*4096], int64(i)*4096); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if v.count(func(s sight) bool { return s.seq != 0 || s.replay }) > 0 {
			t.Errorf("without a loss there is a sequence: %v", v.sights(func(sight) bool { return true }))
		}
	}
	for what, c := range map[string]struct {
		change func(p *peer)
		want   error
		text   string
	}{
		"unsigned":      {func(p *peer) { p.lone = true }, ErrSecurity, "did not sign"},
		"guest":         {func(p *peer) { p.session = wire.SessionFlagIsGuest }, ErrGuest, ""},
		"other key":     {func(p *peer) { p.setup = func(_ *query, b []byte) []byte { p.first.Sign(b); return b } }, ErrSecurity, "signature"},
		"other GUID":    {func(p *peer) { p.tweak = func(v *wire.NegotiateResponse) { v.ServerGUID[3] = 1 } }, ErrOtherServer, "GUID"},
		"other cipher":  {func(p *peer) { p.cipher = wire.CipherAES256GCM }, ErrProtocol, "not offered"},
		"other signing": {func(p *peer) { p.signing = wire.SigningAESCMAC }, ErrProtocol, "not offered"},
		"older dialect": {func(p *peer) { p.dialect = wire.Dialect302 }, ErrProtocol, "not offered"},
		"smaller":       {func(p *peer) { p.maxIO = 64 << 10 }, ErrOtherServer, "larger requests"},
	} {
		t.Run(what, func(t *testing.T) {
			host := newPeer(t)
			host.caps = allCaps
			p := newPeer(t)
			p.caps, p.host = allCaps, host
			c.change(p)
			conn, err := Dial(bg, "peer:445", host.config(Config{}, p))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			s, err := conn.Session(bg, user, SessionOptions{})
			if err != nil {
				t.Fatal(err)
			}
			o, err := conn.DialSibling(bg, "peer:445")
			if err == nil {
				defer o.Close()
				err = s.Bind(bg, o, auth.NTLM(user, ""))
			}
			wantError(t, err, c.want, c.text)
			if n := len(s.Status().Channels); n != 1 || s.Err() != nil {
				t.Errorf("%d channels, session %v", n, s.Err())
			}
		})
	}
}

func wantError(t *testing.T, err, want error, text string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), text) {
		t.Errorf("got %v, want %v with %q", err, want, text)
	}
}

// TestMoved loses a channel while each kind of request is under way on it, and looks at what is sent on the other one. [MS-SMB2] 3.2.7.1
func TestMoved(t *testing.T) {
	zero := func(f *File, call func(context.Context, uint32, []byte, []byte, []byte, []byte) (int, error)) error {
		_, err := call(bg, 1, nil, nil, nil, nil)
		return err
	}
	for what, c := range map[string]struct {
		call func(f *File) error
		cmd  wire.Command
		want []string // what arrives on the other channel; nil: the call fails, as the outcome is unknown
	}{
		"READ":  {func(f *File) error { _, err := f.ReadAt(bg, make([]byte, 512), 0); return err }, wire.CmdRead, []string{"READ 1 replay"}},
		"WRITE": {func(f *File) error { _, err := f.WriteAt(bg, testFile[:512], 0); return err }, wire.CmdWrite, []string{"IOCTL 1 replay", "IOCTL 1 replay", "WRITE 1 replay"}},
		"FLUSH": {func(f *File) error { return f.Flush(bg) }, wire.CmdFlush, []string{"FLUSH 1 replay"}},
		"query": {func(f *File) error {
			_, err := f.QueryInfo(bg, wire.InfoFile, fscc.FileStandardInformation, 0, 24)
			return err
		}, wire.CmdQueryInfo, []string{"QUERY_INFO 1 replay"}},
		"marked": {func(f *File) error { return zero(f, f.IoctlIdempotent) }, wire.CmdIoctl, []string{"IOCTL 1 replay", "IOCTL 1 replay", "IOCTL 1 replay"}},
		"IOCTL":  {func(f *File) error { return zero(f, f.Ioctl) }, wire.CmdIoctl, nil},
		"size":   {func(f *File) error { return f.Truncate(bg, 5) }, wire.CmdSetInfo, []string{"IOCTL 1 replay", "IOCTL 1 replay", "SET_INFO 1 replay"}},
		"rename": {func(f *File) error { return f.Rename(bg, "b", false) }, wire.CmdSetInfo, nil},
		"CLOSE":  {func(f *File) error { return f.Close() }, wire.CmdClose, []string{"CLOSE 1 replay"}},
		"CREATE": {func(f *File) error { _, err := f.t.Open(bg, "b", OpenOptions{}); return err }, wire.CmdCreate, nil},
		"durable": {func(f *File) error { _, err := f.t.Open(bg, "b", OpenOptions{Durable: &DurableRequest{}}); return err }, wire.CmdCreate,
			[]string{"CREATE 1 replay"}},
		"tree": {func(f *File) error { return f.t.sess.disconnectTree(bg, 99, false) }, wire.CmdTreeDisconnect, []string{"TREE_DISCONNECT 1 replay"}},
	} {
		t.Run(what, func(t *testing.T) {
			var lost int
			var once sync.Once
			v := openSeveral(t, 2, Config{}, func(v *several, at int, q *query) bool {
				switch q.Command {
				case wire.CmdSetInfo:
					v.peers[at].reply(q, ntstatus.Success, []byte{2, 0})
				case wire.CmdQueryInfo:
					v.peers[at].reply(q, ntstatus.Success, append([]byte{9, 0, 72, 0, 24, 0, 0, 0}, make([]byte, 24)...))
				default:
					return false
				}
				return true
			})
			v.mu.Lock()
			v.hook = func(p *peer, at int, q *query) bool {
				drop := false
				if q.Command == c.cmd {
					once.Do(func() { drop = true })
				}
				if drop {
					v.mu.Lock()
					lost = at
					v.mu.Unlock()
					v.hang(at)
				}
				return drop
			}
			v.mu.Unlock()
			err := c.call(v.f)
			var got []string
			for _, s := range v.sights(func(s sight) bool { return s.peer != lost && s.cmd != wire.CmdEcho }) {
				got = append(got, s[2:])
			}
			if c.want == nil {
				if !errors.Is(err, ErrConnectionLost) || !errors.Is(err, ErrOutcomeUnknown) || len(got) != 0 {
					t.Errorf("%v; sent again: %v", err, got)
				}
			} else if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%v; arrived %q, want %q", err, got, c.want)
			}
			if v.s.Err() != nil {
				t.Errorf("session: %v", v.s.Err())
			}
			if st := v.s.Status(); st.Lost != 1 || st.Sequence != 1 || len(st.Channels) != 1 {
				t.Errorf("%+v", st)
			}
			if what == "CLOSE" {
				return
			}
			// What is new is no replay.
			if _, err := v.f.ReadAt(bg, make([]byte, 512), 0); err != nil {
				t.Error(err)
			}
			if n := v.count(func(s sight) bool { return s.cmd == wire.CmdRead && s.seq == 1 && !s.replay }); n != 1 {
				t.Errorf("the next READ: %v", v.sights(func(s sight) bool { return s.cmd == wire.CmdRead }))
			}
		})
	}
}

// TestUnsentMoves loses a channel with controls that may not be repeated: those that were waiting for credits were never sent, and go to the other one.
func TestUnsentMoves(t *testing.T) {
	hold := make(chan struct{})
	v := openSeveral(t, 2, Config{Credits: 2}, func(v *several, at int, q *query) bool {
		if q.Command == wire.CmdIoctl && at == 1 {
			<-hold
		}
		return q.Command == wire.CmdIoctl && at == 0
	})
	var once sync.Once
	letGo := func() { once.Do(func() { close(hold) }) }
	t.Cleanup(letGo)
	const n = 12
	errs := make(chan error, n)
	for range n {
		go func() {
			_, err := v.f.Ioctl(bg, 1, nil, nil, nil, nil)
			errs <- err
		}()
	}
	c := v.s.c
	await(t, "requests that wait for credits", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.w.head != nil && v.count(func(s sight) bool { return s.peer == 0 && s.cmd == wire.CmdIoctl }) == 2 &&
			v.s.channels.Load().list[1].c.load.Load()+c.load.Load() == n*requestCost
	})
	first := v.s.channels.Load().list[0]
	v.hang(0)
	<-first.gone
	letGo()
	unknown := 0
	for range n {
		if err := <-errs; errors.Is(err, ErrOutcomeUnknown) {
			unknown++
		} else if err != nil {
			t.Error(err)
		}
	}
	if unknown != 2 {
		t.Errorf("%d with unknown outcome", unknown)
	}
	if v.count(func(s sight) bool { return s.replay }) != 0 {
		t.Error("what was never sent is called a replay")
	}
}

// TestSettleTwice has a server that executes the first replay with a new number at once, as the first ones with SMB 3 do. [MS-SMB2] 3.3.5.2.10, note 273
func TestSettleTwice(t *testing.T) {
	for _, early := range []bool{true, false} {
		var asked atomic.Int64
		v := openSeveral(t, 2, Config{}, func(v *several, at int, q *query) bool {
			if q.Command != wire.CmdIoctl {
				return false
			}
			if n := asked.Add(1); early && n == 1 || n > 5 {
				return false // executed
			}
			v.peers[at].reply(q, ntstatus.FileNotAvailable, nil)
			return true
		})
		if err := v.f.Settle(bg); err != nil || asked.Load() != 0 {
			t.Fatalf("without a loss: %v, asked %d times", err, asked.Load())
		}
		v.hang(1)
		await(t, "the loss", func() bool { return len(v.s.Status().Channels) == 1 })
		if err := v.f.Settle(bg); err != nil {
			t.Fatal(err)
		}
		done := asked.Load()
		if done <= 5 {
			t.Errorf("settled after %d requests", done)
		}
		if err := v.f.Settle(bg); err != nil || asked.Load() != done {
			t.Errorf("once more: %v", err)
		}
	}
}

// TestNotAvailable has the server refuse requests because older ones are under way. [MS-SMB2] 3.2.5.12, 3.2.5.14, 3.2.5.18
func TestNotAvailable(t *testing.T) {
	var left atomic.Int64 // refusals to come
	v := openSeveral(t, 1, Config{ServerTimeout: 300 * time.Millisecond}, func(v *several, at int, q *query) bool {
		if q.Command == wire.CmdClose || q.Command == wire.CmdEcho || q.Command == wire.CmdCancel || left.Load() == 0 {
			return false
		}
		left.Add(-1)
		v.peers[at].reply(q, ntstatus.FileNotAvailable, nil)
		return true
	})
	for what, c := range map[string]func() error{
		"WRITE": func() error { _, err := v.f.WriteAt(bg, testFile[:10], 0); return err },
		"IOCTL": func() error { _, err := v.f.Ioctl(bg, 1, nil, nil, nil, nil); return err }, // also one that may not be repeated: it was not executed
	} {
		left.Store(3)
		before := v.s.Status().Replayed
		if err := c(); err != nil || left.Load() != 0 || v.s.Status().Replayed != before+3 {
			t.Errorf("%s: %v", what, err)
		}
		left.Store(1 << 30)
		if err := c(); !errors.Is(err, ntstatus.FileNotAvailable) {
			t.Errorf("%s, for ever: %v", what, err)
		}
	}
	// Of others the status is the answer.
	left.Store(1)
	if _, err := v.f.ReadAt(bg, make([]byte, 10), 0); !errors.Is(err, ntstatus.FileNotAvailable) || left.Load() != 0 {
		t.Errorf("READ: %v", err)
	}
	left.Store(1)
	if _, err := v.f.t.Open(bg, "b", OpenOptions{}); !errors.Is(err, ntstatus.FileNotAvailable) || left.Load() != 0 {
		t.Errorf("CREATE: %v", err)
	}
	left.Store(1 << 30)
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if _, err := v.f.WriteAt(ctx, testFile[:10], 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestForged has one channel bring what is not authentic, or comes twice: the channel goes, is counted, and what was under way on it moves.
func TestForged(t *testing.T) {
	for what, forge := range map[string]func(p *peer, q *query){
		"signature": func(p *peer, q *query) {
			b := p.protect(q, p.build(q, ntstatus.Success, p.credits(q), 0, 0, p.readBody(q)))
			b[len(b)-1] ^= 1
			p.send(b)
		},
		"twice": func(p *peer, q *query) {
			b := p.protect(q, p.build(q, ntstatus.Success, p.credits(q), 0, 0, p.readBody(q)))
			p.send(b)
			p.send(slices.Clone(b))
		},
		"unsealed": func(p *peer, q *query) {
			q.sealed = false
			p.reply(q, ntstatus.Success, p.readBody(q))
		},
	} {
		for _, seal := range []bool{false, true} {
			if what == "unsealed" && !seal {
				continue
			}
			t.Run(fmt.Sprint(what, seal), func(t *testing.T) {
				var once sync.Once
				v := openSeveral(t, 2, Config{Seal: seal}, func(v *several, at int, q *query) bool {
					first := false
					if q.Command == wire.CmdRead {
						once.Do(func() { first = true })
					}
					if first {
						forge(v.peers[at], q)
					}
					return first
				})
				got := make([]byte, 4096)
				for range 4 {
					if _, err := v.f.ReadAt(bg, got, 4096); err != nil || !slices.Equal(got, testFile[4096:8192]) {
						t.Errorf("read: %v", err)
					}
				}
				await(t, "the loss", func() bool { return v.s.Status().Forged == 1 })
				if st := v.s.Status(); len(st.Channels) != 1 || st.Lost != 1 || v.s.Err() != nil {
					t.Errorf("%+v, %v", st, v.s.Err())
				}
			})
		}
	}
}

// proofs is how often sessions were authenticated again on the connection, or bound to it.
func (p *peer) proofs() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.setups
}

// TestExpired has the server want a new proof of identity while requests are under way: there is one, and they are sent again. [MS-SMB2] 3.2.5.1.6
func TestExpired(t *testing.T) {
	for _, seal := range []bool{false, true} {
		var late atomic.Pointer[query] // the refusal of one request comes after the others have been sent again
		v := openSeveral(t, 1, Config{Seal: seal, MaxCompound: 1}, func(v *several, at int, q *query) bool {
			p := v.peers[at]
			if p.proofs() == 0 && q.Command == wire.CmdWrite {
				if late.CompareAndSwap(nil, q) {
					return true
				}
				p.reply(q, ntstatus.NetworkSessionExpired, nil)
				return true
			}
			return false
		})
		away := true
		renew := v.s.renew
		v.s.renew = func(ctx context.Context) ([]auth.MechInitiator, error) {
			if away {
				away = false
				return nil, errors.New("the KDC is away for a moment")
			}
			return renew(ctx)
		}
		const n = 20
		done := make(chan error, n)
		for i := range n {
			go func() {
				_, err := v.f.WriteAt(bg, testFile[i*512:(i+1)*512], int64(i)*512)
				done <- err
			}()
		}
		for i := range n {
			if i == n-1 {
				v.peers[0].reply(late.Load(), ntstatus.NetworkSessionExpired, nil)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if n := v.peers[0].proofs(); n != 1 || v.s.Status().Renewed != 1 {
			t.Errorf("%d new proofs, %+v", n, v.s.Status())
		}
		if v.count(func(s sight) bool { return s.replay || s.seq != 0 }) != 0 {
			t.Error("what was refused is called a replay")
		}
	}
	// Without a way to renew, the status is the answer.
	v := openSeveral(t, 1, Config{}, func(v *several, at int, q *query) bool {
		if q.Command != wire.CmdWrite {
			return false
		}
		v.peers[at].reply(q, ntstatus.NetworkSessionExpired, nil)
		return true
	})
	renew := v.s.renew
	v.s.renew = nil
	if _, err := v.f.WriteAt(bg, testFile[:512], 0); !errors.Is(err, ntstatus.NetworkSessionExpired) || v.s.Err() != nil {
		t.Errorf("%v, session %v", err, v.s.Err())
	}
	// A server that wants one after the other gets a few.
	v.s.renew = renew
	if _, err := v.f.WriteAt(bg, testFile[:512], 0); !errors.Is(err, ntstatus.NetworkSessionExpired) || v.peers[0].proofs() != maxRenewals {
		t.Errorf("%v after %d proofs", err, v.peers[0].proofs())
	}
}

// TestSessionDeleted has the server say that there is no such session.
func TestSessionDeleted(t *testing.T) {
	v := openSeveral(t, 2, Config{}, func(v *several, at int, q *query) bool {
		if q.Command != wire.CmdRead {
			return false
		}
		v.peers[at].reply(q, ntstatus.UserSessionDeleted, nil)
		return true
	})
	if _, err := v.f.ReadAt(bg, make([]byte, 10), 0); !errors.Is(err, ntstatus.UserSessionDeleted) {
		t.Errorf("read: %v", err)
	}
	<-v.s.Done()
	if err := v.s.Err(); !errors.Is(err, ErrConnectionLost) || !errors.Is(err, ntstatus.UserSessionDeleted) {
		t.Errorf("session: %v", err)
	}
	if err := v.s.Bind(bg, v.s.c, auth.NTLM(user, "")); !errors.Is(err, ErrConnectionLost) {
		t.Errorf("bind: %v", err)
	}
}
