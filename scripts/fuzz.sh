#!/usr/bin/env bash
# Runs each fuzz target of the module for the given time, one after the other. usage: fuzz.sh [TIME] [PACKAGE…]
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
time=${1:-20s}
shift || true
packages=("$@")
[ ${#packages[@]} -gt 0 ] || packages=(./...)

count=0
failed=()
for pkg in $($GO list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' "${packages[@]}"); do
	dir=$($GO list -f '{{.Dir}}' "$pkg")
	mapfile -t targets < <(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*\*testing\.F\).*/\1/p' "$dir"/*_test.go | sort -u)
	for target in "${targets[@]}"; do
		count=$((count + 1))
		echo "== $pkg $target ($time)"
		if ! $GO test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$pkg" | grep -vE '^fuzz: elapsed'; then
			failed+=("$pkg $target")
		fi
	done
done

if [ ${#failed[@]} -gt 0 ]; then
	printf 'fuzz: failed: %s\n' "${failed[@]}"
	exit 1
fi
if [ "$count" = 0 ]; then
	echo "fuzz: no fuzz target found"
	exit 1
fi
echo "fuzz: $count targets, none failed"
