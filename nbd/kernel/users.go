package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Use is somebody who uses a device or one of its partitions.
type Use struct {
	Device string `json:"device"` // nbd0, nbd0p1
	How    string `json:"how"`    // mounted, swap, holder, opened
	Where  string `json:"where"`  // the directory, the device on top, or the process
}

// String is for people.
func (u Use) String() string {
	switch u.How {
	case "mounted":
		return u.Device + " is mounted on " + u.Where
	case "swap":
		return u.Device + " is swap space"
	case "holder":
		return u.Device + " is part of " + u.Where
	case "exclusive":
		return u.Device + " is claimed by " + u.Where
	}
	return u.Device + " is open in " + u.Where
}

// names of a device and its partitions by device number, as procfs prints it.
func (s Sys) numbers(index int) map[string]string {
	m := map[string]string{}
	whole := fmt.Sprintf("nbd%d", index)
	if v, err := s.attr(index, "dev"); err == nil {
		m[v] = whole
	}
	for _, p := range s.Partitions(index) {
		if v, err := s.attr(index, p+"/dev"); err == nil {
			m[v] = p
		}
	}
	return m
}

// Users lists who uses a device: mounts in every mount namespace that can be seen, swap, devices on top, and processes other than
// this one that have it open. It is a look at a moment: whoever must be sure takes the device for himself (Claim).
func (s Sys) Users(index int) []Use {
	numbers := s.numbers(index)
	names := map[string]bool{}
	var uses []Use
	add := func(u Use) {
		if !slices.Contains(uses, u) {
			uses = append(uses, u)
		}
	}
	for _, name := range numbers {
		names[name] = true
		dir := s.path("sys/block/nbd%d/%s/holders", index, name)
		if name == fmt.Sprintf("nbd%d", index) {
			dir = s.path("sys/block/nbd%d/holders", index)
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			add(Use{name, "holder", e.Name()})
		}
	}
	if b, err := os.ReadFile(s.path("proc/swaps")); err == nil {
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 0 && names[strings.TrimPrefix(f[0], "/dev/")] {
				add(Use{strings.TrimPrefix(f[0], "/dev/"), "swap", ""})
			}
		}
	}
	seen := map[string]bool{} // mount namespaces
	procs, _ := filepath.Glob(s.path("proc/[0-9]*"))
	for _, p := range procs {
		if ns, err := os.Readlink(p + "/ns/mnt"); err != nil || !seen[ns] {
			seen[ns] = err == nil
			if b, err := os.ReadFile(p + "/mountinfo"); err == nil {
				for _, u := range mountUses(string(b), numbers, names) {
					add(u)
				}
			}
		}
		if filepath.Base(p) != strconv.Itoa(os.Getpid()) {
			s.openIn(p, numbers, add)
		}
	}
	return uses
}

// mountUses finds the mounts of devices in a mountinfo file. Of some file systems (btrfs) the number is not the device's, so the source counts as well.
// proc(5)
func mountUses(info string, numbers map[string]string, names map[string]bool) (uses []Use) {
	for line := range strings.Lines(info) {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 2 {
			continue
		}
		name, ok := numbers[f[2]]
		if source := strings.TrimPrefix(g[1], "/dev/"); !ok && names[source] {
			name, ok = source, true
		}
		if ok {
			uses = append(uses, Use{name, "mounted", unescape(f[4])})
		}
	}
	return uses
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// openIn finds a process's open devices.
func (s Sys) openIn(proc string, numbers map[string]string, add func(Use)) {
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return
	}
	for _, fd := range fds {
		path := filepath.Join(proc, "fd", fd.Name())
		if target, err := os.Readlink(path); err != nil || !strings.HasPrefix(target, "/") {
			continue // sockets and pipes, which are most
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			continue
		}
		name, ok := numbers[fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))]
		if !ok {
			continue
		}
		comm, _ := os.ReadFile(proc + "/comm")
		add(Use{name, "opened", fmt.Sprintf("process %s (%s)", filepath.Base(proc), strings.TrimSpace(string(comm)))})
	}
}

// Claim is a device that nobody else can mount, swap on, or build on.
type Claim struct{ f *os.File }

// Claim takes a device, whole, for the caller. ErrBusy: it or a partition is mounted or otherwise claimed.
func (s Sys) Claim(index int) (*Claim, error) {
	f, err := os.OpenFile(s.Node(index), os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, wrap(fmt.Sprintf("nbd%d", index), ErrBusy, err)
	}
	if err != nil {
		return nil, err
	}
	return &Claim{f}, nil
}

// Flush writes what the kernel has cached of the device to it, has the device make it durable, and drops the cache.
func (c *Claim) Flush() error {
	if err := c.f.Sync(); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(int(c.f.Fd()), unix.BLKFLSBUF, 0); err != nil && err != unix.ENOTTY { // a file, as tests have it
		return fmt.Errorf("drop the cache of %s: %w", c.f.Name(), err)
	}
	return nil
}

// ForgetPartitions takes the device's partitions away, so that they do not outlive it as names of nothing.
func (c *Claim) ForgetPartitions(names []string) error {
	var errs []error
	for _, n := range names {
		i := strings.LastIndexByte(n, 'p')
		number, err := strconv.Atoi(n[i+1:])
		if err != nil {
			continue
		}
		p := unix.BlkpgPartition{Pno: int32(number)}
		arg := unix.BlkpgIoctlArg{Op: unix.BLKPG_DEL_PARTITION, Datalen: int32(unsafe.Sizeof(p)), Data: (*byte)(unsafe.Pointer(&p))}
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, c.f.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); e != 0 && e != unix.ENXIO {
			errs = append(errs, fmt.Errorf("forget %s: %w", n, e))
		}
	}
	return errors.Join(errs...)
}

// Close lets the device go.
func (c *Claim) Close() error { return c.f.Close() }
