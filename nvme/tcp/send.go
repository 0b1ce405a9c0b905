package tcp

import (
	"encoding/binary"
	"hash/crc32"
	"sync"

	"hawser.dev/hawser/nvme/wire"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	digestLen = 4
	maxHeader = 144 // any header with digest and padding: a capsule's 76 bytes up to the next multiple of 72
)

// pdu is one PDU that leaves: header with digest and padding, data, data
// digest. It lives in the slot of its command and is linked, not copied.
type pdu struct {
	hdr    [maxHeader]byte
	hlen   int // bytes of hdr used
	data   []byte
	ddgst  [digestLen]byte
	dlen   int // bytes of ddgst used
	off    int // bytes that have left
	queued bool
	next   *pdu
	owner  any // *hostSlot or *Cmd; nil for ICReq, ICResp, TermReq
	kind   wire.PDUType
}

func (p *pdu) size() int { return p.hlen + len(p.data) + p.dlen }

// format describes what a connection has negotiated for one direction.
type format struct {
	hdgst, ddgst bool
	align        int // PDO is a multiple of it, in bytes: 4..128
}

// begin writes the common header of a PDU whose header proper is hlen bytes;
// the caller appends bytes 8..hlen and calls finish.
func (f format) begin(p *pdu, t wire.PDUType, flags uint8, hlen int, data []byte) []byte {
	end, pdo := hlen, 0
	if f.hdgst {
		end += digestLen
		flags |= wire.FlagHDGST
	}
	if len(data) > 0 {
		end = (end + f.align - 1) / f.align * f.align
		pdo = end
	}
	p.kind, p.data, p.dlen, p.off, p.hlen = t, data, 0, 0, end
	if len(data) > 0 && f.ddgst {
		flags |= wire.FlagDDGST
		p.dlen = digestLen
	}
	h := wire.Header{Type: t, Flags: flags, HLen: uint8(hlen), PDO: uint8(pdo), PLen: uint32(p.size())}
	return h.AppendTo(p.hdr[:0])
}

func (f format) finish(p *pdu, hlen int) {
	clear(p.hdr[hlen:p.hlen])
	if f.hdgst {
		binary.LittleEndian.PutUint32(p.hdr[hlen:], crc32.Checksum(p.hdr[:hlen], castagnoli))
	}
	if p.dlen > 0 {
		binary.LittleEndian.PutUint32(p.ddgst[:], crc32.Checksum(p.data, castagnoli))
	}
}

// sender is the outgoing half: a list of PDUs that whoever is there writes,
// many in one system call. One goroutine at a time is the flusher.
type sender struct {
	mu         sync.Mutex // guards the list and the state below; held for a batch, never during I/O
	idle       sync.Cond  // the flusher has left
	head, tail *pdu
	flushing   bool
	closing    bool // nothing is linked any more: the last PDU is
	dead       bool // nothing is linked or written any more
	failed     bool // the stream takes nothing any more
	stalled    chan struct{}
	poll       bool // a spinning loop retries by itself; no goroutine waits for room

	s   Stream
	iov [maxIov][]byte

	// sent is told, with mu held, of every PDU that has left.
	sent func(*pdu)
	// broken is told, without mu, that writing failed.
	broken func(error)
	// drained is told, without mu, that the goroutine that waited for room is done.
	drained func()
}

func (t *sender) init(s Stream) {
	t.s = s
	t.idle.L = &t.mu
}

// link appends p. mu is held.
func (t *sender) link(p *pdu) {
	if t.dead || t.closing {
		return
	}
	p.queued, p.next = true, nil
	if t.tail == nil {
		t.head = p
	} else {
		t.tail.next = p
	}
	t.tail = p
}

// flush writes what is linked until the list is empty or the stream takes no
// more; in that case a goroutine of its own waits for room. With mu held;
// it gives mu up while it writes. If another goroutine is the flusher, that
// one takes what was linked.
func (t *sender) flush() {
	if t.flushing || t.dead || t.head == nil {
		return
	}
	t.flushing = true
	if err := t.write(false); err == ErrAgain && !t.poll {
		if t.stalled == nil {
			t.stalled = make(chan struct{}, 1)
			go t.drain()
		}
		t.stalled <- struct{}{} // it is the flusher now
		return
	} else if err != nil && err != ErrAgain {
		t.mu.Unlock()
		t.broken(err)
		t.mu.Lock()
	}
	t.flushing = false
	t.idle.Broadcast()
}

// drain is the goroutine of a connection that was stalled once.
func (t *sender) drain() {
	for range t.stalled {
		t.mu.Lock()
		err := t.write(true)
		t.flushing = false
		t.idle.Broadcast()
		t.mu.Unlock()
		if err != nil {
			t.broken(err)
		}
		t.drained()
	}
}

// write is the flusher's loop. mu is held at entry and exit.
func (t *sender) write(wait bool) error {
	for t.head != nil && !t.dead {
		n := 0
		for p := t.head; p != nil && n+3 <= maxIov; p = p.next {
			n = p.gather(&t.iov, n)
		}
		t.mu.Unlock()
		done, err := t.s.Writev(t.iov[:n], wait)
		clear(t.iov[:n])
		t.mu.Lock()
		for done > 0 {
			p := t.head
			k := min(p.size()-p.off, done)
			p.off += k
			done -= k
			if p.off < p.size() {
				break
			}
			if t.head = p.next; t.head == nil {
				t.tail = nil
			}
			p.queued, p.next, p.data = false, nil, nil
			t.sent(p)
		}
		if err != nil {
			t.failed = err != ErrAgain
			return err
		}
	}
	return nil
}

// gather appends what is left of p to the vectors.
func (p *pdu) gather(iov *[maxIov][]byte, n int) int {
	off := p.off
	if off < p.hlen {
		iov[n] = p.hdr[off:p.hlen]
		n++
		off = 0
	} else {
		off -= p.hlen
	}
	if off < len(p.data) {
		iov[n] = p.data[off:]
		n++
		off = 0
	} else {
		off -= len(p.data)
	}
	if off < p.dlen {
		iov[n] = p.ddgst[off:p.dlen]
		n++
	}
	return n
}

// stop forgets every PDU and waits until nobody writes; then no memory of a
// command is read any more. The stream must be closed, or able to make
// progress.
func (t *sender) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dead = true
	for t.flushing {
		t.idle.Wait()
	}
	t.head, t.tail = nil, nil
	if t.stalled != nil {
		close(t.stalled)
		t.stalled = nil
	}
}

// last makes p the last PDU of the connection: those of which nothing has
// left are forgotten, unless another goroutine is writing them right now.
func (t *sender) last(p *pdu) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.flushing {
		if t.head != nil && t.head.off > 0 {
			t.head.next, t.tail = nil, t.head
		} else {
			t.head, t.tail = nil, nil
		}
	}
	t.link(p)
	t.closing = true
	t.flush()
}

// wait returns when everything linked has left, or writing has failed.
func (t *sender) wait() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.flushing {
		t.idle.Wait()
	}
}
