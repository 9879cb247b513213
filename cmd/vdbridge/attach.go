package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
	"vdbridge/bridge/daemon"
	"vdbridge/nbd/kernel"
)

func runDirFlag() cli.Flag {
	return &cli.StringFlag{Name: "run-dir", Usage: "where the control sockets of running processes are", Value: daemon.DefaultRunDir(), EnvVars: []string{"VDBRIDGE_RUN_DIR"}, Category: "Life"}
}

// openFlags are the flags that say how the disk of an attachment is opened; the daemon is told their values.
func openFlags() []cli.Flag {
	return append(append(diskFlags(), lossFlags()...), initiatorFlags("`NAME` of this attachment's initiator, kept in the state directory (default: attach)")...)
}

// deviceFlags are those of the device.
func deviceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "device", Usage: "`DEVICE` such as /dev/nbd3; by default a free one", Category: catDevice},
		&cli.IntFlag{Name: "connections", Usage: "connections between the kernel and vdbridge", Value: defaultConnections, Category: catDevice},
		&cli.BoolFlag{Name: "read-only", Usage: "refuse writes", Category: catDevice},
		&cli.DurationFlag{Name: "io-timeout", Usage: "after this the kernel sends a request again; what was in flight when a daemon was killed waits for it", Value: defaultIOTimeout, Category: catDevice},
		&cli.StringFlag{Name: "name", Usage: "`NAME` of the attachment, by which it can be detached", Category: catDevice},
	}
}

const (
	catDevice          = "Device"
	defaultConnections = 2
	defaultIOTimeout   = 15 * time.Second
)

func attachCommand() *cli.Command {
	return &cli.Command{
		Name:      "attach",
		Usage:     "make a disk a block device, /dev/nbdX",
		ArgsUsage: "URL|FILE",
		Description: `Prints the device when it can be used. A daemon keeps it (one for the host; it is started if it does not run)
until it is detached. If the daemon dies, the device waits for the next one.

  vdbridge attach smb://me@server/disks/a.vhdx --credentials /etc/vdbridge/server.cred
  mount /dev/nbd0 /mnt
  umount /mnt && vdbridge detach /dev/nbd0
  vdbridge attach --all                           (what /etc/vdbridge/tab lists)`,
		Flags: concat(
			deviceFlags(),
			[]cli.Flag{
				&cli.BoolFlag{Name: "foreground", Usage: "keep the device in this process instead of the daemon, until it is interrupted", Category: "Life"},
				&cli.BoolFlag{Name: "all", Usage: "attach what the tab lists and is not marked noauto", Category: "Life"},
				&cli.StringFlag{Name: "tab", Usage: "`FILE` of --all, and of a NAME in it instead of a URL", Value: daemon.DefaultTab, Category: "Life"},
				&cli.StringFlag{Name: "metrics", Usage: "with --foreground: show metrics for Prometheus at `ADDRESS`, unix:PATH or tcp:HOST:PORT", Category: "Life"},
				runDirFlag(), jsonFlag,
			},
			readyFlags(), openFlags(),
		),
		Action: attach,
	}
}

func attach(c *cli.Context) error {
	if c.Bool("all") {
		if c.Args().Present() {
			return usage("--all attaches what the tab lists; give either it or a URL")
		}
		return attachAll(c)
	}
	what, err := oneArg(c, "URL, file, or name in the tab")
	if err != nil {
		return err
	}
	s, err := specFor(c, what)
	if err != nil {
		return err
	}
	loc, err := bridge.ParseLocation(s.URL)
	if err != nil {
		return err
	}
	env, err := clientEnv(c.Context, s, loc)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return &bridge.Error{Class: bridge.ClassPermission, Sentence: "only root may attach a device: use sudo ('vdbridge nbd' and 'vdbridge mount' need no root)"}
	}
	if err := kernel.Load(); err != nil {
		return &bridge.Error{Class: bridge.ClassUnsupported, Sentence: err.Error(), Err: err}
	}
	if c.Bool("foreground") {
		return attachForeground(c, s, env)
	}
	if c.IsSet("metrics") {
		return usage("--metrics goes with --foreground; the daemon's is given to 'vdbridge daemon'")
	}
	if err := ensureDaemon(c); err != nil {
		return err
	}
	resp, err := daemon.Call(c.Context, c.String("run-dir"), &daemon.Request{Verb: daemon.VerbAttach, Spec: s, Env: env, Timeout: attachTimeout(c)})
	if err != nil {
		return err
	}
	return printAttached(c, resp.Attached)
}

// attachTimeout bounds attaching as a whole: the connection, and a while for the device.
func attachTimeout(c *cli.Context) time.Duration { return 4*c.Duration("timeout") + 15*time.Second }

func printAttached(c *cli.Context, a *daemon.Attached) error {
	for _, w := range a.Warnings {
		fmt.Fprintf(c.App.ErrWriter, "vdbridge: warning: %s\n", w)
	}
	if c.Bool("json") {
		return printJSON(c, a)
	}
	printf(c, "%s\n", a.Device)
	return nil
}

// specFor makes the spec of a URL or of a name in the tab.
func specFor(c *cli.Context, what string) (*daemon.Spec, error) {
	if e, err := tabEntry(c, what); err != nil {
		return nil, err
	} else if e != nil {
		return specOf(e)
	}
	return makeSpec(c, what)
}

// makeSpec makes a spec from a command line.
func makeSpec(c *cli.Context, url string) (*daemon.Spec, error) {
	o, err := collectOptions(c, openFlags())
	if err != nil {
		return nil, err
	}
	// What is wrong with an option is better said here than by the daemon.
	if _, err := options(c, slog.LevelWarn); err != nil {
		return nil, err
	}
	s := &daemon.Spec{
		Name: c.String("name"), URL: url, Device: c.String("device"), Connections: c.Int("connections"), ReadOnly: c.Bool("read-only"),
		IOTimeout: c.Duration("io-timeout"), OnLoss: o["on-loss"], Options: o,
	}
	loc, err := bridge.ParseLocation(url)
	if err == nil && loc.Local {
		if loc.Path, err = filepath.Abs(loc.Path); err == nil {
			s.URL = "file://" + loc.Path
		}
	}
	return s, err
}

// fileOptions are the flags whose values are paths, which must mean the same in another process.
var fileOptions = map[string]bool{"password-file": true, "credentials": true, "keytab": true, "pcap": true, "state-dir": true}

// collectOptions takes the flags that were set, by their names.
func collectOptions(c *cli.Context, flags []cli.Flag) (map[string]string, error) {
	m := map[string]string{}
	for _, f := range flags {
		name := f.Names()[0]
		if !c.IsSet(name) || name == "state-dir" {
			continue
		}
		v := ""
		switch f.(type) {
		case *cli.StringSliceFlag:
			v = strings.Join(c.StringSlice(name), ",")
		default:
			v = fmt.Sprint(c.Value(name))
		}
		if fileOptions[name] && v != "-" {
			abs, err := filepath.Abs(v)
			if err != nil {
				return nil, err
			}
			v = abs
		}
		m[name] = v
	}
	return m, nil
}

// optionsOf makes the options of a disk from the values of flags by their names.
func optionsOf(values map[string]string, log *slog.Logger) (bridge.Options, error) {
	set := flag.NewFlagSet("attach", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	for _, f := range append(openFlags(), logFlags()...) {
		if err := f.Apply(set); err != nil {
			return bridge.Options{}, err
		}
	}
	for name, v := range values {
		if set.Lookup(name) == nil {
			return bridge.Options{}, usage("there is no option %q for opening a disk", name)
		}
		if err := set.Set(name, v); err != nil {
			return bridge.Options{}, usage("the option %s cannot be %q: %v", name, v, err)
		}
	}
	app := newApp(io.Discard, os.Stderr)
	o, err := options(cli.NewContext(app, set, nil), slog.LevelWarn)
	o.Logger = log
	return o, err
}

// clientEnvNames are the variables that opening a disk looks at.
var clientEnvNames = []string{bridge.PasswordEnv, "USER", "KRB5CCNAME", "KRB5_CONFIG"}

// clientEnv is what the daemon needs of our surroundings. A password is asked for here, as the daemon has no terminal.
func clientEnv(ctx context.Context, s *daemon.Spec, loc bridge.Location) (map[string]string, error) {
	env := map[string]string{}
	for _, k := range clientEnvNames {
		if v := os.Getenv(k); v != "" {
			env[k] = v
		}
	}
	o, err := optionsOf(s.Options, nil)
	if err != nil || o.Kerberos.On {
		return env, err
	}
	pw, err := o.Credentials.AskPassword(ctx, loc)
	if err != nil {
		return nil, err
	}
	if pw != "" {
		env[bridge.PasswordEnv] = pw
	}
	if s.Options["password-file"] == "-" {
		s.Options = maps.Clone(s.Options)
		delete(s.Options, "password-file")
	}
	return env, nil
}

// openDisk opens the disk of a spec for a daemon.
func openDisk(log *slog.Logger, stateDir string) func(context.Context, *daemon.Spec, map[string]string) (daemon.Disk, error) {
	return func(ctx context.Context, s *daemon.Spec, env map[string]string) (daemon.Disk, error) {
		o, err := optionsOf(s.Options, log)
		if err != nil {
			return nil, err
		}
		loc, err := bridge.ParseLocation(s.URL)
		if err != nil {
			return nil, err
		}
		o.StateDir, o.ReadOnly = stateDir, s.ReadOnly
		if o.Attachment == "" {
			o.Attachment = "attach"
		}
		o.Credentials.Getenv = func(k string) string { return env[k] }
		o.Credentials.Prompt = func(context.Context, string) (string, error) { return "", fmt.Errorf("a daemon has no terminal") }
		return bridge.Open(ctx, loc, o)
	}
}

// warnAbout says what the user should know of a disk that was attached.
func warnAbout(ctx context.Context, d daemon.Disk) []string {
	bd, ok := d.(*bridge.Disk)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, riskTimeout)
	defer cancel()
	risk, err := bd.WriteRisk(ctx, nil)
	if err != nil || risk == nil {
		return nil
	}
	return []string{risk.Explain("Use a cluster file system (OCFS2, GFS2), a reservation ('vdbridge pr reserve'), or --read-only.")}
}

const riskTimeout = 5 * time.Second

func detachCommand() *cli.Command {
	return &cli.Command{
		Name:      "detach",
		Usage:     "end what 'vdbridge attach' began",
		ArgsUsage: "DEVICE|URL|NAME",
		Description: `Refuses while the device is used. Otherwise everything written is made durable first.

  vdbridge detach /dev/nbd0
  vdbridge detach --all`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "although it is mounted or otherwise used: its users get I/O errors, and what they have not written yet is lost"},
			&cli.BoolFlag{Name: "release", Usage: "give up this host's registration, and the reservation that it holds"},
			&cli.BoolFlag{Name: "all", Usage: "all devices of this host"},
			&cli.DurationFlag{Name: "timeout", Usage: "how long it may take", Value: 90 * time.Second},
			runDirFlag(),
		},
		Action: detach,
	}
}

func detach(c *cli.Context) error {
	var targets []string
	if c.Bool("all") {
		list, _, err := daemon.StatusAll(c.Context, c.String("run-dir"))
		if err != nil {
			return err
		}
		for _, s := range list {
			if s.Kind == "attach" && s.Where != "" {
				targets = append(targets, s.Where)
			}
		}
	} else {
		target, err := oneArg(c, "device, URL or name")
		if err != nil {
			return err
		}
		if strings.HasPrefix(target, ".") {
			if target, err = filepath.Abs(target); err != nil {
				return err
			}
		}
		targets = []string{target}
	}
	var first error
	for _, t := range targets {
		resp, err := daemon.CallFor(c.Context, c.String("run-dir"), &daemon.Request{
			Verb: daemon.VerbDetach, Target: t, Force: c.Bool("force"), Release: c.Bool("release"), Timeout: c.Duration("timeout"),
		})
		if err != nil {
			if first != nil {
				fmt.Fprintf(c.App.ErrWriter, "vdbridge: %s\n", oneLine(err.Error()))
			} else {
				first = err
			}
			continue
		}
		for _, w := range resp.Attached.Warnings {
			fmt.Fprintf(c.App.ErrWriter, "vdbridge: warning: %s\n", w)
		}
	}
	return first
}
