package attach

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"vdbridge/test/lab"
	"vdbridge/test/vm"
)

// File systems live on attached devices: made, filled, unmounted, checked, with space given back.
func TestFileSystems(t *testing.T) {
	long(t)
	script(t, 5*time.Minute, `
vd create disks/a.vhdx --size 512M >/dev/null
serve
D=$(attach a.vhdx) || fail attach
work() {
	head -c 30000000 /dev/urandom >m/big; for i in $(seq 100); do head -c $((i * 97)) m/big >m/s$i; done
	sums=$(cd m && sha256sum *); sync; rm m/s50; fstrim m 2>/dev/null
	fio --name=v --directory=m --size=16M --rw=randrw --bs=8k --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c --output=fio.out || fail "fio: $(cat fio.out)"
	rm -f m/v.*; must umount m; echo 3 >/proc/sys/vm/drop_caches
}
same() { must mount "$@" $D m; (cd m && echo "$sums" | grep -v s50 | sha256sum --quiet -c) || fail "other contents"; must umount m; }
must mkfs.xfs -q -f $D; must mount $D m; work; must xfs_repair -n $D >/dev/null 2>&1; same
must mkfs.btrfs -q -f $D; must mount $D m
refused 10 'mounted on /tmp/m' vd detach $D   # btrfs does not show the device's number
work; must btrfs check --readonly $D >/dev/null 2>&1; same
must mkfs.ext4 -q -F $D; must mount $D m; work; must e2fsck -fn $D >/dev/null 2>&1; same
must vd detach $D
must vd check disks/a.vhdx >/dev/null
`, "mkfs.xfs", "mkfs.btrfs", "mkfs.ext4", "fio", "fstrim")
}

// The server is stopped while there is work, and the policy decides.
func TestServerLost(t *testing.T) {
	long(t)
	script(t, 5*time.Minute, `
vd create disks/a.vhdx --size 128M >/dev/null
down() { kill -9 $SERVE; wait $SERVE 2>/dev/null; }
state() { vd status /dev/nbd0 | sed -n 's/^server  *\([a-z]*\).*/\1/p'; }
serve
# hold: work waits, goes on, and nothing is wrong
D=$(attach a.vhdx --io-timeout 3s --on-loss hold) || fail attach
must mkfs.ext4 -q -F $D; must mount $D m
fio --name=v --directory=m --size=16M --rw=randwrite --bs=4k --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c --verify_backlog=64 --time_based --runtime=20 --output=fio.out & F=$!
sleep 2; down
poll 20 sh -c "$V status $D | grep -q reconnecting"
sleep 8 # longer than the kernel waits for a request
kill -0 $F 2>/dev/null || fail "fio ended while the server was away: $(cat fio.out)"
serve
wait $F || fail "fio: $(cat fio.out)"
must umount m; must e2fsck -fn $D >/dev/null 2>&1; must vd detach $D

# fail-after: errors, but not before, and the device works again afterwards
D=$(attach a.vhdx --io-timeout 3s --on-loss fail-after=4s) || fail attach
must dd if=$D of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null
down; start=$(date +%s)
dd if=/dev/zero of=$D bs=4k count=1 oflag=direct 2>/dev/null && fail "a write without a server"
took=$(($(date +%s) - start)); [ $took -ge 3 ] && [ $took -le 30 ] || fail "the error came after ${took}s"
serve
poll 30 dd if=/dev/zero of=$D bs=4k count=1 oflag=direct
must vd detach $D

# fail: at once
D=$(attach a.vhdx --on-loss fail) || fail attach
must dd if=$D of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null
down; start=$(date +%s)
dd if=$D of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null && fail "a read without a server"
took=$(($(date +%s) - start)); [ $took -le 10 ] || fail "the error came after ${took}s"
must vd detach $D --force
`, "fio", "mkfs.ext4", "e2fsck")
}

// At boot: what the tab lists is there when the daemon says that it is ready, and a server that is away costs its timeout and no more.
func TestBoot(t *testing.T) {
	long(t)
	script(t, 3*time.Minute, `
vd create disks/a.vhdx --size 64M >/dev/null
serve
mkdir -p /etc/vdbridge
sleep 1000 | busybox nc -l -p 4999 >/dev/null & # somebody who never answers
printf 'here %s/a.vhdx password-file=/tmp/password,device=/dev/nbd4\naway smb://me@127.0.0.1:4999/disks/b.vhdx password-file=/tmp/password,timeout=3s\n' $URL >/etc/vdbridge/tab
start=$(date +%s)
"$V" daemon --all --metrics unix:/tmp/metrics.sock >ready 2>d.log & P=$!
poll 60 grep -q ready ready
took=$(($(date +%s) - start)); [ $took -ge 3 ] && [ $took -le 20 ] || fail "the boot took ${took}s"
[ "$(blockdev --getsize64 /dev/nbd4)" = 67108864 ] || fail "the device is not there"
grep -q 'away' d.log || fail "nobody says that the other is missing"
# the same entries again are no error for what is there
vd attach --all 2>err; grep -q 'here' err && fail "$(cat err)"
# killed and restarted with the tab: taken back, not attached twice
kill -9 $P; wait $P 2>/dev/null
"$V" daemon --all >ready2 2>>d.log & P=$!
poll 60 grep -q ready ready2
poll 10 sh -c "$V status here | grep -q '2 of 2 alive'"
[ "$(ls /sys/block/*/backend | wc -l)" = 1 ] || fail "attached twice"
must dd if=/dev/nbd4 of=/dev/null bs=1M count=4 2>/dev/null
# in the foreground: interrupted, it detaches
must vd detach here; kill $P; wait $P
rm -f fg; "$V" attach --foreground here >fg 2>fg.log & P=$!
poll 20 grep -q 'ready /dev/nbd4' fg
vd status /dev/nbd4 | grep -q "process $P" || fail "$(vd status)"
kill $P; wait $P || fail "foreground: $(cat fg.log)"
[ -e /sys/block/nbd4/pid ] && fail "the device is left"
# killed in the foreground and started again: the device is taken back
rm -f fg; "$V" attach --foreground here >fg 2>fg.log & P=$!
poll 20 grep -q 'ready /dev/nbd4' fg
kill -9 $P; wait $P 2>/dev/null
rm -f fg; "$V" attach --foreground here >fg 2>fg.log & P=$!
poll 20 grep -q 'ready /dev/nbd4' fg
must vd detach here; wait $P || fail "foreground after detach: $(cat fg.log)"
`, "busybox")
}

// Nobody takes the device back in time: its users get errors and no process is stuck. The daemon that comes after all makes it work again.
func TestNoDaemonInTime(t *testing.T) {
	long(t)
	script(t, 4*time.Minute, `
vd create disks/a.vhdx --size 64M >/dev/null
serve
D=$(attach a.vhdx --on-loss fail --io-timeout 2s) || fail attach
must dd if=$D of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null
kill -9 $(daemon_pid); start=$(date +%s)
dd if=/dev/zero of=$D bs=4k count=1 oflag=direct 2>/dev/null && fail "a write without a daemon"
took=$(($(date +%s) - start)); [ $took -ge 20 ] && [ $took -le 90 ] || fail "the error came after ${took}s"
daemon
poll 20 sh -c "$V status $D | grep -q '2 of 2 alive'"
must dd if=/dev/zero of=$D bs=4k count=8 oflag=direct 2>/dev/null
must dd if=$D of=/dev/null bs=4k count=8 iflag=direct 2>/dev/null
must vd detach $D
D=$(attach a.vhdx) || fail "attach again"
must vd detach $D
`)
}

// A guest that is short of memory writes much more to the device than it has memory. The daemon has to serve the writing that gives memory back.
func TestShortOfMemory(t *testing.T) {
	long(t)
	vm.Need(t, "mkfs.ext4")
	n := vm.NewTestNet(t)
	dir, disks := t.TempDir(), t.TempDir()
	vd, err := lab.NewProgram(lab.Vdbridge(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	vd.Start = n.StartCommand
	if _, err := vd.Run(t.Context(), "create", filepath.Join(disks, "a.vhdx"), "--size", "1G"); err != nil {
		t.Fatal(err)
	}
	server, addr, err := vd.Serve(t.Context(), disks, vm.HostAddr+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Kill()
	out := vm.MustRun(t, vm.Options{Network: n, Share: []string{dir, filepath.Dir(vd.Bin)}, Memory: "224M", Timeout: 5 * time.Minute, Script: `set -e
D=$(` + vd.Bin + ` attach ` + lab.URL(addr, "a.vhdx") + ` --password-file ` + filepath.Join(dir, "password") + `)
P=$(cat /run/vdbridge/daemon.lock)
grep VmLck /proc/$P/status
cat /proc/$P/oom_score_adj
mkfs.ext4 -q -F $D; mkdir -p /mnt/a; mount $D /mnt/a
dd if=/dev/urandom of=/mnt/a/seed bs=1M count=16 2>/dev/null
for i in $(seq 30); do cat /mnt/a/seed >/mnt/a/f$i; done; sync
echo 3 >/proc/sys/vm/drop_caches
s=$(sha256sum </mnt/a/seed); for i in 1 15 30; do [ "$s" = "$(sha256sum </mnt/a/f$i)" ]; done
umount /mnt/a
` + vd.Bin + ` detach $D
echo all good`})
	locked := regexp.MustCompile(`VmLck:\s*([0-9]+) kB`).FindStringSubmatch(out)
	if !strings.Contains(out, "all good") || locked == nil || locked[1] == "0" || !strings.Contains(out, "\n-1000\n") {
		t.Error(out)
	}
}
