package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"vdbridge/test/lab"
	"vdbridge/test/leak"
	"vdbridge/vhdx"
)

// needMounts skips, or fails, where nothing can be mounted.
func needMounts(t *testing.T) {
	t.Helper()
	lab.NeedRoot(t)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		lab.NeedNil(t, err)
	}
}

// running runs a mount until the test ends, and waits until it is there.
func running(t *testing.T, serve func(ctx context.Context, ready func()) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done, ready := make(chan error, 1), make(chan struct{})
	go func() { done <- serve(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("at the end: %v", err)
		}
	})
}

func mountTree(t *testing.T, where string, o Options, most int) string {
	t.Helper()
	needMounts(t)
	loc, err := ParseLocation(where)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	running(t, func(ctx context.Context, ready func()) error {
		return MountTree(ctx, loc, o, MountTreeOptions{MountOptions: MountOptions{Dir: dir, Ready: ready}, MaxDisks: most})
	})
	return dir
}

// TestPosix has go-fuse's tests of a POSIX file system judge a mounted folder and a mounted share.
func TestPosix(t *testing.T) {
	// What neither has: extended attributes are off, and the last two need the page cache or a race that the suite itself calls unfinished.
	none := []string{"XAttr", "XAttrLarge", "FcntlFlockLocksFile", "OpenSymlinkRace"}
	// SMB has no links and no modes, removes a file that is open only when it is closed, and reserves no space.
	share := append([]string{"Link", "LinkUnlinkRename", "SymlinkReadlink", "SetattrSymlink", "NlinkZero", "FstatDeleted", "Fallocate", "FallocateKeepSize", "FileBasic"}, none...)
	run := func(t *testing.T, dir string, skip []string) {
		for name, fn := range posixtest.All {
			if slices.Contains(skip, name) {
				continue
			}
			t.Run(name, func(t *testing.T) {
				sub := filepath.Join(dir, name)
				if err := os.Mkdir(sub, 0o755); err != nil {
					t.Fatal(err)
				}
				fn(t, sub)
			})
		}
	}
	t.Run("folder", func(t *testing.T) { run(t, mountTree(t, t.TempDir(), Options{}, 0), none) })
	t.Run("share", func(t *testing.T) {
		e := embed(t, ServeOptions{})
		run(t, mountTree(t, "smb://me@"+e.addr+"/disks", e.options(), 0), share)
	})
}

// TestTreeOfDisks looks at disks in a folder and on a share, writes to them, and tries what must not be while they are open.
func TestTreeOfDisks(t *testing.T) {
	for _, kind := range []string{"folder", "share"} {
		t.Run(kind, func(t *testing.T) {
			leak.Check(t)
			e := embed(t, ServeOptions{RSVDVersion: 1})
			where, o := e.dir, Options{}
			if kind == "share" {
				where, o = "smb://me@"+e.addr+"/disks", e.options()
			}
			dir := mountTree(t, where, o, 0)
			raw := filepath.Join(dir, "a.vhdx.d", "disk.raw")
			st, err := os.Stat(raw)
			if err != nil || st.Size() != testDiskSize {
				t.Fatalf("%v, %v", st, err)
			}
			list, err := os.ReadDir(filepath.Join(dir, "a.vhdx.d"))
			if err != nil || len(list) != 4 {
				t.Errorf("%v, %v", list, err)
			}
			f, err := os.OpenFile(raw, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			want := pattern(7, 8192)
			if _, err := f.WriteAt(want, 1<<20); err != nil {
				t.Fatal(err)
			}
			if w, err := os.OpenFile(filepath.Join(dir, "a.vhdx"), os.O_RDWR, 0); !errors.Is(err, syscall.ETXTBSY) {
				t.Errorf("the image of an open disk is opened for writing: %v", err)
				w.Close()
			}
			if err := os.Remove(filepath.Join(dir, "a.vhdx")); !errors.Is(err, syscall.EBUSY) {
				t.Errorf("the image of an open disk is removed: %v", err)
			}
			if err := os.Rename(filepath.Join(dir, "a.vhdx"), filepath.Join(dir, "c.vhdx")); !errors.Is(err, syscall.EBUSY) {
				t.Errorf("the image of an open disk is renamed: %v", err)
			}
			if err := f.Sync(); err != nil {
				t.Error(err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if err := os.RemoveAll(filepath.Join(dir, "a.vhdx.d")); !errors.Is(err, syscall.EPERM) {
				t.Errorf("the folder of a disk is removed: %v", err)
			}
			// Renamed, with its folder, into another one.
			if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, "a.vhdx"), filepath.Join(dir, "sub", "b.vhdx")); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			g, err := os.Open(filepath.Join(dir, "sub", "b.vhdx.d", "disk.raw"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := g.ReadAt(got, 1<<20); err != nil || !bytes.Equal(got, want) {
				t.Errorf("what was written is not there under the new name: %v", err)
			}
			g.Close()
			if _, err := os.Stat(filepath.Join(dir, "x.vhdx.d")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the folder of a disk that is not there: %v", err)
			}
			if err := os.WriteFile(filepath.Join(dir, "bad.vhdx"), []byte("no image"), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(dir, "bad.vhdx.d", "disk.raw")); !errors.Is(err, syscall.EIO) {
				t.Errorf("a disk that is none: %v", err)
			}
		})
	}
}

// TestSharedDiskInATree has a file system of one host on it, and so is not written.
func TestSharedDiskInATree(t *testing.T) {
	e := embed(t, ServeOptions{RSVDVersion: 1})
	d := e.open(t, nil)
	if err := d.Write(context.Background(), superblock("ext4"), 0, false); err != nil {
		t.Fatal(err)
	}
	closeDisk(t, d)
	dir := mountTree(t, "smb://me@"+e.addr+"/disks", e.options(), 0)
	raw := filepath.Join(dir, "a.vhdx.d", "disk.raw")
	if f, err := os.OpenFile(raw, os.O_RDWR, 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("opened for writing: %v", err)
		f.Close()
	}
	b, err := os.ReadFile(filepath.Join(dir, "a.vhdx.d", "info.json"))
	if err != nil || !strings.Contains(string(b), `"ext4"`) || !strings.Contains(string(b), `"rsvd"`) {
		t.Errorf("info.json: %v\n%s", err, b)
	}
}

// TestThousandDisks browses a share with a thousand disks: few are open at once, and memory stays where it is.
func TestThousandDisks(t *testing.T) {
	const disks, most = 1000, 8
	needMounts(t)
	e := embed(t, ServeOptions{})
	first := filepath.Join(e.dir, "d0000.vhdx")
	if err := vhdx.CreateFile(context.Background(), first, vhdx.CreateOptions{Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < disks; i++ {
		path := filepath.Join(e.dir, fmt.Sprintf("d%04d.vhdx", i))
		st, _ := os.Stat(first)
		if err := errors.Join(os.WriteFile(path, nil, 0o644), os.Truncate(path, st.Size())); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(b); at += 4096 {
			if p := b[at : at+4096]; !isZero(p) {
				if _, err := f.WriteAt(p, int64(at)); err != nil {
					t.Fatal(err)
				}
			}
		}
		f.Close()
	}
	o := e.options()
	o.Mode = ModeFile
	dir := mountTree(t, "smb://me@"+e.addr+"/disks", o, most)
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	memory := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	fds, heap := 0, uint64(0)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range disks {
		raw := filepath.Join(dir, fmt.Sprintf("d%04d.vhdx.d", i), "disk.raw")
		st, err := os.Stat(raw)
		if err != nil || st.Size() != 1<<30 {
			t.Fatalf("%v, %v", st, err)
		}
		if r.IntN(10) == 0 {
			f, err := os.Open(raw)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.ReadAt(make([]byte, 4096), 1<<20); err != nil {
				t.Error(err)
			}
			f.Close()
		}
		if i == 100 {
			fds, heap = open(), memory()
		}
	}
	// Each disk that is open takes a few descriptors on both sides, as the server is in this process too.
	if now := open(); now > fds+4*most {
		t.Errorf("%d descriptors are open after all, %d were after 100", now, fds)
	}
	if now := memory(); now > heap+32<<20 {
		t.Errorf("%d bytes are in use after all, %d were after 100", now, heap)
	}
}
