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
	Code      string   `json:"code"` // stable, for programs; see the constants
	Severity  Severity `json:"severity"`
	Structure string   `json:"structure"` // as in CorruptError
	Offset    int64    `json:"offset"`    // in the file; -1: no single place
	Message   string   `json:"message"`
	Advice    string   `json:"advice,omitempty"`   // what to do, in words
	Repaired  bool     `json:"repaired,omitempty"` // by Repair, which looked again to see
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

// Codes of findings. A structure that cannot be used at all has "-damaged" behind its name, with hyphens: "header-damaged", "region-table-damaged",
// "metadata-damaged", "parent-locator-damaged", "log-damaged", "file-damaged", "BAT-damaged".
const (
	CodeHeaderSpare     = "header-spare-damaged"       // one of the two headers is not valid
	CodeHeadersEqual    = "headers-equal"              // both have one sequence number, as Disk2VHD writes them
	CodeLogDirty        = "log-dirty"                  // there are entries to replay
	CodeLogIncomplete   = "log-entries-incomplete"     // entries that a crash has cut short, and that no replay needs
	CodeLogEmpty        = "log-in-use-but-empty"       // its writer died before the first entry
	CodeRegionSpare     = "region-table-copy-damaged"  // one of the two copies is not valid
	CodeRegionDiffers   = "region-table-copies-differ" // both are valid, and not equal
	CodeRegionUnknown   = "region-unknown"             // an optional region of somebody else
	CodeReservedBits    = "bat-reserved-bits"          // set in an entry
	CodeBlockBad        = "bat-entry-invalid"          // an unknown state, or a place outside the file
	CodeOverlap         = "bat-overlap"                // two things in one place
	CodeStalePlace      = "bat-stale-place"            // a trimmed block remembers a place that is not there
	CodeBitmapBad       = "bitmap-entry-invalid"       // the entry of a sector bitmap
	CodeBitmapMissing   = "bitmap-missing"             // of a block that is partially present
	CodeFixedHoles      = "fixed-with-holes"           // a fixed image with blocks that have no place
	CodeLeaked          = "space-leaked"               // nothing refers to a part of the file
	CodeParentUnchecked = "parent-not-checked"         // no resolver was given
	CodeParentMissing   = "parent-missing"
	CodeParentChanged   = "parent-changed"
	CodeChain           = "chain-not-sound"
)

// advice says what to do about a finding.
var advice = map[string]string{
	CodeHeaderSpare:   "a repair, or the next open for writing, writes it anew",
	CodeLogDirty:      "a repair, or the next open for writing, replays it",
	CodeLogEmpty:      "a repair, or the next open for writing, puts it out of use",
	CodeRegionSpare:   "a repair writes it anew from the other copy",
	CodeRegionDiffers: "a repair makes the second like the first",
	CodeReservedBits:  "a repair clears them",
	CodeStalePlace:    "a repair clears it",
	CodeBlockBad:      "the data of the block are lost; copy the rest, or restore the image from a backup",
	CodeOverlap:       "one of the two has lost its data, and nothing says which; copy what is right, or restore the image from a backup",
	CodeBitmapBad:     "what the image has of these blocks cannot be told from what its parent has; restore it from a backup",
	CodeBitmapMissing: "what the image has of the block cannot be told from what its parent has; restore it from a backup",
	CodeLeaked:        "a writer uses it again; compacting the image gives it back",
	CodeParentMissing: "put the parent where it was, or beside the image",
	CodeParentChanged: "put back the parent that the image was made for",
	CodeChain:         "restore the images of the chain from a backup",
}

// CheckOptions say what a check looks at besides the image itself.
type CheckOptions struct {
	Resolver Resolver // finds the parents of a differencing disk, which are then looked for; nil does not
	Name     string   // of the image, for messages
}

// Check examines an image without changing it and reports everything that it finds. An error means that the check itself could not be done
// (the file cannot be read, or is no VHDX image at all); a damaged image is not an error but a [Report] whose State is [StateCorrupt].
func Check(ctx context.Context, b Backing) (Report, error) { return CheckWith(ctx, b, CheckOptions{}) }

// CheckWith is [Check] with options.
func CheckWith(ctx context.Context, b Backing, o CheckOptions) (Report, error) {
	return check(ctx, b, &o)
}
