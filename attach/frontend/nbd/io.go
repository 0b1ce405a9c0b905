package nbd

import (
	"errors"
	"net"
)

var errAgain = errors.New("socket would block")

// transport moves bytes between a connection and several buffers in one call.
// One goroutine may read and one may write at a time.
type transport interface {
	// readv waits for at least one byte and fills first, then second.
	readv(first, second []byte) (int, error)
	// writev writes what the socket takes of bufs. When it takes nothing it
	// waits, or returns errAgain if wait is false.
	writev(bufs [][]byte, wait bool) (int, error)
}

// connTransport serves any net.Conn. Its writes always wait.
type connTransport struct {
	nc   net.Conn
	bufs net.Buffers
}

func (t *connTransport) readv(first, second []byte) (int, error) {
	if len(first) == 0 {
		first = second
	}
	return t.nc.Read(first)
}

func (t *connTransport) writev(bufs [][]byte, wait bool) (int, error) {
	if !wait {
		return 0, errAgain
	}
	t.bufs = append(t.bufs[:0], bufs...) // WriteTo consumes its receiver
	b := t.bufs
	n, err := b.WriteTo(t.nc)
	clear(t.bufs)
	return int(n), err
}
