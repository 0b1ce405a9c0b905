package userdriver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/attach/frontend"
	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/nvme/tcp"
)

// Times of a path that was lost, as nvme-fabrics names them. The kernel waits 10 s between two tries; its users wait with it.
const (
	defaultReconnectDelay = 2 * time.Second
	defaultCtrlLossTMO    = 600 * time.Second
	connectTimeout        = 15 * time.Second // for one try
)

var (
	errClosed = fmt.Errorf("%w: the volume was detached", syscall.ESHUTDOWN)
	errDoubt  = fmt.Errorf("%w: the path was lost while this was written, and without keep alive it is never sure to be over", syscall.EIO)
	errLost   = fmt.Errorf("%w: no path to the target", syscall.EIO)
)

// volume is a namespace over one path as frontends want it. While the path is down commands wait for it, also those that
// were under way when it went: they are sent again, writes when the old association can do nothing any more.
type volume struct {
	info    frontend.Info
	record  *attach.Record
	connect func(context.Context) (*host.Namespace, error)
	log     *slog.Logger
	pool    sync.Pool // of *vio

	ns atomic.Pointer[host.Namespace] // nil while the path is down

	mu          sync.Mutex
	head, tail  *frontend.Request // commands that wait for a path, by Next
	failing     error             // what commands fail with instead of waiting
	reason      string            // why the path is down
	foreign     error             // what the last try found in the volume's place
	tried       chan struct{}     // closed when a try has ended, and then replaced
	doubt       bool              // among them are writes that the target may have begun
	over        time.Time         // when the target can do nothing any more for the path lost last; zero: never sure
	identity    attach.Identity
	givenUp     bool          // nothing tries any more
	again       chan struct{} // of capacity 1: try again what was given up
	soon        chan struct{} // of capacity 1: do not wait for the next try
	closing     context.CancelFunc
	supervising chan struct{} // closed when nothing reconnects any more
}

// vio is one command on its way.
type vio struct {
	host.IO
	v     *volume
	req   *frontend.Request
	ns    *host.Namespace
	tries int
}

// newVolume takes over a namespace that is connected.
func newVolume(r *attach.Record, ns *host.Namespace, connect func(context.Context) (*host.Namespace, error), log *slog.Logger) *volume {
	v := &volume{record: r, connect: connect, log: log, identity: identityOf(&ns.NamespaceInfo),
		tried: make(chan struct{}), again: make(chan struct{}, 1), soon: make(chan struct{}, 1), supervising: make(chan struct{})}
	v.info = frontend.Info{
		Size: ns.Size, BlockSize: ns.BlockSize, OptimalIO: ns.OptimalIO,
		ReadOnly: ns.ReadOnly || r.Spec.ReadOnly, CanFlush: ns.VolatileCache, CanFUA: true,
		CanTrim: ns.CanDeallocate, CanWriteZeroes: ns.CanWriteZeroes,
		Name: r.Name, Description: r.Spec.Target.String(),
	}
	v.pool.New = func() any {
		o := &vio{v: v}
		o.Done, o.User = done, o
		return o
	}
	v.ns.Store(ns)
	ctx, cancel := context.WithCancel(context.Background())
	v.closing = cancel
	go v.supervise(ctx, ns)
	return v
}

func (v *volume) Info() frontend.Info { return v.info }

// Submit hands commands to the namespace in batches.
func (v *volume) Submit(reqs ...*frontend.Request) {
	ns := v.ns.Load()
	if ns == nil {
		for _, r := range reqs {
			v.wait(r, nil)
		}
		return
	}
	var batch [64]*host.IO
	k := 0
	for _, r := range reqs {
		batch[k] = v.io(ns, r)
		if k++; k == len(batch) {
			ns.Submit(batch[:]...)
			k = 0
		}
	}
	if k > 0 {
		ns.Submit(batch[:k]...)
	}
}

// io is the command for a request.
func (v *volume) io(ns *host.Namespace, r *frontend.Request) *host.IO {
	o := v.pool.Get().(*vio)
	o.req, o.ns = r, ns
	o.Offset, o.Length, o.Data, o.FUA, o.MayUnmap = r.Offset, r.Length, r.Data, r.FUA, false
	switch r.Op {
	case frontend.OpRead:
		o.Op = host.OpRead
	case frontend.OpWrite:
		o.Op = host.OpWrite
	case frontend.OpFlush:
		o.Op = host.OpFlush
	case frontend.OpTrim:
		o.Op = host.OpDeallocate
	case frontend.OpWriteZeroes:
		o.Op, o.MayUnmap = host.OpWriteZeroes, !r.NoHole
	}
	return &o.IO
}

func done(io *host.IO) {
	o := io.User.(*vio)
	err := o.Err
	if err != nil && o.tries < maxTries && passing(err) {
		o.tries++
		o.ns.Submit(&o.IO)
		return
	}
	v, r, ns := o.v, o.req, o.ns
	o.req, o.ns, o.Data, o.tries = nil, nil, nil, 0
	v.pool.Put(o)
	if err != nil && lost(ns, err) {
		v.wait(r, ns)
		return
	}
	r.Err = nil
	if err != nil {
		r.Err = withErrno(err)
	}
	r.Done(r)
}

// lost reports whether a command failed because its association ended, not by the controller's answer.
func lost(ns *host.Namespace, err error) bool {
	if errors.As(err, new(*nvme.StatusError)) || errors.Is(err, tcp.ErrDataDigest) {
		return false
	}
	return errors.As(err, new(*tcp.Error)) || ns.Controller().Err() != nil
}

// maxTries is how often a command is sent that fails for a passing reason (nvme_max_retries of the kernel).
const maxTries = 5

// passing reports whether a command may well succeed when it is sent again over the same path.
func passing(err error) bool {
	if errors.Is(err, tcp.ErrDataDigest) {
		return true
	}
	var se *nvme.StatusError
	if !errors.As(err, &se) || se.Status.DNR() {
		return false
	}
	switch se.Status.Code() {
	case nvme.StatusAbortRequested, nvme.StatusCommandInterrupted, nvme.StatusTransientTransportError, nvme.StatusDataTransferError:
		return true
	}
	return false
}

// wait keeps a request until there is a path. used is the path it failed on; one that came up since is tried at once, but
// with a write in doubt not before the old one is over.
func (v *volume) wait(r *frontend.Request, used *host.Namespace) {
	v.mu.Lock()
	ns, err, over := v.ns.Load(), v.failing, v.over
	if err == errLost && v.foreign != nil {
		err = &errnoError{syscall.EIO, v.foreign}
	}
	if err == nil && (ns == nil || ns == used) {
		v.doubt = v.doubt || used != nil && writes(r)
		r.Next = nil
		if v.tail == nil {
			v.head = r
		} else {
			v.tail.Next = r
		}
		v.tail = r
		v.mu.Unlock()
		return
	}
	v.mu.Unlock()
	if err == nil && used != nil && writes(r) {
		if d := time.Until(over); !over.IsZero() && d > 0 {
			time.AfterFunc(d, func() { v.wait(r, nil) })
			return
		} else if over.IsZero() {
			err = errDoubt
		}
	}
	if err != nil {
		r.Err = err
		r.Done(r)
		return
	}
	ns.Submit(v.io(ns, r))
}

func writes(r *frontend.Request) bool { return r.Op != frontend.OpRead && r.Op != frontend.OpFlush }

// fence waits until the association that was lost is surely over for the target, if there are writes in doubt: until then
// they may still be carried out there, behind those that are sent now. It returns false when ctx ends. Where that time
// never comes the writes in doubt fail.
func (v *volume) fence(ctx context.Context) bool {
	v.mu.Lock()
	doubt, over := v.doubt, v.over
	v.doubt = false
	v.mu.Unlock()
	switch {
	case !doubt:
		return true
	case over.IsZero():
		v.mu.Lock()
		r := v.release()
		v.mu.Unlock()
		for r != nil {
			next := r.Next
			if r.Next = nil; writes(r) {
				r.Err = errDoubt
				r.Done(r)
			} else {
				v.wait(r, nil)
			}
			r = next
		}
		return true
	}
	t := time.NewTimer(time.Until(over))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// release takes the requests that wait.
func (v *volume) release() *frontend.Request {
	r := v.head
	v.head, v.tail = nil, nil
	return r
}

// fail ends the requests that wait, and those to come, with err.
func (v *volume) fail(err error) {
	v.mu.Lock()
	v.failing = err
	r := v.release()
	v.mu.Unlock()
	for r != nil {
		next := r.Next
		r.Next, r.Err = nil, err
		r.Done(r)
		r = next
	}
}

// resume sends what waits over a new path. It returns false when a write in doubt has come in behind the fence.
func (v *volume) resume(ns *host.Namespace) bool {
	v.mu.Lock()
	if v.doubt {
		v.mu.Unlock()
		return false
	}
	v.failing, v.reason = nil, ""
	v.ns.Store(ns)
	r := v.release()
	v.mu.Unlock()
	for r != nil {
		next := r.Next
		r.Next = nil
		v.Submit(r)
		r = next
	}
	return true
}

// supervise replaces the path whenever it is lost, until ctx ends. It owns the controller of the path in use.
func (v *volume) supervise(ctx context.Context, ns *host.Namespace) {
	defer close(v.supervising)
	for {
		select {
		case <-ns.Controller().Done():
		case <-ctx.Done():
			return
		}
		why, kato := ns.Controller().Err(), ns.Controller().KeepAlive()
		v.log.Warn("path lost", "volume", v.record.Name, "err", why)
		v.mu.Lock()
		v.ns.Store(nil)
		v.reason = fmt.Sprint(why)
		v.over = time.Time{}
		if kato > 0 {
			v.over = time.Now().Add(2 * kato) // a target may notice the silence only at the end of another period
		}
		v.mu.Unlock()
		if ns = v.reconnect(ctx); ns == nil {
			return
		}
		v.log.Info("path is back", "volume", v.record.Name)
		for resumed := false; !resumed; resumed = v.resume(ns) {
			if !v.fence(ctx) {
				v.ns.Store(ns) // for Close
				return
			}
		}
	}
}

// reconnect tries until there is a path. After --fast-io-fail-tmo commands fail instead of waiting, after --ctrl-loss-tmo the
// tries end until Retry. It returns nil when ctx ends.
func (v *volume) reconnect(ctx context.Context) *host.Namespace {
	for {
		ns := v.tryUntilGivenUp(ctx)
		if ns != nil || ctx.Err() != nil {
			return ns
		}
		v.log.Error("path given up", "volume", v.record.Name)
		v.mu.Lock()
		v.givenUp = true
		v.reason = "given up: " + v.reason
		v.mu.Unlock()
		v.fail(errLost)
		select {
		case <-v.again:
		case <-ctx.Done():
			return nil
		}
	}
}

// Retry begins anew where a path was given up; commands wait for it again.
func (v *volume) Retry() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.givenUp {
		v.givenUp, v.failing = false, nil
		v.again <- struct{}{}
	}
}

// Foreign waits until a path that was lost leads to another volume, and returns which; nil when ctx ends.
func (v *volume) Foreign(ctx context.Context) error {
	v.mu.Lock()
	tried := v.tried
	v.mu.Unlock()
	if v.ns.Load() == nil {
		select {
		case v.soon <- struct{}{}:
		default:
		}
	}
	for {
		select {
		case <-tried:
		case <-ctx.Done():
			return nil
		}
		v.mu.Lock()
		err := v.foreign
		tried = v.tried
		v.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func (v *volume) tryUntilGivenUp(ctx context.Context) *host.Namespace {
	o := &v.record.Spec.Options
	delay := seconds(o.Reconnect, defaultReconnectDelay)
	giveUp, stopGiveUp := after(seconds(o.CtrlLossTMO, defaultCtrlLossTMO))
	defer stopGiveUp()
	fastFail, stopFastFail := after(seconds(o.FastIOFailTMO, -1))
	defer stopFastFail()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		ns  *host.Namespace
		err error
	}
	results := make(chan result, 1)
	begin := func() {
		go func() {
			try, cancel := context.WithTimeout(ctx, connectTimeout)
			defer cancel()
			ns, err := v.connect(try)
			if err == nil {
				if err = v.accept(ns); err != nil {
					ns.Controller().Close(try)
					ns = nil
				}
			}
			v.mu.Lock()
			if ctx.Err() == nil { // else it was cut short, and found nothing out
				if v.foreign = nil; attach.CauseOf(err) == attach.CauseInUse {
					v.foreign = err
				}
			}
			close(v.tried)
			v.tried = make(chan struct{})
			v.mu.Unlock()
			results <- result{ns, err}
		}()
	}
	begin()
	var again <-chan time.Time // nil while a try is under way, as is soon
	var soon <-chan struct{}
	for {
		select {
		case r := <-results:
			if r.err == nil {
				return r.ns
			}
			v.mu.Lock()
			news := v.reason != r.err.Error()
			v.reason = r.err.Error()
			v.mu.Unlock()
			if news { // an outage may last, and the log with it
				v.log.Warn("cannot reconnect", "volume", v.record.Name, "err", r.err, "every", delay)
			}
			again, soon = time.After(delay), v.soon
		case <-again:
			again, soon = nil, nil
			begin()
		case <-soon:
			again, soon = nil, nil
			begin()
		case <-fastFail:
			v.fail(errLost)
		case <-giveUp:
			cancel()
		case <-ctx.Done():
			if again != nil {
				return nil
			}
			return (<-results).ns // it may have come up at the last moment
		}
	}
}

// accept checks that what a new path leads to is still the volume that clients see.
func (v *volume) accept(ns *host.Namespace) error {
	switch id := identityOf(&ns.NamespaceInfo); {
	case !id.Same(v.record.Identity):
		return &attach.Error{Cause: attach.CauseInUse, Err: fmt.Errorf("the device says it is %s, not %s", id, v.record.Identity)}
	case ns.BlockSize != v.info.BlockSize:
		return fmt.Errorf("its blocks have %d bytes now, not %d", ns.BlockSize, v.info.BlockSize)
	case ns.Size < v.info.Size:
		return fmt.Errorf("it has shrunk from %d to %d bytes", v.info.Size, ns.Size)
	case ns.ReadOnly && !v.info.ReadOnly:
		return errors.New("it is write-protected now")
	}
	return nil
}

// after is a channel that fires once after d; never when d is below 0.
func after(d time.Duration) (<-chan time.Time, func() bool) {
	if d < 0 {
		return nil, func() bool { return false }
	}
	t := time.NewTimer(d)
	return t.C, t.Stop
}

func seconds(v *int, otherwise time.Duration) time.Duration {
	if v == nil {
		return otherwise
	}
	return time.Duration(*v) * time.Second
}

// Close ends the association in order. Requests that wait fail.
func (v *volume) Close(ctx context.Context) error {
	v.closing()
	<-v.supervising
	v.fail(errClosed)
	if ns := v.ns.Swap(nil); ns != nil {
		return ns.Controller().Close(ctx)
	}
	return nil
}

func (v *volume) Volume() frontend.Volume { return v }

func (v *volume) Identity() attach.Identity {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.identity
}

func (v *volume) Paths() []attach.Path {
	spec := v.record.Paths[0]
	p := attach.Path{Portal: spec.Portal.String(), Binding: spec.Binding.String(), Transport: string(spec.Portal.Transport), State: attach.PathConnecting}
	v.mu.Lock()
	p.Reason = v.reason
	if v.failing == errLost {
		p.State = attach.PathDead
	}
	v.mu.Unlock()
	ns := v.ns.Load()
	if ns == nil || ns.Controller().Err() != nil {
		return []attach.Path{p}
	}
	c := ns.Controller()
	id := int(c.ID())
	p.State, p.Reason, p.CNTLID = attach.PathLive, "", &id
	p.Queues, p.QueueDepth = c.Queues()
	p.KeepAliveTMO = int(c.KeepAlive() / time.Second)
	p.HdrDigest, p.DataDigest = v.record.Spec.Options.HdrDigest, v.record.Spec.Options.DataDigest
	return []attach.Path{p}
}

func identityOf(n *host.NamespaceInfo) attach.Identity {
	return attach.Identity{NSID: n.NSID, UUID: n.UUID, NGUID: n.NGUID, EUI64: n.EUI64, Size: n.Size, BlockSize: n.BlockSize}
}

// errnoError is a command's failure with the errno that clients are told.
type errnoError struct {
	errno syscall.Errno
	err   error
}

func (e *errnoError) Error() string   { return e.err.Error() }
func (e *errnoError) Unwrap() []error { return []error{e.errno, e.err} }

// withErrno gives a failed command its errno, as Linux does (blk_errors[] in block/blk-core.c, nvme_error_status in
// drivers/nvme/host/core.c).
func withErrno(err error) error {
	var se *nvme.StatusError
	if !errors.As(err, &se) {
		return &errnoError{syscall.EIO, err}
	}
	errno := syscall.EIO
	switch se.Status.Code() {
	case nvme.StatusCapacityExceeded:
		errno = syscall.ENOSPC
	case nvme.StatusNamespaceWriteProtected, nvme.StatusAccessDenied:
		errno = syscall.EPERM
	case nvme.StatusInvalidOpcode, nvme.StatusInvalidField:
		errno = syscall.EOPNOTSUPP
	case nvme.StatusLBAOutOfRange, nvme.StatusNamespaceNotReady, nvme.StatusCommandInterrupted:
		errno = syscall.EREMOTEIO
	}
	return &errnoError{errno, err}
}
