package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// RequireTools is the name of the environment variable that turns a missing tool from a skip into a failure when it is "1".
const RequireTools = "VDBRIDGE_REQUIRE_TOOLS"

// Binary is the name of the environment variable with the path of the vdbridge program that tests use. Without it they build their own.
const Binary = "VDBRIDGE_BIN"

// adminDirs are searched besides PATH, as an ordinary user's PATH does not have them on Debian.
var adminDirs = []string{"/usr/sbin", "/sbin"}

// Look finds a program like exec.LookPath, also in the administrator's folders.
func Look(name string) (string, error) {
	p, err := exec.LookPath(name)
	if err == nil || strings.Contains(name, "/") {
		return p, err
	}
	for _, d := range adminDirs {
		if q, err := exec.LookPath(filepath.Join(d, name)); err == nil {
			return q, nil
		}
	}
	return "", err
}

// Missing returns an error that names the programs that are not installed, or nil.
func Missing(names ...string) error {
	var missing []string
	for _, n := range names {
		if _, err := Look(n); err != nil {
			missing = append(missing, n)
		}
	}
	if missing == nil {
		return nil
	}
	return fmt.Errorf("not installed: %s (scripts/setup.sh installs what the tests use)", strings.Join(missing, ", "))
}

// Need skips the test when a program is not installed, or fails it when tools are required.
func Need(t testing.TB, names ...string) {
	t.Helper()
	NeedNil(t, Missing(names...))
}

// NeedNil skips the test when err is not nil, or fails it when tools are required.
func NeedNil(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if os.Getenv(RequireTools) == "1" {
		t.Fatal(err)
	}
	t.Skip("SKIPPED, nothing was tested: ", err)
}

// NeedRoot skips the test for an ordinary user, or fails it when tools are required.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		NeedNil(t, errors.New("needs root: it mounts, or makes a network namespace"))
	}
}

// Vdbridge returns the path of the vdbridge program: that of the environment variable Binary, or one built for this test.
func Vdbridge(t testing.TB) string {
	t.Helper()
	if p := os.Getenv(Binary); p != "" {
		if _, err := os.Stat(p); err != nil {
			t.Fatalf("%s: %v", Binary, err)
		}
		return p
	}
	p := filepath.Join(t.TempDir(), "vdbridge")
	if err := Build(context.Background(), p); err != nil {
		t.Fatal(err)
	}
	return p
}

// Build builds the vdbridge program into the file out, static as it is shipped.
func Build(ctx context.Context, out string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", out, "vdbridge/cmd/vdbridge")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build vdbridge: %w\n%s", err, b)
	}
	return nil
}
