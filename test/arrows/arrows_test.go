package arrows

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

const module = "vdbridge"

// pkg is what we use of `go list -json`.
type pkg struct {
	ImportPath, Dir, Name              string
	GoFiles, TestGoFiles, XTestGoFiles []string
	CgoFiles                           []string
	Imports                            []string
}

func packages(t *testing.T) (root string, ps []pkg) {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatalf("go list -m: %v", err)
	}
	root = strings.TrimSpace(string(out))
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,Name,GoFiles,TestGoFiles,XTestGoFiles,CgoFiles,Imports", "./...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as we ship it
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err = cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	if len(ps) < 5 {
		t.Fatalf("go list found %d packages; this test looks at the wrong place", len(ps))
	}
	return root, ps
}

// within says whether path is room or below it.
func within(path, room string) bool { return path == room || strings.HasPrefix(path, room+"/") }

// roomOf returns the index in rooms of the longest entry that claims path, or -1.
func roomOf(path string) int {
	best := -1
	for i, r := range rooms {
		if within(path, r.room) && (best < 0 || len(r.room) > len(rooms[best].room)) {
			best = i
		}
	}
	return best
}

// forbidden returns why from may not import to (both without the module's name), or "".
func forbidden(from, to string) string {
	i := roomOf(from)
	if i < 0 {
		return "no room of docs/architecture.md has " + from + ": add it there and to test/arrows/rules_test.go"
	}
	r := rooms[i]
	if roomOf(to) == i && r.room != "test" {
		return "" // within one room
	}
	if r.room != "test" && within(to, "test") {
		return "what we ship imports nothing of test/, or test doubles would be shipped"
	}
	if r.room != "cmd/vdbridge" && within(to, "cmd") {
		return "the command line is the top of the tree: nothing stands on it"
	}
	for _, m := range r.may {
		if m == "..." || to == m || strings.HasSuffix(m, "/...") && within(to, strings.TrimSuffix(m, "/...")) {
			return ""
		}
	}
	if r.reason == "" {
		return "not in the table of docs/architecture.md"
	}
	return r.reason
}

// forbiddenModule returns why from may not import the package to of another module, or "".
func forbiddenModule(from, to string) string {
	if within(from, "test") || within(to, "golang.org/x/sys") || within(to, "golang.org/x/sync") {
		return ""
	}
	i := roomOf(from)
	if i < 0 {
		return ""
	}
	for _, m := range foreign[rooms[i].room] {
		if within(to, m) {
			return ""
		}
	}
	return "each library of others is known to one room only (the list is in test/arrows/rules_test.go), so that it can be replaced there"
}

func TestArrows(t *testing.T) {
	_, ps := packages(t)
	for _, p := range ps {
		from := strings.TrimPrefix(p.ImportPath, module+"/")
		if len(p.CgoFiles) > 0 {
			t.Errorf("%s uses cgo: the program is one static binary", from)
		}
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module+"/")
			switch {
			case imp == "C":
				t.Errorf("%s uses cgo: the program is one static binary", from)
			case ours:
				if why := forbidden(from, to); why != "" {
					t.Errorf("%s must not import %s: %s", from, to, why)
				}
			case strings.Contains(strings.SplitN(imp, "/", 2)[0], "."):
				if why := forbiddenModule(from, imp); why != "" {
					t.Errorf("%s must not import %s: %s", from, imp, why)
				}
			}
		}
	}
}

// TestRules makes sure that the rules above can say no.
func TestRules(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		ok       bool
	}{
		{"cmd/vdbridge", "bridge", true},
		{"bridge", "cmd/vdbridge", false},
		{"bridge", "server/svhdx", true},
		{"client", "smb/wire", true},
		{"client", "rsvd", false},
		{"client", "vhdx", false},
		{"rsvd", "client", false},
		{"rsvd", "scsi", true},
		{"rsvd", "scsi/lu", false},
		{"nbd", "vhdx", false},
		{"nbd/kernel", "nbd", true},
		{"server", "server/svhdx", false},
		{"server", "vhdx", false},
		{"server/svhdx", "scsi/lu", true},
		{"server/svhdx", "client", false},
		{"smb/wire", "smb/ntstatus", false},
		{"smb/crypt", "smb/wire", true},
		{"scsi/lu", "scsi", true},
		{"scsi", "scsi/lu", false},
		{"vhdx", "test/faultnet", false},
		{"bridge", "test/leak", false},
		{"test/vm", "bridge", true},
		{"newroom", "vhdx", false},
	} {
		if why := forbidden(tc.from, tc.to); (why == "") != tc.ok {
			t.Errorf("%s → %s: allowed %v, want %v (%s)", tc.from, tc.to, why == "", tc.ok, why)
		}
	}
	for _, tc := range []struct {
		from, to string
		ok       bool
	}{
		{"fusefs", "github.com/hanwen/go-fuse/v2/fs", true},
		{"bridge", "github.com/hanwen/go-fuse/v2/fs", false},
		{"vhdx", "golang.org/x/sys/unix", true},
		{"client", "github.com/urfave/cli/v2", false},
	} {
		if why := forbiddenModule(tc.from, tc.to); (why == "") != tc.ok {
			t.Errorf("%s → %s: allowed %v, want %v", tc.from, tc.to, why == "", tc.ok)
		}
	}
}

// goFiles calls f for every Go file of the tree, also those of nested modules.
func goFiles(t *testing.T, root string, f func(rel string, src []byte)) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "build" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || d.IsDir() {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		n++
		f(filepath.ToSlash(rel), src)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n < 10 {
		t.Fatalf("found %d Go files; this test looks at the wrong place", n)
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	_, ps := packages(t)
	for _, p := range ps {
		files := p.GoFiles
		if len(files) == 0 {
			continue // only tests
		}
		documented := false
		for _, name := range files {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Errorf("%s: %v", p.ImportPath, err)
				continue
			}
			documented = documented || f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != ""
		}
		if !documented {
			t.Errorf("%s has no package comment: add doc.go with a sentence that says what the package is", p.ImportPath)
		}
	}
}

func TestFilesFitInTheHead(t *testing.T) {
	root, _ := packages(t)
	goFiles(t, root, func(rel string, src []byte) {
		if n := bytes.Count(src, []byte("\n")); n > maxLines {
			t.Logf("warning: %s has %d lines; split it by what it talks about", rel, n)
		}
	})
}

// inBubble says whether call runs its argument in a bubble of testing/synctest.
func inBubble(call *ast.CallExpr) bool {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	x, ok := f.X.(*ast.Ident)
	return ok && x.Name == "synctest"
}

func TestNoTestSleeps(t *testing.T) {
	root, _ := packages(t)
	used := make(map[string]bool)
	goFiles(t, root, func(rel string, src []byte) {
		if !strings.HasSuffix(rel, "_test.go") && !strings.HasPrefix(rel, "test/") || !bytes.Contains(src, []byte("time")) {
			return
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, rel, src, 0)
		if err != nil {
			t.Errorf("%s: %v", rel, err)
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok && inBubble(call) {
				return false // time is virtual in there, and a sleep is an event
			}
			s, ok := n.(*ast.SelectorExpr)
			if !ok || s.Sel.Name != "Sleep" {
				return true
			}
			if x, ok := s.X.(*ast.Ident); !ok || x.Name != "time" {
				return true
			}
			if _, ok := sleepers[rel]; ok {
				used[rel] = true
				return true
			}
			t.Errorf("%s:%d calls time.Sleep: wait for the event itself (a channel, a condition, testing/synctest); if there is none, add the file to sleepers in test/arrows/rules_test.go with the reason",
				rel, fset.Position(s.Pos()).Line)
			return true
		})
	})
	var names []string
	for f := range sleepers {
		names = append(names, f)
	}
	sort.Strings(names)
	for _, f := range names {
		if !used[f] {
			t.Errorf("%s is in sleepers but does not sleep any more: remove the entry", f)
		}
	}
}
