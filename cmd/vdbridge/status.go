package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
	"vdbridge/bridge/daemon"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "how the disks are that this host uses",
		ArgsUsage: "[DEVICE|URL|NAME]",
		Description: `Lists what 'vdbridge attach', 'nbd' and 'mount' serve, one line each; with a device, URL, name, address or directory all that
is known of it.

  vdbridge status
  vdbridge status /dev/nbd0
  vdbridge status --watch
  vdbridge status --json`,
		Flags: []cli.Flag{
			jsonFlag,
			&cli.BoolFlag{Name: "watch", Usage: "again and again, until it is interrupted"},
			&cli.DurationFlag{Name: "interval", Usage: "of --watch", Value: time.Second},
			&cli.DurationFlag{Name: "timeout", Usage: "how long to wait for a process that does not answer", Value: 5 * time.Second},
			runDirFlag(),
		},
		Action: showStatus,
	}
}

func showStatus(c *cli.Context) error {
	if c.NArg() > 1 {
		return usage("give one device, URL or name, or none; '%s --help' has an example", c.Command.HelpName)
	}
	for {
		ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
		list, silent, err := daemon.StatusAll(ctx, c.String("run-dir"))
		cancel()
		if err != nil {
			return err
		}
		if target := c.Args().First(); target != "" {
			list = slices.DeleteFunc(list, func(s daemon.Status) bool { return !matches(&s, target) })
			if len(list) == 0 && !c.Bool("watch") {
				return &bridge.Error{Class: bridge.ClassNotFound, Sentence: fmt.Sprintf("nothing of vdbridge on this host is %q; 'vdbridge status' lists what is", target)}
			}
		}
		if list == nil {
			list = []daemon.Status{}
		}
		if c.Bool("watch") && !c.Bool("json") {
			printf(c, "\x1b[H\x1b[2J%s\n", time.Now().Format(time.TimeOnly))
		}
		switch {
		case c.Bool("json"):
			err = printJSON(c, list)
		case c.Args().Present():
			for i := range list {
				printStatus(c, &list[i])
			}
		default:
			printStatusTable(c, list)
		}
		if err != nil {
			return err
		}
		if silent > 0 {
			fmt.Fprintf(c.App.ErrWriter, "vdbridge: %d processes did not answer within %v\n", silent, c.Duration("timeout"))
		}
		if !c.Bool("watch") {
			return nil
		}
		select {
		case <-time.After(c.Duration("interval")):
		case <-c.Context.Done():
			return nil
		}
	}
}

func matches(s *daemon.Status, target string) bool {
	if s.Where == target || s.Name == target || s.URL == target || strings.TrimPrefix(s.Where, "/dev/") == target {
		return true
	}
	a, err := bridge.ParseLocation(s.URL)
	b, err2 := bridge.ParseLocation(target)
	return err == nil && err2 == nil && a.SameDisk(b)
}

func printStatusTable(c *cli.Context, list []daemon.Status) {
	if len(list) == 0 {
		printf(c, "nothing is attached, exported or mounted\n")
		return
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "WHERE\tSTATE\tSIZE\tMODE\tIOPS R/W\tP99 R/W\tIN FLIGHT\tERRORS\tDISK")
	for i := range list {
		s := &list[i]
		row := []string{s.Where, stateText(s), "", "", "", "", "", "", s.URL}
		if d := s.Disk; d != nil {
			row[2], row[3] = formatSize(d.Size), d.Mode
			if d.ReadOnly {
				row[3] += ",ro"
			}
			row[4] = fmt.Sprintf("%.0f/%.0f", s.Rates.ReadIOPS, s.Rates.WriteIOPS)
			row[5] = latencyText(d.Ops["read"].P99) + "/" + latencyText(d.Ops["write"].P99)
			row[6] = fmt.Sprint(d.InFlight)
			row[7] = fmt.Sprint(sum(d.Errors))
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	w.Flush()
}

// stateText is the worst of what can be said in a word.
func stateText(s *daemon.Status) string {
	if s.Disk != nil && s.Disk.State != bridge.StateConnected {
		return s.Disk.State
	}
	return s.State
}

func latencyText(us float64) string {
	if us == 0 {
		return "-"
	}
	return (time.Duration(us) * time.Microsecond).Round(10 * time.Microsecond).String()
}

func sum(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

// printStatus prints all that is known of one disk.
func printStatus(c *cli.Context, s *daemon.Status) {
	rows := [][2]string{
		{"disk", s.URL}, {"where", s.Where}, {"name", s.Name}, {"kept by", fmt.Sprintf("process %d (%s)", s.PID, s.Kind)}, {"state", strings.TrimSpace(s.State + " " + s.Why)},
	}
	if d := s.Device; d != nil {
		rows = append(rows,
			[2]string{"device size", bytesText(d.Size)},
			[2]string{"partitions", strings.Join(d.Partitions, " ")},
			[2]string{"kernel connections", fmt.Sprintf("%d of %d alive, %d renewed, %d requests in flight", d.Alive, d.Connections, d.Renewed, d.InFlight)})
	}
	d := s.Disk
	if d == nil {
		table(c, rows...)
		return
	}
	state := d.State
	if !d.Since.IsZero() {
		state += " since " + d.Since.Local().Format(time.DateTime)
	}
	if d.LastError != "" {
		state += ": " + d.LastError
	}
	rows = append(rows,
		[2]string{"server", state},
		[2]string{"if it is lost", d.OnLoss},
		[2]string{"opened as", strings.Join(nonEmpty(d.Mode, map[bool]string{true: "read-only"}[d.ReadOnly]), ", ")},
		[2]string{"size", bytesText(d.Size)},
		[2]string{"sectors", fmt.Sprintf("%d logical, %d physical", d.LogicalSector, d.PhysicalSector)})
	if v := d.Server; v != nil {
		sealing := "not encrypted"
		if v.Sealing != "" {
			sealing = "encrypted with " + v.Sealing
		}
		rows = append(rows, [2]string{"connection", fmt.Sprintf("SMB %s by %s to %s as %s, signed with %s, %s", v.Dialect, v.Transport, v.Address, v.User, v.Signing, sealing)})
	}
	for _, ch := range d.Channels {
		rows = append(rows, [2]string{"channel", fmt.Sprintf("%s %s, %d in flight", ch.Address, ch.State, ch.InFlight)})
	}
	if h := d.Handle; h != nil {
		kept := ""
		if h.Timeout > 0 {
			kept = fmt.Sprintf(", kept for %v", h.Timeout)
		}
		rows = append(rows, [2]string{"handle", h.Kind + kept})
	}
	if sh := d.Shared; sh != nil {
		rows = append(rows, [2]string{"initiator", strings.Join(nonEmpty(sh.Initiator, sh.InitiatorName), " ")})
	}
	if r := s.Reservation; r != nil {
		held := "nobody holds a reservation"
		if r.Held {
			held = "held: " + r.Type
			switch {
			case r.Ours:
				held += ", by us"
			case r.HolderKey != "":
				held += ", by key " + r.HolderKey
			}
		}
		rows = append(rows, [2]string{"our key", r.Key}, [2]string{"reservation", fmt.Sprintf("%s; %d registered", held, r.Registered)})
	}
	rows = append(rows, [2]string{"now", fmt.Sprintf("%.0f reads/s (%s/s), %.0f writes/s (%s/s), %d in flight", s.Rates.ReadIOPS, formatSize(int64(s.Rates.ReadBps)), s.Rates.WriteIOPS,
		formatSize(int64(s.Rates.WriteBps)), d.InFlight)})
	for _, op := range []string{"read", "write", "flush", "trim", "write-zeroes"} {
		if o, ok := d.Ops[op]; ok {
			rows = append(rows, [2]string{op, fmt.Sprintf("%d (%s), %d failed; p50 %s, p90 %s, p99 %s, p99.9 %s, longest %s", o.Count, formatSize(int64(o.Bytes)), o.Failed,
				latencyText(o.P50), latencyText(o.P90), latencyText(o.P99), latencyText(o.P999), latencyText(o.Max))})
		}
	}
	rows = append(rows, [2]string{"losses", fmt.Sprintf("%d, of which overcome %d; %d requests repeated", d.Losses, d.Reconnects, d.Repeated)})
	var errs []string
	for k, v := range d.Errors {
		errs = append(errs, fmt.Sprintf("%s %d", k, v))
	}
	slices.Sort(errs)
	rows = append(rows, [2]string{"errors", strings.Join(errs, ", ")})
	table(c, rows...)
}

// startMetrics shows metrics at --metrics, if that is given.
func startMetrics(c *cli.Context, status func() []daemon.Status) (stop func(), err error) {
	spec := c.String("metrics")
	if spec == "" {
		return func() {}, nil
	}
	l, err := bridge.Listen(spec)
	if err != nil {
		return func() {}, err
	}
	return daemon.ServeMetrics(l, status), nil
}

// announce makes a process that serves one disk visible to 'vdbridge status'. That it cannot be is no reason not to serve.
func announce(c *cli.Context, kind, where string, d *bridge.Disk, log *slog.Logger) *daemon.Announcement {
	a, err := daemon.Announce(c.String("run-dir"), kind, where, d, log)
	if err != nil {
		log.Info("'vdbridge status' will not show this process", "err", err)
		return nil
	}
	return a
}
