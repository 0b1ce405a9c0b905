package tcp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
)

// ram is a controller that only knows Read, Write and Flush, by byte offset
// in CDW10; if async it answers from other goroutines and out of order.
type ram struct {
	mem   []byte
	async bool

	mu              sync.Mutex
	held            sync.WaitGroup
	begun, released int
	free            [][]byte
}

func offset(c *Cmd) int { return int(c.SQE.CDW10) }

func (h *ram) Begin(c *Cmd) {
	h.mu.Lock()
	h.begun++
	h.mu.Unlock()
	if offset(c)+c.DataLen > len(h.mem) {
		c.Complete(nvme.StatusLBAOutOfRange|nvme.StatusDNR, 0)
		return
	}
	if c.DataLen > 0 && c.SQE.ToController() {
		if h.async && !c.InCapsule && rand.N(2) == 0 {
			c.Defer()
			h.held.Go(func() { c.Provide(h.buf(c.DataLen)) })
			return
		}
		c.Data = h.buf(c.DataLen)
	}
}

func (h *ram) buf(n int) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := len(h.free); k > 0 && cap(h.free[k-1]) >= n {
		b := h.free[k-1]
		h.free = h.free[:k-1]
		return b[:n]
	}
	return make([]byte, n, max(n, 4096))
}

func (h *ram) Execute(c *Cmd) {
	if h.async {
		h.held.Go(func() { h.run(c) })
		return
	}
	h.run(c)
}

func (h *ram) run(c *Cmd) {
	switch c.SQE.Opcode {
	case wire.OpWrite:
		h.mu.Lock()
		copy(h.mem[offset(c):], c.Data)
		h.mu.Unlock()
	case wire.OpRead:
		c.Data = h.buf(c.DataLen)
		h.mu.Lock()
		copy(c.Data, h.mem[offset(c):])
		h.mu.Unlock()
	}
	c.Complete(nvme.StatusSuccess, 0)
}

func (h *ram) EndBatch() {}

func (h *ram) Release(c *Cmd) {
	h.mu.Lock()
	h.released++
	if c.Data != nil {
		h.free = append(h.free, c.Data)
	}
	h.mu.Unlock()
}

func (h *ram) Ended(error) {}

func streams(t testing.TB, fd bool) (Stream, Stream) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if !fd {
		return NewConnStream(a), NewConnStream(b)
	}
	x, err := NewStream(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := NewStream(b)
	if err != nil {
		t.Fatal(err)
	}
	return x, y
}

type queuePair struct {
	host   *HostQueue
	target *TargetQueue
}

// connected answers the first command, like Connect, by SetDepth.
type connected struct {
	*ram
	q     *TargetQueue
	depth int
}

func (h *connected) Begin(c *Cmd) {
	if c.SQE.Fabrics() {
		h.mu.Lock()
		h.begun++
		h.mu.Unlock()
		h.q.SetDepth(h.depth)
		h.q.SetQID(1)
		c.Complete(nvme.StatusSuccess, 0)
		return
	}
	h.ram.Begin(c)
}

func open(t testing.TB, fd bool, hc HostConfig, tc TargetConfig, h *ram) *queuePair {
	t.Helper()
	a, b := streams(t, fd)
	return openOn(t, a, b, hc, tc, h)
}

// openOn is open on streams that are there.
func openOn(t testing.TB, a, b Stream, hc HostConfig, tc TargetConfig, h *ram) *queuePair {
	t.Helper()
	handler := &connected{ram: h, depth: hc.Depth}
	tc.Handler = handler
	p := &queuePair{target: NewTargetQueue(b, tc)}
	handler.q = p.target
	var join sync.WaitGroup
	join.Go(func() {
		if err := p.target.Run(); err != nil {
			t.Logf("target: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var err error
	if p.host, err = OpenHost(ctx, a, hc); err != nil {
		t.Fatal(err)
	}
	p.host.SetInCapsule(tc.MaxInCapsule)
	join.Go(func() { p.host.Run() })
	if r := p.do(wire.OpFabrics, 0, nil); r.Err != nil {
		t.Fatal(r.Err)
	}
	t.Cleanup(func() {
		p.host.Close(nil)
		join.Wait()
		h.held.Wait()
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.begun != h.released {
			t.Errorf("%d commands begun, %d released", h.begun, h.released)
		}
	})
	return p
}

func (p *queuePair) do(op uint8, off int, data []byte) *Request {
	done := make(chan struct{})
	r := &Request{Data: data, Done: func(*Request) { close(done) }}
	r.Cmd.Opcode, r.Cmd.CDW10 = op, uint32(off)
	p.host.Submit(r)
	<-done
	return r
}

func TestQueuePair(t *testing.T) {
	for _, fd := range []bool{true, false} {
		for _, async := range []bool{false, true} {
			for _, digest := range []bool{false, true} {
				for _, pda := range []uint8{0, 17, 31} {
					for _, quiet := range []bool{false, true} {
						name := fmt.Sprintf("fd=%v/async=%v/digest=%v/pda=%d/success=%v", fd, async, digest, pda, quiet)
						t.Run(name, func(t *testing.T) {
							h := &ram{mem: make([]byte, 4<<20), async: async}
							hc := HostConfig{HeaderDigest: digest, DataDigest: digest, HPDA: pda, Depth: 32, Timeout: time.Minute}
							tc := TargetConfig{MaxInCapsule: 4096, MaxH2CData: 8192, MaxR2TData: 20000, CPDA: pda}
							p := open(t, fd, hc, tc, h)
							p.target.SetSQFlowDisabled(quiet)
							verify(t, p)
						})
					}
				}
			}
		}
	}
}

// verify runs random writes and reads, more than the depth at once, and checks every byte.
func verify(t *testing.T, p *queuePair) {
	const workers, area = 48, 64 << 10
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			want := make([]byte, area)
			for i := range 6 {
				n := 4 * (1 + rng.IntN(area/4))
				off := rng.IntN(area/4-n/4+1) * 4
				for j := off; j < off+n; j += 4 {
					binary.LittleEndian.PutUint32(want[j:], rng.Uint32())
				}
				if r := p.do(wire.OpWrite, w*area+off, want[off:off+n]); r.Err != nil || !r.Completion.Status.OK() {
					t.Errorf("write %d: %v %v", i, r.Err, r.Completion.Status)
					return
				}
				got := make([]byte, area)
				if r := p.do(wire.OpRead, w*area, got); r.Err != nil || !r.Completion.Status.OK() {
					t.Errorf("read %d: %v %v", i, r.Err, r.Completion.Status)
					return
				}
				if !bytes.Equal(got, want) {
					t.Error("read back differs")
					return
				}
			}
			if r := p.do(wire.OpFlush, 0, nil); r.Err != nil || !r.Completion.Status.OK() {
				t.Errorf("flush: %v %v", r.Err, r.Completion.Status)
			}
			if r := p.do(wire.OpRead, 4<<20, make([]byte, 512)); r.Err != nil || r.Completion.Status.Code() != nvme.StatusLBAOutOfRange {
				t.Errorf("read beyond the end: %v %v", r.Err, r.Completion.Status)
			}
		})
	}
	wg.Wait()
}

func TestCloseReturnsEverything(t *testing.T) {
	for _, fd := range []bool{true, false} {
		t.Run(fmt.Sprintf("fd=%v", fd), func(t *testing.T) {
			h := &ram{mem: make([]byte, 4<<20), async: true}
			p := open(t, fd, HostConfig{Depth: 16}, TargetConfig{MaxH2CData: 4096}, h)
			var wg sync.WaitGroup
			reqs := make([]*Request, 64)
			for i := range reqs {
				wg.Add(1)
				reqs[i] = &Request{Data: make([]byte, 256<<10), Done: func(*Request) { wg.Done() }}
				reqs[i].Cmd.Opcode = []uint8{wire.OpRead, wire.OpWrite}[i%2]
			}
			p.host.Submit(reqs...)
			p.host.Close(nil)
			wg.Wait()
			for _, r := range reqs {
				if r.Err != nil && !errors.Is(r.Err, ErrClosed) {
					t.Fatal(r.Err)
				}
			}
			r := p.do(wire.OpFlush, 0, nil)
			if !errors.Is(r.Err, ErrClosed) {
				t.Fatalf("Submit on a closed queue: %v", r.Err)
			}
		})
	}
}

// lazy takes its buffers back only while the loop waits.
type lazy struct {
	*ram
	q *TargetQueue
}

func (h *lazy) Release(*Cmd) {
	for h.q.active.Load() {
		runtime.Gosched()
	}
}

// A loop that polls must let those go on who release what it waits for.
func TestPollingLoopWaitsForSlot(t *testing.T) {
	for range 100 {
		a, b := streams(t, true)
		h := &lazy{ram: &ram{}}
		q := NewTargetQueue(b, TargetConfig{Spin: -1, Handler: h})
		h.q = q
		var answered sync.WaitGroup
		q.active.Store(true)
		for range q.slots {
			c, e := q.slot()
			if e != nil {
				t.Fatal(e)
			}
			c.begun, c.answered = true, true
			q.open.Add(-1)
			answered.Go(func() {
				q.tx.mu.Lock()
				q.leave(c)
				q.tx.mu.Unlock()
				q.reap()
			})
		}
		if _, e := q.slot(); e != nil {
			t.Fatal(e)
		}
		q.active.Store(false)
		answered.Wait()
		a.Close()
		b.Close()
	}
}

// mute is a stream that takes nothing.
type mute struct{ Stream }

func (mute) Writev([][]byte, bool) (int, error) { return 0, io.ErrClosedPipe }

// A loop that finds the connection broken while it makes room must not wait for it.
func TestSlotOfBrokenConnection(t *testing.T) {
	_, b := streams(t, true)
	q := NewTargetQueue(mute{b}, TargetConfig{Handler: &ram{}})
	for range q.slots {
		c, e := q.slot()
		if e != nil {
			t.Fatal(e)
		}
		c.Complete(nvme.StatusSuccess, 0)
		q.tx.mu.Lock()
		q.err = nil
		q.tx.mu.Unlock()
	}
	if _, e := q.slot(); e == nil || !errors.Is(e, io.ErrClosedPipe) {
		t.Fatalf("slot: %v", e)
	}
}
