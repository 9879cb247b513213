#!/bin/sh
# PID 1 of the guest. Its root is the host's, read-only (hostfs); a tmpfs overlay makes it writable for the guest alone.
# Kernel command line: vm.work=DIR (writable on the host, has the script), vm.modules=a,b vm.addr=10.0.0.2/24 vm.share=DIR,DIR vm.name=node1
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8
busybox=$(command -v busybox)
b() { "$busybox" "$@"; }

b mount -t proc proc /proc
work="" modules="" addr="" share="" name=guest
for arg in $(b cat /proc/cmdline); do
	case $arg in
	vm.work=*) work=${arg#*=} ;;
	vm.modules=*) modules=${arg#*=} ;;
	vm.addr=*) addr=${arg#*=} ;;
	vm.share=*) share=${arg#*=} ;;
	vm.name=*) name=${arg#*=} ;;
	esac
done
off() { b sync; b poweroff -f; }

kernel=$(b uname -r)
mods=/usr/lib/uml/modules/$kernel
b mount -t tmpfs tmpfs /mnt
[ -f "$mods/kernel/fs/overlayfs/overlay.ko" ] && b insmod "$mods/kernel/fs/overlayfs/overlay.ko"
b mkdir -p /mnt/upper /mnt/work /mnt/root
root=/mnt/root
if ! b mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work $root; then
	echo "vm: no overlay in this kernel"
	off
fi
b mount -t proc proc $root/proc
b mount -t sysfs sysfs $root/sys
b mount -t devtmpfs devtmpfs $root/dev
b mkdir -p $root/dev/pts $root/dev/shm
b mount -t devpts devpts $root/dev/pts
for dir in /dev/shm /run /tmp /mnt; do b mount -t tmpfs tmpfs $root$dir; done
b mount -t configfs configfs $root/sys/kernel/config 2>/dev/null
for dir in $work $(echo "$share" | b tr , ' '); do
	b mkdir -p "$root$dir"
	b mount -t hostfs none -o "$dir" "$root$dir"
done
b mkdir -p "$root/lib/modules/$kernel"
b mount -o bind "$mods" "$root/lib/modules/$kernel"
b hostname "$name"
b ifconfig lo 127.0.0.1 up
if [ -n "$addr" ]; then
	b ip link set vec0 up && b ip addr add "$addr" dev vec0 || echo "vm: no network"
fi
cat >$root/run/go <<EOF
for m in $(echo "$modules" | b tr , ' '); do modprobe \$m || echo "vm: modprobe \$m failed"; done
cd /
/bin/sh $work/script
echo \$? >$work/status
sync
$busybox poweroff -f
EOF
# Moved over the old root, so that it is the root of the mount namespace too: cifs.upcall joins that of the process that mounts.
cd $root && b mount -o move . /
# exec, so that it is PID 1 itself whose root changes: the kernel's own calls of modprobe look there.
exec "$busybox" chroot . /bin/sh /run/go </dev/null
