package main

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
)

// Exit codes of fence agents, which are not those of other verbs.
const (
	fenceOK  = 0
	fenceErr = 1
	fenceOff = 2 // action status: the node is fenced
)

//go:embed fence.xml
var fenceMetadata string

const catFence = "Fencing"

func fenceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "action", Aliases: []string{"o"}, Value: "off", Usage: "on, off, reboot (the same as off), status, monitor, list, metadata, validate-all", Category: catFence},
		&cli.StringFlag{Name: "devices", Aliases: []string{"d"}, Usage: "`URLS` of the shared disks, separated by commas or spaces", Category: catFence},
		&cli.StringFlag{Name: "plug", Aliases: []string{"n", "port", "nodename"}, Usage: "`NODE` to fence or to admit; its key follows from this name", Category: catFence},
		&cli.StringFlag{Name: "key", Aliases: []string{"k"}, Usage: "`KEY` of the node, instead of the one that follows from its name", Category: catFence},
		&cli.BoolFlag{Name: "aptpl", Aliases: []string{"a"}, Usage: "keep registrations through a loss of power, if the server can", Category: catFence},
		&cli.IntFlag{Name: "delay", Usage: "wait so many `SECONDS` before fencing", Category: catFence},
		&cli.IntFlag{Name: "power-timeout", Value: 20, Usage: "give up after so many `SECONDS`, as a failure", Category: catFence},
		&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "log what is done", Category: catFence},
	}
}

func fenceCommand() *cli.Command {
	return &cli.Command{
		Name:  "fence",
		Usage: "fence agent for clusters: shut a node out of shared disks by persistent reservations",
		Description: `Called by Pacemaker as fence_vdbridge, with name=value lines on standard input, or by hand with flags. Each node
registers a key that follows from its name (action on, for itself, while the disks are attached); to
fence a node, another one takes its registration away by PREEMPT AND ABORT, and checks that it is gone.
A node that is fenced can still read, and can write again after its own action on.

  vdbridge fence -o on     -n node1 -d smb://me@server/disks/a.vhdx --password-file password
  vdbridge fence -o status -n node2 -d smb://me@server/disks/a.vhdx --password-file password
  vdbridge fence -o off    -n node2 -d smb://me@server/disks/a.vhdx --password-file password

Exit code 0: done, or the node is on; 1: failed; 2: the node is off (action status).`,
		Flags:  concat(fenceFlags(), connectionFlags(), initiatorFlags("`NAME` of this node's attachment to act for; not needed if a disk has only one")),
		Action: runFence,
	}
}

// fenceError is an error that ends a fence agent, always with the same exit code.
type fenceError struct{ error }

func (e fenceError) Unwrap() error { return e.error }
func (fenceError) ExitCode() int   { return fenceErr }

func runFence(c *cli.Context) error {
	code, err := fence(c)
	switch {
	case err != nil:
		return fenceError{err}
	case code != fenceOK:
		return errReported{cli.Exit("", code)}
	}
	return nil
}

func fence(c *cli.Context) (int, error) {
	if c.NumFlags() == 0 && c.NArg() == 0 {
		if err := fenceInput(c, os.Stdin); err != nil {
			return fenceErr, err
		}
	}
	action := strings.ToLower(c.String("action"))
	switch action {
	case "metadata":
		printf(c, "%s", fenceMetadata)
		return fenceOK, nil
	case "on", "off", "reboot", "status", "monitor", "list", "validate-all":
	default:
		return fenceErr, usage("the action %q is not known; it is on, off, reboot, status, monitor, list, metadata or validate-all", action)
	}
	disks, key, err := fenceTargets(c, action)
	if err != nil {
		return fenceErr, err
	}
	if action == "validate-all" {
		return fenceOK, nil
	}
	ctx, cancel := context.WithCancel(c.Context)
	defer cancel()
	if d := c.Int("delay"); d > 0 && (action == "off" || action == "reboot") {
		select {
		case <-time.After(time.Duration(d) * time.Second):
		case <-ctx.Done():
			return fenceErr, ctx.Err()
		}
	}
	ctx, cancelTime := context.WithTimeoutCause(ctx, time.Duration(c.Int("power-timeout"))*time.Second, errors.New("--power-timeout is over"))
	defer cancelTime()
	// All disks are tried, whichever fail: a node that is shut out of one of two does less harm.
	code := fenceOK
	var errs []error
	for _, loc := range disks {
		on, err := fenceDisk(ctx, c, loc, action, key)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", loc, err))
		} else if action == "status" && !on {
			code = fenceOff
		}
	}
	return code, errors.Join(errs...)
}

// fenceTargets reads what to act on. key is 0 for actions that are about no node.
func fenceTargets(c *cli.Context, action string) (disks []bridge.Location, key uint64, err error) {
	list := strings.FieldsFunc(c.String("devices"), func(r rune) bool { return r == ',' || r == ' ' || r == '\t' })
	if len(list) == 0 {
		return nil, 0, usage("give the shared disks with --devices (devices=…)")
	}
	for _, s := range list {
		loc, err := bridge.ParseLocation(s)
		if err != nil {
			return nil, 0, err
		}
		if loc.Local {
			return nil, 0, usage("reservations belong to shared disks on a server; %s is a local file", loc)
		}
		disks = append(disks, loc)
	}
	if c.Int("power-timeout") <= 0 || c.Int("delay") < 0 {
		return nil, 0, usage("--power-timeout and --delay are seconds")
	}
	switch {
	case c.String("key") != "":
		if key, err = keyFlag(c, "key"); err == nil && key == 0 {
			err = usage("the key 0 means no registration; choose another")
		}
	case c.String("plug") != "":
		key = bridge.FenceKey(c.String("plug"))
	case action == "monitor" || action == "list":
	default:
		err = usage("say which node: --plug NODE (plug=…), or its --key")
	}
	return disks, key, err
}

// fenceDisk acts on one disk. on is whether the node's key is registered.
func fenceDisk(ctx context.Context, c *cli.Context, loc bridge.Location, action string, key uint64) (on bool, err error) {
	level := slog.LevelError
	if c.Bool("verbose") {
		level = slog.LevelInfo
	}
	o, err := options(c, level)
	if err != nil {
		return false, err
	}
	o.Mode = bridge.ModeRSVD
	alone, err := bridge.AttachmentFor(loc, &o)
	if err != nil {
		return false, err
	}
	if alone && action != "status" && action != "monitor" && action != "list" {
		return false, &bridge.Error{Class: bridge.ClassConflict, Sentence: "the disk is not attached on this node, and a registration lasts only as long as an attachment: attach it first", Err: errors.New("not attached")}
	}
	d, err := bridge.Open(ctx, loc, o)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	switch action {
	case "on":
		return true, bridge.FenceOn(ctx, d.RSVD(), key, c.Bool("aptpl"))
	case "off", "reboot":
		return false, bridge.FenceOff(ctx, d.RSVD(), key)
	}
	s, err := bridge.ReadFenceState(ctx, d.RSVD())
	if err != nil {
		return false, err
	}
	if action == "list" {
		for k := range s.Keys {
			printf(c, "%s,\n", keyText(k))
		}
	}
	return s.Keys[key], nil
}

// maxFenceInput bounds what the cluster may say, in bytes.
const maxFenceInput = 64 << 10

// fenceInput reads name=value lines, as clusters give them to fence agents. Names that are not known are passed over, as they shall be.
func fenceInput(c *cli.Context, r io.Reader) error {
	sc := bufio.NewScanner(io.LimitReader(r, maxFenceInput))
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			return usage("standard input: %q is not of the form name=value", line)
		}
		if name == "option" {
			name = "action"
		}
		name = strings.ReplaceAll(name, "_", "-")
		for _, f := range c.Command.Flags {
			if !hasName(f, name) {
				continue
			}
			if _, isBool := f.(*cli.BoolFlag); isBool {
				value = strconv.FormatBool(truth(value))
			}
			if err := c.Set(f.Names()[0], value); err != nil {
				return usage("standard input: %s: %v", name, err)
			}
		}
	}
	return sc.Err()
}

func hasName(f cli.Flag, name string) bool {
	for _, n := range f.Names() {
		if n == name && len(n) > 1 {
			return true
		}
	}
	return false
}

// truth is what clusters write for yes.
func truth(s string) bool {
	switch strings.ToLower(s) {
	case "1", "yes", "true", "on":
		return true
	}
	return false
}
