package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"vdbridge/bridge"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestTab(t *testing.T) {
	list, err := ParseTab(`# comment
data   smb://me@server/disks/a.vhdx   credentials=/etc/vdbridge/c,_netdev,device=/dev/nbd3

backup //server/disks/my%20disk.vhdx  noauto,ro,timeout=5s,krb5
local  /srv/x.vhdx
`)
	if err != nil || len(list) != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	d, b := list[0], list[1]
	if d.Name != "data" || !d.Auto || d.Line != 2 || d.Timeout != tabTimeout || d.Options["credentials"] != "/etc/vdbridge/c" || d.Options["device"] != "/dev/nbd3" || len(d.Options) != 2 {
		t.Errorf("%+v", d)
	}
	if b.Auto || b.Options["read-only"] != "true" || b.Options["krb5"] != "true" || b.Timeout != 5*time.Second || b.Line != 4 {
		t.Errorf("%+v", b)
	}
	for text, want := range map[string]string{
		"data\n":                                               "1: a line has a name",
		"\n\na smb://h/s/x.vhdx a b\n":                         "3: \"b\" is too much",
		"a/b smb://h/s/x.vhdx\n":                               "1: \"a/b\" is no name",
		"a smb://\n":                                           "1: ",
		"a smb://me:secret@h/s/x.vhdx\n":                       "1: ",
		"a smb://h/s/x.vhdx ro,,noauto\n":                      "1: an option is empty",
		"a smb://h/s/x.vhdx timeout=soon\n":                    "1: the timeout",
		"a smb://h/s/x.vhdx password=secret\n":                 "file of its own",
		"a smb://h/s/x.vhdx device=\n":                         "1: the option device has no value",
		"a smb://h/s/x.vhdx\na smb://h/s/y.vhdx\n":             "2: the name \"a\" is that of line 1",
		"# \na smb://h/s/x.vhdx\nb smb://u@H/S/X.vhdx\n":       "3: the disk",
		strings.Repeat("x", maxName+1) + " smb://h/s/x.vhdx\n": "1: ",
		"good smb://h/s/x.vhdx\n" + strings.Repeat("\n", 9) + "a smb://h/s/y.vhdx ,": "11: ",
	} {
		_, err := ParseTab(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "=secret") {
			t.Errorf("the password is in the message: %v", err)
		}
	}
	path := filepath.Join(t.TempDir(), "tab")
	if list, err := ReadTab(path); list != nil || err != nil {
		t.Errorf("no tab: %v, %v", list, err)
	}
	if err := os.WriteFile(path, []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadTab(path); bridge.Classify(err) != bridge.ClassUsage || !strings.HasPrefix(err.Error(), path+":1: ") {
		t.Errorf("%v", err)
	}
}

func FuzzTab(f *testing.F) {
	f.Add("data smb://me@server/disks/a.vhdx credentials=/c,_netdev,ro\n# x\n")
	f.Fuzz(func(t *testing.T, s string) {
		list, err := ParseTab(s)
		if err != nil && !regexp.MustCompile(`^\d+: `).MatchString(err.Error()) {
			t.Errorf("an error without a line: %v", err)
		}
		for _, e := range list {
			if e.Name == "" || !validName(e.Name) || e.Line < 1 || e.Timeout <= 0 {
				t.Errorf("%+v", e)
			}
		}
	})
}

// Every line is what Prometheus' text format allows (exposition formats, text-based), whatever is in a URL.
func TestMetrics(t *testing.T) {
	list := []Status{{
		Kind: "attach", Where: "/dev/nbd0", URL: "smb://h/s/quote\"back\\slash\nline.vhdx", State: StateAttached,
		Device: &DeviceStatus{Connections: 2, Alive: 1, Renewed: 3},
		Disk: &bridge.DiskStatus{Mode: "rsvd", State: bridge.StateConnected, Size: 1 << 40, Server: &bridge.ServerStatus{Dialect: "3.1.1"},
			Ops: map[string]bridge.OpStatus{"read": {Count: 5, Bytes: 20480, P50: 1500}}, Errors: map[string]uint64{"io": 2}},
	}, {Kind: "mount", Where: "/mnt", URL: "smb://h/s/b.vhdx", State: StateResuming}}
	var b bytes.Buffer
	if err := WriteMetrics(&b, list); err != nil {
		t.Fatal(err)
	}
	sample := regexp.MustCompile(`^[a-z_]+\{([a-z]+="(\\\\|\\"|\\n|[^"\\])*",?)+\} [-+0-9.e]+$`)
	families := map[string]bool{}
	for line := range strings.Lines(b.String()) {
		line = strings.TrimSuffix(line, "\n")
		if f, ok := strings.CutPrefix(line, "# TYPE "); ok {
			if families[f] {
				t.Errorf("twice: %s", f)
			}
			families[f] = true
			continue
		}
		if !strings.HasPrefix(line, "# HELP ") && !sample.MatchString(line) {
			t.Errorf("no sample: %s", line)
		}
	}
	for _, want := range []string{
		`vdbridge_disk_up{disk="/dev/nbd0"} 1`, `vdbridge_disk_up{disk="/mnt"} 0`, `vdbridge_disk_operations_total{disk="/dev/nbd0",operation="read"} 5`,
		`vdbridge_disk_latency_seconds{disk="/dev/nbd0",operation="read",quantile="0.5"} 0.0015`, `vdbridge_disk_errors_total{disk="/dev/nbd0",class="io"} 2`,
		`vdbridge_device_connections_alive{disk="/dev/nbd0"} 1`, `vdbridge_disk_size_bytes{disk="/dev/nbd0"} 1.099511627776e+12`,
	} {
		if !strings.Contains(b.String(), want+"\n") {
			t.Errorf("missing: %s\n", want)
		}
	}
	page, err := os.ReadFile("../../docs/attach.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range allMetrics {
		if !strings.Contains(string(page), "`"+m.name+"`") {
			t.Errorf("docs/attach.md does not have %s", m.name)
		}
	}
}

func TestMetricsServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stop := ServeMetrics(l, func() []Status { return []Status{{Where: "/dev/nbd0"}} })
	defer stop()
	tr := &http.Transport{DisableKeepAlives: true}
	for path, want := range map[string]int{"/metrics": 200, "/": 404} {
		resp, err := (&http.Client{Transport: tr}).Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want || want == 200 && !strings.Contains(string(body), "vdbridge_disk_info") {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
}

// A line for the journal begins with its priority and has no time (sd-daemon(3)).
func TestJournalLines(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(newJournal(&b, slog.LevelInfo)).With("disk", "x")
	log.Debug("not this")
	log.Info("a b", "n", 1)
	log.Error("c")
	log.Log(context.Background(), slog.LevelWarn, "d")
	want := "<6>msg=\"a b\" disk=x n=1\n<3>msg=c disk=x\n<4>msg=d disk=x\n"
	if b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	t.Setenv("JOURNAL_STREAM", "1:1")
	if isJournal(w) {
		t.Error("any pipe is the journal")
	}
	if _, ok := LogHandler(w, slog.LevelInfo).(*slog.TextHandler); !ok {
		t.Error("a terminal gets lines for the journal")
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(int(w.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", st.Dev, st.Ino))
	if !isJournal(w) {
		t.Error("the journal is not known")
	}
}
