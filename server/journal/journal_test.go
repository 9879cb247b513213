package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// ramDisk has one directory, and forgets at a crash what was not made durable.
type ramDisk struct {
	mu    sync.Mutex
	names map[string]*ramFile
	fail  func(op string) error // says what fails; may be nil
	syncs int
}

type ramFile struct {
	d      *ramDisk
	stable []byte
	writes []ramWrite // since then
}

type ramWrite struct {
	at int64
	b  []byte
}

func newRAMDisk() *ramDisk { return &ramDisk{names: map[string]*ramFile{}} }

func (d *ramDisk) failed(op string) error {
	if d.fail == nil {
		return nil
	}
	return d.fail(op)
}

func (d *ramDisk) read(path string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.names[path]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	return f.contents(len(f.writes)), nil
}

func (d *ramDisk) create(path string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.failed("create"); err != nil {
		return nil, err
	}
	f := &ramFile{d: d}
	d.names[path] = f
	return f, nil
}

func (d *ramDisk) rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.failed("rename"); err != nil {
		return err
	}
	d.names[to] = d.names[from]
	delete(d.names, from)
	return nil
}

func (f *ramFile) contents(n int) []byte {
	b := bytes.Clone(f.stable)
	for _, w := range f.writes[:n] {
		b = put(b, w.at, w.b)
	}
	return b
}

func put(b []byte, at int64, p []byte) []byte {
	if grow := int(at) + len(p) - len(b); grow > 0 {
		b = append(b, make([]byte, grow)...)
	}
	copy(b[at:], p)
	return b
}

func (f *ramFile) WriteAt(p []byte, at int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.failed("write"); err != nil {
		return 0, err
	}
	f.writes = append(f.writes, ramWrite{at, bytes.Clone(p)})
	return len(p), nil
}

func (f *ramFile) sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.syncs++
	if err := f.d.failed("sync"); err != nil {
		f.writes = nil // as Linux does: the pages are clean afterwards, and gone
		return err
	}
	f.stable, f.writes = f.contents(len(f.writes)), nil
	return nil
}

func (f *ramFile) Close() error { return nil }

// crash returns a disk with what a loss of power may leave of this one: of what was not durable any sectors of 512 bytes.
func (d *ramDisk) crash(rng *rand.Rand) *ramDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := newRAMDisk()
	for name, f := range d.names {
		b := bytes.Clone(f.stable)
		for _, w := range f.writes {
			for i := 0; i < len(w.b); {
				n := min(len(w.b)-i, 512-int(w.at+int64(i))%512)
				if rng.IntN(2) == 0 {
					b = put(b, w.at+int64(i), w.b[i:i+n])
				}
				i += n
			}
		}
		out.names[name] = &ramFile{d: out, stable: b}
	}
	return out
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func same(a, b map[uint64][]byte) bool { return maps.EqualFunc(a, b, bytes.Equal) }

// TestTable uses a table on a real disk, and opens it again and again.
func TestTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	want := map[uint64][]byte{}
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range uint64(5) {
		j, err := Open(path, Options{Contents: 7})
		must(t, err)
		if j.Epoch() != round+1 {
			t.Errorf("epoch %d in round %d", j.Epoch(), round)
		}
		if got := j.Table(); !same(got, want) {
			t.Fatalf("round %d: %d entries, want %d", round, len(got), len(want))
		}
		for range 200 {
			key := rng.Uint64N(50)
			if rng.IntN(3) == 0 {
				j.Delete(key)
				delete(want, key)
			} else {
				v := make([]byte, rng.IntN(600))
				v = fmt.Append(v, rng.Uint64())
				j.Put(key, v)
				want[key] = v
			}
		}
		must(t, j.Sync())
		if round == 3 {
			must(t, j.Close())
		} // the others end as a process does that is killed
	}
	if _, err := Open(path, Options{Contents: 8}); !errors.Is(err, ErrVersion) {
		t.Errorf("another version: %v", err)
	}
	b, err := os.ReadFile(path)
	must(t, err)
	b[30] ^= 1
	must(t, os.WriteFile(path, b, 0o600))
	if _, err := Open(path, Options{Contents: 7}); !errors.Is(err, ErrDamaged) {
		t.Errorf("damaged head: %v", err)
	}
}

// TestCutAnywhere cuts a file at every byte: the table is what it was after the last change that is whole.
func TestCutAnywhere(t *testing.T) {
	d := newRAMDisk()
	j, err := open("j", Options{}, d)
	must(t, err)
	must(t, j.Wait(j.Put(1, []byte("from before"))))
	j, err = open("j", Options{}, d)
	must(t, err)
	type state struct {
		size  int64
		table map[uint64][]byte
	}
	states := []state{{j.size, j.Table()}}
	for i := range 12 {
		var m Mark
		if i%4 == 3 {
			m = j.Delete(uint64(i - 1))
		} else {
			m = j.Put(uint64(i), bytes.Repeat([]byte{byte(i)}, 37*i))
		}
		must(t, j.Wait(m))
		states = append(states, state{j.size, j.Table()})
	}
	whole, err := d.read("j")
	must(t, err)
	for n := range len(whole) + 1 {
		_, got, cut, err := decode(whole[:n], 0)
		at := slices.IndexFunc(states, func(s state) bool { return s.size > int64(n) })
		if at < 0 {
			at = len(states)
		}
		if at == 0 {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("cut at %d of what was whole from the beginning: %v", n, err)
			}
			continue
		}
		want := states[at-1]
		if err != nil || !same(got, want.table) || cut != int64(n)-want.size {
			t.Fatalf("cut at %d: %v, %d entries, want %d; %d bytes left out", n, err, len(got), len(want.table), cut)
		}
		// What is behind the cut may be there without what is before.
		zeros := bytes.Clone(whole)
		clear(zeros[n:min(n+40, len(zeros))])
		if bytes.Equal(zeros, whole) {
			continue
		}
		if _, _, _, err := decode(zeros, 0); int64(n)+40 <= states[len(states)-2].size && !errors.Is(err, ErrDamaged) {
			t.Fatalf("%d bytes of what was durable are gone: %v", min(40, len(zeros)-n), err)
		}
	}
}

// TestPowerLoss loses any part of what was not durable, in any order.
func TestPowerLoss(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 0))
		d := newRAMDisk()
		j, err := open("j", Options{}, d)
		must(t, err)
		var history []map[uint64][]byte
		note := func() { history = append(history, j.Table()) }
		note()
		durable := 0
		steps := 1 + rng.IntN(40)
		for i := range steps {
			for range 1 + rng.IntN(4) {
				if key := rng.Uint64N(6); rng.IntN(3) == 0 {
					j.Delete(key)
				} else {
					j.Put(key, bytes.Repeat([]byte{byte(rng.Uint32())}, rng.IntN(900)))
				}
				note()
			}
			if i == steps-1 {
				// The last batch is written, and the power fails before it is durable.
				var b []byte
				for _, c := range j.pending {
					b = j.head.appendRecord(b, j.size+int64(len(b)), c.op, c.key, j.size, c.value)
				}
				_, err := j.f.WriteAt(b, j.size)
				must(t, err)
			} else {
				must(t, j.Sync())
				durable = len(history) - 1
			}
		}
		after, err := open("j", Options{}, d.crash(rng))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		got := after.Table()
		if !slices.ContainsFunc(history[durable:], func(m map[uint64][]byte) bool { return same(m, got) }) {
			t.Fatalf("seed %d: the table is none of those after the last durable change", seed)
		}
		must(t, after.Wait(after.Put(99, nil)))
	}
}

// TestDamage breaks single bits of what is durable: that is noticed, wherever something follows that says that it was durable.
func TestDamage(t *testing.T) {
	d := newRAMDisk()
	j, err := open("j", Options{}, d)
	must(t, err)
	for i := range uint64(5) {
		must(t, j.Wait(j.Put(i, bytes.Repeat([]byte{byte(i)}, 50))))
	}
	last := j.size
	must(t, j.Wait(j.Put(9, []byte("the last one"))))
	b, err := d.read("j")
	must(t, err)
	for at := range last {
		for bit := range 8 {
			b[at] ^= 1 << bit
			if _, _, _, err := decode(b, 0); err == nil {
				t.Fatalf("bit %d of byte %d of %d may change", bit, at, last)
			}
			b[at] ^= 1 << bit
		}
	}
	_, table, _, err := decode(b, 0)
	if err != nil || len(table) != 6 {
		t.Fatalf("%d entries, %v", len(table), err)
	}
}

// TestFailures lets the disk fail: whoever waits is told, and what was promised before and after stays.
func TestFailures(t *testing.T) {
	for _, op := range []string{"write", "sync", "create", "rename"} {
		d := newRAMDisk()
		j, err := open("j", Options{}, d)
		must(t, err)
		must(t, j.Wait(j.Put(1, []byte("a"))))
		no := errors.New("no")
		all := false
		d.fail = func(o string) error {
			if o == op || all {
				return no
			}
			return nil
		}
		if op == "create" || op == "rename" {
			// Needed only when appending has failed.
			d.fail = func(o string) error {
				if o == op || o == "sync" {
					return no
				}
				return nil
			}
		}
		if err := j.Wait(j.Put(2, []byte("b"))); !errors.Is(err, no) {
			t.Fatalf("%s fails: %v", op, err)
		}
		if err := j.Wait(j.Delete(2)); !errors.Is(err, no) {
			t.Fatalf("%s fails still: %v", op, err)
		}
		d.fail = nil
		must(t, j.Wait(j.Put(3, []byte("c"))))
		after, err := open("j", Options{}, d.crash(rand.New(rand.NewPCG(1, 1))))
		must(t, err)
		if got := after.Table(); len(got) != 2 || string(got[1]) != "a" || string(got[3]) != "c" {
			t.Errorf("%s failed: %d entries", op, len(got))
		}
	}
	// A single failure of fdatasync is mended by a new file.
	d := newRAMDisk()
	j, err := open("j", Options{}, d)
	must(t, err)
	once := true
	d.fail = func(o string) error {
		if o == "sync" && once {
			once = false
			return errors.New("no")
		}
		return nil
	}
	must(t, j.Wait(j.Put(1, []byte("a"))))
	after, err := open("j", Options{}, d.crash(rand.New(rand.NewPCG(1, 1))))
	must(t, err)
	if len(after.Table()) != 1 {
		t.Error("the change is lost")
	}
}

// TestManyWriters has changes of many share few fdatasyncs, and the file stay small.
func TestManyWriters(t *testing.T) {
	d := newRAMDisk()
	j, err := open("j", Options{}, d)
	must(t, err)
	var wg sync.WaitGroup
	for g := range uint64(16) {
		wg.Go(func() {
			for i := range uint64(200) {
				if err := j.Wait(j.Put(g<<8|i&3, make([]byte, 1000))); err != nil {
					t.Error(err)
				}
			}
			if err := j.Wait(j.Delete(g << 8)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b, err := d.read("j")
	must(t, err)
	if len(b) > 2*compactAt {
		t.Errorf("%d bytes for %d entries", len(b), len(j.Table()))
	}
	after, err := open("j", Options{}, d.crash(rand.New(rand.NewPCG(1, 1))))
	must(t, err)
	if got := after.Table(); len(got) != 48 || !same(got, j.Table()) {
		t.Errorf("%d entries", len(got))
	}
	must(t, j.Close())
	must(t, j.Close())
	j.last++
	if err := j.Wait(j.last); err == nil {
		t.Error("a closed journal takes changes")
	}
}

func FuzzDecode(f *testing.F) {
	d := newRAMDisk()
	j, err := open("j", Options{}, d)
	must(f, err)
	f.Add([]byte(nil))
	for i := range uint64(4) {
		b, _ := d.read("j")
		f.Add(b)
		must(f, j.Wait(j.Put(i, make([]byte, i*30))))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, table, cut, err := decode(b, 0)
		if err != nil {
			return
		}
		if cut < 0 || cut > int64(len(b)) {
			t.Fatalf("%d of %d bytes cut", cut, len(b))
		}
		_, again, _, err := decode(b[:int64(len(b))-cut], 0)
		if err != nil || !same(table, again) {
			t.Fatalf("without its broken end the file is another one: %v", err)
		}
		_ = h
	})
}

func BenchmarkPut(b *testing.B) {
	j, err := Open(filepath.Join(b.TempDir(), "j"), Options{})
	must(b, err)
	b.RunParallel(func(pb *testing.PB) {
		v := make([]byte, 700)
		for i := uint64(0); pb.Next(); i++ {
			if err := j.Wait(j.Put(i&15, v)); err != nil {
				b.Error(err)
			}
		}
	})
	must(b, j.Close())
}

// TestFull fills a table until it takes no more, and makes room in it.
func TestFull(t *testing.T) {
	j, err := open("t", Options{}, newRAMDisk())
	must(t, err)
	v := make([]byte, MaxValue) // shared, as nobody changes it
	n := uint64(0)
	for ; !j.Full(n, len(v)); n++ {
		if n*MaxValue > maxFile {
			t.Fatal("a table takes more than a file may have")
		}
		j.Put(n, v)
	}
	if 5*n*MaxValue > maxFile || n < 100 {
		t.Errorf("a table is full with %d entries", n)
	}
	if j.Full(0, len(v)) || j.Full(0, len(v)-1) || !j.Full(n, len(v)) {
		t.Error("a full table does not let an entry be as it is, or become shorter")
	}
	j.Put(0, nil)
	j.Delete(1)
	if j.Full(n, len(v)) {
		t.Error("a table stays full although an entry is gone")
	}
}
