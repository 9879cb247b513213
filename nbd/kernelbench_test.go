package nbd

import (
	"context"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"vdbridge/test/ramdisk"
)

const senderEnv = "VDBRIDGE_TEST_KERNEL_SENDER"

// kernelSender sends WRITEs on descriptor 3 as the kernel's driver does: the header and each page by a call of its own, four requests in flight.
func kernelSender(n int) {
	runtime.LockOSThread()
	head := (&rawClient{}).requestBytes(wireRequest{cmd: cmdWrite, length: 1 << 20}, nil)
	page := make([]byte, 4096)
	send := func() {
		if err := unix.Sendto(3, head, unix.MSG_MORE, nil); err != nil {
			panic(err)
		}
		for range 256 {
			if err := unix.Sendto(3, page, unix.MSG_MORE, nil); err != nil {
				panic(err)
			}
		}
	}
	f := os.NewFile(3, "socket")
	var reply [16]byte
	recv := func() {
		if _, err := io.ReadFull(f, reply[:]); err != nil || binary.BigEndian.Uint32(reply[4:]) != 0 {
			panic("bad reply")
		}
	}
	for i := range n {
		send()
		if i >= 4 {
			recv()
		}
	}
	for range min(n, 4) {
		recv()
	}
}

// BenchmarkKernelWrite receives WRITEs of 1 MiB that arrive in pages, as from the kernel's driver. The processor time of both sides is what to look at.
func BenchmarkKernelWrite(b *testing.B) {
	if n, err := strconv.Atoi(os.Getenv(senderEnv)); err == nil {
		kernelSender(n)
		os.Exit(0)
	}
	d := ramdisk.New(1<<20, 512)
	d.SetHook(func(context.Context, ramdisk.Op, int64, int64) error { return nil })
	srv, err := NewServer(Config{Resolver: Exports{}})
	if err != nil {
		b.Fatal(err)
	}
	defer srv.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	for _, fd := range fds {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2<<20)
	}
	far := os.NewFile(uintptr(fds[0]), "far")
	near := fileConn(b, fds[1])
	cmd := exec.Command(os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkKernelWrite$", "-test.benchtime=1x")
	cmd.Env = append(os.Environ(), senderEnv+"="+strconv.Itoa(b.N))
	cmd.ExtraFiles = []*os.File{far}
	b.SetBytes(1 << 20)
	b.ResetTimer()
	var before, after unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	far.Close()
	_ = srv.ServeKernel(near, &Export{Disk: d})
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
	us := func(r *unix.Rusage) int64 { return r.Utime.Nano() + r.Stime.Nano() }
	child := cmd.ProcessState
	b.ReportMetric(float64(us(&after)-us(&before))/float64(b.N)/1000, "µs-server/op")
	b.ReportMetric(float64((child.UserTime()+child.SystemTime()).Microseconds())/float64(b.N), "µs-sender/op")
}
