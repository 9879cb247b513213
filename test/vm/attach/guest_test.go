package attach

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vdbridge/test/lab"
	"vdbridge/test/vm"
)

// long skips what only make test-vm runs.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("VDBRIDGE_VM") != "all" {
		t.Skip("a long case: VDBRIDGE_VM=all runs it (make test-vm)")
	}
}

// prelude is the beginning of every script: a server with disks on a tmpfs, and helpers.
const prelude = `
set -u
cd /tmp
export VDBRIDGE_PASSWORD=
mkdir -p disks m
echo 'me:secret' >users; echo secret >password
V=@BIN@
fail() { echo "FAIL: $*"; echo "--- daemon"; cat /run/vdbridge/daemon.log d*.log 2>/dev/null | tail -40; echo "--- serve"; tail -20 serve.log; dmesg | tail -20; exit 1; }
vd() { "$V" "$@"; }
must() { "$@" || fail "$*"; }
# refused CODE TEXT command…: the command ends with that code and says that
refused() { code=$1 text=$2; shift 2; out=$("$@" 2>&1); got=$?
	[ $got = "$code" ] || fail "exit code $got, not $code: $* ($out)"
	case $out in *"$text"*) ;; *) fail "it does not say '$text': $* ($out)" ;; esac; }
# poll for N seconds until a command succeeds
poll() { n=$(($1 * 10)); shift; while ! "$@" >/dev/null 2>&1; do n=$((n - 1)); [ $n -gt 0 ] || fail "not in time: $*"; sleep 0.1; done; }
SERVE=
serve() { "$V" serve disks --users users --listen 127.0.0.1:4450 "$@" >>serve.log 2>&1 & SERVE=$!; poll 10 "$V" ls smb://me@127.0.0.1:4450/disks --password-file password; }
URL=smb://me@127.0.0.1:4450/disks
attach() { disk=$1; shift; vd attach $URL/$disk --password-file password "$@"; }
daemon() { "$V" daemon >>d.log 2>&1 & echo $! >daemon.pid; poll 10 "$V" status; }
daemon_pid() { cat /run/vdbridge/daemon.lock; }
`

// script runs a shell script in a guest, after the prelude, and returns its output. It must print "all good" at its end.
func script(t *testing.T, timeout time.Duration, body string, tools ...string) string {
	t.Helper()
	vm.Need(t, tools...)
	bin := lab.Vdbridge(t)
	// /tmp of the guest is its own, so what is below it must be shared.
	out := vm.MustRun(t, vm.Options{
		Script: strings.Replace(prelude, "@BIN@", bin, 1) + body + "\necho all good", Share: []string{filepath.Dir(bin)}, Timeout: timeout, Memory: "1G",
	})
	if !strings.Contains(out, "all good") || strings.Contains(out, "FAIL: ") {
		t.Fatal(out)
	}
	if testing.Verbose() {
		t.Log(out)
	}
	return out
}
