package vhdx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
)

// A Resolver finds the parents of differencing disks, wherever they are. [FileResolver] does it for local files; one for a share translates the
// same paths into names on that share.
type Resolver interface {
	// Places says under which names the parent could be found, the likeliest first. Names are the resolver's own, and canonical: two names
	// of one file are equal, as chains that loop are found by them. A path that it cannot translate is left out.
	Places(l *ParentLocator) []string
	// Open opens one of the places, for reading or, with write, for reading and writing. A file that is not there is an [fs.ErrNotExist].
	// The Resolver that it returns is for the paths in that file, which are relative to its folder.
	Open(ctx context.Context, place string, write bool) (Backing, Resolver, error)
}

// FileResolver is a [Resolver] for local files.
type FileResolver struct {
	// Dir is the folder of the child.
	Dir string
	// Map translates what Windows calls a folder into a local folder: `d:\disks` to /srv/disks, `\\server\share` to /mnt/share. The longest match
	// wins; case does not matter. Paths that nothing matches are looked for by their last part in the folder of the child.
	Map map[string]string
	// Root confines the chain to a folder and what is below it; "" does not. A program that opens images for others sets it, as a locator can name any file.
	Root string
}

// Places translates the paths of a locator.
func (r FileResolver) Places(l *ParentLocator) []string {
	var out []string
	add := func(p string) {
		p = CanonicalFile(p)
		if r.Root != "" {
			if rel, err := filepath.Rel(CanonicalFile(r.Root), p); err != nil || !filepath.IsLocal(rel) {
				return
			}
		}
		for _, o := range out {
			if o == p {
				return
			}
		}
		out = append(out, p)
	}
	if l.RelativePath != "" {
		add(filepath.Join(r.Dir, slashes(l.RelativePath)))
	}
	full := []string{l.VolumePath, l.AbsolutePath}
	for _, p := range full {
		if local, ok := r.mapped(p); ok {
			add(local)
		}
	}
	for _, p := range full {
		// A path of another machine says nothing here but the name: disks that are copied together lie side by side.
		if name := p[strings.LastIndexAny(p, `\/`)+1:]; name != "" {
			add(filepath.Join(r.Dir, name))
		}
	}
	return out
}

// mapped translates a full path by the longest entry of Map.
func (r FileResolver) mapped(p string) (string, bool) {
	p = plainWindowsPath(p)
	best, local := -1, ""
	for from, to := range r.Map {
		f := strings.TrimRight(plainWindowsPath(from), `\`)
		if len(f) > best && len(p) > len(f) && strings.EqualFold(p[:len(f)], f) && p[len(f)] == '\\' {
			best, local = len(f), filepath.Join(to, slashes(p[len(f)+1:]))
		}
	}
	return local, best >= 0
}

// Open opens a local file.
func (r FileResolver) Open(_ context.Context, place string, write bool) (Backing, Resolver, error) {
	f, err := OpenOSFile(place, !write)
	if err != nil {
		return nil, nil, err
	}
	return f, FileResolver{Dir: filepath.Dir(place), Map: r.Map, Root: r.Root}, nil
}

// plainWindowsPath takes the extended-length prefix off: `\\?\d:\a` is `d:\a`, `\\?\UNC\server\share` is `\\server\share`.
func plainWindowsPath(p string) string {
	p = strings.ReplaceAll(p, "/", `\`)
	const prefix, unc = `\\?\`, `UNC\`
	if !strings.HasPrefix(p, prefix) {
		return p
	}
	rest := p[len(prefix):]
	if len(rest) > len(unc) && strings.EqualFold(rest[:len(unc)], unc) {
		return `\\` + rest[len(unc):]
	}
	if strings.HasPrefix(rest, "Volume{") {
		return p
	}
	return rest
}

func slashes(p string) string { return strings.ReplaceAll(p, `\`, "/") }

// CanonicalFile is the one name of a local file that may have several.
func CanonicalFile(p string) string {
	if a, err := filepath.Abs(p); err == nil {
		p = a
	}
	if e, err := filepath.EvalSymlinks(p); err == nil {
		return e
	}
	return filepath.Clean(p)
}

// RelativeLocator is a locator with the relative path from the folder of a child to its parent, both local files, as [FileResolver] finds it.
// The linkage is left to fill in.
func RelativeLocator(child, parent string) (ParentLocator, error) {
	child, parent = CanonicalFile(child), CanonicalFile(parent)
	rel, err := filepath.Rel(filepath.Dir(child), parent)
	if err != nil {
		return ParentLocator{}, fmt.Errorf("the way from %s to %s: %w", child, parent, err)
	}
	rel = strings.ReplaceAll(rel, "/", `\`)
	if !strings.HasPrefix(rel, `..`) {
		rel = `.\` + rel
	}
	return ParentLocator{RelativePath: rel}, nil
}

// Errors of chains. Compare with [errors.Is]; each is a *ChainError.
var (
	// ErrParentMissing: no place that the child names has a file. The message names them all.
	ErrParentMissing = errors.New("the parent of a differencing disk was not found")
	// ErrParentChanged: there is a parent, but it is another disk, or was written to after the child was made.
	ErrParentChanged = errors.New("the parent of a differencing disk is not the one that it was made for")
	// ErrChain: the chain loops or is too deep.
	ErrChain = errors.New("the chain of parents is not sound")
)

// MaxChain is how many images a chain may have, the disk itself included.
const MaxChain = 64

// A ChainError says why the parent of an image cannot be used.
type ChainError struct {
	Child  string   // the name of the image whose parent it is about, as far as known
	Kind   error    // ErrParentMissing, ErrParentChanged or ErrChain
	Places []string // that were looked at, each with what was found
	Reason string
	Err    error // the first that kept a place from being looked at, besides that it is not there
}

func (e *ChainError) Error() string {
	child := e.Child
	if child == "" {
		child = "the image"
	}
	s := fmt.Sprintf("%s: %v", child, e.Kind)
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	if len(e.Places) > 0 {
		s += "; looked at " + strings.Join(e.Places, "; ")
	}
	return s
}

// Is makes errors.Is find the kind.
func (e *ChainError) Is(target error) bool { return target == e.Kind }

// Note adds a place that could not be used, and why.
func (e *ChainError) Note(place string, err error) {
	if notThere(err) {
		e.note(place, "there is no such file", nil)
		return
	}
	e.note(place, err.Error(), err)
}

// Unwrap is Err.
func (e *ChainError) Unwrap() error { return e.Err }

// notThere reports whether an error says that there is no such file.
func notThere(err error) bool {
	return errors.Is(err, fs.ErrNotExist)
}
