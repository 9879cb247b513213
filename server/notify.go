package server

import (
	"strings"
	"sync"
	"sync/atomic"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

const (
	watchTree uint16 = 1 // CHANGE_NOTIFY flag. [MS-SMB2] 2.2.35
	// maxEvents is how many changes are kept for a watcher that is not asking at the moment; beyond, it is told to look for itself.
	maxEvents = 512
)

// notifier tells watchers of changes that were made through this server.
type notifier struct {
	active atomic.Bool // there are watchers

	mu      sync.Mutex
	watches map[*watch]struct{}
}

// watch is the change notification state of one open directory. It begins with the first CHANGE_NOTIFY and lasts until CLOSE.
type watch struct {
	o      *open
	filter uint32
	tree   bool
	events []fscc.NotifyEntry
	lost   bool // more events than were kept
	ops    []*notifyOp
}

type notifyOp struct {
	op    *pendingOp
	limit int
}

func (n *notifier) init() { n.watches = map[*watch]struct{}{} }

func (n *notifier) close() {}

// changeNotify handles CHANGE_NOTIFY. [MS-SMB2] 3.3.5.19
func (r *request) changeNotify() ntstatus.Status {
	req, err := wire.ParseChangeNotifyRequest(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter
	}
	if st := r.findOpen(req.FileID); st != ntstatus.Success {
		return st
	}
	o := r.file
	switch {
	case req.OutputBufferLength > uint32(r.c.srv.lim.MaxIO) || !r.checkCharge(req.OutputBufferLength):
		return ntstatus.InvalidParameter
	case !o.dir || req.CompletionFilter == 0:
		return ntstatus.InvalidParameter
	case o.granted&wire.AccessReadData == 0:
		return ntstatus.AccessDenied
	}
	n := &r.c.srv.notify
	n.mu.Lock()
	w := o.watch
	if w == nil {
		w = &watch{o: o, filter: req.CompletionFilter, tree: req.Flags&watchTree != 0}
		o.watch = w
		n.watches[w] = struct{}{}
		n.active.Store(true)
	}
	if w.lost || len(w.events) > 0 {
		events, lost := w.events, w.lost
		w.events, w.lost = nil, false
		n.mu.Unlock()
		body, st := notifyBody(events, lost, int(req.OutputBufferLength))
		r.keepBody = true
		r.w.ensure(len(body))
		r.setBody(append(r.body(), body...))
		return st
	}
	defer n.mu.Unlock()
	no := &notifyOp{limit: int(req.OutputBufferLength)}
	op, st := r.goAsync(o, func() { n.forget(w, no) })
	if st != ntstatus.Success {
		return st
	}
	no.op = op
	w.ops = append(w.ops, no)
	return ntstatus.Success
}

// notifyBody makes the body of a reply. [MS-SMB2] 3.3.5.19
func notifyBody(events []fscc.NotifyEntry, lost bool, limit int) ([]byte, ntstatus.Status) {
	if !lost {
		if b := fscc.AppendNotify(nil, events); len(b) <= limit {
			return (&wire.OutputResponse{Buffer: b}).Append(nil), ntstatus.Success
		}
	}
	return append(wire.AppendOutputResponse(nil, 0), 0), ntstatus.NotifyEnumDir
}

func (n *notifier) forget(w *watch, no *notifyOp) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, x := range w.ops {
		if x == no {
			w.ops = append(w.ops[:i], w.ops[i+1:]...)
			return
		}
	}
}

// drop ends the watch of an open that is being closed.
func (n *notifier) drop(o *open) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if o.watch != nil {
		delete(n.watches, o.watch)
		n.active.Store(len(n.watches) > 0)
		o.watch = nil
	}
}

func nameFilter(dir bool) uint32 {
	if dir {
		return fscc.NotifyDirName
	}
	return fscc.NotifyFileName
}

func (n *notifier) added(sh *share, rel string, dir bool) {
	n.event(sh, rel, nameFilter(dir), fscc.ActionAdded)
}

func (n *notifier) removed(sh *share, rel string, dir bool) {
	n.event(sh, rel, nameFilter(dir), fscc.ActionRemoved)
}

func (n *notifier) modified(sh *share, rel string, filter uint32) {
	n.event(sh, rel, filter, fscc.ActionModified)
}

// renamed tells of a rename; between two directories it is a removal and an addition.
func (n *notifier) renamed(sh *share, from, to string, dir bool) {
	if !n.active.Load() {
		return
	}
	fd, _ := split(from)
	td, _ := split(to)
	if fd != td {
		n.removed(sh, from, dir)
		n.added(sh, to, dir)
		return
	}
	n.event(sh, from, nameFilter(dir), fscc.ActionRenamedOldName)
	n.event(sh, to, nameFilter(dir), fscc.ActionRenamedNewName)
}

// written tells of a write.
func (n *notifier) written(o *open) {
	n.modified(o.tree.share, o.currentRel(), fscc.NotifyLastWrite|fscc.NotifySize)
}

// event tells all watchers whom it concerns.
func (n *notifier) event(sh *share, rel string, filter, action uint32) {
	if !n.active.Load() {
		return
	}
	type done struct {
		no     *notifyOp
		events []fscc.NotifyEntry
		lost   bool
	}
	var list []done
	n.mu.Lock()
	for w := range n.watches {
		if w.o.tree.share != sh || w.filter&filter == 0 {
			continue
		}
		name, ok := below(w.o.currentRel(), rel, w.tree)
		if !ok {
			continue
		}
		if len(w.events) >= maxEvents {
			w.events, w.lost = nil, true
		} else if !w.lost && !(action == fscc.ActionModified && len(w.events) > 0 && w.events[len(w.events)-1] == (fscc.NotifyEntry{Action: action, Name: name})) {
			w.events = append(w.events, fscc.NotifyEntry{Action: action, Name: name})
		}
		// The old name of a rename waits for the new one.
		if len(w.ops) > 0 && action != fscc.ActionRenamedOldName {
			no := w.ops[0]
			w.ops = w.ops[1:]
			list = append(list, done{no, w.events, w.lost})
			w.events, w.lost = nil, false
		}
	}
	n.mu.Unlock()
	if len(list) == 0 {
		return
	}
	// Not here: the caller may hold the lock of a name, and must not wait for a watcher's connection.
	sh.srv.wg.Go(func() {
		for _, d := range list {
			body, st := notifyBody(d.events, d.lost, d.no.limit)
			d.no.op.complete(st, body)
		}
	})
}

// below returns the name of rel relative to the directory dir, if it is an entry of it, or with tree anywhere below it.
func below(dir, rel string, tree bool) (string, bool) {
	if dir != "" {
		rest, ok := strings.CutPrefix(rel, dir+"/")
		if !ok {
			return "", false
		}
		rel = rest
	}
	if rel == "" || !tree && strings.Contains(rel, "/") {
		return "", false
	}
	return wireName(rel), true
}
