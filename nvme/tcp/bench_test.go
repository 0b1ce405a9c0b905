//go:build linux && !race

package tcp

import (
	"context"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
	"hawser.dev/hawser/test/floor"
)

const benchRole = "HAWSER_BENCH_ROLE"

const (
	ioSize   = 4096
	reqSize  = wire.HLenCmd
	respSize = wire.HLenData + ioSize
)

func TestMain(m *testing.M) {
	switch os.Getenv(benchRole) {
	case "echo":
		floor.Serve(func(c net.Conn) { floor.Echo(c, reqSize, respSize) })
	case "target":
		floor.Serve(serveFixed)
	default:
		os.Exit(m.Run())
	}
}

// fixed answers every read from one buffer.
type fixed struct {
	q   *TargetQueue
	buf []byte
}

func (h *fixed) Begin(c *Cmd) {
	if c.SQE.Fabrics() {
		h.q.SetDepth(128)
		h.q.SetQID(1)
		h.q.SetSQFlowDisabled(true)
		c.Complete(nvme.StatusSuccess, 0)
	} else if c.SQE.ToController() {
		c.Data = h.buf[:c.DataLen]
	}
}

func (h *fixed) Execute(c *Cmd) {
	c.Data = h.buf[:c.DataLen]
	c.Complete(nvme.StatusSuccess, 0)
}
func (h *fixed) EndBatch()    {}
func (h *fixed) Release(*Cmd) {}
func (h *fixed) Ended(error)  {}

func serveFixed(c net.Conn) {
	s, err := NewStream(c)
	if err != nil {
		panic(err)
	}
	h := &fixed{buf: make([]byte, 1<<20)}
	h.q = NewTargetQueue(s, TargetConfig{Handler: h, MaxInCapsule: 8192, Spin: -1})
	h.q.Run()
}

// runQueue keeps depth reads open for n reads.
func runQueue(addr string, depth, n int) (total, p50 time.Duration, err error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, 0, err
	}
	s, err := NewStream(conn)
	if err != nil {
		return 0, 0, err
	}
	q, err := OpenHost(context.Background(), s, HostConfig{Spin: -1, Depth: 128})
	if err != nil {
		return 0, 0, err
	}
	connected := false
	first := &Request{Done: func(*Request) { connected = true }}
	first.Cmd = wire.Command{Opcode: wire.OpFabrics}
	q.Submit(first)
	for !connected {
		if _, err := q.Poll(); err != nil {
			return 0, 0, err
		}
	}
	sent, done := 0, 0
	laps := make([]int64, 0, n)
	var lap time.Time
	reqs := make([]*Request, depth)
	for i := range reqs {
		r := &Request{Cmd: wire.ReadCmd(1, uint64(i), 8, 0), Data: make([]byte, ioSize)}
		r.Done = func(r *Request) {
			if r.Err != nil {
				err = r.Err
				return
			}
			done++
			if depth == 1 {
				now := time.Now()
				laps = append(laps, int64(now.Sub(lap)))
				lap = now
			}
			if sent < n {
				sent++
				q.Submit(r)
			}
		}
		reqs[i] = r
	}
	start := time.Now()
	lap = start
	sent = depth
	q.Submit(reqs...)
	for done < n {
		if _, err := q.Poll(); err != nil {
			return 0, 0, err
		}
	}
	total = time.Since(start)
	q.Close(nil)
	q.Poll()
	return total, floor.Median(laps), err
}

// BenchmarkQueue is a queue pair with a controller that does nothing, beside the floor of its byte counts.
func BenchmarkQueue(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			echo, stop, err := floor.Start(0, benchRole+"=echo")
			if err != nil {
				b.Fatal(err)
			}
			defer stop()
			target, stop, err := floor.Start(0, benchRole+"=target")
			if err != nil {
				b.Fatal(err)
			}
			defer stop()
			if err := floor.PinProcess(1); err != nil {
				b.Fatal(err)
			}
			const rounds, n = 25, 5000
			var bestFloor, bestQueue time.Duration
			better := func(best *time.Duration, total, p50 time.Duration, err error) {
				if err != nil {
					b.Fatal(err)
				}
				if depth > 1 {
					p50 = total / n
				}
				if *best == 0 || p50 < *best {
					*best = p50
				}
			}
			for b.Loop() {
				for range rounds {
					total, p50, err := floor.Run(echo, reqSize, respSize, depth, n)
					better(&bestFloor, total, p50, err)
					total, p50, err = runQueue(target, depth, n)
					better(&bestQueue, total, p50, err)
				}
			}
			b.ReportMetric(float64(bestFloor), "floor-ns")
			b.ReportMetric(float64(bestQueue), "queue-ns")
			b.ReportMetric(float64(bestQueue)/float64(bestFloor), "×floor-time")
		})
	}
}
