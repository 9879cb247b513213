package server

import (
	"context"
	"log/slog"
	"net"
	"time"

	"vdbridge/smb/auth"
	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
)

// Share is one directory that is offered.
type Share struct {
	Name     string // as clients see it: 1 to 80 characters, none of the reserved ones; compared without regard to case
	Dir      string // local directory
	Comment  string
	ReadOnly bool
	Encrypt  bool // refuse clients that do not encrypt

	// CA says that the share is continuously available: clients may ask for persistent opens, which survive the loss of a connection, and everything
	// that they write is durable before it is acknowledged.
	CA bool
}

// Config says what a server offers. Only Users or Kerberos is required.
type Config struct {
	ServerName string    // the name told to clients; empty for the host's name
	GUID       wire.GUID // identifies the server across connections; zero for that of State, or a random one
	Shares     []Share
	Users      auth.UserDB           // who may log on by NTLM; nil for no NTLM
	Kerberos   *auth.KerberosService // nil for no Kerberos

	MinDialect wire.Dialect // oldest dialect accepted: 0 means 3.0; 2.1 is the least
	MaxDialect wire.Dialect // newest dialect offered: 0 means 3.1.1
	Encrypt    bool         // refuse clients that do not encrypt, on all shares

	// State, if not nil, is where persistent opens survive the process: this one must own it. It is closed after the server. Without it, opens
	// survive the loss of a connection only.
	State *State

	Disks  DiskService  // shared virtual disks; nil for none
	Logger *slog.Logger // nil for silence

	// Tap, if not nil, is called for every connection; what it returns sees all messages. KeyLog, if not nil, is told the session
	// key of every session, for whoever wants to read such a capture. (Those of package pcap fit.)
	Tap    func(local, remote net.Addr) transport.Tap
	KeyLog func(sessionID uint64, sessionKey []byte)

	Limits Limits
}

// Limits bound what clients can make the server hold. Zero values mean the defaults in the comments.
type Limits struct {
	MaxConnections     int   // 1024 on which somebody has logged on
	MaxHalfOpen        int   // 256 besides, on which nobody has
	MaxSessions        int   // 4096 in total, of them at most 256 on one connection
	MaxTrees           int   // 1024 for each session
	MaxOpens           int   // 65536 in total, at most half of them for one session
	MaxPending         int   // 1024 operations without end (change notifications, blocked locks) for each connection
	MaxCredits         int   // 8192 for each connection
	MaxIO              int   // 8 MiB: MaxReadSize, MaxWriteSize, MaxTransactSize; at least 64 KiB, at most 8 MiB
	MaxWorkers         int   // 128 requests at once for each connection
	InflightConnection int64 // 64 MiB of requests and replies of one connection
	InflightTotal      int64 // 512 MiB of requests and replies of all connections

	// SessionLifetime is how long a session may go on without authenticating again, 0 for ever. Clients notice nothing: they
	// authenticate again by themselves. A session that began with a Kerberos ticket goes on no longer than that.
	SessionLifetime time.Duration
	// LogonTimeout is how long a connection may exist without a session, 30 s.
	LogonTimeout time.Duration
	// BreakTimeout is how long a client may take to give up what it was allowed to cache, 35 s; then it is taken away. [MS-SMB2] 3.3.2.1, 3.3.2.5
	BreakTimeout time.Duration
	// WriteTimeout is how long a client may leave replies untaken before its connection is dropped, 60 s.
	WriteTimeout time.Duration
}

func (l *Limits) setDefaults() {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.MaxConnections, 1024)
	def(&l.MaxHalfOpen, 256)
	def(&l.MaxSessions, 4096)
	def(&l.MaxTrees, 1024)
	def(&l.MaxOpens, 65536)
	def(&l.MaxPending, 1024)
	def(&l.MaxCredits, 8192)
	l.MaxCredits = min(max(l.MaxCredits, 64), 32768)
	def(&l.MaxIO, 8<<20)
	l.MaxIO = min(max(l.MaxIO, 64<<10), 8<<20) &^ 0xFFFF
	def(&l.MaxWorkers, 128)
	if l.InflightConnection <= 0 {
		l.InflightConnection = 64 << 20
	}
	if l.InflightTotal <= 0 {
		l.InflightTotal = 512 << 20
	}
	if l.LogonTimeout <= 0 {
		l.LogonTimeout = 30 * time.Second
	}
	if l.BreakTimeout <= 0 {
		l.BreakTimeout = 35 * time.Second
	}
	if l.WriteTimeout <= 0 {
		l.WriteTimeout = 60 * time.Second
	}
}

// DiskService opens virtual disks for CREATEs of NAME:SharedVirtualDisk that carry the SVHDX create context. Its calls may
// overlap. [MS-RSVD] 3.2
type DiskService interface {
	// OpenDisk opens the virtual disk in the file at path, a resolved local path inside the share. reqCtx is the data of the SVHDX
	// context (nil if none came), opts are the CreateOptions, with FILE_WRITE_THROUGH if everything must
	// be durable before it is acknowledged; access is the granted DesiredAccess. It returns the open, and the data of the
	// reply context (nil for none). Errors carry an ntstatus.Status.
	OpenDisk(ctx context.Context, path string, reqCtx []byte, opts, access uint32) (DiskOpen, []byte, error)
	// QuerySupport answers FSCTL_QUERY_SHARED_VIRTUAL_DISK_SUPPORT; open is nil for a plain open of path. [MS-RSVD] 2.2.4.16
	QuerySupport(path string, open DiskOpen) (support, handleState uint32)
}

// DiskRestorer is what a DiskService can do beyond, if its disks know what opens have of them: between the two calls, the opens of an earlier process are opened
// again; what has none afterwards is over.
type DiskRestorer interface {
	BeginRestore()
	EndRestore()
}

// PersistentDisk is what a DiskOpen can do beyond, if it can survive the process.
type PersistentDisk interface {
	DiskOpen
	// Persist says that the open is to survive, under this number. It returns when what it has of the disk does.
	Persist(id uint64) error
	// Suspend is Close for an open that another process opens again.
	Suspend() error
}

// DiskOpen is one open of a shared virtual disk. All calls but Close may overlap; Close comes last. Errors carry an ntstatus.Status, which
// goes into the SMB2 header.
type DiskOpen interface {
	Read(ctx context.Context, p []byte, off int64) error
	// Write is durable on return if fua is set.
	Write(ctx context.Context, p []byte, off int64, fua bool) error
	Flush(ctx context.Context) error
	// Tunnel carries FSCTL_SVHDX_SYNC_TUNNEL_REQUEST and FSCTL_SVHDX_ASYNC_TUNNEL_REQUEST; out has length MaxOutputResponse and lies
	// in the reply, n bytes of it are used.
	Tunnel(ctx context.Context, code uint32, in, out []byte) (n int, err error)
	Size() int64 // of the virtual disk, bytes
	Close() error
}
