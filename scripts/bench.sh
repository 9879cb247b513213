#!/usr/bin/env bash
# Runs all benchmarks, one after the other, and puts the figures into docs/benchmarks.md, between its two markers.
# BENCH_SECONDS is the length of one run, BENCH_ROUNDS how many runs the medians are of; BENCH=name,name chooses.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
seconds=${BENCH_SECONDS:-2}
rounds=${BENCH_ROUNDS:-5}
all=nbd,client,channels,chain,vhdx,fuse,kernel
chosen=${BENCH:-$all}
export PATH=$PATH:/usr/sbin:/sbin
doc=docs/benchmarks.md
out=build/benchmarks.md
mkdir -p build

wanted() { [[ ",$chosen," == *",$1,"* ]]; }
section() { # NAME TITLE COMMAND…
	wanted "$1" || return 0
	echo "bench: $2" >&2
	printf '\n### %s\n\n' "$2" >>$out
	"${@:3}" >>$out
}
peers() { (cd test/bench/peers && "$GO" run . -rounds "$rounds"); }

cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)
cat >$out <<EOF

Measured on $(date -u +%Y-%m-%d) with vdbridge $(git describe --tags --always --dirty), $("$GO" env GOVERSION), Linux $(uname -r), $(nproc) cores${cpu:+ ($cpu)}.
EOF
section nbd "NBD server over memory" "$GO" run ./test/bench/nbdbench -seconds "$seconds" -rounds "$rounds"
section client "SMB client from smbd" peers
section channels "Several channels" "$GO" run ./test/bench/channels -bin bin/vdbridge -seconds "$seconds" -rounds "$rounds"
section chain "The whole chain: NBD, RSVD, server" "$GO" run ./test/bench/chain -bin bin/vdbridge -seconds "$seconds" -rounds "$rounds"
section vhdx "VHDX" "$GO" run ./test/bench/vhdxbench -bin bin/vdbridge -seconds "$seconds" -rounds "$rounds"
section fuse "Mounted disks, and copies" "$GO" run ./test/bench/fusebench -bin bin/vdbridge -seconds "$seconds" -rounds "$rounds"
section kernel "Block devices in a guest" "$GO" run ./test/bench/kernel -bin bin/vdbridge -seconds "$seconds" -rounds 3

if [ "$chosen" != "$all" ]; then
	cat $out
	echo "bench: only a part was run, so $doc stays as it is" >&2
	exit 0
fi
awk -v figures="$out" '
	/^<!-- figures: begin/ { print; while ((getline line < figures) > 0) print line; print ""; skip = 1; next }
	/^<!-- figures: end/ { skip = 0 }
	!skip' $doc >build/doc.md
mv build/doc.md $doc
echo "bench: figures are in $doc" >&2
