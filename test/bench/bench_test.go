//go:build linux && !race

// Package bench measures initiator and target together, each as a process on
// a core of its own, beside the floors of the same byte counts in the same
// run: go test -bench . -benchtime 1x ./test/bench
package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/nvme/wire"
	"hawser.dev/hawser/target-lite"
	"hawser.dev/hawser/target-lite/backend"
	"hawser.dev/hawser/test/floor"
)

const (
	role       = "HAWSER_BENCH_ROLE"
	namespaces = "HAWSER_BENCH_NAMESPACES"
	spin       = "HAWSER_BENCH_SPIN"
	reqBytes   = "HAWSER_BENCH_REQ"
	respBytes  = "HAWSER_BENCH_RESP"

	subsystem nvme.NQN = "nqn.2026-11.com.example:bench"
	volume             = 64 << 20

	rounds = 25 // interleaved; the best of each side counts, since both cores are shared with others
)

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "echo":
		req, _ := strconv.Atoi(os.Getenv(reqBytes))
		resp, _ := strconv.Atoi(os.Getenv(respBytes))
		floor.Serve(func(c net.Conn) { floor.Echo(c, req, resp) })
	case "target":
		if err := serve(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

// serve is the target's process: one memory volume for every namespace.
func serve() error {
	n, err := strconv.Atoi(os.Getenv(namespaces))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cfg := targetlite.Config{Portals: []nvme.Addr{{Host: "127.0.0.1", Service: "0"}}}
	if os.Getenv(spin) != "" {
		cfg.Spin = -1
	}
	sub := targetlite.Subsystem{NQN: subsystem, AllowAnyHost: true}
	for i := range n {
		b, err := backend.Open(ctx, fmt.Sprintf("mem:bench%d", i), backend.Options{Size: volume})
		if err != nil {
			return err
		}
		if n == 1 {
			warm(b)
		}
		sub.Namespaces = append(sub.Namespaces, targetlite.Namespace{Backend: b})
	}
	cfg.Subsystems = []targetlite.Subsystem{sub}
	srv, err := targetlite.New(cfg)
	if err != nil {
		return err
	}
	if err := srv.Listen(ctx); err != nil {
		return err
	}
	fmt.Println(srv.Status().Portals[0])
	go func() {
		os.Stdin.Read(make([]byte, 1))
		cancel()
	}()
	if err := srv.Serve(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// warm writes the whole volume once: memory that was never written has no pages yet.
func warm(b backend.Backend) {
	done := make(chan struct{}, 1)
	r := &backend.Request{Op: backend.OpWrite, Data: make([]byte, 1<<20), Done: func(*backend.Request) { done <- struct{}{} }}
	for r.Offset = 0; r.Offset < volume; r.Offset += r.Length {
		if r.Length = int64(len(r.Data)); !b.Submit(r) {
			<-done
		}
	}
}

func start(b *testing.B, env ...string) string {
	b.Helper()
	line, stop, err := floor.Start(0, env...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(stop)
	return line
}

func connect(b *testing.B, addr string, o host.Options) (c *host.Controller, end func()) {
	b.Helper()
	h, port, err := net.SplitHostPort(addr)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err = host.Connect(ctx, nvme.Addr{Transport: nvme.TransportTCP, Host: h, Service: port}, subsystem, o)
	if err != nil {
		b.Fatal(err)
	}
	return c, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			b.Error(err)
		}
	}
}

// load keeps depth operations of one size open for n operations.
func load(ns *host.Namespace, op host.Op, size, depth, n int) (total, p50 time.Duration, err error) {
	var sent, done int
	var begin time.Time
	var failed error
	laps := make([]int64, 0, n)
	var lap time.Time
	end := make(chan struct{})
	ios := make([]*host.IO, depth)
	for i := range ios {
		o := &host.IO{Op: op, Data: make([]byte, size), Offset: int64(i * size)}
		o.Done = func(o *host.IO) { // on the queue's loop
			if o.Err != nil && failed == nil {
				failed = o.Err
			}
			if done++; depth == 1 {
				now := time.Now()
				laps = append(laps, int64(now.Sub(lap)))
				lap = now
			}
			if sent < n {
				sent++
				o.Offset = (o.Offset + int64(depth*size)) % volume
				ns.Submit(o)
			} else if done == n {
				total = time.Since(begin) // here: the spinning loop lets others run only every 10 ms
				close(end)
			}
		}
		ios[i] = o
	}
	sent = depth
	begin = time.Now()
	lap = begin
	ns.Submit(ios...)
	<-end
	return total, floor.Median(laps), failed
}

// BenchmarkSpin is both ends spinning, one core a side, one connection.
func BenchmarkSpin(b *testing.B) {
	for _, c := range []struct {
		op    host.Op
		size  int
		depth int
		n     int
	}{
		{host.OpRead, 4096, 1, 5000},
		{host.OpRead, 4096, 32, 20000},
		{host.OpWrite, 4096, 1, 5000},
		{host.OpWrite, 4096, 32, 20000},
		{host.OpRead, 128 << 10, 8, 1000},
	} {
		b.Run(fmt.Sprintf("%v/size=%d/depth=%d", c.op, c.size, c.depth), func(b *testing.B) {
			req, resp := wire.HLenCmd, wire.HLenData+c.size
			if c.op == host.OpWrite {
				req, resp = wire.HLenCmd+c.size, wire.HLenResp
			}
			echo := start(b, role+"=echo", fmt.Sprintf("%s=%d", reqBytes, req), fmt.Sprintf("%s=%d", respBytes, resp))
			addr := start(b, role+"=target", namespaces+"=1", spin+"=1")
			if err := floor.PinProcess(1); err != nil {
				b.Fatal(err)
			}
			var bestFloor, bestQueue time.Duration
			take := func(best *time.Duration, total, p50 time.Duration, err error) {
				if err != nil {
					b.Fatal(err)
				}
				if c.depth > 1 {
					p50 = total / time.Duration(c.n)
				}
				if *best == 0 || p50 < *best {
					*best = p50
				}
			}
			for b.Loop() {
				for range rounds {
					total, p50, err := floor.Run(echo, req, resp, c.depth, c.n)
					take(&bestFloor, total, p50, err)
					// A connection that is open spins: only the one being measured is.
					ctl, end := connect(b, addr, host.Options{Queues: 1, Spin: -1})
					ns, err := ctl.Open(context.Background(), 1)
					if err != nil {
						b.Fatal(err)
					}
					total, p50, err = load(ns, c.op, c.size, c.depth, c.n)
					end()
					take(&bestQueue, total, p50, err)
				}
			}
			b.ReportMetric(float64(bestFloor), "floor-ns")
			b.ReportMetric(float64(bestQueue), "hawser-ns")
			if c.depth == 1 {
				b.ReportMetric(float64(bestQueue)/float64(bestFloor), "p50/floor")
			} else {
				b.ReportMetric(float64(bestFloor)/float64(bestQueue), "of-floor")
			}
		})
	}
}

// BenchmarkNamespaces lists the namespaces of one subsystem.
func BenchmarkNamespaces(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			ctl, end := connect(b, start(b, role+"=target", fmt.Sprintf("%s=%d", namespaces, n)), host.Options{Queues: 1})
			defer end()
			for b.Loop() {
				list, err := ctl.Namespaces(context.Background())
				if err != nil || len(list) != n {
					b.Fatalf("%d namespaces: %v", len(list), err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/namespace")
		})
	}
}

// BenchmarkIdle is the processor time that a connected controller without I/O takes, host and target together.
func BenchmarkIdle(b *testing.B) {
	addr := start(b, role+"=target", namespaces+"=1")
	_, end := connect(b, addr, host.Options{})
	defer end()
	var before, after syscall.Rusage
	const span = 5 * time.Second
	for b.Loop() {
		syscall.Getrusage(syscall.RUSAGE_SELF, &before)
		<-time.After(span)
		syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	}
	used := time.Duration(after.Utime.Nano() - before.Utime.Nano() + after.Stime.Nano() - before.Stime.Nano())
	b.ReportMetric(float64(used)/float64(span)*100, "%cpu")
}
