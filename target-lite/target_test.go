package targetlite_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/nvme/wire"
	targetlite "hawser.dev/hawser/target-lite"
	"hawser.dev/hawser/target-lite/backend"
)

const (
	subNQN   nvme.NQN = "nqn.2024-01.dev.hawser:test"
	hostNQN  nvme.NQN = "nqn.2024-01.dev.hawser:host"
	deadline          = 20 * time.Second
)

type server struct {
	*targetlite.Server
	addr nvme.Addr
	done chan error
}

// serve starts a server on loopback and sees to its end.
func serve(t testing.TB, cfg targetlite.Config) *server {
	t.Helper()
	if cfg.Portals == nil {
		cfg.Portals = []nvme.Addr{{Host: "127.0.0.1", Service: "0"}}
	}
	if testing.Verbose() && cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	}
	s, err := targetlite.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	srv := &server{Server: s, addr: s.Portals()[0], done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { srv.done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-srv.done:
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(deadline):
			t.Error("Serve does not return")
		}
	})
	return srv
}

type testWriter struct{ testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	fmt.Fprintf(os.Stderr, "%s: %s", w.Name(), b)
	return len(b), nil
}

func open(t testing.TB, spec string, o backend.Options) backend.Backend {
	t.Helper()
	b, err := backend.Open(t.Context(), spec, o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func memory(t testing.TB, name string, size int64) backend.Backend {
	return open(t, "mem:"+name, backend.Options{Size: size})
}

// one is a configuration of one subsystem that anybody may use.
func one(ns ...targetlite.Namespace) targetlite.Config {
	return targetlite.Config{Subsystems: []targetlite.Subsystem{{NQN: subNQN, AllowAnyHost: true, Namespaces: ns}}}
}

func connect(t testing.TB, addr nvme.Addr, nqn nvme.NQN, o host.Options) *host.Controller {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	c, err := host.Connect(ctx, addr, nqn, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		c.Close(ctx)
	})
	return c
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

func TestReadWrite(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name string
		o    host.Options
		cfg  targetlite.Config
	}{
		{"plain", host.Options{}, targetlite.Config{}},
		{"digests", host.Options{HeaderDigest: true, DataDigest: true}, targetlite.Config{}},
		{"no in-capsule data", host.Options{}, targetlite.Config{InCapsule: -1}},
		{"small transfers", host.Options{Queues: 1}, targetlite.Config{MaxTransfer: 8192, InCapsule: 1024}},
		{"alignment", host.Options{HPDA: 31}, targetlite.Config{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(dir, c.name)
			cfg := c.cfg
			cfg.Subsystems = one(
				targetlite.Namespace{Backend: memory(t, c.name, 16<<20)},
				targetlite.Namespace{Backend: open(t, file, backend.Options{Size: 16 << 20, BlockSize: 4096})},
			).Subsystems
			srv := serve(t, cfg)
			ctrl := connect(t, srv.addr, subNQN, c.o)
			for nsid := uint32(1); nsid <= 2; nsid++ {
				ns, err := ctrl.Open(t.Context(), nsid)
				if err != nil {
					t.Fatal(err)
				}
				exercise(t, ns, 16<<20)
			}
			got, err := os.ReadFile(file)
			if err != nil || !bytes.Equal(got[4096:8192], pattern(3<<20, 2)[4096:8192]) {
				t.Errorf("the backing file has other data (%v)", err)
			}
		})
	}
}

func exercise(t *testing.T, ns *host.Namespace, size int64) {
	t.Helper()
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	big := pattern(3<<20, 1)
	_, err := ns.WriteAt(big, 0)
	check("write", err)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			p := pattern(64<<10, byte(10+i))
			off := 4<<20 + int64(i)*int64(len(p))
			got := make([]byte, len(p))
			if _, err := ns.WriteAt(p, off); err != nil {
				t.Error(err)
			} else if _, err := ns.ReadAt(got, off); err != nil || !bytes.Equal(got, p) {
				t.Errorf("part %d: %v, or other data", i, err)
			}
		})
	}
	wg.Wait()
	got := make([]byte, len(big))
	_, err = ns.ReadAt(got, 0)
	check("read", err)
	if !bytes.Equal(got, big) {
		t.Fatal("other data")
	}
	check("compare", ns.Compare(big[:8192], 0))
	var se *nvme.StatusError
	if err := ns.Compare(big[:8192], 4096); !errors.As(err, &se) || se.Status.Code() != nvme.StatusCompareFailure {
		t.Errorf("compare with other data: %v", err)
	}
	check("write zeroes", ns.WriteZeroes(0, 1<<20, false))
	check("write zeroes, deallocating", ns.WriteZeroes(1<<20, 1<<20, true))
	check("deallocate", ns.Deallocate(2<<20, 1<<20))
	_, err = ns.ReadAt(got, 0)
	check("read", err)
	if !bytes.Equal(got, make([]byte, len(got))) {
		t.Error("not zeroes")
	}
	_, err = ns.WriteAt(pattern(3<<20, 2), 0)
	check("write", err)
	check("flush", ns.Flush())
}

func TestDiscovery(t *testing.T) {
	cfg := targetlite.Config{Portals: []nvme.Addr{{Host: "127.0.0.1", Service: "0"}, {Host: "::1", Service: "0"}, {Host: "", Service: "0"}}}
	for i := range 20 {
		cfg.Subsystems = append(cfg.Subsystems, targetlite.Subsystem{NQN: nvme.NQN(fmt.Sprintf("%s%d", subNQN, i)), AllowAnyHost: i%2 == 0, Hosts: []nvme.NQN{hostNQN}})
	}
	srv := serve(t, cfg)
	for _, c := range []struct {
		host  nvme.NQN
		count int
	}{{hostNQN, 20}, {hostNQN + "2", 10}} {
		for i, portal := range srv.Portals() {
			if i == 2 {
				portal.Host = "127.0.0.1"
			}
			ctrl := connect(t, portal, nvme.DiscoveryNQN, host.Options{HostNQN: c.host})
			gen, entries, err := ctrl.DiscoveryLog(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if gen == 0 || len(entries) != 1+3*c.count {
				t.Fatalf("generation %d, %d entries, want %d", gen, len(entries), 1+3*c.count)
			}
			first := entries[0]
			if first.SUBTYPE != wire.SubtypeCurrentDiscovery || first.SUBNQN != nvme.DiscoveryNQN || first.TRADDR != portal.Host || first.TRSVCID != portal.Service {
				t.Errorf("first entry %+v by portal %s", first, portal)
			}
			seen := map[string]bool{}
			for _, e := range entries[1:] {
				key := string(e.SUBNQN) + " " + net.JoinHostPort(e.TRADDR, e.TRSVCID)
				if seen[key] || e.SUBTYPE != wire.SubtypeNVM || e.TRTYPE != wire.TRTypeTCP || net.ParseIP(e.TRADDR).IsUnspecified() || e.CNTLID != 0xffff {
					t.Errorf("entry %+v", e)
				}
				seen[key] = true
			}
		}
	}
}

func TestManyNamespaces(t *testing.T) {
	var list []targetlite.Namespace
	for i := range 2500 {
		list = append(list, targetlite.Namespace{NSID: uint32(3 * (2500 - i)), Backend: open(t, fmt.Sprintf("null:%d", i), backend.Options{Size: 1 << 20})})
	}
	srv := serve(t, one(list...))
	ctrl := connect(t, srv.addr, subNQN, host.Options{})
	infos, err := ctrl.Namespaces(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(infos) != 2500 {
		t.Fatalf("%d namespaces", len(infos))
	}
}
