package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every command and every flag has its place in a manual page, and no text of ours becomes a request of troff.
func TestManual(t *testing.T) {
	app, dir := newApp(io.Discard, io.Discard), t.TempDir()
	if err := writeManual(app, dir); err != nil {
		t.Fatal(err)
	}
	for _, c := range visible(app.Commands) {
		b, err := os.ReadFile(filepath.Join(dir, "vdbridge-"+c.Name+".1"))
		if err != nil {
			t.Error(err)
			continue
		}
		if len(c.Subcommands) == 0 {
			for _, f := range c.Flags {
				if name := f.Names()[0]; !bytes.Contains(b, []byte(roff("--"+name)+`\fR`)) && len(name) > 1 {
					t.Errorf("the page of %s lacks --%s", c.Name, name)
				}
			}
		}
		for _, l := range strings.Split(string(b), "\n") {
			if strings.HasPrefix(l, ".") && !strings.HasPrefix(l, ".TH ") && !strings.HasPrefix(l, ".SH ") && l != ".TP" && l != ".PP" && l != ".nf" && l != ".fi" {
				t.Errorf("the page of %s has the request %q", c.Name, l)
			}
		}
	}
	if got := roff(".so /etc/passwd\n'br\na\\fBb"); strings.HasPrefix(got, ".") || strings.Contains(got, "\n'") || strings.Contains(got, `\f`) {
		t.Errorf("%q", got)
	}
}
