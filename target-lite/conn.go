package targetlite

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/tcp"
	"hawser.dev/hawser/nvme/wire"
	"hawser.dev/hawser/target-lite/backend"
)

// halfClosed bounds how long a connection waits for the host's end after its own: then it is cut off.
const halfClosed = 3 * time.Second

// conn is one connection: before Connect nobody's, then one queue of a controller.
type conn struct {
	srv    *Server
	nc     net.Conn
	portal *portal
	q      *tcp.TargetQueue

	// Set by Connect on the queue's loop, before the controller knows the connection.
	ctrl *controller
	qid  uint16

	inflight atomic.Int64 // commands begun and not released, but for Asynchronous Event Requests
	draining atomic.Bool
	half     sync.Once
	stuck    atomic.Pointer[time.Timer] // since half

	// The loop's own.
	held    []*task          // commands that came while draining: never run
	kickers []backend.Kicker // of this batch
	tally   tally
}

// tally counts the commands of a batch to one namespace, so that its counters are touched once.
type tally struct {
	ns                                   *namespace
	reads, writes, readBytes, writeBytes uint64
}

// task is the target's side of one command slot.
type task struct {
	conn    *conn
	cmd     *tcp.Cmd
	ns      *namespace
	buf     []byte // from the pool
	share   *share // that buf counts for
	counted bool
	then    func(*task) // what to do when the buffer is there
	waiter  waiter
	req     backend.Request
	at      int // range of Dataset Management, namespace of Flush
}

func (c *conn) task(cmd *tcp.Cmd) *task {
	t, ok := cmd.User.(*task)
	if !ok {
		t = &task{conn: c, cmd: cmd}
		t.req.User, t.req.Done = t, requestDone
		t.waiter.task, t.waiter.granted = t, t.granted
		cmd.User = t
	}
	return t
}

// Begin implements tcp.Handler.
func (c *conn) Begin(cmd *tcp.Cmd) {
	t := c.task(cmd)
	t.ns, t.buf, t.at, t.counted = nil, nil, 0, true
	c.inflight.Add(1)
	if c.draining.Load() {
		c.hold(t)
		return
	}
	if status, loc := c.begin(t); !status.OK() {
		t.fail(status, loc)
	}
}

// hold keeps a command unanswered until the connection ends: the host will send it again elsewhere.
func (c *conn) hold(t *task) {
	switch {
	case t.cmd.DataLen == 0 || !t.cmd.SQE.ToController():
	case t.cmd.InCapsule: // the queue answers it if the data is damaged
		t.cmd.Data = make([]byte, t.cmd.DataLen) // goes nowhere
	default:
		t.cmd.Defer()
		c.held = append(c.held, t) // it is never executed
	}
	c.uncount(t)
}

// begin checks a command before its data comes, and finds a buffer for that.
func (c *conn) begin(t *task) (nvme.Status, uint16) {
	sqe := &t.cmd.SQE
	if sqe.Fuse() != 0 {
		return nvme.StatusInvalidField | nvme.StatusDNR, 1
	}
	connect := sqe.Fabrics() && sqe.FCType() == wire.FCTypeConnect
	var status nvme.Status
	loc := uint16(0)
	switch {
	case connect == (c.ctrl != nil):
		return nvme.StatusCommandSequenceError | nvme.StatusDNR, loc
	case connect && t.cmd.DataLen != wire.ConnectDataSize:
		return nvme.StatusDataSGLLengthInvalid | nvme.StatusDNR, 32
	case sqe.Fabrics():
		status, loc = c.beginFabrics(t)
	case c.qid == 0:
		status, loc = c.beginAdmin(t)
	default:
		status, loc = c.beginIO(t)
	}
	if !status.OK() || t.cmd.DataLen == 0 || !sqe.ToController() {
		return status, loc
	}
	n := t.cmd.DataLen
	if sqe.Opcode == wire.OpCompare && c.qid != 0 {
		n = compareAt(n) + n
	}
	if t.cmd.InCapsule {
		if !t.take(c.srv.pool.must, n) {
			return nvme.StatusCommandInterrupted, noLocation
		}
		t.cmd.Data = t.buf[:t.cmd.DataLen]
	} else if t.take(c.srv.pool.get, n) {
		t.cmd.Data = t.buf[:t.cmd.DataLen]
	} else {
		t.cmd.Defer()
		t.wait(n, provide)
	}
	return status, loc
}

func provide(t *task) { t.cmd.Provide(t.buf[:t.cmd.DataLen]) }

// Execute implements tcp.Handler.
func (c *conn) Execute(cmd *tcp.Cmd) {
	t := cmd.User.(*task)
	switch {
	case !t.counted:
		c.held = append(c.held, t)
	case cmd.SQE.Fabrics():
		c.fabrics(t)
	case c.qid != 0:
		c.executeIO(t)
	case cmd.DataLen > 0 && cmd.SQE.FromController():
		t.withBuffer(cmd.DataLen, runAdmin)
	default:
		runAdmin(t)
	}
}

// EndBatch implements tcp.Handler.
func (c *conn) EndBatch() {
	if c.ctrl != nil && !c.ctrl.traffic.Load() {
		c.ctrl.traffic.Store(true)
	}
	if c.tally.ns != nil {
		c.count(nil)
	}
	for i, k := range c.kickers {
		k.Kick()
		c.kickers[i] = nil
	}
	c.kickers = c.kickers[:0]
}

// count returns the tally of ns, after adding up that of another namespace.
func (c *conn) count(ns *namespace) *tally {
	if t := &c.tally; t.ns != ns {
		if t.ns != nil {
			if t.reads > 0 {
				t.ns.reads.Add(t.reads)
				t.ns.readBytes.Add(t.readBytes)
			}
			if t.writes > 0 {
				t.ns.writes.Add(t.writes)
				t.ns.writeBytes.Add(t.writeBytes)
			}
		}
		*t = tally{ns: ns}
	}
	return &c.tally
}

// Release implements tcp.Handler.
func (c *conn) Release(cmd *tcp.Cmd) {
	t := cmd.User.(*task)
	t.giveBack()
	t.ns = nil
	c.uncount(t)
}

func (c *conn) uncount(t *task) {
	if t.counted {
		t.counted = false
		if c.inflight.Add(-1) == 0 && c.draining.Load() {
			c.halfClose()
		}
	}
}

// Ended implements tcp.Handler.
func (c *conn) Ended(error) {
	if c.ctrl != nil {
		c.ctrl.detach(c)
	} else {
		c.srv.settled(c)
	}
	c.endWaiting(func(*task) bool { return true }, nvme.StatusAbortSQDeletion)
	for _, t := range c.held {
		t.cmd.Complete(nvme.StatusAbortSQDeletion, 0)
	}
	c.held = nil
}

// endWaiting completes the matching commands that wait for memory, and tells whether there were any.
func (c *conn) endWaiting(match func(*task) bool, status nvme.Status) bool {
	list := c.srv.pool.cancel(func(w *waiter) bool { return w.task.conn == c && match(w.task) })
	for w := list; w != nil; {
		next := w.next
		w.next = nil
		w.task.complete(status, 0)
		w = next
	}
	return list != nil
}

func (c *conn) abortWaiting(cid uint16) bool {
	return c.endWaiting(func(t *task) bool { return t.cmd.SQE.CID == cid }, nvme.StatusAbortRequested)
}

// abort cuts the connection off.
func (c *conn) abort(why error) { c.q.Close(why) }

// drain lets the commands in flight finish and then ends the connection.
func (c *conn) drain() {
	c.draining.Store(true)
	if c.inflight.Load() == 0 {
		c.halfClose()
	}
}

// halfClose ends the target's side in order, behind the last answer; the host closes when it sees that.
func (c *conn) halfClose() {
	c.half.Do(func() {
		if cw, ok := c.nc.(interface{ CloseWrite() error }); ok && cw.CloseWrite() == nil {
			c.stuck.Store(time.AfterFunc(halfClosed, func() { c.abort(errDrainStuck) }))
			return
		}
		go c.abort(errShutdown)
	})
}

// take gets a buffer of n bytes by from, or reports false.
func (t *task) take(from func(int, *share) []byte, n int) bool {
	t.share = &t.conn.srv.unconnected
	if t.conn.ctrl != nil {
		t.share = &t.conn.ctrl.share
	}
	t.buf = from(n, t.share)
	return t.buf != nil
}

// wait lets then run when there is a buffer of n bytes.
func (t *task) wait(n int, then func(*task)) {
	t.then = then
	t.conn.srv.pool.wait(&t.waiter, n, t.share)
}

// withBuffer runs then with a buffer of n bytes: now, or when there is memory.
func (t *task) withBuffer(n int, then func(*task)) {
	if t.take(t.conn.srv.pool.get, n) {
		then(t)
	} else {
		t.wait(n, then)
	}
}

func (t *task) granted(buf []byte) {
	t.buf = buf
	t.then(t)
}

func (t *task) giveBack() {
	if t.buf != nil {
		t.conn.srv.pool.put(t.buf, t.share)
		t.buf = nil
	}
}

// complete answers the command. The slot may be in use again when it returns.
func (t *task) complete(status nvme.Status, result uint64) {
	if !t.cmd.SQE.FromController() || !status.OK() {
		t.cmd.Data = nil
		t.giveBack() // now: a host that does not read its answers must not hold memory
	}
	t.cmd.Complete(status, result)
}

// fail answers with an error and records it, with the byte of the command that is wrong.
func (t *task) fail(status nvme.Status, loc uint16) {
	if c := t.conn.ctrl; c != nil {
		status |= nvme.StatusMore
		c.logError(t, status, loc)
	}
	t.complete(status, 0)
}

// ended says in a log line why a connection is over.
func (c *conn) ended(err error) {
	log := c.srv.log.With("address", c.nc.RemoteAddr())
	if c.ctrl != nil {
		log = log.With("host", c.ctrl.hostNQN, "subsystem", c.ctrl.sub.nqn, "cntlid", c.ctrl.cntlid, "qid", c.qid)
	}
	var e *tcp.Error
	switch {
	case err == nil:
		log.Debug("connection closed by the host")
	case errors.As(err, &e) && e.FES != 0 && !e.Remote:
		c.srv.noise.log(log, slog.LevelWarn, "connection ended: the host broke the protocol", "error", err)
	default:
		c.srv.noise.log(log, slog.LevelInfo, "connection ended", "error", err)
	}
}

// quiet lets one message a second through: what a host or a broken disk causes again and again must not fill the log.
type quiet struct {
	mu      sync.Mutex
	last    time.Time
	dropped int
}

func (q *quiet) log(l *slog.Logger, level slog.Level, msg string, args ...any) {
	if !l.Enabled(context.Background(), level) {
		return
	}
	q.mu.Lock()
	now := time.Now()
	if now.Sub(q.last) < time.Second {
		q.dropped++
		q.mu.Unlock()
		return
	}
	dropped := q.dropped
	q.last, q.dropped = now, 0
	q.mu.Unlock()
	if dropped > 0 {
		args = append(args, "suppressed", dropped)
	}
	l.Log(context.Background(), level, msg, args...)
}
