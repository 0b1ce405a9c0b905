// Package control is the one protocol between the hawser command and the processes that serve it: agents and targets.
//
// It runs on a unix stream socket of mode 0600 in a folder of mode 0700. A frame is a big-endian 32-bit length and that many
// bytes of JSON, at most MaxFrame. The server speaks first (Hello), the client answers with its own Hello, then the client sends
// one request at a time and waits for its response. Closing the connection cancels the request being served.
//
// A service registers plain functions by method name with Handle; a client calls them with Client.Call. Errors travel as *Error,
// which carries the exit code the command ends with.
package control

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"hawser.dev/hawser/cmd/internal/cli/exit"
)

const (
	// Version is the protocol version; both ends must speak the same.
	Version = 1
	// MaxFrame bounds the JSON of one frame, in bytes.
	MaxFrame = 4 << 20
	// MaxPath is the longest path a unix socket can have (sun_path of unix(7), less its NUL).
	MaxPath = 107

	protocolName = "hawser-control"

	helloTimeout = 5 * time.Second  // for the peer's Hello
	frameTimeout = 10 * time.Second // for the rest of a frame once its length is in, and for writing one
	idleTimeout  = 2 * time.Minute  // between two requests of one connection
	answerGrace  = time.Second      // for the server's answer once the client's time is up
	drainTimeout = 5 * time.Second  // for requests being served when the server stops
	maxConns     = 64               // connections served at once
)

// Hello opens a connection, in both directions.
type Hello struct {
	Protocol string `json:"protocol"`
	Version  int    `json:"version"`
	Service  string `json:"service,omitempty"` // what answers here: "agent", "target"; empty from a client
	PID      int    `json:"pid"`
	Error    *Error `json:"error,omitempty"` // why the server will not talk to this peer
}

func (h *Hello) check() error {
	if h.Error != nil {
		return h.Error
	}
	if h.Protocol != protocolName {
		return fmt.Errorf("peer speaks %q, not %q", h.Protocol, protocolName)
	}
	if h.Version != Version {
		return fmt.Errorf("peer (pid %d) speaks version %d of the control protocol, this command version %d: use the hawser it was started with", h.PID, h.Version, Version)
	}
	return nil
}

type request struct {
	ID        uint64          `json:"id"`
	Method    string          `json:"method"`
	TimeoutMS int64           `json:"timeoutMs,omitempty"` // how long the client will wait, 0: no limit
	Params    json.RawMessage `json:"params,omitempty"`
}

type response struct {
	ID     uint64          `json:"id"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// Error is a failure reported by the serving process.
type Error struct {
	Code    int    `json:"code"`    // exit code
	Message string `json:"message"` // one line
	Hint    string `json:"hint,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Exit gives the exit code and the remedy, if any.
func (e *Error) Exit() (code int, hint string) { return e.Code, e.Hint }

// ErrorOf gives err its form on the wire.
func ErrorOf(err error) *Error {
	return &Error{Code: int(exit.CodeOf(err)), Message: err.Error(), Hint: exit.Hint(err)}
}

// OpError is the error of every function here that fails before or outside the peer's own answer.
type OpError struct {
	Op   string // "listen", "dial", "hello", "call METHOD"
	Path string // socket
	Err  error
}

func (e *OpError) Error() string {
	return fmt.Sprintf("control socket %s: %s: %v", e.Path, e.Op, e.Err)
}
func (e *OpError) Unwrap() error { return e.Err }

var errFrameSize = errors.New("frame longer than the limit")

// readFrame reads one frame and decodes it into v. atLength is called when the length has come and the body is next.
// Memory is taken as bytes arrive, never by the length the peer names.
func readFrame(r io.Reader, v any, atLength func() error) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxFrame {
		return fmt.Errorf("%w: %d bytes of at most %d", errFrameSize, n, MaxFrame)
	}
	if atLength != nil {
		if err := atLength(); err != nil {
			return err
		}
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return err
	}
	if len(body) < int(n) {
		return io.ErrUnexpectedEOF
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("frame is not what was expected: %w", err)
	}
	return nil
}

func writeFrame(w io.Writer, v any) error {
	b, err := appendFrame(nil, v)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

func appendFrame(b []byte, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(body) > MaxFrame {
		return nil, fmt.Errorf("%w: %d bytes of at most %d", errFrameSize, len(body), MaxFrame)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...), nil
}
