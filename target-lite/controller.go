package targetlite

import (
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/tcp"
	"hawser.dev/hawser/nvme/wire"
	"hawser.dev/hawser/target-lite/backend"
)

const (
	aerLimit       = 3 // AERL and ACL, 0's based
	errorLogSize   = 128
	kasGranularity = time.Second
	// A discovery controller without a keep alive timeout does not live forever (Linux: NVMET_DISC_KATO_MS).
	discoveryKATO = 120 * time.Second
	readyTimeout  = 15 * time.Second // CAP.TO; enabling takes no time
	// RTD3E: flushing volatile caches on shutdown may take that long.
	shutdownTime = 60 * time.Second
)

var (
	errKeepAlive  = errors.New("keep alive timeout: the host was not heard of in time")
	errAdminGone  = errors.New("the controller's admin queue is gone")
	errReset      = errors.New("the host has reset or shut down the controller")
	errShutdown   = errors.New("the target shuts down")
	errEvicted    = errors.New("too many connections have not completed Connect")
	errDrainStuck = errors.New("the host did not close the connection of a target that shuts down")
)

// controller is one host's association with a subsystem (dynamic controller model).
type controller struct {
	srv     *Server
	sub     *subsystem
	cntlid  uint16
	hostNQN nvme.NQN
	hostID  nvme.UUID
	since   time.Time
	share   share

	// What I/O commands look at.
	live     atomic.Bool // enabled, ready, not shut down, not failed
	traffic  atomic.Bool // a command has come since the last tick
	throughs atomic.Bool // the host has switched the write cache off

	mu                   sync.Mutex
	cc                   wire.CC
	csts                 wire.CSTS
	gone                 bool
	flushing, flushAgain bool             // for a shutdown
	draining             bool             // the admin queue is to be drained after the last I/O queue
	queues               map[uint16]*conn // connected, admin queue included
	kato                 time.Duration    // 0: no keep alive
	katoMS               uint32           // as the host set it
	timer                *time.Timer
	heard                time.Time
	features             map[uint8]uint32 // of those that are only remembered
	aec                  uint32           // Asynchronous Event Configuration
	aers                 []*task          // oldest first
	events               []wire.AsyncEvent
	masked               map[uint8]bool // log pages whose event was sent and that were not read since
	errors               []wire.ErrorLogEntry
	errCount             uint64
	changed              map[uint32]bool // namespaces, for the changed namespace list
}

func newController(srv *Server, sub *subsystem, d *wire.ConnectData, kato uint32) *controller {
	c := &controller{
		srv: srv, sub: sub, hostNQN: d.HostNQN, hostID: d.HostID, since: time.Now(),
		queues: map[uint16]*conn{}, features: map[uint8]uint32{}, masked: map[uint8]bool{}, changed: map[uint32]bool{},
	}
	c.aec, c.katoMS = c.oaes(), kato
	return c
}

func (c *controller) oaes() uint32 {
	if c.sub.discovery {
		return wire.NoticeDiscovery
	}
	return wire.NoticeNamespace
}

// setKATO takes a keep alive timeout in ms and starts its timer. The mutex is held.
func (c *controller) setKATO(ms uint32) {
	c.katoMS = ms
	c.kato = (time.Duration(ms)*time.Millisecond + kasGranularity - 1) / kasGranularity * kasGranularity
	if c.kato == 0 && c.sub.discovery {
		c.kato = discoveryKATO
	}
	c.heard = time.Now()
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if c.kato > 0 && !c.gone {
		c.timer = time.AfterFunc(c.kato/4, c.tick)
	}
}

// tick looks for traffic four times in a keep alive timeout: any command counts (CTRATT.TBKAS).
func (c *controller) tick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer == nil || c.gone {
		return
	}
	if now := time.Now(); c.traffic.Swap(false) {
		c.heard = now
	} else if now.Sub(c.heard) >= c.kato {
		c.srv.log.Warn("keep alive timeout", "host", c.hostNQN, "subsystem", c.sub.nqn, "cntlid", c.cntlid, "kato", c.kato)
		c.fail(errKeepAlive)
		return
	}
	c.timer.Reset(c.kato / 4)
}

// fail sets CSTS.CFS and ends all connections. The mutex is held.
func (c *controller) fail(why error) {
	c.csts |= wire.CSTSFatal
	c.live.Store(false)
	for _, q := range c.queues {
		q.abort(why)
	}
}

// attach adds a connected queue. The status is of Connect.
func (c *controller) attach(q *conn, qid uint16) nvme.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.gone:
		return nvme.StatusConnectInvalidParameters
	case c.queues[qid] != nil:
		return nvme.StatusCommandSequenceError
	}
	c.queues[qid] = q
	if qid == 0 {
		c.setKATO(c.katoMS)
	}
	return nvme.StatusSuccess
}

// detach is called when a connection has ended. The admin queue takes the controller with it.
func (c *controller) detach(q *conn) {
	c.mu.Lock()
	if c.queues[q.qid] == q {
		delete(c.queues, q.qid)
	}
	var aers []*task
	if admin := c.queues[0]; c.draining && len(c.queues) == 1 && admin != nil {
		admin.drain()
	}
	if q.qid == 0 {
		c.gone = true
		c.live.Store(false)
		if c.timer != nil {
			c.timer.Stop()
			c.timer = nil
		}
		aers, c.aers = c.aers, nil
		for _, q := range c.queues {
			q.abort(errAdminGone)
		}
	}
	c.mu.Unlock()
	for _, t := range aers {
		t.complete(nvme.StatusAbortSQDeletion, 0)
	}
	if q.qid == 0 {
		c.sub.remove(c)
	}
}

// drain lets the commands in flight finish and ends the connections, that of the admin queue last: the host gives up
// the others with it.
func (c *controller) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	for qid, q := range c.queues {
		if qid != 0 || len(c.queues) == 1 {
			q.drain()
		}
	}
}

func (c *controller) capabilities() wire.CAP {
	return wire.NewCAP(c.srv.cfg.QueueDepth, readyTimeout, wire.CAPCQR|wire.CAPCSSNVM|wire.CAPCRWMS)
}

// property answers Property Get. False: there is none of that offset and size.
func (c *controller) property(offset uint32, size int) (uint64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case offset == wire.PropertyCAP && size == 8:
		return uint64(c.capabilities()), true
	case size != 4:
		return 0, false
	}
	switch offset {
	case wire.PropertyVS:
		return uint64(specVersion), true
	case wire.PropertyCC:
		return uint64(c.cc), true
	case wire.PropertyCSTS:
		return uint64(c.csts), true
	case wire.PropertyCRTO:
		return uint64(readyTimeout / (500 * time.Millisecond)), true
	}
	return 0, false
}

// configure answers Property Set of CC (NVM Express Base 2.0, 3.5).
func (c *controller) configure(cc wire.CC) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.cc
	c.cc = cc
	switch {
	case cc.Enabled() && !old.Enabled():
		sizes := c.sub.discovery || cc.IOSQES() == 6 && cc.IOCQES() == 4
		if cc.MPS() != 0 || cc.AMS() != 0 || cc.CSS() != 0 || !sizes {
			c.srv.log.Warn("host enables the controller with a configuration that it doesn't support", "host", c.hostNQN, "cc", uint32(cc))
			c.csts = wire.CSTSFatal
			break
		}
		c.csts = wire.CSTSReady
		c.setKATO(c.katoMS)
	case !cc.Enabled() && old.Enabled():
		c.csts = 0
		c.dropIOQueues()
	}
	switch {
	case cc.SHN() != 0 && old.SHN() == 0:
		c.shutdown()
	case cc.SHN() == 0 && old.SHN() != 0:
		c.csts &^= wire.CSTSSHSTOccurring | wire.CSTSSHSTComplete
	}
	c.live.Store(c.csts == wire.CSTSReady && c.cc.SHN() == 0)
}

func (c *controller) dropIOQueues() {
	for qid, q := range c.queues {
		if qid != 0 {
			q.abort(errReset)
		}
	}
}

// shutdown writes volatile caches back and then says so. The mutex is held.
func (c *controller) shutdown() {
	c.live.Store(false)
	c.csts = c.csts&^(wire.CSTSReady|wire.CSTSSHSTComplete) | wire.CSTSSHSTOccurring
	c.dropIOQueues()
	if c.flushing {
		c.flushAgain = true
		return
	}
	c.flushing = true
	c.srv.background.Go(c.flush)
}

// flush ends a shutdown. One runs at a time, however often the host asks.
func (c *controller) flush() {
	for {
		ok := flushAll(c.sub.namespaces.Load())
		c.mu.Lock()
		if c.flushing = c.flushAgain; c.flushing {
			c.flushAgain = false
			c.mu.Unlock()
			continue
		}
		if !ok {
			c.srv.log.Error("flush on shutdown failed", "subsystem", c.sub.nqn, "host", c.hostNQN)
			c.csts |= wire.CSTSFatal
		}
		if c.csts&wire.CSTSSHSTOccurring != 0 {
			c.csts = c.csts&^wire.CSTSSHSTOccurring | wire.CSTSSHSTComplete
		}
		c.mu.Unlock()
		return
	}
}

// flushAll flushes what has a volatile cache and waits for it.
func flushAll(t *nsTable) bool {
	ok := true
	for _, id := range t.ids {
		ns := t.get(id)
		if !ns.info.VolatileCache {
			continue
		}
		done := make(chan struct{})
		r := &backend.Request{Op: backend.OpFlush, Done: func(*backend.Request) { close(done) }}
		if !ns.backend.Submit(r) {
			if ns.kicker != nil {
				ns.kicker.Kick()
			}
			<-done
		}
		ok = ok && r.Err == nil
	}
	return ok
}

// aer takes an Asynchronous Event Request: it is answered now or held.
func (c *controller) aer(t *task) {
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		t.complete(nvme.StatusAbortSQDeletion, 0)
		return
	}
	if len(c.aers) > aerLimit {
		c.mu.Unlock()
		t.fail(nvme.StatusAERLimitExceeded|nvme.StatusDNR, noLocation)
		return
	}
	t.conn.uncount(t) // it is no work in flight
	c.aers = append(c.aers, t)
	c.deliver()
}

// notify raises an event if the host wants it. It is sent once until its log page has been read.
func (c *controller) notify(e wire.AsyncEvent, mask uint32) {
	c.mu.Lock()
	if c.aec&mask == 0 || c.masked[e.LogPage()] || c.gone {
		c.mu.Unlock()
		return
	}
	c.masked[e.LogPage()] = true
	c.events = append(c.events, e)
	c.deliver()
}

// deliver answers held requests with pending events. It releases the mutex.
func (c *controller) deliver() {
	var t *task
	var e wire.AsyncEvent
	if len(c.events) > 0 && len(c.aers) > 0 {
		t, c.aers = c.aers[0], c.aers[1:]
		e, c.events = c.events[0], c.events[1:]
	}
	c.mu.Unlock()
	if t != nil {
		t.complete(nvme.StatusSuccess, uint64(e))
	}
}

// logRead lets the event of a log page come again.
func (c *controller) logRead(g wire.GetLogPage) {
	if !g.RAE {
		c.mu.Lock()
		delete(c.masked, g.LID)
		c.mu.Unlock()
	}
}

// abort answers an Abort command: true if the named command was found and ended.
func (c *controller) abort(sqid, cid uint16) bool {
	c.mu.Lock()
	if sqid == 0 {
		for i, t := range c.aers {
			if t.cmd.SQE.CID == cid {
				c.aers = append(c.aers[:i:i], c.aers[i+1:]...)
				c.mu.Unlock()
				t.complete(nvme.StatusAbortRequested, 0)
				return true
			}
		}
	}
	q := c.queues[sqid]
	c.mu.Unlock()
	return q != nil && q.abortWaiting(cid)
}

// logError records a failed command in the error log.
func (c *controller) logError(t *task, status nvme.Status, loc uint16) {
	sqe := &t.cmd.SQE
	e := wire.ErrorLogEntry{SQID: t.conn.qid, CID: sqe.CID, Status: status, ParameterLocation: loc, NSID: sqe.NSID, TRTYPE: wire.TRTypeTCP, Opcode: sqe.Opcode}
	if sqe.Fabrics() {
		e.NSID = 0
	} else if t.conn.qid != 0 {
		e.LBA = sqe.SLBA()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errCount++
	e.ErrorCount = c.errCount
	if len(c.errors) == errorLogSize {
		c.errors = c.errors[1:]
	}
	c.errors = append(c.errors, e)
}

// state is for Status. The mutex is held.
func (c *controller) state() string {
	switch {
	case c.csts.Fatal():
		return "failed"
	case c.cc.SHN() != 0:
		return "shutdown"
	case c.csts.Ready():
		return "live"
	}
	return "connecting"
}

func (c *controller) status() ControllerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := ControllerStatus{CNTLID: c.cntlid, HostNQN: c.hostNQN, HostID: c.hostID, State: c.state(), KATO: c.kato, Since: c.since}
	for qid, q := range c.queues {
		if qid == 0 {
			s.Portal, s.Address = q.q.LocalAddr().String(), q.q.RemoteAddr().String()
		} else {
			s.Queues++
		}
	}
	return s
}

var _ tcp.Handler = (*conn)(nil)

const noLocation = math.MaxUint16

const specVersion = wire.Version(2 << 16)
