package client_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vdbridge/client"
	"vdbridge/smb/auth"
	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
	"vdbridge/test/leak"
	"vdbridge/test/smbd"
)

func TestSmbdFiles(t *testing.T) {
	leak.Check(t)
	s := smbd.Start(t, smbd.Options{})
	tree := connect(t, s, client.Config{})
	ctx := testContext(t)

	if err := tree.Mkdir(ctx, "dir/"); err != nil {
		t.Fatal(err)
	}
	if err := tree.Mkdir(ctx, "dir"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("mkdir again: %v", err)
	}
	// More names than fit into one reply, of characters in and beyond the basic plane.
	want := []string{}
	for i := range 2000 {
		name := fmt.Sprintf("file %04d äöü €😀 %sz", i, strings.Repeat("x", i%60))
		want = append(want, name)
		if err := os.WriteFile(filepath.Join(s.Dir, "dir", name), make([]byte, i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := tree.Open(ctx, "dir", client.OpenOptions{Access: wire.AccessReadData | wire.AccessReadAttributes, Share: client.ShareAll,
		Disposition: wire.FileOpen, Options: wire.OptDirectoryFile})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var got []string
		for e, err := range dir.ReadDir(ctx, "") {
			if err != nil {
				t.Fatal(err)
			}
			var i int64
			fmt.Sscanf(e.Name, "file %d", &i)
			if e.EndOfFile != i || e.Attributes&fscc.AttrDirectory != 0 {
				t.Errorf("%s: %+v", e.Name, e)
			}
			got = append(got, e.Name)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("listed %d names of %d", len(got), len(want))
		}
	}
	for e, err := range dir.ReadDir(ctx, "file 0007*") {
		if err != nil || !strings.HasPrefix(e.Name, "file 0007") {
			t.Errorf("pattern: %s, %v", e.Name, err)
		}
	}
	for range dir.ReadDir(ctx, "nothing*") {
		t.Error("pattern that matches nothing listed something")
	}
	for range dir.ReadDir(ctx, "") {
		break // leaving early is fine
	}
	if err := dir.Close(); err != nil {
		t.Error(err)
	}

	old := want[5]
	if err := tree.Rename(ctx, `dir\`+old, "dir/renamed", false); err != nil {
		t.Fatal(err)
	}
	if err := tree.Rename(ctx, "dir/renamed", `dir\`+want[6], false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("rename onto another: %v", err)
	}
	if err := tree.Rename(ctx, "dir/renamed", `dir\`+want[6], true); err != nil {
		t.Errorf("rename over another: %v", err)
	}
	info, err := tree.Stat(ctx, "dir/"+want[6])
	if err != nil || info.Size != 5 || info.IsDir() || info.FileID == 0 || time.Since(info.Written).Abs() > time.Hour {
		t.Errorf("stat: %+v, %v", info, err)
	}
	if info, err := tree.Stat(ctx, "dir"); err != nil || !info.IsDir() {
		t.Errorf("stat of the directory: %+v, %v", info, err)
	}
	if err := tree.Remove(ctx, "dir"); !errors.Is(err, ntstatus.DirectoryNotEmpty) {
		t.Errorf("remove of a full directory: %v", err)
	}
	if err := tree.Remove(ctx, "dir/"+want[6]); err != nil {
		t.Error(err)
	}
	if _, err := tree.Stat(ctx, "dir/"+want[6]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat of what is gone: %v", err)
	}
	v, err := tree.FSInfo(ctx)
	if err != nil || v.Total <= 0 || v.Free <= 0 || v.Available > v.Total || v.MaxName < 100 || v.Type == "" {
		t.Errorf("file system: %+v, %v", v, err)
	}

	f, err := tree.Open(ctx, "temporary", client.OpenOptions{Access: wire.AccessDelete | wire.AccessWriteData, Disposition: wire.FileCreate,
		Options: wire.OptDeleteOnClose, Contexts: []wire.CreateContext{{Name: wire.CreateMaximalAccess}, {Name: wire.CreateQueryOnDiskID}}})
	if err != nil {
		t.Fatal(err)
	}
	if b, ok := f.Context(wire.CreateMaximalAccess); !ok || len(b) != 8 {
		t.Errorf("maximal access context %x", b)
	}
	if b, ok := f.Context(wire.CreateQueryOnDiskID); !ok || len(b) != 32 {
		t.Errorf("disk id context %x", b)
	}
	if f.Reply().Action != wire.ActionCreated {
		t.Errorf("action %d", f.Reply().Action)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(s.Dir, "temporary")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("delete on close: %v", err)
	}
}

func TestSmbdSparse(t *testing.T) {
	leak.Check(t)
	s := smbd.Start(t, smbd.Options{Share: []string{"strict allocate = no"}})
	tree := connect(t, s, client.Config{})
	ctx := testContext(t)
	f := openFile(t, tree, "sparse")
	if err := f.Truncate(ctx, 64<<20); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Size(ctx); n != 64<<20 || err != nil {
		t.Fatalf("size %d, %v", n, err)
	}
	if err := f.SetSparse(ctx, true); err != nil {
		t.Fatal(err)
	}
	data := random(3, 1<<20)
	for _, off := range []int64{0, 16 << 20, 40 << 20} {
		if _, err := f.WriteAt(ctx, data, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.ZeroRange(ctx, 16<<20, 512<<10); err != nil {
		t.Fatal(err)
	}
	got, err := f.AllocatedRanges(ctx, 0, 64<<20)
	if want := []fscc.Range{{Offset: 0, Length: 1 << 20}, {Offset: 16<<20 + 512<<10, Length: 512 << 10}, {Offset: 40 << 20, Length: 1 << 20}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("ranges %v, %v", got, err)
	}
	b := make([]byte, 1<<20)
	if _, err := f.ReadAt(ctx, b, 16<<20); err != nil || !slices.Equal(b, append(make([]byte, 512<<10), data[512<<10:]...)) {
		t.Errorf("after zeroing: %v", err)
	}
	if err := f.Trim(ctx, fscc.Range{Offset: 0, Length: 4096}); err != nil && !errors.Is(err, ntstatus.NotSupported) && !errors.Is(err, ntstatus.InvalidDeviceRequest) {
		t.Errorf("trim: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// TestSmbdRefuses has a real server refuse things, and looks at what the user is told.
func TestSmbdRefuses(t *testing.T) {
	leak.Check(t)
	s := smbd.Start(t, smbd.Options{MinProtocol: "SMB2_02", MaxProtocol: "SMB2_10"})
	ctx := testContext(t)
	_, err := client.Dial(ctx, s.Addr, client.Config{})
	if !errors.Is(err, client.ErrUnsupportedServer) || !strings.Contains(err.Error(), "SMB 2.1") {
		t.Errorf("SMB 2 only: %v", err)
	}
	old := smbd.Start(t, smbd.Options{MinProtocol: "NT1", MaxProtocol: "NT1"})
	_, err = client.Dial(ctx, old.Addr, client.Config{})
	if !errors.Is(err, client.ErrUnsupportedServer) || !strings.Contains(err.Error(), "SMB1") {
		t.Errorf("SMB1 only: %v", err)
	}
	c, err := client.Dial(ctx, s.Addr, client.Config{MinDialect: wire.Dialect202})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Session(ctx, auth.Credentials{User: s.User, Password: "wrong"}, client.SessionOptions{})
	if !errors.Is(err, ntstatus.LogonFailure) {
		t.Errorf("wrong password: %v", err)
	}
	sess, err := c.Session(ctx, auth.Credentials{User: s.User, Password: s.Password}, client.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var e *client.Error
	_, err = sess.Tree(ctx, "missing")
	if !errors.As(err, &e) || e.Status != ntstatus.BadNetworkName || !strings.Contains(err.Error(), "no such share") {
		t.Errorf("no such share: %v", err)
	}
	tree, err := sess.Tree(ctx, s.Share)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tree.Open(ctx, "no/such/file", client.OpenOptions{Access: wire.AccessReadData, Disposition: wire.FileOpen})
	if !errors.As(err, &e) || !errors.Is(err, fs.ErrNotExist) || e.Op != "open" || !strings.HasSuffix(e.Path, `\no\such\file`) {
		t.Errorf("no such file: %v", err)
	}
	one := client.OpenOptions{Access: wire.AccessReadData | wire.AccessWriteData, Disposition: wire.FileOpenIf}
	f, err := tree.Open(ctx, "single", one)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = tree.Open(ctx, "single", one); !errors.Is(err, ntstatus.SharingViolation) {
		t.Errorf("second exclusive open: %v", err)
	}
	if _, err := f.Ioctl(ctx, 0x00090300, nil, nil, nil, nil); ntstatus.NotSupported != statusOf(err) && ntstatus.InvalidDeviceRequest != statusOf(err) && ntstatus.FileClosed != statusOf(err) {
		t.Errorf("unknown control: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	for _, r := range []struct {
		name string
		opts smbd.Options
		cfg  client.Config
		want error
	}{
		// Samba signs SMB 3 all the same; only the negotiation says less.
		{"signing is off", smbd.Options{Signing: "disabled"}, client.Config{}, nil},
		{"signing is required", smbd.Options{Signing: "mandatory"}, client.Config{Unsigned: true}, client.ErrUnsupportedServer},
		{"encryption is off", smbd.Options{Encrypt: "off"}, client.Config{Seal: true}, client.ErrUnsupportedServer},
	} {
		s := smbd.Start(t, r.opts)
		c, err := client.Dial(ctx, s.Addr, r.cfg)
		if err == nil {
			_, err = c.Session(ctx, auth.Credentials{User: s.User, Password: s.Password}, client.SessionOptions{})
			_ = c.Close()
		}
		if !errors.Is(err, r.want) {
			t.Errorf("%s: %v", r.name, err)
		}
	}
}

// TestSmbdEncryption has the server or the share ask for encryption, without the client doing so.
func TestSmbdEncryption(t *testing.T) {
	leak.Check(t)
	for _, r := range []struct {
		opts  smbd.Options
		whole bool // session, not only the tree
	}{{smbd.Options{Encrypt: "required"}, true}, {smbd.Options{ShareEncrypt: "required"}, false}} {
		s := smbd.Start(t, r.opts)
		for _, d := range []wire.Dialect{wire.Dialect300, wire.Dialect311} {
			tree := connect(t, s, client.Config{MaxDialect: d})
			if !tree.Sealed() || tree.Session().Sealed() != r.whole {
				t.Errorf("%+v: tree sealed %v, session %v", r.opts, tree.Sealed(), tree.Session().Sealed())
			}
			exercise(t, s, tree, t.Name())
		}
	}
}

func statusOf(err error) ntstatus.Status {
	s, _ := ntstatus.Of(err)
	return s
}

// TestSmbdDies kills the server under its clients: everyone gets an error, nothing hangs.
func TestSmbdDies(t *testing.T) {
	leak.Check(t)
	s := smbd.Start(t, smbd.Options{})
	ctx := testContext(t)
	c, err := client.Dial(ctx, s.Addr, client.Config{})
	if err != nil {
		t.Fatal(err)
	}
	sess, err := c.Session(ctx, auth.Credentials{User: s.User, Password: s.Password}, client.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := sess.Tree(ctx, s.Share)
	if err != nil {
		t.Fatal(err)
	}
	f := openFile(t, tree, "f")
	if _, err := f.WriteAt(ctx, random(1, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error)
	started := make(chan struct{}, 1)
	for range 16 {
		go func() {
			buf := make([]byte, 100000)
			for {
				if _, err := f.ReadAt(context.Background(), buf, 0); err != nil {
					errs <- err
					return
				}
				select {
				case started <- struct{}{}:
				default:
				}
			}
		}()
	}
	<-started
	s.Kill()
	for range 16 {
		if err := <-errs; !errors.Is(err, client.ErrConnectionLost) {
			t.Errorf("got %v", err)
		}
	}
	<-c.Done()
	if err := c.Close(); !errors.Is(err, client.ErrConnectionLost) {
		t.Errorf("close: %v", err)
	}
}
