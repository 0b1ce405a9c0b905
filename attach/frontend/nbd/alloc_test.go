//go:build !race

package nbd

import (
	"io"
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

func (b *burst) run(tb testing.TB, c *client) {
	if _, err := c.Conn.Write(b.out); err != nil {
		tb.Fatal(err)
	}
	if _, err := io.ReadFull(c.Conn, b.in); err != nil {
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

func BenchmarkNull(b *testing.B) {
	for _, async := range []bool{false, true} {
		for _, bench := range []struct {
			name        string
			typ         cmdType
			depth, size int
		}{
			{"read4K/depth1", cmdRead, 1, 4096}, {"read4K/depth32", cmdRead, 32, 4096},
			{"write4K/depth1", cmdWrite, 1, 4096}, {"write4K/depth32", cmdWrite, 32, 4096},
			{"read256K/depth8", cmdRead, 8, 256 << 10}, {"write256K/depth8", cmdWrite, 8, 256 << 10},
		} {
			name := bench.name + map[bool]string{false: "/inline", true: "/async"}[async]
			b.Run(name, func(b *testing.B) {
				c := serve(b, "unix", newNullVolume(b, async), Options{}).dial(true)
				set := newBurst(c, bench.typ, bench.depth, bench.size)
				b.SetBytes(int64(bench.depth * bench.size))
				b.ReportAllocs()
				for b.Loop() {
					// Both directions may be larger than the socket holds.
					sent := make(chan error, 1)
					if bench.depth*bench.size > 128<<10 && bench.typ == cmdWrite {
						go func() { _, err := c.Conn.Write(set.out); sent <- err }()
					} else {
						_, err := c.Conn.Write(set.out)
						sent <- err
					}
					if _, err := io.ReadFull(c.Conn, set.in); err != nil {
						b.Fatal(err)
					}
					if err := <-sent; err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N*bench.depth)/b.Elapsed().Seconds(), "IO/s")
			})
		}
	}
}
