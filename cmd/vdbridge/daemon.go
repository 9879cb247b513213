package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
	"vdbridge/bridge/daemon"
	"vdbridge/nbd/kernel"
)

func daemonCommand() *cli.Command {
	return &cli.Command{
		Name:  "daemon",
		Usage: "keep the devices of 'vdbridge attach'; started by it, or by systemd",
		Description: `Takes back the devices of a daemon that has ended, and keeps them and new ones until it is interrupted. The devices stay then, and
their users wait for the next daemon: so a newer version is put in place. 'vdbridge detach --all' ends them.

  vdbridge daemon --all                           (attaches what /etc/vdbridge/tab lists, too)`,
		Flags: concat(
			[]cli.Flag{
				&cli.BoolFlag{Name: "all", Usage: "attach what the tab lists and is not marked noauto"},
				&cli.StringFlag{Name: "tab", Usage: "`FILE` of --all", Value: daemon.DefaultTab},
				&cli.StringFlag{Name: "metrics", Usage: "show metrics for Prometheus at `ADDRESS`, unix:PATH or tcp:HOST:PORT"},
				&cli.BoolFlag{Name: "idle-exit", Usage: "end when the last device is detached"},
				&cli.StringFlag{Name: "state-dir", Usage: "where attachments and the identities of this host's initiators are kept", Value: bridge.DefaultStateDir()},
				runDirFlag(),
			},
			readyFlags(),
		),
		Action: runDaemon,
	}
}

// daemonConfig is what the daemon and a foreground attachment work with. The caller closes the driver.
func daemonConfig(log *slog.Logger, stateDir string) (daemon.Config, error) {
	d, err := kernel.Open()
	switch {
	case errors.Is(err, kernel.ErrNotAllowed):
		return daemon.Config{}, &bridge.Error{Class: bridge.ClassPermission, Sentence: err.Error() + ": use sudo", Err: err}
	case errors.Is(err, kernel.ErrNoDriver):
		return daemon.Config{}, &bridge.Error{Class: bridge.ClassUnsupported, Sentence: err.Error(), Err: err}
	case err != nil:
		return daemon.Config{}, err
	}
	if err := daemon.Harden(); err != nil {
		log.Warn("not protected against shortage of memory", "err", err)
	}
	return daemon.Config{StateDir: stateDir, Driver: d, Open: openDisk(log, stateDir), Warn: warnAbout, Secrets: daemon.SystemdSecrets(), Logger: log}, nil
}

// serviceLogger is the logger of a process that keeps devices.
func serviceLogger(c *cli.Context) (*slog.Logger, error) {
	log, err := logger(c, slog.LevelInfo)
	if f, ok := c.App.ErrWriter.(*os.File); ok && err == nil && nearest(c, "log-format") == "text" {
		var level slog.Level
		if level.UnmarshalText([]byte(nearest(c, "log-level"))) != nil || !c.IsSet("log-level") {
			level = slog.LevelInfo
		}
		log = slog.New(daemon.LogHandler(f, level))
	}
	return log, err
}

func runDaemon(c *cli.Context) (err error) {
	log, err := serviceLogger(c)
	if err != nil {
		return err
	}
	var tab []daemon.TabEntry
	if c.Bool("all") {
		if tab, err = readTab(c); err != nil {
			return err
		}
	}
	cfg, err := daemonConfig(log, c.String("state-dir"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cfg.Driver.Close()) }()
	d, err := daemon.Start(c.String("run-dir"), cfg)
	if err != nil {
		return err
	}
	defer func() {
		bridge.NotifySystemd("STOPPING=1")
		err = errors.Join(err, d.Close())
	}()
	stopMetrics, err := startMetrics(c, d.Status)
	if err != nil {
		return err
	}
	defer stopMetrics()
	var wg sync.WaitGroup // all at the same time, so that a boot waits for the longest timeout and not for their sum
	for _, e := range tab {
		if e.Auto {
			wg.Go(func() { attachFromTab(c, d, &e, log) })
		}
	}
	wg.Wait()
	undo, err := ready(c, c.String("run-dir"))
	defer undo()
	if err != nil {
		return err
	}
	idle := (<-chan time.Time)(nil)
	if c.Bool("idle-exit") {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		idle = t.C
	}
	quiet := 0
	for {
		select {
		case <-c.Context.Done():
			return nil
		case <-d.Stopped():
			return nil
		case <-idle:
			if quiet++; d.Attachments() > 0 {
				quiet = 0
			}
			if quiet >= idleSeconds {
				return nil
			}
		}
	}
}

// idleSeconds is how long a daemon that attach started goes on without a device.
const idleSeconds = 30

func attachFromTab(c *cli.Context, d *daemon.Daemon, e *daemon.TabEntry, log *slog.Logger) {
	s, err := specOf(e)
	if err == nil {
		ctx, cancel := context.WithTimeout(c.Context, e.Timeout)
		defer cancel()
		env := map[string]string{}
		for _, k := range clientEnvNames {
			if v := os.Getenv(k); v != "" {
				env[k] = v
			}
		}
		_, err = d.Attach(ctx, *s, env)
	}
	if err != nil && !daemon.AlreadyAttached(err) {
		log.Error("an entry of the tab was not attached", "name", e.Name, "line", e.Line, "err", err)
	}
}

func attachForeground(c *cli.Context, s *daemon.Spec, env map[string]string) (err error) {
	log, err := serviceLogger(c)
	if err != nil {
		return err
	}
	cfg, err := daemonConfig(log, c.String("state-dir"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cfg.Driver.Close()) }()
	undo := func() {}
	defer func() { undo() }()
	return daemon.Foreground(c.Context, c.String("run-dir"), cfg, *s, env, func(m *daemon.Manager, a *daemon.Attached) (func(), error) {
		stop, err := startMetrics(c, m.Status)
		if err != nil {
			return stop, err
		}
		for _, w := range a.Warnings {
			fmt.Fprintf(c.App.ErrWriter, "vdbridge: warning: %s\n", w)
		}
		undo, err = ready(c, a.Device)
		return stop, err
	})
}

// startTimeout is how long a daemon may take until it answers.
const startTimeout = 15 * time.Second

// ensureDaemon starts a daemon unless one answers.
func ensureDaemon(c *cli.Context) error {
	runDir := c.String("run-dir")
	ctx, cancel := context.WithTimeout(c.Context, startTimeout)
	defer cancel()
	_, err := daemon.Call(ctx, runDir, &daemon.Request{Verb: daemon.VerbPing})
	if err == nil || !errors.Is(err, daemon.ErrNotRunning) {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return fmt.Errorf("run-time directory: %w; choose another with --run-dir", err)
	}
	logPath := filepath.Join(runDir, daemon.LogFile)
	logFile, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("log of the daemon: %w", err)
	}
	defer logFile.Close()
	at, _ := logFile.Seek(0, 2)
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	args := []string{"daemon", "--run-dir", runDir, "--state-dir", c.String("state-dir"), "--idle-exit", "--ready-fd", "3"}
	for _, name := range []string{"log-level", "log-format"} {
		if c.IsSet(name) {
			args = append(args, "--"+name, c.String(name))
		}
	}
	cmd := exec.Command(self, args...)
	cmd.Dir = "/"
	cmd.Stderr, cmd.ExtraFiles = logFile, []*os.File{w}
	cmd.Env = append(os.Environ(), bridge.PasswordEnv+"=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return fmt.Errorf("start the daemon: %w", err)
	}
	w.Close()
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, rerr := bufio.NewReader(r).ReadString('\n')
	if rerr == nil {
		return cmd.Process.Release()
	}
	if ctx.Err() != nil {
		return fmt.Errorf("the daemon (process %d) does not say that it is ready within %v: %s has its log", cmd.Process.Pid, startTimeout, logPath)
	}
	werr := cmd.Wait()
	// Another attach may have started one at the same moment.
	if _, err := daemon.Call(ctx, runDir, &daemon.Request{Verb: daemon.VerbPing}); err == nil {
		return nil
	}
	return fmt.Errorf("the daemon did not start (%v): %s", werr, lastLine(logPath, at))
}

// lastLine is the last line of a log behind an offset.
func lastLine(path string, at int64) string {
	b, err := os.ReadFile(path)
	if err != nil || int64(len(b)) < at {
		return "see " + path
	}
	lines := strings.Split(strings.TrimSpace(string(b[at:])), "\n")
	return strings.TrimPrefix(lines[len(lines)-1], "vdbridge: ")
}
