package daemon

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vdbridge/bridge"
)

// record is what the state directory has of an attachment, for the next daemon. It never has a password.
type record struct {
	Version     int               `json:"version"`
	Backend     string            `json:"backend"` // what the kernel knows the device by
	Spec        Spec              `json:"spec"`
	Env         map[string]string `json:"env,omitempty"` // the part that is no secret
	Connections int               `json:"connections"`
	Index       int               `json:"index"`     // of the device when it was connected; -1 before
	Boot        string            `json:"boot"`      // devices do not survive a reboot
	Forgetful   bool              `json:"forgetful"` // the password was given by hand, so nobody knows it after a restart
	Created     time.Time         `json:"created"`
}

const (
	backendPrefix = "vdbridge:"
	maxRecord     = 1 << 20
)

// newBackend makes an identifier for a device.
func newBackend() (string, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return backendPrefix + hex.EncodeToString(b[:]), nil
}

// bootID tells boots apart.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// store keeps records.
type store struct{ dir string }

func openStore(stateDir, instance string) (*store, error) {
	name := "attachments"
	if instance != "" {
		name += "-" + instance
	}
	s := &store{filepath.Join(stateDir, name)}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, stateError(stateDir, err)
	}
	return s, nil
}

func stateError(dir string, err error) error {
	hint := "choose another with --state-dir"
	if bridge.Classify(err) == bridge.ClassNoSpace {
		hint = "make room there, or " + hint
	}
	return &bridge.Error{Class: bridge.Classify(err), Sentence: fmt.Sprintf("the state directory %s cannot be written (%v), and without a record there the device could not be taken back after a restart: %s", dir, err, hint), Err: err}
}

func (s *store) path(backend string) string {
	return filepath.Join(s.dir, strings.TrimPrefix(backend, backendPrefix)+".json")
}

// save writes a record so that it survives a power cut.
func (s *store) save(r *record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := bridge.WriteFileDurably(s.path(r.Backend), append(b, '\n')); err != nil {
		return stateError(filepath.Dir(s.dir), err)
	}
	return nil
}

func (s *store) remove(backend string) error {
	err := os.Remove(s.path(backend))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// load reads all records of this boot, and removes those of others. One that is damaged is left where it is and logged.
func (s *store) load(log *slog.Logger) ([]*record, error) {
	files, err := filepath.Glob(filepath.Join(s.dir, "*.json"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	var list []*record
	boot := bootID()
	for _, f := range files {
		r, err := readRecord(f)
		switch {
		case err != nil:
			log.Error("a record of an attachment cannot be used; its device, if there is one, has to be disconnected by hand (nbd-client -d)", "file", f, "err", err)
		case r.Boot != boot:
			log.Info("an attachment of an earlier boot is forgotten", "disk", r.Spec.URL)
			if err := os.Remove(f); err != nil {
				log.Warn("cannot remove it", "file", f, "err", err)
			}
		default:
			list = append(list, r)
		}
	}
	return list, nil
}

func readRecord(path string) (*record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseRecord(b)
}

func parseRecord(b []byte) (*record, error) {
	if len(b) > maxRecord {
		return nil, fmt.Errorf("it has %d bytes", len(b))
	}
	r := new(record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, err
	}
	id, ok := strings.CutPrefix(r.Backend, backendPrefix)
	if _, err := hex.DecodeString(id); !ok || err != nil || id == "" {
		return nil, fmt.Errorf("%q is not an identifier of ours", r.Backend)
	}
	if r.Version != 1 {
		return nil, fmt.Errorf("it is of version %d", r.Version)
	}
	if r.Connections < 1 || r.Connections > maxConnections || r.Index < -1 {
		return nil, fmt.Errorf("it says %d connections, device %d", r.Connections, r.Index)
	}
	return r, r.Spec.check()
}
