package targetlite

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"
)

const (
	pageSize   = 4096
	maxCells   = 8192 // free buffers kept of one size
	shareParts = 4    // one controller gets at most that part of the memory
)

// pool is all data buffers of a server: page-aligned, of sizes that are powers of two from a page, at most limit bytes
// together. Taking and giving back is lock-free while there are free buffers of the size.
type pool struct {
	limit   int64
	classes []*class

	waiting atomic.Int32  // waiters in the list
	full    atomic.Bool   // the memory is all in use and somebody waits for it: newcomers queue up
	kicks   atomic.Uint32 // buffers given back that drain has not looked at

	mu         sync.Mutex
	total      int64 // bytes of all buffers, in use or free
	head, tail *waiter
}

type class struct {
	size int
	free ring
}

// share is how much of the pool one controller uses.
type share struct{ used atomic.Int64 }

// waiter is a command that waits for a buffer.
type waiter struct {
	n, size int // what it wants, and the size of that class
	share   *share
	task    *task
	granted func(buf []byte) // called once, on a goroutine of the pool's
	next    *waiter
}

// newPool returns a pool of limit bytes for buffers of at most largest bytes.
func newPool(limit int64, largest int) *pool {
	p := &pool{limit: limit}
	for size := pageSize; ; size *= 2 {
		cells := min(max(limit/int64(size), 2), maxCells)
		c := &class{size: size}
		c.free.init(1 << bits.Len64(uint64(cells-1)))
		p.classes = append(p.classes, c)
		if size >= largest {
			return p
		}
	}
}

func (p *pool) class(n int) *class {
	i := bits.Len(uint(max(n, 1)-1) / pageSize)
	return p.classes[i]
}

// get returns a buffer of n bytes, or nil: then the caller waits.
func (p *pool) get(n int, s *share) []byte {
	c := p.class(n)
	if p.full.Load() {
		return nil
	}
	return p.take(c, n, s)
}

func (p *pool) take(c *class, n int, s *share) []byte {
	if s.used.Add(int64(c.size)) > p.limit/shareParts {
		s.used.Add(-int64(c.size))
		return nil
	}
	if buf := c.free.pop(); buf != nil {
		return buf[:n]
	}
	p.mu.Lock()
	ok := p.makeRoom(c, p.limit)
	p.mu.Unlock()
	if !ok {
		s.used.Add(-int64(c.size))
		return nil
	}
	return newBuffer(c.size)[:n]
}

// must is get for data that is already on its way: it may take the memory to twice the limit. nil: not even that.
func (p *pool) must(n int, s *share) []byte {
	if buf := p.get(n, s); buf != nil {
		return buf
	}
	c := p.class(n)
	s.used.Add(int64(c.size))
	if buf := c.free.pop(); buf != nil {
		return buf[:n]
	}
	p.mu.Lock()
	ok := p.makeRoom(c, 2*p.limit)
	p.mu.Unlock()
	if !ok {
		s.used.Add(-int64(c.size))
		return nil
	}
	return newBuffer(c.size)[:n]
}

// makeRoom counts one more buffer of c in, dropping free ones of other sizes if need be. The mutex is held.
func (p *pool) makeRoom(c *class, limit int64) bool {
	for i := len(p.classes) - 1; i >= 0 && p.total+int64(c.size) > limit; {
		if p.classes[i].free.pop() == nil {
			i--
			continue
		}
		p.total -= int64(p.classes[i].size)
	}
	if p.total+int64(c.size) > limit {
		return false
	}
	p.total += int64(c.size)
	return true
}

func newBuffer(size int) []byte {
	b := make([]byte, size)
	if off := uintptr(unsafe.Pointer(unsafe.SliceData(b))) % pageSize; off != 0 {
		b = make([]byte, size+pageSize)
		off = -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % pageSize
		b = b[off : off+uintptr(size) : off+uintptr(size)]
	}
	return b
}

// put gives a buffer back.
func (p *pool) put(buf []byte, s *share) {
	buf = buf[:cap(buf)]
	c := p.class(len(buf))
	s.used.Add(-int64(c.size))
	if !c.free.push(buf) {
		p.mu.Lock()
		p.total -= int64(c.size)
		p.mu.Unlock()
	}
	if p.waiting.Load() > 0 {
		p.kick()
	}
}

// wait queues w for a buffer of n bytes; w.granted will be called, unless cancel comes first. It may be called before
// wait returns.
func (p *pool) wait(w *waiter, n int, s *share) {
	p.mu.Lock()
	w.n, w.size, w.share, w.next = n, p.class(n).size, s, nil
	if p.tail == nil {
		p.head = w
	} else {
		p.tail.next = w
	}
	p.tail = w
	p.waiting.Add(1)
	p.mu.Unlock()
	p.kick() // for what was given back since get failed
}

// cancel takes out the waiters that match and returns them. The others get their buffers.
func (p *pool) cancel(match func(*waiter) bool) *waiter {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unlink(match)
}

// unlink removes the waiters that match. The mutex is held.
func (p *pool) unlink(match func(*waiter) bool) (list *waiter) {
	var prev *waiter
	end := &list
	for w := p.head; w != nil; {
		next := w.next
		if match(w) {
			if prev == nil {
				p.head = next
			} else {
				prev.next = next
			}
			if next == nil {
				p.tail = prev
			}
			w.next = nil
			p.waiting.Add(-1)
			*end, end = w, &w.next
		} else {
			prev = w
		}
		w = next
	}
	return list
}

func (p *pool) kick() {
	if p.kicks.Add(1) == 1 {
		go p.drain()
	}
}

// drain hands what is free to those who wait, in their order; who has used up their share is passed over.
func (p *pool) drain() {
	for {
		n := p.kicks.Load()
		full := false
		p.mu.Lock()
		type grant struct {
			w   *waiter
			buf []byte
		}
		var grants []grant
		p.unlink(func(w *waiter) bool {
			if full || w.share.used.Load()+int64(w.size) > p.limit/shareParts {
				return false
			}
			c := p.class(w.size)
			buf := c.free.pop()
			if buf == nil {
				if full = !p.makeRoom(c, p.limit); full {
					return false
				}
				buf = newBuffer(c.size)
			}
			w.share.used.Add(int64(c.size))
			grants = append(grants, grant{w, buf[:w.n]})
			return true
		})
		p.full.Store(full)
		p.mu.Unlock()
		for _, g := range grants {
			g.w.granted(g.buf)
		}
		if p.kicks.CompareAndSwap(n, 0) {
			return
		}
	}
}

// ring is a bounded queue for many producers and consumers without locks (D. Vyukov's): each cell's sequence number
// says whose turn it is.
type ring struct {
	cells []cell
	_     [64]byte
	head  atomic.Uint64
	_     [64]byte
	tail  atomic.Uint64
}

type cell struct {
	seq atomic.Uint64
	buf []byte
}

func (r *ring) init(n int) {
	r.cells = make([]cell, n) // a power of two
	for i := range r.cells {
		r.cells[i].seq.Store(uint64(i))
	}
}

func (r *ring) push(buf []byte) bool {
	for {
		pos := r.tail.Load()
		c := &r.cells[pos&uint64(len(r.cells)-1)]
		switch d := int64(c.seq.Load() - pos); {
		case d == 0:
			if r.tail.CompareAndSwap(pos, pos+1) {
				c.buf = buf
				c.seq.Store(pos + 1)
				return true
			}
		case d < 0:
			return false
		}
	}
}

func (r *ring) pop() []byte {
	for {
		pos := r.head.Load()
		c := &r.cells[pos&uint64(len(r.cells)-1)]
		switch d := int64(c.seq.Load() - (pos + 1)); {
		case d == 0:
			if r.head.CompareAndSwap(pos, pos+1) {
				buf := c.buf
				c.buf = nil
				c.seq.Store(pos + uint64(len(r.cells)))
				return buf
			}
		case d < 0:
			return nil
		}
	}
}
