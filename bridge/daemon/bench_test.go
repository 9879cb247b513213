package daemon

import (
	"fmt"
	"path/filepath"
	"testing"
)

// BenchmarkStatus64 is `vdbridge status --json` for 64 attached disks, without starting the program.
func BenchmarkStatus64(b *testing.B) {
	bench := newBenchOf(b, 64)
	run := filepath.Join(b.TempDir(), "run")
	d, err := Start(run, bench.cfg)
	if err != nil {
		b.Fatal(err)
	}
	for i := range 64 {
		if _, err := d.Attach(b.Context(), spec(fmt.Sprintf("smb://me@server/disks/%d.vhdx", i)), nil); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		list, _, err := StatusAll(b.Context(), run)
		if err != nil || len(list) != 64 {
			b.Fatal(len(list), err)
		}
	}
	b.StopTimer()
	if err := d.Close(); err != nil {
		b.Error(err)
	}
}
