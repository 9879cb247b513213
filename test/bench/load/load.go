// Package load is what the benchmarks share: fio's nbd engine as the client, medians, processor time and memory of a server process, and
// tables in Markdown.
package load

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"vdbridge/test/lab"
)

// Job is one run of fio.
type Job struct {
	RW      string // fio's --rw: read, write, randread, randwrite
	Block   int    // bytes of each request
	Depth   int    // requests in flight
	Size    int64  // bytes of the disk that are used
	Seconds float64
	// Once goes over Size once, instead of for Seconds.
	Once bool
}

// Result is what fio measured.
type Result struct {
	IOPS float64
	P50  time.Duration // completion latency
	P99  time.Duration
}

// MiBps is the throughput of the job in MiB a second.
func (r Result) MiBps(j Job) float64 { return r.IOPS * float64(j.Block) / (1 << 20) }

// FIO runs a job on an NBD URI.
func FIO(ctx context.Context, uri string, j Job) (res Result, err error) {
	args := []string{"--name=x", "--ioengine=nbd", "--uri=" + uri, "--rw=" + j.RW, "--bs=" + strconv.Itoa(j.Block), "--output-format=json",
		"--randrepeat=0", "--norandommap", "--iodepth=" + strconv.Itoa(j.Depth), "--size=" + strconv.FormatInt(j.Size, 10)}
	if !j.Once {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%dms", int(j.Seconds*1000)))
	}
	fio, err := lab.Look("fio")
	if err != nil {
		return res, err
	}
	cmd := exec.CommandContext(ctx, fio, args...)
	cmd.Dir = os.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return res, fmt.Errorf("fio: %w\n%s", err, out)
	}
	if i := strings.IndexByte(string(out), '{'); i > 0 {
		out = out[i:] // fio says something about the connection first
	}
	type side struct {
		IOPS float64
		Clat struct {
			Percentile map[string]float64
		} `json:"clat_ns"`
	}
	var r struct {
		Jobs []struct {
			Error       int
			Read, Write side
		}
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return res, fmt.Errorf("fio's report: %w", err)
	}
	if len(r.Jobs) != 1 || r.Jobs[0].Error != 0 {
		return res, fmt.Errorf("fio failed:\n%s", out)
	}
	s := r.Jobs[0].Read
	if strings.Contains(j.RW, "write") {
		s = r.Jobs[0].Write
	}
	return Result{s.IOPS, time.Duration(s.Clat.Percentile["50.000000"]), time.Duration(s.Clat.Percentile["99.000000"])}, nil
}

// Subject is something to be measured.
type Subject struct {
	Name    string
	Measure func() (float64, error)
}

// Rounds measures each subject n times, interleaved and with a different one first each time, so that a noisy machine is noisy for
// all, and returns the medians in the order of the subjects.
func Rounds(n int, subjects []Subject) ([]float64, error) {
	all := make([][]float64, len(subjects))
	for round := range n {
		for k := range subjects {
			i := (k + round) % len(subjects)
			v, err := subjects[i].Measure()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", subjects[i].Name, err)
			}
			all[i] = append(all[i], v)
		}
	}
	medians := make([]float64, len(subjects))
	for i, v := range all {
		medians[i] = Median(v)
	}
	return medians, nil
}

// Median returns the middle of v, which must not be empty.
func Median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	if len(v)%2 == 0 {
		return (v[len(v)/2-1] + v[len(v)/2]) / 2
	}
	return v[len(v)/2]
}

// Row prints a row of a Markdown table.
func Row(cells ...any) {
	var b strings.Builder
	b.WriteString("|")
	for _, c := range cells {
		switch c := c.(type) {
		case float64:
			switch {
			case c >= 100:
				fmt.Fprintf(&b, " %.0f |", c)
			default:
				fmt.Fprintf(&b, " %.2f |", c)
			}
		default:
			fmt.Fprintf(&b, " %v |", c)
		}
	}
	fmt.Println(b.String())
}

// Head prints the head of a Markdown table; all but the first column are numbers.
func Head(cells ...string) {
	fmt.Println("| " + strings.Join(cells, " | ") + " |")
	fmt.Println("| ---" + strings.Repeat(" | ---:", len(cells)-1) + " |")
}

// CPUTime is the processor time that a process has used.
func CPUTime(pid int) time.Duration {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * (time.Second / 100) // USER_HZ is 100 on Linux
}

// PeakMemory is the largest resident memory that a process has had, in bytes.
func PeakMemory(pid int) (int64, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0, err
	}
	for _, l := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(l, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmHWM", pid)
}

// MemoryDir makes a temporary folder for images, in memory if this machine has a file system for that: on a disk's file system a large part of a small
// write's time is the kernel's own work on its page cache, which is the same for everyone and hides what is to be compared.
func MemoryDir(pattern string) (string, error) {
	if dir, err := os.MkdirTemp("/dev/shm", pattern); err == nil {
		return dir, nil
	}
	return os.MkdirTemp("", pattern)
}
