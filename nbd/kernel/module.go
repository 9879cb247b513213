package kernel

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Load loads the module nbd unless the driver is there. The error is ErrNoDriver with a sentence that says how to get it.
func Load() error {
	if (Sys{}).HasDriver() {
		return nil
	}
	path := ""
	for _, p := range []string{"modprobe", "/usr/sbin/modprobe", "/sbin/modprobe"} {
		if q, err := exec.LookPath(p); err == nil {
			path = q
			break
		}
	}
	why := "modprobe is not installed (package kmod)"
	if path != "" {
		out, err := exec.Command(path, "nbd").CombinedOutput()
		if err == nil {
			if (Sys{}).HasDriver() {
				return nil
			}
			why = "'modprobe nbd' did nothing"
		} else if why = strings.TrimSpace(string(out)); why == "" {
			why = err.Error()
		}
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Errorf("%w: %s; install the modules of this kernel (%s), or use a kernel with CONFIG_BLK_DEV_NBD",
		ErrNoDriver, strings.Join(strings.Fields(why), " "), strings.TrimSpace(string(release)))
}
