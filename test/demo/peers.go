package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vdbridge/test/lab"
	"vdbridge/test/smbd"
	"vdbridge/test/vm"
)

// background is for undoing things, which happens also when the demonstration was interrupted.
func background() context.Context { return context.Background() }

// startSmbd starts Debian's Samba for the disks, with a configuration, users and state of its own. It returns the URL of the disk there.
func (d *demo) startSmbd() (url, version string, err error) {
	version, err = d.run("smbd", "--version")
	if err != nil {
		return "", "", err
	}
	s, err := smbd.Run(smbd.Options{MinProtocol: "SMB3_00", Signing: "mandatory", Share: []string{"path = " + d.disks}})
	if err != nil {
		return "", "", err
	}
	d.later(s.Stop)
	private := d.path("private-samba")
	if err := os.Mkdir(private, 0o700); err != nil {
		return "", "", err
	}
	ours := d.vd
	d.later(func() error { d.vd = ours; return nil })
	d.vd, err = lab.NewProgramFor(ours.Bin, private, s.User, s.Password)
	return "smb://" + s.User + "@" + s.Addr + "/" + s.Share + "/" + diskFile, strings.TrimSpace(version), err
}

// kernel is part 5.
func (d *demo) kernel() error {
	var n *vm.Net
	nbd := vm.HostAddr + ":10809"
	err := d.steps(
		step{"Make a network for one guest, and start `vdbridge serve` and `vdbridge nbd` in it", func() (string, error) {
			var err error
			if n, err = vm.NewNet(1); err != nil {
				return "", err
			}
			d.later(func() error { n.Close(); return nil })
			inside := *d.vd
			inside.Start = n.StartCommand
			server, addr, err := inside.Serve(d.ctx, d.disks, "127.0.0.1:0")
			if err != nil {
				return "", err
			}
			d.later(func() error { return server.Stop(stopGrace) })
			export, _, err := inside.NBD(d.ctx, lab.URL(addr, diskFile), nbd, "--mode", "rsvd")
			if err != nil {
				return "", err
			}
			d.later(func() error { return export.Stop(stopGrace) })
			return "the guest reaches the NBD export at " + nbd, nil
		}},
		step{"Boot a User-Mode Linux guest; its kernel attaches the disk, mounts the file system, works on it", func() (string, error) {
			share := d.path("guest")
			if err := os.Mkdir(share, 0o755); err != nil {
				return "", err
			}
			if err := sumsFile(filepath.Join(share, "sums"), d.files); err != nil {
				return "", err
			}
			res, err := vm.Run(d.ctx, vm.Options{Network: n, Modules: []string{"nbd"}, Share: []string{share}, Timeout: 10 * time.Minute, Script: fmt.Sprintf(`set -e
uname -sr
nbd-client %s 10809 /dev/nbd0 >/dev/null 2>&1
mkdir -p /mnt/disk
mount -t ext4 /dev/nbd0 /mnt/disk
cd /mnt/disk
sha256sum --quiet -c %s/sums
echo "every file read and compared: $(wc -l <%s/sums)"
mkdir from-guest
cp -r net crypto from-guest/
echo "files copied inside the disk: $(find from-guest -type f | wc -l)"
rm -rf from-guest
cp %s/sums written-by-guest
cd /
umount /mnt/disk
e2fsck -fn /dev/nbd0 >/tmp/fsck 2>&1 || { cat /tmp/fsck; exit 1; }
tail -1 /tmp/fsck
nbd-client -d /dev/nbd0 >/dev/null 2>&1
`, vm.HostAddr, share, share, share)})
			if err != nil {
				return "", fmt.Errorf("%w\n%s", err, res.Output)
			}
			if res.Status != 0 {
				return "", fmt.Errorf("the script in the guest ended with status %d:\n%s", res.Status, res.Output)
			}
			d.files["written-by-guest"], err = hashFile(filepath.Join(share, "sums"))
			return res.Output, err
		}},
	)
	if err != nil {
		return err
	}
	if err := d.clean(); err != nil {
		return err
	}
	return d.judge()
}
