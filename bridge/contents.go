package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vdbridge/fusefs"
	"vdbridge/partition"
)

// ContentsOptions say how the file system in a disk is mounted.
type ContentsOptions struct {
	Dir       string // where it is shown
	Partition int    // 0: the only one that can be mounted, or the largest
	Options   string // for the file system, as mount -o takes them; those that are flags of mount(2) are not known
}

// runDir is where disks are shown that are mounted for their contents only.
func runDir() string {
	if os.Geteuid() == 0 {
		return "/run/vdbridge"
	}
	if d := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
		return filepath.Join(d, "vdbridge")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("vdbridge-%d", os.Geteuid()))
}

// MountContents mounts the file system in d on a directory, until ctx is done or somebody unmounts it. Below are a FUSE mount of the disk, in mo.Dir or a private
// directory, and a loop device; all go in the right order. d is flushed at the end and stays open.
func MountContents(ctx context.Context, d *Disk, mo MountOptions, co ContentsOptions) (err error) {
	if os.Geteuid() != 0 {
		return &Error{ClassPermission, "only root can mount the file system inside a disk, as it takes a loop device; without --contents the disk itself is shown", syscall.EPERM}
	}
	log := d.log
	layout, err := d.Layout(ctx)
	if err != nil {
		return err
	}
	part, what, err := chooseContents(layout, d.loc, co.Partition)
	if err != nil {
		return err
	}
	if mo.Dir == "" {
		sum := sha256.Sum256([]byte(co.Dir))
		mo.Dir = filepath.Join(runDir(), hex.EncodeToString(sum[:8]))
		if err := os.MkdirAll(mo.Dir, 0o700); err != nil && !errors.Is(err, syscall.ENOTCONN) && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("mount: %w", err)
		}
		defer os.Remove(mo.Dir)
	}
	if abs, err := filepath.Abs(mo.Dir); err == nil {
		mo.Dir = abs
	}
	// The dead mount that the contents stood on is cleaned first: it takes the contents with it.
	if err := prepareDir(mo.Dir, log); err != nil {
		return err
	}
	if err := checkDir(co.Dir); err != nil {
		return err
	}

	ready := mo.Ready
	shown := make(chan struct{})
	mo.Ready = func() { close(shown) }
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- d.serve(serving, mo) }()
	select {
	case err := <-ended:
		return explainMount(mo.Dir, err)
	case <-shown:
	}
	finish := func(err error) error {
		stop()
		return errors.Join(err, explainMount(mo.Dir, <-ended))
	}

	file := filepath.Join(mo.Dir, "disk.raw")
	if part != 0 {
		file = filepath.Join(mo.Dir, "partitions", strconv.Itoa(part))
	}
	readOnly := mo.ReadOnly || d.ReadOnly()
	logical, _, _, _ := d.BlockSizes()
	loop, err := attachLoop(file, logical, readOnly)
	if err != nil {
		return finish(fmt.Errorf("loop device for %s: %w", file, err))
	}
	err = mountFS(loop.Name(), co, what, readOnly, log)
	_ = loop.Close() // it goes by itself when nobody uses it any more
	if err != nil {
		return finish(err)
	}
	if ready != nil {
		ready()
	}
	gone, unwatch := watchUnmount(serving, co.Dir)
	defer unwatch()
	select {
	case err := <-ended: // somebody tore the FUSE mount away
		_ = unix.Unmount(co.Dir, unix.MNT_DETACH)
		return explainMount(mo.Dir, err)
	case <-gone:
	case <-ctx.Done():
		err = unmountPatiently(co.Dir, gone, log)
	}
	return finish(err)
}

// mountable are the file systems that Linux may mount, with the names of its drivers.
var mountable = map[string][]string{
	"ext2": {"ext2", "ext4"}, "ext3": {"ext3", "ext4"}, "ext4": {"ext4"}, "xfs": {"xfs"}, "btrfs": {"btrfs"}, "ntfs": {"ntfs3", "ntfs"}, "vfat": {"vfat"},
	"exfat": {"exfat"}, "f2fs": {"f2fs"}, "hfsplus": {"hfsplus"}, "iso9660": {"iso9660"}, "udf": {"udf"}, "squashfs": {"squashfs"}, "erofs": {"erofs"}, "jfs": {"jfs"},
	"reiserfs": {"reiserfs"}, "nilfs2": {"nilfs2"}, "bcachefs": {"bcachefs"}, "ocfs2": {"ocfs2"}, "gfs2": {"gfs2"},
}

// chooseContents finds the file system to mount: that of the partition asked for, or the only one, or the largest.
func chooseContents(l *partition.Layout, loc Location, number int) (part int, what partition.Signature, err error) {
	if number != 0 {
		if _, ok := l.Partition(number); !ok {
			return 0, what, &Error{ClassNotFound, fmt.Sprintf("%s has no partition %d: %s", loc, number, describeLayout(l)), fs.ErrNotExist}
		}
	}
	best := int64(-1)
	for _, c := range l.Content {
		if number != 0 && c.Number != number {
			continue
		}
		size := int64(0)
		if p, ok := l.Partition(c.Number); ok {
			size = p.Size
		}
		for _, s := range c.Signatures {
			if mountable[s.Name] != nil && size > best {
				part, what, best = c.Number, s, size
			}
		}
	}
	if best < 0 {
		return 0, what, &Error{ClassNotFound, fmt.Sprintf("%s holds no file system that can be mounted: %s", loc, describeLayout(l)), fs.ErrNotExist}
	}
	return part, what, nil
}

// describeLayout says what is on a disk.
func describeLayout(l *partition.Layout) string {
	if l.Damage != "" {
		return l.Damage
	}
	var list []string
	for _, c := range l.Content {
		var names []string
		for _, s := range c.Signatures {
			names = append(names, s.Name)
		}
		n := strings.Join(names, " and ")
		if n == "" {
			n = "nothing that is known"
		}
		if c.Number == 0 {
			return "it is not partitioned, and holds " + n
		}
		list = append(list, fmt.Sprintf("partition %d holds %s", c.Number, n))
	}
	if len(list) == 0 {
		return "it has a partition table without partitions"
	}
	return strings.Join(list, ", ")
}

// attachLoop makes a loop device of a file. It goes when the last one closes or unmounts it. loop(4)
func attachLoop(file string, sector int, readOnly bool) (*os.File, error) {
	mode := os.O_RDWR
	flags := uint32(unix.LO_FLAGS_AUTOCLEAR)
	if readOnly {
		mode = os.O_RDONLY
		flags |= unix.LO_FLAGS_READ_ONLY
	}
	f, err := os.OpenFile(file, mode, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, &Error{ClassUnsupported, "this machine has no loop devices (/dev/loop-control is missing): 'modprobe loop' loads them", err}
	}
	defer ctl.Close()
	for range 100 {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		l, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), mode, 0)
		if err != nil {
			return nil, err
		}
		cfg := unix.LoopConfig{Fd: uint32(f.Fd()), Size: uint32(sector)}
		cfg.Info.Flags = flags
		copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], file)
		err = unix.IoctlLoopConfigure(int(l.Fd()), &cfg)
		if err == nil {
			return l, nil
		}
		l.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else took it in between
			return nil, err
		}
	}
	return nil, unix.EBUSY
}

// mountFS mounts the file system on a device.
func mountFS(device string, co ContentsOptions, what partition.Signature, readOnly bool, log *slog.Logger) error {
	flags := uintptr(unix.MS_NODEV | unix.MS_NOSUID)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	var err error
	for _, driver := range mountable[what.Name] {
		err = unix.Mount(device, co.Dir, driver, flags, co.Options)
		if readOnly && err != nil && !errors.Is(err, unix.ENODEV) {
			// A journal that was not closed cannot be replayed without writing.
			skip := map[string]string{"ext3": "noload", "ext4": "noload", "xfs": "norecovery", "btrfs": "rescue=nologreplay"}[driver]
			if skip != "" {
				opts := strings.Trim(co.Options+","+skip, ",")
				if rerr := unix.Mount(device, co.Dir, driver, flags, opts); rerr == nil {
					log.Warn("the file system was not unmounted the last time, and its journal is not replayed as the mount is read-only: files may look damaged", "dir", co.Dir)
					return nil
				}
			}
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.ENODEV) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.ENODEV):
		return &Error{ClassUnsupported, fmt.Sprintf("this kernel cannot mount %s: load its driver (modprobe %s), or use disk.raw with other tools", what.Name, mountable[what.Name][0]), err}
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EROFS):
		return &Error{ClassCorrupt, fmt.Sprintf("the kernel does not mount the %s inside (%v): it may be damaged, an option may be wrong, or the same one is mounted already; 'dmesg' says why", what.Name, err), err}
	}
	return &Error{Classify(err), fmt.Sprintf("mount the %s inside on %s: %v", what.Name, co.Dir, err), err}
}

// watchUnmount closes the channel when nothing is mounted on dir any more, until ctx is done or end is called, which waits. The kernel tells by making the list of mounts readable. proc(5)
func watchUnmount(ctx context.Context, dir string) (gone <-chan struct{}, end func()) {
	ctx, cancel := context.WithCancel(ctx)
	c, done := make(chan struct{}), make(chan struct{})
	abs, err := realPath(dir)
	if err != nil {
		abs = dir
	}
	go func() {
		defer close(done)
		f, err := os.Open("/proc/self/mountinfo")
		if err != nil {
			return
		}
		defer f.Close()
		for ctx.Err() == nil {
			if m, err := findMount(abs); err == nil && m == nil {
				close(c)
				return
			}
			fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
			_, _ = unix.Poll(fds, 500)
		}
	}()
	return c, func() {
		cancel()
		<-done
	}
}

// contentsPatience is how long a file system may be in use after its end was asked for.
const contentsPatience = 10 * time.Second

// unmountPatiently unmounts what is on dir, waiting for its users for a while; then it is detached and ends with them.
func unmountPatiently(dir string, gone <-chan struct{}, log *slog.Logger) error {
	deadline := time.NewTimer(contentsPatience)
	defer deadline.Stop()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for said := false; ; {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EBUSY):
			select {
			case <-gone:
				return nil
			default:
			}
			return &Error{Classify(err), fmt.Sprintf("umount %s: %v", dir, err), err}
		case !said:
			said = true
			log.Warn("the file system is still in use: close what is open on it and leave it; waiting", "dir", dir, "patience", contentsPatience)
		}
		select {
		case <-gone:
			return nil
		case <-tick.C:
		case <-deadline.C:
			if err := fusefs.Detach(dir); err != nil {
				return err
			}
			log.Warn("the file system is detached, and goes on until its last user is done", "dir", dir)
			return &Error{ClassBusy, fmt.Sprintf("%s was still in use when it was to end, so it was detached and has ended with its last user", dir), unix.EBUSY}
		}
	}
}
