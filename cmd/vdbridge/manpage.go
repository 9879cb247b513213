package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// manCommand writes the manual pages. They are made from the same descriptions as the help texts, so neither can lag behind.
func manCommand() *cli.Command {
	return &cli.Command{
		Name:      "man",
		Usage:     "write the manual pages, vdbridge(1) and one for each command, into a directory",
		ArgsUsage: "DIR",
		Description: `  vdbridge man /usr/local/share/man/man1
  man vdbridge-attach`,
		Action: func(c *cli.Context) error {
			dir, err := oneArg(c, "directory")
			if err != nil {
				return err
			}
			return writeManual(c.App, dir)
		},
	}
}

func writeManual(app *cli.App, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	write := func(name string, page func(io.Writer)) error {
		f, err := os.Create(filepath.Join(dir, name+".1"))
		if err != nil {
			return err
		}
		page(f)
		return f.Close()
	}
	commands := visible(app.Commands)
	errs := []error{write("vdbridge", func(w io.Writer) { mainPage(w, app, commands) })}
	for _, c := range commands {
		errs = append(errs, write("vdbridge-"+c.Name, func(w io.Writer) { commandPage(w, c, "vdbridge "+c.Name) }))
	}
	return errors.Join(errs...)
}

// visible leaves out what help texts leave out, and what the library adds.
func visible(list []*cli.Command) []*cli.Command {
	return slices.DeleteFunc(slices.Clone(list), func(c *cli.Command) bool { return c.Hidden || c.Name == "help" })
}

// roff makes text safe for troff: no line of it is a request, and no character an escape.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...", "`", "").Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

func heading(w io.Writer, name, usage string) {
	fmt.Fprintf(w, ".TH %s 1 \"\" \"vdbridge %s\" \"vdbridge\"\n.SH NAME\n%s \\- %s\n", strings.ToUpper(roff(name)), roff(strings.Fields(versionText())[0]), roff(name), roff(usage))
}

// prose writes a description: paragraphs, and indented examples as they are.
func prose(w io.Writer, s string) {
	for _, block := range strings.Split(strings.TrimRight(s, "\n"), "\n\n") {
		switch {
		case strings.TrimSpace(block) == "":
		case strings.HasPrefix(block, "  "):
			fmt.Fprintf(w, ".PP\n.nf\n%s\n.fi\n", roff(block))
		default:
			fmt.Fprintf(w, ".PP\n%s\n", roff(block))
		}
	}
}

func flagList(w io.Writer, flags []cli.Flag) {
	byCategory := map[string][]cli.Flag{}
	var order []string
	for _, f := range flags {
		if v, ok := f.(cli.VisibleFlag); ok && !v.IsVisible() {
			continue
		}
		cat := "Options"
		if c, ok := f.(cli.CategorizableFlag); ok && c.GetCategory() != "" {
			cat = c.GetCategory()
		}
		if byCategory[cat] == nil {
			order = append(order, cat)
		}
		byCategory[cat] = append(byCategory[cat], f)
	}
	for _, cat := range order {
		fmt.Fprintf(w, ".SH %s\n", strings.ToUpper(roff(cat)))
		for _, f := range byCategory[cat] {
			fmt.Fprintf(w, ".TP\n%s\n%s\n", flagNames(f), roff(flagUsage(f)))
		}
	}
}

// placeholder splits the usage of a flag into what stands for its value and the text.
func placeholder(f cli.Flag) (value, text string) {
	d, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return "", ""
	}
	text = d.GetUsage()
	if _, rest, ok := strings.Cut(text, "`"); ok {
		value, _, _ = strings.Cut(rest, "`")
	}
	if d.TakesValue() && value == "" {
		value = "value"
	}
	return value, text
}

func flagNames(f cli.Flag) string {
	value, _ := placeholder(f)
	var names []string
	for _, n := range f.Names() {
		dash := "--"
		if len(n) == 1 {
			dash = "-"
		}
		names = append(names, `\fB`+roff(dash+n)+`\fR`)
	}
	s := strings.Join(names, ", ")
	if value != "" {
		s += ` \fI` + roff(value) + `\fR`
	}
	return s
}

func flagUsage(f cli.Flag) string {
	_, text := placeholder(f)
	if d, ok := f.(cli.DocGenerationFlag); ok {
		if v := d.GetDefaultText(); v != "" && v != "false" && v != `""` {
			text += " (default: " + strings.Trim(v, `"`) + ")"
		} else if v := d.GetValue(); d.TakesValue() && v != "" && v != "0" && v != "[]" && v != "0s" && v != "-1" {
			text += " (default: " + v + ")"
		}
	}
	return text
}

func mainPage(w io.Writer, app *cli.App, commands []*cli.Command) {
	heading(w, "vdbridge", app.Usage)
	fmt.Fprint(w, ".SH SYNOPSIS\n\\fBvdbridge\\fR \\fIcommand\\fR [\\fIoptions\\fR] \\fIarguments\\fR\n.SH DESCRIPTION\n")
	prose(w, app.Description)
	fmt.Fprint(w, ".SH COMMANDS\n")
	for _, c := range commands {
		fmt.Fprintf(w, ".TP\n\\fBvdbridge\\-%s\\fR(1)\n%s\n", roff(c.Name), roff(c.Usage))
	}
	flagList(w, app.Flags)
	fmt.Fprintf(w, ".SH EXIT STATUS\n")
	for _, e := range exitCodes {
		fmt.Fprintf(w, ".TP\n%d\n%s\n", e.code, roff(e.text))
	}
	fmt.Fprint(w, ".SH FILES\n.TP\n/etc/vdbridge/tab\nwhat is attached at boot\n.TP\n/var/lib/vdbridge\nidentities of initiators, attachments\n.TP\n/run/vdbridge\ncontrol sockets of running processes\n")
}

func commandPage(w io.Writer, c *cli.Command, name string) {
	heading(w, strings.ReplaceAll(name, " ", "-"), c.Usage)
	fmt.Fprint(w, ".SH SYNOPSIS\n")
	subs := visible(c.Subcommands)
	if len(subs) > 0 {
		fmt.Fprintf(w, "\\fB%s\\fR \\fIcommand\\fR [\\fIoptions\\fR] \\fIarguments\\fR\n", roff(name))
	} else {
		fmt.Fprintf(w, "\\fB%s\\fR [\\fIoptions\\fR] %s\n", roff(name), roff(c.ArgsUsage))
	}
	if c.Description != "" {
		fmt.Fprint(w, ".SH DESCRIPTION\n")
		prose(w, c.Description)
	}
	if len(subs) == 0 {
		flagList(w, c.Flags)
	}
	for _, s := range subs {
		fmt.Fprintf(w, ".SH %s\n\\fB%s\\fR [\\fIoptions\\fR] %s\n.PP\n%s\n", strings.ToUpper(roff(s.Name)), roff(name+" "+s.Name), roff(s.ArgsUsage), roff(s.Usage))
		if s.Description != "" {
			prose(w, s.Description)
		}
	}
	if len(subs) > 0 {
		fmt.Fprintf(w, ".SH OPTIONS\n\\fB%s\\fR lists those of each.\n", roff(name+" COMMAND --help"))
	}
	fmt.Fprint(w, ".SH SEE ALSO\n\\fBvdbridge\\fR(1)\n")
}
