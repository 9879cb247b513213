package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
)

// isJournal says whether f is the stream that systemd connects with the journal (JOURNAL_STREAM, systemd.exec(5)).
func isJournal(f *os.File) bool {
	want := os.Getenv("JOURNAL_STREAM")
	if want == "" {
		return false
	}
	var st syscall.Stat_t
	if syscall.Fstat(int(f.Fd()), &st) != nil {
		return false
	}
	return want == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// journal writes lines for the journal.
type journal struct {
	out   *journalOut
	inner slog.Handler
}

type journalOut struct {
	mu  sync.Mutex
	w   io.Writer
	buf bytes.Buffer
}

func newJournal(w io.Writer, level slog.Leveler) slog.Handler {
	out := &journalOut{w: w}
	inner := slog.NewTextHandler(&out.buf, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
			return slog.Attr{}
		}
		return a
	}})
	return &journal{out, inner}
}

func (j *journal) Enabled(ctx context.Context, l slog.Level) bool { return j.inner.Enabled(ctx, l) }
func (j *journal) WithAttrs(a []slog.Attr) slog.Handler           { return &journal{j.out, j.inner.WithAttrs(a)} }
func (j *journal) WithGroup(name string) slog.Handler {
	return &journal{j.out, j.inner.WithGroup(name)}
}

func (j *journal) Handle(ctx context.Context, r slog.Record) error {
	priority := 7
	switch {
	case r.Level >= slog.LevelError:
		priority = 3
	case r.Level >= slog.LevelWarn:
		priority = 4
	case r.Level >= slog.LevelInfo:
		priority = 6
	}
	j.out.mu.Lock()
	defer j.out.mu.Unlock()
	j.out.buf.Reset()
	fmt.Fprintf(&j.out.buf, "<%d>", priority)
	if err := j.inner.Handle(ctx, r); err != nil {
		return err
	}
	_, err := j.out.w.Write(j.out.buf.Bytes())
	return err
}
