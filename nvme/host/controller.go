package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/tcp"
	"hawser.dev/hawser/nvme/wire"
)

// ErrAuthRequired says that the controller wants in-band authentication
// (DH-HMAC-CHAP), which this initiator doesn't speak.
var ErrAuthRequired = errors.New("the target requires in-band authentication (DH-HMAC-CHAP)")

// shutdownTimeout is how long a controller may take to shut down unless RTD3E says longer, as in Linux.
const shutdownTimeout = 5 * time.Second

// readyPoll is how often CSTS is asked while a controller becomes ready or
// shuts down: Fabrics has no event for it.
const readyPoll = 2 * time.Millisecond

// Controller is an association with one controller of a subsystem: an admin
// queue and I/O queues, each a TCP connection.
type Controller struct {
	addr nvme.Addr
	nqn  nvme.NQN
	o    Options

	admin  *tcp.HostQueue
	io     []*tcp.HostQueue
	next   atomic.Uint32 // the I/O queue of the next batch
	cntlid uint16
	quiet  bool // SQ flow control is off
	cap    wire.CAP
	vs     wire.Version
	cc     wire.CC
	id     wire.IdentifyController
	limits wire.IdentifyControllerNVM
	kato   time.Duration
	maxIO  int

	loops sync.WaitGroup
	done  chan struct{}

	mu     sync.Mutex
	queues []*tcp.HostQueue // all that were opened
	err    error            // why the association ends
	beat   *time.Timer
}

// Connect makes an association with the subsystem named nqn at addr and
// initialises its controller. The discovery subsystem gets no I/O queues.
func Connect(ctx context.Context, addr nvme.Addr, nqn nvme.NQN, o Options) (*Controller, error) {
	o, err := o.withDefaults()
	if err == nil {
		err = nqn.Validate()
	}
	if err != nil {
		return nil, &Error{"connect", addr, nqn, err}
	}
	if o.KeepAlive == 0 && !nqn.Discovery() {
		o.KeepAlive = 5 * time.Second
	}
	c, err := connect(ctx, addr, nqn, o, true)
	var se *nvme.StatusError
	if errors.As(err, &se) && se.Fabrics && se.Status.Code() == nvme.StatusConnectInvalidParameters &&
		uint16(se.Result) == wire.ConnectCmdCATTR && se.Result>>16&1 == 0 {
		c, err = connect(ctx, addr, nqn, o, false)
	}
	if err != nil {
		return nil, &Error{"connect", addr, nqn, err}
	}
	return c, nil
}

func connect(ctx context.Context, addr nvme.Addr, nqn nvme.NQN, o Options, quiet bool) (*Controller, error) {
	c := &Controller{addr: addr, nqn: nqn, o: o, quiet: quiet, cntlid: wire.CNTLIDDynamic, done: make(chan struct{}), kato: max(o.KeepAlive, 0)}
	err := c.initialise(ctx)
	if err == nil {
		go c.supervise()
		return c, nil
	}
	c.fail(err)
	c.loops.Wait()
	return nil, err
}

// initialise is the order of NVM Express Base 3.5.2 and of Linux.
func (c *Controller) initialise(ctx context.Context) (err error) {
	if c.admin, err = c.open(ctx, 0, adminDepth, adminDepth); err != nil {
		return err
	}
	if err := c.enable(ctx); err != nil {
		return err
	}
	if err := c.identify(ctx); err != nil {
		return err
	}
	c.startKeepAlive()
	if c.id.CNTRLTYPE == wire.CNTRLTypeDiscovery || c.nqn.Discovery() {
		return nil
	}
	result, err := c.Admin(ctx, "set number of queues", wire.SetFeaturesCmd(wire.FeatureNumberOfQueues, 0, wire.QueueCount(c.o.Queues)), nil)
	if err != nil {
		return err
	}
	entries := max(c.cap.Entries(), 2)
	depth := min(c.o.QueueSize, entries)
	if c.id.MAXCMD > 0 {
		depth = min(depth, int(c.id.MAXCMD))
	}
	for qid := range min(c.o.Queues, wire.Queues(uint32(result))) {
		q, err := c.open(ctx, uint16(qid+1), max(depth, 2), entries)
		if err != nil {
			return fmt.Errorf("I/O queue %d: %w", qid+1, err)
		}
		q.SetInCapsule(int(min(c.id.InCapsule(), 1<<20)))
		c.io = append(c.io, q)
	}
	return nil
}

// open makes the connection of a queue and sends Connect. depth is the commands that the queue shall hold, limit the
// most entries that the controller takes.
func (c *Controller) open(ctx context.Context, qid uint16, depth, limit int) (*tcp.HostQueue, error) {
	entries := depth
	if !c.quiet { // by its head and tail, a queue is full with one entry unused
		entries = min(depth+1, limit)
		depth = entries - 1
	}
	conn, err := c.o.dial(ctx, c.addr)
	if err != nil {
		return nil, err
	}
	s, err := tcp.NewStream(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	cfg := tcp.HostConfig{
		HeaderDigest: c.o.HeaderDigest, DataDigest: c.o.DataDigest,
		HPDA: c.o.HPDA, MaxR2T: c.o.MaxR2T, Depth: depth, Admin: qid == 0,
		Timeout: c.o.AdminTimeout, Logger: c.o.Logger,
	}
	connect := wire.Connect{QID: qid, SQSize: uint16(entries - 1), KATO: uint32(c.kato.Milliseconds())}
	if c.quiet {
		connect.CATTR = wire.ConnectDisableSQFlow
	}
	if qid > 0 {
		connect.KATO = 0
		cfg.Timeout, cfg.Spin = c.o.Timeout, c.o.Spin
		cfg.Expired = func(cid uint16) { c.abort(qid, cid) }
	}
	q, err := tcp.OpenHost(ctx, s, cfg)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.queues = append(c.queues, q)
	if c.err != nil {
		q.Close(c.err)
	}
	c.mu.Unlock()
	c.loops.Go(func() {
		if err := q.Run(); qid == 0 || !errors.Is(err, tcp.ErrClosed) {
			c.fail(err)
		}
	})
	data := wire.ConnectData{HostID: c.o.HostID, CNTLID: c.cntlid, SubNQN: c.nqn, HostNQN: c.o.HostNQN}
	result, err := send(ctx, q, "connect", connect.Command(), data.AppendTo(nil))
	if err != nil {
		return nil, err
	}
	if uint32(result)&(wire.ConnectAuthRequired|wire.ConnectSecureRequired) != 0 {
		return nil, ErrAuthRequired
	}
	if qid == 0 {
		c.cntlid = uint16(result)
	}
	return q, nil
}

// enable configures the controller and waits until it is ready.
func (c *Controller) enable(ctx context.Context) error {
	v, err := c.Property(ctx, wire.PropertyCAP, 8)
	if err != nil {
		return err
	}
	c.cap = wire.CAP(v)
	if v, err = c.Property(ctx, wire.PropertyVS, 4); err != nil {
		return err
	}
	c.vs = wire.Version(v)
	c.cc = wire.CCIOEntries
	if c.cap&wire.CAPCSSNVM == 0 && c.cap&wire.CAPCSSIOC != 0 {
		c.cc |= wire.CCCSSAll
	}
	for _, cc := range []wire.CC{c.cc, c.cc | wire.CCEnable} {
		if err := c.SetProperty(ctx, wire.PropertyCC, 4, uint64(cc)); err != nil {
			return err
		}
	}
	c.cc |= wire.CCEnable
	limit := c.cap.Timeout()
	if c.cap&wire.CAPCRWMS != 0 {
		if v, err = c.Property(ctx, wire.PropertyCRTO, 4); err != nil {
			return err
		}
		limit = max(limit, wire.CRTO(v).WithMedia())
	}
	return c.poll(ctx, limit+500*time.Millisecond, "did not become ready", wire.CSTS.Ready)
}

func (c *Controller) poll(ctx context.Context, limit time.Duration, not string, ok func(wire.CSTS) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("controller %s within %v", not, limit))
	defer cancel()
	for {
		v, err := c.Property(ctx, wire.PropertyCSTS, 4)
		csts := wire.CSTS(v)
		switch {
		case err != nil:
			return err
		case v == 0xffffffff || csts.Fatal():
			return fmt.Errorf("controller %s: fatal status (CSTS %#x)", not, v)
		case ok(csts):
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(readyPoll):
		}
	}
}

// identify reads what the controller is and refuses what can't be served.
func (c *Controller) identify(ctx context.Context) error {
	b := make([]byte, wire.IdentifySize)
	if _, err := c.Admin(ctx, "identify controller", wire.IdentifyCmd(wire.CNSController, 0, 0, 0), b); err != nil {
		return err
	}
	if err := c.id.Parse(b); err != nil {
		return err
	}
	if c.id.CNTLID != c.cntlid {
		return fmt.Errorf("identify controller: controller ID %#x, Connect said %#x", c.id.CNTLID, c.cntlid)
	}
	c.maxIO = c.o.MaxTransfer
	if m := c.id.MaxTransfer(c.cap.MPSMin()); m > 0 {
		c.maxIO = min(c.maxIO, m)
	}
	if kas := time.Duration(c.id.KAS) * 100 * time.Millisecond; c.kato > 0 && kas > 0 {
		c.kato = (c.kato + kas - 1) / kas * kas
	} else if c.kato > 0 {
		return errors.New("identify controller: the controller has no keep alive (KAS 0), but a keep alive timeout was accepted")
	}
	if c.id.CNTRLTYPE == wire.CNTRLTypeDiscovery || c.nqn.Discovery() {
		return nil
	}
	switch {
	case c.id.SUBNQN != c.nqn:
		return fmt.Errorf("identify controller: subsystem is %q", c.id.SUBNQN)
	case c.id.IOCCSZ < 4 || c.id.IORCSZ < 1:
		return fmt.Errorf("identify controller: capsules too small (IOCCSZ %d, IORCSZ %d)", c.id.IOCCSZ, c.id.IORCSZ)
	case c.id.ICDOFF != 0:
		return fmt.Errorf("identify controller: in-capsule data offset %d is not supported", c.id.ICDOFF)
	case c.id.SGLS&3 == 0:
		return errors.New("identify controller: no SGL support")
	}
	_, err := c.Admin(ctx, "identify controller (NVM)", wire.IdentifyCmd(wire.CNSCommandSetController, 0, wire.CSINVM, 0), b)
	var se *nvme.StatusError
	switch {
	case err == nil:
		err = c.limits.Parse(b)
	case errors.As(err, &se) && (se.Status.Code() == nvme.StatusInvalidField || se.Status.Code() == nvme.StatusInvalidOpcode):
		err = nil // older than the structure: no limits told
	}
	return err
}

// call is one synchronous command. Its buffer is its own, so that a caller who gave up can't be written to.
type call struct {
	tcp.Request
	done chan struct{}
}

// send runs one command on q. result is dwords 0 and 1 of the completion.
func send(ctx context.Context, q *tcp.HostQueue, op string, cmd wire.Command, data []byte) (result uint64, err error) {
	r := &call{done: make(chan struct{})}
	r.Cmd = cmd
	r.Done = func(*tcp.Request) { close(r.done) }
	if len(data) > 0 {
		r.Data = make([]byte, len(data))
		if cmd.ToController() {
			copy(r.Data, data)
		}
	}
	q.Submit(&r.Request)
	select {
	case <-r.done:
	case <-ctx.Done():
		return 0, fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
	if r.Err != nil {
		return 0, fmt.Errorf("%s: %w", op, r.Err)
	}
	if s := r.Completion.Status; !s.OK() {
		return 0, &nvme.StatusError{Op: op, Status: s, Result: r.Completion.Result(), Fabrics: cmd.Fabrics()}
	}
	if cmd.FromController() {
		copy(data, r.Data)
	}
	return r.Completion.Result(), nil
}

// Admin runs a command on the admin queue; data is sent, or filled on
// success, by the direction of its opcode. It returns dwords 0 and 1 of the
// completion. op names the command in errors.
func (c *Controller) Admin(ctx context.Context, op string, cmd wire.Command, data []byte) (uint64, error) {
	return send(ctx, c.admin, op, cmd, data)
}

// Property reads a property of 4 or 8 bytes.
func (c *Controller) Property(ctx context.Context, offset uint32, size int) (uint64, error) {
	v, err := c.Admin(ctx, "property get", wire.PropertyGetCmd(offset, size), nil)
	if size == 4 {
		v &= 0xffffffff
	}
	return v, err
}

// SetProperty writes a property of 4 or 8 bytes.
func (c *Controller) SetProperty(ctx context.Context, offset uint32, size int, v uint64) error {
	_, err := c.Admin(ctx, "property set", wire.PropertySetCmd(offset, size, v), nil)
	return err
}

// LogPage fills b, of a length that is a multiple of 4, with what p asks for from p.Offset on.
func (c *Controller) LogPage(ctx context.Context, p wire.GetLogPage, b []byte) error {
	p.Length = uint64(len(b))
	_, err := c.Admin(ctx, fmt.Sprintf("get log page %02xh", p.LID), p.Command(), b)
	return err
}

// Ping sends a Keep Alive and returns its round-trip time.
func (c *Controller) Ping(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	_, err := c.Admin(ctx, "keep alive", wire.KeepAliveCmd(), nil)
	return time.Since(start), err
}

func (c *Controller) abort(qid, cid uint16) {
	c.o.Logger.Warn("command timeout, aborting it", "addr", c.addr, "nqn", c.nqn, "queue", qid, "cid", cid)
	r := &tcp.Request{Cmd: wire.AbortCmd(qid, cid), Done: func(*tcp.Request) {}}
	c.admin.Submit(r)
}

// minBeat bounds how often Keep Alive is sent, whatever the timeout asked for.
const minBeat = 10 * time.Millisecond

// startKeepAlive sends Keep Alive at half the timeout, or with traffic based
// keep alive looks at a quarter of it whether there was traffic (Base 3.9).
// The timeout is the one asked for, as not every controller rounds it up.
func (c *Controller) startKeepAlive() {
	if c.kato <= 0 {
		return
	}
	period := c.o.KeepAlive / 2
	traffic := c.id.CTRATT&wire.CTRATTTBKAS != 0
	if traffic {
		period = c.o.KeepAlive / 4
	}
	period = max(period, minBeat)
	var pending atomic.Bool
	var sent time.Time
	var seen uint64
	r := &tcp.Request{Cmd: wire.KeepAliveCmd()}
	r.Done = func(*tcp.Request) { pending.Store(false) }
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.beat = time.AfterFunc(period, func() {
		if pending.Load() {
			if time.Since(sent) > c.kato {
				c.fail(&tcp.Error{Op: "keep alive", Err: tcp.ErrTimeout})
				return
			}
		} else if n := c.answers(); !traffic || n == seen {
			pending.Store(true)
			sent = time.Now()
			c.admin.Submit(r)
		} else {
			seen = n
		}
		c.mu.Lock()
		if c.err == nil {
			c.beat.Reset(period)
		}
		c.mu.Unlock()
	})
}

func (c *Controller) answers() (n uint64) {
	c.mu.Lock()
	queues := c.queues
	c.mu.Unlock()
	for _, q := range queues {
		n += q.Answers()
	}
	return n
}

// fail ends the association: without one of its queues it is not whole.
func (c *Controller) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	if c.beat != nil {
		c.beat.Stop()
	}
	queues := c.queues
	c.mu.Unlock()
	for _, q := range queues {
		q.Close(err)
	}
}

func (c *Controller) supervise() {
	c.loops.Wait()
	close(c.done)
}

// Done is closed when the association is over and every command is back.
func (c *Controller) Done() <-chan struct{} { return c.done }

// Err returns why the association ended, nil while it lives.
func (c *Controller) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close shuts the controller down in order (CC.SHN, then waiting for
// CSTS.SHST) within ctx, and ends the association in any case. The error
// says what of the order failed.
func (c *Controller) Close(ctx context.Context) error {
	if c.Err() != nil {
		<-c.done
		return nil
	}
	limit := max(shutdownTimeout, time.Duration(c.id.RTD3E)*time.Microsecond)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, q := range c.io {
		q.Shutdown() // first, as Linux does: a controller that shuts down may cut them off
	}
	err := c.SetProperty(ctx, wire.PropertyCC, 4, uint64(c.cc.WithSHN(wire.CCSHNNormal)))
	if err == nil {
		err = c.poll(ctx, limit, "did not shut down", wire.CSTS.ShutdownComplete)
	}
	c.mu.Lock()
	if c.err == nil {
		c.err = &Error{"close", c.addr, c.nqn, net.ErrClosed}
	}
	if c.beat != nil {
		c.beat.Stop()
	}
	c.mu.Unlock()
	for _, q := range c.queues {
		q.Shutdown()
	}
	<-c.done
	if err != nil {
		return &Error{"shut down", c.addr, c.nqn, err}
	}
	return nil
}

// Addr returns where the controller was connected.
func (c *Controller) Addr() nvme.Addr { return c.addr }

// NQN returns the subsystem asked for.
func (c *Controller) NQN() nvme.NQN { return c.nqn }

// ID returns the controller's identifier in its subsystem (CNTLID).
func (c *Controller) ID() uint16 { return c.cntlid }

// Identify returns the Identify Controller structure as read at connect.
func (c *Controller) Identify() *wire.IdentifyController { return &c.id }

// Version returns the specification's version that the controller names.
func (c *Controller) Version() wire.Version { return c.vs }

// Queues returns the number of I/O queues and the commands each may have open.
func (c *Controller) Queues() (n, depth int) {
	if len(c.io) == 0 {
		return 0, 0
	}
	return len(c.io), c.io[0].Depth()
}

// KeepAlive returns the keep alive timeout in force, 0 for none.
func (c *Controller) KeepAlive() time.Duration { return c.kato }

// MaxTransfer returns the most data that one command carries, in bytes.
func (c *Controller) MaxTransfer() int { return c.maxIO }

// LocalAddr returns the local end of the admin connection.
func (c *Controller) LocalAddr() net.Addr { return c.admin.LocalAddr() }
