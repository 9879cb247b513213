package bridge

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"

	"vdbridge/vhdx"
)

// shareResolver finds the parents of a differencing image on the same share. Its places are paths on the share.
type shareResolver struct {
	r   *Remote
	dir string // of the child, on the share
}

var _ vhdx.Resolver = shareResolver{}

// parents is the resolver for the image at a path on the share.
func (r *Remote) parents(image string) vhdx.Resolver {
	return shareResolver{r, path.Dir(strings.ReplaceAll(image, `\`, "/"))}
}

// Places translates the paths of a locator. A full path says where the file is if it names our share; otherwise its last part is looked for beside the child.
func (s shareResolver) Places(l *vhdx.ParentLocator) []string {
	var out []string
	add := func(p string) {
		p = strings.TrimPrefix(path.Clean("/"+p), "/") // nothing is above the share
		for _, o := range out {
			if o == p {
				return
			}
		}
		if p != "" {
			out = append(out, p)
		}
	}
	slash := func(p string) string { return strings.ReplaceAll(p, `\`, "/") }
	if l.RelativePath != "" {
		add(s.dir + "/" + slash(l.RelativePath))
	}
	share := "//" + s.r.loc.Host + "/" + s.r.loc.Share + "/"
	full := []string{slash(l.VolumePath), slash(l.AbsolutePath)}
	for _, p := range full {
		if rest, ok := cutPrefixFold(p, "//?/UNC/"); ok {
			p = "//" + rest
		}
		if rest, ok := cutPrefixFold(p, share); ok {
			add(rest)
		}
	}
	for _, p := range full {
		if p != "" {
			add(s.dir + "/" + path.Base(p))
		}
	}
	return out
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// Open opens a file of the share, with the share modes of an image.
func (s shareResolver) Open(ctx context.Context, place string, write bool) (vhdx.Backing, vhdx.Resolver, error) {
	f, err := s.r.openPath(ctx, place, write, nil)
	if err != nil {
		if Classify(err) == ClassNotFound {
			err = errors.Join(fs.ErrNotExist, err)
		}
		return nil, nil, err
	}
	if err := s.r.protectParent(ctx, f, write); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return backing{f}, s.r.parents(place), nil
}
