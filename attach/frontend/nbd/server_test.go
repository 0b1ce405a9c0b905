package nbd

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"hawser.dev/hawser/attach/frontend/frontendtest"
)

// Shutdown lets what is in progress finish, answers what still comes with
// ESHUTDOWN, and then closes.
func TestShutdownDrains(t *testing.T) {
	everyKind(t, func(t *testing.T, network string, structured bool) {
		v := newVolume(t, frontendtest.Held)
		e := serve(t, network, v, Options{})
		busy, idle, partial := e.dial(structured), e.dial(structured), e.dial(structured)
		haggling := e.connect().greet(3)
		busy.send(cmd(cmdWrite, 1, 0, 4096))
		v.WaitHeld(1)
		half := cmd(cmdWrite, 2, 8192, 4096)
		partial.write(append(half.AppendTo(nil), half.payload[:100]...))

		done := make(chan error, 1)
		go func() { done <- e.Shutdown(t.Context()) }()
		idle.expectEnd()
		partial.expectEnd()
		haggling.expectEnd()
		if r := busy.do(cmd(cmdRead, 3, 0, 512)); r.Error != errnoShutdown {
			t.Errorf("%+v, want ESHUTDOWN", r)
		}
		if r := busy.do(cmd(cmdWrite, 4, 0, 128<<10)); r.Error != errnoShutdown {
			t.Errorf("%+v, want ESHUTDOWN", r)
		}
		select {
		case err := <-done:
			t.Errorf("Shutdown returned %v before the write", err)
		default:
		}
		v.Release()
		if r := busy.recv(); r.Cookie != 1 || r.Error != 0 {
			t.Errorf("%+v", r)
		}
		busy.expectEnd()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if want := append(pattern(1, 4096), make([]byte, 8192)...); !bytes.Equal(v.Bytes()[:12288], want) {
			t.Error("not just the whole write was executed")
		}
		if _, err := net.Dial(network, e.addr.String()); err == nil {
			t.Error("it still listens")
		}
	})
}

// A context that ends first cuts the connections and says what is left.
func TestShutdownCut(t *testing.T) {
	everyKind(t, func(t *testing.T, network string, structured bool) {
		v := newVolume(t, frontendtest.Held)
		e := serve(t, network, v, Options{})
		c := e.dial(structured)
		c.send(cmd(cmdWrite, 1, 0, 4096))
		v.WaitHeld(1)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := e.Shutdown(ctx)
		if !errors.Is(err, context.Canceled) || err.Error() != "nbd: shutdown: context canceled: 1 connections cut with 1 commands in progress" {
			t.Errorf("Shutdown: %v", err)
		}
		c.expectEnd()
		v.Release()
		if err := e.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown once the volume is done: %v", err)
		}
	})
}

func TestShutdownIdle(t *testing.T) {
	everyKind(t, func(t *testing.T, network string, structured bool) {
		e := serve(t, network, newVolume(t), Options{})
		c := e.dial(structured)
		if err := e.ShutdownIdle(t.Context()); !errors.Is(err, ErrBusy) {
			t.Errorf("with a client: %v", err)
		}
		if r := c.do(cmd(cmdRead, 1, 0, 512)); r.Error != 0 {
			t.Errorf("after a refused shutdown: %+v", r)
		}
		c.send(cmd(cmdDisc, 0, 0, 0))
		c.expectEnd()
		for e.ShutdownIdle(t.Context()) != nil { // until the server has seen the client leave
			time.Sleep(time.Millisecond)
		}
		if err := e.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// The end of Serve's context cuts its connections, and only its own.
func TestServeContext(t *testing.T) {
	checkLeaks(t)
	v := newVolume(t)
	e := serve(t, "unix", v, Options{})
	first := e.dial(true)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- e.Serve(ctx, ln) }()
	second := (&export{e.Server, t, ln.Addr()}).dial(false)
	if n := e.Clients(); n != 2 {
		t.Errorf("%d clients, want 2", n)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	second.expectEnd()
	if r := first.do(cmd(cmdRead, 1, 0, 512)); r.Error != 0 {
		t.Errorf("%+v", r)
	}
	if n := e.Clients(); n != 1 {
		t.Errorf("%d clients, want 1", n)
	}
}

func TestMaxConns(t *testing.T) {
	checkLeaks(t)
	e := serve(t, "unix", newVolume(t), Options{MaxConns: 2})
	first, second := e.dial(true), e.connect().greet(3)
	e.connect().expectEnd()
	if r := first.do(cmd(cmdRead, 1, 0, 512)); r.Error != 0 {
		t.Errorf("%+v", r)
	}
	second.option(optAbort, "")
	second.expectEnd()
	for { // until the server has seen it leave
		c := e.connect()
		if _, err := c.Conn.Read(make([]byte, 18)); err == nil {
			break
		}
	}
}

// Connections that come and go by the hundred leave nothing.
func TestManyConnections(t *testing.T) {
	checkLeaks(t)
	e := serve(t, "unix", newVolume(t, frontendtest.Shuffle(2)), Options{MaxConns: 1000})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 25 {
				nc, err := net.Dial(e.addr.Network(), e.addr.String())
				if err != nil {
					t.Error(err)
					return
				}
				c := &client{tb: t, Conn: nc, lengths: map[uint64]int{}}
				if j%3 > 0 {
					b := binaryGo()
					nc.Write(b)
					nc.Write(c.encode(nil, cmd(cmdWrite, 1, uint64(i)*4096, 4096), cmd(cmdRead, 2, 0, 64<<10)))
				}
				nc.Close()
			}
		})
	}
	wg.Wait()
}

// binaryGo is all a client sends until the transmission phase, without waiting.
func binaryGo() []byte {
	q := query("")
	return append(option{optGo, uint32(len(q))}.AppendTo([]byte{0, 0, 0, 3}), q...)
}

func TestSetInfo(t *testing.T) {
	everyKind(t, func(t *testing.T, network string, structured bool) {
		v := newVolume(t)
		e := serve(t, network, v, Options{})
		c := e.dial(structured)
		if r := c.do(cmd(cmdWrite, 1, 1<<20, 4096)); r.Error != errnoNoSpc {
			t.Errorf("%+v, want ENOSPC", r)
		}
		v.Resize(2 << 20)
		info := e.Info()
		info.Size = 2 << 20
		if err := e.SetInfo(info); err != nil {
			t.Fatal(err)
		}
		if r := c.do(cmd(cmdWrite, 2, 1<<20, 4096)); r.Error != 0 {
			t.Errorf("after growing: %+v", r)
		}
		info.BlockSize = 3
		if err := e.SetInfo(info); err == nil {
			t.Error("a block size of 3 was taken")
		}
	})
}

// flakyListener fails now and then as accept(2) does when descriptors run out.
type flakyListener struct {
	net.Listener
	fail int
}

func (l *flakyListener) Accept() (net.Conn, error) {
	if l.fail--; l.fail >= 0 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	if l.fail < -1 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EINVAL}
	}
	return l.Listener.Accept()
}

func TestAcceptErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := newPipeListener()
		s := NewServer(newVolume(t), Options{})
		ended := make(chan error)
		go func() { ended <- s.Serve(t.Context(), &flakyListener{ln, 20}) }()
		c := ln.dial(t)
		c.greet(3).option(optAbort, "")
		c.Close()
		if err := <-ended; !errors.Is(err, syscall.EINVAL) {
			t.Errorf("Serve: %v, want EINVAL", err)
		}
	})
}
