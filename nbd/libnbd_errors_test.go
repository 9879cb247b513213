package nbd

import (
	"os/exec"
	"testing"

	"vdbridge/test/ramdisk"
)

// libnbd, with its own checks switched off, makes the mistakes that its tests make.
func TestLibnbdClientErrors(t *testing.T) {
	// Debian's own, as the module is made for that one.
	python := tool(t, "/usr/bin/python3")
	tool(t, "nbdsh") // comes with the module
	const size = 128 << 20
	d := ramdisk.New(size, 512)
	for _, network := range []string{"unix", "tcp"} {
		ts := startServer(t, Config{Resolver: Exports{{Name: "disk", Disk: d}, {Name: "ro", Disk: d, ReadOnly: true}}}, network)
		for _, name := range []string{"errors-server-oversize", "errors-server-unadvertised-cmd", "errors-server-unaligned", "errors-server-unknown-flags",
			"errors-server-zerosize", "errors-server-invalid-offset"} {
			t.Run(network+"/"+name, func(t *testing.T) {
				cmd := exec.CommandContext(t.Context(), python, "testdata/libnbd_errors.py", name, uri(ts, "disk"), uri(ts, "ro"), "134217728")
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
}
