package bridge

import (
	"path/filepath"
	"testing"
)

// An attachment that comes again after its process was killed ends the session of before at the server, so that nothing comes late by it. Here the process lives, and
// only gives its identity up.
func TestPreviousSessionEnds(t *testing.T) {
	e := embed(t, ServeOptions{RSVDVersion: 1})
	state := t.TempDir()
	attach := func() *Disk {
		return e.open(t, func(o *Options) { o.StateDir, o.Attachment = state, "node" })
	}
	p := make([]byte, 4096)
	killed := attach()
	if err := killed.Write(t.Context(), p, 0, false); err != nil {
		t.Fatal(err)
	}
	killed.remote.who.Release()
	next := attach()
	if next.Initiator().ID != killed.Initiator().ID {
		t.Fatal("another initiator")
	}
	if err := killed.Write(t.Context(), p, 0, false); err == nil {
		t.Error("the session of the killed process still writes")
	}
	if err := next.Write(t.Context(), p, 0, false); err != nil {
		t.Error(err)
	}

	// A session of another run of the server is not named to it: there the number may be somebody else's.
	conn, session, _ := next.remote.parts()
	n := conn.Info()
	last := next.remote.last
	if got := last.previous(n); got != session.ID() {
		t.Errorf("session %#x is remembered as %#x", session.ID(), got)
	}
	for name, change := range map[string]func(){"restarted": func() { n.StartTime++ }, "another server": func() { n.ServerGUID[3]++ }, "does not say": func() { n.StartTime = 0 }} {
		n = conn.Info()
		change()
		if got := last.previous(n); got != 0 {
			t.Errorf("%s: session %#x is named", name, got)
		}
	}
	closeDisk(t, next)
	if left, _ := filepath.Glob(filepath.Join(state, "initiators", "*.session*")); len(left) > 0 {
		t.Errorf("after the end there is %v", left)
	}
}
