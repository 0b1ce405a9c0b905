// Package nbd shows a volume as an NBD export on a socket that qemu, libnbd,
// nbd-client and every other NBD client speak to.
//
// It is the server's side of the fixed newstyle protocol: simple and structured
// replies, size constraints, trim, zeroing, FUA, flush, several connections.
// TLS, metadata contexts and extended headers are not offered. Source: the NBD
// project's doc/proto.md, whose section names the comments cite.
package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"hawser.dev/hawser/attach/frontend"
)

// Error says what a server was doing when it failed.
type Error struct {
	Op  string
	Err error
}

func (e *Error) Error() string { return "nbd: " + e.Op + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// ErrBusy is why ShutdownIdle refuses: clients are using the export.
var ErrBusy = errors.New("clients are connected")

// Options of a Server. Zero means the default.
type Options struct {
	ExportName       string        // default: the volume's name; clients may also ask for ""
	Logger           *slog.Logger  // default: none
	HandshakeTimeout time.Duration // for the whole handshake; default 10 s
	MaxConns         int           // connections at once, more are closed; default 64
	MaxInFlight      int           // commands in progress on a connection, at most 512; default 128
	MaxInFlightBytes int64         // bytes of their buffers, but always one command; default 64 MiB
}

// Server shows one volume to any number of clients.
type Server struct {
	vol      frontend.Volume
	opts     Options
	log      *slog.Logger
	info     atomic.Pointer[frontend.Info]
	pool     pool
	draining atomic.Bool // set once, under mu

	mu        sync.Mutex
	listeners map[*net.Listener]struct{} // by pointer: a listener may be of a type that can't be a key
	conns     map[*conn]struct{}
	clients   int
	gone      chan struct{} // closed when draining and the last connection has ended
}

// NewServer returns a server for vol. Serve refuses a volume or options that
// can't be served.
func NewServer(vol frontend.Volume, opts Options) *Server {
	info := vol.Info()
	if opts.ExportName == "" {
		opts.ExportName = info.Name
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	opts.HandshakeTimeout = defaultTo(opts.HandshakeTimeout, 10*time.Second)
	opts.MaxConns = defaultTo(opts.MaxConns, 64)
	opts.MaxInFlight = min(defaultTo(opts.MaxInFlight, 128), 512)
	opts.MaxInFlightBytes = defaultTo(opts.MaxInFlightBytes, 64<<20)
	s := &Server{
		vol: vol, opts: opts, log: opts.Logger,
		listeners: map[*net.Listener]struct{}{}, conns: map[*conn]struct{}{},
		gone: make(chan struct{}),
	}
	s.info.Store(&info)
	return s
}

func defaultTo[T int | int64 | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// Info is what the server tells of the volume.
func (s *Server) Info() frontend.Info { return *s.info.Load() }

// SetInfo tells of a change of the volume. Connected clients may use a new
// size at once, though the protocol has no way to tell them of it; everything
// else counts for clients that connect later.
func (s *Server) SetInfo(info frontend.Info) error {
	if err := info.Validate(); err != nil {
		return &Error{"set info", err}
	}
	s.info.Store(&info)
	return nil
}

// Clients counts the connections in the transmission phase.
func (s *Server) Clients() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clients
}

// Serve accepts connections from ln, a TCP or unix socket or any other, until
// Shutdown, or until ctx is done: then it cuts them. It closes ln, and returns
// when the last of its connections has ended. The error is nil unless
// accepting failed. A server may serve several listeners.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	defer ln.Close()
	if err := s.validate(); err != nil {
		return &Error{"serve", err}
	}
	if !s.listen(&ln) {
		return &Error{"serve", errShutdown}
	}
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		ln.Close()
		for c := range s.conns {
			if c.ln == &ln {
				c.nc.Close()
			}
		}
	})
	defer stop()
	var conns sync.WaitGroup
	err := s.accept(ctx, ln, func(nc net.Conn) {
		c := newConn(s, nc)
		if c.ln = &ln; !s.join(ctx, c) {
			s.log.Warn("nbd: connection refused", "client", nc.RemoteAddr(), "most", s.opts.MaxConns)
			nc.Close()
			return
		}
		conns.Go(func() {
			c.serve()
			s.leave(c)
		})
	})
	s.mu.Lock()
	delete(s.listeners, &ln)
	s.mu.Unlock()
	conns.Wait()
	if ctx.Err() != nil || s.draining.Load() {
		return nil
	}
	return &Error{"accept", err}
}

func (s *Server) validate() error {
	if err := s.Info().Validate(); err != nil {
		return err
	}
	if n := s.opts.ExportName; len(n) > maxString || !utf8.ValidString(n) || clip(n, maxString) != n {
		return fmt.Errorf("export name %.64q is not a string of at most %d bytes of UTF-8 without NUL", n, maxString)
	}
	return nil
}

func (s *Server) listen(ln *net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		return false
	}
	s.listeners[ln] = struct{}{}
	return true
}

// accept runs start for every connection until accepting fails for good.
func (s *Server) accept(ctx context.Context, ln net.Listener, start func(net.Conn)) error {
	const firstPause, longestPause = 5 * time.Millisecond, time.Second
	pause := firstPause
	for {
		nc, err := ln.Accept()
		if err != nil {
			if !passing(err) {
				return err
			}
			s.log.Warn("nbd: accept failed, trying again", "error", err, "after", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return ctx.Err()
			}
			pause = min(2*pause, longestPause)
			continue
		}
		pause = firstPause
		start(nc)
	}
}

// passing reports whether accepting may work again later (accept(2)).
func passing(err error) bool {
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// join counts a connection, or refuses it.
func (s *Server) join(ctx context.Context, c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil || s.draining.Load() || len(s.conns) >= s.opts.MaxConns {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

// enter counts a connection as a client: it goes into the transmission phase.
func (s *Server) enter(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		return false
	}
	s.clients++
	c.entered = true
	return true
}

func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if c.entered {
		s.clients--
	}
	if s.draining.Load() && len(s.conns) == 0 {
		close(s.gone)
	}
}

// Shutdown stops accepting, lets commands in progress finish, answers new ones
// with NBD_ESHUTDOWN, and closes each connection that has none left. When ctx
// is done first it closes the others, and returns an error: their commands are
// still with the volume.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.drain()
	s.mu.Unlock()
	select {
	case <-s.gone:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := int64(0)
	for c := range s.conns {
		c.nc.Close()
		n += c.inflight.Load()
	}
	if len(s.conns) == 0 {
		return nil
	}
	return &Error{"shutdown", fmt.Errorf("%w: %d connections cut with %d commands in progress", ctx.Err(), len(s.conns), n)}
}

// ShutdownIdle is Shutdown unless a client is in the transmission phase: then
// it changes nothing and returns ErrBusy. No client can slip in between.
func (s *Server) ShutdownIdle(ctx context.Context) error {
	s.mu.Lock()
	if n := s.clients; n > 0 && !s.draining.Load() {
		s.mu.Unlock()
		return &Error{"shutdown", fmt.Errorf("%w: %d", ErrBusy, n)}
	}
	s.drain()
	s.mu.Unlock()
	return s.Shutdown(ctx)
}

// drain begins the shutdown; s.mu is held.
func (s *Server) drain() {
	if s.draining.Swap(true) {
		return
	}
	for ln := range s.listeners {
		(*ln).Close()
	}
	for c := range s.conns {
		c.nc.SetReadDeadline(time.Now()) // wakes its reader
	}
	if len(s.conns) == 0 {
		close(s.gone)
	}
}
