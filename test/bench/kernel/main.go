// Command kernel measures block devices inside one guest (User-Mode Linux, one processor): what vdbridge attaches, beside nbd-client on nbdkit's memory plugin. Once the
// servers are on the host and the guest reaches them by its network, once everything is in the guest. Latencies in a guest mean nothing, and
// neither do absolute figures; the ratios are what to look at. It prints Markdown.
//
//	go run ./test/bench/kernel [-bin bin/vdbridge] [-seconds 3] [-rounds 3]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"vdbridge/test/bench/load"
	"vdbridge/test/lab"
	"vdbridge/test/vm"
)

func main() {
	bin := flag.String("bin", "bin/vdbridge", "the vdbridge program")
	seconds := flag.Float64("seconds", 3, "length of one run")
	rounds := flag.Int("rounds", 3, "runs of each cell")
	connections := flag.Int("connections", 2, "connections of each device")
	flag.Parse()
	if err := run(context.Background(), *bin, *seconds, *rounds, *connections); err != nil {
		fmt.Fprintln(os.Stderr, "kernel:", err)
		os.Exit(1)
	}
}

const (
	diskBytes = 192 << 20
	jobBytes  = 128 << 20
)

// devices are measured in this order in every round. The second of a pair is compared with the first.
var devices = []struct{ name, what string }{
	{"hostkit", "nbd-client, nbdkit memory on the host"},
	{"hostsmb", "vdbridge attach, vdbridge serve on the host"},
	{"kit", "nbd-client, nbdkit memory in the guest"},
	{"local", "vdbridge attach, image in the guest's memory"},
}

var jobs = []struct {
	name, args string
	mib        bool
}{
	{"read 1 MiB, 4 in flight (MiB/s)", "--rw=read --bs=1M --iodepth=4", true},
	{"write 1 MiB, 4 in flight (MiB/s)", "--rw=write --bs=1M --iodepth=4", true},
	{"random read 4 KiB, 16 in flight (IOPS)", "--rw=randread --bs=4k --iodepth=16", false},
	{"random write 4 KiB, 16 in flight (IOPS)", "--rw=randwrite --bs=4k --iodepth=16", false},
}

func run(ctx context.Context, bin string, seconds float64, rounds, connections int) (err error) {
	if err := errors.Join(vm.Check(), lab.Missing("nbdkit", "nbd-client", "fio")); err != nil {
		return err
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	dir, err := load.MemoryDir("vdbridge-kernel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	disks, share := filepath.Join(dir, "disks"), filepath.Join(dir, "share")
	if err := errors.Join(os.Mkdir(disks, 0o755), os.Mkdir(share, 0o755)); err != nil {
		return err
	}
	n, err := vm.NewNet(1)
	if err != nil {
		return err
	}
	defer n.Close()
	vd, err := lab.NewProgram(bin, share)
	if err != nil {
		return err
	}
	vd.Start = n.StartCommand
	if _, err := vd.Run(ctx, "create", filepath.Join(disks, "a.vhdx"), "--size", strconv.Itoa(diskBytes)); err != nil {
		return err
	}
	server, addr, err := vd.Serve(ctx, disks, vm.HostAddr+":0")
	if err != nil {
		return err
	}
	defer server.Kill()
	nbdkit, err := lab.Look("nbdkit")
	if err != nil {
		return err
	}
	kit, err := n.Start(exec.Command(nbdkit, "-f", "-p", "10809", "--ipaddr", vm.HostAddr, "memory", strconv.Itoa(diskBytes)))
	if err != nil {
		return err
	}
	defer kit.Kill()
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := n.WaitListen(wait, kit, vm.HostAddr+":10809"); err != nil {
		return err
	}
	script := strings.NewReplacer(
		"@BIN@", bin, "@SHARE@", share, "@HOST@", vm.HostAddr, "@URL@", lab.URL(addr, "a.vhdx"), "@SIZE@", strconv.Itoa(diskBytes), "@JOB@", strconv.Itoa(jobBytes),
		"@SECONDS@", fmt.Sprintf("%.1f", seconds), "@ROUNDS@", strconv.Itoa(rounds), "@C@", strconv.Itoa(connections),
	).Replace(guestScript)
	for _, j := range jobs {
		script += fmt.Sprintf("\t\tjob %q %s\n", j.name, j.args)
	}
	script += "\t\tend $d\n\tdone\ndone\n"
	res, err := vm.Run(ctx, vm.Options{Script: script, Network: n, Share: []string{share, filepath.Dir(bin)}, Modules: []string{"nbd"}, Memory: "1536M",
		Timeout: time.Minute + time.Duration(rounds*len(devices)*(len(jobs)*2+10))*time.Duration(seconds*float64(time.Second))})
	if err != nil || res.Status != 0 {
		return fmt.Errorf("guest: status %d, %w\n%s", res.Status, err, res.Output)
	}
	return print(res.Output)
}

// The guest's part. Of each device the whole is written once before anything is measured, so that nobody's memory is touched for the first time then.
const guestScript = `
cd /tmp
V=@BIN@ OPTS="--password-file @SHARE@/password"
mkdir loc; $V create loc/a.vhdx --size @SIZE@ >/dev/null || exit 1
fillup() { fio --name=f --filename=$D --rw=write --bs=1M --direct=1 --size=@JOB@ >/dev/null || exit 1; }
begin() {
	case $1 in
	hostkit) D=/dev/nbd0; nbd-client -N "" @HOST@ 10809 $D -C @C@ >/dev/null 2>&1 || exit 1 ;;
	hostsmb) D=$($V attach @URL@ $OPTS --connections @C@ --mode rsvd) || exit 1 ;;
	kit) rm -f kit.sock kit.pid; nbdkit -U /tmp/kit.sock -P /tmp/kit.pid memory @SIZE@; D=/dev/nbd0; nbd-client -unix /tmp/kit.sock $D -C @C@ >/dev/null 2>&1 || exit 1 ;;
	local) D=$($V attach loc/a.vhdx --connections @C@) || exit 1 ;;
	esac
	# the same queue for all, so that servers are compared
	echo 1024 >/sys/block/$(basename $D)/queue/max_sectors_kb; echo none >/sys/block/$(basename $D)/queue/scheduler
	fillup
}
end() {
	case $1 in
	hostkit) nbd-client -d $D >/dev/null 2>&1 ;;
	kit) nbd-client -d $D >/dev/null 2>&1; kill $(cat kit.pid); while [ -e /sys/block/nbd0/pid ]; do sleep 0.1; done ;;
	*) $V detach $D || exit 1 ;;
	esac
}
job() {
	name=$1; shift
	out=$(fio --name=j --filename=$D --direct=1 --ioengine=libaio --size=@JOB@ --time_based --runtime=@SECONDS@ --randrepeat=0 --norandommap --output-format=terse "$@") || exit 1
	echo "RESULT;$d;$name;$(echo "$out" | grep '^3;' | cut -d';' -f8,49)"
}
for round in $(seq @ROUNDS@); do
	for d in hostkit hostsmb kit local; do
		begin $d
`

func print(out string) error {
	figures := map[string][]float64{}
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), ";")
		if len(f) != 5 || f[0] != "RESULT" {
			continue
		}
		r, err1 := strconv.ParseFloat(f[3], 64)
		w, err2 := strconv.ParseFloat(f[4], 64)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		figures[f[1]+f[2]] = append(figures[f[1]+f[2]], r+w)
	}
	fmt.Print("| in one guest |")
	for _, d := range devices {
		fmt.Printf(" %s |", d.what)
	}
	fmt.Println(" ratio, host | ratio, guest |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
	for _, j := range jobs {
		fmt.Printf("| %s |", j.name)
		var m []float64
		for _, d := range devices {
			list := figures[d.name+j.name]
			if len(list) == 0 {
				return fmt.Errorf("no figure of %s for %s:\n%s", d.name, j.name, out)
			}
			slices.Sort(list)
			m = append(m, list[len(list)/2])
			fmt.Printf(" %.0f |", m[len(m)-1])
		}
		fmt.Printf(" %.2f | %.2f |\n", m[1]/m[0], m[3]/m[2])
	}
	return nil
}
