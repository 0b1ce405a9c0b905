package targetlite_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hawser.dev/hawser/nvme/host"
	targetlite "hawser.dev/hawser/target-lite"
	"hawser.dev/hawser/target-lite/backend"
)

// Hosts come, read and write, and go, some without a word, while memory is short; in the middle of it the target shuts
// down. What was acknowledged must be there, and nothing may stay behind.
func TestShutdownUnderLoad(t *testing.T) {
	before := runtime.NumGoroutine()
	path := filepath.Join(t.TempDir(), "f")
	cfg := one(
		targetlite.Namespace{Backend: open(t, path, backend.Options{Size: 8 << 20})},
		targetlite.Namespace{Backend: memory(t, "load", 8<<20)},
	)
	cfg.MaxTransfer, cfg.BufferMemory = 128<<10, 1<<20
	srv := serve(t, cfg)
	const hosts, part = 8, 1 << 20
	var last [hosts]atomic.Int32 // the seed of the newest acknowledged write of each host
	var writing [hosts]atomic.Int32
	var stopping, done atomic.Bool
	var rounds atomic.Int32
	var wg sync.WaitGroup
	for i := range hosts {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			for seed := int32(1); !done.Load(); {
				ctx, cancel := context.WithTimeout(context.Background(), deadline)
				c, err := host.Connect(ctx, srv.addr, subNQN, host.Options{Queues: 2, DataDigest: i%2 == 0})
				if err != nil {
					cancel()
					continue // it is shutting down
				}
				ns, err := c.Open(ctx, 1)
				mem, err2 := c.Open(ctx, 2)
				for n := 0; n < 20 && err == nil && err2 == nil; n++ {
					seed++
					p := pattern(128<<10+4096*rng.IntN(32), byte(seed))
					writing[i].Store(seed)
					if _, err = ns.WriteAt(p, int64(i)*part); err == nil {
						last[i].Store(seed)
					}
					if _, err2 = mem.WriteAt(p, int64(i)*part); err2 != nil {
						continue
					}
					got := make([]byte, len(p))
					if _, err2 = mem.ReadAt(got, int64(i)*part); err2 == nil && !bytes.Equal(got, p) {
						t.Error("read other data than was written")
					}
				}
				if !stopping.Load() && (err != nil || err2 != nil) {
					t.Errorf("host %d: %v, %v", i, err, err2)
				}
				rounds.Add(1)
				if rng.IntN(3) == 0 {
					gone, stop := context.WithCancel(ctx)
					stop()
					c.Close(gone)
				} else {
					c.Close(ctx)
				}
				cancel()
			}
		})
	}
	eventually(t, func() bool { return rounds.Load() > 2*hosts })
	stopping.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	done.Store(true)
	wg.Wait()
	if err := <-srv.done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	srv.done <- nil
	b := open(t, path, backend.Options{})
	defer b.Close()
	for i := range hosts {
		got := make([]byte, 4096)
		ended := make(chan struct{})
		r := &backend.Request{Op: backend.OpRead, Offset: int64(i) * part, Length: 4096, Data: got, Done: func(*backend.Request) { close(ended) }}
		if !b.Submit(r) {
			<-ended
		}
		if a, w := last[i].Load(), writing[i].Load(); !bytes.Equal(got, pattern(4096, byte(a))) && !bytes.Equal(got, pattern(4096, byte(w))) {
			t.Errorf("host %d: neither the write that was acknowledged last (%d) nor the one after it is there (%v)", i, a, r.Err)
		}
	}
	end := time.Now().Add(deadline)
	for runtime.NumGoroutine() > before+4 {
		if time.Now().After(end) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(time.Millisecond)
	}
}
