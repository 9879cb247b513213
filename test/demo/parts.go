package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"vdbridge/test/lab"
)

const (
	diskFile   = "disk.vhdx"
	sharedFile = "shared.vhdx"

	stopGrace = 20 * time.Second
)

// makeDisk is part 1.
func (d *demo) makeDisk() error {
	var (
		tree  = d.path("tree")
		image = d.path("image.raw")
		disk  = filepath.Join(d.disks, diskFile)
		total int64
	)
	return d.steps(
		step{"Copy the Go source tree as the files to put on the disk", func() (_ string, err error) {
			out, err := d.run("go", "env", "GOROOT")
			if err != nil {
				return "", err
			}
			d.files, total, err = copyTree(tree, filepath.Join(strings.TrimSpace(out), "src"), d.trees)
			return fmt.Sprintf("%d files, %.0f MB, each one's SHA-256 noted", len(d.files), float64(total)/1e6), err
		}},
		step{"Make an ext4 file system of them with mkfs.ext4", func() (string, error) {
			_, err := d.run("mkfs.ext4", "-q", "-F", "-L", "vdbridge-demo", "-d", tree, image, d.disk)
			return "", errors.Join(err, os.RemoveAll(tree))
		}},
		step{"Put it into a dynamic VHDX with qemu-img", func() (string, error) {
			if _, err := d.run("qemu-img", "create", "-q", "-f", "vhdx", "-o", "subformat=dynamic", disk, d.disk); err != nil {
				return "", err
			}
			if _, err := d.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "vhdx", image, disk); err != nil {
				return "", err
			}
			return d.run("qemu-img", "check", "-f", "vhdx", disk)
		}},
	)
}

// serve starts `vdbridge serve` for the rest of the part and returns where it listens.
func (d *demo) serve() (addr string, err error) {
	p, addr, err := d.vd.Serve(d.ctx, d.disks, "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	d.later(func() error { return p.Stop(stopGrace) })
	return addr, nil
}

// export starts `vdbridge nbd` for the rest of the part and returns its NBD URI.
func (d *demo) export(name, url string, more ...string) (uri string, p *lab.Proc, err error) {
	p, uri, err = d.vd.NBD(d.ctx, url, d.path(name+".sock"), more...)
	if err != nil {
		return "", nil, err
	}
	d.later(func() error { return p.Stop(stopGrace) })
	return uri, p, nil
}

// shared is part 2.
func (d *demo) shared() error {
	var (
		addr, uri, a, b string
		logB            *lab.Proc
		before          = d.path("before.vhdx")
		shared          string
	)
	pr := func(node string, args ...string) (string, error) {
		args = append(append([]string{"pr"}, args...), d.vd.ClientArgs()...)
		return d.vd.Run(d.ctx, append(args, "--initiator", node, shared)...)
	}
	qemuIO := func(uri, command string) (string, error) {
		return d.run("qemu-io", "-f", "raw", "-c", command, uri)
	}
	err := d.steps(
		step{"Keep a copy of the image to compare with", func() (string, error) {
			_, _, err := copyFile(before, filepath.Join(d.disks, diskFile))
			return "", err
		}},
		step{"Start `vdbridge serve` on loopback", func() (_ string, err error) {
			addr, err = d.serve()
			return "listens at " + addr + ", share " + lab.Share, err
		}},
		step{"Ask what the disk is: `vdbridge info`", func() (string, error) {
			return d.vd.Run(d.ctx, append(append([]string{"info", "--mode", "rsvd"}, d.vd.ClientArgs()...), lab.URL(addr, diskFile))...)
		}},
		step{"Open it as a shared disk and export it: `vdbridge nbd --mode rsvd`", func() (_ string, err error) {
			uri, _, err = d.export("disk", lab.URL(addr, diskFile), "--mode", "rsvd")
			return uri, err
		}},
		step{"Read all of it with nbdcopy", func() (string, error) {
			_, err := d.run("nbdcopy", uri, d.path("copy.raw"))
			return "", err
		}},
		step{"Compare with qemu-img", func() (string, error) {
			out, err := d.run("qemu-img", "compare", "-f", "raw", "-F", "vhdx", d.path("copy.raw"), before)
			return out, errors.Join(err, os.Remove(d.path("copy.raw")))
		}},
		step{"Make a second disk with `vdbridge create` and open it twice, as two hosts would", func() (_ string, err error) {
			out, err := d.vd.Run(d.ctx, "create", filepath.Join(d.disks, sharedFile), "--size", "512M")
			if err != nil {
				return out, err
			}
			shared = lab.URL(addr, sharedFile)
			if a, _, err = d.export("node-a", shared, "--mode", "rsvd", "--initiator", "node-a"); err != nil {
				return "", err
			}
			b, logB, err = d.export("node-b", shared, "--mode", "rsvd", "--initiator", "node-b")
			return "two initiators, node-a and node-b, each with its own connection and NBD export", err
		}},
		step{"fio writes and verifies through both at once (crc32c of every block)", func() (string, error) {
			job := func(uri, offset string) *exec.Cmd {
				return exec.Command("fio", "--name=verify", "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bsrange=4k-64k", "--iodepth=16",
					"--offset="+offset, "--size="+d.fio, "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randrepeat=1")
			}
			var ps []*lab.Proc
			for _, j := range []*exec.Cmd{job(a, "0"), job(b, "256M")} {
				j.Dir = d.dir // fio leaves its verify state where it runs
				p, err := lab.Start(j, nil)
				if err != nil {
					return "", err
				}
				defer p.Kill()
				ps = append(ps, p)
			}
			var detail []string
			for i, p := range ps {
				if err := p.Wait(d.ctx); err != nil {
					return "", err
				}
				for _, l := range strings.Split(p.Output(), "\n") {
					if l = strings.TrimSpace(l); strings.HasPrefix(l, "write:") || strings.HasPrefix(l, "read:") {
						detail = append(detail, []string{"node-a ", "node-b "}[i]+l)
					}
				}
			}
			return strings.Join(detail, "\n"), nil
		}},
		step{"What node-a writes, node-b reads", func() (string, error) {
			if _, err := qemuIO(a, "write -P 0xa5 480M 1M"); err != nil {
				return "", err
			}
			_, err := qemuIO(b, "read -P 0xa5 480M 1M")
			return "1 MiB written through one export, found through the other", err
		}},
		step{"node-a reserves the disk: Write Exclusive, Registrants Only", func() (string, error) {
			if out, err := pr("node-a", "register", "--key", "0xa1"); err != nil {
				return out, err
			}
			if out, err := pr("node-a", "reserve", "--key", "0xa1", "--type", "wero"); err != nil {
				return out, err
			}
			return pr("node-a", "status")
		}},
		step{"node-b's write is refused now, and its read is not", func() (string, error) {
			out, err := qemuIO(b, "write -P 0x5a 480M 4k")
			if err == nil {
				return "", fmt.Errorf("node-b's write went through in spite of node-a's reservation:\n%s", out)
			}
			if _, err := qemuIO(b, "read -P 0xa5 480M 1M"); err != nil {
				return "", err
			}
			said := lineWith(out, "rror")
			for _, l := range strings.Split(logB.Output(), "\n") {
				if strings.Contains(strings.ToLower(l), "reservation conflict") {
					return "the NBD client sees: " + said + "\nvdbridge's log says: " + strings.TrimSpace(l), nil
				}
			}
			return "", fmt.Errorf("node-b's log does not tell of the reservation conflict:\n%s", logB.Output())
		}},
		step{"node-a still writes, and when it has released the disk, so does node-b", func() (string, error) {
			if _, err := qemuIO(a, "write -P 0xa6 480M 4k"); err != nil {
				return "", err
			}
			if out, err := pr("node-a", "release", "--key", "0xa1", "--type", "wero"); err != nil {
				return out, err
			}
			_, err := qemuIO(b, "write -P 0x5a 480M 4k")
			return "", err
		}},
	)
	if err != nil {
		return err
	}
	if err := d.clean(); err != nil {
		return err
	}
	return d.steps(step{"Everything is stopped; qemu-img checks both images", func() (string, error) {
		out, err := d.run("qemu-img", "check", "-f", "vhdx", filepath.Join(d.disks, sharedFile))
		if err != nil {
			return out, err
		}
		out2, err := d.run("qemu-img", "check", "-f", "vhdx", filepath.Join(d.disks, diskFile))
		return strings.TrimSpace(out) + "\n" + out2, errors.Join(err, os.Remove(filepath.Join(d.disks, sharedFile)), os.Remove(before))
	}})
}

// lineWith returns the first line of s that has part in it.
func lineWith(s, part string) string {
	for _, l := range strings.Split(s, "\n") {
		if strings.Contains(l, part) {
			return strings.TrimSpace(l)
		}
	}
	return strings.TrimSpace(s)
}

// fuse is part 3.
func (d *demo) fuse() error {
	var addr string
	err := d.steps(step{"Start `vdbridge serve`", func() (_ string, err error) {
		addr, err = d.serve()
		return "", err
	}})
	if err != nil {
		return err
	}
	if err := d.mountAndWork(lab.URL(addr, diskFile), "rsvd", "fuse"); err != nil {
		return err
	}
	if err := d.clean(); err != nil {
		return err
	}
	return d.judge()
}

// mountAndWork shows the disk with FUSE, mounts the file system in it by a loop device, and reads and writes there.
func (d *demo) mountAndWork(url, mode, name string) error {
	var (
		mnt, ext4 = d.path(name), d.path(name + "-ext4")
		fuse      *lab.Proc
		loop      string
		flags     = []string{"--mode", mode}
	)
	if mode == "rsvd" {
		flags = append(flags, "--reserve") // ext4 is for one host
	}
	return d.steps(
		step{"Show the disk as a file: `vdbridge mount " + strings.Join(flags, " ") + "`", func() (string, error) {
			if err := errors.Join(os.Mkdir(mnt, 0o755), os.Mkdir(ext4, 0o755)); err != nil {
				return "", err
			}
			var err error
			fuse, err = d.vd.Mount(d.ctx, url, mnt, flags...)
			if err != nil {
				return "", err
			}
			d.later(func() error { return fuse.Stop(stopGrace) })
			fi, err := os.Stat(filepath.Join(mnt, "disk.raw"))
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("disk.raw, %d MiB", fi.Size()>>20), nil
		}},
		step{"Mount the ext4 file system in it through a loop device", func() (string, error) {
			out, err := d.run("losetup", "-f", "--show", filepath.Join(mnt, "disk.raw"))
			if err != nil {
				return "", err
			}
			loop = strings.TrimSpace(out)
			d.later(func() error { _, err := lab.Run(background(), "losetup", "-d", loop); return err })
			if _, err := d.run("mount", "-t", "ext4", loop, ext4); err != nil {
				return "", err
			}
			d.later(func() error { _, err := lab.Run(background(), "umount", ext4); return err })
			return loop + " on " + ext4, nil
		}},
		step{"Read every file and compare", func() (string, error) {
			return fmt.Sprintf("%d files are what they should be", len(d.files)), compareTree(ext4, d.files)
		}},
		step{"Write new files, change some, remove some", func() (string, error) {
			detail, err := d.change(ext4, name)
			if err != nil {
				return "", err
			}
			_, err = d.run("sync", "-f", ext4)
			return detail, err
		}},
		step{"Unmount", func() (string, error) { return "", d.undo(2) }},
		step{"Mount again and compare again: what was written is there", func() (string, error) {
			out, err := d.run("losetup", "-f", "--show", filepath.Join(mnt, "disk.raw"))
			if err != nil {
				return "", err
			}
			loop = strings.TrimSpace(out)
			d.later(func() error { _, err := lab.Run(background(), "losetup", "-d", loop); return err })
			if _, err := d.run("mount", "-t", "ext4", loop, ext4); err != nil {
				return "", err
			}
			d.later(func() error { _, err := lab.Run(background(), "umount", ext4); return err })
			return "", compareTree(ext4, d.files)
		}},
	)
}

// undo undoes the last n things now.
func (d *demo) undo(n int) error {
	for ; n > 0 && len(d.cleanup) > 0; n-- {
		f := d.cleanup[len(d.cleanup)-1]
		d.cleanup = d.cleanup[:len(d.cleanup)-1]
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// change writes, overwrites and removes files below root and keeps d.files in step.
func (d *demo) change(root, name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	sum, n, err := copyFile(filepath.Join(root, "written-by-"+name), self)
	if err != nil {
		return "", err
	}
	d.files["written-by-"+name] = sum
	changed, removed := 0, 0
	for rel := range d.files {
		if strings.HasPrefix(rel, "written-by") {
			continue
		}
		if removed < 50 {
			if err := os.Remove(filepath.Join(root, rel)); err != nil {
				return "", err
			}
			delete(d.files, rel)
			removed++
			continue
		}
		f, err := os.OpenFile(filepath.Join(root, rel), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return "", err
		}
		_, err = fmt.Fprintf(f, "// changed by part %s\n", name)
		if err := errors.Join(err, f.Close()); err != nil {
			return "", err
		}
		if d.files[rel], err = hashFile(filepath.Join(root, rel)); err != nil {
			return "", err
		}
		if changed++; changed == 50 {
			break
		}
	}
	return fmt.Sprintf("a file of %.0f MB written, %d files changed, %d removed", float64(n)/1e6, changed, removed), nil
}

// judge checks the image and the file system in it with foreign tools, while nothing of ours runs.
func (d *demo) judge() error {
	return d.steps(step{"Everything is stopped; qemu-img checks the image, e2fsck the file system", func() (string, error) {
		disk, raw := filepath.Join(d.disks, diskFile), d.path("judge.raw")
		check, err := d.run("qemu-img", "check", "-f", "vhdx", disk)
		if err != nil {
			return "", err
		}
		if _, err := d.run("qemu-img", "convert", "-f", "vhdx", "-O", "raw", disk, raw); err != nil {
			return "", err
		}
		fsck, err := d.run("e2fsck", "-fn", raw)
		if err != nil {
			return "", err
		}
		lines := strings.Split(strings.TrimSpace(fsck), "\n")
		return strings.TrimSpace(check) + "\n" + lines[len(lines)-1], os.Remove(raw)
	}})
}

// samba is part 4.
func (d *demo) samba() error {
	var uri, url string
	err := d.steps(
		step{"Start a private smbd on loopback", func() (string, error) {
			var (
				err     error
				version string
			)
			url, version, err = d.startSmbd()
			return version + ", " + url, err
		}},
		step{"Asked for a shared disk, vdbridge says that this server has none", func() (string, error) {
			out, err := d.vd.Run(d.ctx, append(append([]string{"info", "--mode", "rsvd"}, d.vd.ClientArgs()...), url)...)
			if err == nil {
				return "", fmt.Errorf("it found one:\n%s", out)
			}
			return out, nil
		}},
		step{"Export the disk in plain mode: `vdbridge nbd`", func() (_ string, err error) {
			uri, _, err = d.export("plain", url)
			return uri, err
		}},
		step{"Read all of it with nbdcopy; e2fsck finds the file system in order", func() (string, error) {
			if _, err := d.run("nbdcopy", uri, d.path("copy.raw")); err != nil {
				return "", err
			}
			out, err := d.run("e2fsck", "-fn", d.path("copy.raw"))
			return lineWith(out, "files"), errors.Join(err, os.Remove(d.path("copy.raw")))
		}},
		step{"Stop the export, which frees the disk for the next", func() (string, error) { return "", d.undo(1) }},
	)
	if err != nil {
		return err
	}
	if err := d.mountAndWork(url, "file", "samba"); err != nil {
		return err
	}
	if err := d.clean(); err != nil {
		return err
	}
	return d.judge()
}
