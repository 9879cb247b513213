package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"time"

	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
)

// DefaultPort is the TCP port of SMB.
const DefaultPort = "445"

// Config says how to connect. The zero value asks for everything this client considers safe: SMB 3.0 or later, signing always.
type Config struct {
	// MinDialect and MaxDialect bound the negotiation; 0 means 3.0 and 3.1.1. Dialects before 3.0 have no encryption, and
	// weaker protection against a downgrade.
	MinDialect, MaxDialect wire.Dialect
	// MultiProtocol opens the negotiation with an SMB1 message, which some middleboxes and servers insist on. SMB1 itself is never
	// spoken. It needs MinDialect 2.0.2 or 2.1, or a server that goes on to SMB 3, as all do.
	MultiProtocol bool
	// Ciphers and Signing are offered in this order. nil means AES-128-GCM, AES-256-GCM, AES-128-CCM, AES-256-CCM, and AES-GMAC, AES-CMAC.
	Ciphers []wire.Cipher
	Signing []wire.SigningAlgorithm
	// Seal encrypts everything after authentication. Without it, encryption is used where the server or the share asks for it.
	Seal bool
	// Unsigned leaves requests unsigned if the server permits it. It is there to measure what signing costs, and for nothing else: anyone on
	// the network can change such data.
	Unsigned bool

	// ClientGUID identifies this client; zero means a random one. All connections of one client to a server should have the same.
	ClientGUID wire.GUID
	// ServerName is the server's name in UNC paths; empty means the host that is dialled.
	ServerName string

	// Credits is how many credits to strive for, which bounds the requests in flight: each uses one for every 64 KiB of payload, so the default of
	// 1024 lets 64 MiB be under way. At least 2, at most 8192.
	Credits int
	// MaxIO bounds the bytes of one READ or WRITE; 0 means 8 MiB. The server may set a lower bound.
	MaxIO int

	// MaxCompound bounds how many small requests that are ready at the same time are sent as one message, 0 for 16; 1 switches that off. How
	// many it really is, the client finds out by what gets the most done.
	MaxCompound int

	// ServerTimeout ends the connection when requests are in flight and nothing comes from the server for so long, give or take half of it.
	// An ECHO is sent after half of the time, so a server that is merely busy is not given up. 0 means one minute, negative never.
	ServerTimeout time.Duration
	// IdleEcho, if not 0, asks for a sign of life when nothing has come from the server for so long and no request is in flight, so that ServerTimeout
	// begins to run: a server that is gone is noticed although nobody wants anything of it.
	IdleEcho time.Duration
	// Transport tunes the TCP connection. Its Tap is replaced if Config.Tap is set.
	Transport transport.Options
	// DialContext replaces the dialling of TCP, for tests and tunnels. nil means net.Dialer.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)

	// Logger gets connects and losses at info and warning, details at debug. nil means silence.
	Logger *slog.Logger
	// Tap, if not nil, returns the tap for the connection between the two addresses, such as one of package pcap.
	Tap func(local, remote net.Addr) transport.Tap
	// SessionKey, if not nil, is told the session key of each session, so that a capture of it can be decrypted. The key must
	// be treated as the secret that it is.
	SessionKey func(sessionID uint64, key []byte)
	// OnOplockBreak, if not nil, is told each oplock break notification. It is called by the receiving goroutine and must return at once.
	OnOplockBreak func(wire.OplockBreak)
}

const (
	defaultCredits = 1024
	maxCredits     = 8192
	defaultMaxIO   = 8 << 20
)

// withDefaults fills in what is zero, and checks the rest.
func (c Config) withDefaults() (Config, error) {
	if c.MinDialect == 0 {
		c.MinDialect = wire.Dialect300
	}
	if c.MaxDialect == 0 {
		c.MaxDialect = wire.Dialect311
	}
	if len(c.dialects()) == 0 {
		return c, fmt.Errorf("no dialect lies between %s and %s", c.MinDialect, c.MaxDialect)
	}
	if c.Seal && c.MaxDialect < wire.Dialect300 {
		return c, fmt.Errorf("encryption needs SMB 3.0, and the newest dialect allowed is %s", c.MaxDialect)
	}
	if c.Seal && c.Unsigned {
		return c, fmt.Errorf("a connection cannot be both sealed and unsigned")
	}
	if c.Ciphers == nil {
		c.Ciphers = []wire.Cipher{wire.CipherAES128GCM, wire.CipherAES256GCM, wire.CipherAES128CCM, wire.CipherAES256CCM}
	}
	if c.Signing == nil {
		c.Signing = []wire.SigningAlgorithm{wire.SigningAESGMAC, wire.SigningAESCMAC}
	}
	if c.ClientGUID == (wire.GUID{}) {
		_, _ = rand.Read(c.ClientGUID[:]) // never fails
	}
	if c.Credits == 0 {
		c.Credits = defaultCredits
	}
	c.Credits = min(max(c.Credits, 2), maxCredits)
	if c.MaxIO <= 0 {
		c.MaxIO = defaultMaxIO
	}
	if c.MaxCompound <= 0 || c.MaxCompound > maxJoin {
		c.MaxCompound = maxJoin
	}
	if c.ServerTimeout == 0 {
		c.ServerTimeout = time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.DialContext == nil {
		d := &net.Dialer{KeepAlive: c.Transport.KeepAlive}
		c.DialContext = d.DialContext
	}
	return c, nil
}

var allDialects = []wire.Dialect{wire.Dialect202, wire.Dialect210, wire.Dialect300, wire.Dialect302, wire.Dialect311}

// dialects returns what is offered, the oldest first.
func (c *Config) dialects() []wire.Dialect {
	var out []wire.Dialect
	for _, d := range allDialects {
		if d >= c.MinDialect && d <= c.MaxDialect {
			out = append(out, d)
		}
	}
	return out
}
