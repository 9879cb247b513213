// Command peers compares this project's SMB client with cloudsoda/go-smb2 and smbclient: reads of 1 MiB and 4 KiB from a private smbd on
// loopback, plain, signed and sealed, with 1 to 64 requests in flight. It prints a Markdown table with the medians of several rounds in
// which the clients take turns, and the ratios.
//
// It must be run as root on a machine with Debian's samba and smbclient:
//
//	go run . [-rounds 5] [-mib 192] [-only 'signed.*64']
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cloudsoda/go-smb2"

	"vdbridge/client"
	"vdbridge/smb/auth"
	"vdbridge/smb/wire"
	"vdbridge/test/smbd"
)

const fileName = "big.bin"

// reader reads len(p) bytes at off.
type reader func(p []byte, off int64) error

// peer is one client under test.
type peer struct {
	name  string
	open  func(p protection) (read reader, closer func(), err error)
	whole func(p protection) (result, error) // instead of open: fetches the file in its own way
}

type protection struct {
	name   string
	server *smbd.Server
	signed bool
	sealed bool
}

var maxIO = flag.Int("maxio", 0, "client.Config.MaxIO of ours")

func main() {
	rounds := flag.Int("rounds", 5, "rounds to take the median of")
	mib := flag.Int("mib", 192, "size of the file in MiB")
	only := flag.String("only", "", "regular expression of the rows to measure, such as 'sealed 1 MiB × 4$'")
	who := flag.String("peers", "", "regular expression of the clients to measure")
	profile := flag.String("cpuprofile", "", "write a CPU profile of this process")
	flag.Parse()
	if err := run(*rounds, int64(*mib)<<20, regexp.MustCompile(*only), regexp.MustCompile(*who), *profile); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run(rounds int, size int64, only, who *regexp.Regexp, profile string) error {
	if reason := smbd.Missing(); reason != "" {
		return errors.New(reason)
	}
	open, err := serve(smbd.Options{}, size)
	if err != nil {
		return err
	}
	defer open.Stop()
	sealed, err := serve(smbd.Options{Encrypt: "required"}, size)
	if err != nil {
		return err
	}
	defer sealed.Stop()
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	peers := []peer{{"ours", ours, nil}, {"go-smb2", goSMB2, nil}, {"smbclient", nil, smbclient(size)}}
	peers = slices.DeleteFunc(peers, func(p peer) bool { return !who.MatchString(p.name) })

	fmt.Printf("%d cores, %s, medians of %d rounds, file of %d MiB in memory\n\n", runtime.NumCPU(), runtime.Version(), rounds, size>>20)
	fmt.Println("| reads | ours | go-smb2 | smbclient | ours / better other | CPU ms per GiB: ours | go-smb2 | smbclient | server busy % with ours | go-smb2 | smbclient |")
	fmt.Println("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	failures := map[string]error{}
	defer func() {
		for k, err := range failures {
			first, _, _ := strings.Cut(err.Error(), "\n")
			fmt.Printf("\n%s failed at least once: %s\n", k, first)
		}
	}()
	for _, prot := range []protection{{"plain", open, false, false}, {"signed", open, true, false}, {"sealed", sealed, true, true}} {
		for _, c := range []struct{ block, depth int }{{1 << 20, 1}, {1 << 20, 2}, {1 << 20, 4}, {1 << 20, 16}, {1 << 20, 64}, {4096, 1}, {4096, 16}, {4096, 64}} {
			block := "1 MiB"
			if c.block == 4096 {
				block = "4 KiB"
			}
			row := fmt.Sprintf("%s %s × %d", prot.name, block, c.depth)
			if !only.MatchString(row) {
				continue
			}
			results := map[string][]result{}
			for range rounds {
				for _, p := range peers {
					if p.whole != nil && c.block == 4096 {
						continue
					}
					v, err := measure(p, prot, size, c.block, c.depth)
					if err != nil && p.name != "ours" {
						failures[row+", "+p.name] = err
						continue
					}
					if err != nil {
						return fmt.Errorf("%s, %s: %w", row, p.name, err)
					}
					results[p.name] = append(results[p.name], v)
				}
			}
			print(row, c.block, results)
		}
	}
	return nil
}

// result is what one run gave.
type result struct {
	bytes  float64
	took   float64 // seconds
	client float64 // CPU seconds
	server float64
}

func (r result) rate() float64 { return r.bytes / r.took }

func print(row string, block int, results map[string][]result) {
	names := []string{"ours", "go-smb2", "smbclient"}
	med := map[string]float64{}
	var rates, costs, busy []string
	for _, name := range names {
		v := results[name]
		if len(v) == 0 {
			rates, costs, busy = append(rates, "–"), append(costs, "–"), append(busy, "–")
			continue
		}
		slices.SortFunc(v, func(a, b result) int { return cmp.Compare(a.rate(), b.rate()) })
		m := v[len(v)/2].rate()
		med[name] = m
		if block == 4096 {
			rates = append(rates, fmt.Sprintf("%.0f IOPS", m/4096))
		} else {
			rates = append(rates, fmt.Sprintf("%.0f MiB/s", m/(1<<20)))
		}
		// The clock of the server's CPU time ticks every 10 ms, so the rounds are added up.
		var sum result
		for _, r := range v {
			sum.bytes += r.bytes
			sum.took += r.took
			sum.client += r.client
			sum.server += r.server
		}
		costs = append(costs, fmt.Sprintf("%.0f", sum.client/sum.bytes*(1<<30)*1e3))
		busy = append(busy, fmt.Sprintf("%.0f", sum.server/sum.took*100))
	}
	ratio := "–"
	if best := max(med["go-smb2"], med["smbclient"]); best > 0 {
		ratio = fmt.Sprintf("%.2f", med["ours"]/best)
	}
	fmt.Printf("| %s | %s | %s | %s | %s |\n", row, strings.Join(rates, " | "), ratio, strings.Join(costs, " | "), strings.Join(busy, " | "))
}

// serve starts an smbd with a file of random bytes.
func serve(o smbd.Options, size int64) (*smbd.Server, error) {
	s, err := smbd.Run(o)
	if err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(s.Dir, fileName))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := rand.NewChaCha8([32]byte{1})
	buf := make([]byte, 1<<20)
	for n := int64(0); n < size; n += int64(len(buf)) {
		_, _ = r.Read(buf)
		if _, err := f.Write(buf); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// measure runs p once. Memory of the caller is there before the clock starts, for all.
func measure(p peer, prot protection, size int64, block, depth int) (result, error) {
	if p.whole != nil {
		return p.whole(prot)
	}
	read, closer, err := p.open(prot)
	if err != nil {
		return result{}, err
	}
	defer closer()
	total := size
	if block == 4096 {
		total = min(size, int64(depth+15)*2<<20) // a few ten thousand at most
	}
	buffers := make([][]byte, depth)
	for i := range buffers {
		buffers[i] = bytes.Repeat([]byte{1}, block) // touches every page
	}
	warmUp := min(size, max(8<<20, 2*int64(depth*block)))
	if err := blast(read, buffers, warmUp, size); err != nil {
		return result{}, err
	}
	start, mine, theirs := time.Now(), cpuOf(syscall.RUSAGE_SELF), serverCPU(prot.server)
	if err := blast(read, buffers, total, size); err != nil {
		return result{}, err
	}
	took := time.Since(start)
	return result{float64(total), took.Seconds(), cpuOf(syscall.RUSAGE_SELF) - mine, serverCPU(prot.server) - theirs}, nil
}

// blast reads total bytes, as many blocks at a time as there are buffers.
func blast(read reader, buffers [][]byte, total, size int64) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, len(buffers))
	for w, p := range buffers {
		wg.Go(func() {
			for {
				off := next.Add(int64(len(p))) - int64(len(p))
				if off >= total {
					return
				}
				if err := read(p, off%size); err != nil {
					errs[w] = err
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// cpuOf returns the CPU seconds of this process, or of its children that have ended.
func cpuOf(who int) float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(who, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// serverCPU returns the CPU seconds of all processes of the server, those that have ended included.
func serverCPU(s *smbd.Server) float64 {
	ticks := 0
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		b, _ := os.ReadFile(name)
		_, rest, ok := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		if !ok || len(f) < 15 || f[2] != strconv.Itoa(s.Pid()) { // process group
			continue
		}
		for _, v := range f[11:15] { // utime, stime, cutime, cstime
			n, _ := strconv.Atoi(v)
			ticks += n
		}
	}
	return float64(ticks) / 100
}

func ours(p protection) (reader, func(), error) {
	ctx := context.Background()
	c, err := client.Dial(ctx, p.server.Addr, client.Config{Unsigned: !p.signed && !p.sealed, Seal: p.sealed, MaxIO: *maxIO})
	if err != nil {
		return nil, nil, err
	}
	s, err := c.Session(ctx, auth.Credentials{User: p.server.User, Password: p.server.Password}, client.SessionOptions{})
	if err != nil {
		return nil, nil, err
	}
	t, err := s.Tree(ctx, p.server.Share)
	if err != nil {
		return nil, nil, err
	}
	f, err := t.Open(ctx, fileName, client.OpenOptions{Access: wire.AccessGenericRead, Share: client.ShareAll, Disposition: wire.FileOpen})
	if err != nil {
		return nil, nil, err
	}
	return func(p []byte, off int64) error {
			_, err := f.ReadAt(ctx, p, off)
			return err
		}, func() {
			_ = f.Close()
			_ = c.Close()
		}, nil
}

func goSMB2(p protection) (reader, func(), error) {
	ctx := context.Background()
	d := &smb2.Dialer{
		Negotiator: smb2.Negotiator{RequireMessageSigning: p.signed},
		Initiator:  &smb2.NTLMInitiator{User: p.server.User, Password: p.server.Password},
	}
	s, err := d.Dial(ctx, p.server.Addr)
	if err != nil {
		return nil, nil, err
	}
	m, err := s.Mount(p.server.Share)
	if err != nil {
		return nil, nil, err
	}
	f, err := m.Open(fileName)
	if err != nil {
		return nil, nil, err
	}
	return func(p []byte, off int64) error {
			_, err := f.ReadAt(p, off)
			return err
		}, func() {
			_ = f.Close()
			_ = m.Umount()
			_ = s.Logoff()
		}, nil
}

var speed = regexp.MustCompile(`\(([0-9.]+) KiloBytes/sec\)`)

// smbclient fetches the whole file to /dev/null with requests of its own size and depth, and tells the speed itself. Its time is without
// its start, its CPU time with it.
func smbclient(size int64) func(p protection) (result, error) {
	return func(p protection) (result, error) {
		mode := "off"
		if p.sealed {
			mode = "encrypt"
		} else if p.signed {
			mode = "sign"
		}
		cmd := exec.Command("smbclient", fmt.Sprintf("//127.0.0.1/%s", p.server.Share), "-p", strconv.Itoa(p.server.Port),
			"-U", p.server.User+"%"+p.server.Password, "--client-protection="+mode, "-m", "SMB3", "-c", "get "+fileName+" /dev/null")
		mine, theirs := cpuOf(syscall.RUSAGE_CHILDREN), serverCPU(p.server)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return result{}, fmt.Errorf("smbclient: %w: %s", err, out)
		}
		m := speed.FindStringSubmatch(string(out))
		if m == nil {
			return result{}, fmt.Errorf("smbclient said: %s", strings.TrimSpace(string(out)))
		}
		kib, err := strconv.ParseFloat(m[1], 64)
		n := float64(size)
		return result{n, n / (kib * 1024), cpuOf(syscall.RUSAGE_CHILDREN) - mine, serverCPU(p.server) - theirs}, err
	}
}
