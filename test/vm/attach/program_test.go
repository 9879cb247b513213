package attach

import (
	"testing"
	"time"
)

// An administrator's first hour: attach, look, partition, file system, what is refused, detach.
func TestAttach(t *testing.T) {
	script(t, 3*time.Minute, `
vd create disks/a.vhdx --size 128M --block-size 1M >/dev/null; vd create disks/b.vhdx --size 64M >/dev/null
serve
[ ! -e /sys/module/nbd ] || fail "the module is there before"
D=$(attach a.vhdx) || fail attach
[ "$D" = /dev/nbd0 ] || fail "device $D"
[ "$(blockdev --getsize64 $D)" = 134217728 ] || fail size
[ "$(blockdev --getro $D)" = 0 ] || fail "read-only"
[ "$(cat /sys/block/nbd0/queue/rotational)$(cat /sys/block/nbd0/queue/max_sectors_kb)$(cat /sys/block/nbd0/queue/read_ahead_kb)" = 010244096 ] || fail queue
grep -q '\[none\]' /sys/block/nbd0/queue/scheduler || fail scheduler
grep -q 'write back' /sys/block/nbd0/queue/write_cache || fail "no flush"
[ "$(cat /sys/block/nbd0/queue/fua)" = 1 ] || fail "no FUA"
case $(cat /sys/block/nbd0/backend) in vdbridge:*) ;; *) fail backend ;; esac

refused 10 'one disk has one device' attach a.vhdx
refused 10 'in use by another disk' attach b.vhdx --device /dev/nbd0
refused 10 'a daemon runs already' vd daemon
E=$(attach b.vhdx --device /dev/nbd5 --read-only) || fail "second disk"
[ "$E" = /dev/nbd5 ] && [ "$(blockdev --getro $E)" = 1 ] || fail "read-only device $E"
dd if=/dev/zero of=$E bs=4k count=1 oflag=direct 2>/dev/null && fail "wrote to a read-only device"
must vd detach /dev/nbd5
refused 4 'nothing' vd detach /dev/nbd5

# partitions appear at once when a disk that has them is attached
printf 'label: gpt\n,32M\n,\n' | sfdisk -q $D || fail sfdisk
must vd detach $D
[ -e /dev/nbd0p1 ] && fail "a partition outlived its device"
D=$(attach a.vhdx) || fail "attach again"
[ "$(lsblk -rno NAME $D | tr '\n' ' ')" = 'nbd0 nbd0p1 nbd0p2 ' ] || fail "partitions $(lsblk -rno NAME $D)"

must mkfs.ext4 -q -F ${D}p2; must mount ${D}p2 m
head -c 20000000 /dev/urandom >m/f; sum=$(sha256sum <m/f)
refused 10 'nbd0p2 is mounted on /tmp/m' vd detach $D
unshare -m --propagation private sh -c 'umount /tmp/m; echo >/tmp/gone; while [ -e /tmp/gone ]; do sleep 0.1; done' & poll 5 test -e gone
must umount m
must rm gone; wait $!
unshare -m --propagation private sh -c 'mount '${D}p2' /tmp/m; echo >/tmp/there; while [ -e /tmp/there ]; do sleep 0.1; done' & poll 5 test -e there
[ -e m/f ] && fail "the mount is visible here"
refused 10 'is mounted on /tmp/m' vd detach $D   # in another namespace
must rm there; wait $!
must mount ${D}p2 m; [ "$sum" = "$(sha256sum <m/f)" ] || fail "other contents"; must umount m
must e2fsck -fn ${D}p2 >/dev/null 2>&1
must mkswap -q ${D}p1 >/dev/null; must swapon ${D}p1
refused 10 'swap' vd detach $D
must swapoff ${D}p1
sleep 1000 <$D & S=$!
refused 10 "process $S" vd detach $D
kill $S; wait $S 2>/dev/null

# giving back space reaches the image on the server
used() { vd info disks/b.vhdx >/dev/null 2>&1; stat -c %b disks/a.vhdx; }
before=$(used); must blkdiscard -f $D; sync; must vd detach $D
vd info disks/a.vhdx | grep -q 'in 0 of' || fail "allocated after the discard: $(vd info disks/a.vhdx | grep allocated), $before"

# a damaged partition table: the device works all the same
D=$(attach a.vhdx); printf 'label: gpt\n,32M\n' | sfdisk -q $D; must vd detach $D
D=$(attach a.vhdx); dd if=/dev/urandom of=$D bs=512 seek=1 count=2 conv=fsync 2>/dev/null
dd if=/dev/zero of=$D bs=512 seek=262143 count=1 conv=fsync 2>/dev/null; must vd detach $D
D=$(attach a.vhdx) || fail "attach with a damaged table"
must dd if=$D of=/dev/null bs=1M count=4 2>/dev/null
must vd detach --all
[ "$(vd status)" = 'nothing is attached, exported or mounted' ] || fail "$(vd status)"
[ -z "$(ls /var/lib/vdbridge/attachments)" ] || fail "a record is left"

# nbd and mount are listed too
"$V" nbd $URL/a.vhdx --password-file password --listen unix:/tmp/a.sock >/dev/null & N=$!
poll 10 sh -c "$V status | grep -q unix:/tmp/a.sock"
kill $N; wait $N; [ "$(vd status)" = 'nothing is attached, exported or mounted' ] || fail "after nbd: $(vd status)"
`, "sfdisk", "mkfs.ext4", "e2fsck", "lsblk", "blkdiscard")
}

// What can be wrong is said in a sentence, with the exit code of docs/cli.md.
func TestBadInput(t *testing.T) {
	script(t, 2*time.Minute, `
vd create disks/a.vhdx --size 64M >/dev/null; vd create disks/b.vhdx --size 64M >/dev/null
serve
# not root
must setpriv --reuid 65534 --regid 65534 --clear-groups true
chmod 644 password; chmod 755 .
refused 11 'root' setpriv --reuid 65534 --regid 65534 --clear-groups "$V" attach $URL/a.vhdx --password-file /tmp/password
# no such disk, wrong password, no server: no device is left
refused 4 'no file' attach c.vhdx
echo wrong >bad; refused 3 'log on' vd attach $URL/a.vhdx --password-file bad
refused 9 'connect' vd attach smb://me@127.0.0.1:9/disks/a.vhdx --password-file password --timeout 2s
refused 2 'not an nbd device' attach a.vhdx --device /dev/sda
refused 2 'connections' attach a.vhdx --connections 99
refused 2 'I/O timeout' attach a.vhdx --io-timeout 1ms
[ -z "$(ls /var/lib/vdbridge/attachments)" ] && [ ! -e /sys/block/nbd0/pid ] || fail "something is left"
# the tab
mkdir -p /etc/vdbridge
printf '# x\n\ndata smb://me@h/s/a.vhdx passwd=x\n' >/etc/vdbridge/tab
refused 2 '/etc/vdbridge/tab:3: ' vd attach --all
printf 'a %s/a.vhdx password-file=/tmp/password,connections=4\nb %s/c.vhdx password-file=/tmp/password\nc %s/b.vhdx password-file=/tmp/password,noauto\n' $URL $URL $URL >/etc/vdbridge/tab
refused 4 '/etc/vdbridge/tab:2: b: ' vd attach --all
grep -q . /sys/block/nbd0/pid || fail "the good entry was not attached"
vd status a | grep -q '4 of 4 alive' || fail "connections: $(vd status a)"
must vd attach c >/dev/null
refused 4 'neither' vd attach nosuch
must vd detach a; must vd detach c
# the daemon is killed: its socket and lock are left, and the next one takes over
kill -9 $(daemon_pid); D=$(attach a.vhdx) || fail "attach after the daemon was killed"
must vd detach $D
# a state directory that is full
mkdir /tmp/full; mount -t tmpfs -o size=64k none /tmp/full
"$V" daemon --run-dir /tmp/run2 --state-dir /tmp/full >>d2.log 2>&1 & poll 10 test -S /tmp/run2/daemon.sock
head -c 70000 /dev/zero >/tmp/full/x 2>/dev/null
refused 13 'state directory' vd attach $URL/a.vhdx --password-file password --run-dir /tmp/run2
[ ! -e /sys/block/nbd0/pid ] || fail "a device without a record"
# no module to be had
must vd detach --all; kill $(daemon_pid); poll 10 sh -c '! kill -0 '$(daemon_pid); kill %2 2>/dev/null
modprobe -r nbd 2>/dev/null || fail "the module is still in use"
mkdir /tmp/none; mount -o bind /tmp/none /lib/modules
refused 5 'no nbd driver' attach a.vhdx
`, "setpriv", "modprobe")
}

// The daemon is killed while fio writes and verifies on a mounted file system. Its successor takes the device back, and nothing is wrong or lost.
func TestDaemonKilled(t *testing.T) {
	script(t, 3*time.Minute, `
vd create disks/a.vhdx --size 128M >/dev/null
serve
D=$(attach a.vhdx --io-timeout 2s) || fail attach
must mkfs.ext4 -q -F $D; must mount $D m
fio --name=v --directory=m --size=24M --rw=randwrite --bs=4k --ioengine=libaio --iodepth=16 --direct=1 --fsync=64 --verify=crc32c --verify_backlog=128 --time_based --runtime=9 --output=fio.out &
F=$!
for round in 1 2; do
	sleep 1.5
	kill -9 $(daemon_pid)
	sleep 0.5
	daemon
	poll 10 sh -c "$V status | grep -q attached"
done
wait $F || fail "fio: $(cat fio.out)"
vd status $D | grep -q '2 of 2 alive' || fail "$(vd status $D)"
must umount m; must e2fsck -fn $D >/dev/null 2>&1
# asked to end, with the file system mounted and work going on: the same
must mount $D m
dd if=/dev/urandom of=m/f bs=64k count=200 conv=fsync 2>/dev/null & W=$!
sleep 0.3
kill $(cat daemon.pid); poll 10 sh -c "! kill -0 $(cat daemon.pid)"
[ -e /sys/block/nbd0/pid ] || fail "the device went with its daemon"
daemon
wait $W || fail "the writer had an error"
must umount m; must e2fsck -fn $D >/dev/null 2>&1
must vd detach $D
`, "fio", "mkfs.ext4", "e2fsck")
}
