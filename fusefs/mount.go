package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	maxWrite      = 1 << 20 // bytes of one request, the most that the kernel sends
	maxBackground = 64      // requests that the kernel sends on its own behalf: read-ahead, asynchronous direct I/O
	maxInFlight   = 128 << 20
	patience      = 10 * time.Second // for a mount that is still in use

	defaultInterruptAfter = 2 * time.Second
)

// Options say how a disk is shown.
type Options struct {
	ReadOnly   bool
	AllowOther bool   // let other users see the files; the kernel checks the mode, so these are root's
	Name       string // shown as the source of the mount; "" means "vdbridge"
	// What is shown besides disk.raw: see Volume.
	Info         func(ctx context.Context) []byte
	Reservations func(ctx context.Context) []byte
	Parts        func(ctx context.Context) ([]Part, error)
	// InterruptAfter is how long an operation may take before a signal to the process that waits for it ends it with EINTR. 0: 2 s.
	InterruptAfter time.Duration
	Ready          func()       // called once, when the files are there; may be nil
	Logger         *slog.Logger // nil is silent
}

// ErrBusy says that the mount was still in use when it was to end: it was taken out of the tree of files, and goes on for those who have
// it open until they close it.
var ErrBusy = errors.New("still in use")

// Serve shows d in dir until somebody unmounts it, or ctx is done and the unmounting has succeeded; then it flushes d. d stays open.
//
// If the mount is in use when ctx is done (a loop device stands on it, a shell's working directory is in it), Serve says so in the log and
// waits 10 s for its users. Then it detaches the mount, so that nobody new comes, serves who is there until they are done, and returns
// ErrBusy.
func Serve(ctx context.Context, dir string, d Disk, o Options) error {
	vol, err := newOpened(Volume{Disk: d, Parts: o.Parts, Info: o.Info, Reservations: o.Reservations}, o.ReadOnly)
	if err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	c := o.common()
	c.readOnly, c.lasting = vol.readOnly, true
	root := &dirNode{shown: newShown(c, always{vol}, "", o.Info != nil, o.Reservations != nil)}
	m, err := start(dir, root, c, o)
	if err != nil {
		return err
	}
	return errors.Join(m.serve(ctx, o), flushed(ctx, dir, vol))
}

// flushed makes durable what was written, at the end of a mount. ctx may be done by then.
func flushed(ctx context.Context, dir string, o *opened) error {
	if err := o.flush(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("flush after unmounting %s: %w", dir, err)
	}
	return nil
}

func (o *Options) common() *common {
	c := &common{mounted: time.Now(), interruptAfter: o.InterruptAfter, readOnly: o.ReadOnly}
	c.log = o.Logger
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.interruptAfter <= 0 {
		c.interruptAfter = defaultInterruptAfter
	}
	return c
}

type mounted struct {
	dir    string
	server *fuse.Server
	log    *slog.Logger
}

// serve tells that the mount is there and waits for its end.
func (m *mounted) serve(ctx context.Context, o Options) error {
	if o.Ready != nil {
		o.Ready()
	}
	gone := make(chan struct{})
	go func() {
		m.server.Wait()
		close(gone)
	}()
	var busy error
	select {
	case <-gone:
	case <-ctx.Done():
		busy = m.end(gone)
		<-gone
	}
	return busy
}

func start(dir string, root fs.InodeEmbedder, c *common, o Options) (*mounted, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	if st, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	} else if !st.IsDir() {
		return nil, fmt.Errorf("mount: %s: %w", dir, syscall.ENOTDIR)
	}
	m := &mounted{dir: dir, log: c.log}
	if o.Name == "" {
		o.Name = "vdbridge"
	}
	flags := []string{"default_permissions"}
	direct := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if c.readOnly {
		flags = append(flags, "ro")
		direct |= unix.MS_RDONLY
	}
	// Nodes say for how long what they tell is true; this is for those who do not.
	moment := time.Second
	m.server, err = fs.Mount(dir, root, &fs.Options{
		EntryTimeout:   &moment,
		AttrTimeout:    &moment,
		RootStableAttr: &fs.StableAttr{Ino: 1},
		UID:            uint32(os.Getuid()),
		GID:            uint32(os.Getgid()),
		MountOptions: fuse.MountOptions{
			AllowOther:              o.AllowOther,
			Options:                 flags,
			MaxBackground:           maxBackground,
			MaxInflightRequestBytes: maxInFlight,
			MaxWrite:                maxWrite,
			MaxReadAhead:            maxWrite,
			FsName:                  strings.ReplaceAll(o.Name, ",", "_"),
			Name:                    "vdbridge",
			DisableXAttrs:           true,
			DirectMount:             true,
			DirectMountFlags:        direct,
			Logger:                  log.New(logLines{m.log}, "", 0),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w; it takes /dev/fuse, and either root or the package fuse3", dir, err)
	}
	readAhead(dir, m.log)
	return m, nil
}

// end unmounts, patiently at first. It returns ErrBusy when the mount had to be detached.
func (m *mounted) end(gone <-chan struct{}) error {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var once sync.Once
	for {
		err := m.server.Unmount()
		if err == nil {
			return nil
		}
		once.Do(func() {
			m.log.Warn("the mount is still in use: unmount what stands on it and leave it; waiting", "dir", m.dir, "patience", patience, "err", err)
		})
		select {
		case <-gone: // somebody else has unmounted it
			return nil
		case <-tick.C:
		case <-deadline.C:
			if err := Detach(m.dir); err != nil {
				m.log.Error("the mount cannot be detached", "dir", m.dir, "err", err)
			}
			m.log.Warn("the mount is detached, and goes on until its last user is done", "dir", m.dir)
			return fmt.Errorf("unmount %s: %w; it was detached, and has ended with its last user", m.dir, ErrBusy)
		}
	}
}

// Detach takes the mount on dir out of the tree of files, even if it is in use. Its users keep it.
func Detach(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach %s: %w", dir, err)
	}
	return nil
}

// logLines takes the messages of the FUSE library.
type logLines struct{ log *slog.Logger }

func (l logLines) Write(p []byte) (int, error) {
	l.log.Debug(strings.TrimSpace(string(p)))
	return len(p), nil
}
