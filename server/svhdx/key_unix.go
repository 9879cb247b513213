//go:build unix

package svhdx

import (
	"os"
	"syscall"
)

// fileKey tells files apart, whatever their names.
type fileKey struct{ dev, ino uint64 }

func keyOf(path string) (fileKey, error) {
	st, err := os.Stat(path)
	if err != nil {
		return fileKey{}, err
	}
	if st.IsDir() {
		return fileKey{}, &os.PathError{Op: "open", Path: path, Err: syscall.EISDIR}
	}
	sys := st.Sys().(*syscall.Stat_t)
	return fileKey{uint64(sys.Dev), sys.Ino}, nil
}
