package targetlite

import (
	"context"
	"errors"
)

// Server exports the subsystems of a Config. The methods may be called from any goroutine.
type Server struct {
	cfg Config
}

// New checks cfg and returns a Server for it, which owns the backends from now on; nothing listens yet. On error the
// backends remain the caller's. The error wraps ErrInvalid or an *nvme.NQNError.
func New(cfg Config) (*Server, error) { return nil, errors.ErrUnsupported }

// Listen binds all portals, or none. The error is a *PortalError. Connections wait for Serve.
func (s *Server) Listen(ctx context.Context) error { return errors.ErrUnsupported }

// Serve accepts and runs connections, after Listen if that was not called, until Shutdown has ended them in order (then
// it returns nil) or ctx is done, which ends them at once. It closes the backends before it returns.
func (s *Server) Serve(ctx context.Context) error { return errors.ErrUnsupported }

// Shutdown stops listening, lets commands in flight finish, and ends the connections; hosts go on over other paths or
// try again. When ctx is done first, what is left is cut off and ctx's error returned. Serve returns when the backends
// are closed.
func (s *Server) Shutdown(ctx context.Context) error { return errors.ErrUnsupported }

// Close releases what a Server that was never served holds.
func (s *Server) Close() error { return errors.ErrUnsupported }

// Status tells what is exported and who is connected.
func (s *Server) Status() Status { return Status{} }
