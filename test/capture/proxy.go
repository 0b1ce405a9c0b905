package capture

import (
	"encoding/binary"
	"net"
	"sync"
)

// Proxy passes connections on to a target and records each of them.
type Proxy struct {
	l      net.Listener
	target string

	mu      sync.Mutex
	changed *sync.Cond // a PDU was recorded or a connection ended
	conns   []*Conn
	wg      sync.WaitGroup
}

// Conn is the record of one connection, which is one queue.
type Conn struct {
	p    *Proxy
	pdus []PDU
	open int // directions still passed on
}

// NewProxy listens on a free port of host and passes what comes on to target, a host:port.
func NewProxy(host, target string) (*Proxy, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, err
	}
	p := &Proxy{l: l, target: target}
	p.changed = sync.NewCond(&p.mu)
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() *net.TCPAddr { return p.l.Addr().(*net.TCPAddr) }

func (p *Proxy) accept() {
	for {
		host, err := p.l.Accept()
		if err != nil {
			return
		}
		controller, err := net.Dial("tcp", p.target)
		if err != nil {
			host.Close()
			continue
		}
		c := &Conn{p: p, open: 2}
		p.mu.Lock()
		p.conns = append(p.conns, c)
		p.mu.Unlock()
		p.wg.Go(func() { c.pass(controller, host, true) })
		p.wg.Go(func() { c.pass(host, controller, false) })
	}
}

// pass passes one direction on until it ends. A PDU is recorded before it is sent, so that no answer precedes what it
// answers.
func (c *Conn) pass(to, from net.Conn, fromHost bool) {
	for {
		b, err := readPDU(from)
		if err != nil {
			break
		}
		c.p.mu.Lock()
		c.pdus = append(c.pdus, PDU{FromHost: fromHost, Bytes: b})
		c.p.changed.Broadcast()
		c.p.mu.Unlock()
		if _, err := to.Write(b); err != nil {
			break
		}
	}
	to.Close()
	from.Close()
	c.p.mu.Lock()
	c.open--
	c.p.changed.Broadcast()
	c.p.mu.Unlock()
}

// WaitFor returns once cond holds for what was recorded so far, or when stop is called.
func (p *Proxy) WaitFor(cond func(conns []*Conn) bool) (stop func(), done <-chan struct{}) {
	ch := make(chan struct{})
	stopped := false
	go func() {
		defer close(ch)
		p.mu.Lock()
		defer p.mu.Unlock()
		for !stopped && !cond(p.conns) {
			p.changed.Wait()
		}
	}()
	return func() {
		p.mu.Lock()
		stopped = true
		p.changed.Broadcast()
		p.mu.Unlock()
	}, ch
}

// Close stops listening and waits until every connection has ended. It does not end any.
func (p *Proxy) Close() []*Conn {
	p.l.Close()
	p.wg.Wait()
	return p.conns
}

// PDUs is the record. It may be called while WaitFor's condition is judged, or after Close.
func (c *Conn) PDUs() []PDU { return c.pdus }

// QID is the queue's identifier as the host's Connect command has it, or -1 before there was one.
func (c *Conn) QID() int {
	for _, pdu := range c.pdus {
		if sqe, ok := pdu.Command(); ok && sqe[0] == 0x7f && sqe[4] == 0x01 {
			return int(binary.LittleEndian.Uint16(sqe[42:]))
		}
	}
	return -1
}

// Commands counts the commands with an opcode.
func (c *Conn) Commands(opcode byte) int {
	n := 0
	for _, pdu := range c.pdus {
		if sqe, ok := pdu.Command(); ok && sqe[0] == opcode {
			n++
		}
	}
	return n
}
