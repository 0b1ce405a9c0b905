package host_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/nvme/nvmetest"
	"hawser.dev/hawser/nvme/tcp"
	"hawser.dev/hawser/nvme/wire"
)

const subsystem nvme.NQN = "nqn.2026-11.com.example:host"

func connect(t testing.TB, c *nvmetest.Controller, o host.Options) *host.Controller {
	t.Helper()
	o.Dial = c.Dial
	ctl, err := host.Connect(t.Context(), nvme.Addr{Transport: nvme.TransportTCP, Host: "scripted"}, subsystem, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		ctl.Close(ctx)
	})
	return ctl
}

func openNamespace(t testing.TB, ctl *host.Controller) *host.Namespace {
	t.Helper()
	ns, err := ctl.Open(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// TestTransfers writes and reads ranges of every size, also beyond MDTS.
func TestTransfers(t *testing.T) {
	for _, o := range []host.Options{
		{},
		{HeaderDigest: true, DataDigest: true},
		{HPDA: 31, MaxTransfer: 8192},
		{QueueSize: 2, Queues: 1},
	} {
		c := nvmetest.NewController(t, subsystem)
		c.R2TData = 12 << 10
		var largest atomic.Int64
		c.OnCommand = func(_ *nvmetest.Queue, cmd *nvmetest.Command) bool {
			largest.Store(max(largest.Load(), int64(cmd.SGL.Length)))
			return false
		}
		ctl := connect(t, c, o)
		ns := openNamespace(t, ctl)
		want := make([]byte, ns.Size)
		rng := rand.New(rand.NewPCG(1, 2))
		for i := range 60 {
			n := 512 << rng.IntN(12)
			off := rng.Int64N((ns.Size-int64(n))/512+1) * 512
			part := want[off : off+int64(n)]
			for j := range part {
				part[j] = byte(i + j)
			}
			if k, err := ns.WriteAt(part, off); err != nil || k != n {
				t.Fatalf("write %d at %d: %d, %v", n, off, k, err)
			}
		}
		if err := ns.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := ns.WriteZeroes(4096, 300<<10, true); err != nil {
			t.Fatal(err)
		}
		clear(want[4096 : 4096+300<<10])
		got := make([]byte, ns.Size)
		if _, err := ns.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%+v: read back differs", o)
		}
		if err := ns.Compare(want[:64<<10], 0); err != nil {
			t.Fatal(err)
		}
		want[700] ^= 1
		var se *nvme.StatusError
		if err := ns.Compare(want[:4096], 0); !errors.As(err, &se) || se.Status.Code() != nvme.StatusCompareFailure {
			t.Fatalf("compare with other data: %v", err)
		}
		if m := int64(ctl.MaxTransfer()); largest.Load() > m || m > 128<<10 {
			t.Fatalf("a command of %d bytes, the most is %d", largest.Load(), m)
		}
	}
}

func TestRangesThatCannotBe(t *testing.T) {
	ns := openNamespace(t, connect(t, nvmetest.NewController(t, subsystem), host.Options{}))
	for _, c := range []struct{ off, n int64 }{{0, 100}, {100, 512}, {-512, 512}, {1 << 62, 1 << 62}, {0, 0}} {
		if err := ns.WriteZeroes(c.off, c.n, false); err == nil {
			t.Errorf("write zeroes of %d bytes at %d", c.n, c.off)
		}
	}
	if _, err := ns.WriteAt(make([]byte, 700), 0); err == nil {
		t.Error("a write of 700 bytes")
	}
	var se *nvme.StatusError
	if _, err := ns.WriteAt(make([]byte, 512), ns.Size); !errors.As(err, &se) || se.Status.Code() != nvme.StatusLBAOutOfRange {
		t.Errorf("write beyond the end: %v", err)
	}
	if n, err := ns.ReadAt(make([]byte, 1024), ns.Size-512); n != 512 || err == nil {
		t.Errorf("read over the end: %d, %v", n, err)
	}
}

func TestBlockLargerThanTransfer(t *testing.T) {
	c := nvmetest.NewController(t, subsystem)
	c.Identify.MDTS = 1 // 8 KiB
	c.Namespaces[1].BlockSize = 64 << 10
	if ns, err := connect(t, c, host.Options{}).Open(t.Context(), 1); err == nil {
		t.Fatalf("opened a namespace of blocks of %d bytes", ns.BlockSize)
	} else if want := "blocks of 65536 bytes"; !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q in it", err, want)
	}
}

// TestTimeout: a command without an answer is aborted after its time, and
// the association given up after twice that; nothing comes back before.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := nvmetest.NewController(t, subsystem)
		var aborted atomic.Int32
		c.OnCommand = func(q *nvmetest.Queue, cmd *nvmetest.Command) bool {
			if q.QID == 0 && cmd.Opcode == wire.OpAbort {
				aborted.Add(1)
			}
			return q.QID > 0 && cmd.Opcode == wire.OpRead
		}
		ctl := connect(t, c, host.Options{Timeout: 8 * time.Second})
		ns := openNamespace(t, ctl)
		start := time.Now()
		_, err := ns.ReadAt(make([]byte, 512), 0)
		if !errors.Is(err, tcp.ErrTimeout) {
			t.Errorf("read: %v", err)
		}
		if d := time.Since(start); d < 16*time.Second || d > 20*time.Second {
			t.Errorf("given up after %v, want twice 8 s", d)
		}
		if aborted.Load() != 1 {
			t.Errorf("%d aborts, want 1", aborted.Load())
		}
		<-ctl.Done()
		c.Stop()
	})
}

// TestKeepAlive: without traffic the controller hears a Keep Alive within
// each timeout; one that stops answering is given up.
func TestKeepAlive(t *testing.T) {
	for _, traffic := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := nvmetest.NewController(t, subsystem)
			c.Identify.KAS = 25
			if traffic {
				c.Identify.CTRATT |= wire.CTRATTTBKAS
			}
			var beats atomic.Int32
			var deaf atomic.Bool
			c.OnCommand = func(q *nvmetest.Queue, cmd *nvmetest.Command) bool {
				if cmd.Opcode == wire.OpKeepAlive {
					beats.Add(1)
				}
				return deaf.Load()
			}
			ctl := connect(t, c, host.Options{KeepAlive: 4 * time.Second})
			time.Sleep(20 * time.Second)
			if n := beats.Load(); n < 5 || n > 20 {
				t.Errorf("%d keep alives in 20 s of a timeout of 4 s", n)
			}
			if got := ctl.KeepAlive(); got != 5*time.Second {
				t.Errorf("keep alive timeout %v, want it rounded up to 5 s", got)
			}
			deaf.Store(true)
			start := time.Now()
			<-ctl.Done()
			if d := time.Since(start); d < 5*time.Second || d > 12*time.Second || !errors.Is(ctl.Err(), tcp.ErrTimeout) {
				t.Errorf("given up after %v: %v", d, ctl.Err())
			}
			c.Stop()
		})
	}
}

// TestSQFlowControl: a controller that refuses to go without SQ flow control is used with it.
func TestSQFlowControl(t *testing.T) {
	c := nvmetest.NewController(t, subsystem)
	c.OnCommand = func(q *nvmetest.Queue, cmd *nvmetest.Command) bool {
		if cmd.Fabrics() && cmd.FCType() == wire.FCTypeConnect && cmd.Connect().CATTR&wire.ConnectDisableSQFlow != 0 {
			q.Respond(cmd, nvme.StatusConnectInvalidParameters|nvme.StatusDNR, uint64(wire.ConnectInvalid(wire.ConnectCmdCATTR, false)))
			return true
		}
		return false
	}
	ns := openNamespace(t, connect(t, c, host.Options{}))
	if _, err := ns.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
}

// TestQueueFull: with SQ flow control a queue holds one command less than it has entries, and is asked for accordingly.
func TestQueueFull(t *testing.T) {
	for _, tt := range []struct {
		quiet                  bool
		entries, depth, sqsize int
	}{
		{quiet: true, entries: 16, depth: 16, sqsize: 15},
		{quiet: true, entries: 128, depth: 16, sqsize: 15},
		{entries: 128, depth: 16, sqsize: 16},
		{entries: 17, depth: 16, sqsize: 16},
		{entries: 16, depth: 15, sqsize: 15},
		{entries: 2, depth: 1, sqsize: 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := nvmetest.NewController(t, subsystem)
			c.CAP = wire.NewCAP(tt.entries, time.Second, wire.CAPCQR|wire.CAPCSSNVM)
			var sqsize [2]atomic.Int32
			var reads atomic.Int32
			c.OnCommand = func(q *nvmetest.Queue, cmd *nvmetest.Command) bool {
				if cmd.Fabrics() && cmd.FCType() == wire.FCTypeConnect {
					p := cmd.Connect()
					if !tt.quiet && p.CATTR&wire.ConnectDisableSQFlow != 0 {
						q.Respond(cmd, nvme.StatusConnectInvalidParameters|nvme.StatusDNR, uint64(wire.ConnectInvalid(wire.ConnectCmdCATTR, false)))
						return true
					}
					sqsize[p.QID].Store(int32(p.SQSize))
				}
				if q.QID == 1 && cmd.Opcode == wire.OpRead {
					reads.Add(1)
					return true // never answered
				}
				return false
			}
			ctl := connect(t, c, host.Options{Queues: 1, QueueSize: 16, KeepAlive: -1})
			_, depth := ctl.Queues()
			if depth != tt.depth || int(sqsize[1].Load()) != tt.sqsize || sqsize[0].Load() != 31 {
				t.Errorf("%+v: depth %d, SQSIZE %d, of the admin queue %d", tt, depth, sqsize[1].Load(), sqsize[0].Load())
			}
			ns := openNamespace(t, ctl)
			var back atomic.Int32
			ios := make([]*host.IO, 40)
			for i := range ios {
				ios[i] = &host.IO{Op: host.OpRead, Data: make([]byte, 512), Done: func(*host.IO) { back.Add(1) }}
			}
			ns.Submit(ios...)
			synctest.Wait()
			if n := int(reads.Load()); n != tt.depth || back.Load() != 0 {
				t.Errorf("%+v: %d commands open", tt, n)
			}
			c.Stop()
			<-ctl.Done()
		})
	}
}

// TestWriteZeroesDeallocates: DEAC is set where it is wanted, and the controller takes it (DLFEAT bit 3) and returns
// zeros for deallocated blocks.
func TestWriteZeroesDeallocates(t *testing.T) {
	for dlfeat, takes := range map[uint8]bool{
		0: false, wire.DLFEATZeroes: false, wire.DLFEATWriteZeroes: false, wire.DLFEATWriteZeroes | 2: false,
		wire.DLFEATZeroes | wire.DLFEATWriteZeroes: true,
	} {
		c := nvmetest.NewController(t, subsystem)
		seen := make(chan bool, 1)
		c.OnCommand = func(q *nvmetest.Queue, cmd *nvmetest.Command) bool {
			switch {
			case cmd.Fabrics():
			case q.QID == 0 && cmd.Opcode == wire.OpIdentify && cmd.CNS() == wire.CNSNamespace:
				id := wire.IdentifyNamespace{NSZE: 2048, NCAP: 2048, NUSE: 2048, DLFEAT: dlfeat}
				id.LBAF[0].DS = 9
				q.SendData(cmd, id.AppendTo(nil))
				return true
			case q.QID != 0 && cmd.Opcode == wire.OpWriteZeroes:
				seen <- cmd.DEAC()
			}
			return false
		}
		ns := openNamespace(t, connect(t, c, host.Options{Queues: 1}))
		for _, unmap := range []bool{false, true} {
			if err := ns.WriteZeroes(0, 4096, unmap); err != nil {
				t.Fatal(err)
			}
			if deac := <-seen; deac != (unmap && takes) {
				t.Errorf("DLFEAT %#x, may unmap %v: DEAC %v", dlfeat, unmap, deac)
			}
		}
	}
}

func TestManyNamespaces(t *testing.T) {
	c := nvmetest.NewController(t, subsystem)
	const n = 2100 // three pages of the active namespace list
	for i := range n {
		c.Namespaces[uint32(2*i+1)] = &nvmetest.Namespace{Data: make([]byte, 4096), BlockSize: 4096, IDs: wire.NamespaceDescriptors{NGUID: nvme.NGUID{1, 14: byte(i >> 8), 15: byte(i)}}}
	}
	list, err := connect(t, c, host.Options{}).Namespaces(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != n || list[n-1].NSID != 2*n-1 || list[n-1].BlockSize != 4096 {
		t.Fatalf("%d namespaces, the last %+v", len(list), list[len(list)-1])
	}
}

func TestAuthenticationRequired(t *testing.T) {
	c := nvmetest.NewController(t, subsystem)
	c.OnCommand = func(q *nvmetest.Queue, cmd *nvmetest.Command) bool {
		if cmd.Fabrics() && cmd.FCType() == wire.FCTypeConnect {
			q.Respond(cmd, nvme.StatusSuccess, uint64(wire.ConnectAuthRequired|1))
			return true
		}
		return false
	}
	_, err := host.Connect(t.Context(), nvme.Addr{Host: "scripted"}, subsystem, host.Options{Dial: c.Dial})
	if !errors.Is(err, host.ErrAuthRequired) {
		t.Fatal(err)
	}
}

func TestCancelledConnect(t *testing.T) {
	c := nvmetest.NewController(t, subsystem)
	c.OnCommand = func(*nvmetest.Queue, *nvmetest.Command) bool { return true }
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := host.Connect(ctx, nvme.Addr{Host: "scripted"}, subsystem, host.Options{Dial: c.Dial})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

// TestBinding: every connection leaves by the interface and the source address asked for.
func TestBinding(t *testing.T) {
	c := nvmetest.NewController(t, subsystem)
	addr := c.Start()
	ctl, err := host.Connect(t.Context(), addr, subsystem, host.Options{Interface: "lo", Source: netip.MustParseAddr("127.0.0.9"), TOS: 0x10})
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close(t.Context())
	if got := ctl.LocalAddr().(*net.TCPAddr).IP.String(); got != "127.0.0.9" {
		t.Errorf("local address %s, want 127.0.0.9", got)
	}
	openNamespace(t, ctl)
	for _, o := range []host.Options{{Interface: "nosuch0"}, {Source: netip.MustParseAddr("192.0.2.1")}} {
		if c, err := host.Connect(t.Context(), addr, subsystem, o); err == nil {
			c.Close(t.Context())
			t.Errorf("connected with %+v", o)
		}
	}
}
