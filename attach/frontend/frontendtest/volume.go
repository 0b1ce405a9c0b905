// Package frontendtest has a volume to test frontends with: it checks that they
// keep their side of the contract, and completes as unpleasantly as it allows.
package frontendtest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"unsafe"

	"hawser.dev/hawser/attach/frontend"
)

// Volume keeps its contents in memory and, apart, what of them would survive
// a crash.
type Volume struct {
	tb   testing.TB
	info frontend.Info
	fail func(*frontend.Request) error

	mu      sync.Mutex
	data    []byte
	durable []byte
	dirty   [][2]int64 // ranges in which they may differ: from, to
	stats   Stats

	async   bool
	held    bool
	closed  bool
	pending []*frontend.Request
	changed *sync.Cond // any of the four above
	workers sync.WaitGroup
}

// Stats counts what a volume was asked.
type Stats struct {
	Ops    map[frontend.Op]int
	FUA    int
	NoHole int
	Batch  int // most requests of one Submit
}

// Option changes a new Volume.
type Option func(*Volume)

// Fail lets f decide a request's error before it is executed; f is called
// from any goroutine.
func Fail(f func(*frontend.Request) error) Option { return func(v *Volume) { v.fail = f } }

// Shuffle completes requests from n goroutines, in an order drawn at random;
// without it they complete within Submit.
func Shuffle(n int) Option {
	return func(v *Volume) {
		v.async = true
		for i := range n {
			v.workers.Go(func() { v.work(rand.New(rand.NewPCG(1, uint64(i)))) })
		}
	}
}

// Held makes a Volume that begins with Hold.
func Held(v *Volume) { v.held = true }

// NewVolume returns a zeroed volume of info's shape.
func NewVolume(tb testing.TB, info frontend.Info, opts ...Option) *Volume {
	tb.Helper()
	if err := info.Validate(); err != nil {
		tb.Fatal(err)
	}
	v := &Volume{tb: tb, info: info, data: make([]byte, info.Size), durable: make([]byte, info.Size)}
	v.stats.Ops = map[frontend.Op]int{}
	v.changed = sync.NewCond(&v.mu)
	for _, o := range opts {
		o(v)
	}
	tb.Cleanup(v.close)
	return v
}

func (v *Volume) Info() frontend.Info { return v.info }

// Hold keeps back every request that isn't being executed yet.
func (v *Volume) Hold() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.held = true
}

// Release ends Hold.
func (v *Volume) Release() {
	v.mu.Lock()
	v.held = false
	v.changed.Broadcast()
	var now []*frontend.Request
	if !v.async {
		now, v.pending = v.pending, nil
	}
	v.mu.Unlock()
	v.finish(now...)
}

// ReleaseOne executes the oldest request that is held.
func (v *Volume) ReleaseOne() {
	v.mu.Lock()
	r := v.pending[0]
	v.pending = v.pending[1:]
	v.mu.Unlock()
	v.finish(r)
}

// WaitHeld returns once n requests are held.
func (v *Volume) WaitHeld(n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for len(v.pending) < n {
		v.changed.Wait()
	}
}

// Pending counts the requests that are held or wait for a worker.
func (v *Volume) Pending() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.pending)
}

// Stats returns what was asked so far.
func (v *Volume) Stats() Stats {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.stats
	s.Ops = map[frontend.Op]int{}
	for op, n := range v.stats.Ops {
		s.Ops[op] = n
	}
	return s
}

// Bytes returns a copy of the contents.
func (v *Volume) Bytes() []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.data)
}

// Durable returns a copy of what would survive a crash.
func (v *Volume) Durable() []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.durable)
}

// Fill sets the contents, durably.
func (v *Volume) Fill(b []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	copy(v.data, b)
	copy(v.durable, v.data)
}

// Resize changes the size; Info doesn't tell of it.
func (v *Volume) Resize(size int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	resize := func(b []byte) []byte {
		return append(b[:min(size, int64(len(b)))], make([]byte, max(0, size-int64(len(b))))...)
	}
	v.data, v.durable = resize(v.data), resize(v.durable)
}

// Submit implements frontend.Volume.
func (v *Volume) Submit(reqs ...*frontend.Request) {
	v.mu.Lock()
	v.stats.Batch = max(v.stats.Batch, len(reqs))
	for _, r := range reqs {
		if err := v.check(r); err != nil {
			v.tb.Errorf("the frontend submitted %v of %d bytes at %d: %v", r.Op, r.Length, r.Offset, err)
		}
	}
	keep := v.async || v.held
	if keep {
		v.pending = append(v.pending, reqs...)
		v.changed.Broadcast()
	}
	v.mu.Unlock()
	if !keep {
		v.finish(reqs...)
	}
}

// check says how a request breaks the contract.
func (v *Volume) check(r *frontend.Request) error {
	i := v.info
	data := r.Op == frontend.OpRead || r.Op == frontend.OpWrite
	block := int64(i.BlockSize)
	switch {
	case r.Done == nil:
		return fmt.Errorf("no Done")
	case r.Err != nil:
		return fmt.Errorf("with an error already: %w", r.Err)
	case r.Op == frontend.OpFlush && (r.Offset != 0 || r.Length != 0):
		return fmt.Errorf("a flush with a range")
	case r.Op != frontend.OpFlush && r.Length <= 0, r.Offset < 0, r.Offset > int64(len(v.data))-r.Length:
		return fmt.Errorf("not a range within %d bytes", len(v.data))
	case (r.Offset|r.Length)&(block-1) != 0:
		return fmt.Errorf("not whole blocks of %d bytes", block)
	case data && int64(len(r.Data)) != r.Length, !data && r.Data != nil:
		return fmt.Errorf("with %d bytes of data", len(r.Data))
	case data && uintptr(unsafe.Pointer(&r.Data[0]))%4096 != 0:
		return fmt.Errorf("data not page-aligned")
	case data && i.MaxTransfer > 0 && r.Length > i.MaxTransfer:
		return fmt.Errorf("more than %d bytes at once", i.MaxTransfer)
	case r.FUA && (!i.CanFUA || r.Op != frontend.OpWrite && r.Op != frontend.OpWriteZeroes):
		return fmt.Errorf("with FUA")
	case r.NoHole && r.Op != frontend.OpWriteZeroes:
		return fmt.Errorf("with NoHole")
	case r.Op.Writes() && i.ReadOnly, r.Op == frontend.OpFlush && !i.CanFlush,
		r.Op == frontend.OpTrim && !i.CanTrim, r.Op == frontend.OpWriteZeroes && !i.CanWriteZeroes,
		r.Op > frontend.OpWriteZeroes:
		return fmt.Errorf("the volume can't do it")
	}
	return nil
}

func (v *Volume) work(rnd *rand.Rand) {
	for {
		v.mu.Lock()
		for !v.closed && (v.held || len(v.pending) == 0) {
			v.changed.Wait()
		}
		if v.closed {
			v.mu.Unlock()
			return
		}
		n := rnd.IntN(len(v.pending))
		r := v.pending[n]
		v.pending = slices.Delete(v.pending, n, n+1)
		v.mu.Unlock()
		v.finish(r)
	}
}

// finish executes requests and completes them, in the order given.
func (v *Volume) finish(reqs ...*frontend.Request) {
	for _, r := range reqs {
		if v.fail != nil {
			r.Err = v.fail(r)
		}
		if r.Err == nil {
			v.execute(r)
		}
		r.Done(r)
	}
}

func (v *Volume) execute(r *frontend.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stats.Ops[r.Op]++
	if r.FUA {
		v.stats.FUA++
	}
	if r.NoHole {
		v.stats.NoHole++
	}
	from, to := r.Offset, r.Offset+r.Length
	switch r.Op {
	case frontend.OpRead:
		copy(r.Data, v.data[from:to])
	case frontend.OpWrite:
		copy(v.data[from:to], r.Data)
	case frontend.OpTrim, frontend.OpWriteZeroes:
		clear(v.data[from:to])
	case frontend.OpFlush:
		for _, d := range v.dirty {
			copy(v.durable[d[0]:d[1]], v.data[d[0]:d[1]])
		}
		v.dirty = v.dirty[:0]
	}
	switch {
	case r.FUA:
		copy(v.durable[from:to], v.data[from:to])
	case r.Op.Writes():
		v.dirty = append(v.dirty, [2]int64{from, to})
	}
}

func (v *Volume) close() {
	v.mu.Lock()
	v.closed = true
	v.changed.Broadcast()
	if n := len(v.pending); n > 0 {
		v.tb.Errorf("%d requests were never completed", n)
	}
	v.mu.Unlock()
	v.workers.Wait()
}
