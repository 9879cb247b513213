package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
)

var jsonFlag = &cli.BoolFlag{Name: "json", Usage: "print JSON"}

func infoCommand() *cli.Command {
	return &cli.Command{
		Name:      "info",
		Usage:     "say what a disk is",
		ArgsUsage: "URL|FILE",
		Description: `  vdbridge info a.vhdx
  vdbridge info smb://me@server/disks/a.vhdx --json`,
		Flags: append(diskFlags(), jsonFlag),
		Action: func(c *cli.Context) error {
			loc, o, err := target(c, slog.LevelError)
			if err != nil {
				return err
			}
			i, err := bridge.GetInfo(c.Context, loc, o)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c, i)
			}
			printInfo(c, i)
			return nil
		},
	}
}

// target parses the only argument and the flags of a command about a disk, a file or a share.
func target(c *cli.Context, level slog.Level) (bridge.Location, bridge.Options, error) {
	s, err := oneArg(c, "URL or file")
	if err != nil {
		return bridge.Location{}, bridge.Options{}, err
	}
	loc, err := bridge.ParseLocation(s)
	if err != nil {
		return loc, bridge.Options{}, err
	}
	o, err := options(c, level)
	return loc, o, err
}

func printJSON(c *cli.Context, v any) error {
	e := json.NewEncoder(c.App.Writer)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// table prints names and values in two columns; empty values are left out.
func table(c *cli.Context, rows ...[2]string) {
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		if r[1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", r[0], r[1])
		}
	}
	w.Flush()
}

func bytesText(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%s (%d bytes)", formatSize(n), n)
}

func printInfo(c *cli.Context, i *bridge.Info) {
	rows := [][2]string{
		{"disk", i.Disk},
		{"opened as", map[string]string{"rsvd": "shared disk (MS-RSVD)", "file": "image file"}[i.Mode]},
		{"virtual size", bytesText(i.Size)},
		{"sectors", fmt.Sprintf("%d logical, %d physical", i.LogicalSector, i.PhysicalSector)},
	}
	if i.Optimal > 0 {
		rows = append(rows, [2]string{"optimal transfer", bytesText(int64(i.Optimal))})
	}
	if r := i.RSVD; r != nil {
		rows = append(rows,
			[2]string{"image", strings.Join(nonEmpty(r.Format, r.Type), ", ")},
			[2]string{"disk id", r.VirtualDiskID},
			[2]string{"block size", blockText(r.BlockSize)},
			[2]string{"space in the file", bytesText(int64(r.FileSize))},
			[2]string{"server", fmt.Sprintf("MS-RSVD version %d (context version %d)", r.ServerVersion, r.ContextVersion)},
			[2]string{"data path", r.IO},
			[2]string{"unit", strings.Join(nonEmpty(r.Vendor, r.Product, r.Revision, r.Serial), " ")},
			[2]string{"reservation", r.Reservation},
			[2]string{"registered keys", strings.Join(r.Keys, " ")},
		)
	}
	if v := i.VHDX; v != nil {
		rows = append(rows,
			[2]string{"image", "VHDX, " + v.Kind.String()},
			[2]string{"disk id", v.VirtualDiskID.String()},
			[2]string{"block size", bytesText(v.BlockSize)},
			[2]string{"file size", bytesText(v.FileSize)},
			[2]string{"created by", v.Creator},
			[2]string{"log", v.LogState.String()},
		)
		if u := i.Usage; u != nil {
			rows = append(rows, [2]string{"allocated", fmt.Sprintf("%s in %d of %d blocks", formatSize(u.AllocatedBytes), u.AllocatedBlocks, v.Blocks)})
		}
	}
	if s := i.Connection; s != nil {
		rows = append(rows, [2]string{"connection", s.Summary()})
	}
	table(c, rows...)
}

// blockText leaves out what the server does not tell, as a fixed disk has no blocks.
func blockText(n uint32) string {
	if n == 0 {
		return ""
	}
	return bytesText(int64(n))
}

func nonEmpty(list ...string) (out []string) {
	for _, s := range list {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}
