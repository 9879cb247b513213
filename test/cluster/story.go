package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vdbridge/test/lab"
)

// fileSystem is what a cluster file system needs.
type fileSystem struct {
	up, mount string   // functions of node.sh
	check     []string // the judge of the raw disk
}

var fileSystems = map[string]fileSystem{
	"ocfs2": {"o2cb_up", "ocfs2_mount", []string{"fsck.ocfs2", "-f", "-n"}},
	"gfs2":  {"dlm_up", "gfs2_mount", []string{"fsck.gfs2", "-n"}},
}

// Exchange lets two nodes mount the file system fs at the same time and read each other's files, unmounts it on both, and has it checked.
func Exchange(ctx context.Context, c *Cluster, fs, dir string) error {
	f := fileSystems[fs]
	body := "attach\n" + f.up + "\n" + f.mount + "\nexchange\numount /mnt/shared\nsay unmounted\nmark gone$N\nawait gone$((1 - N))\ndetach\n"
	nodes := c.Run(ctx, 4*time.Minute, nil, [2]string{body, body})
	for i, n := range nodes {
		if n.Err != nil || n.Status != 0 {
			return fmt.Errorf("node%d: status %d, %v\n%s", i, n.Status, n.Err, n.Output)
		}
	}
	return c.judge(ctx, f, dir)
}

// Fence is Exchange in which node0 fences node1 while that writes, and goes on. The fenced node may end in any way.
func Fence(ctx context.Context, c *Cluster, fs, dir string) error {
	f := fileSystems[fs]
	start := "attach\n" + f.up + "\n" + f.mount + "\nexchange\n"
	nodes := c.Run(ctx, 5*time.Minute, nil, [2]string{start + "fence_and_go_on\ndetach\n", start + "write_until_fenced\n"})
	if n := nodes[0]; n.Err != nil || n.Status != 0 {
		return fmt.Errorf("node0, which goes on: status %d, %v\n%s\nnode1, which was fenced:\n%s", n.Status, n.Err, n.Output, nodes[1].Output)
	}
	if !c.Reached("failed") {
		return errors.New("node1 was not stopped by being fenced:\n" + nodes[1].Output)
	}
	return c.judge(ctx, f, dir)
}

// FenceRaw lets node1 write to the bare disk as fast as it can while node0 fences it: from the moment that fencing has returned, the disk does not change.
func FenceRaw(ctx context.Context, c *Cluster) error {
	nodes := c.Run(ctx, 3*time.Minute, nil, [2]string{"attach\nraw_fence\n", "attach\nraw_write\n"})
	for i, n := range nodes {
		if n.Err != nil || n.Status != 0 {
			return fmt.Errorf("node%d: status %d, %v\n%s", i, n.Status, n.Err, n.Output)
		}
	}
	return nil
}

func (c *Cluster) judge(ctx context.Context, f fileSystem, dir string) error {
	raw, err := c.Raw(ctx, dir)
	if err != nil {
		return err
	}
	c.say("host", "the image is in order, says qemu-img")
	if out, err := lab.Run(ctx, f.check[0], append(f.check[1:], raw)...); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	c.say("host", "the file system is in order, says "+f.check[0])
	return nil
}
