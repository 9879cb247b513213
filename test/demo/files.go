package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// copyTree copies the regular files of the trees below src to dst and returns their hashes by relative path, and their bytes.
func copyTree(dst, src string, trees []string) (map[string]string, int64, error) {
	files, total := make(map[string]string), int64(0)
	for _, tree := range trees {
		err := filepath.WalkDir(filepath.Join(src, tree), func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			rel, err := filepath.Rel(src, path)
			if err != nil {
				return err
			}
			to := filepath.Join(dst, rel)
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			sum, n, err := copyFile(to, path)
			files[rel] = sum
			total += n
			return err
		})
		if err != nil {
			return nil, 0, err
		}
	}
	return files, total, nil
}

func copyFile(dst, src string) (sum string, n int64, err error) {
	in, err := os.Open(src)
	if err != nil {
		return "", 0, err
	}
	defer in.Close()
	out, err := os.Create(dst)
	if err != nil {
		return "", 0, err
	}
	h := sha256.New()
	n, err = io.Copy(io.MultiWriter(out, h), in)
	return hex.EncodeToString(h.Sum(nil)), n, errors.Join(err, out.Close())
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, bufio.NewReaderSize(f, 256<<10)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// compareTree reads every file below root and says what differs from want: changed, missing or surplus files.
func compareTree(root string, want map[string]string) error {
	seen := make(map[string]bool)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		seen[rel] = true
		sum, err := hashFile(path)
		if err != nil {
			return err
		}
		switch w, ok := want[rel]; {
		case !ok:
			return fmt.Errorf("%s should not be there", rel)
		case w != sum:
			return fmt.Errorf("%s is not what was written", rel)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for rel := range want {
		if !seen[rel] {
			return fmt.Errorf("%s is missing", rel)
		}
	}
	return nil
}

// sumsFile writes the hashes in the form that sha256sum -c reads.
func sumsFile(path string, files map[string]string) error {
	lines := make([]string, 0, len(files))
	for rel, sum := range files {
		lines = append(lines, sum+"  "+rel+"\n")
	}
	sort.Strings(lines)
	return os.WriteFile(path, []byte(strings.Join(lines, "")), 0o644)
}
