package client

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"vdbridge/smb/auth"
)

// Bind adds a connection to the session as another channel, on which the same user is authenticated by one of the mechanisms, in order of preference. The
// connection must be to the same server and have the same Config.ClientGUID, as those of [Conn.DialSibling] do. From then on it is the session's, which
// closes it. Requests go to the channel that has the least to do. [MS-SMB2] 3.2.4.2.3, 3.2.5.3.3
func (s *Session) Bind(ctx context.Context, c *Conn, mechs ...auth.MechInitiator) error {
	return wrap("bind "+c.addr, "", errors.ErrUnsupported)
}

// DialSibling connects to an address of the server that c is, or was, connected to, with the same Config and Config.ClientGUID, to be bound to a session
// of c or to begin one in the place of a lost one. Another server, or another dialect or protection than on c, is refused with ErrOtherServer.
func (c *Conn) DialSibling(ctx context.Context, addr string) (*Conn, error) {
	return nil, wrap("connect to "+addr, "", errors.ErrUnsupported)
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
	return nil, wrap("query network interfaces", "", errors.ErrUnsupported)
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
	// MinDelay and MaxDelay bound the time between attempts to connect to an address that does not answer: it doubles each time, and half of it is
	// chance. 0 means 100 ms and 30 s.
	MinDelay, MaxDelay time.Duration
}

// KeepChannels opens further channels in the background, and opens them again when they are lost, until the session ends. It returns at once; what goes
// wrong is logged. A second call replaces the options.
func (s *Session) KeepChannels(opts ChannelOptions) error {
	return wrap("keep channels", "", errors.ErrUnsupported)
}

// ChannelStatus describes one connection of a session.
type ChannelStatus struct {
	Addr     string // as dialled
	InFlight int64  // bytes of requests and replies that are under way or wait for credits, about
}

// SessionStatus tells how a session fares.
type SessionStatus struct {
	Channels []ChannelStatus
	Lost     uint64 // channels, since the session began
	Replayed uint64 // requests that were sent again
	Renewed  uint64 // authentications after the first
	Forged   uint64 // channels given up because a message was not authentic, or came twice
}

// Status tells how the session fares.
func (s *Session) Status() SessionStatus {
	return SessionStatus{Channels: []ChannelStatus{{Addr: s.c.addr}}}
}

// Done returns a channel that is closed when the session has ended: its last connection is lost, the server has ended it, or it was closed.
func (s *Session) Done() <-chan struct{} { return s.c.done }

// Err returns why the session has ended, or nil while it lives.
func (s *Session) Err() error { return s.c.Err() }
