package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vdbridge/nbd"
	"vdbridge/test/leak"
	"vdbridge/test/ramdisk"
)

// sparse makes a raw image with data here and there, and zeros that are written.
func sparse(t *testing.T, path string, size int64) []byte {
	t.Helper()
	want := make([]byte, size)
	r := rand.New(rand.NewPCG(uint64(size), 5))
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		n := 1 + r.Int64N(size/12)
		off := r.Int64N(size - n)
		for i := range n {
			want[off+i] = byte(r.Uint32())
		}
		if _, err := f.WriteAt(want[off:off+n], off); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt(make([]byte, size/20), size/2); err != nil {
		t.Fatal(err)
	}
	clear(want[size/2 : size/2+size/20])
	return want
}

// contents reads an endpoint with OpenFormat or the NBD client, not with Copy.
func contents(t *testing.T, e Endpoint, o CopyOptions) []byte {
	t.Helper()
	d, err := e.openSource(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b := make([]byte, d.Size())
	if err := d.Read(context.Background(), b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func endpoint(t *testing.T, s string) Endpoint {
	t.Helper()
	e, err := ParseEndpoint(s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// exported offers a memory disk by NBD.
func exported(t *testing.T, d *ramdisk.Disk) string {
	t.Helper()
	srv, err := nbd.NewServer(nbd.Config{Resolver: nbd.Exports{{Disk: d}}})
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
		_ = srv.Shutdown(context.Background())
		<-done
	})
	return "nbd+unix:///?socket=" + sock
}

// TestCopyPairs copies between every two kinds of ends.
func TestCopyPairs(t *testing.T) {
	leak.Check(t)
	const size = 12<<20 + 512
	e := embed(t, ServeOptions{})
	opts := CopyOptions{Opts: e.options(), Workers: 4}
	dir := t.TempDir()
	first := endpoint(t, filepath.Join(dir, "first.img"))
	want := sparse(t, first.Loc.Path, size)
	ends := map[string]func(name string) Endpoint{
		"raw":         func(n string) Endpoint { return endpoint(t, filepath.Join(dir, n+".raw")) },
		"vhdx":        func(n string) Endpoint { return endpoint(t, filepath.Join(dir, n+".vhdx")) },
		"remote vhdx": func(n string) Endpoint { return endpoint(t, e.url(n+".vhdx")) },
		"remote raw":  func(n string) Endpoint { return endpoint(t, e.url(n+".img")) },
		"nbd":         func(string) Endpoint { return endpoint(t, exported(t, ramdisk.New(size, 512))) },
	}
	opts.Create.BlockSize = 1 << 20
	sources := map[string]Endpoint{}
	for name, make := range ends {
		sources[name] = make("source")
		if _, err := Copy(context.Background(), first, sources[name], opts); err != nil {
			t.Fatalf("the source %s: %v", name, err)
		}
	}
	n := 0
	for from, src := range sources {
		for to, make := range ends {
			n++
			dst := make(fmt.Sprint("copy", n))
			p, err := Copy(context.Background(), src, dst, opts)
			if err != nil {
				t.Fatalf("%s to %s: %v", from, to, err)
			}
			if got := contents(t, dst, opts); !bytes.Equal(got[:size], want) {
				t.Errorf("%s to %s: the copy differs", from, to)
			}
			if p.Done != p.Total || p.Data == 0 || p.Data > size*3/4 {
				t.Errorf("%s to %s: %+v", from, to, p)
			}
		}
	}
	// Nothing is overwritten unless asked.
	for to, make := range ends {
		dst := make("source")
		if dst.NBD != "" {
			dst = sources["nbd"]
		}
		if _, err := Copy(context.Background(), first, dst, opts); Classify(err) != ClassExists {
			t.Errorf("over an existing %s: %v", to, err)
		}
		force := opts
		force.Force = true
		if _, err := Copy(context.Background(), first, dst, force); err != nil {
			t.Errorf("over an existing %s by force: %v", to, err)
		}
		if got := contents(t, dst, opts); !bytes.Equal(got[:size], want) {
			t.Errorf("over an existing %s by force: the copy differs", to)
		}
	}
	if _, err := Copy(context.Background(), first, endpoint(t, exported(t, ramdisk.New(1<<20, 512))), opts); Classify(err) != ClassNoSpace {
		t.Errorf("to a disk that is too small: %v", err)
	}
}

// TestCopyResumes interrupts copies at many places and goes on.
func TestCopyResumes(t *testing.T) {
	const size = 24 << 20
	for _, kind := range []string{"copy.raw", "copy.vhdx", "nbd"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			src := endpoint(t, filepath.Join(dir, "source.img"))
			want := sparse(t, src.Loc.Path, size)
			var dst Endpoint
			if kind == "nbd" {
				dst = endpoint(t, exported(t, ramdisk.New(size, 512)))
			} else {
				dst = endpoint(t, filepath.Join(dir, kind))
			}
			opts := CopyOptions{Workers: 3, Opts: Options{StateDir: dir}, Create: CreateOptions{BlockSize: 1 << 20}}
			if _, err := Copy(context.Background(), src, dst, CopyOptions{Resume: true, Opts: opts.Opts}); Classify(err) != ClassNotFound {
				t.Errorf("to go on with nothing: %v", err)
			}
			runs := 0
			for ; ; runs++ {
				ctx, cancel := context.WithCancel(context.Background())
				opts.Resume = runs > 0
				opts.Progress = func(p CopyProgress) {
					if p.Data > 3<<20 {
						cancel()
					}
				}
				_, err := Copy(ctx, src, dst, opts)
				cancel()
				if err == nil {
					break
				}
				if Classify(err) != ClassInterrupted || !strings.Contains(err.Error(), "--resume") || runs > 20 {
					t.Fatalf("run %d: %v", runs, err)
				}
			}
			if runs < 1 {
				t.Errorf("it was interrupted %d times", runs)
			}
			if got := contents(t, dst, opts); !bytes.Equal(got, want) {
				t.Error("the copy differs")
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "*vdbridge-copy")); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// TestCopyOfAnotherSource refuses to go on with a source that has changed.
func TestCopyOfAnotherSource(t *testing.T) {
	dir := t.TempDir()
	src, dst := endpoint(t, filepath.Join(dir, "source.img")), endpoint(t, filepath.Join(dir, "copy.raw"))
	sparse(t, src.Loc.Path, 24<<20)
	ctx, cancel := context.WithCancel(context.Background())
	_, err := Copy(ctx, src, dst, CopyOptions{Progress: func(CopyProgress) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	note := &copyNote{path: dst.Loc.Path + ".vdbridge-copy", copyNoteFile: copyNoteFile{Source: src.key(), To: dst.key(), Size: 24 << 20, Identity: "file 1"}}
	if err := note.save(4096); err != nil {
		t.Fatal(err)
	}
	if _, err := Copy(context.Background(), src, dst, CopyOptions{Resume: true}); Classify(err) != ClassUsage || !strings.Contains(err.Error(), "has changed") {
		t.Errorf("a source that has changed: %v", err)
	}
	if _, err := Copy(context.Background(), src, src, CopyOptions{Force: true}); Classify(err) != ClassUsage {
		t.Errorf("to itself: %v", err)
	}
}

func (e *embedded) options() Options {
	return Options{Credentials: CredentialSource{Getenv: func(string) string { return "secret" }}}
}

func (e *embedded) url(name string) string { return "smb://me@" + e.addr + "/disks/" + name }
