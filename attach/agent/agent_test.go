package agent

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/attach/frontend"
	"hawser.dev/hawser/attach/frontend/frontendtest"
	"hawser.dev/hawser/attach/frontend/nbd"
	"hawser.dev/hawser/nvme"
)

var testIdentity = attach.Identity{NSID: 1, UUID: nvme.UUID{1}, Size: 1 << 20, BlockSize: 512}

// opened is a volume that is there at once.
type opened struct {
	vol    frontend.Volume
	id     attach.Identity
	closed atomic.Bool
}

func (o *opened) Volume() frontend.Volume   { return o.vol }
func (o *opened) Identity() attach.Identity { return o.id }
func (o *opened) Paths() []attach.Path {
	return []attach.Path{{Portal: "192.0.2.1:4420", State: attach.PathLive}}
}
func (o *opened) Close(context.Context) error { o.closed.Store(true); return nil }

// opener opens by a function.
type opener func(ctx context.Context, r *attach.Record) (Opened, error)

func (f opener) Open(ctx context.Context, r *attach.Record) (Opened, error) { return f(ctx, r) }

type fixture struct {
	*Agent
	t   *testing.T
	dir string
	vol *frontendtest.Volume
	o   *opened
}

func info() frontend.Info {
	return frontend.Info{Size: testIdentity.Size, BlockSize: 512, CanFlush: true, CanFUA: true, Name: "a"}
}

// setup makes an agent whose opener gives one volume.
func setup(t *testing.T, opts ...frontendtest.Option) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("", "hawser-agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fixture{t: t, dir: dir, vol: frontendtest.NewVolume(t, info(), opts...)}
	f.o = &opened{vol: f.vol, id: testIdentity}
	f.Agent = f.agent(func(context.Context, *attach.Record) (Opened, error) { return f.o, nil })
	return f
}

func (f *fixture) agent(open opener) *Agent {
	a := New(Config{
		Opener: open, Idle: time.Hour, Logger: slog.New(slog.NewTextHandler(f.t.Output(), nil)),
		PeerOf: func(*net.UnixConn) (attach.Client, error) {
			return attach.Client{PID: os.Getpid(), UID: os.Getuid()}, nil
		},
	})
	f.t.Cleanup(func() { a.Shutdown(context.Background()) })
	return a
}

func record(name string) *attach.Record {
	target, err := attach.ParseTarget("nvme://192.0.2.1/nqn.2026-01.org.example:vol1")
	if err != nil {
		panic(err)
	}
	spec := attach.Spec{SchemaVersion: 1, Target: target}
	return &attach.Record{SchemaVersion: 1, Name: name, State: attach.StateAttached, Spec: spec, Identity: testIdentity, Paths: spec.Paths()}
}

func (f *fixture) socket() string { return SocketPath(f.dir, "a") }

func (f *fixture) attach() {
	f.t.Helper()
	st, err := f.Attach(f.t.Context(), record("a"), f.socket())
	if err != nil || st.State != attach.VolumeLive || st.Identity != testIdentity {
		f.t.Fatalf("%+v, %v", st, err)
	}
}

func (f *fixture) dial() *nbd.Client {
	f.t.Helper()
	c, err := nbd.Dial(f.t.Context(), f.socket(), "")
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	return c
}

// ended waits until the agent says that it holds nothing.
func ended(t *testing.T, a *Agent) {
	t.Helper()
	select {
	case <-a.Ended():
	case <-time.After(20 * time.Second):
		t.Fatal("the agent goes on")
	}
}

func (f *fixture) gone() {
	f.t.Helper()
	if _, err := os.Lstat(f.socket()); !errors.Is(err, fs.ErrNotExist) {
		f.t.Errorf("the socket is still there: %v", err)
	}
	if !f.o.closed.Load() {
		f.t.Error("the volume was not closed")
	}
	if _, err := f.Status("a"); !errors.Is(err, attach.ErrNotAttached) {
		f.t.Errorf("status: %v", err)
	}
	ended(f.t, f.Agent)
}

func TestLife(t *testing.T) {
	f := setup(t)
	f.attach()
	if fi, err := os.Stat(f.socket()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	c := f.dial()
	want := bytes.Repeat([]byte{7}, 512)
	if err := c.WriteAt(t.Context(), want, 0); err != nil {
		t.Fatal(err)
	}
	f.attach() // again: it is the same
	got := make([]byte, 512)
	if err := c.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v", err)
	}
	c.Close()
	if bytes.Equal(f.vol.Durable()[:512], want) {
		t.Fatal("the volume is no test for a flush")
	}
	res, err := f.Detach(t.Context(), "a", attach.DetachOptions{})
	if err != nil || res.DataLost != "" {
		t.Fatalf("%+v, %v", res, err)
	}
	if !bytes.Equal(f.vol.Durable()[:512], want) {
		t.Error("not flushed")
	}
	f.gone()
	if _, err := f.Detach(t.Context(), "a", attach.DetachOptions{}); !errors.Is(err, attach.ErrNotAttached) {
		t.Errorf("again: %v", err)
	}
	if _, err := f.Attach(t.Context(), record("a"), f.socket()); !errors.Is(err, ErrEnding) {
		t.Errorf("attach to an agent that ends: %v", err)
	}
}

func TestDetachInUse(t *testing.T) {
	f := setup(t)
	f.attach()
	c := f.dial()
	_, err := f.Detach(t.Context(), "a", attach.DetachOptions{})
	if attach.CauseOf(err) != attach.CauseInUse || !strings.Contains(err.Error(), "clients connected: 1 (process ") {
		t.Fatalf("got %v", err)
	}
	if err := c.ReadAt(t.Context(), make([]byte, 512), 0); err != nil {
		t.Errorf("the client was hurt: %v", err)
	}
	f.dial().Close() // others can still connect
	if st, err := f.Status("a"); err != nil || len(st.Clients) == 0 || st.Clients[0].PID != os.Getpid() || st.Clients[0].Command == "" {
		t.Errorf("%+v, %v", st.Clients, err)
	}
	res, err := f.Detach(t.Context(), "a", attach.DetachOptions{Force: true})
	if err != nil || res.DataLost != attach.DataLostPossible {
		t.Errorf("%+v, %v", res, err)
	}
	if err := c.ReadAt(t.Context(), make([]byte, 512), 0); err == nil {
		t.Error("the client still reads")
	}
	f.gone()
}

// A client that has just gone is not in the way.
func TestDetachRightAfterAClient(t *testing.T) {
	for range 20 {
		f := setup(t)
		f.attach()
		f.dial().Close()
		if _, err := f.Detach(t.Context(), "a", attach.DetachOptions{}); err != nil {
			t.Fatal(err)
		}
		f.gone()
	}
}

func TestFlushThatDoesNotFinish(t *testing.T) {
	f := setup(t, frontendtest.Shuffle(1))
	f.attach()
	f.vol.Hold()
	opts := attach.DetachOptions{FlushTimeout: 20 * time.Millisecond}
	_, err := f.Detach(t.Context(), "a", opts)
	if attach.CauseOf(err) != attach.CauseUnreachable || !strings.Contains(err.Error(), "20ms") {
		t.Fatalf("got %v", err)
	}
	f.vol.Release()
	if err := f.dial().ReadAt(t.Context(), make([]byte, 512), 0); err != nil {
		t.Fatalf("it does not go on: %v", err)
	}
	f.vol.Hold()
	opts.Force = true
	res, err := f.Detach(t.Context(), "a", opts)
	if err != nil || res.DataLost != attach.DataLostPossible {
		t.Errorf("%+v, %v", res, err)
	}
	f.vol.Release()
	for deadline := time.Now().Add(20 * time.Second); f.vol.Pending() > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	f.gone()
}

func TestFlushThatFails(t *testing.T) {
	var bad atomic.Bool
	f := setup(t, frontendtest.Fail(func(r *frontend.Request) error {
		if r.Op == frontend.OpFlush && bad.Load() {
			return syscall.EIO
		}
		return nil
	}))
	f.attach()
	bad.Store(true)
	if _, err := f.Detach(t.Context(), "a", attach.DetachOptions{}); attach.CauseOf(err) != attach.CauseUnreachable || !errors.Is(err, syscall.EIO) {
		t.Fatalf("got %v", err)
	}
	f.dial().Close()
	bad.Store(false)
	if _, err := f.Detach(t.Context(), "a", attach.DetachOptions{}); err != nil {
		t.Fatal(err)
	}
	f.gone()

	f = setup(t, frontendtest.Fail(func(r *frontend.Request) error {
		if r.Op == frontend.OpFlush {
			return syscall.EIO
		}
		return nil
	}))
	f.attach()
	if res, err := f.Detach(t.Context(), "a", attach.DetachOptions{Force: true}); err != nil || res.DataLost != attach.DataLostPossible {
		t.Errorf("forced: %+v, %v", res, err)
	}
	f.gone()
}

func TestAttachThatFails(t *testing.T) {
	refused := errors.New("refused")
	t.Run("open", func(t *testing.T) {
		f := setup(t)
		a := f.agent(func(context.Context, *attach.Record) (Opened, error) { return nil, refused })
		if _, err := a.Attach(t.Context(), record("a"), f.socket()); !errors.Is(err, refused) {
			t.Errorf("got %v", err)
		}
		ended(t, a)
	})
	t.Run("another volume", func(t *testing.T) {
		f := setup(t)
		f.o.id.UUID = nvme.UUID{2}
		if _, err := f.Attach(t.Context(), record("a"), f.socket()); attach.CauseOf(err) != attach.CauseInUse {
			t.Errorf("got %v", err)
		}
		f.gone()
	})
	t.Run("first read", func(t *testing.T) {
		f := setup(t, frontendtest.Fail(func(*frontend.Request) error { return syscall.EIO }))
		if _, err := f.Attach(t.Context(), record("a"), f.socket()); !errors.Is(err, syscall.EIO) {
			t.Errorf("got %v", err)
		}
		f.gone()
	})
	t.Run("socket path too long", func(t *testing.T) {
		f := setup(t)
		long := filepath.Join(f.dir, strings.Repeat("x", maxSocketPath))
		if _, err := f.Attach(t.Context(), record("a"), long); attach.CauseOf(err) != attach.CauseUsage {
			t.Errorf("got %v", err)
		}
		f.gone()
	})
	t.Run("caller gone", func(t *testing.T) {
		f := setup(t)
		ctx, cancel := context.WithCancel(t.Context())
		a := f.agent(func(context.Context, *attach.Record) (Opened, error) { cancel(); return f.o, nil })
		if _, err := a.Attach(ctx, record("a"), f.socket()); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		ended(t, a)
		f.Agent = a
		f.gone()
	})
	t.Run("file in the way", func(t *testing.T) {
		f := setup(t)
		if err := os.Mkdir(filepath.Dir(f.socket()), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f.socket(), []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Attach(t.Context(), record("a"), f.socket()); err == nil {
			t.Error("attached over a file")
		}
		if b, _ := os.ReadFile(f.socket()); string(b) != "precious" {
			t.Error("the file is gone")
		}
	})
}

// A socket that an agent that was killed left behind is replaced.
func TestStaleSocket(t *testing.T) {
	f := setup(t)
	if err := os.Mkdir(filepath.Dir(f.socket()), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: f.socket(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	f.attach()
	f.dial()
}

func TestRestore(t *testing.T) {
	f := setup(t)
	var tries atomic.Int32
	up := make(chan struct{})
	a := f.agent(func(ctx context.Context, _ *attach.Record) (Opened, error) {
		if tries.Add(1) == 1 {
			return nil, errors.New("the target is away")
		}
		select {
		case <-up:
			return f.o, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	a.Restore([]*attach.Record{record("a")}, func(string) string { return f.socket() })
	if st, err := a.Status("a"); err != nil || st.State != attach.VolumeConnecting || st.Paths[0].State != attach.PathConnecting {
		t.Errorf("%+v, %v", st, err)
	}
	waited := make(chan error, 1)
	go func() {
		_, err := a.Attach(t.Context(), record("a"), f.socket())
		waited <- err
	}()
	close(up)
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	f.dial().Close()
	if _, err := a.Detach(t.Context(), "a", attach.DetachOptions{}); err != nil {
		t.Fatal(err)
	}
	ended(t, a)
}

// What waits for its target is let go of at once, and nobody who waits with it waits for ever.
func TestDetachWhileOpeningAgain(t *testing.T) {
	f := setup(t)
	opening := make(chan struct{}, 1)
	a := f.agent(func(ctx context.Context, _ *attach.Record) (Opened, error) {
		opening <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	a.Restore([]*attach.Record{record("a")}, func(string) string { return f.socket() })
	<-opening
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := a.Attach(ctx, record("a"), f.socket()); attach.CauseOf(err) != attach.CauseUnreachable {
		t.Errorf("attach: %v", err)
	}
	if _, err := a.Detach(t.Context(), "a", attach.DetachOptions{}); err != nil {
		t.Fatal(err)
	}
	ended(t, a)
}

func TestManyAtOnce(t *testing.T) {
	f := setup(t)
	a := f.agent(func(_ context.Context, r *attach.Record) (Opened, error) {
		return &opened{vol: frontendtest.NewVolume(t, info()), id: r.Identity}, nil
	})
	if _, err := a.Attach(t.Context(), record("keep"), SocketPath(f.dir, "keep")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, name := range strings.Split("a b c d e f g h", " ") {
		for range 2 {
			wg.Go(func() {
				for range 5 {
					if _, err := a.Attach(t.Context(), record(name), SocketPath(f.dir, name)); err != nil && !errors.Is(err, ErrEnding) {
						t.Errorf("attach %s: %v", name, err)
					}
					a.Status(name)
					if _, err := a.Detach(t.Context(), name, attach.DetachOptions{}); err != nil && !errors.Is(err, attach.ErrNotAttached) {
						t.Errorf("detach %s: %v", name, err)
					}
				}
			})
		}
	}
	wg.Wait()
	if names := a.Names(); len(names) != 1 || names[0] != "keep" {
		t.Errorf("left: %v", names)
	}
	a.Shutdown(t.Context())
	ended(t, a)
}

func TestUnused(t *testing.T) {
	f := setup(t)
	<-f.Unused() // it holds nothing
	f.attach()
	<-f.Unused()
	a, b := f.dial(), f.dial()
	unused := f.Unused()
	a.Close()
	if err := b.ReadAt(t.Context(), make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	select {
	case <-unused:
		t.Error("a client is connected")
	default:
	}
	b.Close()
	<-unused
}

func TestIdleAgentEnds(t *testing.T) {
	a := New(Config{Idle: time.Millisecond})
	ended(t, a)
}

func TestSupervise(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	script := func(s string) func() *exec.Cmd {
		return func() *exec.Cmd { return exec.Command("/bin/sh", "-c", "cd "+dir+" && "+s) }
	}
	none := func(error) {}
	// It dies twice, once by a signal, and is run again.
	err := Supervise(t.Context(), log, script(`echo x >>runs; [ $(wc -l <runs) = 1 ] && kill -9 $$; [ $(wc -l <runs) -ge 3 ]`), none)
	if b, _ := os.ReadFile(filepath.Join(dir, "runs")); err != nil || len(b) != 6 {
		t.Errorf("%v, %q", err, b)
	}
	// Told to end, it passes that on and waits.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		r.Read(make([]byte, 1)) // it is up
		cancel()
	}()
	err = Supervise(ctx, log, func() *exec.Cmd {
		cmd := script(`trap 'echo bye >bye; exit 0' TERM; echo up; while :; do sleep 0.01; done`)()
		cmd.Stdout = w
		return cmd
	}, none)
	w.Close()
	if _, serr := os.Stat(filepath.Join(dir, "bye")); err != nil || serr != nil {
		t.Errorf("%v, %v", err, serr)
	}
	var first error
	err = Supervise(t.Context(), log, func() *exec.Cmd { return exec.Command(filepath.Join(dir, "nothing")) }, func(err error) { first = err })
	if first == nil || err == nil {
		t.Errorf("%v, %v", first, err)
	}
}
