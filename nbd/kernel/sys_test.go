package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree makes a root with the given files.
func tree(t *testing.T, files map[string]string) Sys {
	t.Helper()
	s := Sys{Root: t.TempDir()}
	for name, content := range files {
		path := filepath.Join(s.Root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestSysfs(t *testing.T) {
	s := tree(t, map[string]string{
		"sys/block/nbd0/size":                      "2048\n",
		"sys/block/nbd0/pid":                       "77\n",
		"sys/block/nbd0/backend":                   "vdbridge:x\n",
		"sys/block/nbd0/inflight":                  "       3        4\n",
		"sys/block/nbd0/queue/max_sectors_kb":      "128\n",
		"sys/block/nbd0/queue/max_hw_sectors_kb":   "512\n",
		"sys/block/nbd0/queue/read_ahead_kb":       "128\n",
		"sys/block/nbd0/queue/rotational":          "1\n",
		"sys/block/nbd0/nbd0p2/partition":          "2\n",
		"sys/block/nbd0/nbd0p1/partition":          "1\n",
		"sys/block/nbd10/size":                     "0\n",
		"sys/block/nbd2/size":                      "many\n",
		"sys/block/loop0/size":                     "8\n",
		"sys/block/nbdx/size":                      "8\n",
		"sys/block/nbd10/queue/max_hw_sectors_kb":  "x",
		"sys/block/nbd10/queue/something_else_yet": "x",
	})
	if got := s.List(); !slices.Equal(got, []int{0, 2, 10}) {
		t.Errorf("devices %v", got)
	}
	if n, err := s.Size(0); n != 1<<20 || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	if _, err := s.Size(2); err == nil {
		t.Error("a size of many sectors is taken")
	}
	if !s.Connected(0) || s.Connected(10) || s.Backend(0) != "vdbridge:x" || s.Backend(10) != "" || s.InFlight(0) != 7 {
		t.Error("state of the devices")
	}
	if got := s.Partitions(0); !slices.Equal(got, []string{"nbd0p1", "nbd0p2"}) {
		t.Errorf("partitions %v", got)
	}
	if err := s.Tune(0, Tuning{MaxSectorsKB: 1024, ReadAheadKB: 2048, Scheduler: "none"}); err != nil {
		t.Error(err) // writing makes the file that is missing here
	}
	for name, want := range map[string]string{"max_sectors_kb": "512", "read_ahead_kb": "2048", "scheduler": "none", "rotational": "0"} {
		if got, _ := s.attr(0, "queue/"+name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if err := s.Tune(99, Tuning{Scheduler: "none"}); err == nil || !strings.Contains(err.Error(), "scheduler") {
		t.Errorf("a device that is not there was tuned: %v", err)
	}
}

func TestNodes(t *testing.T) {
	for _, good := range []string{"/dev/nbd0", "nbd0", "/dev/nbd15"} {
		if i, err := ParseNode(good); err != nil || !strings.HasSuffix(good, fmt.Sprint(i)) {
			t.Errorf("%s: %d, %v", good, i, err)
		}
	}
	for _, bad := range []string{"", "/dev/sda", "nbd", "/dev/nbd-1", "nbd01", "/dev/nbd0p1", "nbd99999999999"} {
		if _, err := ParseNode(bad); err == nil {
			t.Errorf("%q is taken for a device", bad)
		}
	}
}

// Who uses a device, from procfs files as Linux 6.1 writes them.
func TestUsers(t *testing.T) {
	s := tree(t, map[string]string{
		"sys/block/nbd0/dev":                   "43:0\n",
		"sys/block/nbd0/nbd0p1/dev":            "43:1\n",
		"sys/block/nbd0/nbd0p1/partition":      "1\n",
		"sys/block/nbd0/nbd0p1/holders/dm-0/x": "",
		"sys/block/nbd1/dev":                   "43:16\n",
		"proc/swaps":                           "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/nbd0p1                             partition\t65532\t\t0\t\t-2\n",
		"proc/1/mountinfo": "22 1 0:21 / /proc rw - proc proc rw\n" +
			`36 1 43:0 / /mnt/my\040disk rw,relatime shared:1 - ext4 /dev/nbd0 rw` + "\n" +
			"37 1 0:41 / /mnt/b rw - btrfs /dev/nbd0p1 rw\n" +
			"38 1 43:16 / /mnt/other rw - ext4 /dev/nbd1 rw\n" +
			"short line\n",
	})
	got := s.Users(0)
	var text []string
	for _, u := range got {
		text = append(text, u.String())
	}
	slices.Sort(text)
	want := []string{"nbd0 is mounted on /mnt/my disk", "nbd0p1 is mounted on /mnt/b", "nbd0p1 is part of dm-0", "nbd0p1 is swap space"}
	if !slices.Equal(text, want) {
		t.Errorf("users\n%q, want\n%q", text, want)
	}
	if u := s.Users(5); len(u) != 0 {
		t.Errorf("a device that is not there is used: %v", u)
	}
}
