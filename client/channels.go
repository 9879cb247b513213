package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vdbridge/smb/auth"
	"vdbridge/smb/crypt"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// maxChannels is the most connections that a session has.
const maxChannels = 32

// Bind adds a connection to the session as another channel, on which the same user is authenticated by one of the mechanisms, in order of preference. The
// connection must be to the same server and have the same Config.ClientGUID, as those of [Conn.DialSibling] do. From then on it is the session's, which
// closes it; after an error it is the caller's. Requests go to the channel that has the least to do. [MS-SMB2] 3.2.4.2.3, 3.2.5.3.3
func (s *Session) Bind(ctx context.Context, c *Conn, mechs ...auth.MechInitiator) error {
	if err := s.bind(ctx, c, mechs); err != nil {
		return wrap("open another channel to "+c.addr, "", err)
	}
	return nil
}

func (s *Session) bind(ctx context.Context, c *Conn, mechs []auth.MechInitiator) error {
	if err := s.canBind(); err != nil {
		return err
	}
	if err := s.c.sameServer(c); err != nil {
		return err
	}
	a, err := auth.NewInitiator(c.neg.token, mechs...)
	if err != nil {
		return err
	}
	ch := &channel{s: s, c: c, signer: s.signer, gone: make(chan struct{})}
	if err := s.authenticate(ctx, ch, logonBind, a, SessionOptions{}); err != nil {
		return err
	}
	s.c.log.Info("channel opened", "server", c.addr, "session", fmt.Sprintf("%#x", s.id))
	return nil
}

// canBind says why the session can have no further channel, or nil.
func (s *Session) canBind() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := &s.c.neg
	switch {
	case s.err != nil:
		return s.err
	case n.dialect < wire.Dialect300:
		return fmt.Errorf("%w: several channels need SMB 3.0, and the server speaks %s", errors.ErrUnsupported, n.dialect)
	case n.serverCaps&wire.CapMultiChannel == 0:
		return fmt.Errorf("%w: the server has no multichannel", errors.ErrUnsupported)
	case s.signer == nil:
		return fmt.Errorf("%w: guest and anonymous sessions have one channel only", errors.ErrUnsupported)
	case len(s.channels.Load().list) >= maxChannels:
		return fmt.Errorf("the session has %d channels already", maxChannels)
	}
	return nil
}

// sameServer returns an error that matches ErrOtherServer unless o leads to the server of c, and protects its messages in the same way. [MS-SMB2] 3.2.5.2
func (c *Conn) sameServer(o *Conn) error {
	a, b := &c.neg, &o.neg
	switch {
	case a.serverGUID != b.serverGUID:
		return fmt.Errorf("%w: %s has the server GUID %x, %s has %x", ErrOtherServer, c.addr, a.serverGUID, o.addr, b.serverGUID)
	case a.dialect != b.dialect:
		return fmt.Errorf("%w: %s speaks SMB %s, %s speaks %s", ErrOtherServer, c.addr, a.dialect, o.addr, b.dialect)
	case a.cipher != b.cipher || a.signing != b.signing:
		return fmt.Errorf("%w: %s has %s and %s, %s has %s and %s", ErrOtherServer, c.addr, a.signing, a.cipher, o.addr, b.signing, b.cipher)
	case c.cfg.ClientGUID != o.cfg.ClientGUID:
		return errors.New("the connections have different client GUIDs: use DialSibling")
	case b.maxRead < a.maxRead || b.maxWrite < a.maxWrite || b.maxTransact < a.maxTransact || a.multiCredit != b.multiCredit:
		return fmt.Errorf("%w: %s takes larger requests than %s", ErrOtherServer, c.addr, o.addr)
	}
	return nil
}

// boundTo takes a further channel into use, once the server has accepted it.
func (s *Session) boundTo(ch *channel, r *request, a auth.Initiator, done bool, preauth *crypt.Preauth) error {
	c := ch.c
	v, err := lastToken(r, a, done)
	if err != nil {
		return err
	}
	if v.SessionFlags&(wire.SessionFlagIsGuest|wire.SessionFlagIsNull) != 0 {
		return fmt.Errorf("%w on another channel of %s", ErrGuest, s.identity)
	}
	signer, err := crypt.NewSigner(c.neg.signing, crypt.SigningKey(c.neg.dialect, a.SessionKey(), preauth))
	if err != nil {
		return err
	}
	if err := ch.verifyLogon(r, signer); err != nil {
		return err
	}
	bound := &channel{s: s, c: c, signer: signer, gone: ch.gone}
	if tree := s.anyTree(); tree != nil && c.mustValidate(s) {
		c.mu.Lock()
		c.sessions[s.id] = bound // for the reply may come sealed
		c.mu.Unlock()
		if err := s.validateNegotiate(s.ctx, bound, tree); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.bound = append(s.bound, c)
	s.mu.Unlock()
	if err := s.add(bound); err != nil {
		s.mu.Lock()
		s.bound = slices.DeleteFunc(s.bound, func(o *Conn) bool { return o == c })
		s.mu.Unlock()
		return err
	}
	return nil
}

// DialSibling connects to an address of the server that c is, or was, connected to, with the same Config and Config.ClientGUID, to be bound to a session
// of c or to begin one in the place of a lost one. Another server, or another dialect or protection than on c, is refused with
// ErrOtherServer. [MS-SMB2] 3.2.4.2.2.2
func (c *Conn) DialSibling(ctx context.Context, addr string) (*Conn, error) {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), DefaultPort)
	}
	cfg, n := c.cfg, &c.neg
	cfg.MinDialect, cfg.MaxDialect, cfg.MultiProtocol = n.dialect, n.dialect, false
	if n.dialect == wire.Dialect311 {
		if n.cipher != wire.CipherNone {
			cfg.Ciphers = []wire.Cipher{n.cipher}
		}
		cfg.Signing = []wire.SigningAlgorithm{n.signing}
	}
	o, err := dial(ctx, addr, cfg)
	if err != nil {
		if errors.Is(err, errDialects) {
			err = fmt.Errorf("%w: it does not speak SMB %s, as it did at %s", ErrOtherServer, n.dialect, c.addr)
		}
		return nil, wrap("connect to "+addr, "", err)
	}
	if err := c.sameServer(o); err != nil {
		_ = o.Close()
		return nil, wrap("connect to "+addr, "", err)
	}
	c.log.Debug("connected once more", "server", addr)
	return o, nil
}

// Interface is an address of the server. [MS-SMB2] 2.2.32.5
type Interface struct {
	Index uint32 // of the network interface; several addresses may have the same
	RSS   bool   // several connections to it may be served by several processors
	RDMA  bool
	Speed uint64 // bits per second
	Addr  netip.Addr
}

// Interfaces asks the server for its addresses. [MS-SMB2] 3.2.4.20.10
func (s *Session) Interfaces(ctx context.Context) ([]Interface, error) {
	const op = "query network interfaces"
	tree := s.anyTree()
	if tree == nil {
		ipc, err := s.Tree(ctx, "IPC$")
		if err != nil {
			return nil, err
		}
		defer ipc.Close()
		tree = ipc
	}
	f := tree.file("")
	f.id = wire.RelatedFileID
	out := make([]byte, min(64<<10, s.c.neg.maxTransact))
	n, err := f.IoctlIdempotent(ctx, wire.FsctlQueryNetworkInterfaceInfo, nil, nil, out, nil)
	if err != nil {
		return nil, err
	}
	list, err := wire.ParseNetworkInterfaces(out[:n])
	if err != nil {
		return nil, wrap(op, tree.path, protocolError(err))
	}
	var all []Interface
	for _, i := range list {
		all = append(all, Interface{i.Index, i.Capability&wire.InterfaceRSS != 0, i.Capability&wire.InterfaceRDMA != 0, i.LinkSpeed, i.Addr})
	}
	return all, nil
}

// anyTree returns one of the session's trees, or nil if there is none.
func (s *Session) anyTree() *Tree {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := range s.trees {
		return t
	}
	return nil
}

// ChannelOptions say how many channels a session shall have, and where to.
type ChannelOptions struct {
	// Count is how many connections the session shall have, the first one included; at most 32.
	Count int
	// Addrs are the addresses to connect to, "host:port", in turn. Empty means those that Interfaces tells, with the port of the first connection, and
	// if there are none the address of the first connection.
	Addrs []string
	// Mechs returns fresh mechanisms for one authentication. nil means SessionOptions.Renew.
	Mechs func(ctx context.Context) ([]auth.MechInitiator, error)
	// MinDelay and MaxDelay bound the time between attempts when none succeeds: it doubles each time, and half of it is
	// chance. 0 means 100 ms and 30 s.
	MinDelay, MaxDelay time.Duration
	// DialTimeout bounds one attempt, from dialling to authentication; 0 means 30 s.
	DialTimeout time.Duration
}

// KeepChannels opens further channels in the background, and opens them again when they are lost, until the session ends. It returns at once; what goes
// wrong is logged. When the server refuses the user, it is given up, so that no account is locked. A second call replaces the options; it closes no channel.
func (s *Session) KeepChannels(opts ChannelOptions) error {
	const op = "keep channels"
	if opts.Count < 1 || opts.Count > maxChannels {
		return wrap(op, "", fmt.Errorf("%d channels: it takes 1 to %d", opts.Count, maxChannels))
	}
	if opts.Mechs == nil {
		opts.Mechs = s.renew
	}
	if opts.Mechs == nil {
		return wrap(op, "", errors.New("further channels need mechanisms for the user: set Mechs or SessionOptions.Renew"))
	}
	if err := s.canBind(); err != nil && opts.Count > 1 {
		return wrap(op, "", err)
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&opts.MinDelay, 100*time.Millisecond)
	def(&opts.MaxDelay, 30*time.Second)
	def(&opts.DialTimeout, 30*time.Second)
	opts.Addrs = slices.Clone(opts.Addrs)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return wrap(op, "", s.err)
	}
	s.keep = &opts
	if !s.keeping {
		s.keeping = true
		s.wg.Go(s.keepLoop)
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return nil
}

// keepLoop opens channels until the session ends.
func (s *Session) keepLoop() {
	var delay time.Duration
	var refused *ChannelOptions // with which the server has refused the user
	for turn := 0; ; {
		s.reap()
		s.mu.Lock()
		o := s.keep
		missing := o.Count - len(s.channels.Load().list)
		s.mu.Unlock()
		if missing <= 0 || o == refused {
			delay = 0
			select {
			case <-s.changed:
				continue
			case <-s.done:
				return
			}
		}
		if delay > 0 {
			t := time.NewTimer(delay/2 + rand.N(delay/2+1))
			select {
			case <-t.C:
			case <-s.done:
				t.Stop()
				return
			}
		}
		addrs := s.addrs(o)
		addr := addrs[turn%len(addrs)]
		turn++
		err := s.open(o, addr)
		if err == nil {
			delay = 0
			continue
		}
		if s.ctx.Err() != nil {
			return
		}
		if st, ok := ntstatus.Of(err); ok && logonHint(st) != "" || errors.Is(err, auth.ErrRefused) {
			refused = o
			s.c.log.Error("no more channels: the server does not let the user log on again", "server", addr, "error", err)
			continue
		}
		s.c.log.Warn("no channel", "server", addr, "error", err)
		// Addresses that have not been tried yet are tried at once.
		if turn%len(addrs) == 0 {
			delay = min(max(2*delay, o.MinDelay), o.MaxDelay)
		}
	}
}

// open opens one channel.
func (s *Session) open(o *ChannelOptions, addr string) error {
	ctx, cancel := context.WithTimeout(s.ctx, o.DialTimeout)
	defer cancel()
	c, err := s.c.DialSibling(ctx, addr)
	if err != nil {
		return err
	}
	mechs, err := o.Mechs(ctx)
	if err == nil {
		err = s.Bind(ctx, c, mechs...)
	}
	if err != nil {
		_ = c.Close()
	}
	return err
}

// addrs returns where to connect to, at least one address. Those to which there are fewer connections come first.
func (s *Session) addrs(o *ChannelOptions) []string {
	list := slices.Clone(o.Addrs)
	if len(list) == 0 {
		ctx, cancel := context.WithTimeout(s.ctx, o.DialTimeout)
		all, err := s.Interfaces(ctx)
		cancel()
		if err != nil {
			s.c.log.Debug("network interfaces", "server", s.c.addr, "error", err)
		}
		_, port, _ := net.SplitHostPort(s.c.addr)
		global := slices.ContainsFunc(all, func(i Interface) bool { return !i.Addr.IsLinkLocalUnicast() })
		for _, i := range all {
			// A link-local address leads nowhere without a zone, which only the server knows. [MS-SMB2] 3.2.5.14.11, note 198
			if i.Index != 0 && !(global && i.Addr.IsLinkLocalUnicast()) {
				list = append(list, net.JoinHostPort(i.Addr.String(), port))
			}
		}
	}
	if len(list) == 0 {
		list = []string{s.c.addr}
	}
	used := map[string]int{}
	for _, ch := range s.channels.Load().list {
		used[ch.c.addr]++
		if a := ch.c.tr.RemoteAddr(); a != nil && a.String() != ch.c.addr {
			used[a.String()]++
		}
	}
	slices.SortStableFunc(list, func(a, b string) int { return used[a] - used[b] })
	return list
}

// reap closes the bound connections that are lost.
func (s *Session) reap() {
	s.mu.Lock()
	var lost []*Conn
	s.bound = slices.DeleteFunc(s.bound, func(c *Conn) bool {
		dead := c.Err() != nil
		if dead {
			lost = append(lost, c)
		}
		return dead
	})
	s.mu.Unlock()
	for _, c := range lost {
		s.leave(c)
		_ = c.Close()
	}
}
