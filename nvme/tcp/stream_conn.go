package tcp

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// connBuf bounds what a connStream holds in each direction, in bytes.
const connBuf = 256 << 10

// connClose bounds how long an orderly Close waits for buffered bytes to leave.
const connClose = 2 * time.Second

// connStream gives any net.Conn (TLS, a pipe, another system's socket) the
// shape of a Stream by one goroutine a direction.
type connStream struct {
	conn   net.Conn
	rd, wr pipeBuf
	pumps  sync.WaitGroup
}

// pipeBuf is a bounded FIFO of bytes between a queue and a pump.
type pipeBuf struct {
	mu   sync.Mutex
	cond sync.Cond
	buf  []byte // filled part of a buffer of capacity connBuf
	err  error  // why no more will come, or be taken
	fin  bool   // writer has ended in order
}

// NewConnStream returns the Stream of any net.Conn and owns it from now on.
func NewConnStream(conn net.Conn) Stream {
	s := &connStream{conn: conn}
	for _, p := range []*pipeBuf{&s.rd, &s.wr} {
		p.cond.L = &p.mu
		p.buf = make([]byte, 0, connBuf)
	}
	s.pumps.Go(s.pumpIn)
	s.pumps.Go(s.pumpOut)
	return s
}

func (p *pipeBuf) fail(err error) {
	p.mu.Lock()
	if p.err == nil {
		p.err = err
	}
	p.cond.Broadcast()
	p.mu.Unlock()
}

func (s *connStream) pumpIn() {
	tmp := make([]byte, 64<<10)
	p := &s.rd
	for {
		n, err := s.conn.Read(tmp)
		p.mu.Lock()
		for len(p.buf)+n > connBuf && p.err == nil {
			p.cond.Wait()
		}
		if p.err == nil {
			p.buf = append(p.buf, tmp[:n]...)
			p.err = err
		}
		done := p.err != nil
		p.cond.Broadcast()
		p.mu.Unlock()
		if done {
			return
		}
	}
}

func (s *connStream) pumpOut() {
	p := &s.wr
	out := make([]byte, 0, connBuf)
	for {
		p.mu.Lock()
		for len(p.buf) == 0 && p.err == nil && !p.fin {
			p.cond.Wait()
		}
		if p.err != nil || len(p.buf) == 0 {
			fin := p.err == nil
			p.mu.Unlock()
			if fin {
				if c, ok := s.conn.(interface{ CloseWrite() error }); ok {
					c.CloseWrite()
				} else {
					s.conn.Close()
				}
				p.fail(io.ErrClosedPipe)
			}
			return
		}
		out, p.buf = p.buf, out[:0]
		p.cond.Broadcast()
		p.mu.Unlock()
		if _, err := s.conn.Write(out); err != nil {
			p.fail(err)
			s.rd.fail(err)
			return
		}
	}
}

func (s *connStream) Readv(bufs [][]byte, wait bool) (int, error) {
	p := &s.rd
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.buf) == 0 {
		if p.err != nil {
			return 0, p.err
		}
		if !wait {
			return 0, ErrAgain
		}
		p.cond.Wait()
	}
	n := 0
	for _, b := range bufs {
		n += copy(b, p.buf[n:])
	}
	p.buf = p.buf[:copy(p.buf, p.buf[n:])]
	p.cond.Broadcast()
	return n, nil
}

func (s *connStream) Writev(bufs [][]byte, wait bool) (int, error) {
	p := &s.wr
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.err == nil && len(p.buf) == connBuf {
		if !wait {
			return 0, ErrAgain
		}
		p.cond.Wait()
	}
	if p.err != nil {
		return 0, p.err
	}
	n := 0
	for _, b := range bufs {
		k := min(len(b), connBuf-len(p.buf))
		p.buf = append(p.buf, b[:k]...)
		if n += k; k < len(b) {
			break
		}
	}
	p.cond.Broadcast()
	return n, nil
}

func (s *connStream) CloseWrite() error {
	s.wr.mu.Lock()
	s.wr.fin = true
	s.wr.cond.Broadcast()
	s.wr.mu.Unlock()
	return nil
}

func (s *connStream) Close() error {
	s.CloseWrite()
	s.rd.fail(net.ErrClosed)
	late := time.AfterFunc(connClose, func() { s.Abort() })
	s.wr.mu.Lock()
	for s.wr.err == nil {
		s.wr.cond.Wait()
	}
	s.wr.mu.Unlock()
	late.Stop()
	err := s.conn.Close()
	s.pumps.Wait()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

func (s *connStream) Abort() error {
	s.rd.fail(net.ErrClosed)
	s.wr.fail(net.ErrClosed)
	if c, ok := s.conn.(interface{ SetLinger(int) error }); ok {
		c.SetLinger(0)
	}
	return s.conn.Close()
}

func (s *connStream) LocalAddr() net.Addr  { return s.conn.LocalAddr() }
func (s *connStream) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }
