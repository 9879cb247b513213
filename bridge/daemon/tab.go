package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"vdbridge/bridge"
)

// DefaultTab lists what is attached at boot.
const DefaultTab = "/etc/vdbridge/tab"

// TabEntry is a line of the tab: a name, a URL, and options.
type TabEntry struct {
	Name    string
	URL     string
	Options map[string]string // flags of attach by their names; those without a value have "true"
	Auto    bool              // attached by --all
	Timeout time.Duration     // of attaching it, whatever the server does
	Line    int
}

const (
	maxTab     = 1 << 20
	tabTimeout = 30 * time.Second
)

// ReadTab reads a tab. Errors have the file's name and the line's number; one that is not there has no entries.
func ReadTab(path string) ([]TabEntry, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && st.Size() > maxTab {
		err = fmt.Errorf("it has %d bytes, and may have %d", st.Size(), maxTab)
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	list, err := ParseTab(string(b))
	if err != nil {
		return nil, bridge.Usagef("%s:%v", path, err)
	}
	return list, nil
}

// ParseTab parses a tab: lines of NAME URL [OPTION,OPTION=VALUE,…], empty lines, and lines that begin with #. Errors begin with the line's number.
func ParseTab(text string) ([]TabEntry, error) {
	var list []TabEntry
	lines := map[string]int{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		e, err := parseEntry(f)
		if err == nil {
			if at := lines[e.Name]; at > 0 {
				err = fmt.Errorf("the name %q is that of line %d already", e.Name, at)
			}
			for _, o := range list {
				if sameURL(o.URL, e.URL) {
					err = fmt.Errorf("the disk %s is in line %d already", e.URL, o.Line)
				}
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%d: %w", n, err)
		}
		e.Line, lines[e.Name] = n, n
		list = append(list, e)
	}
	return list, nil
}

func sameURL(a, b string) bool {
	x, err1 := bridge.ParseLocation(a)
	y, err2 := bridge.ParseLocation(b)
	return err1 == nil && err2 == nil && x.SameDisk(y)
}

func parseEntry(f []string) (e TabEntry, err error) {
	switch {
	case len(f) < 2:
		return e, errors.New("a line has a name, a URL, and options: NAME smb://user@host/share/disk.vhdx credentials=/etc/vdbridge/server.cred")
	case len(f) > 3:
		return e, fmt.Errorf("%q is too much: options are separated by commas without spaces, and a space in a URL is %%20", f[3])
	case !validName(f[0]) || len(f[0]) > maxName:
		return e, fmt.Errorf("%q is no name: up to %d letters, digits, dots, dashes and underscores", f[0], maxName)
	}
	if _, err := bridge.ParseLocation(f[1]); err != nil {
		return e, err
	}
	e = TabEntry{Name: f[0], URL: f[1], Options: map[string]string{}, Auto: true, Timeout: tabTimeout}
	if len(f) < 3 {
		return e, nil
	}
	for o := range strings.SplitSeq(f[2], ",") {
		key, value, has := strings.Cut(o, "=")
		switch {
		case key == "":
			return e, errors.New("an option is empty: a comma too much")
		case key == "auto" || key == "noauto":
			e.Auto = key == "auto"
		case key == "_netdev" || key == "nofail" || key == "defaults": // as in fstab; it is so always
		case key == "ro":
			e.Options["read-only"] = "true"
		case key == "timeout":
			if e.Timeout, err = time.ParseDuration(value); err != nil || e.Timeout <= 0 {
				return e, fmt.Errorf("the timeout %q is no time such as 30s", value)
			}
		case strings.Contains(key, "password") && key != "password-file":
			return e, fmt.Errorf("the option %q: a password is in a file of its own that only root may read, credentials=FILE or password-file=FILE", key)
		case !has:
			e.Options[key] = "true"
		case value == "":
			return e, fmt.Errorf("the option %s has no value", key)
		default:
			e.Options[key] = value
		}
	}
	return e, nil
}

// AlreadyAttached says whether an attach was refused because the disk is attached already, or is on its way.
func AlreadyAttached(err error) bool {
	return bridge.Classify(err) == bridge.ClassBusy && strings.Contains(err.Error(), "one disk has one device on a host")
}
