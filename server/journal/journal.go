package journal

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sync"
)

// Options describe a table.
type Options struct {
	Contents uint32       // version of what the values mean; a file of another version is refused
	Logger   *slog.Logger // nil is silent
}

// Mark is a point in the sequence of changes.
type Mark uint64

// Journal is an open table. Its methods may be called at the same time.
type Journal struct {
	path string
	log  *slog.Logger
	disk disk

	mu      sync.Mutex
	cond    sync.Cond
	table   map[uint64][]byte
	live    int64 // bytes of records of what is in the table
	pending []change
	last    Mark  // of the newest change
	done    Mark  // up to here everything is durable
	failed  Mark  // up to here the last attempt failed
	err     error // of that attempt
	busy    bool  // somebody is writing
	closed  bool

	// Of whoever is writing.
	head   head
	f      file
	size   int64 // of the file, all of it durable
	broken bool  // the file cannot be appended to any more: the table must go into a new one
}

type change struct {
	op    uint32
	key   uint64
	value []byte
}

// Open opens the table at path, or makes it. A file that is damaged or of another version is an error (ErrDamaged, ErrVersion) and is left alone.
func Open(path string, o Options) (*Journal, error) { return open(path, o, osDisk{}) }

func open(path string, o Options, d disk) (*Journal, error) {
	j := &Journal{path: path, log: o.Logger, disk: d, head: head{contents: o.Contents}, table: map[uint64][]byte{}}
	if j.log == nil {
		j.log = slog.New(slog.DiscardHandler)
	}
	j.cond.L = &j.mu
	b, err := d.read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		var cut int64
		if j.head, j.table, cut, err = decode(b, o.Contents); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if cut > 0 {
			j.log.Info("the end of a log was not durable when its program ended; it is cut off", "file", path, "bytes", cut)
		}
		for k, v := range j.table {
			j.table[k] = bytes.Clone(v)
			j.live += recordLen(v)
		}
	}
	j.head.epoch++
	if err := j.rewrite(j.table); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return j, nil
}

func recordLen(v []byte) int64 { return paddedLen(len(v)) }

func paddedLen(n int) int64 { return (recordSize + int64(n) + 7) &^ 7 }

// Epoch counts how often the table was opened; no two openings have the same.
func (j *Journal) Epoch() uint64 { return j.head.epoch }

// Table returns what is in the table. The values must not be changed.
func (j *Journal) Table() map[uint64][]byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	return maps.Clone(j.table)
}

// Put sets the entry key. value, at most MaxValue bytes, is the journal's from now on. The change is durable when Wait for the mark has returned; changes
// become durable in the order of the calls. A table that is full (see Full) takes it all the same.
func (j *Journal) Put(key uint64, value []byte) Mark {
	if len(value) > MaxValue {
		panic("journal: value too long")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if old, ok := j.table[key]; ok {
		j.live -= recordLen(old)
	}
	j.table[key] = value
	j.live += recordLen(value)
	return j.add(change{opPut, key, value})
}

// Full says whether an entry of n bytes must not be put, as the table has no room for it: its file could become longer than Open reads. An entry may always become
// shorter.
func (j *Journal) Full(key uint64, n int) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	size, old := paddedLen(n), int64(0)
	if v, ok := j.table[key]; ok {
		old = recordLen(v)
	}
	return size > old && j.live-old+size > maxLive
}

// Delete removes the entry key, if there is one.
func (j *Journal) Delete(key uint64) Mark {
	j.mu.Lock()
	defer j.mu.Unlock()
	old, ok := j.table[key]
	if !ok {
		return j.last
	}
	j.live -= recordLen(old)
	delete(j.table, key)
	return j.add(change{opDelete, key, nil})
}

func (j *Journal) add(c change) Mark {
	j.pending = append(j.pending, c)
	j.last++
	return j.last
}

// Sync waits until all changes that were made before are durable.
func (j *Journal) Sync() error {
	j.mu.Lock()
	m := j.last
	j.mu.Unlock()
	return j.Wait(m)
}

// errClosed is the end of a journal.
var errClosed = errors.New("the journal is closed")

// Wait returns when the change m and all before it are durable, or cannot be made so. After an error they are in the table all the same, and become
// durable with the next change that can, unless they are undone before.
func (j *Journal) Wait(m Mark) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for began := j.failed; j.done < m; {
		switch {
		case j.failed >= m && j.failed > began:
			return j.err
		case j.busy:
			j.cond.Wait()
		case j.closed:
			return errClosed
		case j.write() != nil && j.failed >= m:
			return j.err
		}
	}
	return nil
}

// compactAt is the size in bytes below which a file is never compacted.
const compactAt = 1 << 20

// write makes all changes up to now durable, for everybody who waits. mu is held, and given up meanwhile.
func (j *Journal) write() error {
	j.busy = true
	target, changes := j.last, j.pending
	j.pending = nil
	var table map[uint64][]byte
	if j.broken || j.size > compactAt && j.size > 4*j.live {
		table = maps.Clone(j.table)
	}
	j.mu.Unlock()
	var err error
	if table == nil {
		if err = j.appendChanges(changes); err != nil {
			// What of it is on the disk, nobody knows, and a second fdatasync would not tell: a new file must take the place of this one.
			j.log.Warn("a log cannot be written; it is being replaced", "file", j.path, "err", err)
			j.mu.Lock()
			table, target, j.pending = maps.Clone(j.table), j.last, nil
			j.mu.Unlock()
		}
	}
	if table != nil {
		err = j.rewrite(table)
	}
	j.mu.Lock()
	j.busy = false
	if err != nil {
		j.failed, j.err = target, fmt.Errorf("%s: %w", j.path, err)
	} else {
		j.done = target
	}
	j.cond.Broadcast()
	return err
}

func (j *Journal) appendChanges(changes []change) error {
	var b []byte
	for _, c := range changes {
		b = j.head.appendRecord(b, j.size+int64(len(b)), c.op, c.key, j.size, c.value)
	}
	if err := writeAll(j.f, b, j.size); err != nil {
		return err
	}
	j.size += int64(len(b))
	return nil
}

// rewrite makes a new file of the table. Only the one who is writing calls it. When it fails, the old file is still the one at the path, or nobody
// knows: it is not appended to any more.
func (j *Journal) rewrite(table map[uint64][]byte) (err error) {
	j.broken = true
	h := j.head
	var salt [8]byte
	rand.Read(salt[:])
	h.salt, h.whole = le.Uint64(salt[:]), headSize
	for _, v := range table {
		h.whole += recordLen(v)
	}
	b := h.append(nil)
	for _, k := range slices.Sorted(maps.Keys(table)) {
		b = h.appendRecord(b, int64(len(b)), opPut, k, headSize, table[k])
	}
	name := j.path + ".new"
	f, err := j.disk.create(name)
	if err != nil {
		return err
	}
	if err = writeAll(f, b, 0); err == nil {
		err = j.disk.rename(name, j.path)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if j.f != nil {
		_ = j.f.Close() // nothing of it is of use any more
	}
	j.f, j.head, j.size, j.broken = f, h, int64(len(b)), false
	return nil
}

// writeAll writes b at offset at, and makes it durable.
func writeAll(f file, b []byte, at int64) error {
	if _, err := f.WriteAt(b, at); err != nil {
		return err
	}
	return f.sync()
}

// Close waits for who is writing, makes what is left durable, and closes the file. Nothing must be changed afterwards.
func (j *Journal) Close() error {
	err := j.Sync()
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.busy {
		j.cond.Wait()
	}
	if j.closed {
		return nil
	}
	j.closed = true
	if j.f != nil {
		err = errors.Join(err, j.f.Close())
	}
	return err
}
