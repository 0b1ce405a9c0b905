package probe

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
)

// A trace watches the first connection of an association, the admin queue's, and takes the time of each exchange on it: the first
// is ICReq and ICResp (NVMe/TCP 3.6.2.2), the second Connect and its answer.
type trace struct {
	bind attach.Binding

	mu      sync.Mutex
	first   bool      // the first connection was begun
	dialed  time.Time // it began
	up      time.Time // TCP connect was done
	sent    [2]time.Time
	got     [2]time.Time
	at      int // exchange that is under way
	waiting bool
	local   net.Addr
	remote  net.Addr
}

// dial makes the TCP connections of the association (host.Options.Dial).
func (t *trace) dial(ctx context.Context, addr nvme.Addr) (net.Conn, error) {
	d := net.Dialer{FallbackDelay: -1}
	if t.bind.Source.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: t.bind.Source.AsSlice(), Zone: t.bind.Source.Zone()}
	}
	if t.bind.Interface != "" {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			if e := c.Control(func(fd uintptr) {
				err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, t.bind.Interface)
			}); e != nil {
				return e
			}
			if err != nil {
				return fmt.Errorf("bind to %s: %w", t.bind.Interface, err)
			}
			return nil
		}
	}
	t.mu.Lock()
	watch := !t.first
	if watch {
		t.first, t.dialed = true, time.Now()
	}
	t.mu.Unlock()
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(addr.Host, addr.Service))
	if err != nil || !watch {
		return c, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.up, t.local, t.remote = time.Now(), c.LocalAddr(), c.RemoteAddr()
	return &conn{c, t}, nil
}

type conn struct {
	net.Conn
	t *trace
}

func (c *conn) Write(b []byte) (int, error) {
	c.t.mark(&c.t.sent, false, b)
	return c.Conn.Write(b)
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.t.mark(&c.t.got, true, b[:n])
	return n, err
}

// The PDUs of an exchange: what asks, what answers.
var asks, answers = [2]wire.PDUType{wire.TypeICReq, wire.TypeCapsuleCmd}, [2]wire.PDUType{wire.TypeICResp, wire.TypeCapsuleResp}

// mark takes the time of what asks in the exchange under way, then of what answers. b begins with a PDU, if anything was sent or came.
func (t *trace) mark(times *[2]time.Time, answer bool, b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	want := asks
	if answer {
		want = answers
	}
	if t.at == len(times) || t.waiting != answer || len(b) == 0 || b[0] != byte(want[t.at]) {
		return
	}
	times[t.at] = time.Now()
	t.waiting = !answer
	if answer {
		t.at++
	}
}

// Steps of a connect, in order.
const (
	stepTCP        = "tcp"
	stepICReq      = "icreq"
	stepConnect    = "connect"
	stepInitialise = "initialise"
	stepRead       = "read"
)

// steps tells how far the connect came, which ended now with err or without: the steps that were done, and the one that failed.
func (t *trace) steps(err error) []Step {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	var list []Step
	for _, s := range []struct {
		name     string
		from, to time.Time
	}{
		{stepTCP, t.dialed, t.up},
		{stepICReq, t.sent[0], t.got[0]},
		{stepConnect, t.sent[1], t.got[1]},
		{stepInitialise, t.got[1], now},
	} {
		// What failed is the last step that began, or Connect if its answer said so.
		failed := err != nil && (s.to.IsZero() || s.name == stepInitialise || s.name == stepConnect && refused(err) || s.name == stepICReq && t.sent[1].IsZero())
		if failed {
			s.to = now
		}
		if s.from.IsZero() {
			s.from = now
		}
		list = append(list, Step{Name: s.name, OK: !failed, Milliseconds: ms(s.to.Sub(s.from))})
		if failed {
			break
		}
	}
	return list
}
