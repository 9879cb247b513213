package rsvd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
)

// IO chooses the data path of Read and Write.
type IO int

// The data paths. See the package comment.
const (
	IOAuto IO = iota
	IOSMB
	IOSCSI
)

// String returns the option's value on a command line.
func (io IO) String() string { return [...]string{"auto", "smb", "scsi"}[io] }

// Options say how a disk is opened.
type Options struct {
	// Path is the file's name in the share, separated by backslashes, without the suffix ":SharedVirtualDisk".
	Path string
	// Dialect is what the connection negotiated; zero is taken for sufficient. MS-RSVD needs 3.0.2. [MS-SMB2] 2.2.13.2
	Dialect wire.Dialect
	// Version of the open context: 0 tries 2, then 1.
	Version uint32
	// InitiatorID says who this host is; reservations hang on it. Zero opens without one: only information can be asked for.
	InitiatorID [16]byte
	// HostName is shown to the server's administrator; what is beyond 63 UTF-16 units is cut off.
	HostName string
	// IO is the data path.
	IO IO
	// PadDataIn sends zeros with every data-in request, also to a server that does not want them: Wireshark takes a request without for malformed.
	PadDataIn bool
	// ReadOnly refuses all that changes the disk, and does not ask the server for write access.
	ReadOnly bool
	// Contexts are further create contexts, sent after that of RSVD.
	Contexts []wire.CreateContext
	// OnResize is called, from any goroutine, after the server has announced another capacity. It may be nil.
	OnResize func(size int64)
	// Logger may be nil.
	Logger *slog.Logger
}

// Disk is an open shared virtual disk. All methods may be called at the same time. It fits the contract of docs/architecture.md.
type Disk struct {
	file     File
	controls controller // file, if it is one
	path     string
	opts     Options
	log      *slog.Logger
	version  uint32 // of the open context that the server took

	serverVersion uint32
	requestID     atomic.Uint64

	sectorSize uint32
	physSize   uint32
	sectorBits uint
	size       atomic.Int64
	maxData    int // bytes of data of one SCSI operation
	maxRW      int // bytes of one READ(16) or WRITE(16)

	smbIO    bool        // READ and WRITE go by SMB2
	bareIn   atomic.Bool // bulk data-in requests go without zeros
	noFlush  atomic.Bool // the server has no FLUSH
	noSync   atomic.Bool // the unit has no SYNCHRONIZE CACHE(16)
	noSync10 atomic.Bool // nor the one of 10 bytes
	noSame   atomic.Bool // no WRITE SAME(16)
	noUnmap  atomic.Bool
	noStatus atomic.Bool // no GET LBA STATUS
	caps     capabilities
	met      atomic.Uint32 // unit attentions that were met: bits by attention
	standing standing

	calls  sync.Pool // *call
	closed atomic.Bool
	done   chan struct{} // closed by Close
	close  sync.Once
	err    error // of Close
}

// openAccess is what Windows asks for; without it READ and WRITE are refused. [MS-RSVD] 3.1.4.2 names no mask
const (
	openAccessRead  = wire.AccessReadData | wire.AccessReadAttributes | wire.AccessReadControl
	openAccessWrite = openAccessRead | wire.AccessWriteData
)

// Open opens the disk: with the context of version 2, and if the server does not take it with that of version 1. A server without
// MS-RSVD gives ErrNotSupported; a file that is not there an error that is fs.ErrNotExist. [MS-RSVD] 3.1.4.2
func Open(ctx context.Context, create CreateFunc, o Options) (*Disk, error) {
	if o.Dialect != 0 && o.Dialect < wire.Dialect302 {
		return nil, fmt.Errorf("open %s: %w: it needs SMB 3.0.2 or 3.1.1 and the connection speaks %v", o.Path, ErrNotSupported, o.Dialect)
	}
	if o.Version > tunnel.Version2 {
		return nil, fmt.Errorf("open %s: there is no version %d of MS-RSVD", o.Path, o.Version)
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := &Disk{path: o.Path, opts: o, log: log, done: make(chan struct{})}
	d.calls.New = func() any { return new(call) }

	versions := []uint32{tunnel.Version2, tunnel.Version1}
	if o.Version != 0 {
		versions = []uint32{o.Version}
	}
	var err error
	for _, v := range versions {
		if err = d.tryOpen(ctx, create, v); err == nil || final(err) {
			break
		}
		d.log.Debug("the server does not take this version of the open context", "path", o.Path, "version", v, "err", err)
	}
	if err != nil {
		return nil, d.explain(ctx, create, err)
	}
	if err := d.setUp(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", o.Path, err), d.file.Close())
	}
	d.log.Info("opened a shared virtual disk", "path", o.Path, "version", d.version, "server_version", d.serverVersion, "size", d.Size(),
		"sector", d.sectorSize, "physical_sector", d.physSize, "io", d.IO())
	return d, nil
}

// errNoContext: CREATE succeeded but nothing says that it opened a shared disk.
var errNoContext = errors.New("the reply has no RSVD context")

// tryOpen sends one CREATE and, on success, fills in what is known from its reply.
func (d *Disk) tryOpen(ctx context.Context, create CreateFunc, version uint32) error {
	oc := tunnel.OpenContextRequest{
		Version:           version,
		InitiatorID:       d.opts.InitiatorID,
		OriginatorFlags:   tunnel.OriginatorPVHDParser,
		OpenRequestID:     d.requestID.Load(),
		InitiatorHostName: d.opts.HostName,
	}
	if oc.InitiatorID != (wire.GUID{}) {
		oc.HasInitiatorID = 1
	}
	access := openAccessWrite
	if d.opts.ReadOnly {
		access = openAccessRead
	}
	req := &wire.CreateRequest{
		Impersonation: wire.ImpersonationImpersonation,
		DesiredAccess: access,
		ShareAccess:   wire.ShareRead | wire.ShareWrite | wire.ShareDelete,
		// A server without RSVD takes the suffix for the name of a stream. It must not make one.
		Disposition: wire.FileOpen,
		// Without it READ and WRITE are refused. [MS-RSVD] 3.2.5.3
		Options:  wire.OptNoIntermediateBuffering,
		Name:     d.opts.Path + tunnel.Suffix,
		Contexts: append([]wire.CreateContext{{Name: wire.CreateSVHDX, Data: oc.Append(nil)}}, d.opts.Contexts...),
	}
	f, contexts, err := create(ctx, req)
	if err != nil {
		return wrap("CREATE", err)
	}
	var reply *tunnel.OpenContextResponse
	for _, c := range contexts {
		if c.Name == wire.CreateSVHDX {
			r, err := tunnel.ParseOpenContextResponse(c.Data)
			if err != nil {
				return errors.Join(fmt.Errorf("CREATE: %w: %w", ErrProtocol, err), f.Close())
			}
			reply = &r
		}
	}
	if reply == nil && version != tunnel.Version1 {
		// Windows Server 2012 R2 without a later update accepts what it does not know.
		return errors.Join(errNoContext, f.Close())
	}
	d.file, d.version = f, version
	d.controls, _ = f.(controller)
	if reply != nil {
		d.version = reply.Version
		if reply.Version == tunnel.Version2 {
			d.serverVersion = reply.ServerServiceVersion
			if reply.Initialized != 0 {
				d.sectorSize, d.physSize = reply.SectorSize, reply.PhysicalSectorSize
				d.size.Store(int64(reply.VirtualSize))
			}
		}
	}
	return nil
}

// final says that another version of the context would not change the answer.
func final(err error) bool {
	if errors.Is(err, errNoContext) {
		return false
	}
	s, ok := ntstatus.Of(err)
	if !ok {
		return true // no answer of the server at all, or a broken one
	}
	switch s {
	case ntstatus.AccessDenied, ntstatus.NetworkAccessDenied, ntstatus.SharingViolation, ntstatus.VHDShared, ntstatus.SVHDXWrongFileType, ntstatus.ObjectPathNotFound,
		ntstatus.NetworkNameDeleted, ntstatus.UserSessionDeleted, ntstatus.NetworkSessionExpired, ntstatus.InsufficientResources, ntstatus.TooManyOpenedFiles,
		ntstatus.DeletePending, ntstatus.FileIsADirectory, ntstatus.Cancelled:
		return true
	}
	return false
}

// explain finds out what a refused CREATE means, as a server without RSVD says the same of a file that is there as others do of one that is not.
func (d *Disk) explain(ctx context.Context, create CreateFunc, err error) error {
	if errors.Is(err, errNoContext) {
		return fmt.Errorf("open %s: %w", d.path, ErrNotSupported)
	}
	s, ok := ntstatus.Of(err)
	if !ok || final(err) {
		return fmt.Errorf("open %s: %w", d.path, err)
	}
	f, _, plainErr := create(ctx, &wire.CreateRequest{
		Impersonation: wire.ImpersonationImpersonation,
		DesiredAccess: wire.AccessReadAttributes,
		ShareAccess:   wire.ShareRead | wire.ShareWrite | wire.ShareDelete,
		Disposition:   wire.FileOpen,
		Options:       wire.OptNonDirectoryFile,
		Name:          d.opts.Path,
	})
	if plainErr != nil {
		return fmt.Errorf("open %s: %w", d.path, wrap("CREATE", plainErr))
	}
	sup, supErr := Support(ctx, f)
	_ = f.Close()
	switch {
	case supErr != nil && ctx.Err() == nil && isRefusal(supErr):
		return fmt.Errorf("open %s: %w (%v)", d.path, ErrNotSupported, s)
	case supErr == nil && (s == ntstatus.ObjectNameNotFound || s == ntstatus.ObjectNameInvalid):
		// The server knows shared disks, but where this file lies the suffix is just the name of a stream.
		return fmt.Errorf("open %s: %w in this place (%v)", d.path, ErrNotSupported, s)
	case supErr == nil && sup.Support == tunnel.SupportV1 && d.opts.Version == tunnel.Version2:
		return fmt.Errorf("open %s: %w: the server only speaks version 1", d.path, err)
	}
	return fmt.Errorf("open %s: %w", d.path, err)
}

// isRefusal says that the server answered, and answered that it does not know the request.
func isRefusal(err error) bool {
	s, ok := ntstatus.Of(err)
	if !ok {
		return false
	}
	switch s {
	case ntstatus.InvalidDeviceRequest, ntstatus.NotSupported, ntstatus.NotImplemented, ntstatus.InvalidParameter:
		return true
	}
	return false
}

// setUp learns the geometry and what the logical unit can do.
func (d *Disk) setUp(ctx context.Context) error {
	if d.sectorSize == 0 || d.serverVersion == 0 {
		info, err := d.InitialInfo(ctx)
		if err != nil {
			if isRefusal(err) {
				return fmt.Errorf("%w: %w", ErrNotSupported, err)
			}
			return err
		}
		d.serverVersion = info.ServerVersion
		d.sectorSize, d.physSize = info.SectorSize, info.PhysicalSectorSize
		d.size.Store(int64(info.VirtualSize))
	}
	if err := d.checkGeometry(); err != nil {
		return err
	}
	d.maxData = 64<<10 - scsiOverhead
	if l, ok := d.file.(transactLimiter); ok {
		d.maxData = l.MaxTransactSize() - scsiOverhead
	}
	d.maxData = min(d.maxData, maxSCSIData)
	if d.maxData < int(d.sectorSize) {
		return fmt.Errorf("%w: it takes %d bytes per IOCTL, which is less than a sector", ErrProtocol, d.maxData+scsiOverhead)
	}
	d.smbIO = d.opts.IO != IOSCSI
	d.maxRW = d.maxData &^ (int(d.sectorSize) - 1)
	if d.opts.InitiatorID == [16]byte{} {
		return nil // no SCSI command would be carried out
	}
	return d.learn(ctx)
}

// Bounds of what a server may say about a disk. 64 TiB is the limit of VHDX; there is room above.
const (
	maxSector = 64 << 10
	maxDisk   = 1 << 60
)

func (d *Disk) checkGeometry() error {
	s, size := d.sectorSize, d.size.Load()
	if s < 512 || s > maxSector || s&(s-1) != 0 {
		return fmt.Errorf("%w: a logical sector of %d bytes", ErrProtocol, s)
	}
	if d.physSize < s || d.physSize > 16<<20 || d.physSize&(d.physSize-1) != 0 {
		d.physSize = s // advice only
	}
	if size < 0 || size > maxDisk || size%int64(s) != 0 {
		return fmt.Errorf("%w: a disk of %d bytes in sectors of %d", ErrProtocol, uint64(size), s)
	}
	for d.sectorBits = 9; 1<<d.sectorBits < s; d.sectorBits++ {
	}
	return nil
}

// Close closes the open. The server drops the initiator's registration with its last open.
func (d *Disk) Close() error {
	d.close.Do(func() {
		d.closed.Store(true)
		close(d.done)
		d.err = wrap("CLOSE", d.file.Close())
	})
	return d.err
}

// Size is the virtual size in bytes. It changes when the server says so.
func (d *Disk) Size() int64 { return d.size.Load() }

// ReadOnly says whether the disk was opened so.
func (d *Disk) ReadOnly() bool { return d.opts.ReadOnly }

// Version is that of the open context that the server took; ServerVersion is the server's own.
func (d *Disk) Version() uint32 { return d.version }

// ServerVersion is 1 or 2.
func (d *Disk) ServerVersion() uint32 { return d.serverVersion }

// IO is the data path that is in use.
func (d *Disk) IO() IO {
	if d.smbIO {
		return IOSMB
	}
	return IOSCSI
}

// InitiatorID is the identity that the disk was opened with.
func (d *Disk) InitiatorID() [16]byte { return d.opts.InitiatorID }

// Path is the file's name in the share.
func (d *Disk) Path() string { return d.path }

// BlockSizes gives the logical and the physical block, the optimal and the largest transfer, in bytes; 0 = not known, unlimited.
func (d *Disk) BlockSizes() (logical, physical, optimal, maxTransfer int) {
	return int(d.sectorSize), int(d.physSize), d.caps.optimal, 0
}
