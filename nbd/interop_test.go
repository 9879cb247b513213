package nbd

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vdbridge/test/ramdisk"
)

// tool finds another project's program. CI sets VDBRIDGE_REQUIRE_TOOLS, so that nothing is skipped there.
func tool(t *testing.T, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		for _, dir := range []string{"/usr/sbin", "/sbin"} {
			if q := filepath.Join(dir, name); exec.Command("test", "-x", q).Run() == nil {
				return q
			}
		}
		if os.Getenv("VDBRIDGE_REQUIRE_TOOLS") == "1" {
			t.Fatalf("%s is not installed", name)
		}
		t.Skipf("SKIPPED: %s is not installed, so nobody else has judged this", name)
	}
	return p
}

func runTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool(t, name), args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &errs)
	}
	return string(out)
}

func uri(ts *testServer, export string) string {
	if a, ok := ts.addr.(*net.UnixAddr); ok {
		return "nbd+unix:///" + export + "?socket=" + a.Name
	}
	return "nbd://" + ts.addr.String() + "/" + export
}

// filled is a disk with data, holes and zeros.
func filled(t *testing.T, size int64) *ramdisk.Disk {
	d := ramdisk.New(size, 512)
	for off := int64(0); off+(1<<20) <= size; off += 3 << 20 {
		if err := d.Write(t.Context(), pattern(1<<20, byte(off>>20)), off, false); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func image(t *testing.T, d *ramdisk.Disk) []byte {
	p := make([]byte, d.Size())
	if err := d.Read(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNbdinfo(t *testing.T) {
	d := filled(t, 16<<20)
	ts := startServer(t, Config{Resolver: Exports{{Name: "disk", Description: "a disk", Disk: d}, {Name: "ro", Disk: d, ReadOnly: true}}})
	var info struct {
		Protocol string
		Exports  []map[string]any
	}
	if err := json.Unmarshal([]byte(runTool(t, "nbdinfo", "--json", uri(ts, "disk"))), &info); err != nil {
		t.Fatal(err)
	}
	x := info.Exports[0]
	for k, want := range map[string]any{"export-size": 16777216.0, "is_read_only": false, "can_flush": true, "can_fua": true, "can_trim": true,
		"can_zero": true, "can_fast_zero": true, "can_df": true, "can_multi_conn": true, "can_cache": true, "is_rotational": false,
		"block_size_minimum": 512.0, "block_size_preferred": 4096.0, "block_size_maximum": 33554432.0, "description": "a disk"} {
		if x[k] != want {
			t.Errorf("%s is %v, want %v", k, x[k], want)
		}
	}
	out := runTool(t, "nbdinfo", "--list", "--json", uri(ts, ""))
	if !strings.Contains(out, `"export-name": "disk"`) || !strings.Contains(out, `"export-name": "ro"`) {
		t.Errorf("list: %s", out)
	}
	got := strings.Fields(runTool(t, "nbdinfo", "--map", uri(ts, "disk")))
	want := strings.Fields(`0 1048576 0 data  1048576 2097152 3 hole,zero  3145728 1048576 0 data  4194304 2097152 3 hole,zero  6291456 1048576 0 data
		7340032 2097152 3 hole,zero 9437184 1048576 0 data  10485760 2097152 3 hole,zero  12582912 1048576 0 data 13631488 2097152 3 hole,zero
		15728640 1048576 0 data`)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("map: %v", got)
	}
}

// sized is a disk with block sizes of its own.
type sized struct {
	*ramdisk.Disk
	logical, physical, optimal int
}

func (d sized) BlockSizes() (l, p, o, m int) { return d.logical, d.physical, d.optimal, 0 }

// The preferred block is never below a page, and as large as the disk says.
func TestNbdinfoPreferredBlock(t *testing.T) {
	for _, c := range []struct{ logical, physical, optimal, want int }{
		{512, 512, 0, 4096}, {1, 1, 0, 4096}, {4096, 4096, 0, 4096}, {512, 16384, 0, 16384}, {512, 4096, 65536, 65536}, {512, 4096, 3 << 20, 4096}, {512, 4096, 48 << 10, 4096},
	} {
		ts := startServer(t, Config{Resolver: Exports{{Name: "disk", Disk: sized{ramdisk.New(1<<20, 512), c.logical, c.physical, c.optimal}}}})
		var info struct{ Exports []map[string]any }
		if err := json.Unmarshal([]byte(runTool(t, "nbdinfo", "--json", uri(ts, "disk"))), &info); err != nil {
			t.Fatal(err)
		}
		if x := info.Exports[0]; x["block_size_preferred"] != float64(c.want) || x["block_size_minimum"] != float64(c.logical) {
			t.Errorf("%+v: minimum %v, preferred %v", c, x["block_size_minimum"], x["block_size_preferred"])
		}
	}
}

func TestNbdcopyBothWays(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		for _, hook := range []ramdisk.Hook{nil, busyHook} {
			src := filled(t, 32<<20)
			src.SetHook(hook)
			dst := ramdisk.New(32<<20, 512)
			dst.SetHook(hook)
			cfg := Config{Resolver: Exports{{Name: "src", Disk: src}, {Name: "dst", Disk: dst}}}
			var ts *testServer
			if network == "unix" {
				ts = startServer(t, cfg)
			} else {
				ts = startServer(t, cfg, network)
			}
			file := filepath.Join(t.TempDir(), "image")
			runTool(t, "nbdcopy", uri(ts, "src"), file)
			b, err := os.ReadFile(file)
			if err != nil || !bytes.Equal(b, image(t, src)) {
				t.Errorf("%s: the copy differs (%v)", network, err)
			}
			runTool(t, "nbdcopy", "--flush", file, uri(ts, "dst"))
			if !bytes.Equal(image(t, dst), b) {
				t.Errorf("%s: the copy back differs", network)
			}
			runTool(t, "nbdcopy", uri(ts, "src"), uri(ts, "dst"))
			if dst.Allocated() > src.Allocated() {
				t.Errorf("the copy has %d bytes, its source %d: zeros were written as data", dst.Allocated(), src.Allocated())
			}
		}
	}
}

func TestQemuImg(t *testing.T) {
	d := filled(t, 32<<20)
	dst := ramdisk.New(32<<20, 512)
	ts := startServer(t, Config{Resolver: Exports{{Name: "src", Disk: d}, {Name: "dst", Disk: dst}}})
	dir := t.TempDir()
	qcow := filepath.Join(dir, "image.qcow2")
	runTool(t, "qemu-img", "convert", "-O", "qcow2", uri(ts, "src"), qcow)
	runTool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow, uri(ts, "src"))
	runTool(t, "qemu-img", "convert", "-n", "-O", "raw", qcow, uri(ts, "dst"))
	runTool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri(ts, "src"), uri(ts, "dst"))
	var extents []struct {
		Start, Length int64
		Zero, Data    bool
	}
	if err := json.Unmarshal([]byte(runTool(t, "qemu-img", "map", "--output=json", "-f", "raw", uri(ts, "src"))), &extents); err != nil {
		t.Fatal(err)
	}
	if len(extents) < 20 || extents[0].Zero || !extents[0].Data || extents[0].Length != 1<<20 || !extents[1].Zero {
		t.Errorf("map: %+v", extents)
	}
}

func TestQemuIO(t *testing.T) {
	d := ramdisk.New(32<<20, 512)
	ts := startServer(t, oneDisk(d))
	out := runTool(t, "qemu-io", "-f", "raw", "-c", "write -P 0xab 0 1M", "-c", "write -z 64k 64k", "-c", "write -f -P 0xcd 2M 4k", "-c", "discard 128k 64k",
		"-c", "flush", "-c", "read -P 0xab 0 64k", "-c", "read -P 0 64k 64k", "-c", "read -P 0xcd 2M 4k", "-c", "aio_write -P 1 4M 8M", "-c", "aio_flush",
		"-c", "read -P 1 4M 8M", uri(ts, "disk"))
	if strings.Contains(out, "failed") || strings.Contains(out, "error") {
		t.Error(out)
	}
	if d.Flushes() == 0 || d.FUAs() == 0 {
		t.Errorf("%d flushes, %d FUA writes", d.Flushes(), d.FUAs())
	}
}

func TestFioVerify(t *testing.T) {
	for _, hook := range []ramdisk.Hook{nil, slowHook} {
		d := ramdisk.New(64<<20, 512)
		d.SetHook(hook)
		ts := startServer(t, oneDisk(d))
		size := "64m"
		if hook != nil {
			size = "4m"
		}
		t.Chdir(t.TempDir()) // fio leaves a file behind
		runTool(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+uri(ts, "disk"), "--rw=randwrite", "--bsrange=512-128k", "--bs_unaligned=0", "--blockalign=512",
			"--iodepth=32", "--size="+size, "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0")
	}
}

func TestNbdClientList(t *testing.T) {
	ts := startServer(t, Config{Resolver: Exports{{Name: "first", Disk: ramdisk.New(1<<20, 512)}, {Name: "second", Disk: ramdisk.New(1<<20, 512)}}}, "tcp")
	host, port, _ := net.SplitHostPort(ts.addr.String())
	out := runTool(t, "nbd-client", "-l", host, port)
	if !strings.Contains(out, "first") || !strings.Contains(out, "second") {
		t.Errorf("list: %q", out)
	}
}

// TestClientWithoutFlags sends no handshake flags at all, then options nevertheless.
func TestClientWithoutFlags(t *testing.T) {
	ts := startServer(t, oneDisk(ramdisk.New(1<<20, 512)))
	r := dial(t, ts)
	r.greet(0)
	r.must(optInfo, infoData("disk", infoBlockSize), repAck)
	r.must(optGo, infoData("disk", infoBlockSize), repAck)
	r.write(0, pattern(4096, 1))
	r.alive()
	r.bye()
}

// TestNbdinfoOverTLS has GnuTLS, through libnbd, upgrade the connection.
func TestNbdinfoOverTLS(t *testing.T) {
	server, _ := testCertificate(t)
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificates[0].Certificate[0]})
	if err := os.WriteFile(filepath.Join(dir, "ca-cert.pem"), ca, 0o644); err != nil {
		t.Fatal(err)
	}
	cfg := oneDisk(filled(t, 8<<20))
	cfg.TLS, cfg.RequireTLS = server, true
	ts := startServer(t, cfg, "tcp")
	_, port, _ := net.SplitHostPort(ts.addr.String())
	base := "nbds://localhost:" + port + "/disk?tls-certificates=" + dir
	out := runTool(t, "nbdinfo", "--json", base)
	if !strings.Contains(out, `"TLS": true`) || !strings.Contains(out, `"export-size": 8388608`) {
		t.Error(out)
	}
	file := filepath.Join(dir, "copy")
	runTool(t, "nbdcopy", base, file)
	if b, err := os.ReadFile(file); err != nil || len(b) != 8<<20 || !bytes.Equal(b[:1<<20], pattern(1<<20, 0)) {
		t.Errorf("the copy differs (%v)", err)
	}
}
