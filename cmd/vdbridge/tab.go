package main

import (
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
	"vdbridge/bridge/daemon"
	"vdbridge/nbd/kernel"
)

// readTab reads the tab and checks every entry's options, so that what is wrong is told with its line.
func readTab(c *cli.Context) ([]daemon.TabEntry, error) {
	path := c.String("tab")
	list, err := daemon.ReadTab(path)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if _, err := specOf(&list[i]); err != nil {
			return nil, usage("%s:%d: %v", path, list[i].Line, err)
		}
	}
	return list, nil
}

// tabEntry finds what is not a URL or a path in the tab. It returns nil for what cannot be a name there, or is not there but a file.
func tabEntry(c *cli.Context, what string) (*daemon.TabEntry, error) {
	if strings.ContainsAny(what, `/\:`) {
		return nil, nil
	}
	list, err := readTab(c)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].Name == what {
			return &list[i], nil
		}
	}
	if _, err := os.Stat(what); err == nil {
		return nil, nil
	}
	return nil, &bridge.Error{Class: bridge.ClassNotFound, Sentence: fmt.Sprintf("%q is neither a URL, nor a file, nor a name in %s", what, c.String("tab"))}
}

// specOf makes the spec of an entry.
func specOf(e *daemon.TabEntry) (*daemon.Spec, error) {
	s := &daemon.Spec{Name: e.Name, URL: e.URL, Connections: defaultConnections, IOTimeout: defaultIOTimeout, Options: map[string]string{}}
	var names []string
	for k := range e.Options {
		names = append(names, k)
	}
	sort.Strings(names)
	for _, k := range names {
		v := e.Options[k]
		var err error
		switch k {
		case "device":
			s.Device = v
			_, err = kernel.ParseNode(v)
		case "connections":
			s.Connections, err = strconv.Atoi(v)
		case "read-only":
			s.ReadOnly, err = strconv.ParseBool(v)
		case "io-timeout":
			s.IOTimeout, err = time.ParseDuration(v)
		default:
			s.Options[k] = v
			if fileOptions[k] && !strings.HasPrefix(v, "/") {
				return nil, usage("the option %s=%s: give the whole path", k, v)
			}
		}
		if err != nil {
			return nil, usage("the option %s cannot be %q", k, v)
		}
	}
	s.OnLoss = s.Options["on-loss"]
	if e.Timeout > 0 && s.Options["timeout"] == "" {
		s.Options["timeout"] = e.Timeout.String()
	}
	_, err := optionsOf(s.Options, nil)
	return s, err
}

// attachAll attaches what the tab lists. One that fails does not keep the others.
func attachAll(c *cli.Context) error {
	list, err := readTab(c)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return &bridge.Error{Class: bridge.ClassPermission, Sentence: "only root may attach a device: use sudo"}
	}
	var first error
	started := false
	for i := range list {
		e := &list[i]
		if !e.Auto {
			continue
		}
		err := func() error {
			s, err := specOf(e)
			if err != nil {
				return err
			}
			if !started {
				if err := kernel.Load(); err != nil {
					return &bridge.Error{Class: bridge.ClassUnsupported, Sentence: err.Error(), Err: err}
				}
				if err := ensureDaemon(c); err != nil {
					return err
				}
				started = true
			}
			loc, err := bridge.ParseLocation(s.URL)
			if err != nil {
				return err
			}
			env, err := clientEnv(c.Context, s, loc)
			if err != nil {
				return err
			}
			resp, err := daemon.Call(c.Context, c.String("run-dir"), &daemon.Request{Verb: daemon.VerbAttach, Spec: s, Env: env, Timeout: e.Timeout})
			if err != nil {
				return err
			}
			return printAttached(c, resp.Attached)
		}()
		if err == nil || daemon.AlreadyAttached(err) {
			continue
		}
		fmt.Fprintf(c.App.ErrWriter, "vdbridge: %s:%d: %s: %s\n", c.String("tab"), e.Line, e.Name, oneLine(err.Error()))
		if first == nil {
			first = errReported{err}
		}
	}
	return first
}
