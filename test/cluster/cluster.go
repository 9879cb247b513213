package cluster

import (
	"bytes"
	"context"
	_ "embed" // the nodes' script
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"vdbridge/test/lab"
	"vdbridge/test/vm"
)

//go:embed node.sh
var nodeScript string

// Tools are the programs that a cluster with the file system fs ("ocfs2", "gfs2" or "" for none) needs beside ours.
func Tools(fs string) []string {
	common := []string{"qemu-img", "blockdev", "sha256sum"}
	switch fs {
	case "ocfs2":
		return append(common, "mkfs.ocfs2", "fsck.ocfs2", "o2cb")
	case "gfs2":
		return append(common, "mkfs.gfs2", "fsck.gfs2", "corosync", "corosync-quorumtool", "dlm_controld", "dlm_tool")
	}
	return common
}

// Cluster is two guests, and a server with one disk.
type Cluster struct {
	Net   *vm.Net
	Image string // the disk, in the folder that is served

	vd     *lab.Program
	server *lab.Proc
	url    string
	shared string
	say    func(who, what string)
}

const (
	port = "4450"
	disk = "cluster.vhdx"
)

// New serves a new disk of the given size to a network for two guests. dir is a folder for everything. say gets the story as it goes; it may be
// called at the same time from several goroutines. The caller ends it with Close.
func New(ctx context.Context, bin, dir, size string, say func(who, what string)) (c *Cluster, err error) {
	c = &Cluster{say: say, shared: filepath.Join(dir, "shared")}
	disks, private := filepath.Join(dir, "disks"), filepath.Join(dir, "private")
	if err := errors.Join(os.Mkdir(c.shared, 0o755), os.Mkdir(disks, 0o755), os.Mkdir(private, 0o700)); err != nil {
		return nil, err
	}
	c.Image = filepath.Join(disks, disk)
	if c.vd, err = lab.NewProgram(bin, private); err != nil {
		return nil, err
	}
	if _, err := c.vd.Run(ctx, "create", c.Image, "--size", size); err != nil {
		return nil, err
	}
	if c.Net, err = vm.NewNet(2); err != nil {
		return nil, err
	}
	c.vd.Start = c.Net.StartCommand
	if c.server, _, err = c.vd.Serve(ctx, disks, vm.HostAddr+":"+port); err != nil {
		c.Net.Close()
		return nil, err
	}
	c.url = lab.URL(vm.HostAddr+":"+port, disk)
	say("host", "serves "+disk+", "+size+", at "+vm.HostAddr)
	return c, nil
}

// Node is how a node's guest has ended.
type Node struct {
	vm.Result
	Err error
}

// Run boots the two guests and runs in each what body says, which calls the functions of node.sh. It returns when both have ended.
func (c *Cluster) Run(ctx context.Context, timeout time.Duration, modules []string, body [2]string) [2]Node {
	var nodes [2]Node
	var wg sync.WaitGroup
	for i := range nodes {
		wg.Go(func() {
			set := fmt.Sprintf("N=%d VD=%s URL=%s PASSWORD=%s SHARED=%s PEERS='%s %s'\n", i, c.vd.Bin, c.url, filepath.Join(c.vd.Dir, "password"), c.shared,
				vm.AddrOf(0), vm.AddrOf(1))
			name := fmt.Sprintf("node%d", i)
			nodes[i].Result, nodes[i].Err = vm.Run(ctx, vm.Options{
				Script: set + nodeScript + body[i], Modules: append([]string{"nbd"}, modules...), Memory: "640M", Network: c.Net, Guest: i, Name: name,
				Share: []string{c.shared, c.vd.Dir, filepath.Dir(c.vd.Bin)}, Timeout: timeout, Output: &teller{who: name, say: c.say},
			})
		})
	}
	wg.Wait()
	return nodes
}

// Reached says whether a node has left the mark.
func (c *Cluster) Reached(mark string) bool {
	_, err := os.Stat(filepath.Join(c.shared, mark))
	return err == nil
}

// Raw stops the server, lets qemu-img check the image, and returns the disk's contents as a raw file in dir.
func (c *Cluster) Raw(ctx context.Context, dir string) (string, error) {
	if err := c.server.Stop(20 * time.Second); err != nil {
		return "", err
	}
	if _, err := lab.Run(ctx, "qemu-img", "check", "-f", "vhdx", c.Image); err != nil {
		return "", err
	}
	raw := filepath.Join(dir, "raw")
	_, err := lab.Run(ctx, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", c.Image, raw)
	return raw, err
}

// Close ends the server and the network.
func (c *Cluster) Close() error {
	err := c.server.Stop(20 * time.Second)
	c.Net.Close()
	return err
}

// teller passes the lines of the story on.
type teller struct {
	who  string
	say  func(who, what string)
	part bytes.Buffer
}

var _ io.Writer = (*teller)(nil)

func (t *teller) Write(p []byte) (int, error) {
	t.part.Write(p)
	for {
		line, rest, ok := strings.Cut(t.part.String(), "\n")
		if !ok {
			return len(p), nil
		}
		if text, ok := strings.CutPrefix(line, "@ "); ok {
			t.say(t.who, text)
		}
		t.part.Reset()
		t.part.WriteString(rest)
	}
}
