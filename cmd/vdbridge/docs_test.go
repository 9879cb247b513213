package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// docs/cli.md lists every exit code with its name and number, and every verb.
func TestCLIPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	got := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^\| (\d+) \| (Exit\w+) \|`).FindAllStringSubmatch(page, -1) {
		got[m[2]], _ = strconv.Atoi(m[1])
	}
	src, err := os.ReadFile("exit.go")
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`(?m)^\t(Exit\w+) += (\d+)`).FindAllStringSubmatch(string(src), -1)
	if len(want) != len(got) || len(want) < 10 {
		t.Errorf("the page has %d exit codes, the program %d", len(got), len(want))
	}
	for _, m := range want {
		if n, _ := strconv.Atoi(m[2]); got[m[1]] != n {
			t.Errorf("%s is %d, and %d on the page", m[1], n, got[m[1]])
		}
	}
	for _, c := range newApp(io.Discard, io.Discard).Commands {
		if !strings.Contains(page, "| `"+c.Name) {
			t.Errorf("the page lacks the verb %s", c.Name)
		}
		for _, s := range c.Subcommands {
			if !strings.Contains(page, s.Name+"`") {
				t.Errorf("the page lacks %s %s", c.Name, s.Name)
			}
		}
	}
}

// Every example in help texts, the README and the documentation names verbs and flags that exist.
func TestExamples(t *testing.T) {
	texts := map[string]string{"vdbridge --help": description}
	var collect func(c *cli.Command, name string)
	collect = func(c *cli.Command, name string) {
		texts[name+" --help"] = c.Description
		for _, s := range c.Subcommands {
			collect(s, name+" "+s.Name)
		}
	}
	app := newApp(io.Discard, io.Discard)
	for _, c := range app.Commands {
		collect(c, c.Name)
		if c.Description == "" && c.Name != "version" {
			t.Errorf("%s has no example", c.Name)
		}
		prepare(c)
	}
	pages, _ := filepath.Glob("../../docs/*.md")
	for _, p := range append(pages, "../../README.md") {
		if b, err := os.ReadFile(p); err == nil {
			texts[p] = string(b)
		}
	}
	n := 0
	for where, text := range texts {
		text = strings.ReplaceAll(text, "\\\n", " ")
		for _, line := range strings.Split(text, "\n") {
			line = strings.TrimSpace(line)
			line = strings.TrimPrefix(line, "$ ")
			if !strings.HasPrefix(line, "vdbridge ") {
				continue
			}
			line, _, _ = strings.Cut(line, " | ")
			line, _, _ = strings.Cut(line, " && ")
			line, _, _ = strings.Cut(line, "   ")
			n++
			checkExample(t, app, where, strings.TrimSuffix(strings.TrimSpace(line), " &"))
		}
	}
	if n < 20 {
		t.Errorf("only %d examples found", n)
	}
}

func checkExample(t *testing.T, app *cli.App, where, line string) {
	t.Helper()
	var words []string
	for _, m := range regexp.MustCompile(`'[^']*'|"[^"]*"|\S+`).FindAllString(line, -1) {
		words = append(words, strings.Trim(m, `'"`))
	}
	args, err := flagsFirst(app, words)
	if err != nil {
		t.Errorf("%s: %s: %v", where, line, err)
		return
	}
	flags, commands := app.Flags, app.Commands
	for i := 1; i < len(args); i++ {
		a := args[i]
		if c := findCommand(commands, a); c != nil {
			flags, commands = c.Flags, c.Subcommands
			continue
		}
		if len(a) < 2 || a[0] != '-' || isNumber(a) {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		known := name == "help" || name == "h"
		for _, f := range flags {
			for _, fn := range f.Names() {
				known = known || fn == name
			}
		}
		if !known {
			t.Errorf("%s: %s: there is no flag %s", where, line, a)
		}
		if takesValue(flags, a) {
			i++
		}
	}
}
