package bridge

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vdbridge/rsvd"
	"vdbridge/smb/wire"
	"vdbridge/test/lab"
	"vdbridge/test/leak"
	"vdbridge/test/smbd"
)

func smbdOptions(s *smbd.Server) (Location, Options) {
	loc := Location{User: s.User, Host: "127.0.0.1", Port: s.Port, Share: s.Share, Path: "p.vhdx"}
	return loc, Options{Credentials: CredentialSource{Getenv: func(string) string { return s.Password }}}
}

// Plain mode on Samba: found out, exclusive, and what is written is in the image.
func TestSmbdPlain(t *testing.T) {
	leak.Check(t)
	s := smbd.Start(t, smbd.Options{})
	lab.Need(t, "qemu-img", "qemu-io")
	ctx := context.Background()
	loc, o := smbdOptions(s)
	if err := Create(ctx, loc, o, CreateOptions{Size: 64 << 20, BlockSize: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	o.Mode = ModeRSVD
	if _, err := Open(ctx, loc, o); !errors.Is(err, rsvd.ErrNotSupported) || Classify(err) != ClassUnsupported {
		t.Errorf("a shared disk: %v", err)
	}
	missing := loc
	missing.Path = "missing.vhdx"
	for _, m := range []Mode{ModeRSVD, ModeAuto, ModeFile} {
		o.Mode = m
		if _, err := Open(ctx, missing, o); Classify(err) != ClassNotFound {
			t.Errorf("a missing file in mode %v: %v", m, err)
		}
	}
	o.Mode = ModeAuto
	d, err := Open(ctx, loc, o)
	if err != nil {
		t.Fatal(err)
	}
	if d.Mode() != ModeFile {
		t.Errorf("mode %v", d.Mode())
	}
	if _, err := Open(ctx, loc, o); Classify(err) != ClassBusy {
		t.Errorf("a second time: %v", err)
	}
	p := pattern(5, 3<<20)
	if err := errors.Join(d.Write(ctx, p, 1<<20, false), d.WriteZeroes(ctx, 2<<20, 1<<20, true, false), d.Trim(ctx, 3<<20, 1<<20), d.Flush(ctx)); err != nil {
		t.Fatal(err)
	}
	q := make([]byte, 1<<20)
	if err := d.Read(ctx, q, 1<<20); err != nil || !bytes.Equal(q, p[:1<<20]) {
		t.Errorf("read: %v", err)
	}
	if err := d.Read(ctx, q, 2<<20); err != nil || !bytes.Equal(q, make([]byte, 1<<20)) {
		t.Errorf("zeroes: %v", err)
	}
	if err := d.Extents(ctx, 0, 64<<20, func(int64, bool, bool) bool { return true }); err != nil {
		t.Errorf("extents: %v", err)
	}
	closeDisk(t, d)
	r, err := Check(ctx, loc, o)
	if err != nil || r.Damaged() {
		t.Errorf("check: %+v, %v", r, err)
	}
	out, err := exec.Command("qemu-img", "check", "-f", "vhdx", filepath.Join(s.Dir, "p.vhdx")).CombinedOutput()
	if err != nil {
		t.Errorf("qemu-img check: %v\n%s", err, out)
	}
}

func TestSmbdRefusals(t *testing.T) {
	leak.Check(t)
	ctx := context.Background()
	t.Run("guest", func(t *testing.T) {
		s := smbd.Start(t, smbd.Options{Global: []string{"map to guest = Bad User"}, Share: []string{"guest ok = yes"}})
		loc, o := smbdOptions(s)
		loc.User = "nobody-here"
		_, err := List(ctx, loc, o)
		if Classify(err) != ClassAuth || !strings.Contains(err.Error(), "guest") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("SMB 2.1 only", func(t *testing.T) {
		s := smbd.Start(t, smbd.Options{MaxProtocol: "SMB2_10"})
		loc, o := smbdOptions(s)
		if _, err := Open(ctx, loc, o); Classify(err) != ClassUnsupported || !strings.Contains(err.Error(), "dialect") {
			t.Errorf("got %v", err)
		}
		loc.Path = ""
		o.MinDialect = wire.Dialect210
		if _, err := List(ctx, loc, o); err != nil {
			t.Errorf("2.1 allowed by name: %v", err)
		}
	})
	t.Run("encryption insisted on", func(t *testing.T) {
		s := smbd.Start(t, smbd.Options{Encrypt: "off"})
		loc, o := smbdOptions(s)
		loc.Path = ""
		o.Encrypt = true
		if _, err := List(ctx, loc, o); err == nil {
			t.Error("not encrypted, in silence")
		} else {
			t.Log(err)
		}
	})
}
