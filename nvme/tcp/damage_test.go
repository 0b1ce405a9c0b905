package tcp

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
)

// noisy damages data that it sends.
type noisy struct {
	net.Conn
	on atomic.Bool
}

func (c *noisy) Write(b []byte) (int, error) {
	if len(b) >= 4096 && c.on.Load() {
		b = slices.Clone(b)
		b[len(b)/2] ^= 1
	}
	return c.Conn.Write(b)
}

// counter adds up what is said of damage.
type counter struct {
	slog.Handler
	mu       sync.Mutex
	messages int
	commands int64
}

func (c *counter) Handle(_ context.Context, r slog.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "commands" && r.Level == slog.LevelWarn {
			c.messages++
			c.commands += a.Value.Int64()
		}
		return true
	})
	return nil
}

// TestDamageIsLogged: each side tells of every command whose data was damaged, but not each by itself.
func TestDamageIsLogged(t *testing.T) {
	const n = 200
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	x, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	y, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a, b := &noisy{Conn: x}, &noisy{Conn: y}
	var host, target counter
	host.Handler, target.Handler = slog.NewTextHandler(t.Output(), nil), slog.NewTextHandler(t.Output(), nil)
	t.Cleanup(func() { // when the queues have ended
		for _, c := range []*counter{&host, &target} {
			if c.commands != n || c.messages == 0 || c.messages > n/2 {
				t.Errorf("%d messages of %d commands, %d were damaged", c.messages, c.commands, n)
			}
		}
	})
	hc := HostConfig{DataDigest: true, Depth: 8, Logger: slog.New(&host)}
	tc := TargetConfig{MaxInCapsule: 4096, Logger: slog.New(&target)}
	p := openOn(t, NewConnStream(a), NewConnStream(b), hc, tc, &ram{mem: make([]byte, 1<<20)})
	buf := bytes.Repeat([]byte("data"), 2048)
	for i := range n {
		a.on.Store(true)
		if r := p.do(wire.OpWrite, 0, buf[:4096<<(i%2)]); r.Err != nil || r.Completion.Status != nvme.StatusTransientTransportError {
			t.Fatalf("damaged write: %v, %v", r.Err, r.Completion.Status)
		}
		a.on.Store(false)
		b.on.Store(true)
		if r := p.do(wire.OpRead, 0, make([]byte, 8192)); !errors.Is(r.Err, ErrDataDigest) {
			t.Fatalf("damaged read: %v, %v", r.Err, r.Completion.Status)
		}
		b.on.Store(false)
		if i == 0 {
			for _, c := range []*counter{&host, &target} {
				c.mu.Lock()
				if c.messages != 1 {
					t.Errorf("%d messages of the first", c.messages)
				}
				c.mu.Unlock()
			}
		}
	}
	if r := p.do(wire.OpRead, 0, make([]byte, 8192)); r.Err != nil || !r.Completion.Status.OK() {
		t.Errorf("read without damage: %v, %v", r.Err, r.Completion.Status)
	}
}
