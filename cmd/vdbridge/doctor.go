package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
	"vdbridge/bridge/daemon"
	"vdbridge/nbd/kernel"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:      "doctor",
		Usage:     "walk the chain from this host to a disk, and say which link is broken and what to do",
		ArgsUsage: "[URL|FILE]",
		Description: `Without a URL only this host is looked at. The disk is opened read-only; nothing is changed. The exit code is that of the
first broken link of the way to the disk; what only 'attach' needs is told, but breaks nothing else.

  vdbridge doctor
  vdbridge doctor smb://me@server/disks/a.vhdx --password-file password`,
		Flags:  concat([]cli.Flag{jsonFlag, runDirFlag()}, openFlags()),
		Action: doctor,
	}
}

func doctor(c *cli.Context) error {
	if c.NArg() > 1 {
		return usage("give one URL or file, or none; '%s --help' has an example", c.Command.HelpName)
	}
	o, err := options(c, slog.LevelError)
	if err != nil {
		return err
	}
	list := []bridge.Finding{}
	found := func(k bridge.Finding) {
		list = append(list, k)
		if !c.Bool("json") {
			printf(c, "%-8s %-15s %s\n", k.Result, k.Link, oneLine(k.Text))
		}
	}
	host := checkHost(c, found)
	var broken error
	if target := c.Args().First(); target != "" {
		loc, err := bridge.ParseLocation(target)
		if err != nil {
			return err
		}
		broken = bridge.Diagnose(c.Context, loc, o, found)
		checkDevice(c, loc, found)
	} else {
		broken = host
	}
	if c.Bool("json") {
		if err := printJSON(c, list); err != nil {
			return err
		}
	}
	return broken
}

// checkHost looks at what attach needs of this host, and returns the first thing that is missing.
func checkHost(c *cli.Context, found func(bridge.Finding)) (first error) {
	report := func(link, good string, err error) {
		if err == nil {
			found(bridge.Finding{Link: link, Result: bridge.CheckOK, Text: good})
			return
		}
		found(bridge.Finding{Link: link, Result: bridge.CheckBroken, Text: err.Error()})
		if first == nil {
			first = err
		}
	}
	var err error
	if os.Geteuid() != 0 {
		err = &bridge.Error{Class: bridge.ClassPermission, Sentence: "attach needs root: use sudo (nbd and mount do not)"}
	}
	report("permissions", "root", err)
	if err = kernel.Load(); err != nil {
		err = &bridge.Error{Class: bridge.ClassUnsupported, Sentence: err.Error(), Err: err}
	}
	report("module", "the kernel has nbd", err)
	if err == nil && os.Geteuid() == 0 {
		var d kernel.Driver
		way := "devices survive a restart of the daemon"
		if d, err = kernel.Open(); err == nil {
			if !d.Survives() {
				way = "by ioctl only, as in a container: devices end with their daemon"
			}
			_ = d.Close()
		}
		report("driver", way, err)
	}
	dir := c.String("state-dir")
	report("state directory", dir, writable(dir))
	ctx, cancel := context.WithTimeout(c.Context, 2*time.Second)
	defer cancel()
	resp, err := daemon.Call(ctx, c.String("run-dir"), &daemon.Request{Verb: daemon.VerbPing})
	switch {
	case err == nil:
		found(bridge.Finding{Link: "daemon", Result: bridge.CheckOK, Text: fmt.Sprintf("process %d answers", resp.PID)})
	case errors.Is(err, daemon.ErrNotRunning):
		found(bridge.Finding{Link: "daemon", Result: bridge.CheckNote, Text: "none runs; attach starts one"})
	default:
		report("daemon", "", err)
	}
	return first
}

// writable tries to write in a directory, or in the first one above it that exists.
func writable(dir string) error {
	for {
		if _, err := os.Stat(dir); err == nil || filepath.Dir(dir) == dir {
			break
		}
		dir = filepath.Dir(dir)
	}
	f, err := os.CreateTemp(dir, ".vdbridge-doctor-")
	if err != nil {
		return fmt.Errorf("%s cannot be written: %w; choose another with --state-dir", dir, err)
	}
	_, err = f.Write(make([]byte, 4096))
	err = errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
	if err != nil {
		return fmt.Errorf("%s cannot be written: %w; make room there, or choose another with --state-dir", dir, err)
	}
	return nil
}

// checkDevice says whether the disk is used on this host.
func checkDevice(c *cli.Context, loc bridge.Location, found func(bridge.Finding)) {
	ctx, cancel := context.WithTimeout(c.Context, 2*time.Second)
	defer cancel()
	list, _, err := daemon.StatusAll(ctx, c.String("run-dir"))
	if err != nil {
		return
	}
	text := "the disk is not attached on this host"
	result := bridge.CheckSkipped
	for _, s := range list {
		if l, err := bridge.ParseLocation(s.URL); err == nil && l.SameDisk(loc) {
			result, text = bridge.CheckOK, fmt.Sprintf("%s by process %d (%s): %s %s", s.Where, s.PID, s.Kind, stateText(&s), s.Why)
			if s.Device != nil && s.Device.Alive < s.Device.Connections {
				result = bridge.CheckNote
				text += fmt.Sprintf("; %d of %d connections with the kernel are alive", s.Device.Alive, s.Device.Connections)
			}
		}
	}
	found(bridge.Finding{Link: "device", Result: result, Text: text})
}
