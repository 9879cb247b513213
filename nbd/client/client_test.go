package client

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vdbridge/nbd"
	"vdbridge/test/lab"
	"vdbridge/test/leak"
	"vdbridge/test/ramdisk"

	"net"
)

// kit starts nbdkit with these arguments and returns the URI of its export.
func kit(t *testing.T, args ...string) string {
	t.Helper()
	lab.Need(t, "nbdkit")
	sock := filepath.Join(t.TempDir(), "s")
	p, err := lab.Start(exec.Command("nbdkit", append([]string{"-f", "-U", sock}, args...)...), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := p.WaitListen(ctx, "unix", sock, nil); err != nil {
		t.Fatal(err)
	}
	return "nbd+unix:///?socket=" + sock
}

func open(t *testing.T, uri string, o Options) *Disk {
	t.Helper()
	d, err := Open(context.Background(), uri, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// TestAgainstAModel works on exports of nbdkit in all the ways that it knows, and on our own server, with many requests at once.
func TestAgainstAModel(t *testing.T) {
	const size = 8 << 20
	for name, args := range map[string][]string{
		"memory":         {"memory", "8M"},
		"simple replies": {"--no-sr", "memory", "8M"},
		"no extents":     {"--filter=noextents", "memory", "8M"},
		"no zeroes":      {"--filter=nozero", "memory", "8M", "zeromode=none"},
		"blocks":         {"--filter=blocksize-policy", "memory", "8M", "blocksize-minimum=4096", "blocksize-preferred=64K", "blocksize-maximum=128K", "blocksize-error-policy=error"},
		"ours":           nil,
	} {
		t.Run(name, func(t *testing.T) {
			var uri string
			if args == nil {
				uri = ours(t, ramdisk.New(size, 512))
			} else {
				uri = kit(t, args...)
			}
			leak.Check(t)
			d := open(t, uri, Options{Connections: 3})
			if d.Size() != size {
				t.Fatalf("size %d", d.Size())
			}
			unit := max(d.e.min, 512)
			ctx := context.Background()
			const workers = 4
			var wg sync.WaitGroup
			for w := range workers {
				wg.Go(func() {
					// Each has a part of its own.
					base, part := w*size/workers, size/workers
					want := make([]byte, part)
					r := rand.New(rand.NewPCG(uint64(w), 9))
					for range 50 {
						n := (1 + r.IntN(300000/unit)) * unit
						off := r.IntN((part-n)/unit+1) * unit
						at := int64(base + off)
						var err error
						switch r.IntN(5) {
						case 0:
							clear(want[off : off+n])
							err = d.WriteZeroes(ctx, at, int64(n), r.IntN(2) == 0, r.IntN(2) == 0)
						case 1, 2:
							for i := range n {
								want[off+i] = byte(r.Uint32())
							}
							err = d.Write(ctx, want[off:off+n], at, r.IntN(2) == 0)
						case 3:
							err = d.Flush(ctx)
						case 4:
							at, end := at, at+int64(n)
							err = d.Extents(ctx, at, int64(n), func(k int64, _, zero bool) bool {
								if zero && len(bytes.Trim(want[at-int64(base):at-int64(base)+k], "\x00")) > 0 {
									t.Errorf("extent of %d bytes at %d is no zeros", k, at)
								}
								at += k
								return true
							})
							if err == nil && at != end {
								t.Errorf("extents end at %d, want %d", at, end)
							}
						}
						if err != nil {
							t.Error(err)
							return
						}
						got := make([]byte, n)
						if err := d.Read(ctx, got, int64(base+off)); err != nil || !bytes.Equal(got, want[off:off+n]) {
							t.Errorf("%d bytes at %d do not read back: %v", n, base+off, err)
							return
						}
					}
				})
			}
			wg.Wait()
			if err := d.Write(ctx, make([]byte, unit), size, false); !errors.Is(err, syscall.EINVAL) {
				t.Errorf("write over the end: %v", err)
			}
		})
	}
}

// ours serves a disk with package nbd.
func ours(t *testing.T, d *ramdisk.Disk) string {
	t.Helper()
	srv, err := nbd.NewServer(nbd.Config{Resolver: nbd.Exports{{Name: "x", Disk: d}}})
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		srv.Shutdown(context.Background())
		<-done
	})
	return "nbd+unix:///x?socket=" + sock
}

func TestErrors(t *testing.T) {
	ctx := context.Background()
	d := open(t, kit(t, "--filter=error", "memory", "1M", "error-pread=ENOSPC", "error-pread-rate=100%"), Options{})
	if err := d.Read(ctx, make([]byte, 512), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("read: %v, want ENOSPC", err)
	}
	if err := d.Write(ctx, make([]byte, 512), 0, false); err != nil {
		t.Errorf("a write after a failed read: %v", err)
	}
	d = open(t, kit(t, "-r", "memory", "1M"), Options{})
	if err := d.Write(ctx, make([]byte, 512), 0, false); !d.ReadOnly() || !errors.Is(err, syscall.EROFS) {
		t.Errorf("write to a read-only export: %v", err)
	}
	if _, err := Open(ctx, ours(t, ramdisk.New(1<<20, 512))+"y", Options{}); err == nil {
		t.Error("a socket that is not there")
	}
	uri := strings.Replace(ours(t, ramdisk.New(1<<20, 512)), "/x?", "/nothing?", 1)
	if _, err := Open(ctx, uri, Options{}); err == nil || !strings.Contains(err.Error(), `does not give the export "nothing"`) {
		t.Errorf("an export that is not there: %v", err)
	}
	for _, bad := range []string{"nbds://x/", "nbd+unix:///x", "nbd:///x", "nbd+unix:///" + strings.Repeat("x", 5000) + "?socket=y", "smb://x"} {
		if _, err := ParseURI(bad); err == nil {
			t.Errorf("%.40s was taken", bad)
		}
	}
	a, err := ParseURI("nbd://[::1]:77/a%20b")
	if err != nil || a != (Address{"tcp", "[::1]:77", "a b"}) {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestCancel gives up reads that hang, and takes the server away under others.
func TestCancel(t *testing.T) {
	leak.Check(t)
	ram := ramdisk.New(1<<20, 512)
	d := open(t, ours(t, ram), Options{})
	entered, release := make(chan struct{}, 10), make(chan struct{})
	ram.SetHook(func(ctx context.Context, op ramdisk.Op, off, _ int64) error {
		if op == ramdisk.Read && off == 0 {
			entered <- struct{}{}
			<-release
		}
		return nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	p := bytes.Repeat([]byte{7}, 4096)
	got := make(chan error, 1)
	go func() { got <- d.Read(ctx, p, 0) }()
	<-entered
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled read: %v", err)
	}
	close(release)
	q := make([]byte, 4096)
	if err := d.Read(context.Background(), q, 8192); err != nil {
		t.Errorf("a read after a cancelled one: %v", err)
	}
	if !bytes.Equal(p, bytes.Repeat([]byte{7}, 4096)) {
		t.Error("the buffer was written to after the read was given up")
	}
	ram.SetHook(nil)
	_ = d.Close()
	if err := d.Read(context.Background(), q, 0); !errors.Is(err, errClosed) {
		t.Errorf("a read after the end: %v", err)
	}
}

// FuzzServer has a server that sends anything.
func FuzzServer(f *testing.F) {
	good := []byte("NBDMAGICIHAVEOPT\x00\x03")
	reply := func(opt, kind uint32, data string) {
		good = be.AppendUint64(good, magicReply)
		good = be.AppendUint32(be.AppendUint32(be.AppendUint32(good, opt), kind), uint32(len(data)))
		good = append(good, data...)
	}
	reply(optStructured, repAck, "")
	reply(optSetMeta, repMeta, "\x00\x00\x00\x01base:allocation")
	reply(optSetMeta, repAck, "")
	reply(optGo, repInfo, "\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\xED")
	reply(optGo, repInfo, "\x00\x03\x00\x00\x02\x00\x00\x00\x10\x00\x00\x10\x00\x00")
	reply(optGo, repAck, "")
	f.Add(good)
	chunk := func(kind uint16, data string) []byte {
		b := be.AppendUint32(append([]byte(nil), good...), magicStructured)
		b = be.AppendUint16(be.AppendUint16(b, chunkDone), kind)
		b = be.AppendUint32(be.AppendUint64(b, 1), uint32(len(data)))
		return append(b, data...)
	}
	f.Add(chunk(chunkData, "\x00\x00\x00\x00\x00\x00\x00\x00"+strings.Repeat("x", 512)))
	f.Add(chunk(chunkHole, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00"))
	f.Add(chunk(chunkStatus, "\x00\x00\x00\x01\x00\x00\x02\x00\x00\x00\x00\x03"))
	f.Add(chunk(chunkErr, "\x00\x00\x00\x05\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		go func() {
			go func() { // takes whatever is sent
				buf := make([]byte, 4096)
				for {
					if _, err := theirs.Read(buf); err != nil {
						return
					}
				}
			}()
			_, _ = theirs.Write(b)
			theirs.Close()
		}()
		c := newConn(ours)
		if err := c.begin("x"); err != nil {
			ours.Close()
			return
		}
		d := &Disk{conns: []*conn{c}, e: c.e}
		if c.e.size < 0 || c.e.max <= 0 || c.e.min <= 0 {
			t.Fatalf("%+v was believed", c.e)
		}
		n := int64(c.e.min) * 512
		if n <= c.e.size {
			_ = d.Read(context.Background(), make([]byte, n), 0)
			_ = d.Extents(context.Background(), 0, n, func(k int64, _, _ bool) bool {
				if k <= 0 || k > n {
					t.Fatalf("an extent of %d bytes", k)
				}
				return true
			})
		}
		_ = d.Close()
	})
}
