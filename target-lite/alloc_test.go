//go:build !race

package targetlite_test

import (
	"fmt"
	"testing"

	"hawser.dev/hawser/nvme/host"
	targetlite "hawser.dev/hawser/target-lite"
	"hawser.dev/hawser/test/alloc"
)

// TestNoAllocation counts the allocations of target and initiator together.
func TestNoAllocation(t *testing.T) {
	for _, digest := range []bool{false, true} {
		srv := serve(t, one(targetlite.Namespace{Backend: memory(t, fmt.Sprint("alloc", digest), 16<<20)}))
		ctrl := connect(t, srv.addr, subNQN, host.Options{Queues: 1, HeaderDigest: digest, DataDigest: digest})
		ns, err := ctrl.Open(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name string
			op   host.Op
			size int
		}{
			{"read", host.OpRead, 4096},
			{"large read", host.OpRead, 64 << 10},
			{"write in the capsule", host.OpWrite, 4096},
			{"write by R2T", host.OpWrite, 64 << 10},
			{"flush", host.OpFlush, 0},
			{"write zeroes", host.OpWriteZeroes, 4096},
			{"deallocate", host.OpDeallocate, 4096},
			{"compare", host.OpCompare, 4096},
		} {
			const depth = 16
			done := make(chan error)
			left, open := 0, 0
			ios := make([]*host.IO, depth)
			for i := range ios {
				o := &host.IO{Op: c.op, Offset: int64(i) * 256 << 10, Length: int64(c.size)}
				if c.op != host.OpWriteZeroes && c.op != host.OpDeallocate {
					o.Data = make([]byte, c.size)
				}
				var fail error
				o.Done = func(o *host.IO) {
					if o.Err != nil {
						fail = o.Err
					}
					if left--; left >= depth && fail == nil {
						ns.Submit(o)
					} else if open--; open == 0 {
						done <- fail
					}
				}
				ios[i] = o
			}
			run := func(n int) {
				left, open = n+depth-1, depth
				ns.Submit(ios...)
				if err := <-done; err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
			}
			if c.op == host.OpCompare {
				if err := ns.WriteZeroes(0, 16<<20, false); err != nil {
					t.Fatal(err)
				}
			}
			run(2000)
			const n = 4000
			if got := alloc.Count(func() { run(n) }); got > n/100 {
				t.Errorf("%s, digests %v: %d allocations for %d commands", c.name, digest, got, n)
			}
		}
	}
}
