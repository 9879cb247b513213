// Package torture lets Samba's smbtorture judge the file server.
package torture

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vdbridge/server"
	"vdbridge/smb/auth"
)

// suites are the parts of smbtorture that are run: those that say something about a server without oplocks, leases, streams and access control lists.
var suites = []string{"smb2.lease", "smb2.oplock", "smb2.connect", "smb2.read", "smb2.rw", "smb2.create", "smb2.ioctl", "smb2.credits", "smb2.dir", "smb2.getinfo", "smb2.setinfo",
	"smb2.rename", "smb2.compound", "smb2.compound_async", "smb2.lock", "smb2.sharemode", "smb2.mkdir", "smb2.openattr", "smb2.winattr",
	"smb2.session", "smb2.multichannel", "smb2.durable-v2-open", "smb2.replay"}

// persistent are the suites for which the share is continuously available.
var persistent = map[string]bool{"smb2.durable-v2-open": true, "smb2.replay": true}

// known reads the list of tests that are known to fail: suite, test and reason, separated by tabs.
func known(t *testing.T) map[string]string {
	f, err := os.Open("../../testdata/smbtorture.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]string{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := sc.Text()
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		p := strings.SplitN(line, "\t", 3)
		if len(p) != 3 || p[2] == "" {
			t.Fatalf("smbtorture.txt: %q has not suite, test and reason", line)
		}
		out[p[0]+" "+p[1]] = p[2]
	}
	return out
}

// TestSmbtorture fails when a test fails that is not in the list, and when one that is in the list succeeds, so that the list stays true.
func TestSmbtorture(t *testing.T) {
	bin, err := exec.LookPath("smbtorture")
	if err != nil {
		if os.Getenv("VDBRIDGE_REQUIRE_TOOLS") == "1" {
			t.Fatal("smbtorture is missing (package samba-testsuite)")
		}
		t.Skip("SKIPPED, as smbtorture is missing: install the package samba-testsuite")
	}
	expected := known(t)
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			s, err := server.New(server.Config{ServerName: "TORTURE", Users: auth.NewUsers(map[string]string{"me": "secret"}),
				Shares: []server.Share{{Name: "disks", Dir: t.TempDir(), CA: persistent[suite]}}})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go s.Serve(context.Background(), l)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, bin, "//127.0.0.1/disks", "-p", fmt.Sprint(l.Addr().(*net.TCPAddr).Port), "-U", "me%secret", suite)
			cmd.Dir = t.TempDir()
			raw, _ := cmd.CombinedOutput() // its status only says that something failed
			out := string(raw)
			passed, failed, skipped := 0, 0, 0
			for _, line := range strings.Split(out, "\n") {
				kind, name, ok := strings.Cut(line, ": ")
				name = strings.TrimSuffix(name, " [")
				id := suite + " " + name
				switch {
				case !ok:
				case kind == "success":
					passed++
					if why, listed := expected[id]; listed {
						t.Errorf("%s succeeds, but is listed as failing (%s): take it off the list", id, why)
					}
				case kind == "failure", kind == "error":
					failed++
					if _, listed := expected[id]; !listed {
						t.Errorf("%s fails:\n%s", id, excerpt(out, line))
					}
				case kind == "skip":
					skipped++
				}
			}
			if passed+failed+skipped == 0 {
				t.Errorf("smbtorture did not run:\n%s", out)
			}
			t.Logf("%d passed, %d known to fail, %d skipped by smbtorture", passed, failed, skipped)
		})
	}
}

// excerpt returns the lines behind line, up to the bracket that closes the message.
func excerpt(out, line string) string {
	_, rest, _ := strings.Cut(out, line+"\n")
	msg, _, _ := strings.Cut(rest, "\n]")
	return msg
}
