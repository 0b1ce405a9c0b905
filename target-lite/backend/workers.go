package backend

import (
	"sync"
	"sync/atomic"
)

const (
	// MaxWorkers is the most requests of one backend that are in blocking system calls at one time.
	MaxWorkers = 16
	// lingering is how many workers of a backend wait for more when there is nothing to do.
	lingering = 4
)

// Threads bounds the busy workers of many backends together, since each blocks an operating system thread. Every
// backend has one worker beside this bound, so that a backing that hangs cannot stop the others.
type Threads struct{ free atomic.Int64 }

// NewThreads returns a bound of n workers.
func NewThreads(n int) *Threads {
	t := &Threads{}
	t.free.Store(int64(n))
	return t
}

func (t *Threads) take() bool {
	if t == nil {
		return true
	}
	for {
		n := t.free.Load()
		if n <= 0 {
			return false
		}
		if t.free.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

func (t *Threads) put() {
	if t != nil {
		t.free.Add(1)
	}
}

// A worker that is busy holds a turn: the backend's own, or one of Threads.
type turn uint8

const (
	noTurn turn = iota
	ownTurn
	sharedTurn
)

// workers run requests that may block, in the order they came.
type workers struct {
	do      func(*Request) error
	threads *Threads

	mu         sync.Mutex
	wake       sync.Cond // L is &mu
	head, tail *Request
	busy       int // turns taken
	own        bool
	idle       int    // workers waiting on wake for a turn
	given      []turn // to workers that have not woken up yet
	closed     bool
	wg         sync.WaitGroup
}

func (w *workers) init(do func(*Request) error, t *Threads) {
	w.do, w.threads, w.wake.L = do, t, &w.mu
	w.given = make([]turn, 0, MaxWorkers)
}

// submit hands r to a worker, which will call r.Done. It reports false, with r.Err set, after close.
func (w *workers) submit(r *Request) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		r.Err = ErrClosed
		return false
	}
	r.next = nil
	if w.tail == nil {
		w.head = r
	} else {
		w.tail.next = r
	}
	w.tail = r
	if t := w.takeTurn(); t == noTurn {
		// A busy worker will come to it.
	} else if w.idle > 0 {
		w.idle--
		w.given = append(w.given, t)
		w.wake.Signal()
	} else {
		w.wg.Add(1)
		go w.run(t)
	}
	return true
}

func (w *workers) takeTurn() turn {
	switch {
	case !w.own:
		w.own = true
		w.busy++
		return ownTurn
	case w.busy < MaxWorkers && w.threads.take():
		w.busy++
		return sharedTurn
	}
	return noTurn
}

func (w *workers) run(t turn) {
	defer w.wg.Done()
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for r := w.head; r != nil; r = w.head {
			if w.head = r.next; w.head == nil {
				w.tail = nil
			}
			r.next = nil
			w.mu.Unlock()
			r.Err = w.do(r)
			r.Done(r)
			w.mu.Lock()
		}
		w.busy--
		if t == ownTurn {
			w.own = false
		} else {
			w.threads.put()
		}
		if w.closed || w.idle >= lingering {
			return
		}
		w.idle++
		w.wake.Wait()
		last := len(w.given) - 1
		if last < 0 {
			return // closed
		}
		t, w.given = w.given[last], w.given[:last]
	}
}

// close refuses further requests and waits until those before are done.
func (w *workers) close() {
	w.mu.Lock()
	w.closed = true
	w.wake.Broadcast()
	w.mu.Unlock()
	w.wg.Wait()
}
