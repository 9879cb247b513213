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

// suites are the parts of smbtorture that are run: those that say something about a server without streams and access control lists.
var suites = []string{"smb2.lease", "smb2.oplock", "smb2.replay", "smb2.multichannel", "smb2.durable-open", "smb2.durable-v2-open", "smb2.session",
	"smb2.session-require-signing", "smb2.connect", "smb2.read", "smb2.rw", "smb2.create", "smb2.ioctl", "smb2.credits", "smb2.dir", "smb2.getinfo", "smb2.setinfo",
	"smb2.rename", "smb2.compound", "smb2.compound_async", "smb2.lock", "smb2.sharemode", "smb2.mkdir", "smb2.openattr", "smb2.winattr"}

// quick are the tests that are run of suites in which many wait for seconds that something does not happen. With VDBRIDGE_TORTURE=all, all of them are run, and breaks
// time out after the 35 seconds that they do in reality.
var quick = map[string][]string{
	"smb2.lease": {"request", "upgrade", "upgrade2", "upgrade3", "breaking2", "breaking3", "breaking6", "v2_breaking3", "lock1", "complex1", "v2_complex1", "v2_complex2",
		"v2_rename", "timeout", "unlink", "rename_wait", "duplicate_create", "duplicate_open", "v2_bug15148"},
	"smb2.oplock": {"exclusive2", "exclusive5", "batch1", "batch2", "batch7", "batch9a", "batch11", "batch12", "batch20", "batch25", "brl1", "brl3", "levelii500", "levelii501", "doc",
		"statopen1"},
	"smb2.replay": {"replay-commands", "replay-regular", "replay-dhv2-oplock1", "replay-dhv2-oplock3", "replay-dhv2-lease1", "replay-dhv2-lease2", "replay-dhv2-lease3",
		"dhv2-pending1n-vs-violation-lease-close-sane", "dhv2-pending1l-vs-lease-sane", "channel-sequence", "replay3", "replay4", "replay6", "replay7"},
	"smb2.multichannel": {"generic", "oplocks.test1", "leases.test1"},
}

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
	all := os.Getenv("VDBRIDGE_TORTURE") == "all"
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			tests, wait, limits := []string{suite}, 15*time.Minute, server.Limits{}
			if names := quick[suite]; !all && names != nil {
				tests, wait = nil, 3*time.Minute
				if suite == "smb2.lease" {
					limits.BreakTimeout = 5 * time.Second
				}
				for _, name := range names {
					tests = append(tests, suite+"."+name)
				}
			}
			s, err := server.New(server.Config{ServerName: "TORTURE", Users: auth.NewUsers(map[string]string{"me": "secret"}),
				Shares: []server.Share{{Name: "disks", Dir: t.TempDir(), CA: persistent[suite]}}, Limits: limits})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go s.Serve(context.Background(), l)
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			defer cancel()
			cmd := exec.CommandContext(ctx, bin, "//127.0.0.1/disks", "-p", fmt.Sprint(l.Addr().(*net.TCPAddr).Port), "-U", "me%secret")
			cmd.Args = append(cmd.Args, tests...)
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
