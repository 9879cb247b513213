#!/usr/bin/env bash
# Installs the Debian packages that the tests, the demo and the benchmarks use. Only what is missing; quiet when nothing is.
# Written for Debian 12 with Go installed. Everything is decided by the command that a package brings, so that an equivalent that is
# already there (busybox for busybox-static) is left alone.
set -euo pipefail

# command or file : package
need=(
	/etc/ssl/certs/ca-certificates.crt:ca-certificates                                 # Go downloads modules
	make:make git:git gcc:gcc /usr/include/stdio.h:libc6-dev      # build, race detector
	mount:mount ip:iproute2 unshare:util-linux modprobe:kmod busybox:busybox-static    # guests and mounts
	linux.uml:user-mode-linux /usr/lib/uml/modules:user-mode-linux                     # a real kernel for nbd and cifs
	mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs sfdisk:fdisk lsblk:util-linux blkdiscard:util-linux # file systems and partitions on a device
	mkfs.ext4:e2fsprogs fusermount3:fuse3 losetup:mount                                # file systems
	mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs sfdisk:fdisk sgdisk:gdisk mkfs.vfat:dosfstools mkfs.exfat:exfatprogs mkfs.ntfs:ntfs-3g # judges of tables and signatures
	mkfs.ocfs2:ocfs2-tools mkfs.gfs2:gfs2-utils corosync:corosync dlm_controld:dlm-controld cryptsetup:cryptsetup-bin                #
	smbd:samba smbclient:smbclient smbtorture:samba-testsuite mount.cifs:cifs-utils    # SMB peers
	request-key:keyutils                                                               #   (the cifs client asks for Kerberos tickets by it)
	smbpasswd:samba-common-bin ntlm_auth:winbind                                       #   (private passwords of smbd; a judge of NTLM)
	tshark:tshark                                                                      # judges what is on the wire
	qemu-img:qemu-utils nbdkit:nbdkit nbdcopy:libnbd-bin nbd-client:nbd-client fio:fio # NBD and VHDX peers
	vhdiinfo:libvhdi-utils sg_persist:sg3-utils                                        # VHDX and SCSI judges
	krb5kdc:krb5-kdc kadmin.local:krb5-admin-server kinit:krb5-user                    # a private Kerberos realm
	/usr/libexec/sssd/sssd_kcm:sssd-kcm                                                #   (keeps tickets)
	/usr/share/samba/setup:samba-ad-provision /usr/share/doc/samba-ad-dc:samba-ad-dc   # an Active Directory domain
	openssl:openssl nbdsh:python3-libnbd xmllint:libxml2-utils man:man-db systemd-analyze:systemd dpkg-deb:dpkg                         # makes certificates; libnbd from Python; XML
	shellcheck:shellcheck                                                              # lint
)

export PATH=$PATH:/usr/sbin:/sbin
missing=()
for pair in "${need[@]}"; do
	what=${pair%%:*} package=${pair##*:}
	case $what in
	/*) [ -e "$what" ] && continue ;;
	*) command -v "$what" >/dev/null && continue ;;
	esac
	missing+=("$package")
done

if ! command -v go >/dev/null && [ -z "${GO:-}" ]; then
	echo "setup: Go is missing: install Go $(sed -n 's/^go //p' "$(dirname "$0")/../go.mod") or newer and put it on the PATH" >&2
	exit 1
fi
[ ${#missing[@]} -eq 0 ] && exit 0

mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
if ! command -v apt-get >/dev/null; then
	echo "setup: no apt-get here. Install by hand what Debian calls: ${missing[*]}" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "setup: some packages are missing. As root, run:" >&2
	echo "  apt-get install -y --no-install-recommends ${missing[*]}" >&2
	exit 1
fi

echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The Samba packages start their services on installation; no test needs those, and they would take port 445.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod +x $policy
	trap 'rm -f "$log" $policy' EXIT
fi
install() { apt-get install -y -q --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "${missing[@]}" >"$log" 2>&1; }
if ! install; then
	# Most often the package lists are old or not there at all.
	if ! { apt-get update -q >"$log" 2>&1 && install; }; then
		tail -30 "$log" >&2
		echo "setup: apt-get failed, see above" >&2
		exit 1
	fi
fi
