//go:build !race

package host_test

import (
	"context"
	"net"
	"testing"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/target-lite"
	"hawser.dev/hawser/target-lite/backend"
	"hawser.dev/hawser/test/alloc"
)

// TestNoAllocation counts the allocations of initiator and target together, each command from Submit to Done.
func TestNoAllocation(t *testing.T) {
	b, err := backend.Open(t.Context(), "mem:alloc", backend.Options{Size: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	srv, err := targetlite.New(targetlite.Config{
		Portals:    []nvme.Addr{{Host: "127.0.0.1", Service: "0"}},
		Subsystems: []targetlite.Subsystem{{NQN: subsystem, AllowAnyHost: true, Namespaces: []targetlite.Namespace{{Backend: b}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.Background()) }()
	h, port, err := net.SplitHostPort(srv.Status().Portals[0])
	if err != nil {
		t.Fatal(err)
	}
	ctl, err := host.Connect(t.Context(), nvme.Addr{Host: h, Service: port}, subsystem, host.Options{Queues: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		ctl.Close(context.Background())
		srv.Shutdown(context.Background())
		<-served
	}()
	ns := openNamespace(t, ctl)
	for _, c := range []struct {
		name string
		op   host.Op
		size int
	}{
		{"read", host.OpRead, 4096},
		{"write", host.OpWrite, 4096},
		{"large read", host.OpRead, 1 << 20},
		{"large write", host.OpWrite, 1 << 20},
		{"flush", host.OpFlush, 0},
		{"deallocate", host.OpDeallocate, 4096},
		{"write zeroes", host.OpWriteZeroes, 4096},
	} {
		t.Run(c.name, func(t *testing.T) {
			const depth = 16
			left, open := 0, 0
			ios := make([]*host.IO, depth)
			finished := make(chan *host.IO, depth)
			for i := range ios {
				o := &host.IO{Op: c.op, Length: int64(c.size), Offset: int64(i * c.size)}
				if c.op == host.OpRead || c.op == host.OpWrite {
					o.Data = make([]byte, c.size)
				}
				o.Done = func(o *host.IO) { finished <- o }
				ios[i] = o
			}
			run := func(n int) {
				left, open = n, depth
				ns.Submit(ios...)
				for open > 0 {
					o := <-finished
					if o.Err != nil {
						t.Fatal(o.Err)
					}
					if left--; left >= depth {
						ns.Submit(o)
					} else {
						open--
					}
				}
			}
			run(1000)
			const n = 2000
			if got := alloc.Count(func() { run(n) }); got > n/100 {
				t.Errorf("%d allocations for %d commands", got, n)
			}
		})
	}
}
