package link

import (
	"fmt"
	"strings"
	"time"
)

// Policy says what requests do while the server is lost. The zero value is Fail.
type Policy struct {
	hold  bool
	after time.Duration // of holding; 0 = for ever
}

// The policies without a parameter.
var (
	Fail = Policy{}           // they fail, and nothing is done about it
	Hold = Policy{hold: true} // they wait until it is back
)

// FailAfter lets requests wait for d, counted from the loss. Then they fail at once, until the server is back after all.
func FailAfter(d time.Duration) Policy { return Policy{true, d} }

// ParsePolicy reads hold, fail, or fail-after=T with a duration such as 30s.
func ParsePolicy(s string) (Policy, error) {
	switch s {
	case "hold":
		return Hold, nil
	case "fail":
		return Fail, nil
	}
	if t, ok := strings.CutPrefix(s, "fail-after="); ok {
		d, err := time.ParseDuration(t)
		if err == nil && d > 0 {
			return FailAfter(d), nil
		}
		return Fail, fmt.Errorf("%q is not a time to wait; give one such as fail-after=30s", t)
	}
	return Fail, fmt.Errorf("%q does not say what to do when the server is lost; it is hold, fail-after=TIME or fail", s)
}

// String is what ParsePolicy reads.
func (p Policy) String() string {
	switch {
	case !p.hold:
		return "fail"
	case p.after > 0:
		return "fail-after=" + p.after.String()
	}
	return "hold"
}

// Holds says whether a lost server is looked for again.
func (p Policy) Holds() bool { return p.hold }

// After is how long requests wait before they fail; 0 for ever, or not at all.
func (p Policy) After() time.Duration { return p.after }
