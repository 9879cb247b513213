package fusefs

import (
	"context"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// node is anything that has a name in the tree. Nodes are compared by identity: the same file must be the same (comparable) value each time.
type node interface {
	// attr fills in mode, size and block size; the number of the node and its owner are filled in already.
	attr(out *fuse.Attr)
}

// dirNode is a directory.
type dirNode interface {
	node
	// lookup finds an entry, or returns syscall.ENOENT.
	lookup(ctx context.Context, name string) (node, error)
	// list yields the entries in a stable order until yield returns false.
	list(ctx context.Context, yield func(name string, n node) bool) error
}

// fileNode is a regular file.
type fileNode interface {
	node
	// open checks the access mode in flags and returns a handle and the FOPEN flags for the kernel.
	open(ctx context.Context, flags uint32) (handle, uint32, error)
	// truncate is told the size that somebody wants. viaOpen is set when that is O_TRUNC.
	truncate(ctx context.Context, size uint64, viaOpen bool) error
}

// handle is an open file. Its methods run at the same time. Errors keep a syscall.Errno in their chain.
type handle interface {
	read(ctx context.Context, p []byte, off int64) (int, error)
	write(ctx context.Context, p []byte, off int64) (int, error)
	// flush is called on close(2) by each holder, sync on fsync(2).
	flush(ctx context.Context) error
	sync(ctx context.Context) error
	allocate(ctx context.Context, off, n int64, mode uint32) error
	seek(ctx context.Context, off int64, whence uint32) (int64, error)
	release()
}

// fixedDir is a directory whose entries do not change.
type fixedDir struct {
	names []string
	nodes map[string]node
}

func newFixedDir() *fixedDir { return &fixedDir{nodes: make(map[string]node)} }

func (d *fixedDir) add(name string, n node) {
	d.names = append(d.names, name)
	d.nodes[name] = n
}

func (d *fixedDir) attr(out *fuse.Attr) { out.Mode = fuse.S_IFDIR | 0o555; out.Nlink = 2 }

func (d *fixedDir) lookup(_ context.Context, name string) (node, error) {
	if n, ok := d.nodes[name]; ok {
		return n, nil
	}
	return nil, syscall.ENOENT
}

func (d *fixedDir) list(_ context.Context, yield func(name string, n node) bool) error {
	for _, name := range d.names {
		if !yield(name, d.nodes[name]) {
			break
		}
	}
	return nil
}

// bytesFile is a read-only file with fixed contents, and its own handle.
type bytesFile struct{ data []byte }

func (f *bytesFile) attr(out *fuse.Attr) {
	out.Mode, out.Size = fuse.S_IFREG|0o444, uint64(len(f.data))
}

func (f *bytesFile) open(_ context.Context, flags uint32) (handle, uint32, error) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EACCES
	}
	return f, fuse.FOPEN_KEEP_CACHE, nil
}

func (f *bytesFile) truncate(context.Context, uint64, bool) error { return syscall.EACCES }

func (f *bytesFile) read(_ context.Context, p []byte, off int64) (int, error) {
	if off >= int64(len(f.data)) {
		return 0, nil
	}
	return copy(p, f.data[off:]), nil
}

func (f *bytesFile) write(context.Context, []byte, int64) (int, error)    { return 0, syscall.EBADF }
func (f *bytesFile) flush(context.Context) error                          { return nil }
func (f *bytesFile) sync(context.Context) error                           { return nil }
func (f *bytesFile) allocate(context.Context, int64, int64, uint32) error { return syscall.EBADF }
func (f *bytesFile) release()                                             {}
func (f *bytesFile) seek(_ context.Context, off int64, whence uint32) (int64, error) {
	return seekDense(int64(len(f.data)), off, whence)
}

// Values of whence that lseek adds on Linux.
const (
	seekData = 3
	seekHole = 4
)

// seekDense is lseek in a file without holes.
func seekDense(size, off int64, whence uint32) (int64, error) {
	switch {
	case whence != seekData && whence != seekHole:
		return 0, syscall.EINVAL
	case off < 0 || off >= size:
		return 0, syscall.ENXIO
	case whence == seekHole:
		return size, nil
	}
	return off, nil
}

// table gives nodes and handles their numbers.
type table struct {
	mu      sync.RWMutex
	nodes   map[uint64]*entry
	numbers map[node]uint64
	nextID  uint64
	handles map[uint64]handle
	nextFh  uint64
}

type entry struct {
	node
	lookups uint64
}

func newTable(root node) *table {
	return &table{
		nodes:   map[uint64]*entry{fuse.FUSE_ROOT_ID: {root, 1}},
		numbers: map[node]uint64{root: fuse.FUSE_ROOT_ID},
		nextID:  fuse.FUSE_ROOT_ID + 1,
		handles: make(map[uint64]handle),
		nextFh:  1,
	}
}

func (t *table) node(id uint64) node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if e := t.nodes[id]; e != nil {
		return e.node
	}
	return nil
}

// number returns the number of a node, and counts a lookup that the kernel will forget one day.
func (t *table) number(n node, lookups uint64) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	id, ok := t.numbers[n]
	if !ok {
		id = t.nextID
		t.nextID++
		t.numbers[n] = id
		t.nodes[id] = &entry{node: n}
	}
	t.nodes[id].lookups += lookups
	return id
}

func (t *table) forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.nodes[id]
	if e == nil || id == fuse.FUSE_ROOT_ID {
		return
	}
	if e.lookups -= min(lookups, e.lookups); e.lookups == 0 {
		delete(t.nodes, id)
		delete(t.numbers, e.node)
	}
}

func (t *table) addHandle(h handle) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	fh := t.nextFh
	t.nextFh++
	t.handles[fh] = h
	return fh
}

func (t *table) handle(fh uint64) handle {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.handles[fh]
}

func (t *table) dropHandle(fh uint64) handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.handles[fh]
	delete(t.handles, fh)
	return h
}
