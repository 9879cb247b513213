#!/usr/bin/env bash
# Builds build/vdbridge_VERSION_ARCH.deb: the program, its manual pages and completions, systemd units, the fence agent, and the documentation.
# Usage: scripts/deb.sh [OUTPUT-DIRECTORY]. VERSION is what the program calls itself; the package's version is made from it. BIN is a program that is built
# already, to be packed instead of a new one.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
out=${1:-build}
version=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo unknown)}
arch=$(dpkg --print-architecture)

# A Debian version begins with a digit. What has no tag yet sorts before any release, and by its date.
case $version in
v[0-9]*) debversion=${version#v} ;;
[0-9]*.*) debversion=$version ;;
*) debversion=0~git$(git log -1 --format=%cd --date=format:%Y%m%d%H%M 2>/dev/null || date +%Y%m%d%H%M).$version ;;
esac
debversion=$(printf %s "$debversion" | tr -- '-_/ ' '++++')

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
put() { install -D -m "$1" "$2" "$root$3"; } # MODE FILE PATH

mkdir -p "$root/usr/bin"
if [ -n "${BIN:-}" ]; then
	put 755 "$BIN" /usr/bin/vdbridge
else
	CGO_ENABLED=0 "$GO" build -trimpath -ldflags "-s -w -X main.version=$version" -o "$root/usr/bin/vdbridge" ./cmd/vdbridge
fi
put 755 scripts/fence_vdbridge /usr/sbin/fence_vdbridge
for unit in packaging/systemd/*.service; do put 644 "$unit" "/lib/systemd/system/${unit##*/}"; done
"$root/usr/bin/vdbridge" man "$root/usr/share/man/man1"
mkdir -p "$root/usr/share/man/man8"
printf '.so man1/vdbridge-fence.1\n' >"$root/usr/share/man/man8/fence_vdbridge.8"
find "$root/usr/share/man" -type f -exec gzip -9n {} +
complete() { # SHELL PATH
	mkdir -p "$root$(dirname "$2")"
	"$root/usr/bin/vdbridge" completion "$1" >"$root$2"
}
complete bash /usr/share/bash-completion/completions/vdbridge
complete zsh /usr/share/zsh/vendor-completions/_vdbridge
complete fish /usr/share/fish/vendor_completions.d/vdbridge.fish
doc=/usr/share/doc/vdbridge
put 644 README.md $doc/README.md
for page in docs/*.md; do put 644 "$page" "$doc/$page"; done
for page in docs/conformance/*.md; do put 644 "$page" "$doc/$page"; done
put 644 CHANGELOG.md $doc/CHANGELOG.md
printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nCopyright: the vdbridge authors\nLicense: Apache-2.0\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n' >"$root$doc/copyright"
find "$root" -type d -exec chmod 755 {} +
find "$root$doc" "$root/usr/share" -type f -exec chmod 644 {} +

mkdir "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<CONTROL
Package: vdbridge
Version: $debversion
Architecture: $arch
Maintainer: the vdbridge authors <nobody@invalid>
Section: admin
Priority: optional
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Recommends: fuse3, kmod, udev
Suggests: krb5-user, ocfs2-tools, gfs2-utils, pacemaker
Description: virtual disks on SMB 3 file servers, as disks on Linux
 A virtual disk (VHDX) that lives on an SMB 3 file server is used as if it were
 plugged in: as a block device, as an NBD export, or as a file. Shared disks are
 opened with MS-RSVD, so that several hosts use one at the same time and the
 server arbitrates with SCSI persistent reservations. A file server for such
 disks, and a fence agent for clusters, are included.
CONTROL
# The units are there, and started by nobody until the administrator wants them.
cat >"$root/DEBIAN/postinst" <<'POST'
#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
	# A running daemon hands its devices to the new program.
	if [ -n "$2" ]; then systemctl try-restart vdbridged.service || true; fi
fi
POST
cat >"$root/DEBIAN/prerm" <<'PRE'
#!/bin/sh
set -e
if [ "$1" = remove ] && command -v vdbridge >/dev/null; then
	# Without the program nobody would answer the devices any more.
	if [ -S /run/vdbridge/daemon.sock ] && ! vdbridge detach --all; then
		echo "vdbridge: some devices are in use: unmount what is on them, and try again" >&2
		exit 1
	fi
	if [ -d /run/systemd/system ]; then systemctl stop vdbridged.service || true; fi
fi
PRE
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm"
(cd "$root" && find . -type f -not -path './DEBIAN/*' -printf '%P\0' | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
mkdir -p "$out"
dpkg-deb --root-owner-group -Zxz --build "$root" "$out/vdbridge_${debversion}_$arch.deb" >/dev/null
echo "$out/vdbridge_${debversion}_$arch.deb"
