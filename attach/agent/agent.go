// Package agent holds attachments of the user driver: for each one a volume and the frontend that shows it.
//
// An Agent is a plain Go object; what process it lives in, and how that is spoken to, is its user's business. It knows of a
// volume only what Opened says.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/attach/frontend"
	"hawser.dev/hawser/attach/frontend/nbd"
)

// Opener connects to volumes.
type Opener interface {
	// Open connects to the volume that r describes and verifies, from the device itself, that it is the one.
	Open(ctx context.Context, r *attach.Record) (Opened, error)
}

// Opened is a volume that is connected. One that gives lost paths up may have a method Retry(), which begins anew. One that
// brings them back may have a method Foreign(ctx) error, which waits until one leads to another volume; nil when ctx ends.
type Opened interface {
	Volume() frontend.Volume
	Identity() attach.Identity
	Paths() []attach.Path
	// Close ends the association in order, within ctx, and in any case. Requests under way fail.
	Close(ctx context.Context) error
}

// Config of an Agent.
type Config struct {
	Opener Opener
	// PeerOf says who is at the other end of a unix socket.
	PeerOf func(*net.UnixConn) (attach.Client, error)
	Idle   time.Duration // how long an agent that holds nothing waits for its first attachment; 3 s
	Logger *slog.Logger  // nil discards
}

// Bounds of what an agent does by itself.
const (
	defaultIdle  = 3 * time.Second
	closeTimeout = 5 * time.Second        // for the orderly end of an association
	cutTimeout   = 500 * time.Millisecond // for the commands of clients that are cut off
	flushTimeout = 10 * time.Second       // where the caller names none
	firstRetry   = 250 * time.Millisecond // between two tries to open a volume again
	lastRetry    = 15 * time.Second
)

// ErrEnding means that the agent holds nothing and is about to end: another one is needed.
var ErrEnding = errors.New("the agent is ending")

// Agent holds attachments.
type Agent struct {
	cfg Config
	log *slog.Logger

	mu     sync.Mutex
	held   map[string]*attachment
	ending bool
	ended  chan struct{} // closed when ending is set
	idle   *time.Timer
}

// New makes an agent that holds nothing yet.
func New(cfg Config) *Agent {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Idle <= 0 {
		cfg.Idle = defaultIdle
	}
	a := &Agent{cfg: cfg, log: cfg.Logger, held: map[string]*attachment{}, ended: make(chan struct{})}
	a.mu.Lock() // the timer's function uses the timer
	a.idle = time.AfterFunc(cfg.Idle, a.endIfEmpty)
	a.mu.Unlock()
	return a
}

// Ended is closed when the agent holds nothing any more: after its last attachment was detached, or when none came.
func (a *Agent) Ended() <-chan struct{} { return a.ended }

func (a *Agent) endIfEmpty() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.held) == 0 && !a.ending {
		a.ending = true
		a.idle.Stop()
		close(a.ended)
	}
}

// An attachment is one volume and its frontend. What changes it holds busy.
type attachment struct {
	busy chan struct{} // of capacity 1: full while an operation is at work

	// Written under busy and Agent.mu, so that either is enough to read them.
	record *attach.Record
	opened Opened
	server *nbd.Server
	gate   *gate
	served chan error // the result of the server's Serve

	up   chan struct{} // closed when opened is there
	soon chan struct{} // of capacity 1: do not wait for the next try to open it
	stop func()        // ends the tries to open it

	// Under Agent.mu.
	tried   chan struct{} // closed when a try to open it has failed, and then replaced
	foreign error         // what that try found in its place
}

func (h *attachment) lock(ctx context.Context) error {
	select {
	case h.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *attachment) unlock() { <-h.busy }

// SocketPath is where an attachment's socket is, in the state folder dir.
func SocketPath(dir, name string) string { return filepath.Join(dir, "sockets", name) }

// Attach opens the volume of r and shows it on socket. It returns when I/O through the socket works. A volume that
// is held already stays as it is; Attach then waits for it to be live.
func (a *Agent) Attach(ctx context.Context, r *attach.Record, socket string) (attach.Status, error) {
	a.mu.Lock()
	if a.ending {
		a.mu.Unlock()
		return attach.Status{}, ErrEnding
	}
	h, have := a.held[r.Name]
	if !have {
		h = a.hold(r)
	}
	a.mu.Unlock()
	if have {
		return a.await(ctx, h, r)
	}
	defer h.unlock()
	err := a.open(ctx, h, socket)
	if err == nil && ctx.Err() != nil { // nobody is there to hear of it
		err = context.Cause(ctx)
		if _, cerr := a.close(ctx, h, attach.DetachOptions{Force: true}); cerr != nil {
			a.log.Error("cannot take back", "volume", r.Name, "err", cerr)
		}
	}
	if err != nil {
		a.drop(h)
		return attach.Status{}, err
	}
	a.log.Info("attached", "volume", r.Name, "target", r.Spec.Target.String(), "socket", socket)
	return a.status(h), nil
}

// hold makes the entry of an attachment, busy. a.mu is held.
func (a *Agent) hold(r *attach.Record) *attachment {
	h := &attachment{busy: make(chan struct{}, 1), record: r, up: make(chan struct{}), soon: make(chan struct{}, 1), tried: make(chan struct{}), stop: func() {}}
	h.busy <- struct{}{}
	a.held[r.Name] = h
	a.idle.Stop()
	return h
}

// drop forgets an attachment; the agent ends with its last.
func (a *Agent) drop(h *attachment) {
	a.mu.Lock()
	if a.held[h.record.Name] == h {
		delete(a.held, h.record.Name)
	}
	a.mu.Unlock()
	a.endIfEmpty()
}

// await waits until an attachment that is held already works.
func (a *Agent) await(ctx context.Context, h *attachment, r *attach.Record) (attach.Status, error) {
	if err := a.awaitOpen(ctx, h); err != nil {
		return attach.Status{}, err
	}
	if err := h.lock(ctx); err != nil {
		return attach.Status{}, err
	}
	defer h.unlock()
	if h.server == nil {
		return attach.Status{}, ErrEnding // detached in between
	}
	if h.record.Spec.Target.Name != r.Spec.Target.Name || !h.record.Identity.Same(r.Identity) {
		return attach.Status{}, &attach.Error{Cause: attach.CauseInUse, Err: fmt.Errorf("the agent holds %s of %s under the name %s", h.record.Identity, h.record.Spec.Target.Name, r.Name)}
	}
	if r, ok := h.opened.(interface{ Retry() }); ok {
		r.Retry() // a path that was given up
	}
	// A read comes back when a path works: it waits for one, as any command does.
	reading, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if f, ok := h.opened.(interface{ Foreign(context.Context) error }); ok {
		go func() { cancel(f.Foreign(reading)) }()
	}
	if err := checkRead(reading, h.opened.Volume()); err != nil {
		for _, why := range []error{err, context.Cause(reading)} {
			if attach.CauseOf(why) == attach.CauseInUse {
				return attach.Status{}, foreign(r.Name, why)
			}
		}
		for _, p := range h.opened.Paths() {
			if p.Reason != "" {
				err = fmt.Errorf("%s: %s", p.Portal, p.Reason)
			}
		}
		return attach.Status{}, &attach.Error{Cause: attach.CauseUnreachable, Err: fmt.Errorf("%s is attached, but does not work: %w", r.Name, err),
			Hint: "it goes on by itself once its target answers"}
	}
	return a.status(h), nil
}

// awaitOpen waits until h was opened again.
func (a *Agent) awaitOpen(ctx context.Context, h *attachment) error {
	a.mu.Lock()
	tried := h.tried
	a.mu.Unlock()
	select {
	case h.soon <- struct{}{}:
	default:
	}
	for {
		select {
		case <-h.up:
			return nil
		case <-tried:
		case <-ctx.Done():
			return &attach.Error{Cause: attach.CauseUnreachable, Err: fmt.Errorf("%s is attached, but its target does not answer: %w", h.record.Name, context.Cause(ctx))}
		}
		a.mu.Lock()
		err := h.foreign
		tried = h.tried
		a.mu.Unlock()
		if err != nil {
			return foreign(h.record.Name, err)
		}
	}
}

// foreign is the error for an attachment whose target shows another volume in its place.
func foreign(name string, err error) error {
	return &attach.Error{Cause: attach.CauseInUse, Err: fmt.Errorf("%s is attached, but does not work: %w", name, err),
		Hint: "the target has changed what it shows: look at it before using either"}
}

// open connects h and starts its frontend. h is busy.
func (a *Agent) open(ctx context.Context, h *attachment, socket string) (err error) {
	opened, err := a.cfg.Opener.Open(ctx, h.record)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			a.closeVolume(ctx, h.record.Name, opened)
		}
	}()
	if id := opened.Identity(); !id.Same(h.record.Identity) {
		return &attach.Error{Cause: attach.CauseInUse, Err: fmt.Errorf("the device says it is %s, not %s", id, h.record.Identity),
			Hint: "the target has changed what it shows: look at it before using either"}
	}
	if err := checkRead(ctx, opened.Volume()); err != nil {
		return fmt.Errorf("first read of %s: %w", h.record.Name, err)
	}
	g, err := listen(socket, a.cfg.PeerOf)
	if err != nil {
		return err
	}
	a.mu.Lock()
	h.opened, h.gate = opened, g
	a.mu.Unlock()
	a.serve(h)
	close(h.up)
	return nil
}

// serve shows h on its gate. h is busy.
func (a *Agent) serve(h *attachment) {
	g := h.gate
	g.open()
	server := nbd.NewServer(h.opened.Volume(), nbd.Options{Logger: a.log.With("volume", h.record.Name)})
	served := make(chan error, 1)
	a.mu.Lock()
	h.server, h.served = server, served
	a.mu.Unlock()
	go func() {
		err := server.Serve(context.Background(), g)
		if err != nil {
			a.log.Warn("frontend ended", "volume", h.record.Name, "err", err)
		}
		served <- err
	}()
}

// Restore takes over attachments that another agent held before it died. It returns at once; each volume is opened again,
// with growing pauses, until it works or is detached.
func (a *Agent) Restore(records []*attach.Record, socket func(name string) string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range records {
		if a.held[r.Name] != nil || a.ending {
			continue
		}
		h := a.hold(r)
		<-h.busy // whoever detaches it needs not wait for the target
		ctx, cancel := context.WithCancel(context.Background())
		stopped := make(chan struct{})
		h.stop = func() { cancel(); <-stopped }
		go func() {
			defer close(stopped)
			a.reopen(ctx, h, socket(r.Name))
		}()
	}
}

func (a *Agent) reopen(ctx context.Context, h *attachment, socket string) {
	var last string
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		err := a.open(ctx, h, socket)
		if err == nil {
			a.log.Info("attached again", "volume", h.record.Name)
			return
		}
		if ctx.Err() != nil {
			return
		}
		a.mu.Lock()
		if h.foreign = nil; attach.CauseOf(err) == attach.CauseInUse {
			h.foreign = err
		}
		close(h.tried)
		h.tried = make(chan struct{})
		a.mu.Unlock()
		if err.Error() != last { // the target may be away for long
			last = err.Error()
			a.log.Warn("cannot attach again", "volume", h.record.Name, "err", err, "next", pause)
		}
		select {
		case <-time.After(pause):
		case <-h.soon:
		case <-ctx.Done():
			return
		}
	}
}

// Detach lets a volume go: it refuses while clients are connected, flushes, closes, and removes the socket.
// attach.ErrNotAttached if it is not held. On any other error the attachment is as it was.
func (a *Agent) Detach(ctx context.Context, name string, opts attach.DetachOptions) (attach.DetachResult, error) {
	a.mu.Lock()
	h := a.held[name]
	a.mu.Unlock()
	if h == nil {
		a.endIfEmpty() // it was started for an attach that never came
		return attach.DetachResult{}, attach.ErrNotAttached
	}
	h.stop()
	if err := h.lock(ctx); err != nil {
		return attach.DetachResult{}, err
	}
	defer h.unlock()
	a.mu.Lock()
	gone := a.held[name] != h
	a.mu.Unlock()
	if gone {
		return attach.DetachResult{}, attach.ErrNotAttached
	}
	var res attach.DetachResult
	if h.server != nil {
		var err error
		if res, err = a.close(ctx, h, opts); err != nil {
			return attach.DetachResult{}, err
		}
	}
	a.log.Info("detached", "volume", name, "dataLost", res.DataLost)
	a.drop(h)
	return res, nil
}

// close ends frontend and volume of h, which is busy.
func (a *Agent) close(ctx context.Context, h *attachment, opts attach.DetachOptions) (res attach.DetachResult, err error) {
	name := h.record.Name
	if !opts.Force {
		if err := shutdownIdle(ctx, h.server); errors.Is(err, nbd.ErrBusy) {
			return res, attach.InUse(name, h.gate.clients())
		}
	} else {
		if h.server.Clients() > 0 {
			res.DataLost = attach.DataLostPossible
		}
		cut, cancel := context.WithTimeout(context.WithoutCancel(ctx), cutTimeout)
		if err := h.server.Shutdown(cut); err != nil {
			a.log.Warn("clients cut off", "volume", name, "err", err)
		}
		cancel()
	}
	timeout := opts.FlushTimeout
	if timeout <= 0 {
		timeout = flushTimeout
	}
	fctx, cancel := context.WithTimeout(ctx, timeout)
	err = flush(fctx, h.opened.Volume())
	cancel()
	if err != nil {
		if !opts.Force {
			a.resume(h)
			if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
				err = fmt.Errorf("it did not finish in %v", timeout)
			}
			return res, &attach.Error{Cause: attach.CauseUnreachable, Err: fmt.Errorf("flush of %s: %w", name, err),
				Hint: "it stays attached; --force lets it go, and what was written but not flushed may be lost"}
		}
		a.log.Warn("flush", "volume", name, "err", err)
		res.DataLost = attach.DataLostPossible
	}
	// From here on there is no way back, whoever loses patience.
	h.gate.remove()
	a.closeVolume(ctx, name, h.opened)
	a.mu.Lock()
	h.server, h.opened, h.gate = nil, nil, nil
	a.mu.Unlock()
	return res, nil
}

// shutdownIdle is nbd.Server.ShutdownIdle with a little patience: a client that has gone is counted until its connection's
// end was read.
func shutdownIdle(ctx context.Context, server *nbd.Server) error {
	ctx, cancel := context.WithTimeout(ctx, cutTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := server.ShutdownIdle(ctx)
		if !errors.Is(err, nbd.ErrBusy) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// resume shows h again after its server was shut down in vain.
func (a *Agent) resume(h *attachment) {
	<-h.served
	a.serve(h)
}

func (a *Agent) closeVolume(ctx context.Context, name string, opened Opened) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := opened.Close(ctx); err != nil {
		a.log.Warn("close", "volume", name, "err", err)
	}
}

// Shutdown lets all volumes go, at once and in bounded time, because the process ends; their records stay.
func (a *Agent) Shutdown(ctx context.Context) {
	a.mu.Lock()
	names := make([]string, 0, len(a.held))
	for name := range a.held {
		names = append(names, name)
	}
	a.mu.Unlock()
	var wg sync.WaitGroup
	for _, name := range names {
		wg.Go(func() {
			if _, err := a.Detach(ctx, name, attach.DetachOptions{Force: true, FlushTimeout: flushTimeout}); err != nil && !errors.Is(err, attach.ErrNotAttached) {
				a.log.Error("shutdown", "volume", name, "err", err)
			}
		})
	}
	wg.Wait()
	a.endIfEmpty()
}

// Status of one attachment; attach.ErrNotAttached if it is not held.
func (a *Agent) Status(name string) (attach.Status, error) {
	a.mu.Lock()
	h := a.held[name]
	a.mu.Unlock()
	if h == nil {
		return attach.Status{}, attach.ErrNotAttached
	}
	return a.status(h), nil
}

// Unused is closed once no client is connected to any volume.
func (a *Agent) Unused() <-chan struct{} {
	unused := make(chan struct{})
	go func() {
		defer close(unused)
		for used := a.gateInUse(); used != nil; used = a.gateInUse() {
			<-used
		}
	}()
	return unused
}

// gateInUse is a channel that is closed when a client leaves, nil when there are none.
func (a *Agent) gateInUse() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.held {
		if h.gate != nil {
			if left := h.gate.inUse(); left != nil {
				return left
			}
		}
	}
	return nil
}

// Names lists what the agent holds.
func (a *Agent) Names() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	names := make([]string, 0, len(a.held))
	for name := range a.held {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (a *Agent) status(h *attachment) attach.Status {
	a.mu.Lock()
	opened, g := h.opened, h.gate
	st := attach.Status{State: attach.VolumeConnecting, Identity: h.record.Identity}
	a.mu.Unlock()
	if opened == nil {
		for _, p := range h.record.Paths {
			st.Paths = append(st.Paths, attach.Path{Portal: p.Portal.String(), Binding: p.Binding.String(), State: attach.PathConnecting})
		}
		return st
	}
	st.Identity, st.Paths, st.Clients = opened.Identity(), opened.Paths(), g.clients()
	for _, p := range st.Paths {
		if p.State == attach.PathLive {
			st.State = attach.VolumeLive
		}
	}
	return st
}

// submit runs one request and waits for it or for ctx; when ctx is first, the request and its buffer stay the volume's.
func submit(ctx context.Context, vol frontend.Volume, req *frontend.Request) error {
	done := make(chan error, 1)
	req.Done = func(r *frontend.Request) { done <- r.Err }
	vol.Submit(req)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func flush(ctx context.Context, vol frontend.Volume) error {
	if !vol.Info().CanFlush {
		return nil
	}
	return submit(ctx, vol, &frontend.Request{Op: frontend.OpFlush})
}

// checkRead reads the first block.
func checkRead(ctx context.Context, vol frontend.Volume) error {
	info := vol.Info()
	if info.Size < int64(info.BlockSize) {
		return nil // nothing there to read
	}
	return submit(ctx, vol, &frontend.Request{Op: frontend.OpRead, Length: int64(info.BlockSize), Data: alignedBlock(info.BlockSize)})
}

// commandOf is the name of a process, empty when it cannot be known.
func commandOf(pid int) string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(b), "?"))
}
