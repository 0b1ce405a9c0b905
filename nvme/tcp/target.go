package tcp

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
)

// Handler runs the commands of one connection. Begin, Execute, EndBatch and
// Ended are called on the queue's loop and must not block.
type Handler interface {
	// Begin is called when a capsule has arrived, before its data. For data
	// from the host the handler sets c.Data to a buffer of c.DataLen bytes,
	// calls c.Complete with an error status (data on the wire is then thrown
	// away), or, if the data is not in the capsule (c.InCapsule), calls c.Defer
	// now and c.Provide later.
	Begin(c *Cmd)
	// Execute is called when all data is in, if Begin did not Complete. It
	// ends in exactly one c.Complete, at once or later, from any goroutine.
	Execute(c *Cmd)
	// EndBatch is called when all PDUs of one read have been handed over.
	EndBatch()
	// Release is called once for every Begin, on whichever goroutine finished
	// it: the answer has left or never will, and c.Data is the handler's again.
	Release(c *Cmd)
	// Ended is called once when the connection is over: the handler completes
	// what it still holds (also Asynchronous Event Requests, and commands that
	// wait for Provide), now or as soon as it can. Run returns when it has.
	Ended(err error)
}

// TargetConfig is how a controller opens a queue pair. The zero value of a field is its default.
type TargetConfig struct {
	Handler Handler
	// MaxInCapsule is the in-capsule data accepted on an I/O queue, in bytes. Admin and Fabrics commands may always carry 8 KiB.
	MaxInCapsule int
	// MaxH2CData is the most data accepted in one H2CData PDU; 128 KiB. A multiple of 4 from 4096.
	MaxH2CData int
	// MaxR2TData is the most data asked for by one R2T; 0 is the whole transfer.
	MaxR2TData int
	// MaxTransfer is the most data of a command; a longer one gets Data SGL Length Invalid. 1 MiB.
	MaxTransfer int
	// CPDA is the alignment of data that the host sends: (CPDA+1)*4 bytes.
	CPDA uint8
	// HandshakeTimeout bounds the time until SetDepth is called; 10 s.
	HandshakeTimeout time.Duration
	// Spin is how long the loop polls before it waits; below 0 it never waits.
	Spin   time.Duration
	Logger *slog.Logger
}

// TargetQueue is the controller's side of one queue pair.
type TargetQueue struct {
	cfg TargetConfig
	s   Stream
	rx  receiver
	tx  sender
	out format

	// The loop's own.
	acked     bool
	slots     []*Cmd
	free      *Cmd // slots at hand, linked by link
	asks      *Cmd // commands whose next R2T is due, linked by link
	cur       *Cmd // whose data is coming
	depth     int
	damage    damage
	inCapsule int
	icresp    pdu
	timer     *time.Timer

	qid    atomic.Uint32
	noSQHD atomic.Bool
	cids   atomic.Pointer[[1 << 16 / 64]atomic.Uint64] // CIDs without an answer yet
	open   atomic.Int32                                // commands without an answer yet
	active atomic.Bool                                 // the loop is in a batch and will write what is completed
	over   atomic.Pointer[Cmd]                         // completed commands, newest first, linked by next: pushed by any goroutine

	// Guarded by tx.mu.
	sqhd    uint16
	back    *Cmd // answered, not released; linked by link
	pool    *Cmd // released; linked by link
	reaping int  // goroutines in Release
	freed   sync.Cond
	err     error // why the queue ends
}

type cmdState uint8

const (
	cmdFree      cmdState = iota
	cmdRefused            // answered by the queue itself
	cmdWaiting            // for Provide
	cmdReceiving          // data is coming
	cmdHeld               // the handler has it
)

// Cmd is a command that a host has sent, and its answer.
type Cmd struct {
	SQE wire.Command
	// DataLen is the length of the transfer in bytes, at most MaxTransfer; its direction is SQE's.
	DataLen int
	// InCapsule tells that the data from the host is in the capsule.
	InCapsule bool
	// Data is the buffer of the transfer.
	Data []byte
	// User stays with the slot from one command to the next, so that a
	// handler's state is allocated once.
	User any

	q        *TargetQueue
	state    cmdState // the loop's
	begun    bool     // Release is owed
	deferred bool     // the loop's
	badSum   bool
	repeated bool // its CID is not its own
	ttag     uint16
	got      int          // data bytes received
	asked    atomic.Int32 // data bytes covered by R2Ts

	finished         atomic.Bool // Complete was called
	status           nvme.Status
	result           uint64
	next, link       *Cmd
	data, resp, r2t  pdu
	answered, leaves bool // answer linked; slot on its way to pool. Guarded by tx.mu
	provided, again  bool // guarded by tx.mu; again: another R2T is due
}

// NewTargetQueue makes a queue on s and owns s from now on. Nothing happens before Run.
func NewTargetQueue(s Stream, cfg TargetConfig) *TargetQueue {
	if cfg.MaxH2CData == 0 {
		cfg.MaxH2CData = 128 << 10
	}
	if cfg.MaxTransfer == 0 {
		cfg.MaxTransfer = 1 << 20
	}
	if cfg.MaxR2TData == 0 {
		cfg.MaxR2TData = cfg.MaxTransfer
	}
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	q := &TargetQueue{cfg: cfg, s: s, inCapsule: wire.MaxInCapsule}
	q.tx.init(s)
	q.freed.L = &q.tx.mu
	q.tx.poll = cfg.Spin < 0
	q.tx.sent, q.tx.broken, q.tx.drained = q.sent, func(err error) { q.Close(opError("send", err)) }, q.reap
	q.out.align = 4
	q.rx.init(s, q)
	q.addSlots(2)
	return q
}

func (q *TargetQueue) addSlots(n int) {
	block := make([]Cmd, n)
	for i := range block {
		c := &block[i]
		c.q, c.ttag = q, uint16(len(q.slots))
		c.data.owner, c.resp.owner, c.r2t.owner = c, c, c
		q.slots = append(q.slots, c)
		c.link, q.free = q.free, c
	}
}

// SetDepth is called on the loop when Connect has succeeded: the host has
// sqsize submission queue entries. It ends the handshake timeout.
func (q *TargetQueue) SetDepth(sqsize int) {
	q.depth = min(sqsize, MaxDepth/2)
	// A host may use an entry again before the write that answered it has returned here.
	q.addSlots(max(0, 2*q.depth-len(q.slots)))
	q.cids.Store(new([1 << 16 / 64]atomic.Uint64))
	q.rx.grow(targetReceive)
	q.timer.Stop()
}

// SetQID sets what completions carry as SQID, and the limit of in-capsule data that goes with it: 8 KiB for 0, else MaxInCapsule.
func (q *TargetQueue) SetQID(qid uint16) {
	q.qid.Store(uint32(qid))
	if qid > 0 {
		q.inCapsule = q.cfg.MaxInCapsule
	}
}

// SetSQFlowDisabled says that the host has asked for no SQ head pointers
// (Connect CATTR bit 2), so that a successful read needs no CapsuleResp.
func (q *TargetQueue) SetSQFlowDisabled(on bool) { q.noSQHD.Store(on) }

// SetSpin changes TargetConfig.Spin, on the loop: only once it is known whose
// connection it is can it be known whether spinning is worth a core.
func (q *TargetQueue) SetSpin(d time.Duration) {
	q.tx.mu.Lock()
	q.cfg.Spin, q.tx.poll = d, d < 0
	q.tx.mu.Unlock()
}

func (q *TargetQueue) LocalAddr() net.Addr  { return q.s.LocalAddr() }
func (q *TargetQueue) RemoteAddr() net.Addr { return q.s.RemoteAddr() }

// Digests returns what the handshake has agreed on. On the loop only.
func (q *TargetQueue) Digests() (header, data bool) { return q.rx.hdgst, q.rx.ddgst }

// Complete answers the command: on success with the data in c.Data (at most
// DataLen bytes) when it reads. Any goroutine may call it, once.
func (c *Cmd) Complete(status nvme.Status, result uint64) {
	q := c.q
	c.status, c.result = status, result
	c.finished.Store(true)
	for {
		c.next = q.over.Load()
		if q.over.CompareAndSwap(c.next, c) {
			break
		}
	}
	if !q.active.Load() {
		q.flush()
	}
}

// Defer is called in Begin when there is no buffer yet for data that is not in the capsule.
func (c *Cmd) Defer() { c.deferred = true }

// Provide gives the buffer of a command after Defer: DataLen bytes. Any goroutine may call it, also in Begin.
func (c *Cmd) Provide(buf []byte) {
	q := c.q
	c.Data = buf
	q.tx.mu.Lock()
	c.provided = true
	q.ask(c)
	if q.active.Load() {
		q.tx.mu.Unlock()
		return
	}
	q.tx.flush()
	q.freed.Broadcast()
	q.tx.mu.Unlock()
	q.reap()
}

// ask links the next R2T of c. The mutex is held.
func (q *TargetQueue) ask(c *Cmd) {
	if c.again = c.r2t.queued; c.again {
		return // the data of the R2T before came ahead of the news that it had left
	}
	asked := int(c.asked.Load())
	n := min(c.DataLen-asked, q.cfg.MaxR2TData)
	b := q.out.begin(&c.r2t, wire.TypeR2T, 0, wire.HLenR2T, nil)
	(&wire.R2T{CCCID: c.SQE.CID, TTAG: c.ttag, Offset: uint32(asked), Length: uint32(n)}).AppendTo(b)
	q.out.finish(&c.r2t, wire.HLenR2T)
	c.asked.Store(int32(asked + n))
	q.tx.link(&c.r2t)
}

// flush writes the answers of everything completed so far.
func (q *TargetQueue) flush() {
	q.tx.mu.Lock()
	q.answer()
	q.tx.flush()
	q.tx.mu.Unlock()
	q.reap()
}

// answer links the PDUs of completed commands, oldest first. The mutex is held.
func (q *TargetQueue) answer() {
	var list *Cmd
	for c := q.over.Swap(nil); c != nil; {
		next := c.next
		c.next, list = list, c
		c = next
	}
	for c := list; c != nil; {
		next := c.next
		c.next = nil
		q.reply(c)
		c = next
	}
}

func (q *TargetQueue) reply(c *Cmd) {
	c.answered = true
	q.open.Add(-1)
	if cids := q.cids.Load(); cids != nil && !c.repeated {
		cids[c.SQE.CID/64].And(^(1 << (c.SQE.CID % 64)))
	}
	if q.tx.dead {
		q.leave(c)
		q.freed.Broadcast()
		return
	}
	quiet := q.noSQHD.Load()
	if c.status.OK() && c.SQE.FromController() && len(c.Data) > 0 {
		flags := wire.FlagLast
		last := quiet && c.result == 0
		if last {
			flags |= wire.FlagSuccess
		}
		b := q.out.begin(&c.data, wire.TypeC2HData, flags, wire.HLenData, c.Data)
		(&wire.DataPDU{CCCID: c.SQE.CID, Length: uint32(len(c.Data))}).AppendTo(b)
		q.out.finish(&c.data, wire.HLenData)
		q.tx.link(&c.data)
		if last {
			return
		}
	}
	cqe := wire.Completion{DW0: uint32(c.result), DW1: uint32(c.result >> 32), SQHD: 0xffff, SQID: uint16(q.qid.Load()), CID: c.SQE.CID, Status: c.status}
	if !quiet {
		if q.sqhd++; int(q.sqhd) >= max(q.depth, 1) {
			q.sqhd = 0
		}
		cqe.SQHD = q.sqhd
	}
	b := q.out.begin(&c.resp, wire.TypeCapsuleResp, 0, wire.HLenResp, nil)
	cqe.AppendTo(b)
	q.out.finish(&c.resp, wire.HLenResp)
	q.tx.link(&c.resp)
}

// sent is the sender's report that a PDU has left. The mutex is held.
func (q *TargetQueue) sent(p *pdu) {
	c, ok := p.owner.(*Cmd)
	switch {
	case !ok:
	case c.again && p == &c.r2t:
		q.ask(c)
	case c.answered && !c.data.queued && !c.resp.queued && !c.r2t.queued:
		q.leave(c)
	}
}

// leave sends a slot on its way back. The mutex is held.
func (q *TargetQueue) leave(c *Cmd) {
	if !c.leaves {
		c.leaves = true
		c.link, q.back = q.back, c
	}
}

// reap releases the commands whose answers have left. Without the mutex.
func (q *TargetQueue) reap() {
	q.tx.mu.Lock()
	list := q.back
	if list == nil {
		q.tx.mu.Unlock()
		return
	}
	q.back = nil
	q.reaping++
	q.tx.mu.Unlock()
	last := list
	for c := list; c != nil; c = c.link {
		if c.begun {
			c.begun = false
			q.cfg.Handler.Release(c)
		}
		c.Data = nil
		last = c
	}
	q.tx.mu.Lock()
	last.link, q.pool = q.pool, list
	q.reaping--
	q.freed.Broadcast()
	q.tx.mu.Unlock()
}

// Run is the queue's loop. It returns why the connection ended, nil if the
// peer closed it in order, when every command has been released.
func (q *TargetQueue) Run() error {
	q.timer = time.AfterFunc(q.cfg.HandshakeTimeout, func() {
		q.Close(&Error{Op: "handshake", Err: ErrTimeout})
	})
	defer q.timer.Stop()
	var idle time.Time
	wait := q.cfg.Spin == 0
	for {
		n, err := q.rx.fill(wait)
		if err == ErrAgain {
			if q.tx.poll {
				q.flush()
			} else if now := time.Now(); idle.IsZero() {
				idle = now
			} else if now.Sub(idle) > q.cfg.Spin {
				wait = true
			}
			continue
		}
		if err != nil {
			return q.end(readError(err))
		}
		if n > 0 && q.cfg.Spin != 0 {
			wait, idle = false, time.Time{}
		}
		q.active.Store(true)
		e := q.rx.parse()
		q.cfg.Handler.EndBatch()
		q.damage.tell(q.cfg.Logger, q.s, false)
		q.active.Store(false)
		q.tx.mu.Lock()
		for c := q.asks; c != nil; c = c.link {
			q.ask(c)
		}
		q.asks = nil
		q.answer()
		q.tx.flush()
		q.tx.mu.Unlock()
		q.reap()
		if e != nil {
			return q.end(e)
		}
	}
}

// Close ends the connection at once for the given reason (ErrClosed if nil).
func (q *TargetQueue) Close(reason error) {
	if reason == nil {
		reason = &Error{Op: "close", Err: ErrClosed}
	}
	q.tx.mu.Lock()
	if q.err == nil {
		q.err = reason
	}
	q.freed.Broadcast()
	q.tx.mu.Unlock()
	q.s.Abort()
}

// end is the last act of the loop.
func (q *TargetQueue) end(why error) error {
	q.tx.mu.Lock()
	if q.err == nil {
		q.err = why
	}
	why = q.err
	q.tx.mu.Unlock()
	var e *Error
	if errors.As(why, &e) {
		endConnection(&q.tx, q.s, wire.TypeC2HTermReq, e)
	}
	q.damage.tell(q.cfg.Logger, q.s, true)
	q.s.Close()
	q.tx.stop()
	q.cfg.Handler.Ended(why)
	q.tx.mu.Lock()
	for held := true; held; {
		q.answer()
		held = false
		for _, c := range q.slots {
			held = held || !c.answered && (c.state == cmdHeld || c.state == cmdWaiting && !c.provided)
		}
		if held {
			q.freed.Wait()
		}
	}
	for _, c := range q.slots {
		if c.state != cmdFree {
			q.leave(c)
		}
	}
	q.tx.mu.Unlock()
	q.reap()
	q.tx.mu.Lock()
	for q.reaping > 0 {
		q.freed.Wait()
	}
	q.tx.mu.Unlock()
	if errors.Is(why, ErrPeerClosed) && !q.rx.inData && q.rx.r == q.rx.w {
		return nil
	}
	return why
}

// slot takes a free slot on the loop.
func (q *TargetQueue) slot() (*Cmd, *Error) {
	if q.open.Load() >= int32(max(q.depth, 1)) {
		return nil, outOfOrder("more commands open than the %d entries of the queue", max(q.depth, 1))
	}
	if q.free == nil {
		q.active.Store(false)
		q.tx.mu.Lock()
		for q.pool == nil {
			if q.err != nil {
				q.tx.mu.Unlock()
				return nil, &Error{Op: "receive", Err: q.err}
			}
			q.answer()
			q.tx.flush()
			switch {
			case q.pool != nil || q.err != nil: // while flush had given the mutex up
			case q.back != nil:
				q.tx.mu.Unlock()
				q.reap()
				q.tx.mu.Lock()
			case q.tx.poll: // nobody else may be there to find room in the stream
				q.tx.mu.Unlock()
				runtime.Gosched()
				q.tx.mu.Lock()
			default:
				q.freed.Wait()
			}
		}
		for c := q.pool; c != nil; c = c.link {
			c.state, c.answered, c.leaves, c.provided, c.again = cmdFree, false, false, false, false
		}
		q.free, q.pool = q.pool, nil
		q.tx.mu.Unlock()
		q.active.Store(true)
	}
	c := q.free
	q.free, c.link = c.link, nil
	q.open.Add(1)
	return c, nil
}

// The role of the receiver.

func (q *TargetQueue) check(h wire.Header) *Error {
	if !q.acked && h.Type != wire.TypeICReq && h.Type != wire.TypeH2CTermReq {
		return outOfOrder("%s before ICReq", h.Type)
	}
	overhead := uint32(wire.MaxPDUOverhead)
	switch h.Type {
	case wire.TypeICReq:
		if e := checkIC(h, q.acked); e != nil {
			return e
		}
	case wire.TypeH2CTermReq:
		return checkTerm(h)
	case wire.TypeCapsuleCmd:
		if h.PLen > uint32(max(q.cfg.MaxTransfer, wire.MaxInCapsule))+overhead {
			return invalid(4, "PLEN %d of CapsuleCmd is beyond any transfer", h.PLen)
		}
	case wire.TypeH2CData:
		if h.PLen > uint32(q.cfg.MaxH2CData)+overhead {
			return &Error{Op: "receive", FES: wire.FESLimitExceeded, Err: fmt.Errorf("PLEN %d of H2CData, MAXH2CDATA is %d", h.PLen, q.cfg.MaxH2CData)}
		}
	default:
		return invalid(0, "%s from a host", h.Type)
	}
	return checkHLen(h)
}

func (q *TargetQueue) header(h wire.Header, b []byte) ([]byte, int, *Error) {
	body := b[wire.HeaderSize:]
	switch h.Type {
	case wire.TypeICReq:
		return nil, 0, q.icreq(body)
	case wire.TypeH2CTermReq:
		return nil, 0, parseTerm(h, b)
	case wire.TypeH2CData:
		return q.h2cData(h, body)
	}
	return q.command(body, q.rx.dataLen(h))
}

func (q *TargetQueue) icreq(b []byte) *Error {
	var r wire.ICReq
	if err := r.Parse(b); err != nil {
		return invalid(2, "%v", err)
	}
	if r.PFV != 0 {
		return invalid(8, "PFV %d of ICReq, want 0", r.PFV)
	}
	if r.HPDA > wire.MaxPDA {
		return invalid(10, "HPDA %d of ICReq, want at most %d", r.HPDA, wire.MaxPDA)
	}
	digest := r.Digest & (wire.DigestHeader | wire.DigestData)
	p := q.out.begin(&q.icresp, wire.TypeICResp, 0, wire.HLenICReq, nil)
	(&wire.ICResp{CPDA: q.cfg.CPDA, Digest: digest, MaxH2CData: uint32(q.cfg.MaxH2CData)}).AppendTo(p)
	q.out = format{hdgst: digest&wire.DigestHeader != 0, ddgst: digest&wire.DigestData != 0, align: int(r.HPDA+1) * 4}
	q.rx.hdgst, q.rx.ddgst, q.rx.align = q.out.hdgst, q.out.ddgst, int(q.cfg.CPDA+1)*4
	q.acked = true
	q.tx.mu.Lock()
	q.tx.link(&q.icresp)
	q.tx.mu.Unlock()
	return nil
}

// command takes a capsule with n bytes of data.
func (q *TargetQueue) command(b []byte, n int) ([]byte, int, *Error) {
	c, e := q.slot()
	if e != nil {
		return nil, 0, e
	}
	c.SQE.Parse(b)
	c.state, c.begun, c.deferred, c.badSum, c.repeated = cmdHeld, false, false, false, false
	c.got, c.DataLen, c.Data, c.InCapsule = 0, 0, nil, false
	c.ttag += MaxDepth // the next generation
	c.asked.Store(0)
	c.finished.Store(false)

	status, e := q.transfer(c, n)
	if e != nil {
		c.state = cmdRefused
		return nil, 0, e
	}
	if cids := q.cids.Load(); cids != nil {
		bit := uint64(1) << (c.SQE.CID % 64)
		// A host that shuts down forgets its Asynchronous Event Requests without Abort (SPDK does): they hold no CID.
		aer := c.SQE.Opcode == wire.OpAER && q.qid.Load() == 0
		if c.repeated = aer || cids[c.SQE.CID/64].Or(bit)&bit != 0; c.repeated && !aer {
			status = nvme.StatusCommandIDConflict | nvme.StatusDNR
		}
	}
	if !status.OK() {
		c.state = cmdRefused
		c.Complete(status, 0)
		return nil, n, nil
	}
	c.begun = true
	toController := c.SQE.ToController() && c.DataLen > 0
	if toController {
		c.state = cmdWaiting
	}
	q.cfg.Handler.Begin(c)
	switch {
	case c.finished.Load():
	case !toController:
		q.cfg.Handler.Execute(c)
	case c.deferred && !c.InCapsule:
	case len(c.Data) != c.DataLen:
		q.cfg.Logger.Error("no buffer for the data of a command", "opcode", c.SQE.Opcode, "bytes", c.DataLen, "buffer", len(c.Data))
		c.state = cmdHeld
		c.Complete(nvme.StatusInternalError|nvme.StatusDNR, 0)
	case c.InCapsule:
		c.state = cmdReceiving
		q.cur = c
		return c.Data[:n:n], n, nil
	default:
		c.state = cmdReceiving
		c.link, q.asks = q.asks, c
	}
	return nil, n, nil
}

// transfer checks the data pointer of a command (NVMe/TCP section 3.3.2;
// what Linux and others send) and sets its transfer. A contradiction between
// SGL and PDU ends the connection: what follows could not be told from data.
func (q *TargetQueue) transfer(c *Cmd, n int) (nvme.Status, *Error) {
	sgl := &c.SQE.SGL
	to, from := c.SQE.ToController(), c.SQE.FromController()
	switch {
	case c.SQE.PSDT() != 1:
		return nvme.StatusInvalidField | nvme.StatusDNR, nil
	case sgl.Type == wire.SGLInCapsule:
		limit := q.inCapsule
		if c.SQE.Fabrics() {
			limit = wire.MaxInCapsule
		}
		switch {
		case uint64(sgl.Length) != uint64(n):
			return 0, invalid(4, "%d bytes in a capsule whose SGL says %d", n, sgl.Length)
		case sgl.Addr != 0 || n > limit:
			return nvme.StatusSGLOffsetInvalid | nvme.StatusDNR, nil
		case n > 0 && (!to || from):
			return nvme.StatusInvalidField | nvme.StatusDNR, nil
		}
		c.InCapsule = n > 0
	case sgl.Type == wire.SGLTransport:
		if n > 0 {
			return 0, invalid(4, "%d bytes in a capsule whose SGL says that there are none", n)
		}
		if int64(sgl.Length) > int64(q.cfg.MaxTransfer) {
			return nvme.StatusDataSGLLengthInvalid | nvme.StatusDNR, nil
		}
		if sgl.Length > 0 && to && from {
			return nvme.StatusInvalidOpcode | nvme.StatusDNR, nil
		}
	case sgl.Length == 0 && n == 0: // nothing to transfer: hosts leave the descriptor blank, and Linux takes it
	default:
		return nvme.StatusSGLTypeInvalid | nvme.StatusDNR, nil
	}
	if to || from {
		c.DataLen = int(sgl.Length)
	}
	return nvme.StatusSuccess, nil
}

func (q *TargetQueue) h2cData(h wire.Header, b []byte) ([]byte, int, *Error) {
	var d wire.DataPDU
	if err := d.Parse(b); err != nil {
		return nil, 0, invalid(2, "%v", err)
	}
	i := int(d.TTAG % MaxDepth)
	if i >= len(q.slots) || q.slots[i].ttag != d.TTAG {
		return nil, 0, invalid(10, "TTAG %#04x of H2CData is unknown", d.TTAG)
	}
	c := q.slots[i]
	asked := int(c.asked.Load())
	if c.state == cmdWaiting && asked > 0 {
		c.state = cmdReceiving
	}
	n := q.rx.dataLen(h)
	switch {
	case c.state != cmdReceiving || c.InCapsule || c.got == asked:
		return nil, 0, invalid(10, "H2CData for TTAG %#04x, which wants none", d.TTAG)
	case d.CCCID != c.SQE.CID:
		return nil, 0, outOfOrder("H2CData for command %#04x with the TTAG of command %#04x", d.CCCID, c.SQE.CID)
	case uint64(d.Length) != uint64(n) || n == 0:
		return nil, 0, invalid(16, "DATAL %d in a PDU with %d bytes of data", d.Length, n)
	case n > q.cfg.MaxH2CData:
		return nil, 0, &Error{Op: "receive", FES: wire.FESLimitExceeded, Err: fmt.Errorf("DATAL %d, MAXH2CDATA is %d", n, q.cfg.MaxH2CData)}
	case int64(d.Offset) != int64(c.got) || c.got+n > asked:
		return nil, 0, &Error{Op: "receive", FES: wire.FESDataOutOfRange, Err: fmt.Errorf("H2CData of %d bytes at %d, want at %d up to %d", n, d.Offset, c.got, asked)}
	case h.Flags&wire.FlagLast != 0 && c.got+n != asked:
		return nil, 0, outOfOrder("last H2CData ends at %d, the R2T at %d", c.got+n, asked)
	}
	q.cur = c
	return c.Data[c.got : c.got+n : c.got+n], n, nil
}

func (q *TargetQueue) payload(ok bool) *Error {
	c := q.cur
	q.cur = nil
	if c == nil {
		return nil
	}
	c.got += q.rx.last
	c.badSum = c.badSum || !ok
	switch {
	case c.got < c.DataLen && c.got == int(c.asked.Load()):
		c.link, q.asks = q.asks, c
	case c.got < c.DataLen:
	case c.badSum:
		// The data can be sent again: Linux and others retry this status.
		q.damage.count++
		c.state = cmdHeld
		c.Complete(nvme.StatusTransientTransportError, 0)
	default:
		c.state = cmdHeld
		q.cfg.Handler.Execute(c)
	}
	return nil
}

var _ role = (*TargetQueue)(nil)
