package deb

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vdbridge/test/lab"
	"vdbridge/test/vm"
)

// The package is built, installed, used and removed. The guest's root is thrown away.
func TestPackage(t *testing.T) {
	if os.Getenv("VDBRIDGE_VM") != "all" {
		t.Skip("takes a minute: make test-vm runs it (VDBRIDGE_VM=all)")
	}
	vm.Need(t, "dpkg-deb", "dpkg", "man", "systemd-analyze", "bash")
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "scripts/deb.sh", dir)
	cmd.Dir = "../../.."
	cmd.Env = append(os.Environ(), "BIN="+lab.Vdbridge(t))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	deb := strings.TrimSpace(string(out))
	if filepath.Dir(deb) != dir {
		t.Fatalf("the script says that the package is %s", deb)
	}
	printed := vm.MustRun(t, vm.Options{Share: []string{dir}, Script: `set -e
# --no-triggers: man-db would go through all pages of the host.
export LC_ALL=C.UTF-8
dpkg -i --no-triggers --force-depends ` + deb + ` >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
dpkg -V vdbridge
vdbridge version
fence_vdbridge -o metadata | grep -q '<action name="off"'
# The pages that the tools find, without a complaint of the formatter.
for page in vdbridge vdbridge-attach vdbridge-nbd vdbridge-pr vdbridge-fence fence_vdbridge; do
	file=$(man -w $page)
	man --warnings -E UTF-8 -l -Tutf8 "$file" 2>/tmp/warnings >/tmp/page
	[ ! -s /tmp/warnings ] || { echo "$page:"; cat /tmp/warnings; exit 1; }
	[ -s /tmp/page ]
done
systemd-analyze verify /lib/systemd/system/vdbridged.service /lib/systemd/system/vdbridge@x.service 2>&1 | grep -i vdbridge && exit 1
cat >/tmp/complete <<'EOC'
. /usr/share/bash-completion/completions/vdbridge
complete_for() { COMP_WORDS=(vdbridge "$@"); COMP_CWORD=$#; COMPREPLY=(); _vdbridge; echo "completed: ${COMPREPLY[*]}"; }
complete_for det
complete_for pr pree
complete_for nbd --listen
EOC
bash /tmp/complete
dpkg -r --no-triggers vdbridge >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
[ ! -e /usr/bin/vdbridge ]
echo removed
`})
	for _, want := range []string{"completed: detach\n", "completed: preempt preempt-abort\n", "completed: --listen\n", "removed\n"} {
		if !strings.Contains(printed, want) {
			t.Errorf("the guest did not print %q:\n%s", want, printed)
		}
	}
}
