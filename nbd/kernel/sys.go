package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Sys is what the kernel shows of its devices in /sys, /proc and /dev. Root is where those are; the zero value is this machine.
type Sys struct{ Root string }

func (s Sys) path(format string, args ...any) string {
	return filepath.Join("/", s.Root, fmt.Sprintf(format, args...))
}

// Node is the path of a device.
func (s Sys) Node(index int) string { return s.path("dev/nbd%d", index) }

// ParseNode is the reverse of Node: it takes /dev/nbd3 and nbd3.
func ParseNode(node string) (index int, err error) {
	digits, ok := strings.CutPrefix(strings.TrimPrefix(node, "/dev/"), "nbd")
	index, aerr := strconv.Atoi(digits)
	if !ok || aerr != nil || index < 0 || index > 1<<16 || strconv.Itoa(index) != digits {
		return 0, fmt.Errorf("%q is not an nbd device, such as /dev/nbd0", node)
	}
	return index, nil
}

// HasDriver says whether the driver is loaded or built in.
func (s Sys) HasDriver() bool {
	for _, p := range []string{"sys/module/nbd", "sys/block/nbd0"} {
		if _, err := os.Stat(s.path("%s", p)); err == nil {
			return true
		}
	}
	return false
}

// List has the numbers of all devices, connected or not.
func (s Sys) List() []int {
	entries, _ := os.ReadDir(s.path("sys/block"))
	var list []int
	for _, e := range entries {
		if i, err := ParseNode(e.Name()); err == nil {
			list = append(list, i)
		}
	}
	slices.Sort(list)
	return list
}

func (s Sys) attr(index int, name string) (string, error) {
	b, err := os.ReadFile(s.path("sys/block/nbd%d/%s", index, name))
	return strings.TrimSpace(string(b)), err
}

// Connected says whether a device has been connected, by whomever, and not disconnected since.
func (s Sys) Connected(index int) bool {
	_, err := s.attr(index, "pid")
	return err == nil
}

// Backend is the identifier that a device was connected with, "" if there is none (or the kernel is older than 5.14).
func (s Sys) Backend(index int) string {
	v, _ := s.attr(index, "backend")
	return v
}

// KeepsBackends says whether the kernel shows identifiers, as far as that can be seen: some connected device has one.
func (s Sys) KeepsBackends() bool {
	for _, i := range s.List() {
		if _, err := s.attr(i, "backend"); err == nil {
			return true
		}
	}
	return false
}

// Size is the size of a device in bytes.
func (s Sys) Size(index int) (int64, error) {
	v, err := s.attr(index, "size")
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 || n > 1<<54 {
		return 0, fmt.Errorf("nbd%d has a size of %q sectors", index, v)
	}
	return n << 9, nil
}

// InFlight is how many reads and writes of a device wait for their end.
func (s Sys) InFlight(index int) (n int) {
	v, _ := s.attr(index, "inflight")
	for _, f := range strings.Fields(v) {
		k, _ := strconv.Atoi(f)
		n += k
	}
	return n
}

// Partitions are the names of a device's partitions, such as nbd0p1.
func (s Sys) Partitions(index int) []string {
	dirs, _ := filepath.Glob(s.path("sys/block/nbd%d/nbd%dp*/partition", index, index))
	var names []string
	for _, d := range dirs {
		names = append(names, filepath.Base(filepath.Dir(d)))
	}
	slices.Sort(names)
	return names
}

// Tuning are settings of a device's queue. Zero values are left alone.
type Tuning struct {
	MaxSectorsKB int    // largest request, KiB
	ReadAheadKB  int    // KiB
	Scheduler    string // such as "none"
}

// Tune sets what can be set. The error lists what could not; the device works all the same.
func (s Sys) Tune(index int, t Tuning) error {
	var errs []error
	set := func(name, value string) {
		if err := os.WriteFile(s.path("sys/block/nbd%d/queue/%s", index, name), []byte(value), 0); err != nil {
			errs = append(errs, fmt.Errorf("nbd%d %s = %s: %w", index, name, value, err))
		}
	}
	if t.MaxSectorsKB > 0 {
		n := t.MaxSectorsKB
		if v, err := s.attr(index, "queue/max_hw_sectors_kb"); err == nil {
			if most, err := strconv.Atoi(v); err == nil {
				n = min(n, most)
			}
		}
		set("max_sectors_kb", strconv.Itoa(n))
	}
	if t.ReadAheadKB > 0 {
		set("read_ahead_kb", strconv.Itoa(t.ReadAheadKB))
	}
	if t.Scheduler != "" {
		set("scheduler", t.Scheduler)
	}
	if v, err := s.attr(index, "queue/rotational"); err == nil && v != "0" {
		set("rotational", "0")
	}
	return errors.Join(errs...)
}

// Rescan has the kernel read the partition table. Only a device that nobody uses can be read again.
func (s Sys) Rescan(index int) error {
	f, err := os.Open(s.Node(index))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKRRPART, 0); err != nil {
		return fmt.Errorf("nbd%d: read the partition table: %w", index, err)
	}
	return nil
}

// Settle waits until udev, if it runs, has made the links of the devices that there are.
func (s Sys) Settle(ctx context.Context) error {
	if _, err := os.Stat(s.path("run/udev/control")); err != nil {
		return nil
	}
	path, err := exec.LookPath("udevadm")
	if err != nil {
		return nil
	}
	if out, err := exec.CommandContext(ctx, path, "settle", "--timeout=10").CombinedOutput(); err != nil {
		return fmt.Errorf("udevadm settle: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
