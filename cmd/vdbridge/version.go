package main

import (
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

// version is set by the linker for releases; otherwise the commit that Go noted is shown.
var version = ""

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:   "version",
		Usage:  "print the version",
		Action: printVersion,
	}
}

func printVersion(c *cli.Context) error {
	printf(c, "vdbridge %s\n", versionText())
	return nil
}

func versionText() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	rev, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	if rev == "" {
		return "development " + info.GoVersion
	}
	return rev + dirty + " " + info.GoVersion
}
