// Command testsum turns `go test -json` into something to read: a line for each package as it ends, the whole output of what failed,
// and every skipped test with its reason, so that no skip stays unseen.
//
//	go test -json ./... | testsum -save FILE     passes on what happens and keeps the results; fails when a test failed
//	testsum -summary FILE…                       prints the results of several runs together; fails also when no test ran
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
)

// event is one line of test2json; see `go doc test2json`.
type event struct {
	Action      string
	Package     string
	Test        string
	Output      string
	Elapsed     float64 // seconds
	ImportPath  string
	FailedBuild string
}

// results is what a run leaves for the summary.
type results struct {
	Passed, Failed, Skipped int
	Packages                []string // one line each, as go test prints them
	Failures                []string // package and test
	Skips                   []string // package, test and reason
	Slow                    []slow
}

type slow struct {
	Name    string
	Seconds float64
}

func main() {
	save := flag.String("save", "", "read go test -json from standard input and keep the results in this file")
	summary := flag.Bool("summary", false, "print the results that are in the files named")
	flag.Parse()
	var err error
	switch {
	case *save != "":
		err = follow(os.Stdin, os.Stdout, *save)
	case *summary:
		err = summarise(os.Stdout, flag.Args())
	default:
		flag.Usage()
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(1)
	}
}

// follow reads the events, prints progress to w, and writes the results to path.
func follow(r io.Reader, w io.Writer, path string) error {
	var (
		res     results
		output  = make(map[string]*strings.Builder) // by package and test
		build   = make(map[string]*strings.Builder) // by import path
		tests   = make(map[string]int)              // by package
		skipped = make(map[string]int)
		out     = func(m map[string]*strings.Builder, k string) *strings.Builder {
			if m[k] == nil {
				m[k] = new(strings.Builder)
			}
			return m[k]
		}
	)
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 64<<10), 64<<20)
	for sc.Scan() {
		var e event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			fmt.Fprintln(w, sc.Text()) // not an event: go's own words
			continue
		}
		name := e.Package
		if e.Test != "" {
			name += " " + e.Test
		}
		switch e.Action {
		case "build-output":
			out(build, e.ImportPath).WriteString(e.Output)
		case "output":
			out(output, name).WriteString(e.Output)
		case "pass", "fail", "skip":
			if e.Test == "" {
				line := fmt.Sprintf("ok  \t%s\t%.1fs\t%d tests", e.Package, e.Elapsed, tests[e.Package])
				if n := skipped[e.Package]; n > 0 {
					line += fmt.Sprintf(", %d skipped", n)
				}
				switch e.Action {
				case "fail":
					line = fmt.Sprintf("FAIL\t%s\t%.1fs", e.Package, e.Elapsed)
					if e.FailedBuild != "" {
						line = fmt.Sprintf("FAIL\t%s [build failed]", e.Package)
						fmt.Fprint(w, out(build, e.FailedBuild).String())
					} else {
						for l := range strings.Lines(out(output, name).String()) {
							if !strings.HasPrefix(l, "FAIL") { // said by the line below
								fmt.Fprint(w, l)
							}
						}
					}
					if len(res.Failures) == 0 || !strings.HasPrefix(res.Failures[len(res.Failures)-1], e.Package+" ") {
						res.Failures = append(res.Failures, e.Package)
					}
				case "skip":
					line = fmt.Sprintf("?   \t%s\t[no test files]", e.Package)
				}
				fmt.Fprintln(w, line)
				res.Packages = append(res.Packages, line)
				continue
			}
			if !strings.Contains(e.Test, "/") {
				tests[e.Package]++
				res.Slow = append(res.Slow, slow{name, e.Elapsed})
			}
			switch e.Action {
			case "pass":
				res.Passed++
			case "fail":
				res.Failed++
				res.Failures = append(res.Failures, name)
				fmt.Fprint(w, out(output, name).String())
			case "skip":
				res.Skipped++
				skipped[e.Package]++
				res.Skips = append(res.Skips, name+": "+reason(out(output, name).String()))
			}
			delete(output, name)
		}
	}
	if err := sc.Err(); err != nil {
		return err
	}
	sort.SliceStable(res.Slow, func(i, j int) bool { return res.Slow[i].Seconds > res.Slow[j].Seconds })
	res.Slow = res.Slow[:min(10, len(res.Slow))]
	b, err := json.Marshal(res)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, b, 0o666); err != nil {
		return err
	}
	return res.verdict()
}

func (r *results) verdict() error {
	if n := len(r.Failures); n > 0 {
		return fmt.Errorf("%d failed", n)
	}
	return nil
}

// reason picks the words of t.Skip out of a test's output.
func reason(output string) string {
	var words []string
	for _, l := range strings.Split(output, "\n") {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "=== ") || strings.HasPrefix(l, "--- ") {
			continue
		}
		words = append(words, l)
	}
	return strings.Join(words, " ")
}

// summarise prints the results of several runs: a line per package, what failed, what was skipped and why, what took long, totals.
func summarise(w io.Writer, paths []string) error {
	var all results
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		var r results
		if err := json.Unmarshal(b, &r); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		all.Passed += r.Passed
		all.Failed += r.Failed
		all.Skipped += r.Skipped
		all.Packages = append(all.Packages, r.Packages...)
		all.Failures = append(all.Failures, r.Failures...)
		all.Skips = append(all.Skips, r.Skips...)
		all.Slow = append(all.Slow, r.Slow...)
	}
	sort.SliceStable(all.Slow, func(i, j int) bool { return all.Slow[i].Seconds > all.Slow[j].Seconds })
	fmt.Fprintln(w, "slowest:")
	for _, s := range all.Slow[:min(8, len(all.Slow))] {
		fmt.Fprintf(w, "  %6.1fs %s\n", s.Seconds, s.Name)
	}
	if len(all.Skips) > 0 {
		fmt.Fprintln(w, "skipped:")
		for _, s := range all.Skips {
			fmt.Fprintln(w, "  "+s)
		}
	}
	if len(all.Failures) > 0 {
		fmt.Fprintln(w, "failed:")
		for _, s := range all.Failures {
			fmt.Fprintln(w, "  "+s)
		}
	}
	for _, l := range all.Packages {
		fmt.Fprintln(w, l)
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", all.Passed, all.Failed, all.Skipped)
	if all.Passed == 0 {
		return errors.New("no test ran")
	}
	return all.verdict()
}
