package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
)

const umountNoFollow = 8 // UMOUNT_NOFOLLOW

// unmount takes the file system off its directory; lazy works while it is in use.
func (m *FS) unmount(lazy bool) error {
	flags := umountNoFollow
	if lazy {
		flags |= syscall.MNT_DETACH
	}
	err := syscall.Unmount(m.dir, flags)
	if err == nil || !errors.Is(err, syscall.EPERM) {
		return err
	}
	// Not root: the helper that mounted for us also unmounts.
	helper, lookErr := exec.LookPath("fusermount3")
	if lookErr != nil {
		if helper, lookErr = exec.LookPath("fusermount"); lookErr != nil {
			return fmt.Errorf("%w (and there is no fusermount3)", err)
		}
	}
	args := []string{"-u", m.dir}
	if lazy {
		args = []string{"-uz", m.dir}
	}
	var msg bytes.Buffer
	cmd := exec.Command(helper, args...)
	cmd.Stderr = &msg
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(msg.String())
		if strings.Contains(text, "busy") {
			return syscall.EBUSY
		}
		return fmt.Errorf("%s: %w: %s", helper, err, text)
	}
	return nil
}
