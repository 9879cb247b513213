package main

import (
	"fmt"
	"log/slog"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
)

func lsCommand() *cli.Command {
	return &cli.Command{
		Name:      "ls",
		Usage:     "list a directory of a share, or of this machine",
		ArgsUsage: "URL|FOLDER",
		Description: `  vdbridge ls smb://me@server/disks
  vdbridge ls smb://me@server/disks/dir --json`,
		Flags: append(connectionFlags(), jsonFlag),
		Action: func(c *cli.Context) error {
			loc, o, err := target(c, slog.LevelError)
			if err != nil {
				return err
			}
			list, err := bridge.List(c.Context, loc, o)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c, list)
			}
			w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', tabwriter.AlignRight)
			for _, e := range list {
				size := fmt.Sprint(e.Size)
				if e.Directory {
					size = "dir"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\n", size, e.Modified.Local().Format(time.DateTime), " "+e.Name)
			}
			return w.Flush()
		},
	}
}
