package tcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
)

// MaxDepth is the most commands that a queue may have open: what CID and TTAG leave room for.
const MaxDepth = 1 << slotBits

// A CID or TTAG is the number of a slot below a generation, so that an answer
// to a command that is over is told from one to its successor.
const slotBits = 11

// handshakeTimeout is how long a controller may take to answer ICReq, as in Linux.
const handshakeTimeout = 10 * time.Second

// timeoutTicks is the resolution of command timeouts: an eighth of them.
const timeoutTicks = 8

// lingerTime bounds how long an ended connection waits for the peer to read
// a TermReq and close.
const lingerTime = time.Second

// Request is one command on its way. The caller owns it and everything it
// refers to again when Done is called, and not before.
type Request struct {
	// Cmd is the command; the queue sets CID, PSDT and SGL.
	Cmd wire.Command
	// Data is what is sent or where the answer's data goes, by the data
	// direction of the opcode; its length is the length of the transfer.
	Data []byte
	// Done is called once, from the queue's loop or a Submit in progress, without locks. It may Submit; it must not block.
	Done func(*Request)
	// NoTimeout is for commands that may stay open for ever (Asynchronous Event Request).
	NoTimeout bool

	// Completion is the answer; its Status says whether the command succeeded.
	Completion wire.Completion
	// Err is set when the command got no answer, or one that can't be trusted.
	Err error
	// User is the caller's.
	User any

	next *Request
}

// HostConfig is how a host opens a queue pair. The zero value of a field is its default.
type HostConfig struct {
	HeaderDigest, DataDigest bool
	HPDA                     uint8 // alignment of data that the controller sends: (HPDA+1)*4 bytes
	MaxR2T                   int   // R2Ts that the controller may have open for one command; 1
	Depth                    int   // commands open at once; 128, at most MaxDepth
	Admin                    bool  // QID 0: 8 KiB of data may go in the capsule
	// Timeout is how long a command may take; 0 is for ever.
	Timeout time.Duration
	// Expired is called from a timer for a command that has taken Timeout. It
	// may abort it; if it takes Timeout once more the queue is closed. Nil closes at once.
	Expired func(cid uint16)
	// Spin is how long the loop polls before it waits; below 0 it never waits and no other goroutine writes.
	Spin   time.Duration
	Logger *slog.Logger
}

// HostQueue is the host's side of one queue pair.
type HostQueue struct {
	cfg HostConfig
	s   Stream
	rx  receiver
	tx  sender // its mutex guards all that follows
	out format
	maxH2C,
	inCapsule int

	damage damage // the loop's

	slots   []hostSlot
	free    []uint16
	answers uint64
	backlog reqList // accepted, waiting for a slot
	done    reqList // over, Done not called yet
	inLoop  bool    // the loop will flush and call Done when the batch is over
	ticking bool
	tick    uint32
	timer   *time.Timer

	err   error // why the queue has ended; set once
	ended chan struct{}
	acked bool // handshake over
	cur   *hostSlot
	resp  wire.ICResp
}

type hostSlot struct {
	req  *Request
	cid  uint16
	tick uint32

	// receive
	got    uint32
	badSum bool
	last   bool
	// send
	tx      pdu
	granted uint32 // data covered by R2Ts
	sent    uint32 // data handed to tx
	r2t     []r2t  // not begun; r2t[0] is the one being sent
	nR2T    int
	// the answer came; it waits until tx no longer reads the data
	complete bool
	expired  bool
}

type r2t struct {
	ttag     uint16
	off, end uint32
}

type reqList struct{ head, tail *Request }

func (l *reqList) push(r *Request) {
	r.next = nil
	if l.tail == nil {
		l.head = r
	} else {
		l.tail.next = r
	}
	l.tail = r
}

func (l *reqList) pop() *Request {
	r := l.head
	if r != nil {
		if l.head = r.next; l.head == nil {
			l.tail = nil
		}
		r.next = nil
	}
	return r
}

// OpenHost makes the ICReq/ICResp handshake on s and owns s from now on, also when it fails.
// The queue does nothing until Run or Poll.
func OpenHost(ctx context.Context, s Stream, cfg HostConfig) (*HostQueue, error) {
	if cfg.Depth == 0 {
		cfg.Depth = 128
	}
	if cfg.MaxR2T == 0 {
		cfg.MaxR2T = 1
	}
	if cfg.Depth < 1 || cfg.Depth > MaxDepth || cfg.MaxR2T < 1 || cfg.MaxR2T > MaxDepth || cfg.HPDA > wire.MaxPDA {
		s.Close()
		return nil, fmt.Errorf("nvme/tcp: depth %d, MAXR2T %d or HPDA %d is out of range", cfg.Depth, cfg.MaxR2T, cfg.HPDA)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	q := &HostQueue{cfg: cfg, s: s, ended: make(chan struct{})}
	q.tx.init(s)
	q.tx.poll = cfg.Spin < 0
	q.tx.sent, q.tx.broken = q.sent, func(err error) { q.Close(opError("send", err)) }
	q.tx.drained = func() { q.tx.mu.Lock(); q.settle() }
	q.out.align = 4
	q.rx.init(s, q)
	q.rx.align = int(cfg.HPDA+1) * 4
	if cfg.Admin {
		q.inCapsule = wire.MaxInCapsule
	}
	if err := q.handshake(ctx); err != nil {
		s.Close()
		return nil, err
	}
	q.slots = make([]hostSlot, cfg.Depth)
	q.free = make([]uint16, cfg.Depth)
	for i := range q.slots {
		q.slots[i].r2t = make([]r2t, cfg.MaxR2T+1)
		q.slots[i].tx.owner = &q.slots[i]
		q.slots[i].cid = uint16(i)
		q.free[i] = uint16(cfg.Depth - 1 - i)
	}
	return q, nil
}

// handshake is NVMe/TCP section 3.3: ICReq out, ICResp in, by the deadline of ctx.
func (q *HostQueue) handshake(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, handshakeTimeout, ErrTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { q.s.Abort() })
	defer stop()
	var digest uint8
	if q.cfg.HeaderDigest {
		digest |= wire.DigestHeader
	}
	if q.cfg.DataDigest {
		digest |= wire.DigestData
	}
	var p pdu
	b := q.out.begin(&p, wire.TypeICReq, 0, wire.HLenICReq, nil)
	(&wire.ICReq{HPDA: q.cfg.HPDA, Digest: digest, MaxR2T: uint32(q.cfg.MaxR2T - 1)}).AppendTo(b)
	out := [][]byte{p.hdr[:p.hlen]}
	err := error(nil)
	for err == nil && len(out[0]) > 0 {
		var n int
		n, err = q.s.Writev(out, true)
		out[0] = out[0][n:]
	}
	for err == nil && !q.acked {
		if _, err = q.rx.fill(true); err == nil {
			if e := q.rx.parse(); e != nil {
				q.terminate(e)
				err = e
			}
		}
	}
	if !stop() && ctx.Err() != nil {
		return &Error{Op: "handshake", Err: context.Cause(ctx)}
	}
	if errors.Is(err, io.EOF) {
		err = ErrPeerClosed
	}
	if err != nil {
		return opError("handshake", err)
	}
	q.out = format{hdgst: q.cfg.HeaderDigest, ddgst: q.cfg.DataDigest, align: int(q.resp.CPDA+1) * 4}
	q.rx.hdgst, q.rx.ddgst = q.cfg.HeaderDigest, q.cfg.DataDigest
	q.maxH2C = int(q.resp.MaxH2CData)
	q.rx.grow(hostReceive)
	return nil
}

// SetInCapsule sets how much data may go in the capsule, in bytes: what
// IOCCSZ of Identify Controller leaves (IOCCSZ*16 - 64). Before the first Submit.
func (q *HostQueue) SetInCapsule(n int) { q.inCapsule = max(n, 0) }

// Depth returns the commands that may be open at once.
func (q *HostQueue) Depth() int { return len(q.slots) }

func (q *HostQueue) LocalAddr() net.Addr  { return q.s.LocalAddr() }
func (q *HostQueue) RemoteAddr() net.Addr { return q.s.RemoteAddr() }

// Done is closed when the queue has ended and every Request is back.
func (q *HostQueue) Done() <-chan struct{} { return q.ended }

// Err returns why the queue has ended or is ending, nil while it lives.
func (q *HostQueue) Err() error {
	q.tx.mu.Lock()
	defer q.tx.mu.Unlock()
	return q.err
}

// Submit takes requests in order; those beyond the depth wait. Everything
// submitted at once, or from Done functions of one batch, leaves in one
// system call as far as the socket takes it. On an ended queue Done is
// called with Err before Submit returns.
func (q *HostQueue) Submit(reqs ...*Request) {
	q.tx.mu.Lock()
	for _, r := range reqs {
		q.accept(r)
	}
	q.settle()
}

func (q *HostQueue) accept(r *Request) {
	r.Completion, r.Err = wire.Completion{}, nil
	switch {
	case q.err != nil:
		r.Err = q.err
		q.done.push(r)
	case len(q.free) == 0 || q.backlog.head != nil:
		q.backlog.push(r)
	default:
		q.start(r)
	}
}

// settle ends a batch that was not the loop's: it writes, gives up the mutex and calls Done.
func (q *HostQueue) settle() {
	if q.inLoop {
		q.tx.mu.Unlock()
		return
	}
	q.tx.flush()
	for q.done.head != nil && !q.inLoop {
		list := q.done
		q.done = reqList{}
		q.tx.mu.Unlock()
		list.call()
		q.tx.mu.Lock()
	}
	q.tx.mu.Unlock()
}

func (l *reqList) call() {
	for r := l.pop(); r != nil; r = l.pop() {
		r.Done(r)
	}
}

// start gives r a slot and links its capsule. The mutex is held.
func (q *HostQueue) start(r *Request) {
	i := q.free[len(q.free)-1]
	q.free = q.free[:len(q.free)-1]
	s := &q.slots[i]
	s.req, s.tick = r, q.tick
	s.cid += MaxDepth // the next generation
	s.got, s.granted, s.sent, s.nR2T = 0, 0, 0, 0
	s.badSum, s.last, s.complete, s.expired = false, false, false, false
	c := &r.Cmd
	c.CID, c.Flags = s.cid, wire.CmdPSDT|c.Flags&3
	c.SGL = wire.SGL{Type: wire.SGLTransport, Length: uint32(len(r.Data))}
	var data []byte
	if n := len(r.Data); n > 0 && c.ToController() && (n <= q.inCapsule || c.Fabrics() && n <= wire.MaxInCapsule) {
		c.SGL.Type = wire.SGLInCapsule
		data = r.Data
		s.granted, s.sent = uint32(n), uint32(n)
	}
	b := q.out.begin(&s.tx, wire.TypeCapsuleCmd, 0, wire.HLenCmd, data)
	c.AppendTo(b)
	q.out.finish(&s.tx, wire.HLenCmd)
	q.tx.link(&s.tx)
	if q.cfg.Timeout > 0 && !q.ticking {
		q.ticking = true
		if q.timer == nil {
			q.timer = time.AfterFunc(q.cfg.Timeout/timeoutTicks, q.ticked)
		} else {
			q.timer.Reset(q.cfg.Timeout / timeoutTicks)
		}
	}
}

// ticked counts time while commands are open, so that submitting needs no clock.
func (q *HostQueue) ticked() {
	q.tx.mu.Lock()
	q.tick++
	var cids [16]uint16
	n, dead, watched := 0, false, false
	for i := range q.slots {
		s := &q.slots[i]
		if s.req == nil || s.req.NoTimeout {
			continue
		}
		watched = true
		switch age := q.tick - s.tick; {
		case age > 2*timeoutTicks || age > timeoutTicks && q.cfg.Expired == nil:
			dead = true
		case age > timeoutTicks && !s.expired && n < len(cids):
			s.expired = true
			cids[n] = s.cid
			n++
		}
	}
	q.ticking = watched && q.err == nil
	if q.ticking {
		q.timer.Reset(q.cfg.Timeout / timeoutTicks)
	}
	q.tx.mu.Unlock()
	if dead {
		q.Close(&Error{Op: "timeout", Err: ErrTimeout})
		return
	}
	for _, cid := range cids[:n] {
		q.cfg.Expired(cid)
	}
}

// sent is the sender's report that a PDU has left. The mutex is held.
func (q *HostQueue) sent(p *pdu) {
	s, ok := p.owner.(*hostSlot)
	if !ok {
		return
	}
	if s.complete {
		q.finish(s)
		return
	}
	if p.kind == wire.TypeH2CData && s.sent == s.r2t[0].end {
		copy(s.r2t, s.r2t[1:s.nR2T])
		s.nR2T--
	}
	q.sendData(s)
}

// sendData links the next H2CData of a slot, if an R2T wants one. The mutex is held.
func (q *HostQueue) sendData(s *hostSlot) {
	if s.nR2T == 0 || s.tx.queued {
		return
	}
	w := &s.r2t[0]
	n := min(int(w.end-s.sent), q.maxH2C)
	flags := uint8(0)
	if s.sent+uint32(n) == w.end {
		flags = wire.FlagLast
	}
	b := q.out.begin(&s.tx, wire.TypeH2CData, flags, wire.HLenData, s.req.Data[s.sent:s.sent+uint32(n)])
	(&wire.DataPDU{CCCID: s.cid, TTAG: w.ttag, Offset: s.sent, Length: uint32(n)}).AppendTo(b)
	q.out.finish(&s.tx, wire.HLenData)
	s.sent += uint32(n)
	q.tx.link(&s.tx)
}

// finish frees a slot and gives its Request back. The mutex is held.
func (q *HostQueue) finish(s *hostSlot) {
	r := s.req
	s.req = nil
	q.answers++
	q.free = append(q.free, uint16(s.cid%MaxDepth))
	q.done.push(r)
	if next := q.backlog.head; next != nil && q.err == nil {
		q.start(q.backlog.pop())
	}
}

// Run is the queue's loop. It returns why the queue ended, when every Request is back.
func (q *HostQueue) Run() error {
	var idle time.Time
	for {
		wait := q.cfg.Spin == 0
		n, err := q.poll(wait)
		if err != nil {
			return err
		}
		if q.cfg.Spin <= 0 {
			continue
		}
		if n > 0 {
			idle = time.Time{}
		} else if now := time.Now(); idle.IsZero() {
			idle = now
		} else if now.Sub(idle) > q.cfg.Spin {
			idle = time.Time{}
			if _, err := q.poll(true); err != nil {
				return err
			}
		}
	}
}

// Poll makes one round without waiting: writes, reads once, calls Done. It is
// for callers with a loop of their own, which then don't call Run. It returns
// the bytes read, or why the queue has ended.
func (q *HostQueue) Poll() (int, error) { return q.poll(false) }

func (q *HostQueue) poll(wait bool) (int, error) {
	if q.tx.poll {
		q.tx.mu.Lock()
		q.settle()
	}
	n, err := q.rx.fill(wait)
	if err == ErrAgain {
		return 0, nil
	}
	if err != nil {
		return 0, q.end(readError(err))
	}
	q.tx.mu.Lock()
	q.inLoop = true
	e := q.rx.parse()
	list := q.done
	q.done = reqList{}
	q.tx.mu.Unlock()
	q.damage.tell(q.cfg.Logger, q.s, false)
	list.call()
	q.tx.mu.Lock()
	q.inLoop = false
	q.settle()
	if e != nil {
		return n, q.end(e)
	}
	return n, nil
}

// Close ends the queue for the given reason (ErrClosed if nil): what was
// not sent yet is thrown away, and Run returns open requests with Err.
func (q *HostQueue) Close(reason error) {
	if reason == nil {
		reason = &Error{Op: "close", Err: ErrClosed}
	}
	q.tx.mu.Lock()
	if q.err == nil {
		q.err = reason
	}
	q.tx.mu.Unlock()
	q.s.Abort()
}

// terminate tells the peer which rule it broke and waits, bounded, until it has read that.
func (q *HostQueue) terminate(e *Error) {
	endConnection(&q.tx, q.s, wire.TypeH2CTermReq, e)
}

// endConnection sends the TermReq for e where one is due.
func endConnection(tx *sender, s Stream, t wire.PDUType, e *Error) {
	if e.FES == 0 || e.Remote {
		return
	}
	late := time.AfterFunc(lingerTime, func() { s.Abort() })
	defer late.Stop()
	p := new(pdu)
	termReq(p, t, e)
	tx.last(p)
	for tx.poll {
		tx.mu.Lock()
		left := tx.head != nil && !tx.failed
		tx.flush()
		tx.mu.Unlock()
		if !left {
			break
		}
	}
	tx.wait()
	if s.CloseWrite() != nil {
		return
	}
	// Closing with bytes unread would reset the connection and could take the TermReq with it.
	sink := [][]byte{make([]byte, 4096)}
	for read := 0; read < 16<<20; {
		n, err := s.Readv(sink, true)
		if err != nil {
			return
		}
		read += n
	}
}

// Shutdown ends the queue in order once nothing is open: the peer reads EOF.
func (q *HostQueue) Shutdown() {
	q.tx.mu.Lock()
	if q.err == nil {
		q.err = &Error{Op: "close", Err: ErrClosed}
	}
	q.tx.mu.Unlock()
	q.s.Close()
}

// Answers returns how many commands have been answered so far.
func (q *HostQueue) Answers() uint64 {
	q.tx.mu.Lock()
	defer q.tx.mu.Unlock()
	return q.answers
}

// end is the last act of the loop.
func (q *HostQueue) end(why error) error {
	q.tx.mu.Lock()
	if q.err == nil {
		q.err = why
	}
	why = q.err
	q.tx.mu.Unlock()
	var e *Error
	if errors.As(why, &e) {
		q.terminate(e)
	}
	q.damage.tell(q.cfg.Logger, q.s, true)
	q.s.Close()
	q.tx.stop()
	q.tx.mu.Lock()
	select {
	case <-q.ended:
		q.tx.mu.Unlock()
		return why
	default:
	}
	if q.timer != nil {
		q.timer.Stop()
	}
	for i := range q.slots {
		s := &q.slots[i]
		if s.req != nil {
			if !s.complete {
				s.req.Err = why
			}
			q.finish(s)
		}
	}
	for r := q.backlog.pop(); r != nil; r = q.backlog.pop() {
		r.Err = why
		q.done.push(r)
	}
	q.inLoop = false
	q.settle()
	close(q.ended)
	return why
}

// The role of the receiver. parse runs with the mutex held, once the handshake is over.

func (q *HostQueue) check(h wire.Header) *Error {
	if !q.acked && h.Type != wire.TypeICResp && h.Type != wire.TypeC2HTermReq {
		return outOfOrder("%s before ICResp", h.Type)
	}
	switch h.Type {
	case wire.TypeICResp:
		if e := checkIC(h, q.acked); e != nil {
			return e
		}
	case wire.TypeC2HTermReq:
		return checkTerm(h)
	case wire.TypeCapsuleResp, wire.TypeC2HData, wire.TypeR2T:
	default:
		return invalid(0, "%s from a controller", h.Type)
	}
	return checkHLen(h)
}

// checkIC checks ICReq or ICResp, which have one length and come once.
func checkIC(h wire.Header, acked bool) *Error {
	if acked {
		return outOfOrder("second %s", h.Type)
	}
	if h.PLen != wire.HLenICReq {
		return invalid(4, "PLEN %d of %s, want %d", h.PLen, h.Type, wire.HLenICReq)
	}
	return nil
}

func checkHLen(h wire.Header) *Error {
	if want := h.Type.HLen(); h.HLen != want {
		return invalid(2, "HLEN %d of %s, want %d", h.HLen, h.Type, want)
	}
	return nil
}

func checkTerm(h wire.Header) *Error {
	if e := checkHLen(h); e != nil {
		return e
	}
	if h.PLen <= wire.HLenTermReq || h.PLen > wire.HLenTermReq+wire.MaxTermReqData {
		return invalid(4, "PLEN %d of %s, want %d to %d", h.PLen, h.Type, wire.HLenTermReq+1, wire.HLenTermReq+wire.MaxTermReqData)
	}
	return nil
}

func (q *HostQueue) header(h wire.Header, b []byte) ([]byte, int, *Error) {
	body := b[wire.HeaderSize:]
	switch h.Type {
	case wire.TypeICResp:
		return nil, 0, q.icresp(body)
	case wire.TypeC2HTermReq:
		return nil, 0, parseTerm(h, b)
	case wire.TypeCapsuleResp:
		return nil, 0, q.capsule(body)
	case wire.TypeR2T:
		return nil, 0, q.readyToTransfer(body)
	}
	return q.c2hData(h, body)
}

func (q *HostQueue) icresp(b []byte) *Error {
	if err := q.resp.Parse(b); err != nil {
		return invalid(8, "%v", err)
	}
	r := &q.resp
	switch {
	case r.PFV != 0:
		return invalid(8, "PFV %d of ICResp, want 0", r.PFV)
	case r.CPDA > wire.MaxPDA:
		return invalid(10, "CPDA %d of ICResp, want at most %d", r.CPDA, wire.MaxPDA)
	case r.Digest&wire.DigestHeader != 0 != q.cfg.HeaderDigest || r.Digest&wire.DigestData != 0 != q.cfg.DataDigest:
		return invalid(11, "digests %#x of ICResp are not the ones asked for (header %v, data %v)", r.Digest, q.cfg.HeaderDigest, q.cfg.DataDigest)
	case r.MaxH2CData < wire.MinMaxH2CData || r.MaxH2CData%4 != 0:
		return invalid(12, "MAXH2CDATA %d of ICResp, want a multiple of 4 from %d", r.MaxH2CData, wire.MinMaxH2CData)
	}
	q.acked = true
	return nil
}

// lookup finds the open command of a CID.
func (q *HostQueue) lookup(cid uint16) *hostSlot {
	if i := int(cid % MaxDepth); i < len(q.slots) {
		if s := &q.slots[i]; s.req != nil && s.cid == cid && !s.complete {
			return s
		}
	}
	return nil
}

func (q *HostQueue) capsule(b []byte) *Error {
	var c wire.Completion
	if err := c.Parse(b); err != nil {
		return invalid(2, "%v", err)
	}
	s := q.lookup(c.CID)
	if s == nil {
		return outOfOrder("CapsuleResp for command %#04x, which is not open", c.CID)
	}
	return q.completed(s, c)
}

func (q *HostQueue) completed(s *hostSlot, c wire.Completion) *Error {
	r := s.req
	if c.Status.OK() {
		if n := uint32(len(r.Data)); r.Cmd.FromController() && s.got != n {
			return outOfOrder("command %#04x succeeded with %d of %d bytes", s.cid, s.got, n)
		} else if r.Cmd.ToController() && s.sent != n {
			return outOfOrder("command %#04x succeeded before its data was sent (%d of %d bytes)", s.cid, s.sent, n)
		}
	}
	if s.badSum {
		q.damage.count++
		if c.Status.OK() {
			c.Status = nvme.StatusTransientTransportError
			r.Err = ErrDataDigest
		}
	}
	r.Completion = c
	s.complete = true
	if !s.tx.queued {
		q.finish(s)
	}
	return nil
}

func (q *HostQueue) c2hData(h wire.Header, b []byte) ([]byte, int, *Error) {
	var d wire.DataPDU
	if err := d.Parse(b); err != nil {
		return nil, 0, invalid(2, "%v", err)
	}
	s := q.lookup(d.CCCID)
	if s == nil {
		return nil, 0, outOfOrder("C2HData for command %#04x, which is not open", d.CCCID)
	}
	n := q.rx.dataLen(h)
	end := uint64(d.Offset) + uint64(d.Length)
	switch {
	case !s.req.Cmd.FromController():
		return nil, 0, outOfOrder("C2HData for command %#04x, which reads nothing", d.CCCID)
	case uint64(d.Length) != uint64(n) || n == 0:
		return nil, 0, invalid(16, "DATAL %d in a PDU with %d bytes of data", d.Length, n)
	case d.Offset != s.got || end > uint64(len(s.req.Data)):
		return nil, 0, &Error{Op: "receive", FES: wire.FESDataOutOfRange, Err: fmt.Errorf("C2HData of bytes %d to %d, want from %d within %d", d.Offset, end, s.got, len(s.req.Data))}
	case s.last:
		return nil, 0, outOfOrder("C2HData after the last one of command %#04x", d.CCCID)
	case h.Flags&wire.FlagSuccess != 0 && h.Flags&wire.FlagLast == 0:
		return nil, 0, invalid(1, "SUCCESS without LAST")
	}
	s.last = h.Flags&wire.FlagLast != 0
	q.cur = s
	return s.req.Data[d.Offset:end], n, nil
}

func (q *HostQueue) payload(ok bool) *Error {
	s := q.cur
	q.cur = nil
	if s == nil {
		return nil
	}
	s.got += uint32(q.rx.last)
	s.badSum = s.badSum || !ok
	if q.rx.hdr.Flags&wire.FlagSuccess != 0 {
		return q.completed(s, wire.Completion{CID: s.cid})
	}
	return nil
}

func (q *HostQueue) readyToTransfer(b []byte) *Error {
	var t wire.R2T
	if err := t.Parse(b); err != nil {
		return invalid(2, "%v", err)
	}
	s := q.lookup(t.CCCID)
	if s == nil {
		return outOfOrder("R2T for command %#04x, which is not open", t.CCCID)
	}
	end := uint64(t.Offset) + uint64(t.Length)
	switch {
	case !s.req.Cmd.ToController():
		return outOfOrder("R2T for command %#04x, which has nothing to send", t.CCCID)
	case t.Length == 0 || t.Offset != s.granted || end > uint64(len(s.req.Data)):
		return &Error{Op: "receive", FES: wire.FESDataOutOfRange, Err: fmt.Errorf("R2T for bytes %d to %d, want from %d within %d", t.Offset, end, s.granted, len(s.req.Data))}
	case s.nR2T == len(s.r2t):
		// One more than MAXR2T is room for an R2T that crosses the last data of the one before.
		return &Error{Op: "receive", FES: wire.FESLimitExceeded, Err: fmt.Errorf("more than %d R2Ts open for command %#04x", q.cfg.MaxR2T, t.CCCID)}
	}
	s.r2t[s.nR2T] = r2t{t.TTAG, t.Offset, uint32(end)}
	s.nR2T++
	s.granted = uint32(end)
	q.sendData(s)
	return nil
}

var _ role = (*HostQueue)(nil)
