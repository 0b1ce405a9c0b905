//go:build !race

package nbd

import (
	"io"
	"log/slog"
	"net"
	"testing"

	"hawser.dev/hawser/attach/frontend"
)

// nullVolume completes everything at once, or in one go from a goroutine of
// its own, and keeps nothing.
type nullVolume struct {
	info frontend.Info
	todo chan *frontend.Request // nil: at once
}

func newNullVolume(tb testing.TB, async bool) *nullVolume {
	v := &nullVolume{info: testInfo(1 << 30)}
	if async {
		v.todo = make(chan *frontend.Request, 512)
		tb.Cleanup(func() { close(v.todo) })
		go func() {
			for r := range v.todo {
				r.Done(r)
			}
		}()
	}
	return v
}

func (v *nullVolume) Info() frontend.Info { return v.info }

func (v *nullVolume) Submit(reqs ...*frontend.Request) {
	for _, r := range reqs {
		if v.todo != nil {
			v.todo <- r
		} else {
			r.Done(r)
		}
	}
}

// burst is a set of commands as bytes, with the number of bytes of its replies.
type burst struct {
	out     []byte
	in      []byte
	replies int
}

func newBurst(c *client, typ cmdType, n, size int) *burst {
	b := &burst{}
	for i := range n {
		b.out = c.encode(b.out, cmd(typ, uint64(i), uint64(i)*uint64(size), uint32(size)))
		switch {
		case typ == cmdRead && c.structured:
			b.replies += chunkSize + 8 + size
		case typ == cmdRead:
			b.replies += simpleReplySize + size
		default:
			b.replies += simpleReplySize
		}
	}
	b.in = make([]byte, b.replies)
	return b
}

func (b *burst) run(tb testing.TB, c net.Conn) {
	if _, err := c.Write(b.out); err != nil {
		tb.Fatal(err)
	}
	if _, err := io.ReadFull(c, b.in); err != nil {
		tb.Fatal(err)
	}
}

func TestNoAllocations(t *testing.T) {
	for _, async := range []bool{false, true} {
		for _, network := range []string{"unix", "tcp"} {
			for _, structured := range []bool{false, true} {
				c := serve(t, network, newNullVolume(t, async), Options{}).dial(structured)
				for name, b := range map[string]*burst{
					"reads":       newBurst(c, cmdRead, 32, 4096),
					"writes":      newBurst(c, cmdWrite, 32, 4096),
					"large write": newBurst(c, cmdWrite, 1, 256<<10),
					"trims":       newBurst(c, cmdTrim, 32, 4096),
				} {
					n := testing.AllocsPerRun(200, func() { b.run(t, c) })
					// A collection may empty the buffer pool once in a while.
					if n >= 1 {
						t.Errorf("%s of %s, structured=%v, async=%v: %v allocations a burst", name, network, structured, async, n)
					}
				}
			}
		}
	}
}

// BenchmarkNull measures what the server costs: bursts of commands against a
// volume that costs nothing, beside a floor that moves the same bytes over the
// same kind of socket with one write and one read a side.
func BenchmarkNull(b *testing.B) {
	for _, bench := range []struct {
		name        string
		typ         cmdType
		depth, size int
	}{
		{"read4K/depth1", cmdRead, 1, 4 << 10}, {"read4K/depth32", cmdRead, 32, 4 << 10},
		{"write4K/depth1", cmdWrite, 1, 4 << 10}, {"write4K/depth32", cmdWrite, 32, 4 << 10},
		{"read256K/depth8", cmdRead, 8, 256 << 10}, {"write256K/depth8", cmdWrite, 8, 256 << 10},
	} {
		dial := func(b *testing.B, async bool) *client {
			return serve(b, "unix", newNullVolume(b, async), Options{Logger: slog.New(slog.DiscardHandler)}).dial(true)
		}
		burst := newBurst(&client{structured: true, lengths: map[uint64]int{}}, bench.typ, bench.depth, bench.size)
		run := func(b *testing.B, c net.Conn) {
			b.SetBytes(int64(bench.depth * bench.size))
			b.ReportAllocs()
			for b.Loop() {
				burst.run(b, c)
			}
			b.ReportMetric(float64(b.N*bench.depth)/b.Elapsed().Seconds(), "IO/s")
		}
		b.Run(bench.name+"/floor", func(b *testing.B) {
			ours, theirs := socketPair(b)
			go func() {
				in, out := make([]byte, len(burst.out)), make([]byte, len(burst.in))
				for {
					if _, err := io.ReadFull(theirs, in); err != nil {
						return
					}
					if _, err := theirs.Write(out); err != nil {
						return
					}
				}
			}()
			run(b, ours)
		})
		b.Run(bench.name+"/inline", func(b *testing.B) { run(b, dial(b, false)) })
		b.Run(bench.name+"/async", func(b *testing.B) { run(b, dial(b, true)) })
	}
}
