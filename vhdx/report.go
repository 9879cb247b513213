package vhdx

import "context"

// State is the overall verdict of Check.
type State int

// Verdicts, from best to worst.
const (
	StateClean   State = iota + 1 // nothing to replay, nothing wrong
	StateDirty                    // sound, with a log to replay: open it once for writing
	StateCorrupt                  // at least one finding is damage
)

func (s State) String() string {
	switch s {
	case StateClean:
		return "clean"
	case StateDirty:
		return "dirty"
	case StateCorrupt:
		return "corrupt"
	}
	return "unknown"
}

// MarshalText writes the name, for JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Severity grades a finding.
type Severity int

// Grades of findings.
const (
	Note    Severity = iota + 1 // worth knowing, not wrong
	Warning                     // against the format but harmless, or a spare copy that is damaged
	Damage                      // data is lost or at risk
)

func (s Severity) String() string {
	switch s {
	case Note:
		return "note"
	case Warning:
		return "warning"
	case Damage:
		return "damage"
	}
	return "unknown"
}

// MarshalText writes the name, for JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Finding is one thing that Check has to say, in plain words.
type Finding struct {
	Severity  Severity `json:"severity"`
	Structure string   `json:"structure"` // as in CorruptError
	Offset    int64    `json:"offset"`    // in the file; -1: no single place
	Message   string   `json:"message"`
}

// A Report is the result of Check.
type Report struct {
	State        State     `json:"state"`
	Findings     []Finding `json:"findings"`      // at most 1000; more are counted in MoreFindings
	MoreFindings int64     `json:"more_findings"` // not listed
	Info         Info      `json:"info"`          // as far as it could be read
	Usage        Usage     `json:"usage"`
	LeakedBytes  int64     `json:"leaked_bytes"` // space inside the file that nothing refers to
}

// Check examines an image without changing it and reports everything that it finds. An error means that the check itself could not be done
// (the file cannot be read, or is no VHDX image at all); a damaged image is not an error but a [Report] whose State is [StateCorrupt].
func Check(ctx context.Context, b Backing) (Report, error) { return check(ctx, b) }
