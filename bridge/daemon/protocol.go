package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"vdbridge/bridge"
)

// Version is that of the protocol. A daemon answers requests of its own version only.
const Version = 1

// Bounds of messages on the control socket, in bytes.
const (
	maxRequest  = 1 << 20
	maxResponse = 64 << 20
)

// Verbs.
const (
	VerbPing   = "ping"
	VerbAttach = "attach"
	VerbDetach = "detach"
	VerbStatus = "status"
	VerbStop   = "stop"
)

// Spec says what to attach and how. It is kept in the state directory, so it never has a password.
type Spec struct {
	Name        string            `json:"name,omitempty"`   // of the attachment; may be empty
	URL         string            `json:"url"`              //
	Device      string            `json:"device,omitempty"` // wanted, such as /dev/nbd3; empty lets the kernel choose
	Connections int               `json:"connections"`      // between the kernel and us, 1 to 16
	ReadOnly    bool              `json:"read_only,omitempty"`
	IOTimeout   time.Duration     `json:"io_timeout"`        // after which the kernel sends a request again
	OnLoss      string            `json:"on_loss,omitempty"` // hold, fail, fail-after=30s
	Options     map[string]string `json:"options,omitempty"` // flags of the command line by their names, for whoever opens the disk
}

// Request is what a client asks.
type Request struct {
	Version int    `json:"version"`
	Verb    string `json:"verb"`

	Spec    *Spec             `json:"spec,omitempty"`    // attach
	Env     map[string]string `json:"env,omitempty"`     // attach: variables of the client that the disk is opened with; kept in memory only
	Timeout time.Duration     `json:"timeout,omitempty"` // of the whole; 0 is none

	Target  string `json:"target,omitempty"`  // detach: device, URL or name
	Force   bool   `json:"force,omitempty"`   // detach: although it is used
	Release bool   `json:"release,omitempty"` // detach: give up our registration and reservation
}

// Response is the answer.
type Response struct {
	Version  int       `json:"version"`
	Error    *Failure  `json:"error,omitempty"`
	PID      int       `json:"pid"`
	Attached *Attached `json:"attached,omitempty"`
	Status   []Status  `json:"status,omitempty"`
}

// Failure is an error on the wire.
type Failure struct {
	Class    string `json:"class"`
	Sentence string `json:"sentence"`
}

// Attached is the answer to attach, and to detach.
type Attached struct {
	Device     string   `json:"device"`
	Size       int64    `json:"size"`
	Partitions []string `json:"partitions,omitempty"`
	Warnings   []string `json:"warnings,omitempty"`
}

func failure(err error) *Failure {
	return &Failure{Class: bridge.Classify(err).String(), Sentence: err.Error()}
}

// err is the error again.
func (f *Failure) err() error {
	if f == nil {
		return nil
	}
	return &bridge.Error{Class: bridge.ParseClass(f.Class), Sentence: f.Sentence}
}

// parseRequest decodes a request and checks what can be checked without knowing the state.
func parseRequest(b []byte) (*Request, error) {
	r := new(Request)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("the request is not understood: %w", err)
	}
	switch {
	case r.Version != Version:
		return nil, &bridge.Error{Class: bridge.ClassUnsupported, Sentence: fmt.Sprintf("this process speaks version %d of the control protocol and the command version %d: use the program of the running daemon, or restart the daemon (devices stay)", Version, r.Version)}
	case r.Timeout < 0:
		return nil, errors.New("the request has a negative timeout")
	case r.Verb == VerbAttach:
		if r.Spec == nil {
			return nil, errors.New("the request says nothing of what to attach")
		}
		return r, r.Spec.check()
	}
	return r, nil
}

// Bounds of what an attachment may be.
const (
	maxConnections = 16
	maxName        = 64
)

func (s *Spec) check() error {
	switch {
	case s.Connections < 1 || s.Connections > maxConnections:
		return bridge.Usagef("a device has 1 to %d connections, not %d", maxConnections, s.Connections)
	case s.IOTimeout < time.Second || s.IOTimeout > 24*time.Hour:
		return bridge.Usagef("the I/O timeout is at least 1s and at most 24h, not %v", s.IOTimeout)
	case len(s.Name) > maxName || !validName(s.Name):
		return bridge.Usagef("%q is no name for an attachment: up to %d letters, digits, dots, dashes and underscores", s.Name, maxName)
	}
	if _, err := s.deadline(); err != nil {
		return err
	}
	_, err := s.location()
	return err
}

func validName(s string) bool {
	for _, c := range s {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

func (s *Spec) location() (bridge.Location, error) { return bridge.ParseLocation(s.URL) }
