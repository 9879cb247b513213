package soak

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"vdbridge/test/lab"
)

const (
	duration = "VDBRIDGE_SOAK"

	diskMiB = 256
	// Memory may grow by so much after the first round: buffers in flight, and the garbage collector's freedom.
	growthMiB = 96
)

func TestSoak(t *testing.T) {
	lab.Need(t, "qemu-img", "fio")
	length, part := time.Second, "8M" // one round
	if v := os.Getenv(duration); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			t.Fatalf("%s: %v", duration, err)
		}
		length, part = d, "96M"
	}
	dir := t.TempDir()
	disks := filepath.Join(dir, "disks")
	if err := os.Mkdir(disks, 0o755); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(disks, "shared.vhdx")
	if _, err := lab.Run(t.Context(), "qemu-img", "create", "-q", "-f", "vhdx", "-o", "subformat=dynamic", image, fmt.Sprintf("%dM", diskMiB)); err != nil {
		t.Fatal(err)
	}
	vd, err := lab.NewProgram(lab.Vdbridge(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	server, addr, err := vd.Serve(t.Context(), disks, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	programs := []*lab.Proc{server}
	var uris []string
	for i, io := range []string{"smb", "scsi"} { // one initiator on each data path
		name := fmt.Sprintf("node%d", i)
		p, uri, err := vd.NBD(t.Context(), lab.URL(addr, "shared.vhdx"), filepath.Join(dir, name), "--mode", "rsvd", "--io", io, "--initiator", name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Kill)
		programs, uris = append(programs, p), append(uris, uri)
	}

	// fio writes or verifies a half of the disk through an export. The same seed makes the same blocks.
	fio := func(uri string, half int, seed int, more ...string) *lab.Proc {
		t.Helper()
		path, err := lab.Look("fio")
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path, append([]string{"--name=soak", "--ioengine=nbd", "--uri=" + uri, "--rw=randwrite", "--bsrange=4k-128k", "--iodepth=24", "--allrandrepeat=1",
			fmt.Sprintf("--randseed=%d", seed), fmt.Sprintf("--offset=%dM", half*diskMiB/2), "--size=" + part, "--verify=crc32c", "--verify_fatal=1",
			"--verify_state_save=0"}, more...)...)
		cmd.Dir = dir
		p, err := lab.Start(cmd, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Kill)
		return p
	}
	wait := func(what string, ps ...*lab.Proc) {
		t.Helper()
		for _, p := range ps {
			if err := p.Wait(t.Context()); err != nil {
				t.Fatalf("%s: %v\nserver:\n%s\nexports:\n%s%s", what, err, server.Output(), programs[1].Output(), programs[2].Output())
			}
		}
	}

	var memory, files []int64
	end := time.Now().Add(length)
	for round := 0; round == 0 || time.Now().Before(end); round++ {
		seed := 1000 + round
		wait("write and verify", fio(uris[0], 0, seed), fio(uris[1], 1, seed))
		wait("verify through the other initiator", fio(uris[1], 0, seed, "--verify_only"), fio(uris[0], 1, seed, "--verify_only"))
		if round == 0 {
			for _, p := range programs {
				memory, files = append(memory, resident(t, p)), append(files, openFiles(t, p))
			}
		}
		t.Logf("round %d verified", round)
	}
	for i, p := range programs {
		if now := resident(t, p); now > memory[i]+growthMiB<<20 {
			t.Errorf("the memory of program %d grew from %d to %d MiB", i, memory[i]>>20, now>>20)
		}
		if now := openFiles(t, p); now > files[i]+4 {
			t.Errorf("program %d had %d open files after the first round and has %d now", i, files[i], now)
		}
	}
	for i := len(programs) - 1; i >= 0; i-- {
		if err := programs[i].Stop(20 * time.Second); err != nil {
			t.Error(err)
		}
	}
	if _, err := lab.Run(t.Context(), "qemu-img", "check", "-f", "vhdx", image); err != nil {
		t.Error(err)
	}
}

// resident is the memory of the program, in bytes.
func resident(t *testing.T, p *lab.Proc) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n * int64(os.Getpagesize())
}

func openFiles(t *testing.T, p *lab.Proc) int64 {
	t.Helper()
	e, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	return int64(len(e))
}
