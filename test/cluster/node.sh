# shellcheck shell=sh disable=SC2086,SC2015 # $logon is several words, and the numbers have no blanks
# One node of a cluster, run in a guest. Set before: N (0 or 1), VD (the program), URL, PASSWORD (a file), SHARED (a folder of all nodes and the host), PEERS.
# Lines that begin with "@ " tell the story.
set -eu
say() { echo "@ $*"; }
mark() { echo "${2:-}" >"$SHARED/$1.new"; mv "$SHARED/$1.new" "$SHARED/$1"; }
await() { # the mark of another node
	i=0
	until [ -e "$SHARED/$1" ]; do
		i=$((i + 1))
		[ $i -lt 900 ] || { say "gave up waiting for $1"; exit 1; }
		sleep 0.1
	done
}
logon="--password-file $PASSWORD"
fence() { "$VD" fence -d "$URL" $logon "$@"; }

# The shared disk as /dev/nbd0.
attach() {
	"$VD" attach "$URL" $logon --device /dev/nbd0 >/tmp/attached
	say "attached the shared disk as /dev/nbd0, $(blockdev --getsize64 /dev/nbd0) bytes"
	fence -o on -n node$N
	say "registered this node's key; only registered nodes can write from now on"
}
detach() {
	"$VD" detach /dev/nbd0
	say "detached"
}

# OCFS2's own cluster stack, with time-outs for the impatient.
o2cb_up() {
	modprobe -a configfs ocfs2_dlmfs ocfs2_stack_o2cb ocfs2
	mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
	mkdir -p /dlm /etc/ocfs2 /mnt/shared
	mount -t ocfs2_dlmfs ocfs2_dlmfs /dlm
	echo o2cb >/sys/fs/ocfs2/cluster_stack
	{
		printf 'cluster:\n\tnode_count = 2\n\theartbeat_mode = local\n\tname = lab\n\n'
		i=0
		for a in $PEERS; do
			printf 'node:\n\tip_port = 7777\n\tip_address = %s\n\tnumber = %s\n\tname = node%s\n\tcluster = lab\n\n' "$a" $i $i
			i=$((i + 1))
		done
	} >/etc/ocfs2/cluster.conf
	o2cb register-cluster lab
	echo 7 >/sys/kernel/config/cluster/lab/heartbeat/dead_threshold
	echo 9000 >/sys/kernel/config/cluster/lab/idle_timeout_ms
}
ocfs2_mount() {
	if [ $N = 0 ]; then
		mkfs.ocfs2 -q -F -N 2 -b 4096 -C 4096 -J size=8M -L shared --cluster-stack=o2cb --cluster-name=lab /dev/nbd0
		say "made an OCFS2 file system"
		mark made
	else
		await made
	fi
	mount -t ocfs2 /dev/nbd0 /mnt/shared
	say "mounted it; the kernel says: $(grep ' /mnt/shared ' /proc/mounts)"
}

# GFS2, with corosync and dlm_controld below it.
dlm_up() {
	mkdir -p /etc/corosync /var/lib/corosync /var/log/cluster /mnt/shared /etc/dlm /run/cluster
	modprobe -a configfs dlm gfs2
	mkdir -p /dev/misc # where udev would put them
	for d in dlm-control dlm-monitor dlm_plock; do ln -sf /dev/$d /dev/misc/$d; done
	mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
	{
		printf 'totem {\n version: 2\n cluster_name: lab\n transport: udpu\n token: 3000\n}\nquorum {\n provider: corosync_votequorum\n two_node: 1\n}\n'
		printf 'logging {\n to_syslog: no\n to_stderr: yes\n}\nnodelist {\n'
		i=0
		for a in $PEERS; do
			printf ' node {\n  ring0_addr: %s\n  name: node%s\n  nodeid: %s\n }\n' "$a" $i $((i + 1))
			i=$((i + 1))
		done
		printf '}\n'
	} >/etc/corosync/corosync.conf
	# Who fences is decided here by hand, so the lock manager does not do it too; it waits for the one who is fenced to be acknowledged.
	printf 'enable_fencing=0\nprotocol=tcp\n' >/etc/dlm/dlm.conf
	corosync -f >/tmp/corosync.log 2>&1 &
	i=0
	until corosync-quorumtool -s 2>/dev/null | grep -q 'Total votes: *2'; do
		i=$((i + 1))
		[ $i -lt 300 ] || { cat /tmp/corosync.log; exit 1; }
		sleep 0.1
	done
	dlm_controld -D >/tmp/dlm.log 2>&1 &
	i=0
	until dlm_tool status 2>/dev/null | grep -q 'node 2'; do
		i=$((i + 1))
		kill -0 $! && [ $i -lt 300 ] || { cat /tmp/dlm.log; exit 1; }
		sleep 0.1
	done
}
gfs2_mount() {
	if [ $N = 0 ]; then
		mkfs.gfs2 -q -O -p lock_dlm -t lab:shared -j 2 -J 8 /dev/nbd0
		say "made a GFS2 file system"
		mark made
	else
		await made
	fi
	mount -t gfs2 /dev/nbd0 /mnt/shared
	say "mounted it; the kernel says: $(grep ' /mnt/shared ' /proc/mounts)"
}

# Both nodes see each other's files.
exchange() {
	echo "written on node$N" >/mnt/shared/from$N
	mkdir -p /mnt/shared/dir$N
	head -c 3000000 /dev/urandom >/mnt/shared/dir$N/data
	sync
	mark wrote$N "$(sha256sum </mnt/shared/dir$N/data)"
	await wrote$((1 - N))
	say "reads the other's file: $(cat /mnt/shared/from$((1 - N)))"
	[ "$(sha256sum </mnt/shared/dir$((1 - N))/data)" = "$(cat "$SHARED/wrote$((1 - N))")" ]
	say "3 MB of the other's compare equal"
	mark read$N
	await read$((1 - N))
}

# The one that will be fenced: appends lines, each of which is on the disk before it is counted, until it cannot any more.
write_until_fenced() {
	say "writes a log, a line at a time, each made durable"
	{
		i=0
		while i=$((i + 1)) && echo "line $i" | dd of=/mnt/shared/log oflag=append conv=notrunc,fsync 2>/tmp/why; do
			mark lines $i
		done
		mark stopped
	} &
	await fenced
	i=0
	until [ -e "$SHARED/stopped" ] || [ $i -ge 80 ]; do
		i=$((i + 1))
		sleep 0.1
	done
	if [ -e "$SHARED/stopped" ]; then
		say "cannot write any more: $(grep -o 'dd: .*' /tmp/why | head -n 1)"
	else
		say "cannot write any more: the file system has withdrawn, and its writer hangs"
	fi
	mark failed
	# The file system is lost to this node, which has to be started anew.
	busybox poweroff -f
}

# The one that fences, and goes on.
fence_and_go_on() {
	await lines
	until [ "$(cat "$SHARED/lines")" -ge 20 ]; do sleep 0.1; done
	say "fences node1, which has written $(cat "$SHARED/lines") lines"
	fence -o off -n node1
	mark fenced
	if fence -o status -n node1; then exit 1; fi
	say "node1 is shut out: its key is gone from the disk"
	await failed
	lines=$(cat "$SHARED/lines")
	say "node1 counted $lines lines in all; waiting for the cluster to take node1's journal over"
	echo "still here" >/mnt/shared/after
	seq $lines | sed 's/^/line /' >/tmp/want
	head -n $lines /mnt/shared/log | cmp - /tmp/want
	say "every line that node1 had counted is in the log"
	head -c 2000000 /dev/urandom >/mnt/shared/dir1/more
	sync
	rm -r /mnt/shared/dir0
	say "goes on writing, also where node1 had been"
	umount /mnt/shared
}

# Without a file system: 16 writes of a page at a time, anywhere in 64 MiB, straight to the device.
raw_write() {
	say "writes to the device, 16 writes at a time"
	{
		fio --name=w --filename=/dev/nbd0 --size=64M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 --time_based --runtime=60 \
			--refill_buffers --output=/tmp/fio 2>&1 || true
		mark stopped
	} &
	i=0 written=0
	until [ "$written" -gt 4096 ] || [ $i -ge 300 ]; do # sectors
		i=$((i + 1))
		sleep 0.1
		read -r _ _ _ _ _ _ written _ </sys/block/nbd0/stat
	done
	say "has written $written sectors"
	mark writing
	await stopped
	say "its writer has ended: $(grep -m 1 -o 'err=.*' /tmp/fio)"
	grep -q 'err= *5' /tmp/fio
	mark failed
	await compared
	"$VD" detach --force /dev/nbd0 # plainly it would refuse, as what was written last is not on the disk
}
hash_device() { dd if=/dev/nbd0 bs=1M count=64 iflag=direct 2>/dev/null | sha256sum; }
raw_fence() {
	await writing
	say "fences node1"
	fence -o off -n node1
	say "node1 is fenced"
	before=$(hash_device)
	say "fenced node1 in the middle of its writing, and read the disk at once"
	mark fenced
	await failed
	[ "$(hash_device)" = "$before" ]
	say "nothing has changed since, though node1 had writes under way in its kernel and in vdbridge"
	mark compared
	detach
}
