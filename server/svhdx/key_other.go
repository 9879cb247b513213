//go:build !unix

package svhdx

import (
	"os"
	"path/filepath"
	"syscall"
)

// fileKey tells files apart by their names.
type fileKey struct{ path string }

func keyOf(path string) (fileKey, error) {
	st, err := os.Stat(path)
	if err != nil {
		return fileKey{}, err
	}
	if st.IsDir() {
		return fileKey{}, &os.PathError{Op: "open", Path: path, Err: syscall.EISDIR}
	}
	p, err := filepath.EvalSymlinks(path)
	return fileKey{p}, err
}
