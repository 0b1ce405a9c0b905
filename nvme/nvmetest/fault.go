package nvmetest

import (
	"net"
	"sync"
)

// FaultConn is a connection that fails as told. Offsets count the bytes of one direction from 0; the zero value of a
// field does nothing.
type FaultConn struct {
	net.Conn
	OneByteReads  bool  // Read returns one byte at a time
	OneByteWrites bool  // Write writes one byte at a time
	CutRead       int64 // the connection is closed once so many bytes were read
	CutWrite      int64 // the connection is closed once so many bytes were written
	FlipRead      Flip
	FlipWrite     Flip

	mu            sync.Mutex
	read, written int64
}

// Flip changes one bit of a direction.
type Flip struct {
	Offset int64 // of the byte
	Mask   byte  // the bits to change; 0: none
}

func (f Flip) apply(b []byte, at int64) {
	if i := f.Offset - at; i >= 0 && i < int64(len(b)) {
		b[i] ^= f.Mask
	}
}

// Read implements net.Conn.
func (c *FaultConn) Read(b []byte) (int, error) {
	c.mu.Lock()
	at := c.read
	c.mu.Unlock()
	if c.OneByteReads && len(b) > 1 {
		b = b[:1]
	}
	if c.CutRead > 0 {
		if at >= c.CutRead {
			c.Conn.Close()
			return 0, net.ErrClosed
		}
		b = b[:min(int64(len(b)), c.CutRead-at)]
	}
	n, err := c.Conn.Read(b)
	c.FlipRead.apply(b[:n], at)
	c.mu.Lock()
	c.read += int64(n)
	c.mu.Unlock()
	return n, err
}

// Write implements net.Conn.
func (c *FaultConn) Write(b []byte) (total int, err error) {
	for len(b) > 0 && err == nil {
		part := b
		if c.OneByteWrites {
			part = b[:1]
		}
		c.mu.Lock()
		at := c.written
		c.mu.Unlock()
		if c.CutWrite > 0 {
			if at >= c.CutWrite {
				c.Conn.Close()
				return total, net.ErrClosed
			}
			part = part[:min(int64(len(part)), c.CutWrite-at)]
		}
		own := append([]byte(nil), part...)
		c.FlipWrite.apply(own, at)
		var n int
		n, err = c.Conn.Write(own)
		c.mu.Lock()
		c.written += int64(n)
		c.mu.Unlock()
		total += n
		b = b[n:]
	}
	return total, err
}
