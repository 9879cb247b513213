#!/usr/bin/env bash
# What `make test` runs. Missing tools are failures here, not skips. Ends with one line per package, as go test has them, and totals.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
export PATH=$PATH:/usr/sbin:/sbin
export VDBRIDGE_REQUIRE_TOOLS=1
export VDBRIDGE_BIN=$PWD/bin/vdbridge
start=$SECONDS

echo "== lint"
GO="$GO" scripts/lint.sh
echo "== lint is clean (${SECONDS}s)"

if [ "$(id -u)" != 0 ]; then
	echo "== note: not root: tests that mount or boot guests will fail; run 'make test' as root"
fi

# All packages that have tests; the guests come last, on their own, as they want the machine for themselves.
list() { $GO list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...; }
guests=$(list | grep /test/vm || true)
units=$(list | grep -v /test/vm)

mkdir -p build
$GO build -o build/testsum ./test/testsum
rc=0
run() { # NAME go-test-arguments…
	local name=$1
	shift
	$GO test -count=1 -timeout 15m -json ${RUN:+-run "$RUN"} "$@" | build/testsum -save "build/$name.tests" || rc=1
}

echo "== tests with the race detector: $(wc -w <<<"$units") packages"
# shellcheck disable=SC2086
run units -race -p 2 $units
results=(build/units.tests)
if [ -n "$guests" ]; then
	echo "== tests with real kernels"
	# shellcheck disable=SC2086
	run guests -p 1 $guests
	results+=(build/guests.tests)
fi

echo
echo "== summary after $((SECONDS - start))s"
build/testsum -summary "${results[@]}" || rc=1
exit $rc
