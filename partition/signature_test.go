package partition_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"vdbridge/partition"
	"vdbridge/test/lab"
)

// TestAsBlkid has the tools of each file system make one, and compares with blkid.
func TestAsBlkid(t *testing.T) {
	for name, tc := range map[string]struct {
		size   int64
		make   []string // IMAGE stands for the image
		want   string
		shared bool
	}{
		"ext2":     {64 << 20, []string{"mkfs.ext2", "-q", "-F", "-L", "lab el", "IMAGE"}, "ext2", false},
		"ext3":     {64 << 20, []string{"mkfs.ext3", "-q", "-F", "-L", "label", "IMAGE"}, "ext3", false},
		"ext4":     {64 << 20, []string{"mkfs.ext4", "-q", "-F", "-L", "label", "IMAGE"}, "ext4", false},
		"journal":  {64 << 20, []string{"mkfs.ext4", "-q", "-F", "-O", "journal_dev", "IMAGE"}, "jbd", false},
		"xfs":      {320 << 20, []string{"mkfs.xfs", "-q", "-L", "label", "IMAGE"}, "xfs", false},
		"btrfs":    {128 << 20, []string{"mkfs.btrfs", "-q", "-L", "label", "IMAGE"}, "btrfs", false},
		"fat12":    {4 << 20, []string{"mkfs.vfat", "-F", "12", "-n", "LABEL", "IMAGE"}, "vfat", false},
		"fat16":    {32 << 20, []string{"mkfs.vfat", "-F", "16", "-n", "LABEL", "IMAGE"}, "vfat", false},
		"fat32":    {64 << 20, []string{"mkfs.vfat", "-F", "32", "-n", "LABEL", "IMAGE"}, "vfat", false},
		"exfat":    {64 << 20, []string{"mkfs.exfat", "IMAGE"}, "exfat", false},
		"ntfs":     {64 << 20, []string{"mkfs.ntfs", "-q", "-F", "-Q", "IMAGE"}, "ntfs", false},
		"swap":     {4 << 20, []string{"mkswap", "-q", "-L", "label", "IMAGE"}, "swap", false},
		"luks1":    {64 << 20, []string{"cryptsetup", "-q", "luksFormat", "--type", "luks1", "--pbkdf-force-iterations", "1000", "--key-file", "/etc/hostname", "IMAGE"}, "crypto_LUKS", false},
		"luks2":    {64 << 20, []string{"cryptsetup", "-q", "luksFormat", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "/etc/hostname", "IMAGE"}, "crypto_LUKS", false},
		"ocfs2":    {512 << 20, []string{"mkfs.ocfs2", "-F", "-q", "-M", "local", "-L", "label", "IMAGE"}, "ocfs2", true},
		"gfs2":     {256 << 20, []string{"mkfs.gfs2", "-q", "-O", "-p", "lock_dlm", "-t", "cluster:label", "-j", "1", "IMAGE"}, "gfs2", true},
		"gfs2 one": {256 << 20, []string{"mkfs.gfs2", "-q", "-O", "-p", "lock_nolock", "-j", "1", "IMAGE"}, "gfs2", false},
	} {
		t.Run(name, func(t *testing.T) {
			lab.Need(t, "blkid", tc.make[0])
			f := image(t, tc.size, 512)
			args := strings.Split(strings.ReplaceAll(strings.Join(tc.make[1:], "\x00"), "IMAGE", f.f.Name()), "\x00")
			path, _ := lab.Look(tc.make[0])
			cmd := exec.Command(path, args...)
			cmd.Stdin = strings.NewReader("y\n")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", cmd, err, out)
			}
			l, err := partition.Inspect(context.Background(), f)
			if err != nil {
				t.Fatal(err)
			}
			if l.Scheme != partition.None || len(l.Whole) != 1 || l.Whole[0].Name != tc.want || l.Whole[0].SingleHost() == tc.shared || len(l.SingleHost()) == 1 == tc.shared {
				t.Fatalf("found %v %+v, want one %s", l.Scheme, l.Whole, tc.want)
			}
			blkid := map[string]string{}
			for line := range strings.Lines(run(t, "", "blkid", "-p", "-o", "export", f.f.Name())) {
				k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
				blkid[k] = strings.ReplaceAll(v, `\ `, " ")
			}
			got := l.Whole[0]
			if got.Name != blkid["TYPE"] || got.UUID != "" && got.UUID != blkid["UUID"] || got.Label != blkid["LABEL"] {
				t.Errorf("%+v, blkid says type %s, uuid %s, label %s", got, blkid["TYPE"], blkid["UUID"], blkid["LABEL"])
			}
		})
	}
}

// TestUnderPartitions finds what lies in partitions, in sectors of both sizes.
func TestUnderPartitions(t *testing.T) {
	lab.Need(t, "mkfs.ext4")
	f := image(t, 64<<20, 4096)
	gpt4k(t, f)
	inner := image(t, 5<<20, 512)
	run(t, "", "mkfs.ext4", "-q", "-F", inner.f.Name())
	b, err := os.ReadFile(inner.f.Name())
	if err != nil {
		t.Fatal(err)
	}
	f.poke(t, 4096*4096, b)
	l, err := partition.Inspect(context.Background(), f)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(l.SingleHost(), ", "); got != "ext4 (partition 3)" {
		t.Errorf("found %q", got)
	}
}
