package daemon

import (
	"context"
	"fmt"
	"os"
	"time"

	"vdbridge/nbd/kernel"
)

// Queue settings. A request of a megabyte is as much as an SMB server takes at once, and a copy that takes long enough to make the hand-overs cheap; reading
// ahead has to cover the way to the server and back. There is nothing for a scheduler to order: the server has one.
const (
	maxSectorsKB = 1024
	readAheadKB  = 4096
)

// readyWait is how long the device may take to show up in /dev after the kernel has connected it.
const readyWait = 5 * time.Second

// ready prepares a connected device and waits until it can be used. What goes wrong with the finer points is returned as warnings.
func (a *attachment) ready(ctx context.Context) (warnings []string) {
	sys := a.m.cfg.Sys
	_, _, index := a.get()
	warn := func(err error) {
		if err != nil && ctx.Err() == nil {
			warnings = append(warnings, err.Error())
		}
	}
	_, _, optimal, maxTransfer := a.disk.BlockSizes()
	t := kernel.Tuning{MaxSectorsKB: maxSectorsKB, ReadAheadKB: readAheadKB, Scheduler: "none"}
	if maxTransfer >= 64<<10 && maxTransfer>>10 < t.MaxSectorsKB {
		t.MaxSectorsKB = maxTransfer >> 10
	}
	if kb := optimal >> 10; kb > 0 && kb < t.MaxSectorsKB {
		t.MaxSectorsKB -= t.MaxSectorsKB % kb // whole optimal transfers
	}
	warn(sys.Tune(index, t))
	warn(a.waitNode(ctx, index))
	warn(sys.Rescan(index))
	warn(sys.Settle(ctx))
	return warnings
}

// waitNode waits until /dev has the device. devtmpfs makes it before the kernel answers, udev and others later.
func (a *attachment) waitNode(ctx context.Context, index int) error {
	node := a.m.cfg.Sys.Node(index)
	deadline := time.After(readyWait)
	for {
		if _, err := os.Stat(node); err == nil {
			return nil
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline:
			return fmt.Errorf("%s has not shown up in /dev within %v: is devtmpfs mounted there?", node, readyWait)
		}
	}
}
