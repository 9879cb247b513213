package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
	"vdbridge/rsvd"
	"vdbridge/scsi"
)

// The short names of reservation types, as on the command line.
var prTypes = []struct {
	name string
	typ  scsi.PRType
}{
	{"we", scsi.WriteExclusive},
	{"ea", scsi.ExclusiveAccess},
	{"wero", scsi.WriteExclusiveRegistrantsOnly},
	{"earo", scsi.ExclusiveAccessRegistrantsOnly},
	{"wear", scsi.WriteExclusiveAllRegistrants},
	{"eaar", scsi.ExclusiveAccessAllRegistrants},
}

func parsePRType(s string) (scsi.PRType, error) {
	for _, t := range prTypes {
		if s == t.name || s == strconv.Itoa(int(t.typ)) {
			return t.typ, nil
		}
	}
	return 0, usage("the reservation type %q is not known; it is we, ea, wero, earo, wear or eaar (or its number 1, 3, 5, 6, 7, 8)", s)
}

func parseKey(name, s string) (uint64, error) {
	k, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		return 0, usage("--%s %q is not a key: a number up to 64 bits, such as 0xa1", name, s)
	}
	return k, nil
}

func prCommand() *cli.Command {
	key := func(use string) cli.Flag { return &cli.StringFlag{Name: "key", Usage: use} }
	typ := &cli.StringFlag{Name: "type", Usage: "we, ea: write exclusive, exclusive access; wero, earo: for registrants only; wear, eaar: all registrants", Value: "wero"}
	aptpl := &cli.BoolFlag{Name: "aptpl", Usage: "keep registrations through a loss of power, if the server can"}
	mine := "our registered `KEY`"
	verb := func(name, usage, example string, act prAction, flags ...cli.Flag) *cli.Command {
		return &cli.Command{
			Name: name, Usage: usage, ArgsUsage: "URL", Description: "  " + example,
			Flags:  concat(flags, diskFlags(), initiatorFlags("`NAME` of the attachment to act for; not needed if this disk has only one")),
			Action: func(c *cli.Context) error { return runPR(c, act) },
		}
	}
	return &cli.Command{
		Name:  "pr",
		Usage: "see and change SCSI persistent reservations of a shared disk",
		Description: `A registration belongs to an initiator: the identity of an attachment (vdbridge nbd, vdbridge mount) on
this host. The commands act for that attachment, while it runs. A server drops what an initiator has
registered when its last open is closed, so a registration without an attachment ends with the command.

  vdbridge pr register smb://me@server/disks/a.vhdx --key 0xa1
  vdbridge pr reserve  smb://me@server/disks/a.vhdx --key 0xa1 --type wero
  vdbridge pr status   smb://me@server/disks/a.vhdx`,
		Subcommands: []*cli.Command{
			verb("keys", "list the registered keys", "vdbridge pr keys smb://me@server/disks/a.vhdx", prKeys, jsonFlag),
			alias(verb("status", "show the reservation and who is registered", "vdbridge pr status smb://me@server/disks/a.vhdx", prStatus, jsonFlag), "show"),
			verb("register", "register a key", "vdbridge pr register smb://me@server/disks/a.vhdx --key 0xa1", prRegister,
				key("`KEY` to register"), &cli.StringFlag{Name: "old-key", Usage: "only if this `KEY` is registered now (0: none); without it whatever is registered is replaced"}, aptpl),
			verb("unregister", "give our registration up", "vdbridge pr unregister smb://me@server/disks/a.vhdx --key 0xa1", prUnregister, key(mine)),
			verb("reserve", "reserve the disk", "vdbridge pr reserve smb://me@server/disks/a.vhdx --key 0xa1 --type wero", prReserve, key(mine), typ),
			verb("release", "release our reservation", "vdbridge pr release smb://me@server/disks/a.vhdx --key 0xa1 --type wero", prRelease, key(mine), typ),
			verb("preempt", "take another's registration away, and its reservation over", "vdbridge pr preempt smb://me@server/disks/a.vhdx --key 0xa1 --victim 0xb2", prPreempt,
				key(mine), &cli.StringFlag{Name: "victim", Usage: "`KEY` to take away"}, typ),
			verb("preempt-abort", "preempt, and abort what the victim has under way", "vdbridge pr preempt-abort smb://me@server/disks/a.vhdx --key 0xa1 --victim 0xb2", prPreemptAbort,
				key(mine), &cli.StringFlag{Name: "victim", Usage: "`KEY` to take away"}, typ),
			verb("clear", "take the reservation and all registrations away", "vdbridge pr clear smb://me@server/disks/a.vhdx --key 0xa1", prClear, key(mine)),
			verb("move", "move our reservation to another initiator", "vdbridge pr move smb://me@server/disks/a.vhdx --key 0xa1 --to GUID --new-key 0xb2", prMove,
				key(mine), &cli.StringFlag{Name: "to", Usage: "`GUID` of the other initiator, which 'pr status' shows"},
				&cli.StringFlag{Name: "new-key", Usage: "`KEY` to register for it"}, &cli.BoolFlag{Name: "unregister", Usage: "give our registration up"}, aptpl),
			verb("capabilities", "say which reservations the server has", "vdbridge pr capabilities smb://me@server/disks/a.vhdx", prCapabilities, jsonFlag),
		},
	}
}

func alias(c *cli.Command, names ...string) *cli.Command {
	c.Aliases = names
	return c
}

// prAction does the work of one subcommand. It returns what to print: a sentence, or, with --json, anything.
type prAction func(ctx context.Context, c *cli.Context, d *rsvd.Disk) (text string, data any, err error)

func runPR(c *cli.Context, act prAction) (err error) {
	loc, o, err := target(c, slog.LevelError)
	if err != nil {
		return err
	}
	if loc.Local {
		return usage("reservations belong to shared disks on a server; %s is a local file", loc)
	}
	if o.Mode == bridge.ModeFile {
		return usage("reservations need a shared disk; leave --mode file out")
	}
	o.Mode = bridge.ModeRSVD
	if err := checkPRFlags(c); err != nil {
		return err
	}
	alone, err := bridge.AttachmentFor(loc, &o)
	if err != nil {
		return err
	}
	d, err := bridge.Open(c.Context, loc, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	text, data, err := act(c.Context, c, d.RSVD())
	if err != nil {
		if errors.Is(err, rsvd.ErrReservationConflict) {
			return &bridge.Error{Class: bridge.ClassConflict, Err: err, Sentence: "reservation conflict: " + conflictAdvice(c.Command.Name)}
		}
		return err
	}
	if c.Bool("json") {
		return printJSON(c, data)
	}
	printf(c, "%s", text)
	if alone && (c.Command.Name == "register" || c.Command.Name == "reserve") {
		fmt.Fprintf(c.App.ErrWriter, "vdbridge: note: no running attachment of this host is initiator %q, so the server drops this when the command ends\n", o.Attachment)
	}
	return nil
}

// checkPRFlags finds mistakes before a server is asked.
func checkPRFlags(c *cli.Context) error {
	for _, f := range c.Command.Flags {
		n := f.Names()[0]
		var err error
		switch n {
		case "key", "victim", "new-key":
			if err = need(c, n); err == nil {
				_, err = keyFlag(c, n)
			}
		case "old-key":
			if c.IsSet(n) {
				_, err = keyFlag(c, n)
			}
		case "to":
			if err = need(c, n); err == nil {
				_, err = bridge.ParseGUID(c.String(n))
			}
		case "type":
			_, err = parsePRType(c.String(n))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func conflictAdvice(verb string) string {
	switch verb {
	case "register":
		return "another key than --old-key says is registered for this initiator; 'pr status' shows it"
	case "reserve":
		return "another initiator holds a reservation, or --key is not what this initiator has registered; 'pr status' shows both"
	default:
		return "--key is not what this initiator has registered; 'pr status' shows what is"
	}
}

// keyFlag reads a key.
func keyFlag(c *cli.Context, name string) (uint64, error) { return parseKey(name, c.String(name)) }

func keyText(k uint64) string { return fmt.Sprintf("0x%016x", k) }

// keyAndType reads --key and --type.
func keyAndType(c *cli.Context) (uint64, scsi.PRType, error) {
	k, err := keyFlag(c, "key")
	if err != nil {
		return 0, 0, err
	}
	t, err := parsePRType(c.String("type"))
	return k, t, err
}

func prRegister(ctx context.Context, c *cli.Context, d *rsvd.Disk) (string, any, error) {
	k, err := keyFlag(c, "key")
	if err != nil {
		return "", nil, err
	}
	if k == 0 {
		return "", nil, usage("the key 0 means no registration; use 'vdbridge pr unregister'")
	}
	text := fmt.Sprintf("registered key %s\n", keyText(k))
	if !c.IsSet("old-key") {
		return text, nil, d.RegisterIgnore(ctx, k, c.Bool("aptpl"))
	}
	old, err := keyFlag(c, "old-key")
	if err != nil {
		return "", nil, err
	}
	return text, nil, d.Register(ctx, old, k, c.Bool("aptpl"))
}

func prUnregister(ctx context.Context, c *cli.Context, d *rsvd.Disk) (string, any, error) {
	k, err := keyFlag(c, "key")
	if err != nil {
		return "", nil, err
	}
	return "unregistered\n", nil, d.Register(ctx, k, 0, false)
}

func prReserve(ctx context.Context, c *cli.Context, d *rsvd.Disk) (string, any, error) {
	k, t, err := keyAndType(c)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("reserved: %v\n", t), nil, d.Reserve(ctx, k, t)
}

func prRelease(ctx context.Context, c *cli.Context, d *rsvd.Disk) (string, any, error) {
	k, t, err := keyAndType(c)
	if err != nil {
		return "", nil, err
	}
	return "released\n", nil, d.Release(ctx, k, t)
}

func prPreempt(ctx context.Context, c *cli.Context, d *rsvd.Disk) (string, any, error) {
	return preempt(ctx, c, d.Preempt)
}

func prPreemptAbort(ctx context.Context, c *cli.Context, d *rsvd.Disk) (string, any, error) {
	return preempt(ctx, c, d.PreemptAbort)
}

func preempt(ctx context.Context, c *cli.Context, f func(context.Context, uint64, uint64, scsi.PRType) error) (string, any, error) {
	k, t, err := keyAndType(c)
	if err != nil {
		return "", nil, err
	}
	v, err := keyFlag(c, "victim")
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("preempted key %s\n", keyText(v)), nil, f(ctx, k, v, t)
}

func prClear(ctx context.Context, c *cli.Context, d *rsvd.Disk) (string, any, error) {
	k, err := keyFlag(c, "key")
	if err != nil {
		return "", nil, err
	}
	return "cleared\n", nil, d.Clear(ctx, k)
}

func prMove(ctx context.Context, c *cli.Context, d *rsvd.Disk) (string, any, error) {
	k, err := keyFlag(c, "key")
	if err != nil {
		return "", nil, err
	}
	n, err := keyFlag(c, "new-key")
	if err != nil {
		return "", nil, err
	}
	to, err := bridge.ParseGUID(c.String("to"))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("moved to %s, key %s\n", bridge.FormatGUID(to), keyText(n)), nil, d.Move(ctx, k, n, to, c.Bool("unregister"), c.Bool("aptpl"))
}
