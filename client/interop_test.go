package client_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"vdbridge/client"
	"vdbridge/smb/auth"
	"vdbridge/smb/wire"
	"vdbridge/test/leak"
	"vdbridge/test/smbd"
)

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// connect dials the server and connects to its share, and closes the connection with the test.
func connect(t testing.TB, s *smbd.Server, cfg client.Config) *client.Tree {
	t.Helper()
	ctx := testContext(t)
	c, err := client.Dial(ctx, s.Addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	sess, err := c.Session(ctx, auth.Credentials{User: s.User, Password: s.Password}, client.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := sess.Tree(ctx, s.Share)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// openFile opens a file for reading and writing, and makes it if it is missing.
func openFile(t testing.TB, tree *client.Tree, name string) *client.File {
	t.Helper()
	f, err := tree.Open(testContext(t), name, client.OpenOptions{
		Access: wire.AccessGenericRead | wire.AccessGenericWrite, Share: client.ShareAll, Disposition: wire.FileOpenIf,
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// random returns n reproducible bytes.
func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

// TestSmbdMatrix writes and reads files in every dialect, with every way of signing and sealing, at Debian's smbd, and compares
// with what smbd has put into its folder.
func TestSmbdMatrix(t *testing.T) {
	leak.Check(t)
	s := smbd.Start(t, smbd.Options{})
	type row struct {
		name string
		cfg  client.Config
	}
	rows := []row{}
	for _, d := range []wire.Dialect{wire.Dialect202, wire.Dialect210, wire.Dialect300, wire.Dialect302, wire.Dialect311} {
		base := client.Config{MinDialect: d, MaxDialect: d}
		rows = append(rows, row{d.String() + " signed", base})
		u := base
		u.Unsigned = true
		rows = append(rows, row{d.String() + " plain", u})
		m := base
		m.MultiProtocol = true
		rows = append(rows, row{d.String() + " multi-protocol", m})
		if d >= wire.Dialect300 {
			e := base
			e.Seal = true
			rows = append(rows, row{d.String() + " sealed", e})
		}
	}
	for _, a := range []wire.SigningAlgorithm{wire.SigningAESCMAC, wire.SigningAESGMAC} {
		rows = append(rows, row{a.String(), client.Config{Signing: []wire.SigningAlgorithm{a}}})
	}
	for _, c := range []wire.Cipher{wire.CipherAES128CCM, wire.CipherAES128GCM, wire.CipherAES256CCM, wire.CipherAES256GCM} {
		rows = append(rows, row{c.String(), client.Config{Ciphers: []wire.Cipher{c}, Seal: true}})
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			tree := connect(t, s, r.cfg)
			info := tree.Session().Conn().Info()
			if r.cfg.MinDialect != 0 && info.Dialect != r.cfg.MinDialect {
				t.Fatalf("dialect %s", info.Dialect)
			}
			if len(r.cfg.Signing) == 1 && info.Signing != r.cfg.Signing[0] {
				t.Fatalf("signing %s", info.Signing)
			}
			if len(r.cfg.Ciphers) == 1 && info.Cipher != r.cfg.Ciphers[0] {
				t.Fatalf("cipher %s", info.Cipher)
			}
			exercise(t, s, tree, t.Name())
		})
	}
}

// exercise writes blocks of many sizes, reads them back, and compares with the server's file.
func exercise(t *testing.T, s *smbd.Server, tree *client.Tree, name string) {
	t.Helper()
	ctx := testContext(t)
	name = fmt.Sprintf("%x.bin", sha256.Sum256([]byte(name)))
	f := openFile(t, tree, name)
	want := random(1, 5<<20)
	off := 0
	for _, n := range []int{1, 15, 16, 17, 4096, 16 << 10, 16<<10 + 1, 64 << 10, 64<<10 + 1, 100000, 1 << 20} {
		write := f.WriteAt
		if n == 4096 || n == 100000 {
			write = f.WriteAtFUA
		}
		if m, err := write(ctx, want[off:off+n], int64(off)); m != n || err != nil {
			t.Fatalf("write %d at %d: %d, %v", n, off, m, err)
		}
		off += n
	}
	if _, err := f.WriteAt(ctx, want[off:], int64(off)); err != nil {
		t.Fatal(err)
	}
	if err := f.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Size(ctx); n != int64(len(want)) || err != nil {
		t.Fatalf("size %d, %v", n, err)
	}
	onDisk, err := os.ReadFile(filepath.Join(s.Dir, name))
	if err != nil || !bytes.Equal(onDisk, want) {
		t.Fatalf("file of smbd differs (%d bytes, %v)", len(onDisk), err)
	}
	got := make([]byte, len(want))
	off = 0
	for _, n := range []int{1, 15, 16, 17, 4096, 16 << 10, 16<<10 + 1, 64 << 10, 64<<10 + 1, 100000, 1 << 20} {
		if m, err := f.ReadAt(ctx, got[off:off+n], int64(off)); m != n || err != nil {
			t.Fatalf("read %d at %d: %d, %v", n, off, m, err)
		}
		off += n
	}
	if _, err := f.ReadAt(ctx, got[off:], int64(off)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("what was read differs")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestSmbdConcurrency has 64 goroutines write and read parts of one file at the same time.
func TestSmbdConcurrency(t *testing.T) {
	leak.Check(t)
	s := smbd.Start(t, smbd.Options{})
	for _, cfg := range []client.Config{{}, {Seal: true}, {Unsigned: true}, {Credits: 2}, {MinDialect: wire.Dialect202, MaxDialect: wire.Dialect202}} {
		t.Run(fmt.Sprintf("seal=%v unsigned=%v credits=%d", cfg.Seal, cfg.Unsigned, cfg.Credits), func(t *testing.T) {
			tree := connect(t, s, cfg)
			ctx := testContext(t)
			f := openFile(t, tree, "parallel.bin")
			const workers, part = 64, 256 << 10
			var wg sync.WaitGroup
			for w := range workers {
				wg.Go(func() {
					want := random(uint64(w), part)
					base := int64(w) * part
					for off := 0; off < part; {
						n := min(1+(off*7+w*4099)%70000, part-off)
						if _, err := f.WriteAt(ctx, want[off:off+n], base+int64(off)); err != nil {
							t.Error(err)
							return
						}
						off += n
					}
					got := make([]byte, part)
					for off := 0; off < part; {
						n := min(1+(off*13+w*811)%90000, part-off)
						if _, err := f.ReadAt(ctx, got[off:off+n], base+int64(off)); err != nil {
							t.Error(err)
							return
						}
						off += n
					}
					if sha256.Sum256(got) != sha256.Sum256(want) {
						t.Errorf("worker %d read something else than it wrote", w)
					}
				})
			}
			wg.Wait()
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestNoAllocations has warm requests of 4 KiB allocate nothing, however they are protected.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	s := smbd.Start(t, smbd.Options{})
	for name, cfg := range map[string]client.Config{
		"plain":        {Unsigned: true},
		"AES-GMAC":     {Signing: []wire.SigningAlgorithm{wire.SigningAESGMAC}},
		"AES-CMAC":     {Signing: []wire.SigningAlgorithm{wire.SigningAESCMAC}},
		"HMAC-SHA256":  {MinDialect: wire.Dialect210, MaxDialect: wire.Dialect210},
		"AES-128-GCM":  {Seal: true},
		"AES-128-CCM":  {Seal: true, Ciphers: []wire.Cipher{wire.CipherAES128CCM}},
		"AES-256-GCM":  {Seal: true, Ciphers: []wire.Cipher{wire.CipherAES256GCM}},
		"AES-256-CCM":  {Seal: true, Ciphers: []wire.Cipher{wire.CipherAES256CCM}},
		"few credits":  {Credits: 2},
		"small pieces": {MaxIO: 4096},
	} {
		t.Run(name, func(t *testing.T) {
			tree := connect(t, s, cfg)
			ctx, cancel := context.WithCancel(testContext(t))
			defer cancel()
			f := openFile(t, tree, "warm.bin")
			buf, out := random(1, 4096), make([]byte, 64)
			in := append(make([]byte, 8), 0, 16, 0, 0, 0, 0, 0, 0)
			for what, call := range map[string]func() error{
				"write": func() error { _, err := f.WriteAt(ctx, buf, 0); return err },
				"read":  func() error { _, err := f.ReadAt(ctx, buf, 0); return err },
				"ioctl": func() error {
					_, err := f.Ioctl(ctx, wire.FsctlQueryAllocatedRanges, in, nil, out[:8], out[8:])
					return err
				},
			} {
				if _, err := f.WriteAt(ctx, buf, 0); err != nil {
					t.Fatal(err)
				}
				for range 50 {
					if err := call(); err != nil {
						t.Fatal(err)
					}
				}
				if n := testing.AllocsPerRun(200, func() {
					if err := call(); err != nil {
						t.Error(err)
					}
				}); n != 0 {
					t.Errorf("%s: %v allocations", what, n)
				}
			}
		})
	}
}
