package svhdx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"vdbridge/scsi/lu"
	"vdbridge/server"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
	"vdbridge/vhdx"
)

// Disk is an open virtual disk.
type Disk interface {
	lu.Disk
	Properties() Properties
	Close() error
}

// Properties is what RSVD tells of a disk beyond its size.
type Properties struct {
	Fixed     bool
	BlockSize uint32 // bytes; of dynamic disks
	ID        wire.GUID
	// FileSize returns the present size in bytes of the file that holds the disk; nil means that of the file at the path.
	FileSize func() (int64, error)
}

// Config says how a Service works. The zero value is usable.
type Config struct {
	Version     uint32       // of the protocol: 1 or 2; 0 means 1
	Logger      *slog.Logger // nil is silent
	MaxTransfer int          // bytes of one SCSI READ or WRITE; 0 means 8 MiB less the headers

	// OpenFile opens the virtual disk in a file; nil means VHDX. Its errors carry an ntstatus.Status, or are errors of package fs or vhdx.
	OpenFile func(ctx context.Context, path string, readOnly bool) (Disk, error)
	// State returns where reservations of the disk at path are kept over a power loss; nil means a file beside the disk.
	State func(path string, id wire.GUID) lu.PersistentState
}

// Service opens shared virtual disks. It implements server.DiskService.
type Service struct {
	cfg Config
	log *slog.Logger

	mu        sync.Mutex
	disks     map[fileKey]*disk
	files     map[fileKey]*fileOpen
	restoring bool
}

var (
	_ server.DiskService    = (*Service)(nil)
	_ server.DiskRestorer   = (*Service)(nil)
	_ server.PersistentDisk = (*open)(nil)
	_ server.DiskOpen       = (*fileOpen)(nil)
)

// New makes a service.
func New(c Config) (*Service, error) {
	if c.Version == 0 {
		c.Version = tunnel.Version1
	}
	if c.Version > tunnel.Version2 {
		return nil, fmt.Errorf("there is no RSVD version %d, only 1 and 2", c.Version)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MaxTransfer == 0 {
		c.MaxTransfer = 8<<20 - 64<<10
	}
	if c.OpenFile == nil {
		c.OpenFile = openVHDX(c.Logger)
	}
	if c.State == nil {
		c.State = func(path string, id wire.GUID) lu.PersistentState { return FileState(path, id, c.Logger) }
	}
	return &Service{cfg: c, log: c.Logger, disks: make(map[fileKey]*disk), files: make(map[fileKey]*fileOpen)}, nil
}

// vhdxDisk makes a Disk of an image.
type vhdxDisk struct{ *vhdx.Disk }

func (d vhdxDisk) Properties() Properties {
	i := d.Info()
	p := Properties{Fixed: i.Kind == vhdx.KindFixed, ID: wire.GUID(i.VirtualDiskID)}
	if !p.Fixed {
		p.BlockSize = uint32(i.BlockSize)
	}
	return p
}

// TrimGranularity tells the logical unit that space comes back by whole blocks of the image.
func (d vhdxDisk) TrimGranularity() int64 { return d.Info().BlockSize }

func openVHDX(log *slog.Logger) func(context.Context, string, bool) (Disk, error) {
	return func(ctx context.Context, path string, readOnly bool) (Disk, error) {
		// The parents of a differencing disk must lie beside or below it: its locator is the client's word, and could name any file of this host.
		dir := filepath.Dir(path)
		d, err := vhdx.OpenFile(ctx, path, vhdx.Options{ReadOnly: readOnly, Logger: log, Resolver: vhdx.FileResolver{Dir: dir, Root: dir}})
		if err != nil {
			return nil, err
		}
		return vhdxDisk{d}, nil
	}
}

// openStatus gives an error of opening the NTSTATUS that the client is told, if it has none. [3.2.5.1]
func openStatus(err error) error {
	if _, ok := ntstatus.Of(err); ok {
		return err
	}
	s := ntstatus.Unsuccessful
	var chain *vhdx.ChainError
	switch {
	case errors.As(err, &chain): // the file is there, but not all that it needs
		s = ntstatus.NotSupported
	case errors.Is(err, fs.ErrNotExist):
		s = ntstatus.ObjectNameNotFound
	case errors.Is(err, fs.ErrPermission):
		s = ntstatus.AccessDenied
	case errors.Is(err, vhdx.ErrInUse):
		s = ntstatus.SharingViolation
	case errors.Is(err, vhdx.ErrNotVHDX), errors.Is(err, syscall.EISDIR):
		s = ntstatus.SVHDXWrongFileType
	case errors.Is(err, vhdx.ErrUnsupported):
		s = ntstatus.NotSupported
	case errors.Is(err, vhdx.ErrCorrupt):
		s = ntstatus.FileCorruptError
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		s = ntstatus.Cancelled
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		s = ntstatus.TooManyOpenedFiles
	}
	return fmt.Errorf("%w (%w)", err, s)
}

// disk is one file that is open as a shared virtual disk.
type disk struct {
	key   fileKey
	path  string
	props Properties
	opens int // guarded by Service.mu
	ready chan struct{}
	err   error // of opening; valid when ready is closed
	gone  chan struct{}

	Disk
	lu *lu.LU
}

// acquire finds or opens the disk in a file.
func (s *Service) acquire(ctx context.Context, path string) (*disk, error) {
	for {
		key, err := keyOf(path)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		d := s.disks[key]
		if d == nil {
			d = &disk{key: key, path: path, opens: 1, ready: make(chan struct{}), gone: make(chan struct{})}
			s.disks[key] = d
			s.mu.Unlock()
			// Whoever comes meanwhile waits for this attempt and shares its end, so it must not hang on the first one's context.
			d.err = s.openDisk(context.WithoutCancel(ctx), d)
			if d.err != nil {
				s.mu.Lock()
				delete(s.disks, key)
				s.mu.Unlock()
				close(d.gone)
			}
			close(d.ready)
			return d, d.err
		}
		if d.opens == 0 { // on its way out; its file is still locked
			s.mu.Unlock()
			select {
			case <-d.gone:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			continue
		}
		d.opens++
		s.mu.Unlock()
		select {
		case <-d.ready:
		case <-ctx.Done():
			<-d.ready
			if d.err == nil {
				s.release(d)
			}
			return nil, ctx.Err()
		}
		if d.err != nil {
			return nil, d.err
		}
		return d, nil
	}
}

func (s *Service) openDisk(ctx context.Context, d *disk) error {
	s.mu.Lock()
	restoring := s.restoring
	s.mu.Unlock()
	under, err := s.cfg.OpenFile(ctx, d.path, false)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		s.log.Warn("the disk cannot be written; it is opened read-only", "path", d.path, "err", err)
		under, err = s.cfg.OpenFile(ctx, d.path, true)
	}
	if err != nil {
		return err
	}
	d.Disk, d.props = under, under.Properties()
	opt := lu.Options{ID: d.props.ID, Thin: !d.props.Fixed, Logger: s.log.With("disk", d.path), MaxTransfer: s.cfg.MaxTransfer,
		State: s.cfg.State(d.path, d.props.ID), Restore: restoring}
	if d.lu, err = lu.New(ctx, under, opt); err != nil {
		_ = under.Close()
		return err
	}
	s.log.Info("shared virtual disk opened", "path", d.path, "size", d.Size(), "id", fmt.Sprintf("%x", d.props.ID[:]))
	return nil
}

// release gives a disk back and closes it after the last open.
func (s *Service) release(d *disk) error {
	s.mu.Lock()
	d.opens--
	last := d.opens == 0
	s.mu.Unlock()
	if !last {
		return nil
	}
	err := d.Close()
	s.mu.Lock()
	delete(s.disks, d.key)
	s.mu.Unlock()
	close(d.gone)
	if err != nil {
		s.log.Error("close of a shared virtual disk failed", "path", d.path, "err", err)
		return fmt.Errorf("close %s: %w", d.path, err)
	}
	s.log.Info("shared virtual disk closed", "path", d.path)
	return nil
}

// shared says whether the file has an open of this service.
func (s *Service) shared(path string) bool {
	key, err := keyOf(path)
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.disks[key]
	return d != nil && d.opens > 0 || s.files[key] != nil
}

// QuerySupport is [server.DiskService]. [2.2.4.16, 3.2.5.6]
func (s *Service) QuerySupport(path string, o server.DiskOpen) (support, handleState uint32) {
	support = tunnel.SupportV1
	if s.cfg.Version >= tunnel.Version2 {
		support = tunnel.SupportV2
	}
	if o != nil {
		return support, tunnel.HandleStateShared
	}
	if s.shared(path) {
		return support, tunnel.HandleStateFileShared
	}
	return support, tunnel.HandleStateNone
}

// OpenDisk is [server.DiskService]. The order of the checks is that of [3.2.5.1]. A context must have come; generic access rights must have been mapped.
func (s *Service) OpenDisk(ctx context.Context, path string, reqCtx []byte, opts, access uint32) (server.DiskOpen, []byte, error) {
	o, reply, err := s.openContext(ctx, path, reqCtx, opts, access)
	if err != nil {
		err = openStatus(err)
		s.log.Info("open of a shared virtual disk refused", "path", path, "err", err)
		return nil, nil, fmt.Errorf("open %s as a shared virtual disk: %w", filepath.Base(path), err)
	}
	return o, reply, nil
}

func (s *Service) openContext(ctx context.Context, path string, reqCtx []byte, opts, access uint32) (server.DiskOpen, []byte, error) {
	c, err := tunnel.ParseOpenContextRequest(reqCtx)
	short := len(reqCtx) < tunnel.OpenContextV1Size ||
		s.cfg.Version >= tunnel.Version2 && c.Version == tunnel.Version2 && len(reqCtx) < tunnel.OpenContextV2Size
	switch {
	case short:
		return nil, nil, fmt.Errorf("open context of %d bytes: %w", len(reqCtx), ntstatus.BufferTooSmall)
	case c.Version == 0 || c.Version > s.cfg.Version:
		return nil, nil, fmt.Errorf("open context of version %d, the server has %d: %w", c.Version, s.cfg.Version, ntstatus.InvalidParameter)
	case c.HasInitiatorID > 1:
		return nil, nil, fmt.Errorf("HasInitiatorId is %d: %w", c.HasInitiatorID, ntstatus.InvalidParameter)
	case err != nil:
		return nil, nil, fmt.Errorf("%w: %w", err, ntstatus.InvalidParameter)
	}
	if c.HasInitiatorID == 0 {
		c.InitiatorID = wire.GUID{}
	}
	if c.OriginatorFlags == tunnel.OriginatorVHDMP {
		o, err := s.openUnderlying(ctx, path, opts, access)
		if err != nil {
			return nil, nil, err
		}
		return o, tunnel.AppendOpenContextEcho(nil, reqCtx, tunnel.DiskProperties{}), nil
	}
	d, err := s.acquire(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	o := &open{s: s, d: d, opts: opts, isVHDSet: strings.EqualFold(filepath.Ext(path), ".vhds"), mayRead: access&wire.AccessReadData != 0, mayWrite: access&wire.AccessWriteData != 0,
		id: rand.Uint64()}
	if c.InitiatorID != (wire.GUID{}) {
		o.nexus = d.lu.Attach(lu.InitiatorID(c.InitiatorID), !o.mayWrite)
		if opts&wire.OptWriteThrough != 0 {
			o.nexus.WriteThrough()
		}
	}
	s.log.Info("opened", "path", path, "initiator", lu.InitiatorID(c.InitiatorID), "host", c.InitiatorHostName, "version", c.Version)
	return o, tunnel.AppendOpenContextEcho(nil, reqCtx, s.properties(d)), nil
}

// BeginRestore is [server.DiskRestorer]: opens of an earlier process are coming.
func (s *Service) BeginRestore() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restoring = true
}

// EndRestore is [server.DiskRestorer]: those who have not come are gone.
func (s *Service) EndRestore() {
	s.mu.Lock()
	s.restoring = false
	list := slices.Collect(maps.Values(s.disks))
	s.mu.Unlock()
	for _, d := range list {
		<-d.ready
		if d.err != nil {
			continue
		}
		if err := d.lu.Restored(context.Background()); err != nil {
			s.log.Error("reservations of initiators that are gone", "path", d.path, "err", err)
		}
	}
}

func (s *Service) properties(d *disk) tunnel.DiskProperties {
	logical, physical, _, _ := d.BlockSizes()
	return tunnel.DiskProperties{Initialized: 1, ServerServiceVersion: s.cfg.Version, SectorSize: uint32(logical), PhysicalSectorSize: uint32(physical),
		VirtualSize: uint64(d.Size())}
}

// fileSize returns the size of the file behind the disk.
func (d *disk) fileSize() (int64, error) {
	if d.props.FileSize != nil {
		return d.props.FileSize()
	}
	st, err := os.Stat(d.path)
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}
