package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

var units = []struct {
	suffix string
	factor int64
}{
	{"", 1}, {"B", 1}, {"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40},
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
}

// parseSize reads a number of bytes: 10G and 10GiB are 10·2³⁰, 10GB is 10·10⁹, 1.5T works.
func parseSize(s string) (int64, error) {
	i := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	num, suffix := s, ""
	if i >= 0 {
		num, suffix = s[:i], strings.TrimSpace(s[i:])
	}
	for _, u := range units {
		if !strings.EqualFold(u.suffix, suffix) {
			continue
		}
		if n, err := strconv.ParseInt(num, 10, 64); err == nil {
			if n > math.MaxInt64/u.factor {
				return 0, usage("the size %q is too large", s)
			}
			return n * u.factor, nil
		}
		f, err := strconv.ParseFloat(num, 64)
		v := f * float64(u.factor)
		if err != nil || v != math.Trunc(v) || v >= 1<<62 {
			break
		}
		return int64(v), nil
	}
	return 0, usage("%q is not a size; write for example 512M, 10G or 1.5T", s)
}

// formatSize prints bytes for people.
func formatSize(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.size {
			return strings.TrimSuffix(strconv.FormatFloat(float64(n)/float64(u.size), 'f', 1, 64), ".0") + " " + u.name
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
