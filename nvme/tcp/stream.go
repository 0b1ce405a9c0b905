// Package tcp is one NVMe/TCP queue pair over a byte stream: framing, digests,
// in-capsule and R2T-driven data, and the batching that makes it fast. The
// host's and the controller's side share the framing.
//
// Source: NVM Express TCP Transport Specification 1.0, section 3; behaviour of
// Linux drivers/nvme/host/tcp.c and drivers/nvme/target/tcp.c where the
// specification leaves room.
package tcp

import (
	"errors"
	"net"
)

// ErrAgain says that a stream can't make progress without waiting.
var ErrAgain = errors.New("stream would block")

// Stream is the byte stream under a queue pair. One goroutine may read and
// one may write at a time; Close and Abort may be called from any.
type Stream interface {
	// Readv fills bufs in order with what is there: at least one byte, or
	// io.EOF. With nothing there it waits, or returns ErrAgain if wait is false.
	Readv(bufs [][]byte, wait bool) (int, error)
	// Writev takes bytes of bufs in order. Where the stream takes none it
	// waits, or returns ErrAgain if wait is false.
	Writev(bufs [][]byte, wait bool) (int, error)
	// CloseWrite ends the sending side in order; the peer reads EOF.
	CloseWrite() error
	// Close ends the stream and unblocks waiting calls.
	Close() error
	// Abort is Close that throws away whatever was not sent yet, so that
	// nothing written before can reach the peer later.
	Abort() error
	LocalAddr() net.Addr
	RemoteAddr() net.Addr
}

// NewStream returns the fastest Stream that conn allows: the raw descriptor
// of a TCP or unix socket on Linux, else one with a goroutine per direction.
// It owns conn from now on.
func NewStream(conn net.Conn) (Stream, error) {
	if c, ok := conn.(rawConn); ok {
		if s, err := newFDStream(c); err == nil {
			return s, nil
		} else if !errors.Is(err, errors.ErrUnsupported) {
			return nil, err
		}
	}
	return NewConnStream(conn), nil
}
