package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"vdbridge/smb/wire"
	"vdbridge/test/lab"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"vdbridge": main})
}

const scriptTimeout = time.Minute

// background is a program that a script started with "start".
type background struct {
	p   *lab.Proc
	url string
}

type scriptState struct {
	running map[string]*background
	fakes   []net.Listener
}

type stateKey struct{}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			st := &scriptState{running: map[string]*background{}}
			e.Values[stateKey{}] = st
			e.Defer(func() {
				for _, b := range st.running {
					b.p.Kill()
				}
				for _, l := range st.fakes {
					l.Close()
				}
			})
			e.Setenv("XDG_STATE_HOME", filepath.Join(e.WorkDir, "state"))
			e.Setenv("STATE", filepath.Join(e.WorkDir, "state"))
			e.Setenv("VDBRIDGE_PASSWORD", "")
			e.Setenv("LONG", strings.Repeat("x", 256))
			return errors.Join(
				os.WriteFile(filepath.Join(e.WorkDir, "users"), []byte("me:correct horse\n"), 0o600),
				os.WriteFile(filepath.Join(e.WorkDir, "password"), []byte("correct horse\n"), 0o600),
				os.WriteFile(filepath.Join(e.WorkDir, "wrong"), []byte("battery staple\n"), 0o600),
				os.Mkdir(filepath.Join(e.WorkDir, "disks"), 0o755),
			)
		},
		// need:a,b is true if these tools are there. With VDBRIDGE_REQUIRE_TOOLS=1 they must be.
		Condition: func(cond string) (bool, error) {
			tools, ok := strings.CutPrefix(cond, "need:")
			if !ok {
				return false, fmt.Errorf("there is no condition %q", cond)
			}
			var names []string
			var err error
			for _, n := range strings.Split(tools, ",") {
				if !strings.HasPrefix(n, "/") {
					names = append(names, n)
				} else if _, serr := os.Stat(n); serr != nil {
					err = serr
				}
			}
			err = errors.Join(err, lab.Missing(names...))
			if err != nil && os.Getenv("VDBRIDGE_REQUIRE_TOOLS") == "1" {
				return false, err
			}
			return err == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start":  start,
			"halt":   halt,
			"ended":  ended,
			"killed": killed,
			"failed": failed,
			"code":   code,
			"status": status,
			"fake":   fake,
			"poke":   poke,
			"logged": logged,
		},
	})
}

func state(ts *testscript.TestScript) *scriptState { return ts.Value(stateKey{}).(*scriptState) }

// start NAME args…: runs vdbridge in the background, waits for its line "ready X", and sets $NAME to X.
func start(ts *testscript.TestScript, neg bool, args []string) {
	name := args[0]
	path, err := exec.LookPath("vdbridge")
	ts.Check(err)
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir = ts.Getenv("WORK")
	cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+ts.Getenv("XDG_STATE_HOME"), "VDBRIDGE_PASSWORD="+ts.Getenv("VDBRIDGE_PASSWORD"))
	p, err := lab.Start(cmd, nil)
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), scriptTimeout)
	defer cancel()
	what, err := p.WaitLine(ctx, "ready ")
	if err != nil {
		p.Kill()
		ts.Fatalf("%s: %v\n%s", name, err, p.Output())
	}
	state(ts).running[name] = &background{p: p, url: what}
	ts.Setenv(name, what)
	// $NAME_AT is host:port of a server, for URLs with another user.
	if rest, ok := strings.CutPrefix(what, "smb://"); ok {
		at, share, _ := strings.Cut(rest, "/")
		ts.Setenv(name, "smb://me@"+rest)
		ts.Setenv(name+"_AT", at)
		ts.Setenv(name+"_SHARE", share)
	}
}

// halt NAME (stop is a command of testscript, which ends the script): asks it to end and expects exit code 0.
func halt(ts *testscript.TestScript, neg bool, args []string) {
	b := state(ts).running[args[0]]
	if b == nil {
		ts.Fatalf("%s was not started", args[0])
	}
	delete(state(ts).running, args[0])
	if err := b.p.Stop(scriptTimeout); err != nil {
		ts.Fatalf("%s: %v\n%s", args[0], err, b.p.Output())
	}
	ts.Logf("[%s]\n%s", args[0], b.p.Output())
}

// killed NAME: ends it as a crash would.
func killed(ts *testscript.TestScript, neg bool, args []string) {
	b := state(ts).running[args[0]]
	delete(state(ts).running, args[0])
	b.p.Kill()
}

// failed N NAME: asks it to end and expects exit code N.
func failed(ts *testscript.TestScript, neg bool, args []string) {
	b := state(ts).running[args[1]]
	delete(state(ts).running, args[1])
	err := b.p.Stop(scriptTimeout)
	var ee *exec.ExitError
	if !errors.As(err, &ee) || strconv.Itoa(ee.ExitCode()) != args[0] {
		ts.Fatalf("%s: %v, want exit code %s\n%s", args[1], err, args[0], b.p.Output())
	}
	ts.Logf("[%s]\n%s", args[1], b.p.Output())
}

// ended NAME: expects that it ends by itself, with exit code 0.
func ended(ts *testscript.TestScript, neg bool, args []string) {
	b := state(ts).running[args[0]]
	delete(state(ts).running, args[0])
	ctx, cancel := context.WithTimeout(context.Background(), scriptTimeout)
	defer cancel()
	if err := b.p.Wait(ctx); err != nil {
		b.p.Kill()
		ts.Fatalf("%s: %v\n%s", args[0], err, b.p.Output())
	}
}

// logged NAME text: waits until the program in the background has printed text.
func logged(ts *testscript.TestScript, neg bool, args []string) {
	b := state(ts).running[args[0]]
	ctx, cancel := context.WithTimeout(context.Background(), scriptTimeout)
	defer cancel()
	if err := b.p.WaitOutput(ctx, args[1]); err != nil {
		ts.Fatalf("%s has not printed %q: %v\n%s", args[0], args[1], err, b.p.Output())
	}
}

// status CODE args…: vdbridge answers by its exit code alone.
func status(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec("vdbridge", args[1:]...)
	var ee *exec.ExitError
	if !errors.As(err, &ee) || strconv.Itoa(ee.ExitCode()) != args[0] || ts.ReadFile("stderr") != "" {
		ts.Fatalf("%v instead of exit code %s without a word: %s", err, args[0], ts.ReadFile("stderr"))
	}
}

// code N args…: runs vdbridge and expects exit code N, and, unless N is 0, exactly one line on standard error that begins with
// "vdbridge: ". A last argument /regexp/ must match that line.
func code(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	pattern := ""
	if last := args[len(args)-1]; len(last) > 2 && last[0] == '/' && last[len(last)-1] == '/' {
		pattern = last[1 : len(last)-1]
		args = args[:len(args)-1]
	}
	err = ts.Exec("vdbridge", args[1:]...)
	got := 0
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		got = ee.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	stderr := ts.ReadFile("stderr")
	if got != want {
		ts.Fatalf("exit code %d, want %d\n%s", got, want, stderr)
	}
	if want != 0 {
		line := strings.TrimSuffix(stderr, "\n")
		if !strings.HasPrefix(line, "vdbridge: ") || strings.Contains(line, "\n") {
			ts.Fatalf("not one clear sentence:\n%s", stderr)
		}
		if strings.Contains(line, "correct horse") || strings.Contains(line, "battery staple") {
			ts.Fatalf("the password is in the message")
		}
	}
	if pattern != "" && !strings.Contains(stderr, pattern) {
		ts.Fatalf("the message lacks %q:\n%s", pattern, stderr)
	}
}

// poke FILE OFFSET HEX: overwrites bytes of a file.
func poke(ts *testscript.TestScript, neg bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	off, err := strconv.ParseInt(args[1], 0, 64)
	ts.Check(err)
	var b []byte
	_, err = fmt.Sscanf(args[2], "%x", &b)
	ts.Check(err)
	_, err = f.WriteAt(b, off)
	ts.Check(err)
}

// fake KIND NAME: a server that shows one bad manner, at the address $NAME.
func fake(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	st := state(ts)
	st.fakes = append(st.fakes, l)
	ts.Setenv(args[1], l.Addr().String())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answer(c, args[0])
		}
	}()
}

func answer(c net.Conn, kind string) {
	defer c.Close()
	buf := make([]byte, 64<<10)
	if _, err := c.Read(buf); err != nil {
		return
	}
	var msg []byte
	switch kind {
	case "smb1":
		// SMB_COM_NEGOTIATE reply of a server that knows nothing newer.
		msg = append([]byte{0xFF, 'S', 'M', 'B', 0x72, 0, 0, 0, 0, 0x88}, make([]byte, 22)...)
		msg = append(msg, 17, 0, 0, 3, 50, 0, 1, 0)
		msg = append(msg, make([]byte, 40)...)
	case "garbage":
		msg = []byte("HTTP/1.1 400 Bad Request\r\n\r\n")
		_, _ = c.Write(msg)
		return
	case "unsigned":
		h := wire.Header{Command: wire.CmdNegotiate, Flags: wire.FlagServerToRedir, Credits: 1}
		r := wire.NegotiateResponse{Dialect: wire.Dialect302, MaxTransactSize: 1 << 20, MaxReadSize: 1 << 20, MaxWriteSize: 1 << 20}
		msg = make([]byte, wire.HeaderSize)
		h.Put(msg)
		msg = r.Append(msg)
	case "silent":
		_, _ = c.Read(buf) // until the client has enough
		return
	}
	frame := append([]byte{0, byte(len(msg) >> 16), byte(len(msg) >> 8), byte(len(msg))}, msg...)
	_, _ = c.Write(frame)
	_, _ = c.Read(buf)
}
