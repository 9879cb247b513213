package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"vdbridge/bridge"
)

// Metrics in Prometheus' text format (version 0.0.4). It is written here by hand: a few kinds of lines that are made from a Status at the moment they
// are asked for, where the client library would bring a registry, its own copies of all counters, and protocol buffers.

// metric is one family. Names are documented in docs/attach.md.
type metric struct {
	name, kind, help string
	each             func(s *Status, add func(v float64, labels ...string))
}

var allMetrics = []metric{
	{"vdbridge_disk_info", "gauge", "What a disk is; the value is 1.", func(s *Status, add func(float64, ...string)) {
		l := []string{"url", s.URL, "kind", s.Kind, "state", s.State}
		if d := s.Disk; d != nil {
			l = append(l, "mode", d.Mode)
			if d.Server != nil {
				l = append(l, "server", d.Server.Address, "dialect", d.Server.Dialect, "signing", d.Server.Signing, "sealing", d.Server.Sealing)
			}
			if d.Handle != nil {
				l = append(l, "handle", d.Handle.Kind)
			}
		}
		add(1, l...)
	}},
	{"vdbridge_disk_up", "gauge", "1 while requests are carried out, 0 while they wait or fail.", func(s *Status, add func(float64, ...string)) {
		up := 0.0
		if s.Disk != nil && s.Disk.State == bridge.StateConnected && (s.State == StateAttached || s.State == StateServing) {
			up = 1
		}
		add(up)
	}},
	disk("vdbridge_disk_size_bytes", "gauge", "Size of the disk.", func(d *bridge.DiskStatus) float64 { return float64(d.Size) }),
	disk("vdbridge_disk_in_flight", "gauge", "Operations in flight.", func(d *bridge.DiskStatus) float64 { return float64(d.InFlight) }),
	disk("vdbridge_disk_losses_total", "counter", "Times that all ways to the server were lost.", func(d *bridge.DiskStatus) float64 { return float64(d.Losses) }),
	disk("vdbridge_disk_reconnects_total", "counter", "Losses that were overcome.", func(d *bridge.DiskStatus) float64 { return float64(d.Reconnects) }),
	disk("vdbridge_disk_repeated_total", "counter", "Requests sent again after a loss.", func(d *bridge.DiskStatus) float64 { return float64(d.Repeated) }),
	disk("vdbridge_disk_reservation_conflicts_total", "counter", "Commands that somebody's reservation forbade.", func(d *bridge.DiskStatus) float64 { return float64(d.Conflicts) }),
	disk("vdbridge_disk_channels", "gauge", "Connections to the server.", func(d *bridge.DiskStatus) float64 { return float64(len(d.Channels)) }),
	ops("vdbridge_disk_operations_total", "counter", "Operations that succeeded.", func(o bridge.OpStatus) float64 { return float64(o.Count) }),
	ops("vdbridge_disk_operations_failed_total", "counter", "Operations that failed.", func(o bridge.OpStatus) float64 { return float64(o.Failed) }),
	ops("vdbridge_disk_bytes_total", "counter", "Bytes of the operations that succeeded.", func(o bridge.OpStatus) float64 { return float64(o.Bytes) }),
	{"vdbridge_disk_latency_seconds", "gauge", "Percentiles of the latency of operations since the disk was opened.", func(s *Status, add func(float64, ...string)) {
		if s.Disk == nil {
			return
		}
		for _, op := range slices.Sorted(maps.Keys(s.Disk.Ops)) {
			o := s.Disk.Ops[op]
			for _, q := range []struct {
				q string
				v float64
			}{{"0.5", o.P50}, {"0.9", o.P90}, {"0.99", o.P99}, {"0.999", o.P999}, {"1", o.Max}} {
				add(q.v/1e6, "operation", op, "quantile", q.q)
			}
		}
	}},
	{"vdbridge_disk_errors_total", "counter", "Failed operations by the class of the error.", func(s *Status, add func(float64, ...string)) {
		if s.Disk == nil {
			return
		}
		for _, class := range slices.Sorted(maps.Keys(s.Disk.Errors)) {
			add(float64(s.Disk.Errors[class]), "class", class)
		}
	}},
	device("vdbridge_device_connections", "gauge", "Connections with the kernel that should be alive.", func(d *DeviceStatus) float64 { return float64(d.Connections) }),
	device("vdbridge_device_connections_alive", "gauge", "Connections with the kernel that are alive.", func(d *DeviceStatus) float64 { return float64(d.Alive) }),
	device("vdbridge_device_connections_renewed_total", "counter", "Connections with the kernel that took the place of dead ones.", func(d *DeviceStatus) float64 { return float64(d.Renewed) }),
	device("vdbridge_device_in_flight", "gauge", "Requests in flight in the kernel.", func(d *DeviceStatus) float64 { return float64(d.InFlight) }),
}

func disk(name, kind, help string, v func(*bridge.DiskStatus) float64) metric {
	return metric{name, kind, help, func(s *Status, add func(float64, ...string)) {
		if s.Disk != nil {
			add(v(s.Disk))
		}
	}}
}

func device(name, kind, help string, v func(*DeviceStatus) float64) metric {
	return metric{name, kind, help, func(s *Status, add func(float64, ...string)) {
		if s.Device != nil {
			add(v(s.Device))
		}
	}}
}

func ops(name, kind, help string, v func(bridge.OpStatus) float64) metric {
	return metric{name, kind, help, func(s *Status, add func(float64, ...string)) {
		if s.Disk == nil {
			return
		}
		for _, op := range slices.Sorted(maps.Keys(s.Disk.Ops)) {
			add(v(s.Disk.Ops[op]), "operation", op)
		}
	}}
}

var labelEscape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// WriteMetrics writes all metrics of the disks. Each line is labelled with the device, address or directory as "disk".
func WriteMetrics(w io.Writer, list []Status) error {
	b := bufio.NewWriter(w)
	for _, m := range allMetrics {
		fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", m.name, m.help, m.name, m.kind)
		for i := range list {
			s := &list[i]
			where := s.Where
			if where == "" {
				where = s.URL
			}
			m.each(s, func(v float64, labels ...string) {
				fmt.Fprintf(b, `%s{disk="%s"`, m.name, labelEscape.Replace(where))
				for i := 0; i+1 < len(labels); i += 2 {
					fmt.Fprintf(b, `,%s="%s"`, labels[i], labelEscape.Replace(labels[i+1]))
				}
				fmt.Fprintf(b, "} %s\n", strconv.FormatFloat(v, 'g', -1, 64))
			})
		}
	}
	return b.Flush()
}

// ServeMetrics answers GET /metrics on l until stop is called.
func ServeMetrics(l net.Listener, status func() []Status) (stop func()) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_ = WriteMetrics(w, status())
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if errors.Is(srv.Shutdown(ctx), context.DeadlineExceeded) {
			srv.Close()
		}
		<-done
	}
}
