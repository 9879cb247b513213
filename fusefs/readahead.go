package fusefs

import (
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// readAheadKiB is how far the kernel reads ahead of a sequential reader. Without it it would be 128 KiB, whatever FUSE agrees on: several requests have to be
// under way at once to hide the way to a server.
const readAheadKiB = 8 << 10

// readAhead raises the read-ahead of the mount, as far as we may. Without the rights reading is slower, nothing else.
func readAhead(dir string, log *slog.Logger) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return
	}
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	if err := os.WriteFile(path, fmt.Appendf(nil, "%d\n", readAheadKiB), 0); err != nil {
		log.Debug("the read-ahead stays small", "err", err)
	}
}
