package bridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// mountEntry is a line of mountinfo. proc(5)
type mountEntry struct {
	device string // major:minor
	dir    string
	fstype string
	source string
}

var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// mounts lists what is mounted, the lowest of a directory first.
func mounts() ([]mountEntry, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(string(b)), nil
}

func parseMounts(text string) (list []mountEntry) {
	for line := range strings.Lines(text) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 2 {
			continue
		}
		list = append(list, mountEntry{device: l[2], dir: unescapeMount.Replace(l[4]), fstype: r[0], source: unescapeMount.Replace(r[1])})
	}
	return list
}

// findMount is what is mounted on dir, the topmost, or nil.
func findMount(dir string) (*mountEntry, error) {
	list, err := mounts()
	if err != nil {
		return nil, err
	}
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].dir == dir {
			return &list[i], nil
		}
	}
	return nil, nil
}

const ourType = "fuse.vdbridge"

// realPath is how the kernel lists a mount on dir. The last element stays as it is: looking at a dead mount fails.
func realPath(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

// mountOn says whether a mount of ours is on dir.
func mountOn(dir string) (abs string, ours bool, err error) {
	if abs, err = realPath(dir); err != nil {
		return "", false, err
	}
	m, err := findMount(abs)
	return abs, err == nil && m != nil && m.fstype == ourType, err
}

// Unmount ends what Mount, MountTree or MountContents show in dir, and waits until what lies below has been taken away too. It fails if it is in use, and if something
// else is mounted there.
func Unmount(ctx context.Context, dir string) error {
	abs, err := realPath(dir)
	if err != nil {
		return &Error{Classify(err), fmt.Sprintf("umount %s: %v", dir, rootCause(err)), err}
	}
	m, err := findMount(abs)
	if err != nil {
		return fmt.Errorf("umount: %w", err)
	}
	below := "" // the mount that serves the one on dir
	switch {
	case m == nil:
	case m.fstype == ourType:
		// A file system inside of it comes first.
		if list, err := mountsOver(abs); err == nil && len(list) > 0 {
			return &Error{ClassBusy, fmt.Sprintf("%s is in use: the file system in it is mounted on %s; unmount that first", dir, list[0].dir), unix.EBUSY}
		}
	default:
		below = servedBy(m)
	}
	if m == nil || m.fstype != ourType && below == "" {
		return &Error{ClassNotFound, fmt.Sprintf("nothing of vdbridge is mounted on %s", dir), syscall.EINVAL}
	}
	if err := unmountOne(ctx, abs, dir); err != nil {
		return err
	}
	if below == "" {
		return nil
	}
	// Whoever serves it sees that it is gone, and ends. What was written is durable when that mount is away.
	return waitUnmounted(ctx, below)
}

func unmountOne(ctx context.Context, abs, dir string) error {
	err := unix.Unmount(abs, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EPERM) {
		// Who mounted with the help of fusermount3 unmounts with it too.
		out, herr := exec.CommandContext(ctx, "fusermount3", "-u", "--", abs).CombinedOutput()
		switch {
		case herr == nil:
			return nil
		case strings.Contains(string(out), "busy"):
			err = unix.EBUSY
		default:
			return fmt.Errorf("umount %s: %s: %w", dir, strings.TrimSpace(string(out)), herr)
		}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		return &Error{ClassBusy, fmt.Sprintf("%s is in use: unmount what stands on it, and leave the directory, first", dir), err}
	}
	return &Error{Classify(err), fmt.Sprintf("umount %s: %v", dir, err), err}
}

// unmountPatience is how long Unmount waits for the process that served the mount.
const unmountPatience = time.Minute

func waitUnmounted(ctx context.Context, dir string) error {
	end := time.NewTimer(unmountPatience)
	defer end.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if m, err := findMount(dir); err != nil || m == nil || m.fstype != ourType {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-end.C:
			return &Error{ClassBusy, fmt.Sprintf("the disk is still shown in %s: something else uses it", dir), unix.EBUSY}
		}
	}
}

// loopBacking is the file that a loop device shows, "" if it is none.
func loopBacking(device string) string {
	b, err := os.ReadFile("/sys/dev/block/" + device + "/loop/backing_file")
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), " (deleted)")
}

// deviceNumber is the major:minor of a device file, for file systems that have a number of their own (btrfs).
func deviceNumber(path string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return ""
	}
	return strconv.Itoa(int(unix.Major(st.Rdev))) + ":" + strconv.Itoa(int(unix.Minor(st.Rdev)))
}

// backingOf is the file below a mounted loop device.
func (m *mountEntry) backingOf() string {
	if f := loopBacking(m.device); f != "" {
		return f
	}
	if strings.HasPrefix(m.source, "/dev/") {
		if n := deviceNumber(m.source); n != "" {
			return loopBacking(n)
		}
	}
	return ""
}

// servedBy is the mount of ours whose file m stands on by a loop device, "" if there is none.
func servedBy(m *mountEntry) string {
	file := m.backingOf()
	if file == "" {
		return ""
	}
	list, err := mounts()
	if err != nil {
		return ""
	}
	best := ""
	for _, o := range list {
		if o.fstype == ourType && strings.HasPrefix(file, o.dir+"/") && len(o.dir) > len(best) {
			best = o.dir
		}
	}
	return best
}

// mountsOver are the mounts that stand on files below dir by loop devices, the newest first.
func mountsOver(dir string) (over []mountEntry, err error) {
	list, err := mounts()
	if err != nil {
		return nil, err
	}
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].dir != dir && strings.HasPrefix(list[i].backingOf(), dir+"/") {
			over = append(over, list[i])
		}
	}
	return over, nil
}

// cleanStale takes away a dead mount of ours, and before it what stood on it: the file systems and the loop devices. What was not flushed when its process was killed
// is lost already.
func cleanStale(dir string) error {
	over, err := mountsOver(dir)
	if err != nil {
		return fmt.Errorf("clean up %s: %w", dir, err)
	}
	for _, m := range over {
		if err := unix.Unmount(m.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return &Error{Classify(err), fmt.Sprintf("the file system on %s stood on a disk whose vdbridge was killed, and cannot be unmounted: %v", m.dir, err), err}
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		b, err := os.ReadFile(l)
		if err != nil || !strings.HasPrefix(string(b), dir+"/") {
			continue
		}
		if f, err := os.Open("/dev/" + filepath.Base(filepath.Dir(filepath.Dir(l)))); err == nil {
			_ = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
			f.Close()
		}
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		if out, herr := exec.Command("fusermount3", "-u", "-z", "--", dir).CombinedOutput(); herr != nil {
			return &Error{Classify(err), fmt.Sprintf("the mount on %s belongs to a vdbridge that was killed, and cannot be taken away: %v %s", dir, err, strings.TrimSpace(string(out))), err}
		}
	}
	return nil
}
