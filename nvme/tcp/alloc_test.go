//go:build !race

package tcp

import (
	"fmt"
	"testing"

	"hawser.dev/hawser/nvme/wire"
	"hawser.dev/hawser/test/alloc"
)

// TestNoAllocation counts the allocations of both ends together.
func TestNoAllocation(t *testing.T) {
	for _, digest := range []bool{false, true} {
		for _, c := range []struct {
			name string
			op   uint8
			size int
		}{
			{"read", wire.OpRead, 4096},
			{"read in several reads of the socket", wire.OpRead, 256 << 10},
			{"write in the capsule", wire.OpWrite, 4096},
			{"write by R2T", wire.OpWrite, 64 << 10},
			{"flush", wire.OpFlush, 0},
		} {
			t.Run(fmt.Sprintf("%s/digest=%v", c.name, digest), func(t *testing.T) {
				hc := HostConfig{Depth: 32, HeaderDigest: digest, DataDigest: digest}
				p := open(t, true, hc, TargetConfig{MaxInCapsule: 8192, MaxH2CData: 16 << 10}, &ram{mem: make([]byte, 1<<20)})
				const depth = 16
				done := make(chan struct{})
				left, open := 0, 0
				reqs := make([]*Request, depth)
				for i := range reqs {
					r := &Request{Data: make([]byte, c.size)}
					r.Cmd.Opcode = c.op
					r.Done = func(r *Request) {
						if left--; left >= depth {
							p.host.Submit(r)
						} else if open--; open == 0 {
							done <- struct{}{}
						}
					}
					reqs[i] = r
				}
				run := func(n int) {
					left, open = n+depth-1, depth
					p.host.Submit(reqs...)
					<-done
				}
				run(2000)
				const n = 4000
				if got := alloc.Count(func() { run(n) }); got > n/100 {
					t.Errorf("%d allocations for %d commands", got, n)
				}
			})
		}
	}
}
