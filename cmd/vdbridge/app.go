package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/urfave/cli/v2"
)

const description = `A URL is smb://[domain;]user@host[:port]/share/dir/disk.vhdx, also //host/share/… and \\host\share\….
Passwords come from --password-file, --credentials, the environment variable VDBRIDGE_PASSWORD, or a
prompt on the terminal; never from an argument. A disk is opened as a shared disk (MS-RSVD) when the
server offers that, otherwise as a file for this host alone; --mode rsvd or --mode file insists.

Try it without any other server:

  mkdir disks; vdbridge create disks/a.vhdx --size 10G
  echo 'me:secret' > users; echo secret > password
  vdbridge serve disks --users users &
  vdbridge nbd smb://me@127.0.0.1:4450/disks/a.vhdx --password-file password --listen unix:/tmp/a.sock &
  nbdinfo 'nbd+unix:///?socket=/tmp/a.sock'`

// newApp makes the command line.
func newApp(out, errOut io.Writer) *cli.App {
	return &cli.App{
		Name:                   "vdbridge",
		Usage:                  "virtual disks on SMB 3 file servers, as disks on Linux",
		Description:            description,
		HideVersion:            true,
		UseShortOptionHandling: true,
		Writer:                 out,
		ErrWriter:              errOut,
		ExitErrHandler:         func(*cli.Context, error) {},
		OnUsageError:           onUsageError,
		Flags:                  append(logFlags(), &cli.BoolFlag{Name: "version", Aliases: []string{"V"}, Usage: "print the version"}),
		Commands: []*cli.Command{
			attachCommand(), detachCommand(), statusCommand(), doctorCommand(), daemonCommand(),
			serveCommand(), nbdCommand(), mountCommand(), umountCommand(), infoCommand(), lsCommand(), createCommand(), checkCommand(),
			copyCommand(), convertCommand(), compactCommand(), resizeCommand(), mergeCommand(),
			prCommand(), fenceCommand(), scsiCommand(), benchCommand(), manCommand(), completionCommand(), versionCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.Bool("version") {
				return printVersion(c)
			}
			if c.Args().Present() {
				return usage("there is no command %q; 'vdbridge --help' lists them", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
}

// onUsageError makes an error of the flag parser one sentence.
func onUsageError(c *cli.Context, err error, _ bool) error {
	name := "vdbridge"
	if c.Command != nil && c.Command.HelpName != "" {
		name = c.Command.HelpName
	}
	if f, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: "); ok {
		return usage("there is no flag -%s; '%s --help' lists them", f, name)
	}
	return usage("%s; '%s --help' lists the flags", err, name)
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	app := newApp(out, errOut)
	for _, c := range app.Commands {
		prepare(c)
	}
	args, err := flagsFirst(app, args)
	if err == nil {
		err = app.RunContext(ctx, args)
	}
	return complain(errOut, err)
}

// prepare gives every command what all have.
func prepare(c *cli.Command) {
	c.OnUsageError = onUsageError
	c.UseShortOptionHandling = true
	if len(c.Subcommands) == 0 {
		c.Flags = append(c.Flags, logFlags()...)
	}
	for _, s := range c.Subcommands {
		prepare(s)
	}
}

// flagsFirst moves flags before the other arguments, as the flag parser stops at the first of those and people do not. What follows "--"
// stays where it is.
func flagsFirst(app *cli.App, args []string) ([]string, error) {
	if len(args) == 0 {
		return args, nil
	}
	flags, commands := app.Flags, app.Commands
	out := []string{args[0]}
	var options, rest []string
	args = args[1:]
	for len(args) > 0 {
		a := args[0]
		args = args[1:]
		switch {
		case a == "--":
			rest = append(rest, "--")
			rest = append(rest, args...)
			args = nil
		case len(a) > 1 && a[0] == '-' && !isNumber(a):
			options = append(options, a)
			if takesValue(flags, a) && len(args) > 0 {
				options = append(options, args[0])
				args = args[1:]
			}
		default:
			if c := findCommand(commands, a); c != nil && len(rest) == 0 {
				out = append(append(out, options...), a)
				options = nil
				flags, commands = c.Flags, c.Subcommands
				continue
			}
			if len(commands) > 0 && len(rest) == 0 && a != "help" && a != "h" {
				return nil, usage("there is no command %q; '%s --help' lists them", a, strings.Join(append([]string{"vdbridge"}, out[1:]...), " "))
			}
			rest = append(rest, a)
		}
	}
	return append(append(out, options...), rest...), nil
}

func isNumber(s string) bool {
	return strings.Trim(s[1:], "0123456789") == ""
}

func findCommand(list []*cli.Command, name string) *cli.Command {
	for _, c := range list {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

// takesValue says whether the argument after the flag belongs to it.
func takesValue(flags []cli.Flag, arg string) bool {
	name := strings.TrimLeft(arg, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range flags {
		for _, n := range f.Names() {
			if n == name {
				_, isBool := f.(*cli.BoolFlag)
				return !isBool
			}
		}
	}
	return false
}

func logFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "log-level", Usage: "least severe messages to print: debug, info, warn, error", Value: "warn", Category: "Messages"},
		&cli.StringFlag{Name: "log-format", Usage: "text or json", Value: "text", Category: "Messages"},
	}
}

// nearest is the value of a flag that exists at several levels of the command line, where it was set.
func nearest(c *cli.Context, name string) string {
	for _, l := range c.Lineage() {
		if l.IsSet(name) {
			return l.String(name)
		}
	}
	return c.String(name)
}

// logger makes the logger of a command. Messages go to standard error. def is the level without --log-level.
func logger(c *cli.Context, def slog.Level) (*slog.Logger, error) {
	o := &slog.HandlerOptions{Level: def}
	for _, l := range c.Lineage() {
		if l.IsSet("log-level") {
			var level slog.Level
			if err := level.UnmarshalText([]byte(nearest(c, "log-level"))); err != nil {
				return nil, usage("--log-level %q is not known; it is debug, info, warn or error", nearest(c, "log-level"))
			}
			o.Level = level
			break
		}
	}
	switch f := nearest(c, "log-format"); f {
	case "text":
		return slog.New(slog.NewTextHandler(c.App.ErrWriter, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(c.App.ErrWriter, o)), nil
	default:
		return nil, usage("--log-format %q is not known; it is text or json", f)
	}
}

// oneArg returns the only argument of a command.
func oneArg(c *cli.Context, what string) (string, error) {
	if c.NArg() != 1 {
		return "", usage("give exactly one %s; '%s --help' has an example", what, c.Command.HelpName)
	}
	return c.Args().First(), nil
}

// need says which of the flags is missing, if one is.
func need(c *cli.Context, names ...string) error {
	for _, n := range names {
		if !c.IsSet(n) {
			return usage("--%s is missing; '%s --help' has an example", n, c.Command.HelpName)
		}
	}
	return nil
}

// printf writes to standard output. What cannot be written there cannot be told either.
func printf(c *cli.Context, format string, args ...any) { fmt.Fprintf(c.App.Writer, format, args...) }
