package userdriver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/attach/frontend"
	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
	targetlite "hawser.dev/hawser/target-lite"
	"hawser.dev/hawser/target-lite/backend"
	"hawser.dev/hawser/test/alloc"
)

const (
	testNQN  = "nqn.2026-01.org.example:vol1"
	patience = time.Minute
)

// lasting is a backend that outlives the servers that export it.
type lasting struct{ backend.Backend }

func (lasting) Close() error { return nil }

// target is a server that can be ended and started again at its address.
type target struct {
	t    *testing.T
	b    backend.Backend
	addr nvme.Addr
	uuid nvme.UUID
	stop func()
}

func startTarget(t *testing.T) *target {
	t.Helper()
	b, err := backend.Open(t.Context(), "mem:test", backend.Options{Size: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	tg := &target{t: t, b: b, addr: nvme.Addr{Transport: nvme.TransportTCP, Host: "127.0.0.1", Service: "0"}, uuid: nvme.UUID{1}}
	tg.start()
	t.Cleanup(func() { tg.stop(); b.Close() })
	return tg
}

func (tg *target) start() {
	tg.t.Helper()
	s, err := targetlite.New(targetlite.Config{
		Portals: []nvme.Addr{tg.addr},
		Subsystems: []targetlite.Subsystem{{NQN: testNQN, AllowAnyHost: true,
			Namespaces: []targetlite.Namespace{{NSID: 1, Backend: lasting{tg.b}, UUID: tg.uuid}}}},
	})
	if err != nil {
		tg.t.Fatal(err)
	}
	if err := s.Listen(tg.t.Context()); err != nil {
		tg.t.Fatal(err)
	}
	tg.addr = s.Portals()[0]
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	tg.stop = sync.OnceFunc(func() { cancel(); <-served })
}

func (tg *target) record(opts attach.Options) *attach.Record {
	t, err := attach.ParseTarget(fmt.Sprintf("nvme://%s/%s", tg.addr, testNQN))
	if err != nil {
		tg.t.Fatal(err)
	}
	spec := attach.Spec{SchemaVersion: 1, Target: t, HostNQN: "nqn.2026-01.org.example:host", HostID: nvme.UUID{7}, Options: opts}
	ids, err := (&Initiator{}).Volumes(tg.t.Context(), &spec)
	if err != nil || len(ids) != 1 {
		tg.t.Fatalf("%v, %v", ids, err)
	}
	return &attach.Record{SchemaVersion: 1, Name: "v", Spec: spec, Identity: ids[0], Paths: spec.Paths()}
}

func (tg *target) open(opts attach.Options) *volume {
	tg.t.Helper()
	i := &Initiator{Log: slog.New(slog.NewTextHandler(tg.t.Output(), nil))}
	o, err := i.Open(tg.t.Context(), tg.record(opts))
	if err != nil {
		tg.t.Fatal(err)
	}
	v := o.(*volume)
	tg.t.Cleanup(func() { v.Close(context.Background()) })
	return v
}

// do runs one request and waits for it.
func do(t testing.TB, v *volume, op frontend.Op, off int64, data []byte, length int64) error {
	t.Helper()
	done := make(chan error, 1)
	if data != nil {
		length = int64(len(data))
	}
	v.Submit(&frontend.Request{Op: op, Offset: off, Length: length, Data: data, Done: func(r *frontend.Request) { done <- r.Err }})
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		t.Fatalf("%v at %d does not come back", op, off)
		return nil
	}
}

// state waits for a path state.
func (v *volume) await(t *testing.T, state string) attach.Path {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if p := v.Paths()[0]; p.State == state {
			return p
		} else if time.Now().After(deadline) {
			t.Fatalf("path is %+v, not %s", p, state)
		}
	}
}

func TestVolume(t *testing.T) {
	v := startTarget(t).open(attach.Options{})
	if i := v.Info(); i.Size != 4<<20 || i.BlockSize != 512 || i.ReadOnly || !i.CanTrim || !i.CanWriteZeroes || i.Name != "v" {
		t.Errorf("%+v", i)
	}
	if id := v.Identity(); id.UUID != (nvme.UUID{1}) || id.NSID != 1 || id.Size != 4<<20 {
		t.Errorf("%+v", id)
	}
	if p := v.Paths(); len(p) != 1 || p[0].State != attach.PathLive || p[0].Queues == 0 {
		t.Errorf("%+v", p)
	}
	want := bytes.Repeat([]byte("hawser! "), 3<<20/8) // more than one command
	if err := do(t, v, frontend.OpWrite, 512, want, 0); err != nil {
		t.Fatal(err)
	}
	if err := do(t, v, frontend.OpFlush, 0, nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := do(t, v, frontend.OpWriteZeroes, 4096, nil, 8192); err != nil {
		t.Fatal(err)
	}
	if err := do(t, v, frontend.OpTrim, 65536, nil, 4096); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := do(t, v, frontend.OpRead, 512, got, 0); err != nil {
		t.Fatal(err)
	}
	clear(want[4096-512 : 4096-512+8192])
	clear(got[65536-512 : 65536-512+4096])
	clear(want[65536-512 : 65536-512+4096])
	if !bytes.Equal(got, want) {
		t.Error("data differs")
	}
	if err := do(t, v, frontend.OpRead, 4<<20, make([]byte, 512), 0); !errors.Is(err, syscall.EREMOTEIO) {
		t.Errorf("behind the end: %v", err)
	}
}

func TestNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector empties pools")
	}
	v := startTarget(t).open(attach.Options{NrIOQueues: 1})
	const batch = 32
	var reqs [batch]*frontend.Request
	var pending atomic.Int32
	all := make(chan struct{}, 1)
	for i := range reqs {
		reqs[i] = &frontend.Request{Op: frontend.Op(i % 2), Offset: int64(i) * 4096, Length: 4096, Data: make([]byte, 4096), Done: func(r *frontend.Request) {
			if r.Err != nil {
				t.Error(r.Err)
			}
			if pending.Add(-1) == 0 {
				all <- struct{}{}
			}
		}}
	}
	round := func() {
		pending.Store(batch)
		v.Submit(reqs[:]...)
		<-all
	}
	for range 50 {
		round() // warm
	}
	// The target in this process counts too.
	const batches = 200
	if n := alloc.Count(func() {
		for range batches {
			round()
		}
	}); n > batches {
		t.Errorf("%d allocations for %d batches of %d commands", n, batches, batch)
	}
}

// Commands wait while the target is away, and those that were under way are sent again.
func TestPathLost(t *testing.T) {
	tg := startTarget(t)
	one := 1
	v := tg.open(attach.Options{Reconnect: &one, KeepAliveTMO: &one})
	stop := make(chan struct{})
	var workers sync.WaitGroup
	var rounds atomic.Int64
	for w := range 4 {
		workers.Go(func() {
			off := int64(w) << 20
			for n := byte(1); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				b := bytes.Repeat([]byte{n}, 4096)
				if err := do(t, v, frontend.OpWrite, off, b, 0); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				got := make([]byte, 4096)
				if err := do(t, v, frontend.OpRead, off, got, 0); err != nil || !bytes.Equal(got, b) {
					t.Errorf("read back: %v, %d for %d", err, got[0], n)
					return
				}
				rounds.Add(1)
			}
		})
	}
	for range 2 {
		tg.stop()
		v.await(t, attach.PathConnecting)
		tg.start()
		v.await(t, attach.PathLive)
		for before := rounds.Load(); rounds.Load() < before+100 && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
	}
	close(stop)
	workers.Wait()
}

// A write in doubt that comes back when the next path is up already waits until the old one is over.
func TestLateDoubt(t *testing.T) {
	for _, kato := range []int{1, 0} {
		tg := startTarget(t)
		one := 1
		v := tg.open(attach.Options{Reconnect: &one, KeepAliveTMO: &kato})
		old := v.ns.Load()
		tg.stop()
		v.await(t, attach.PathConnecting)
		tg.start()
		v.await(t, attach.PathLive)
		done := make(chan error, 1)
		v.wait(&frontend.Request{Op: frontend.OpWrite, Length: 512, Data: make([]byte, 512), Done: func(r *frontend.Request) { done <- r.Err }}, old)
		err := <-done
		v.mu.Lock()
		over := v.over
		v.mu.Unlock()
		if kato == 0 {
			if !errors.Is(err, errDoubt) {
				t.Errorf("without keep alive: %v", err)
			}
		} else if err != nil || time.Now().Before(over) {
			t.Errorf("%v, %v too early", err, time.Until(over))
		}
	}
}

// --fast-io-fail-tmo lets commands fail; when the path is back they work again.
func TestFastIOFail(t *testing.T) {
	tg := startTarget(t)
	zero, one := 0, 1
	v := tg.open(attach.Options{Reconnect: &one, FastIOFailTMO: &zero})
	tg.stop()
	if err := do(t, v, frontend.OpRead, 0, make([]byte, 512), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v", err)
	}
	tg.start()
	v.await(t, attach.PathLive)
	if err := do(t, v, frontend.OpRead, 0, make([]byte, 512), 0); err != nil {
		t.Errorf("path is back: %v", err)
	}
}

// After --ctrl-loss-tmo the path is given up.
func TestCtrlLoss(t *testing.T) {
	tg := startTarget(t)
	one := 1
	v := tg.open(attach.Options{Reconnect: &one, CtrlLossTMO: &one})
	tg.stop()
	if err := do(t, v, frontend.OpRead, 0, make([]byte, 512), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v", err)
	}
	if p := v.await(t, attach.PathDead); p.Reason == "" {
		t.Error("no reason")
	}
	// Asked to, it begins anew, and commands wait again.
	tg.start()
	v.Retry()
	if err := do(t, v, frontend.OpRead, 0, make([]byte, 512), 0); err != nil {
		t.Errorf("after Retry: %v", err)
	}
	v.await(t, attach.PathLive)
	v.Retry() // nothing to do
	if err := do(t, v, frontend.OpRead, 0, make([]byte, 512), 0); err != nil {
		t.Errorf("after another: %v", err)
	}
}

// A target that shows another volume where the old one was gets no command.
func TestAnotherVolumeInItsPlace(t *testing.T) {
	tg := startTarget(t)
	one := 1
	v := tg.open(attach.Options{Reconnect: &one, CtrlLossTMO: &one})
	tg.stop()
	tg.uuid = nvme.UUID{2}
	tg.start()
	if err := do(t, v, frontend.OpWrite, 0, bytes.Repeat([]byte{0xff}, 512), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v", err)
	}
	p := v.await(t, attach.PathDead)
	t.Log(p.Reason)
	v.Retry()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := v.Foreign(ctx); attach.CauseOf(err) != attach.CauseInUse || !strings.Contains(err.Error(), nvme.UUID{2}.String()) || !strings.Contains(err.Error(), nvme.UUID{1}.String()) {
		t.Errorf("what is there: %v", err)
	}
	v.await(t, attach.PathDead)
	if err := do(t, v, frontend.OpRead, 0, make([]byte, 512), 0); !errors.Is(err, syscall.EIO) || attach.CauseOf(err) != attach.CauseInUse {
		t.Errorf("given up: %v", err)
	}
	tg.stop()
	got := make([]byte, 512)
	read := &backend.Request{Op: backend.OpRead, Length: 512, Data: got, Done: func(*backend.Request) {}}
	if !tg.b.Submit(read) || read.Err != nil || got[0] != 0 {
		t.Error("the other volume was written")
	}
}

// What waits when a volume is closed fails, and Close comes back.
func TestCloseWhileWaiting(t *testing.T) {
	tg := startTarget(t)
	v := tg.open(attach.Options{})
	tg.stop()
	v.await(t, attach.PathConnecting)
	waiting := make(chan error, 1)
	v.Submit(&frontend.Request{Op: frontend.OpRead, Length: 512, Data: make([]byte, 512), Done: func(r *frontend.Request) { waiting <- r.Err }})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := v.Close(ctx); err != nil {
		t.Error(err)
	}
	if err := <-waiting; !errors.Is(err, syscall.ESHUTDOWN) {
		t.Errorf("got %v", err)
	}
	if err := do(t, v, frontend.OpRead, 0, make([]byte, 512), 0); !errors.Is(err, syscall.ESHUTDOWN) {
		t.Errorf("after Close: %v", err)
	}
}

// The volume is looked for by what it is; the namespace ID of the record is a hint.
func TestOpenByIdentity(t *testing.T) {
	tg := startTarget(t)
	r := tg.record(attach.Options{})
	r.Identity.NSID = 9
	o, err := (&Initiator{}).Open(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if id := o.Identity(); id.NSID != 1 {
		t.Errorf("%+v", id)
	}
	o.Close(t.Context())
	r = tg.record(attach.Options{})
	r.Identity.UUID = nvme.UUID{2}
	if _, err := (&Initiator{}).Open(t.Context(), r); attach.CauseOf(err) != attach.CauseInUse {
		t.Errorf("another volume under its namespace ID: %v", err)
	}
	r.Identity.NSID = 9
	if _, err := (&Initiator{}).Open(t.Context(), r); attach.CauseOf(err) != attach.CauseNotFound {
		t.Errorf("no such volume: %v", err)
	}
}

func TestErrno(t *testing.T) {
	for status, want := range map[nvme.Status]syscall.Errno{
		nvme.StatusLBAOutOfRange | nvme.StatusDNR: syscall.EREMOTEIO,
		nvme.StatusNamespaceNotReady:              syscall.EREMOTEIO,
		nvme.StatusCapacityExceeded:               syscall.ENOSPC,
		nvme.StatusNamespaceWriteProtected:        syscall.EPERM,
		nvme.StatusInvalidOpcode:                  syscall.EOPNOTSUPP,
		nvme.StatusInternalError:                  syscall.EIO,
	} {
		err := withErrno(&nvme.StatusError{Op: "write", Status: status})
		if got := frontend.Errno(err); got != want {
			t.Errorf("%v: %v, want %v", status, got, want)
		}
	}
	if got := frontend.Errno(withErrno(errors.New("x"))); got != syscall.EIO {
		t.Errorf("got %v", got)
	}
}

// A try that hangs keeps neither --fast-io-fail-tmo nor --ctrl-loss-tmo nor Close from their time.
func TestTryThatHangs(t *testing.T) {
	tg := startTarget(t)
	zero, one := 0, 1
	r := tg.record(attach.Options{FastIOFailTMO: &zero, CtrlLossTMO: &one})
	ns, err := (&Initiator{}).connect(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	trying := make(chan struct{}, 1)
	v := newVolume(r, ns, func(ctx context.Context) (*host.Namespace, error) {
		trying <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	tg.stop()
	<-trying
	if err := do(t, v, frontend.OpRead, 0, make([]byte, 512), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v", err)
	}
	for p := v.await(t, attach.PathDead); !strings.Contains(p.Reason, "given up"); p = v.await(t, attach.PathDead) {
		time.Sleep(time.Millisecond)
	}
	v.Retry()
	<-trying
	if err := v.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestPickAgent(t *testing.T) {
	target := func(n int) attach.Target {
		t, err := attach.ParseTarget(fmt.Sprintf("nvme://192.0.2.1/%s.%d", testNQN, n))
		if err != nil {
			panic(err)
		}
		return t
	}
	var all []*attach.Record
	for n := range 40 {
		r := &attach.Record{Spec: attach.Spec{Target: target(n)}}
		r.Agent = pickAgent(r, all)
		if want := fmt.Sprint(n%maxAgents + 1); n < maxAgents && r.Agent != want {
			t.Errorf("target %d: agent %s, want %s of its own", n, r.Agent, want)
		}
		all = append(all, r)
	}
	load := map[string]int{}
	for _, r := range all {
		load[r.Agent]++
	}
	for id, n := range load {
		if n < 40/maxAgents || n > 40/maxAgents+1 {
			t.Errorf("agent %s holds %d of 40", id, n)
		}
	}
	if r := (&attach.Record{Spec: attach.Spec{Target: target(5)}}); pickAgent(r, all) != all[5].Agent {
		t.Error("two volumes of one target have two agents")
	}
}
