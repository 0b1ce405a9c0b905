package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const testTimeout = 20 * time.Second

func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hawser-control")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

type echoParams struct {
	Text string `json:"text"`
}

type codedError struct{}

func (codedError) Error() string       { return "volume is in use" }
func (codedError) Exit() (int, string) { return 9, "close it" }

// serve starts a server with a few methods and returns its socket; started receives when "block" is running and
// ended how its context ended.
func serve(t *testing.T) (path string, started chan struct{}, ended chan error) {
	t.Helper()
	path = filepath.Join(shortDir(t), "run", "s")
	started, ended = make(chan struct{}, 1), make(chan error, 1)
	s := NewServer("test", nil)
	Handle(s, "echo", func(_ context.Context, p echoParams) (echoParams, error) { return p, nil })
	Handle(s, "fail", func(context.Context, struct{}) (struct{}, error) {
		return struct{}{}, fmt.Errorf("detach: %w", codedError{})
	})
	Handle(s, "block", func(ctx context.Context, _ struct{}) (struct{}, error) {
		started <- struct{}{}
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return struct{}{}, fmt.Errorf("waiting for the target: %w", ctx.Err())
	})
	Handle(s, "huge", func(context.Context, struct{}) (string, error) { return strings.Repeat("x", MaxFrame), nil })
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return path, started, ended
}

func dialT(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), path, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestCall(t *testing.T) {
	path, _, _ := serve(t)
	c := dialT(t, path)
	if got := c.Server(); got.PID != os.Getpid() || got.Service != "test" {
		t.Errorf("hello %+v", got)
	}
	for _, text := range []string{"", "a", strings.Repeat("ü", 300_000)} {
		var out echoParams
		if err := c.Call(t.Context(), "echo", echoParams{text}, &out); err != nil || out.Text != text {
			t.Fatalf("echo of %d bytes: %d bytes, %v", len(text), len(out.Text), err)
		}
	}
	var e *Error
	if err := c.Call(t.Context(), "fail", nil, nil); !errors.As(err, &e) || e.Code != 9 || e.Hint != "close it" || e.Message != "detach: volume is in use" {
		t.Errorf("fail: %#v", err)
	}
	if err := c.Call(t.Context(), "nosuch", nil, nil); !errors.As(err, &e) || e.Code != 7 {
		t.Errorf("unknown method: %v", err)
	}
	if err := c.Call(t.Context(), "echo", map[string]any{"text": "a", "newer": 1}, nil); !errors.As(err, &e) || e.Code != 2 || !strings.Contains(e.Message, "newer") {
		t.Errorf("unknown parameter: %v", err)
	}
	if err := c.Call(t.Context(), "huge", nil, nil); !errors.As(err, &e) || e.Code != 1 {
		t.Errorf("answer over the limit: %v", err)
	}
	// All those were answers: the connection is still good.
	if err := c.Call(t.Context(), "echo", echoParams{"b"}, nil); err != nil {
		t.Errorf("after errors: %v", err)
	}
	if err := c.Call(t.Context(), "echo", echoParams{strings.Repeat("x", MaxFrame)}, nil); err == nil {
		t.Error("a request over the limit was sent")
	}
}

func TestConcurrentClients(t *testing.T) {
	path, _, _ := serve(t)
	var wg sync.WaitGroup
	for i := range 100 { // more than are served at once
		wg.Go(func() {
			var out echoParams
			text := fmt.Sprint(i)
			if err := Call(t.Context(), path, "test", "echo", echoParams{text}, &out); err != nil || out.Text != text {
				t.Errorf("client %d: %q, %v", i, out.Text, err)
			}
		})
	}
	wg.Wait()
}

func TestDeadlineTravels(t *testing.T) {
	path, _, ended := serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := dialT(t, path).Call(ctx, "block", nil, nil)
	var e *Error
	if !errors.As(err, &e) || e.Code != 6 || !strings.Contains(e.Message, "waiting for the target") {
		t.Errorf("want the server's reason with code 6, got %v", err)
	}
	if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("handler's context: %v", err)
	}
}

func TestClientGoneCancels(t *testing.T) {
	for name, leave := range map[string]func(*Client, context.CancelFunc){
		"closed":   func(c *Client, _ context.CancelFunc) { c.Close() },
		"canceled": func(_ *Client, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			path, started, ended := serve(t)
			c := dialT(t, path)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			called := make(chan error, 1)
			go func() { called <- c.Call(ctx, "block", nil, nil) }()
			<-started
			leave(c, cancel)
			if err := <-ended; !errors.Is(err, ErrClientGone) {
				t.Errorf("handler's context: %v", err)
			}
			if err := <-called; err == nil {
				t.Error("call succeeded")
			}
			if err := c.Call(t.Context(), "echo", echoParams{}, nil); err == nil {
				t.Error("a connection out of step was used again")
			}
		})
	}
}

func TestStopAnswersRequestUnderWay(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	s := NewServer("test", nil)
	Handle(s, "stop", func(context.Context, struct{}) (string, error) { stop(); return "bye", nil })
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	idle := dialT(t, path)
	var got string
	if err := Call(t.Context(), path, "test", "stop", nil, &got); err != nil || got != "bye" {
		t.Errorf("%q, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := idle.Call(t.Context(), "stop", nil, nil); !IsDown(err) {
		t.Errorf("idle connection after the end: %v", err)
	}
	if _, err := Dial(t.Context(), path, "test"); !IsDown(err) {
		t.Errorf("dial after the end: %v", err)
	}
}

func TestWrongService(t *testing.T) {
	path, _, _ := serve(t)
	if _, err := Dial(t.Context(), path, "agent"); err == nil || !strings.Contains(err.Error(), `"test", not "agent"`) {
		t.Errorf("got %v", err)
	}
}

// TestHostileClient sends what no client of ours sends; each connection must end and the server go on.
func TestHostileClient(t *testing.T) {
	path, _, ended := serve(t)
	hello, _ := appendFrame(nil, &Hello{Protocol: protocolName, Version: Version})
	frame := func(v any) []byte {
		b, err := appendFrame(nil, v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	huge := binary.BigEndian.AppendUint32(nil, MaxFrame+1)
	for name, b := range map[string][]byte{
		"length over the limit": append(bytes.Clone(hello), huge...),
		"length of 4 GiB":       append(bytes.Clone(hello), 0xff, 0xff, 0xff, 0xff),
		"not JSON":              append(bytes.Clone(hello), 0, 0, 0, 1, '{'),
		"empty frame":           append(bytes.Clone(hello), 0, 0, 0, 0),
		"wrong type":            append(bytes.Clone(hello), frame("text")...),
		"other protocol":        frame(&Hello{Protocol: "http", Version: 1}),
		"other version":         frame(&Hello{Protocol: protocolName, Version: 99}),
		"out of turn":           append(append(bytes.Clone(hello), frame(&request{Method: "block"})...), frame(&request{Method: "echo"})...),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(testTimeout))
			if err := readFrame(c, new(Hello), nil); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(b); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(c); err != nil && !errors.Is(err, syscall.ECONNRESET) || len(rest) > 0 {
				t.Errorf("not closed: %q, %v", rest, err)
			}
			if name == "out of turn" {
				<-ended
			}
		})
	}
	if err := dialT(t, path).Call(t.Context(), "echo", echoParams{}, nil); err != nil {
		t.Errorf("server hurt: %v", err)
	}
}

func TestHostileServer(t *testing.T) {
	good, _ := appendFrame(nil, &Hello{Protocol: protocolName, Version: Version, Service: "test"})
	for name, b := range map[string][]byte{
		"nothing":         nil,
		"wrong answer id": append(bytes.Clone(good), func() []byte { b, _ := appendFrame(nil, &response{ID: 7}); return b }()...),
		"length of 4 GiB": append(bytes.Clone(good), 0xff, 0xff, 0xff, 0xff, '{'),
		"truncated":       append(bytes.Clone(good), 0, 0, 0, 9, '{'),
		"half a hello":    good[:9],
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(shortDir(t), "s")
			l, err := Listen(path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				c, err := l.AcceptUnix()
				if err != nil {
					return
				}
				c.Write(b)
				c.CloseWrite()
				io.Copy(io.Discard, c)
				c.Close()
			}()
			if err := Call(t.Context(), path, "test", "echo", echoParams{}, nil); err == nil {
				t.Error("succeeded")
			}
		})
	}
}

func TestListen(t *testing.T) {
	t.Run("stale socket replaced", func(t *testing.T) {
		path := filepath.Join(shortDir(t), "s")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
		l, err = Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		fi, err := os.Stat(path)
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", fi.Mode(), err)
		}
		if _, err := Listen(path); !errors.Is(err, ErrServed) {
			t.Errorf("second server: %v", err)
		}
	})
	t.Run("file in the way", func(t *testing.T) {
		path := filepath.Join(shortDir(t), "s")
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(path); err == nil {
			t.Error("listened over a file")
		}
		if b, _ := os.ReadFile(path); string(b) != "precious" {
			t.Error("file gone")
		}
	})
	t.Run("open folder", func(t *testing.T) {
		dir := shortDir(t)
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(filepath.Join(dir, "s")); err == nil || !strings.Contains(err.Error(), "0700") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("long path", func(t *testing.T) {
		if _, err := Listen(filepath.Join(shortDir(t), strings.Repeat("x", MaxPath))); err == nil || !strings.Contains(err.Error(), "shorter folder") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		path := filepath.Join(shortDir(t), "s")
		var wg sync.WaitGroup
		won := make(chan *net.UnixListener, 8)
		for range 8 {
			wg.Go(func() {
				l, err := Listen(path)
				if err == nil {
					won <- l
				} else if !errors.Is(err, ErrServed) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		close(won)
		n := 0
		for l := range won {
			n++
			l.Close()
		}
		if n != 1 {
			t.Errorf("%d servers", n)
		}
	})
}

func TestPeerRefused(t *testing.T) {
	for _, tt := range []struct {
		uid, self int
		ok        bool
	}{{0, 0, true}, {0, 1000, true}, {1000, 1000, true}, {1000, 0, false}, {1001, 1000, false}} {
		if err := (Peer{UID: tt.uid}).allow(tt.self); (err == nil) != tt.ok {
			t.Errorf("uid %d of %d: %v", tt.uid, tt.self, err)
		}
	}
	path := filepath.Join(shortDir(t), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer("test", nil)
	s.allow = func(p Peer) error { return p.allow(p.UID + 1) }
	if os.Geteuid() == 0 {
		s.allow = func(Peer) error { return Peer{PID: 1, UID: 1000}.allow(0) }
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()
	_, err = Dial(t.Context(), path, "test")
	var e *Error
	if !errors.As(err, &e) || e.Code != 8 {
		t.Errorf("got %v", err)
	}
}

// TestOtherUser has a process of another user at the other end, as far as the kernel is concerned.
func TestOtherUser(t *testing.T) {
	if path := os.Getenv("HAWSER_TEST_DIAL"); path != "" {
		_, err := Dial(t.Context(), path, "test")
		fmt.Printf("dial: %v\n", err)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can start a process as another user")
	}
	path, _, _ := serve(t)
	// Let the other user reach the socket, so that only the credentials stand between.
	dir := filepath.Dir(path)
	for _, p := range []string{filepath.Dir(dir), dir, path} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	exe := filepath.Join(filepath.Dir(dir), "test")
	if b, err := os.ReadFile("/proc/self/exe"); err != nil {
		t.Fatal(err)
	} else if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestOtherUser$")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "HAWSER_TEST_DIAL="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "of user 65534 may not talk to a process of user 0") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestPeerOf(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if p, err := PeerOf(c.(*net.UnixConn)); err != nil || p.PID != os.Getpid() || p.UID != os.Geteuid() {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestFramePrefixesRefused(t *testing.T) {
	b, err := appendFrame(nil, &request{ID: 1, Method: "echo", Params: json.RawMessage(`{"text":"a"}`)})
	if err != nil {
		t.Fatal(err)
	}
	for n := range b {
		if err := readFrame(bytes.NewReader(b[:n]), new(request), nil); err == nil {
			t.Errorf("%d of %d bytes accepted", n, len(b))
		}
	}
}

func FuzzFrame(f *testing.F) {
	for _, v := range []any{&Hello{Protocol: protocolName, Version: 1}, &request{ID: 1, Method: "m", Params: json.RawMessage("{}")}, &response{Error: &Error{Code: 5}}} {
		b, err := appendFrame(nil, v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		var req request
		if err := readFrame(bytes.NewReader(b), &req, nil); err != nil {
			return
		}
		again, err := appendFrame(nil, &req)
		if err != nil {
			return // JSON may grow when escaped
		}
		var req2 request
		if err := readFrame(bytes.NewReader(again), &req2, nil); err != nil {
			t.Fatalf("%q does not come back: %v", again, err)
		}
		if req2.ID != req.ID || req2.TimeoutMS != req.TimeoutMS {
			t.Fatalf("%+v became %+v", req, req2)
		}
	})
}
