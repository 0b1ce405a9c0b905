package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Client is a connection to a control socket. Its calls are serialised.
type Client struct {
	path   string
	c      *net.UnixConn
	server Hello

	mu  sync.Mutex // one request at a time on the wire
	id  uint64
	err error // set when the connection can no longer be trusted to be in step
}

// Dial connects to the socket path, checks that the process behind it is the same user's or root's and that it is service.
// When nothing listens the error is fs.ErrNotExist or syscall.ECONNREFUSED (see IsDown).
func Dial(ctx context.Context, path, service string) (*Client, error) {
	c, hello, err := dial(ctx, path, service)
	if err != nil {
		return nil, &OpError{Op: "dial", Path: path, Err: err}
	}
	return &Client{path: path, c: c, server: hello}, nil
}

func dial(ctx context.Context, path, service string) (_ *net.UnixConn, hello Hello, err error) {
	if len(path) > MaxPath {
		return nil, hello, fmt.Errorf("the path has %d bytes and a unix socket's at most %d", len(path), MaxPath)
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, hello, err
	}
	c := nc.(*net.UnixConn)
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	peer, err := PeerOf(c)
	if err != nil {
		return nil, hello, err
	}
	if peer.UID != 0 && peer.UID != os.Geteuid() {
		return nil, hello, &Error{Code: 8, Message: fmt.Sprintf("it is served by process %d of user %d, which is neither you nor root", peer.PID, peer.UID)}
	}
	deadline := time.Now().Add(helloTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	c.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
	}()
	if err := readFrame(c, &hello, nil); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, hello, fmt.Errorf("process %d gave no greeting: %w", peer.PID, err)
	}
	if err := hello.check(); err != nil {
		return nil, hello, err
	}
	if hello.Service != service {
		return nil, hello, fmt.Errorf("process %d there is a hawser %q, not %q", hello.PID, hello.Service, service)
	}
	if err := writeFrame(c, &Hello{Protocol: protocolName, Version: Version, PID: os.Getpid()}); err != nil {
		return nil, hello, err
	}
	c.SetDeadline(time.Time{})
	return c, hello, nil
}

// IsDown says whether err, of Dial or Call, means that no process serves the socket (any more), rather than that it refused.
func IsDown(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || isClosed(err)
}

func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// Server is what the server said of itself.
func (c *Client) Server() Hello { return c.server }

// Call sends params to method and decodes its answer into result (nil: discarded). The error is an *Error when the
// server answered with one. When ctx ends first, the connection is closed, which cancels the request in the server.
func (c *Client) Call(ctx context.Context, method string, params, result any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return &OpError{Op: "call " + method, Path: c.path, Err: c.err}
	}
	err := c.call(ctx, method, params, result)
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	c.err = err
	c.c.Close()
	return &OpError{Op: "call " + method, Path: c.path, Err: err}
}

func (c *Client) call(ctx context.Context, method string, params, result any) error {
	c.id++
	req := request{ID: c.id, Method: method}
	if params != nil {
		raw, err := json.Marshal(params)
		if err != nil {
			return err
		}
		req.Params = raw
	}
	if d, ok := ctx.Deadline(); ok {
		req.TimeoutMS = max(time.Until(d).Milliseconds(), 1)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			// The server's own clock ran out just now: its answer says what it was waiting for.
			c.c.SetDeadline(time.Now().Add(answerGrace))
			return
		}
		c.c.SetDeadline(time.Unix(1, 0))
	})
	defer stop()
	if err := writeFrame(c.c, &req); err != nil {
		return cause(ctx, err)
	}
	var resp response
	if err := readFrame(c.c, &resp, nil); err != nil {
		return cause(ctx, err)
	}
	if resp.ID != req.ID {
		return fmt.Errorf("answer %d to request %d", resp.ID, req.ID)
	}
	if resp.Error != nil {
		return resp.Error
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(resp.Result, result)
}

func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Close ends the connection; a call under way fails.
func (c *Client) Close() error { return c.c.Close() }

// Call dials path, makes one call and closes.
func Call(ctx context.Context, path, service, method string, params, result any) error {
	c, err := Dial(ctx, path, service)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(ctx, method, params, result)
}
