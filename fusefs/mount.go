package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Options say how a disk is shown. The zero value is usable.
type Options struct {
	Name           string        // shown as the source of the mount, for instance the URL of the disk
	ReadOnly       bool          // refuse writing though the disk is writable
	DirectIO       bool          // never cache in the kernel; always so on a shared disk
	AllowOther     bool          // let other users in, as far as the file modes allow
	Info           []byte        // contents of info.json; no such file if nil
	InterruptAfter time.Duration // an operation that has taken this long can be interrupted by a signal. 0: 2 s
	Logger         *slog.Logger  // nil: silent
}

// ErrBusy says that an unmount failed because something still uses the files.
var ErrBusy = errors.New("in use")

// FS is a mounted disk.
type FS struct {
	dir    string
	log    *slog.Logger
	disk   *diskFile
	server *fuse.Server
	cancel context.CancelFunc // ends operations in flight

	done chan struct{} // the file system is unmounted and everything is flushed
	err  error         // set before done is closed
	stop func() bool

	mu       sync.Mutex
	detached bool
}

// maxIO is the largest read or write that the kernel sends, in bytes. It is FUSE's limit.
const maxIO = 1 << 20

// Mount shows disk in the directory dir, which must exist, and returns when it is there. When ctx is done the file system is unmounted; if it is in use
// then, that is logged and it is detached: it disappears from dir, and ends when the last user closes its file.
//
// The disk is flushed on unmount and not closed.
func Mount(ctx context.Context, dir string, disk Disk, opts Options) (*FS, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.InterruptAfter <= 0 {
		opts.InterruptAfter = 2 * time.Second
	}
	if opts.Name == "" {
		opts.Name = "vdbridge"
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("fusefs: mount: %w", err)
	}
	switch st, err := os.Stat(dir); {
	case err != nil:
		return nil, fmt.Errorf("fusefs: mount point: %w", err)
	case !st.IsDir():
		return nil, fmt.Errorf("fusefs: mount point %s: %w", dir, syscall.ENOTDIR)
	}
	opCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	m := &FS{dir: dir, log: opts.Logger, cancel: cancel, done: make(chan struct{})}
	m.disk, err = newDiskFile(opCtx, disk, opts.ReadOnly, opts.DirectIO, func(op string, err error) {
		m.log.Error("fusefs: the disk failed, and nobody is left to be told", "operation", op, "err", err)
	})
	if err != nil {
		cancel()
		return nil, err
	}
	root := newFixedDir()
	root.add("disk.raw", m.disk)
	if opts.Info != nil {
		root.add("info.json", &bytesFile{opts.Info})
	}
	_, physical, _, _ := disk.BlockSizes()
	raw := &rawFS{
		RawFileSystem:  fuse.NewDefaultRawFileSystem(),
		table:          newTable(root),
		log:            m.log,
		ctx:            opCtx,
		interruptAfter: opts.InterruptAfter,
		uid:            uint32(os.Getuid()),
		gid:            uint32(os.Getgid()),
		since:          time.Now(),
		blockSize:      uint32(max(physical, 4096)),
		total:          uint64(m.disk.size),
	}
	mo := &fuse.MountOptions{
		AllowOther:              opts.AllowOther,
		Options:                 []string{"default_permissions"},
		MaxBackground:           256,
		MaxWrite:                maxIO,
		MaxReadAhead:            maxIO,
		MaxInflightRequestBytes: 256 << 20,
		FsName:                  opts.Name,
		Name:                    "vdbridge",
		DisableXAttrs:           true,
		DirectMount:             os.Geteuid() == 0,
		DisableSplice:           true, // the data is in memory, there is no file to splice from
		Logger:                  slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
	}
	if m.disk.readOnly {
		mo.DirectMountFlags = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_RDONLY
		if !mo.DirectMount {
			mo.Options = append(mo.Options, "ro")
		}
	}
	if m.server, err = fuse.NewServer(raw, dir, mo); err != nil {
		cancel()
		return nil, fmt.Errorf("fusefs: mount on %s: %w (is the fuse module loaded, and fusermount3 installed or are you root?)", dir, err)
	}
	go m.serve()
	if err := m.server.WaitMount(); err != nil {
		m.UnmountLazy()
		<-m.done
		return nil, fmt.Errorf("fusefs: mount on %s: %w", dir, err)
	}
	m.stop = context.AfterFunc(ctx, m.end)
	m.log.Info("fusefs: mounted", "directory", dir, "size", m.disk.size, "read-only", m.disk.readOnly, "direct", m.disk.direct)
	return m, nil
}

// serve answers the kernel until the file system is gone, and then flushes.
func (m *FS) serve() {
	m.server.Serve()
	if err := m.disk.flushDirty(m.disk.ctx); err != nil {
		m.err = fmt.Errorf("fusefs: flush on unmount of %s: %w", m.dir, err)
		m.log.Error("fusefs: unmounted, but the last writes may not be durable", "directory", m.dir, "err", err)
	} else {
		m.log.Info("fusefs: unmounted", "directory", m.dir)
	}
	m.cancel()
	close(m.done)
}

// end unmounts because the context is done.
func (m *FS) end() {
	err := m.Unmount()
	if err == nil {
		return
	}
	if errors.Is(err, ErrBusy) {
		m.log.Warn("fusefs: still in use, so it is detached and goes on serving until the last user closes it", "directory", m.dir, "err", err)
	}
	if err := m.UnmountLazy(); err != nil {
		m.log.Error("fusefs: cannot unmount", "directory", m.dir, "err", err)
	}
}

// Wait waits until the file system is unmounted, by whomever, and the disk flushed. An error says that the last flush failed.
func (m *FS) Wait() error {
	<-m.done
	if m.stop != nil {
		m.stop()
	}
	return m.err
}

// Unmount unmounts and waits as Wait does. It returns an error that is ErrBusy, and changes nothing, if something still uses the files.
func (m *FS) Unmount() error {
	select {
	case <-m.done:
		return m.err
	default:
	}
	m.mu.Lock()
	var err error
	if !m.detached {
		err = m.unmount(false)
	}
	m.mu.Unlock()
	if errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("fusefs: %s is %w: close what uses it (fuser -m %s, losetup -j %s/disk.raw), or unmount lazily", m.dir, ErrBusy, m.dir, m.dir)
	}
	if err != nil && !m.gone() {
		return fmt.Errorf("fusefs: unmount %s: %w", m.dir, err)
	}
	return m.Wait()
}

// gone reports whether somebody else has unmounted meanwhile.
func (m *FS) gone() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// UnmountLazy detaches the file system from its directory. It goes on working for those who have files open; Wait tells when the last
// has closed them.
func (m *FS) UnmountLazy() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.detached || m.gone() {
		return nil
	}
	if err := m.unmount(true); err != nil && !m.gone() {
		return fmt.Errorf("fusefs: unmount %s: %w", m.dir, err)
	}
	m.detached = true
	return nil
}

// Abort cancels all operations in flight: their callers get EIO. It is for a disk that will never answer.
func (m *FS) Abort() { m.cancel() }
