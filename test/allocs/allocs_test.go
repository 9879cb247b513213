package allocs

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"vdbridge/bridge"
	"vdbridge/client/link"
	"vdbridge/test/lab"
	"vdbridge/vhdx"
)

const (
	diskBytes = 64 << 20
	depth     = 32
	warm      = 200 // batches of depth requests before anything is counted
	counted   = 500

	// What the runtime and timers allocate by themselves is far below one allocation for twenty requests; one in each request is twenty times above.
	most = 0.05
)

// TestWarmRequestsDoNotAllocate counts the allocations of the process for each request in every way to the disk.
func TestWarmRequestsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates; make test runs this package without it")
	}
	dir := t.TempDir()
	disks := filepath.Join(dir, "disks")
	if err := os.Mkdir(disks, 0o755); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(disks, "disk.vhdx")
	makeImage(t, image)
	vd, err := lab.NewProgram("", dir) // for its files of users and passwords
	if err != nil {
		t.Fatal(err)
	}
	srv, err := bridge.NewFileServer(bridge.ServeOptions{Dir: disks, Share: lab.Share, UsersFile: filepath.Join(vd.Dir, "users"), RSVDVersion: 1})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, func(ctx context.Context) error { return srv.Run(ctx, l) })
	url := lab.URL(l.Addr().String(), "disk.vhdx")

	for _, tc := range []struct {
		name, url string
		mode      bridge.Mode
		io        string
		encrypt   bool
		onLoss    link.Policy
	}{
		{"local", image, bridge.ModeAuto, "auto", false, link.Fail},
		{"file", url, bridge.ModeFile, "auto", false, link.Fail},
		{"file-held", url, bridge.ModeFile, "auto", false, link.Hold},
		{"shared-smb", url, bridge.ModeRSVD, "smb", false, link.Fail},
		{"shared-smb-held", url, bridge.ModeRSVD, "smb", false, link.Hold},
		{"shared-scsi", url, bridge.ModeRSVD, "scsi", false, link.Fail},
		{"shared-scsi-sealed-held", url, bridge.ModeRSVD, "scsi", true, link.Hold},
	} {
		t.Run(tc.name, func(t *testing.T) {
			loc, err := bridge.ParseLocation(tc.url)
			if err != nil {
				t.Fatal(err)
			}
			o := bridge.Options{Mode: tc.mode, Encrypt: tc.encrypt, OnLoss: tc.onLoss, StateDir: filepath.Join(dir, "state"),
				Credentials: bridge.CredentialSource{PasswordFile: filepath.Join(vd.Dir, "password")}}
			if o.IO, err = bridge.ParseIO(tc.io); err != nil {
				t.Fatal(err)
			}
			disk, err := bridge.Open(t.Context(), loc, o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := disk.Close(); err != nil {
					t.Error(err)
				}
			})
			l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
			if err != nil {
				t.Fatal(err)
			}
			serve(t, func(ctx context.Context) error { return bridge.ServeNBD(ctx, disk, bridge.NBDOptions{}, l) })
			c := connect(t, l.Addr().String())
			for _, kind := range []uint16{cmdRead, cmdWrite} {
				for range warm {
					c.batch(t, kind)
				}
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				for range counted {
					c.batch(t, kind)
				}
				runtime.ReadMemStats(&after)
				each := float64(after.Mallocs-before.Mallocs) / (counted * depth)
				name := map[uint16]string{cmdRead: "read", cmdWrite: "write"}[kind]
				t.Logf("%s: %.4f allocations, %.1f bytes a request", name, each, float64(after.TotalAlloc-before.TotalAlloc)/(counted*depth))
				if each > most {
					t.Errorf("a warm 4 KiB %s makes %.3f allocations, want none (at most %.2f)", name, each, most)
				}
			}
		})
	}
}

// makeImage makes a dynamic image with every block allocated.
func makeImage(t *testing.T, path string) {
	t.Helper()
	ctx := t.Context()
	if err := vhdx.CreateFile(ctx, path, vhdx.CreateOptions{Size: diskBytes, BlockSize: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	f, err := vhdx.OpenOSFile(path, false)
	if err != nil {
		t.Fatal(err)
	}
	d, err := vhdx.Open(ctx, f, vhdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1<<20)
	for off := int64(0); off < diskBytes; off += int64(len(p)) {
		p[0]++
		if err := d.Write(ctx, p, off, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// serve runs f until the test ends, and waits for it.
func serve(t *testing.T, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("server: %v", err)
		}
	})
}

// Values of the NBD protocol.
const (
	optExportName = 1

	cmdRead  = 0
	cmdWrite = 1

	requestBytes = 28
	replyBytes   = 16
	blockBytes   = 4096
)

// nbdClient sends batches of requests with memory of its own that it uses again and again.
type nbdClient struct {
	c       net.Conn
	r       *bufio.Reader
	out, in []byte
	cookie  uint64
	random  *rand.Rand
}

func connect(t *testing.T, addr string) *nbdClient {
	t.Helper()
	conn, err := net.Dial("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	c := &nbdClient{c: conn, r: bufio.NewReaderSize(conn, 256<<10), in: make([]byte, replyBytes+blockBytes), random: rand.New(rand.NewPCG(1, 2))}
	var hello [18]byte
	if _, err := io.ReadFull(c.r, hello[:]); err != nil || string(hello[:16]) != "NBDMAGICIHAVEOPT" {
		t.Fatalf("greeting %q, %v", hello, err)
	}
	b := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	b = append(b, "IHAVEOPT"...)
	b = binary.BigEndian.AppendUint32(b, optExportName)
	b = binary.BigEndian.AppendUint32(b, 0) // the name's length
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	var export [10]byte
	if _, err := io.ReadFull(c.r, export[:]); err != nil {
		t.Fatal(err)
	}
	if size := binary.BigEndian.Uint64(export[:]); size != diskBytes {
		t.Fatalf("the export has %d bytes", size)
	}
	return c
}

// batch sends depth requests at random places and reads the replies.
func (c *nbdClient) batch(t *testing.T, kind uint16) {
	if c.out == nil {
		c.out = make([]byte, 0, depth*(requestBytes+blockBytes))
	}
	b := c.out[:0]
	for range depth {
		c.cookie++
		b = binary.BigEndian.AppendUint32(b, 0x25609513)
		b = binary.BigEndian.AppendUint16(b, 0)
		b = binary.BigEndian.AppendUint16(b, kind)
		b = binary.BigEndian.AppendUint64(b, c.cookie)
		b = binary.BigEndian.AppendUint64(b, c.random.Uint64N(diskBytes/blockBytes)*blockBytes)
		b = binary.BigEndian.AppendUint32(b, blockBytes)
		if kind == cmdWrite {
			b = b[:len(b)+blockBytes]
		}
	}
	// The writes are more than the sockets hold, so the replies are read at the same time as long as the server does not wait for us: it
	// reads requests while it answers.
	if _, err := c.c.Write(b); err != nil {
		t.Fatal(err)
	}
	n := replyBytes
	if kind == cmdRead {
		n += blockBytes
	}
	for range depth {
		if _, err := io.ReadFull(c.r, c.in[:n]); err != nil {
			t.Fatal(err)
		}
		if magic, errno := binary.BigEndian.Uint32(c.in), binary.BigEndian.Uint32(c.in[4:]); magic != 0x67446698 || errno != 0 {
			t.Fatalf("reply %08x with error %d", magic, errno)
		}
	}
}
