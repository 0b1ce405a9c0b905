package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClientGone is the cause of a handler's context when its client closed the connection.
var ErrClientGone = errors.New("the client went away")

// ErrServed is returned by Listen when a live process listens on the path already.
var ErrServed = errors.New("another process listens there")

type handler func(ctx context.Context, params json.RawMessage) (any, error)

// Server answers requests on a control socket. Register all methods before Serve.
type Server struct {
	service  string
	log      *slog.Logger
	handlers map[string]handler
	allow    func(Peer) error
}

// NewServer makes a server that calls itself service ("agent", "target") in its Hello. A nil logger discards.
func NewServer(service string, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		service: service, log: log, handlers: map[string]handler{},
		allow: func(p Peer) error { return p.allow(os.Geteuid()) },
	}
}

// Handle makes fn answer method. The parameters are the JSON of P; a field that P does not have is an error, so that a request
// from a newer command is never half obeyed. The context ends when the client goes away or its time is up.
func Handle[P, R any](s *Server, method string, fn func(ctx context.Context, params P) (R, error)) {
	if _, dup := s.handlers[method]; dup {
		panic("control: method " + method + " registered twice")
	}
	s.handlers[method] = func(ctx context.Context, raw json.RawMessage) (any, error) {
		var p P
		if len(raw) > 0 {
			dec := json.NewDecoder(bytes.NewReader(raw))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&p); err != nil {
				return nil, &Error{Code: 2, Message: fmt.Sprintf("%s: bad parameters: %v", method, err), Hint: "use the hawser the serving process was started with"}
			}
		}
		return fn(ctx, p)
	}
}

// Listen makes the socket path, mode 0600, in a folder of mode 0700 that is made when missing and must be the caller's own.
// A socket that nobody serves any more is replaced; one that is served is ErrServed.
func Listen(path string) (*net.UnixListener, error) {
	l, err := listen(path)
	if err != nil {
		return nil, &OpError{Op: "listen", Path: path, Err: err}
	}
	return l, nil
}

func listen(path string) (*net.UnixListener, error) {
	if len(path) > MaxPath {
		return nil, fmt.Errorf("the path has %d bytes and a unix socket's at most %d: use a shorter folder", len(path), MaxPath)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := checkPrivate(d); err != nil {
		return nil, err
	}
	// Two servers that start at once must not both find the old socket dead and remove each other's.
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return nil, os.NewSyscallError("flock", err)
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode().Type() != fs.ModeSocket {
			return nil, errors.New("there is a file of that name which is not a socket: remove it or choose another path")
		}
		c, err := net.DialTimeout("unix", path, helloTimeout)
		switch {
		case err == nil:
			c.Close()
			return nil, ErrServed
		case errors.Is(err, syscall.ECONNREFUSED):
			if err := os.Remove(path); err != nil {
				return nil, err
			}
		default:
			return nil, err
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func checkPrivate(d *os.File) error {
	fi, err := d.Stat()
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("folder %s belongs to another user: use a folder of your own", d.Name())
	}
	if perm := fi.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("folder %s has mode %04o and must not be open to others: use one with mode 0700", d.Name(), perm)
	}
	return nil
}

// Serve answers on l until ctx ends; then it closes l, lets requests being served finish for a bounded time, and returns nil.
// Another error of l is returned.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	// Requests outlive ctx by drainTimeout, so that the answer to the one that ended it still leaves.
	work, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	context.AfterFunc(ctx, func() {
		l.Close()
		time.AfterFunc(drainTimeout, abort)
	})
	slots := make(chan struct{}, maxConns)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := l.AcceptUnix()
		if err != nil {
			<-slots
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) {
				s.log.Warn("control: accept", "err", err)
				select { // descriptors are short: let somebody close one
				case <-time.After(100 * time.Millisecond):
				case <-ctx.Done():
				}
				continue
			}
			return &OpError{Op: "accept", Path: l.Addr().String(), Err: err}
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer c.Close()
			if err := s.serveConn(ctx, work, c); err != nil {
				s.log.Warn("control: connection ended", "err", err)
			}
		})
	}
}

func (s *Server) serveConn(ctx, work context.Context, c *net.UnixConn) error {
	peer, err := PeerOf(c)
	if err != nil {
		return err
	}
	hello := Hello{Protocol: protocolName, Version: Version, Service: s.service, PID: os.Getpid()}
	refused := s.allow(peer)
	if refused != nil {
		hello.Error = ErrorOf(refused)
	}
	c.SetDeadline(time.Now().Add(helloTimeout))
	if err := writeFrame(c, &hello); err != nil || refused != nil {
		if isClosed(err) { // whoever only looked whether somebody listens
			err = nil
		}
		return errors.Join(refused, err)
	}
	var theirs Hello
	if err := readFrame(c, &theirs, nil); err != nil {
		if isClosed(err) {
			return nil
		}
		return err
	}
	if err := theirs.check(); err != nil {
		return err
	}
	c.SetDeadline(time.Time{})

	// One goroutine reads, so that a client that goes away is seen while its request is being served.
	type inbound struct {
		req *request
		err error
	}
	frames := make(chan inbound)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			var in inbound
			in.req = new(request)
			c.SetReadDeadline(time.Time{})
			in.err = readFrame(c, in.req, func() error { return c.SetReadDeadline(time.Now().Add(frameTimeout)) })
			select {
			case frames <- in:
			case <-done:
				return
			}
			if in.err != nil {
				return
			}
		}
	}()
	for {
		idle := time.NewTimer(idleTimeout)
		var in inbound
		select {
		case in = <-frames:
			idle.Stop()
		case <-idle.C:
			return nil
		case <-ctx.Done():
			idle.Stop()
			return nil
		}
		if in.err != nil {
			if isClosed(in.err) {
				return nil
			}
			return in.err
		}

		rctx, cancel := context.WithCancelCause(work)
		answered := make(chan response, 1)
		go func() { answered <- s.answer(rctx, in.req) }()
		var resp response
		select {
		case resp = <-answered:
		case next := <-frames: // gone, broken, or talking out of turn: nobody waits for the answer
			cause := next.err
			if cause == nil {
				cause = errors.New("request sent before the last one was answered")
			}
			if isClosed(cause) {
				cause = ErrClientGone
			}
			cancel(cause)
			<-answered
			return cause
		}
		cancel(nil)
		b, err := appendFrame(nil, &resp)
		if err != nil {
			b, err = appendFrame(nil, &response{ID: resp.ID, Error: ErrorOf(fmt.Errorf("%s: answer: %w", in.req.Method, err))})
		}
		if err != nil {
			return err
		}
		c.SetWriteDeadline(time.Now().Add(frameTimeout))
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
}

func (s *Server) answer(ctx context.Context, req *request) response {
	resp := response{ID: req.ID}
	h := s.handlers[req.Method]
	if h == nil {
		resp.Error = &Error{Code: 7, Message: fmt.Sprintf("the %s does not know the method %q", s.service, req.Method), Hint: "use the hawser it was started with"}
		return resp
	}
	// The bound keeps the product below from overflowing.
	if ms := req.TimeoutMS; ms > 0 && ms < int64(24*time.Hour/time.Millisecond) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(ms)*time.Millisecond)
		defer cancel()
	}
	result, err := h(ctx, req.Params)
	if err == nil {
		resp.Result, err = json.Marshal(result)
	}
	if err != nil {
		resp.Error = ErrorOf(err)
	}
	return resp
}
