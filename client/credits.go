package client

import "errors"

// window is the client's side of the credits and message ids of a connection. Conn.mu guards it. [MS-SMB2] 3.2.4.1.2, 3.2.4.1.6
//
// Credits are bought with each request so that the sum of what is at hand and what is still to come reaches target. Requests that find
// too few wait in a queue, first come first served, so that a large request is not starved by small ones.
type window struct {
	avail  int    // credits at hand: ids next to next+avail-1 may be used
	next   uint64 // the lowest unused message id
	target int    // how many credits to have, at hand or on their way
	asked  int    // credits asked for by requests that have no reply yet
	open   int    // requests that have no final reply yet

	head, tail *request // waiting for credits
}

var (
	errNoCredits = errors.New("server left no credits, so nothing can be sent any more")
	errTooLarge  = errors.New("request is too large for the server")
)

// most returns how many credits one request could get if it waited for all others.
func (w *window) most() int { return w.avail + w.asked }

// take gives n credits at hand to r, and their ids, and decides how many it asks for.
func (w *window) take(r *request, n int) {
	r.id = w.next
	r.charge = n
	w.next += uint64(n)
	w.avail -= n
	ask := n
	if missing := w.target - w.avail - w.asked - n; missing > 0 {
		ask += missing
	}
	r.asked = min(max(ask, 1), 0xFFFF)
	w.asked += r.asked
	w.open++
}

// grant adds credits that came in a reply for r; final says that no other reply to r will come.
func (w *window) grant(r *request, n int, final bool) {
	if n > 0 || final {
		w.asked -= r.asked
		r.asked = 0
	}
	if final {
		w.open--
	}
	// A server may grant more than was asked for. The surplus ids are simply not used, which keeps the memory in flight bounded.
	w.avail = min(w.avail+n, w.target)
}

// push puts r at the end of the queue.
func (w *window) push(r *request) {
	r.next, r.prev = nil, w.tail
	if w.tail != nil {
		w.tail.next = r
	} else {
		w.head = r
	}
	w.tail = r
}

// remove takes r out of the queue.
func (w *window) remove(r *request) {
	if r.prev != nil {
		r.prev.next = r.next
	} else {
		w.head = r.next
	}
	if r.next != nil {
		r.next.prev = r.prev
	} else {
		w.tail = r.prev
	}
	r.next, r.prev = nil, nil
}

// fits returns how many credits r can have now: what it wants, or, if no reply is outstanding that could bring more
// and r can do with less, what there is. 0 means that r must wait.
func (w *window) fits(r *request) int {
	switch {
	case w.avail >= r.want:
		return r.want
	case w.open == 0 && r.divisible:
		return w.avail
	}
	return 0
}
