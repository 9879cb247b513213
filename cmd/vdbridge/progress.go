package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

func progressFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "progress", Usage: "how to show how far it is: bar (on a terminal), lines, json (a JSON object a line), none; auto takes bar on a terminal and otherwise lines",
			Value: "auto", Category: "Messages"},
	}
}

// progress shows on standard error how far long work is: a bar with rate and time left, lines now and then, or JSON. Its methods may be called at the same time.
type progress struct {
	kind string
	out  io.Writer // standard error
	c    *cli.Context
	what string

	mu          sync.Mutex
	start, last time.Time
	done, total int64
	resumed     int64
	shown       bool // a bar is on the line
}

const (
	barEvery  = 200 * time.Millisecond
	lineEvery = 10 * time.Second
	jsonEvery = time.Second
)

func newProgress(c *cli.Context, what string) (*progress, error) {
	p := &progress{kind: c.String("progress"), out: c.App.ErrWriter, c: c, what: what, start: time.Now()}
	switch p.kind {
	case "auto":
		p.kind = "lines"
		if f, ok := p.out.(*os.File); ok && width(f) > 0 {
			p.kind = "bar"
		}
	case "bar", "lines", "json", "none":
	default:
		return nil, usage("--progress %q is not known; it is bar, lines, json, none or auto", p.kind)
	}
	p.last = p.start
	return p, nil
}

// width is how many columns a terminal has, 0 if it is none.
func width(f *os.File) int {
	w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(w.Col)
}

// progressLine is what --progress json prints.
type progressLine struct {
	Done    int64   `json:"done"`
	Total   int64   `json:"total"`
	Rate    float64 `json:"bytes_per_second"`
	Left    float64 `json:"seconds_left,omitempty"`
	Elapsed float64 `json:"seconds"`
	State   string  `json:"state"` // running, done, failed
}

// set tells how far the work is. resumed of the bytes done were there from before.
func (p *progress) set(done, total, resumed int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done, p.total, p.resumed = done, total, resumed
	every := map[string]time.Duration{"bar": barEvery, "lines": lineEvery, "json": jsonEvery}[p.kind]
	if every == 0 || time.Since(p.last) < every {
		return
	}
	p.last = time.Now()
	p.show("running")
}

func (p *progress) line(state string) progressLine {
	l := progressLine{Done: p.done, Total: p.total, Elapsed: time.Since(p.start).Seconds(), State: state}
	if l.Elapsed > 0 {
		l.Rate = float64(p.done-p.resumed) / l.Elapsed
	}
	if l.Rate > 0 && state == "running" {
		l.Left = float64(p.total-p.done) / l.Rate
	}
	return l
}

func (p *progress) show(state string) {
	l := p.line(state)
	percent := 100.0
	if p.total > 0 {
		percent = 100 * float64(p.done) / float64(p.total)
	}
	left := ""
	if l.Left > 0 {
		left = ", " + (time.Duration(l.Left+0.5) * time.Second).String() + " left"
	}
	text := fmt.Sprintf("%s of %s, %s/s%s", formatSize(p.done), formatSize(p.total), formatSize(int64(l.Rate)), left)
	switch p.kind {
	case "json":
		b, _ := json.Marshal(l)
		fmt.Fprintf(p.out, "%s\n", b)
	case "lines":
		fmt.Fprintf(p.out, "%s: %3.0f %%, %s\n", p.what, percent, text)
	case "bar":
		cols := 80
		if f, ok := p.out.(*os.File); ok {
			if w := width(f); w > 0 {
				cols = w
			}
		}
		text = fmt.Sprintf(" %3.0f %%  %s", percent, text)
		bar := ""
		if n := cols - len(text) - 3; n >= 10 {
			full := int(percent / 100 * float64(n))
			bar = "[" + strings.Repeat("=", full) + strings.Repeat(" ", n-full) + "]"
		}
		line := bar + text
		fmt.Fprintf(p.out, "\r%s\x1b[K", line[:min(len(line), cols-1)])
		p.shown = true
	}
}

// end shows the last state, and leaves the line to others.
func (p *progress) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	state := "done"
	if err != nil {
		state = "failed"
	}
	if p.kind == "bar" && p.shown || p.kind == "json" {
		p.show(state)
	}
	if p.shown {
		fmt.Fprintln(p.out)
		p.shown = false
	}
}

// say prints the result for people on standard output.
func (p *progress) say(format string, args ...any) {
	if p.kind != "json" {
		printf(p.c, format, args...)
	}
}
