package targetlite

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/tcp"
	"hawser.dev/hawser/target-lite/backend"
)

// Server exports the subsystems of a Config. The methods may be called from any goroutine.
type Server struct {
	cfg         Config
	log         *slog.Logger
	pool        *pool
	unconnected share // of the pool, for connections before Connect
	discovery   *subsystem
	catalog     atomic.Pointer[catalog]
	portals     []*portal
	started     time.Time
	background  sync.WaitGroup // flushes on shutdown
	refusals    quiet
	noise       quiet
	crowded     quiet
	done        chan struct{} // closed when Serve is over

	mu      sync.Mutex
	state   serverState
	changed chan struct{} // closed when state changes or the last connection ends
	conns   map[*conn]struct{}
	pending []*conn            // before Connect, oldest first
	count   map[netip.Addr]int // connections by the host's address
}

// catalog is the subsystems that hosts can find. It is replaced as a whole.
type catalog struct {
	genctr uint64
	list   []*subsystem
	byNQN  map[nvme.NQN]*subsystem
}

type serverState int

const (
	stateNew serverState = iota
	stateListening
	stateServing
	stateDraining // Shutdown was called
	stateClosed
)

type portal struct {
	id    uint16
	addr  nvme.Addr
	ln    net.Listener
	bound netip.AddrPort
}

// New checks cfg and returns a Server for it, which owns the backends from now on; nothing listens yet. On error the
// backends remain the caller's. The error wraps ErrInvalid or an *nvme.NQNError.
func New(cfg Config) (*Server, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger, pool: newPool(cfg.BufferMemory, 2*cfg.MaxTransfer), started: time.Now(),
		done: make(chan struct{}), changed: make(chan struct{}), conns: map[*conn]struct{}{}, count: map[netip.Addr]int{},
	}
	cat := &catalog{genctr: 1, byNQN: map[nvme.NQN]*subsystem{}}
	taken := map[[16]byte]nvme.NQN{}
	for _, c := range cfg.Subsystems {
		sub, err := newSubsystem(c, &cfg, taken)
		if err != nil {
			return nil, err
		}
		if cat.byNQN[sub.nqn] != nil {
			return nil, invalidf("two subsystems %s", sub.nqn)
		}
		cat.byNQN[sub.nqn] = sub
		cat.list = append(cat.list, sub)
	}
	s.catalog.Store(cat)
	s.discovery = &subsystem{
		nqn: nvme.DiscoveryNQN, serial: deriveSerial("discovery"), model: "Hawser", discovery: true,
		controllers: map[uint16]*controller{}, min: 1, max: maxCNTLID,
	}
	s.discovery.access.Store(&access{any: true})
	s.discovery.namespaces.Store(&nsTable{})
	return s, nil
}

func (s *Server) subsystem(nqn nvme.NQN) *subsystem {
	if nqn.Discovery() {
		return s.discovery
	}
	return s.catalog.Load().byNQN[nqn]
}

// setState moves on to a later state; false: the state is there or beyond. The mutex is held.
func (s *Server) setState(to serverState) bool {
	if s.state >= to {
		return false
	}
	s.state = to
	s.signal()
	return true
}

func (s *Server) signal() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Listen binds all portals, or none. The error is a *PortalError. Connections wait for Serve.
func (s *Server) Listen(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateNew {
		return errors.New("the target listens already, or is closed")
	}
	var lc net.ListenConfig
	var portals []*portal
	for i, a := range s.cfg.Portals {
		network := "tcp"
		ip, err := netip.ParseAddr(a.Host)
		if err == nil {
			network = "tcp4"
			if ip.Is6() && (!ip.IsUnspecified() || s.hasIPv4Wildcard(a.Service)) {
				network = "tcp6" // IPv6 only
			} else if ip.Is6() {
				network = "tcp"
			}
		}
		ln, err := lc.Listen(ctx, network, net.JoinHostPort(a.Host, a.Service))
		if err != nil {
			for _, p := range portals {
				p.ln.Close()
			}
			return &PortalError{a, err}
		}
		portals = append(portals, &portal{id: uint16(i + 1), addr: a, ln: ln, bound: inZone(addrPort(ln.Addr()), ip.Zone())})
	}
	s.portals = portals
	s.setState(stateListening)
	return nil
}

// hasIPv4Wildcard reports that 0.0.0.0 is listened on with the same port, so that :: must leave IPv4 to it.
func (s *Server) hasIPv4Wildcard(service string) bool {
	for _, a := range s.cfg.Portals {
		if ip, err := netip.ParseAddr(a.Host); err == nil && ip.Is4() && ip.IsUnspecified() && a.Service == service {
			return true
		}
	}
	return false
}

// Portals returns the addresses listened on, after Listen.
func (s *Server) Portals() []nvme.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []nvme.Addr
	for _, p := range s.portals {
		out = append(out, nvme.Addr{Transport: nvme.TransportTCP, Host: p.bound.Addr().String(), Service: fmt.Sprint(p.bound.Port())})
	}
	return out
}

// Serve accepts and runs connections, after Listen if that was not called, until Shutdown has ended them in order (then
// it returns nil) or ctx is done, which ends them at once. It closes the backends before it returns.
func (s *Server) Serve(ctx context.Context) error {
	s.mu.Lock()
	listen := s.state == stateNew
	s.mu.Unlock()
	if listen {
		if err := s.Listen(ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	if s.state > stateListening {
		draining := s.state == stateDraining
		s.mu.Unlock()
		if !draining {
			return errors.New("the target is served already, or closed")
		}
		return s.Close()
	}
	s.setState(stateServing)
	s.mu.Unlock()

	var accepting sync.WaitGroup
	for _, p := range s.portals {
		accepting.Go(func() { s.accept(ctx, p) })
		s.log.Info("listening", "portal", p.bound)
	}
	err := s.wait(ctx, func() bool { return s.state >= stateDraining && len(s.conns) == 0 })
	if err != nil {
		s.stopListening()
		s.abortAll(errShutdown)
	}
	accepting.Wait()
	s.wait(context.Background(), func() bool { return len(s.conns) == 0 })
	return errors.Join(err, s.Close())
}

// wait returns when cond holds, which is looked at with the mutex held, or ctx is done.
func (s *Server) wait(ctx context.Context, cond func() bool) error {
	for {
		s.mu.Lock()
		ok, changed := cond(), s.changed
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *Server) stopListening() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setState(stateDraining)
	for _, p := range s.portals {
		p.ln.Close()
	}
}

func (s *Server) abortAll(why error) {
	for _, c := range s.connections() {
		c.abort(why)
	}
}

func (s *Server) connections() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		out = append(out, c)
	}
	return out
}

// Shutdown stops listening, lets commands in flight finish, and ends the connections; hosts go on over other paths or
// try again. When ctx is done first, what is left is cut off and ctx's error returned. Serve returns when the backends
// are closed.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	serving := s.state == stateServing
	s.mu.Unlock()
	if !serving {
		s.stopListening()
		return nil
	}
	s.stopListening()
	// A connection is pending until its controller knows it.
	s.mu.Lock()
	for _, c := range s.pending {
		c.drain()
	}
	s.mu.Unlock()
	for _, sub := range append(slices.Clone(s.catalog.Load().list), s.discovery) {
		for _, c := range sub.list() {
			c.drain()
		}
	}
	if err := s.wait(ctx, func() bool { return len(s.conns) == 0 }); err != nil {
		s.abortAll(errShutdown)
		return err
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close releases the portals and backends of a Server that is not served.
func (s *Server) Close() error {
	s.stopListening()
	s.mu.Lock()
	if !s.setState(stateClosed) {
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	s.background.Wait()
	var errs []error
	closed := map[backend.Backend]bool{}
	for _, sub := range s.catalog.Load().list {
		t := sub.namespaces.Load()
		for _, id := range t.ids {
			if ns := t.get(id); !closed[ns.backend] {
				closed[ns.backend] = true
				if err := ns.backend.Close(); err != nil {
					errs = append(errs, fmt.Errorf("close namespace %d of %s (%s): %w", id, sub.nqn, ns.spec, err))
				}
			}
		}
	}
	close(s.done)
	return errors.Join(errs...)
}

func (s *Server) accept(ctx context.Context, p *portal) {
	const least, most = 5 * time.Millisecond, time.Second
	pause := least
	for {
		nc, err := p.ln.Accept()
		if err == nil {
			pause = least
			s.start(nc, p)
			continue
		}
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return
		}
		// Out of descriptors or memory: the oldest connection that has not got to Connect makes room.
		s.log.Error("accept failed", "portal", p.bound, "error", err)
		s.mu.Lock()
		s.evict()
		changed := s.changed
		s.mu.Unlock()
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
		case <-changed:
		}
		t.Stop()
		pause = min(2*pause, most)
	}
}

// start runs a connection on a goroutine of its own.
func (s *Server) start(nc net.Conn, p *portal) {
	setUserTimeout(nc)
	stream, err := tcp.NewStream(nc)
	if err != nil {
		nc.Close()
		s.log.Error("can't use a connection", "address", nc.RemoteAddr(), "error", err)
		return
	}
	c := &conn{srv: s, nc: nc, portal: p}
	c.q = tcp.NewTargetQueue(stream, tcp.TargetConfig{
		Handler: c, MaxInCapsule: s.cfg.InCapsule, MaxH2CData: s.cfg.MaxTransfer, MaxTransfer: s.cfg.MaxTransfer,
		HandshakeTimeout: s.cfg.HandshakeTimeout, Logger: s.log,
	})
	from := addrPort(nc.RemoteAddr()).Addr()
	s.mu.Lock()
	full := len(s.conns) >= s.cfg.MaxConnections || s.count[from] >= max(s.cfg.MaxConnections/2, 1)
	if full || s.state >= stateDraining {
		s.mu.Unlock()
		if full {
			s.crowded.log(s.log, slog.LevelError, "too many connections, refusing more", "limit", s.cfg.MaxConnections, "address", nc.RemoteAddr())
		}
		stream.Close()
		return
	}
	s.count[from]++
	if len(s.pending) >= s.cfg.MaxPending {
		s.evict()
	}
	s.conns[c] = struct{}{}
	s.pending = append(s.pending, c)
	s.mu.Unlock()
	go func() {
		err := c.q.Run()
		c.ended(err)
		if t := c.stuck.Load(); t != nil {
			t.Stop()
		}
		s.mu.Lock()
		delete(s.conns, c)
		if s.count[from]--; s.count[from] == 0 {
			delete(s.count, from)
		}
		if len(s.conns) == 0 {
			s.signal()
		}
		s.mu.Unlock()
	}()
}

// evict cuts off the oldest connection before Connect of the address that has most of them, so that a flood from one
// does not keep others out. The mutex is held.
func (s *Server) evict() {
	count := map[netip.Addr]int{}
	var most netip.Addr
	for _, c := range s.pending {
		a := addrPort(c.nc.RemoteAddr()).Addr()
		if count[a]++; count[a] > count[most] {
			most = a
		}
	}
	for i, c := range s.pending {
		if addrPort(c.nc.RemoteAddr()).Addr() == most {
			s.pending = append(s.pending[:i], s.pending[i+1:]...)
			c.abort(errEvicted)
			return
		}
	}
}

// settled takes a connection off the pending ones: it has completed Connect, or ended.
func (s *Server) settled(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range s.pending {
		if p == c {
			s.pending = append(s.pending[:i], s.pending[i+1:]...)
			return
		}
	}
}

func (s *Server) age() time.Duration { return time.Since(s.started) }

// Status tells what is exported and who is connected.
func (s *Server) Status() Status {
	st := Status{Portals: []string{}, Subsystems: []SubsystemStatus{}, Discovery: []ControllerStatus{}, Started: s.started}
	s.mu.Lock()
	for _, p := range s.portals {
		st.Portals = append(st.Portals, p.bound.String())
	}
	st.Connections, st.Pending, st.Draining = len(s.conns), len(s.pending), s.state >= stateDraining
	s.mu.Unlock()
	for _, sub := range s.catalog.Load().list {
		st.Subsystems = append(st.Subsystems, sub.status())
	}
	for _, c := range s.discovery.list() {
		st.Discovery = append(st.Discovery, c.status())
	}
	return st
}

func (sub *subsystem) status() SubsystemStatus {
	a := sub.access.Load()
	st := SubsystemStatus{
		NQN: sub.nqn, Serial: sub.serial, Model: sub.model, AllowAnyHost: a.any,
		Hosts: append([]nvme.NQN{}, a.list...), Namespaces: []NamespaceStatus{}, Controllers: []ControllerStatus{},
	}
	t := sub.namespaces.Load()
	for _, id := range t.ids {
		ns := t.get(id)
		st.Namespaces = append(st.Namespaces, NamespaceStatus{
			NSID: id, Backing: ns.spec, Size: ns.info.Size, BlockSize: ns.info.BlockSize, UUID: ns.uuid, NGUID: ns.nguid, ReadOnly: ns.info.ReadOnly,
			Reads: ns.reads.Load(), Writes: ns.writes.Load(), ReadBytes: ns.readBytes.Load(), WriteBytes: ns.writeBytes.Load(), Errors: ns.errors.Load(),
		})
	}
	for _, c := range sub.list() {
		st.Controllers = append(st.Controllers, c.status())
	}
	return st
}
