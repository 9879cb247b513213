package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"

	"vdbridge/fusefs"
	"vdbridge/partition"
	"vdbridge/scsi"
)

// partsOf are the files that a disk has in partitions: extended partitions only hold others and have none.
func (d *Disk) partsOf(ctx context.Context) ([]fusefs.Part, error) {
	t, err := partition.ReadTable(ctx, d)
	if errors.Is(err, partition.ErrDamaged) {
		d.log.Warn("the partition table cannot be used, so no partitions are shown", "disk", d.loc.String(), "err", err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []fusefs.Part
	for _, p := range t.Partitions {
		if !p.Extended {
			list = append(list, fusefs.Part{Name: strconv.Itoa(p.Number), Start: p.Start, Size: p.Size})
		}
	}
	return list, nil
}

// mountInfo is info.json: what info --json says, and what is on the disk.
type mountInfo struct {
	*Info
	Layout *partition.Layout `json:"layout,omitempty"`
}

// infoText makes info.json. What the server does not tell in time is left out.
func (d *Disk) infoText(ctx context.Context) []byte {
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	info, err := d.Info(ctx)
	if err != nil {
		info = &Info{Disk: d.loc.String(), Mode: d.mode.String(), Size: d.Size()}
	}
	layout, err := d.Layout(ctx)
	if err != nil {
		layout = nil
	}
	b, err := json.MarshalIndent(mountInfo{info, layout}, "", "  ")
	if err != nil {
		return nil
	}
	return append(b, '\n')
}

// reservationsText makes the file reservations: who is registered and who holds the reservation, a line each.
func (d *Disk) reservationsText(ctx context.Context) []byte {
	if d.RSVD() == nil {
		return []byte("The disk is open for this host alone: there are no reservations.\n")
	}
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	st, err := d.RSVD().ReadFullStatus(ctx)
	if err != nil {
		return fmt.Appendf(nil, "The server does not tell: %v.\n", rootCause(err))
	}
	var b strings.Builder
	held := "reservation: none\n"
	for _, r := range st.Registrations {
		who, note := "of another kind", ""
		if id, _, err := scsi.ParseTransportID(r.TransportID); err == nil {
			who = FormatGUID(id.Port)
			if id.Port == d.RSVD().InitiatorID() {
				note = ", us"
			}
		}
		fmt.Fprintf(&b, "registered: key %#016x, initiator %s%s\n", r.Key, who, note)
		if r.Holder {
			held = fmt.Sprintf("reservation: %v, held with key %#016x by initiator %s%s\n", r.Type, r.Key, who, note)
		}
	}
	return []byte(held + b.String())
}

// volume is the disk for package fusefs. mayWrite is asked when a file is opened for writing.
func (d *Disk) volume(mayWrite func(context.Context) error, close func() error) fusefs.Volume {
	return fusefs.Volume{Disk: d, Parts: d.partsOf, Info: d.infoText, Reservations: d.reservationsText, MayWrite: mayWrite, Close: close}
}

// MountTreeOptions say how a folder or share is shown.
type MountTreeOptions struct {
	MountOptions
	Know     bool // let single-host file systems on shared disks be written
	MaxDisks int  // open at once; 0: 16
}

// IsFolder says whether loc is a folder: of this machine, or by its form of a share. Whether a URL with a path names a folder or a file only the server knows; Open's error
// tells, so a URL is taken for a folder if its last element is no disk by its name.
func IsFolder(loc Location, f Format) bool {
	if loc.Local {
		st, err := os.Stat(loc.Path)
		return err == nil && st.IsDir()
	}
	return loc.Share != "" && (loc.Path == "" || f == FormatAuto && formatOf(loc) == FormatAuto)
}

// MountTree shows the folder at loc, and beside every virtual disk in it a folder with what is in the disk, until ctx is done or somebody unmounts it.
func MountTree(ctx context.Context, loc Location, o Options, mo MountTreeOptions) (err error) {
	if err := prepareDir(mo.Dir, o.logger()); err != nil {
		return err
	}
	o.ReadOnly = o.ReadOnly || mo.ReadOnly
	var tree fusefs.Tree
	open := func(ctx context.Context, path string, write bool) (fusefs.Volume, error) {
		return openInTree(ctx, loc.below(path), o, write, mo.Know)
	}
	if loc.Local {
		t, err := openLocalTree(loc.Path)
		if err != nil {
			return explainOpen(loc, err)
		}
		t.disk = open
		defer t.Close()
		tree = t
	} else {
		// Every disk is opened with a connection of its own, and nobody wants to be asked for a password again.
		if o, err = o.resolved(ctx, loc); err != nil {
			return err
		}
		t, err := openShareTree(ctx, loc, o)
		if err != nil {
			return err
		}
		t.disk = open
		defer t.Close()
		tree = t
	}
	err = fusefs.ServeTree(ctx, mo.Dir, tree, fusefs.TreeOptions{
		Options:  fusefs.Options{ReadOnly: o.ReadOnly, AllowOther: mo.AllowOther, Name: loc.String(), Logger: mo.Logger, Ready: mo.Ready},
		MaxDisks: mo.MaxDisks,
	})
	return explainMount(mo.Dir, err)
}

// below is the location of a file in a folder.
func (l Location) below(path string) Location {
	switch {
	case l.Local:
		l.Path = strings.TrimRight(l.Path, "/") + "/" + path
	case l.Path == "":
		l.Path = strings.ReplaceAll(path, "/", `\`)
	default:
		l.Path += `\` + strings.ReplaceAll(path, "/", `\`)
	}
	return l
}

// resolved finds the credentials now, so that they are the same for every connection.
func (o Options) resolved(ctx context.Context, loc Location) (Options, error) {
	if o.Kerberos.On {
		return o, nil
	}
	c, err := o.Credentials.Resolve(ctx, loc)
	if err != nil {
		return o, err
	}
	o.Credentials = CredentialSource{Known: &c}
	return o, nil
}

// openInTree opens a disk of a tree. It is opened read-only until somebody opens one of its files for writing, so that looking at disks disturbs nobody.
func openInTree(ctx context.Context, loc Location, o Options, write, know bool) (fusefs.Volume, error) {
	o.ReadOnly = o.ReadOnly || !write
	if !write {
		o.Attachment, o.InitiatorID = "", nil // a passer-by
	}
	o.Logger = slog.New(quieter{o.logger().Handler()})
	d, err := OpenFormat(ctx, loc, o, FormatAuto)
	if err != nil {
		return fusefs.Volume{}, &DiskError{Errno: folderErrno(err), Err: err}
	}
	mayWrite := func(ctx context.Context) error {
		if know {
			return nil
		}
		r, err := d.WriteRisk(ctx, nil)
		if err != nil || r == nil {
			return err
		}
		return &DiskError{Errno: syscall.EPERM, Err: errors.New(r.Explain("Mount with --i-know to write nevertheless, or mount this disk alone with --reserve."))}
	}
	return d.volume(mayWrite, d.Close), nil
}

// folderErrno is what a program hears that looks into a disk that cannot be opened.
func folderErrno(err error) syscall.Errno {
	if errors.Is(err, fs.ErrNotExist) {
		return syscall.ENOENT
	}
	return Errno(err)
}

// listLocal is List for a folder or a file of this machine.
func listLocal(loc Location) ([]Entry, error) {
	st, err := os.Stat(loc.Path)
	if err != nil {
		return nil, explainOpen(loc, err)
	}
	if !st.IsDir() {
		return []Entry{{Name: loc.Base(), Size: st.Size(), Modified: st.ModTime().UTC()}}, nil
	}
	names, err := os.ReadDir(loc.Path) // by name
	if err != nil {
		return nil, explainOpen(loc, err)
	}
	list := []Entry{}
	for _, n := range names {
		if i, err := n.Info(); err == nil { // else it is gone in between
			e := Entry{Name: n.Name(), Directory: i.IsDir(), Modified: i.ModTime().UTC()}
			if !e.Directory {
				e.Size = i.Size()
			}
			list = append(list, e)
		}
	}
	return list, nil
}
