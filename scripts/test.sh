#!/usr/bin/env bash
# What `make test` runs. Missing tools are failures here, not skips. Ends with one line per package, as go test has them, and totals.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
export PATH=$PATH:/usr/sbin:/sbin
export VDBRIDGE_REQUIRE_TOOLS=1
start=$SECONDS

rc=0
echo "== lint"
if GO="$GO" scripts/lint.sh; then
	echo "== lint is clean (${SECONDS}s)"
else
	echo "== lint FAILED (${SECONDS}s); the tests run all the same"
	rc=1
fi

if [ "$(id -u)" != 0 ]; then
	echo "== note: not root: tests that mount or boot guests will fail; run 'make test' as root"
fi

# All packages that have tests, in three groups: ordinary ones, with the race detector; those that run the program as a process, with a program built
# with the race detector; and those that want the machine for themselves: real kernels, and what counts allocations.
list() { "$GO" list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...; }
alone='/test/(vm|allocs|cluster)(/|$)'
program='/test/(wirecheck|soak)(/|$)'
mapfile -t alones < <(list | grep -E "$alone")
mapfile -t programs < <(list | grep -E "$program")
mapfile -t units < <(list | grep -Ev "$alone|$program|^vdbridge/vhdx\$")

mkdir -p build
"$GO" build -o build/testsum ./test/testsum
run() { # NAME go-test-arguments…
	local name=$1
	shift
	"$GO" test -count=1 -timeout 15m -json ${RUN:+-run "$RUN"} "$@" | build/testsum -save "build/$name.tests" || rc=1
	results+=("build/$name.tests")
}
results=()

echo "== tests with the race detector: ${#units[@]} packages"
run units -race -p 2 "${units[@]}"
# The crash tests of vhdx are arithmetic over many thousands of images, TestHuge walks 64 million entries, and neither has anything to race with;
# they run without the detector.
run vhdx -race -skip '^Test(Crash|Huge)' vdbridge/vhdx
run crash -run '^Test(Crash|Huge)' vdbridge/vhdx

echo "== the whole program, built with the race detector (${SECONDS}s)"
"$GO" build -race -o build/vdbridge-race ./cmd/vdbridge
VDBRIDGE_BIN=$PWD/build/vdbridge-race run programs -p 1 "${programs[@]}"

echo "== real kernels, and counting allocations (${SECONDS}s)"
VDBRIDGE_BIN=$PWD/bin/vdbridge run alone -p 1 "${alones[@]}"
# The race detector allocates, so the tests that count allocations were skipped with it.
mapfile -t counting < <(grep -lE '^func Test[A-Za-z0-9]*Alloc' --include='*_test.go' -r . | xargs -r -n1 dirname | sort -u | grep -Ev "$alone")
[ ${#counting[@]} = 0 ] || run counting -p 1 -run '^Test[A-Za-z0-9]*Alloc' "${counting[@]}"

echo
echo "== summary after $((SECONDS - start))s"
build/testsum -summary "${results[@]}" || rc=1
[ $rc = 0 ] || echo "make test FAILED: see above (lint, if the summary has no failed test)"
exit $rc
