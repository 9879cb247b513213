package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
)

func scsiCommand() *cli.Command {
	return &cli.Command{
		Name:      "scsi",
		Usage:     "send one SCSI command to a shared disk and dump what it returns",
		ArgsUsage: "URL",
		Description: `The command acts for the attachment that --initiator names, as 'vdbridge pr' does.

  vdbridge scsi smb://me@server/disks/a.vhdx --cdb '12 00 00 00 60 00' --in 96
  vdbridge scsi smb://me@server/disks/a.vhdx --cdb 25000000000000000000 --in 8 --raw | od -tx1`,
		Flags: concat(
			[]cli.Flag{
				&cli.StringFlag{Name: "cdb", Usage: "the command in `HEX`, 6 to 16 bytes"},
				&cli.StringFlag{Name: "in", Usage: "bytes of data that the disk may return", Value: "0"},
				&cli.StringFlag{Name: "out", Usage: "send the data in `FILE` (- is standard input)"},
				&cli.BoolFlag{Name: "raw", Usage: "write the data as they are instead of dumping them"},
			},
			diskFlags(), initiatorFlags("`NAME` of the attachment to act for; not needed if this disk has only one"),
		),
		Action: sendSCSI,
	}
}

func sendSCSI(c *cli.Context) (err error) {
	loc, o, err := target(c, slog.LevelError)
	if err != nil {
		return err
	}
	if loc.Local || o.Mode == bridge.ModeFile {
		return usage("SCSI commands go to a shared disk on a server; give its URL")
	}
	o.Mode = bridge.ModeRSVD
	if err := need(c, "cdb"); err != nil {
		return err
	}
	cdb, err := hex.DecodeString(strings.Join(strings.FieldsFunc(c.String("cdb"), func(r rune) bool { return r == ' ' || r == ':' || r == ',' }), ""))
	if err != nil || len(cdb) < 6 || len(cdb) > 16 {
		return usage("--cdb needs 6 to 16 bytes in hexadecimal, such as 120000006000")
	}
	in, err := parseSize(c.String("in"))
	if err != nil {
		return err
	}
	if in > 0 && c.String("out") != "" {
		return usage("data go one way only: --in or --out")
	}
	var out []byte
	if f := c.String("out"); f != "" {
		if out, err = readAll(f); err != nil {
			return err
		}
	}
	if _, err := bridge.AttachmentFor(loc, &o); err != nil {
		return err
	}
	d, err := bridge.Open(c.Context, loc, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if limit := int64(d.RSVD().MaxData()); in > limit || int64(len(out)) > limit {
		return usage("this server takes at most %d bytes of data with a command", limit)
	}
	buf := make([]byte, in)
	n, err := d.RSVD().Execute(c.Context, cdb, out, buf)
	if err != nil {
		return err
	}
	if c.Bool("raw") {
		_, err = c.App.Writer.Write(buf[:n])
		return err
	}
	printf(c, "GOOD, %d bytes\n%s", n, hex.Dump(buf[:n]))
	return nil
}

// maxOutFile bounds what is read for --out, before the server is asked what it takes.
const maxOutFile = 64 << 20

func readAll(path string) ([]byte, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, fmt.Errorf("--out: %w", err)
		}
		defer f.Close()
	}
	b, err := io.ReadAll(io.LimitReader(f, maxOutFile+1))
	if err != nil {
		return nil, fmt.Errorf("--out: %w", err)
	}
	if len(b) > maxOutFile {
		return nil, usage("--out: more than %d bytes", maxOutFile)
	}
	return b, nil
}
