package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"hawser.dev/hawser/attach/frontend"
)

const (
	// scanSize is how many bytes one read may take beside a payload's rest.
	scanSize = 64 << 10
	// scanAfterPayload is the same after a payload that didn't fit: the next
	// probably doesn't either, and what is read here has to be copied.
	scanAfterPayload = 4 << 10
	// replySize bounds the bytes of a reply without its data.
	replySize = chunkSize + 6 + maxErrorText
	// maxErrorText bounds the text of an error chunk, in bytes.
	maxErrorText = 200
)

var (
	errShutdown  = &refusal{errnoShutdown, "the server is shutting down"}
	errReadOnly  = &refusal{errnoPerm, "the export is read-only"}
	errUnaligned = &refusal{errnoInval, "offset or length is not a multiple of the minimum block size"}
	errBeyond    = &refusal{errnoInval, "the range ends beyond the end of the export"}
	errNoSpace   = &refusal{errnoNoSpc, "the range ends beyond the end of the export"}
	errTooLong   = &refusal{errnoInval, "length is more than the maximum payload size"}
	errOverflow  = &refusal{errnoOverflow, "length is more than the maximum payload size"}
	errFlags     = &refusal{errnoInval, "a flag this command doesn't take"}
	errCommand   = &refusal{errnoInval, "a command this export doesn't offer"}
	errFlushArgs = &refusal{errnoInval, "offset and length of a flush are not zero"}
)

// slot is one command in progress. Slots belong to their connection for its
// life and go round: the reader fills one, the volume completes it, whoever
// sends writes the reply and hands it back to the reader.
type slot struct {
	req       frontend.Request
	next      *slot // in whichever list it is
	cookie    uint64
	read      bool    // structured replies must be used
	thenFlush bool    // a trim with FUA
	buf       *buffer // that Data lies in; nil if there is none
}

// stack is a lock-free list of slots: any goroutine pushes, one takes all.
type stack struct{ head atomic.Pointer[slot] }

// push adds the chain from first to last and reports whether the stack was empty.
func (l *stack) push(first, last *slot) bool {
	for {
		old := l.head.Load()
		last.next = old
		if l.head.CompareAndSwap(old, first) {
			return old == nil
		}
	}
}

// takeAll empties the stack; oldest first.
func (l *stack) takeAll() *slot {
	var first *slot
	for s := l.head.Swap(nil); s != nil; {
		s, s.next, first = s.next, first, s
	}
	return first
}

func (l *stack) empty() bool { return l.head.Load() == nil }

// conn is one client. Its goroutine reads; a second one, the writer, waits for
// the socket when it is full and sends what completes while the reader waits.
// Whoever finds replies to send and the socket not in use sends them.
type conn struct {
	srv *Server
	ln  *net.Listener // that it came from
	nc  net.Conn
	t   transport

	// The reader's.
	buf        []byte // buf[r:w] is read but not parsed
	r, w       int
	lim        limits
	flags      uint16 // transmission flags, as negotiated
	structured bool
	free       *slot
	cur        *slot // a write whose payload is arriving; without a buffer if it is to be skipped
	left       int   // bytes of that payload still to come
	batch      []*frontend.Request

	// The sender's: who holds sending.
	sending  atomic.Bool
	replying *slot                // commands of the batch of replies being written
	out      [][]byte             // what is left of their bytes
	vectors  [][]byte             // backs out
	heads    []byte               // reply headers that out points into
	broken   bool                 // nothing more can be sent
	flushReq [1]*frontend.Request // the writer's

	// Everyone's.
	done     stack         // completed, not yet replied to
	reflush  stack         // trims that need a flush before they are done
	returned stack         // replied to
	corked   atomic.Bool   // the reader is about to send
	inflight atomic.Int64  // commands handed over and not yet returned
	bytes    atomic.Int64  // held by buffers
	waiting  atomic.Bool   // the reader waits on back
	back     chan struct{} // slots were returned
	wake     chan struct{} // there is something for the writer
	quit     chan struct{}

	complete func(*frontend.Request) // bound once
	entered  bool                    // counted as a client; the server's lock
}

func newConn(srv *Server, nc net.Conn) *conn {
	c := &conn{
		srv: srv, nc: nc, t: newTransport(nc),
		back: make(chan struct{}, 1), wake: make(chan struct{}, 1), quit: make(chan struct{}),
	}
	c.complete = c.completed
	return c
}

// serve is the life of a connection.
func (c *conn) serve() {
	log := c.srv.log.With("client", c.nc.RemoteAddr())
	c.buf = make([]byte, scanSize)
	c.nc.SetDeadline(time.Now().Add(c.srv.opts.HandshakeTimeout))
	at, err := c.handshake()
	if at == transmission {
		log.Debug("nbd: client entered transmission", "structured", c.structured)
		err = c.transmit()
	}
	switch {
	case err == nil, err == io.EOF, errors.Is(err, net.ErrClosed), c.srv.draining.Load(),
		at != transmission && (errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)): // many don't wait for the answer to ABORT
		log.Debug("nbd: client left", "cause", err)
	default:
		log.Warn("nbd: connection ended", "error", &Error{Op: at.String(), Err: err})
	}
	c.nc.Close()
}

func (p phase) String() string {
	if p == transmission {
		return "transmission"
	}
	return "handshake"
}

// accept takes over what was negotiated.
func (c *conn) accept(n *negotiation) {
	c.lim, c.flags, c.structured = limitsOf(n.info), n.transmissionFlags(), n.structured
}

// transmit runs the transmission phase until the client leaves, breaks the
// protocol, or the server has drained. All commands are done when it returns.
func (c *conn) transmit() error {
	depth := c.srv.opts.MaxInFlight
	slots := make([]slot, depth)
	for i := range slots {
		s := &slots[i]
		s.req.Done, s.req.User = c.complete, s
		s.next, c.free = c.free, s
	}
	c.batch = make([]*frontend.Request, 0, depth)
	c.vectors = make([][]byte, 0, 2*depth)
	c.heads = make([]byte, 0, depth*replySize)

	written := make(chan struct{})
	go func() {
		c.writer()
		close(written)
	}()
	err := c.receive()
	var broken *protocolError
	if errors.As(err, &broken) || errors.Is(err, net.ErrClosed) {
		c.nc.Close()
	} else {
		// A client that doesn't read its last replies can't stay for ever.
		c.nc.SetWriteDeadline(time.Now().Add(c.srv.opts.HandshakeTimeout))
	}
	for c.inflight.Load() > 0 {
		c.waiting.Store(true)
		if c.inflight.Load() > 0 {
			<-c.back
		}
	}
	close(c.quit)
	<-written
	if c.cur != nil && c.cur.buf != nil {
		c.srv.pool.put(c.cur.buf)
	}
	return err
}

// protocolError is a client's breach of the protocol that ends the session.
type protocolError struct{ text string }

func (e *protocolError) Error() string { return e.text }

// receive reads and submits commands, as many at a time as the socket holds.
func (c *conn) receive() error {
	c.nc.SetDeadline(time.Time{})
	for {
		c.corked.Store(true)
		end, err := c.parse()
		c.submit()
		if end || err != nil {
			return err
		}
		if c.srv.draining.Load() && c.inflight.Load() == 0 {
			return nil
		}
		var payload []byte
		limit := scanSize
		if c.cur != nil && c.cur.buf != nil {
			if payload = c.cur.req.Data[len(c.cur.req.Data)-c.left:]; len(payload) > scanAfterPayload {
				limit = scanAfterPayload
			}
		}
		err = c.read(payload, limit)
		if err != nil && errors.Is(err, os.ErrDeadlineExceeded) && c.srv.draining.Load() {
			// Woken to look whether everything is drained; see Server.Shutdown.
			c.nc.SetReadDeadline(time.Time{})
			err = nil
		}
		if err != nil {
			if err == io.EOF && (c.cur != nil || c.r < c.w) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

// read waits for bytes: first those that payload lacks, then up to limit more.
func (c *conn) read(payload []byte, limit int) error {
	c.w = copy(c.buf, c.buf[c.r:c.w])
	c.r = 0
	n, err := c.t.readv(payload, c.buf[c.w:min(len(c.buf), c.w+limit)])
	k := min(n, len(payload))
	c.left -= k
	c.w += n - k
	return err
}

// parse consumes what was read: it collects commands into the batch, and
// reports whether the client is leaving.
func (c *conn) parse() (end bool, err error) {
	size := uint64(c.srv.info.Load().Size) &^ uint64(c.lim.minimum-1)
	for {
		if s := c.cur; s != nil {
			n := min(c.left, c.w-c.r)
			if s.buf != nil {
				copy(s.req.Data[len(s.req.Data)-c.left:], c.buf[c.r:c.r+n])
			}
			c.r += n
			if c.left -= n; c.left > 0 {
				return false, nil
			}
			c.cur = nil
			c.hand(s)
		}
		if c.w-c.r < requestSize {
			return false, nil
		}
		var q request
		if err := q.Parse(c.buf[c.r:c.w]); err != nil {
			return true, &protocolError{err.Error()}
		}
		c.r += requestSize
		switch {
		case q.Type == cmdDisc:
			return true, nil
		case q.Type == cmdWrite && q.Length > maxPayload:
			return true, &protocolError{fmt.Sprintf("write of %d bytes, more than %d", q.Length, maxPayload)}
		}
		c.begin(q, size)
	}
}

// begin gives a command its slot and, if it carries data either way, its buffer.
func (c *conn) begin(q request, size uint64) {
	op, err := c.check(q, size)
	class := -1
	if err == nil && q.Length > 0 && (op == frontend.OpRead || op == frontend.OpWrite) {
		class = classOf(int(q.Length))
	}
	s := c.slot(class)
	s.cookie = q.Cookie
	s.read = q.Type == cmdRead
	fua := q.Flags&cmdFlagFUA != 0
	s.thenFlush = fua && op == frontend.OpTrim && c.flags&flagFlush != 0
	s.req.Op = op
	s.req.Offset, s.req.Length = int64(q.Offset), int64(q.Length)
	s.req.FUA = fua && (op == frontend.OpWrite || op == frontend.OpWriteZeroes)
	s.req.NoHole = q.Flags&cmdFlagNoHole != 0
	s.req.Err = err
	if class >= 0 {
		s.req.Data = s.buf.mem[:q.Length:q.Length]
	}
	if q.Type == cmdWrite && q.Length > 0 {
		c.cur, c.left = s, int(q.Length)
		return
	}
	c.hand(s)
}

// check says what a command asks of the volume, or why it is refused.
func (c *conn) check(q request, size uint64) (op frontend.Op, err error) {
	var flags, offered uint16
	switch q.Type {
	case cmdRead:
		op = frontend.OpRead
		if c.structured {
			flags = cmdFlagDF
		}
	case cmdWrite:
		op = frontend.OpWrite
	case cmdFlush:
		op, offered = frontend.OpFlush, flagFlush
	case cmdTrim:
		op, offered = frontend.OpTrim, flagTrim
	case cmdWriteZeroes:
		op, offered, flags = frontend.OpWriteZeroes, flagWriteZeroes, cmdFlagNoHole
	default:
		return 0, errCommand
	}
	if c.flags&flagFUA != 0 {
		flags |= cmdFlagFUA // "valid for all commands"
	}
	switch {
	case c.srv.draining.Load():
		err = errShutdown
	case op.Writes() && c.flags&flagReadOnly != 0:
		err = errReadOnly
	case c.flags&offered != offered:
		err = errCommand
	case q.Flags&^flags != 0:
		err = errFlags
	case op == frontend.OpFlush:
		if q.Offset != 0 || q.Length != 0 {
			err = errFlushArgs
		}
	case (op == frontend.OpRead || op == frontend.OpWrite) && q.Length > c.lim.maximum:
		err = errTooLong
		if flags&cmdFlagDF != 0 {
			err = errOverflow
		}
	case (q.Offset|uint64(q.Length))&uint64(c.lim.minimum-1) != 0:
		err = errUnaligned
	case q.Offset > size || uint64(q.Length) > size-q.Offset:
		err = errBeyond
		if op == frontend.OpWrite || op == frontend.OpWriteZeroes {
			err = errNoSpace
		}
	}
	return op, err
}

// hand puts a command into the batch for the volume, or answers it if there
// is nothing for the volume to do.
func (c *conn) hand(s *slot) {
	if s.req.Err == nil && (s.req.Length > 0 || s.req.Op == frontend.OpFlush) {
		c.batch = append(c.batch, &s.req)
		return
	}
	c.inflight.Add(1)
	c.done.push(s, s) // submit sends it
}

// submit hands the batch to the volume and sends what has completed by then.
func (c *conn) submit() {
	if len(c.batch) > 0 {
		c.inflight.Add(int64(len(c.batch)))
		c.srv.vol.Submit(c.batch...)
		c.batch = c.batch[:0]
	}
	c.corked.Store(false)
	c.send(false)
}

// slot returns a free slot with a buffer of the class, or with none if it is
// negative. It waits while too many commands or bytes are in flight.
func (c *conn) slot(class int) *slot {
	bytes := int64(0)
	if class >= 0 {
		bytes = int64(classSize(class))
	}
	for !c.room(bytes) {
		c.submit()
		c.waiting.Store(true)
		if !c.room(bytes) {
			<-c.back
		}
		c.waiting.Store(false)
		c.corked.Store(true)
	}
	s := c.free
	c.free = s.next
	if class >= 0 {
		c.bytes.Add(bytes)
		s.buf = c.srv.pool.get(class)
	}
	return s
}

func (c *conn) room(bytes int64) bool {
	if c.free == nil {
		c.free = c.returned.takeAll()
	}
	held := c.bytes.Load()
	return c.free != nil && (bytes == 0 || held == 0 || held+bytes <= c.srv.opts.MaxInFlightBytes)
}

// completed is every request's Done.
func (c *conn) completed(r *frontend.Request) {
	s := r.User.(*slot)
	if s.thenFlush && r.Err == nil {
		s.thenFlush = false
		c.reflush.push(s, s)
		c.wakeWriter()
		return
	}
	if !c.done.push(s, s) || c.corked.Load() {
		return // who pushed first, or the reader, sends it
	}
	if c.inflight.Load() == 1 {
		c.send(false) // nothing else could share the system call
	} else {
		c.wakeWriter()
	}
}

func (c *conn) wakeWriter() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *conn) writer() {
	for {
		select {
		case <-c.wake:
		case <-c.quit:
			return
		}
		for s := c.reflush.takeAll(); s != nil; {
			next := s.next
			s.req.Op, s.req.Offset, s.req.Length = frontend.OpFlush, 0, 0
			c.flushReq[0] = &s.req
			c.srv.vol.Submit(c.flushReq[:]...)
			s = next
		}
		c.send(true)
	}
}

// send writes the replies that are due, unless somebody else does already.
// Without wait it writes one batch and leaves the rest to the writer, also
// when the socket is full: its caller has better things to do.
func (c *conn) send(wait bool) {
	// The writer may have been woken for the rest of a batch only.
	for more := wait || !c.done.empty(); more; more = !c.done.empty() {
		if !c.sending.CompareAndSwap(false, true) {
			return // its holder looks again after letting go
		}
		full := c.sendBatch(wait)
		c.sending.Store(false)
		if full || !wait && !c.done.empty() {
			c.wakeWriter()
			return
		}
	}
}

// sendBatch writes what is left of a batch, or one of all that has completed
// by now. It reports whether the socket is full, which without wait it may be.
func (c *conn) sendBatch(wait bool) (full bool) {
	if len(c.out) == 0 && !c.gather() {
		return false
	}
	for len(c.out) > 0 && !c.broken {
		n, err := c.t.writev(c.out, wait)
		if err == errAgain {
			return true
		}
		if err != nil {
			c.broken = true
			c.nc.Close()
		}
		c.advance(n)
	}
	c.out = nil
	c.release(c.replying)
	c.replying = nil
	return false
}

func (c *conn) advance(n int) {
	for n > 0 && len(c.out) > 0 {
		if n < len(c.out[0]) {
			c.out[0] = c.out[0][n:]
			return
		}
		n -= len(c.out[0])
		c.out[0] = nil
		c.out = c.out[1:]
	}
}

// gather begins a batch of all replies that are due; false if there are none.
func (c *conn) gather() bool {
	first := c.done.takeAll()
	if first == nil {
		return false
	}
	c.replying, c.out, c.heads = first, c.vectors[:0], c.heads[:0]
	run := 0 // where the headers begin that lie side by side, without data between
	for s := first; s != nil; s = s.next {
		c.reply(s)
		if data := s.req.Data; s.read && s.req.Err == nil && len(data) > 0 {
			c.out = append(c.out, c.heads[run:], data)
			run = len(c.heads)
		}
	}
	if run < len(c.heads) {
		c.out = append(c.out, c.heads[run:])
	}
	return true
}

// reply appends a reply's header to c.heads.
func (c *conn) reply(s *slot) {
	switch err := s.req.Err; {
	case c.structured && err != nil:
		text := clip(err.Error(), maxErrorText)
		c.heads = chunk{Flags: chunkDone, Type: chunkError, Cookie: s.cookie, Length: uint32(6 + len(text))}.AppendTo(c.heads)
		c.heads = binary.BigEndian.AppendUint32(c.heads, uint32(errnoOf(err)))
		c.heads = binary.BigEndian.AppendUint16(c.heads, uint16(len(text)))
		c.heads = append(c.heads, text...)
	case c.structured && s.read && len(s.req.Data) > 0:
		c.heads = chunk{Flags: chunkDone, Type: chunkOffsetData, Cookie: s.cookie, Length: uint32(8 + len(s.req.Data))}.AppendTo(c.heads)
		c.heads = binary.BigEndian.AppendUint64(c.heads, uint64(s.req.Offset))
	case c.structured && s.read:
		c.heads = chunk{Flags: chunkDone, Cookie: s.cookie}.AppendTo(c.heads) // NBD_REPLY_TYPE_NONE
	case err != nil:
		c.heads = simpleReply{Error: errnoOf(err), Cookie: s.cookie}.AppendTo(c.heads)
	default:
		c.heads = simpleReply{Cookie: s.cookie}.AppendTo(c.heads)
	}
}

// release hands the slots of a chain back to the reader.
func (c *conn) release(first *slot) {
	var n, bytes int64
	last := first
	for s := first; s != nil; last, s = s, s.next {
		if s.buf != nil {
			raceRead(s.req.Data)
			bytes += int64(classSize(s.buf.class))
			c.srv.pool.put(s.buf)
			s.buf, s.req.Data = nil, nil
		}
		n++
	}
	c.returned.push(first, last)
	c.bytes.Add(-bytes)
	left := c.inflight.Add(-n)
	if c.waiting.Load() {
		select {
		case c.back <- struct{}{}:
		default:
		}
	}
	if left == 0 && c.srv.draining.Load() {
		c.nc.SetReadDeadline(time.Now()) // the reader has nothing to wait for
	}
}
