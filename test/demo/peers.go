package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"vdbridge/test/lab"
	"vdbridge/test/vm"
)

// background is for undoing things, which happens also when the demonstration was interrupted.
func background() context.Context { return context.Background() }

// startSmbd starts Debian's Samba for the disks, with a configuration, users and state of its own.
func (d *demo) startSmbd() (addr, version string, err error) {
	if addr, err = lab.FreeAddr(); err != nil {
		return "", "", err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", "", err
	}
	me, err := user.Current()
	if err != nil {
		return "", "", err
	}
	state := d.path("samba-state")
	if err := os.Mkdir(state, 0o755); err != nil {
		return "", "", err
	}
	conf := filepath.Join(state, "smb.conf")
	text := strings.NewReplacer("STATE", state, "DISKS", d.disks, "HOST", host, "PORT", port, "SHARE", lab.Share,
		"USERMAP", filepath.Join(state, "usermap"), "ME", me.Username).Replace(`[global]
	workgroup = DEMO
	server role = standalone server
	interfaces = HOST
	bind interfaces only = yes
	smb ports = PORT
	disable netbios = yes
	state directory = STATE
	lock directory = STATE
	private dir = STATE
	pid directory = STATE
	cache directory = STATE
	ncalrpc dir = STATE
	log file = STATE/log
	passdb backend = tdbsam:STATE/passdb.tdb
	username map = USERMAP
	server min protocol = SMB3_00
	server signing = mandatory
	load printers = no
[SHARE]
	path = DISKS
	read only = no
	force user = ME
`)
	err = errors.Join(
		os.WriteFile(conf, []byte(text), 0o644),
		os.WriteFile(filepath.Join(state, "usermap"), []byte(me.Username+" = "+lab.User+"\n"), 0o644),
	)
	if err != nil {
		return "", "", err
	}
	passwd, err := lab.Look("smbpasswd")
	if err != nil {
		return "", "", err
	}
	cmd := exec.CommandContext(d.ctx, passwd, "-c", conf, "-L", "-s", "-a", me.Username)
	cmd.Stdin = strings.NewReader(lab.Password + "\n" + lab.Password + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("smbpasswd: %w\n%s", err, out)
	}
	smbd, err := lab.Look("smbd")
	if err != nil {
		return "", "", err
	}
	version, err = d.run("smbd", "--version")
	if err != nil {
		return "", "", err
	}
	p, err := lab.Start(exec.Command(smbd, "-F", "--no-process-group", "-s", conf, "--debug-stdout"), nil)
	if err != nil {
		return "", "", err
	}
	d.later(func() error { _ = p.Stop(10 * time.Second); return nil })
	ctx, cancel := context.WithTimeout(d.ctx, lab.ReadyTimeout)
	defer cancel()
	return addr, strings.TrimSpace(version), p.WaitListen(ctx, "tcp", addr, nil)
}

// kernel is part 5.
func (d *demo) kernel() error {
	var n *vm.Net
	nbd := vm.HostAddr + ":10809"
	err := d.steps(
		step{"Make a network for one guest, and start `vdbridge serve` and `vdbridge nbd` in it", func() (string, error) {
			var err error
			if n, err = vm.NewNet(); err != nil {
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
tar cf - -C /mnt/disk $(ls | grep -v -e lost+found -e from-guest | head -3) | tar xf - -C from-guest
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
