package nvmetest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
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

// The tests of this file and of conformance_target_test.go are named by the case they cover in docs/conformance.md.

const (
	testNQN nvme.NQN = "nqn.2014-08.com.example:conformance"
	ioSize           = 64 << 10
)

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i*7) + byte(i>>8)
	}
	return b
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// oneQueue is what most tests connect with.
var oneQueue = host.Options{Queues: 1, QueueSize: 32, KeepAlive: -1}

// connect connects our host to c.
func connect(t *testing.T, addr nvme.Addr, o host.Options) *host.Controller {
	t.Helper()
	ctl, err := host.Connect(testContext(t), addr, testNQN, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ctl.Close(testContext(t)) })
	return ctl
}

// openNamespace connects our host to c and opens namespace 1.
func openNamespace(t *testing.T, c *nvmetest.Controller, o host.Options) (*host.Controller, *host.Namespace) {
	t.Helper()
	ctl := connect(t, c.Start(), o)
	ns, err := ctl.Open(testContext(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	return ctl, ns
}

// onIO makes f the script of the I/O commands with opcode op.
func onIO(c *nvmetest.Controller, op uint8, f func(q *nvmetest.Queue, cmd *nvmetest.Command)) {
	c.OnCommand = func(q *nvmetest.Queue, cmd *nvmetest.Command) bool {
		if q.QID == 0 || cmd.Fabrics() || cmd.Opcode != op {
			return false
		}
		f(q, cmd)
		return true
	}
}

// ended checks that the association has ended, that the host said why with an H2CTermReq, and that the header in it is
// one of the controller's.
func ended(t *testing.T, c *nvmetest.Controller, ctl *host.Controller, fes uint16, fei uint32) {
	t.Helper()
	end := c.WaitTermReq()
	if end.TermReq.FES != fes || end.TermReq.FEI != fei {
		t.Errorf("H2CTermReq with FES %02x (%s) FEI %d, want FES %02x FEI %d", end.TermReq.FES, wire.FESString(end.TermReq.FES), end.TermReq.FEI, fes, fei)
	}
	if len(end.Echo) < wire.HeaderSize || len(end.Echo) > wire.MaxTermReqData {
		t.Errorf("H2CTermReq echoes % x", end.Echo)
	}
	if ctl == nil {
		return
	}
	select {
	case <-ctl.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the association lives on")
	}
	var e *tcp.Error
	if err := ctl.Err(); !errors.As(err, &e) || e.FES != fes || e.Remote {
		t.Errorf("the association ended with %v", err)
	}
}

// failsWrite writes 64 KiB to a controller whose script is f, and wants the write to fail and the association to end.
func failsWrite(t *testing.T, fes uint16, f func(q *nvmetest.Queue, cmd *nvmetest.Command)) {
	t.Helper()
	c := nvmetest.NewController(t, testNQN)
	onIO(c, wire.OpWrite, f)
	ctl, ns := openNamespace(t, c, oneQueue)
	if n, err := ns.WriteAt(pattern(ioSize, 1), 0); err == nil || n != 0 {
		t.Errorf("write: %d, %v", n, err)
	}
	ended(t, c, ctl, fes, 0)
}

// failsRead reads 64 KiB from a controller whose script is f, and wants the read to fail and the association to end.
func failsRead(t *testing.T, fes uint16, fei uint32, f func(q *nvmetest.Queue, cmd *nvmetest.Command)) {
	t.Helper()
	c := nvmetest.NewController(t, testNQN)
	onIO(c, wire.OpRead, f)
	ctl, ns := openNamespace(t, c, oneQueue)
	if n, err := ns.ReadAt(make([]byte, ioSize), 0); err == nil || n != 0 {
		t.Errorf("read: %d, %v", n, err)
	}
	ended(t, c, ctl, fes, fei)
}

func TestHostN05CPDA31(t *testing.T) {
	for _, digest := range []bool{false, true} {
		c := nvmetest.NewController(t, testNQN)
		c.ICResp.CPDA = 31
		o := oneQueue
		o.HPDA, o.HeaderDigest, o.DataDigest = 31, digest, digest
		_, ns := openNamespace(t, c, o)
		for _, n := range []int{512, 4096, ioSize} { // in the capsule and by R2T
			want := pattern(n, byte(n>>9))
			got := make([]byte, n)
			if _, err := ns.WriteAt(want, 4096); err != nil {
				t.Fatal(err)
			}
			if _, err := ns.ReadAt(got, 4096); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes, digests %v: %v", n, digest, err)
			}
		}
	}
}

// handshakeFails lets the controller answer ICReq with r.
func handshakeFails(t *testing.T, r wire.ICResp, fei uint32, says string) {
	t.Helper()
	c := nvmetest.NewController(t, testNQN)
	c.OnICReq = func(q *nvmetest.Queue, _ wire.ICReq) bool {
		q.Raw(q.Frame(wire.TypeICResp, 0, r.AppendTo(nil), nil))
		return true
	}
	_, err := host.Connect(testContext(t), c.Start(), testNQN, oneQueue)
	if err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("%+v: %v", r, err)
	}
	ended(t, c, nil, wire.FESInvalidHeader, fei)
}

func TestHostN07MaxH2CData(t *testing.T) {
	handshakeFails(t, wire.ICResp{MaxH2CData: 2048}, 12, "MAXH2CDATA 2048")
	handshakeFails(t, wire.ICResp{MaxH2CData: 4098}, 12, "MAXH2CDATA 4098")
	handshakeFails(t, wire.ICResp{MaxH2CData: 4096, PFV: 1}, 8, "PFV 1")
	handshakeFails(t, wire.ICResp{MaxH2CData: 4096, CPDA: 32}, 10, "CPDA 32")
}

func TestHostN08DigestMismatch(t *testing.T) {
	handshakeFails(t, wire.ICResp{MaxH2CData: 4096, Digest: wire.DigestHeader}, 11, "digest")
	handshakeFails(t, wire.ICResp{MaxH2CData: 4096, Digest: wire.DigestData}, 11, "digest")
}

func TestHostN09NoICResp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := nvmetest.NewController(t, testNQN)
		c.OnICReq = func(*nvmetest.Queue, wire.ICReq) bool { return true }
		o := oneQueue
		o.Dial = c.Dial
		begin := time.Now()
		_, err := host.Connect(context.Background(), nvme.Addr{Host: "pipe"}, testNQN, o)
		if d := time.Since(begin); err == nil || d < time.Second || d > time.Minute {
			t.Errorf("after %v: %v", d, err)
		}
		synctest.Wait()
		if n := c.Connections(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}

func TestHostN11R2TBeyondData(t *testing.T) {
	failsWrite(t, wire.FESDataOutOfRange, func(q *nvmetest.Queue, cmd *nvmetest.Command) {
		b, _ := q.R2T(cmd, 0, ioSize+4)
		q.Raw(b)
	})
	failsWrite(t, wire.FESDataOutOfRange, func(q *nvmetest.Queue, cmd *nvmetest.Command) {
		b, _ := q.R2T(cmd, math.MaxUint32-3, ioSize)
		q.Raw(b)
	})
	failsWrite(t, wire.FESDataOutOfRange, func(q *nvmetest.Queue, cmd *nvmetest.Command) {
		b, _ := q.R2T(cmd, 0, 0)
		q.Raw(b)
	})
}

func TestHostN12R2TBackwards(t *testing.T) {
	failsWrite(t, wire.FESDataOutOfRange, func(q *nvmetest.Queue, cmd *nvmetest.Command) {
		b, ttag := q.R2T(cmd, 0, ioSize/2)
		q.Raw(b)
		q.ReceiveData(cmd, ttag, make([]byte, ioSize/2), 0)
		b, _ = q.R2T(cmd, ioSize/4, ioSize/2)
		q.Raw(b)
	})
}

func TestHostN13ManyR2Ts(t *testing.T) {
	// One more than MAXR2T may cross the data of the one before: tolerated.
	c := nvmetest.NewController(t, testNQN)
	onIO(c, wire.OpWrite, func(q *nvmetest.Queue, cmd *nvmetest.Command) {
		data := make([]byte, ioSize)
		first, tag1 := q.R2T(cmd, 0, ioSize/2)
		second, tag2 := q.R2T(cmd, ioSize/2, ioSize/2)
		q.Raw(append(first, second...))
		if err := q.ReceiveData(cmd, tag1, data[:ioSize/2], 0); err != nil {
			t.Error(err)
		}
		if err := q.ReceiveData(cmd, tag2, data[ioSize/2:], ioSize/2); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(data, pattern(ioSize, 1)) {
			t.Error("data differs")
		}
		q.Respond(cmd, nvme.StatusSuccess, 0)
	})
	_, ns := openNamespace(t, c, oneQueue)
	if _, err := ns.WriteAt(pattern(ioSize, 1), 0); err != nil {
		t.Error(err)
	}
	// Sixteen at once are not. The data of the first ones may be on its way already.
	failsWrite(t, wire.FESLimitExceeded, func(q *nvmetest.Queue, cmd *nvmetest.Command) {
		var all []byte
		for i := range 16 {
			b, _ := q.R2T(cmd, i*ioSize/16, ioSize/16)
			all = append(all, b...)
		}
		q.Raw(all)
		q.Drain()
	})
}

func TestHostN14ReadTooLong(t *testing.T) {
	failsRead(t, wire.FESDataOutOfRange, 0, func(q *nvmetest.Queue, cmd *nvmetest.Command) {
		q.Raw(q.C2HData(cmd, 0, make([]byte, ioSize+512), wire.FlagLast))
	})
	failsRead(t, wire.FESDataOutOfRange, 0, func(q *nvmetest.Queue, cmd *nvmetest.Command) {
		q.Raw(q.C2HData(cmd, math.MaxUint32-511, make([]byte, 1024), wire.FlagLast))
	})
}

func TestHostN15ShortRead(t *testing.T) {
	failsRead(t, wire.FESSequence, 0, func(q *nvmetest.Queue, cmd *nvmetest.Command) {
		q.SendData(cmd, make([]byte, ioSize-512))
	})
	failsRead(t, wire.FESSequence, 0, func(q *nvmetest.Queue, cmd *nvmetest.Command) {
		q.Respond(cmd, nvme.StatusSuccess, 0)
	})
	failsRead(t, wire.FESSequence, 0, func(q *nvmetest.Queue, cmd *nvmetest.Command) {
		q.Raw(q.C2HData(cmd, 0, make([]byte, 512), wire.FlagLast|wire.FlagSuccess))
	})
}

// readsBack reads through the script f, which serves the data of want.
func readsBack(t *testing.T, o host.Options, f func(q *nvmetest.Queue, cmd *nvmetest.Command, want []byte)) {
	t.Helper()
	c := nvmetest.NewController(t, testNQN)
	want := pattern(ioSize, 9)
	onIO(c, wire.OpRead, func(q *nvmetest.Queue, cmd *nvmetest.Command) { f(q, cmd, want) })
	ctl, ns := openNamespace(t, c, o)
	for range 3 {
		got := make([]byte, ioSize)
		if n, err := ns.ReadAt(got, 0); n != ioSize || err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	if err := ctl.Err(); err != nil {
		t.Error(err)
	}
}

func TestHostN16Success(t *testing.T) {
	readsBack(t, oneQueue, func(q *nvmetest.Queue, cmd *nvmetest.Command, want []byte) {
		q.Raw(q.C2HData(cmd, 0, want, wire.FlagLast|wire.FlagSuccess))
	})
	readsBack(t, oneQueue, func(q *nvmetest.Queue, cmd *nvmetest.Command, want []byte) {
		q.Raw(q.C2HData(cmd, 0, want[:512], 0))
		q.Raw(q.C2HData(cmd, 512, want[512:], wire.FlagLast|wire.FlagSuccess))
	})
}

func TestHostN17SuccessWithoutLast(t *testing.T) {
	failsRead(t, wire.FESInvalidHeader, 1, func(q *nvmetest.Queue, cmd *nvmetest.Command) {
		q.Raw(q.C2HData(cmd, 0, make([]byte, ioSize), wire.FlagSuccess))
	})
}

func TestHostN18SevenPDUs(t *testing.T) {
	for _, digest := range []bool{false, true} {
		o := oneQueue
		o.HeaderDigest, o.DataDigest = digest, digest
		readsBack(t, o, func(q *nvmetest.Queue, cmd *nvmetest.Command, want []byte) {
			off := 0
			for i, n := range []int{1, 3, 511, 4097, 9999, 20001, ioSize - 34612} {
				flags := uint8(0)
				if i == 6 {
					flags = wire.FlagLast
				}
				q.Raw(q.C2HData(cmd, off, want[off:off+n], flags))
				off += n
			}
			q.Respond(cmd, nvme.StatusSuccess, 0)
		})
	}
}

func TestHostN19Padding(t *testing.T) {
	for pad := range 32 {
		for _, digest := range []bool{false, true} {
			o := oneQueue
			o.HeaderDigest = digest
			readsBack(t, o, func(q *nvmetest.Queue, cmd *nvmetest.Command, want []byte) {
				b := q.C2HData(cmd, 0, want, wire.FlagLast)
				at := int(b[3])
				b[3] += uint8(4 * pad)
				plen := len(b) + 4*pad
				b[4], b[5], b[6], b[7] = byte(plen), byte(plen>>8), byte(plen>>16), byte(plen>>24)
				padded := append(bytes.Clone(b[:at]), make([]byte, 4*pad)...)
				q.Raw(q.Resum(append(padded, b[at:]...)))
				q.Respond(cmd, nvme.StatusSuccess, 0)
			})
		}
	}
}

func TestHostN26ReadDataDigest(t *testing.T) {
	c := nvmetest.NewController(t, testNQN)
	want := pattern(ioSize, 9)
	var damage atomic.Bool
	onIO(c, wire.OpRead, func(q *nvmetest.Queue, cmd *nvmetest.Command) {
		b := q.C2HData(cmd, 0, want, wire.FlagLast)
		if damage.Swap(false) {
			b[len(b)/2] ^= 0x10
		}
		q.Raw(b)
		q.Respond(cmd, nvme.StatusSuccess, 0)
	})
	o := oneQueue
	o.DataDigest = true
	ctl, ns := openNamespace(t, c, o)
	for range 2 {
		damage.Store(true)
		got := make([]byte, ioSize)
		if n, err := ns.ReadAt(got, 0); n != 0 || !errors.Is(err, tcp.ErrDataDigest) {
			t.Errorf("damaged read: %d, %v", n, err)
		}
		if n, err := ns.ReadAt(got, 0); n != ioSize || err != nil || !bytes.Equal(got, want) {
			t.Errorf("read after it: %d, %v", n, err)
		}
	}
	if err := ctl.Err(); err != nil {
		t.Errorf("the association ended: %v", err)
	}
}

func TestHostN28NoHeaderDigest(t *testing.T) {
	c := nvmetest.NewController(t, testNQN)
	onIO(c, wire.OpRead, func(q *nvmetest.Queue, cmd *nvmetest.Command) {
		b := q.C2HData(cmd, 0, pattern(ioSize, 9), wire.FlagLast)
		b[1] &^= wire.FlagHDGST
		q.Raw(q.Resum(b))
	})
	o := oneQueue
	o.HeaderDigest = true
	ctl, ns := openNamespace(t, c, o)
	if n, err := ns.ReadAt(make([]byte, ioSize), 0); n != 0 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
	ended(t, c, ctl, wire.FESInvalidHeader, 1)
}

func TestHostN29OneByteAtATime(t *testing.T) {
	c := nvmetest.NewController(t, testNQN)
	o := oneQueue
	o.HeaderDigest, o.DataDigest = true, true
	o.Dial = func(ctx context.Context, addr nvme.Addr) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr.String())
		return &nvmetest.FaultConn{Conn: conn, OneByteReads: true, OneByteWrites: true}, err
	}
	_, ns := openNamespace(t, c, o)
	want := pattern(8192, 3)
	got := make([]byte, len(want))
	if _, err := ns.WriteAt(want, 512); err != nil {
		t.Fatal(err)
	}
	if _, err := ns.ReadAt(got, 512); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v", err)
	}
}

// The connection is cut after every number of bytes that a small association takes, in either direction: the host
// fails, and says so, and leaves nothing behind.
func TestHostCutAnywhere(t *testing.T) {
	c := nvmetest.NewController(t, testNQN)
	addr := c.Start()
	attempt := func(read, write int64) error {
		o := oneQueue
		o.Dial = func(ctx context.Context, addr nvme.Addr) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr.String())
			return &nvmetest.FaultConn{Conn: conn, CutRead: read, CutWrite: write}, err
		}
		ctl, err := host.Connect(testContext(t), addr, testNQN, o)
		if err != nil {
			return err
		}
		defer ctl.Close(testContext(t))
		ns, err := ctl.Open(testContext(t), 1)
		if err != nil {
			return err
		}
		if _, err = ns.WriteAt(make([]byte, 4096), 0); err != nil {
			return err
		}
		_, err = ns.ReadAt(make([]byte, 4096), 0)
		return err
	}
	if err := attempt(1<<40, 1<<40); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{1, 7, 8, 9, 127, 128, 129, 135, 136, 151, 152, 160, 300, 1000, 3000} {
		if err := attempt(n, 0); err == nil {
			t.Errorf("cut after %d bytes read: no error", n)
		}
		if err := attempt(0, n); err == nil {
			t.Errorf("cut after %d bytes written: no error", n)
		}
	}
}

func TestHostF03HostNotAllowed(t *testing.T) {
	c := nvmetest.NewController(t, testNQN)
	c.OnCommand = func(q *nvmetest.Queue, cmd *nvmetest.Command) bool {
		q.Respond(cmd, nvme.StatusConnectInvalidHost|nvme.StatusDNR, uint64(wire.ConnectInvalid(wire.ConnectDataHostNQN, true)))
		return true
	}
	_, err := host.Connect(testContext(t), c.Start(), testNQN, oneQueue)
	var se *nvme.StatusError
	if !errors.As(err, &se) || !se.Fabrics || se.Status.Code() != nvme.StatusConnectInvalidHost || !strings.Contains(err.Error(), "host NQN") {
		t.Errorf("%v", err)
	}
	if e := c.WaitEnd(); e.QID != 0 || e.TermReq != nil {
		t.Errorf("%+v", e)
	}
}

func TestHostF10NeverReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := nvmetest.NewController(t, testNQN)
		c.CAP = wire.NewCAP(128, 3*time.Second, wire.CAPCQR|wire.CAPCSSNVM)
		var last time.Time
		c.OnCommand = func(q *nvmetest.Queue, cmd *nvmetest.Command) bool {
			last = time.Now()
			if off, _, _ := cmd.Property(); !cmd.Fabrics() || cmd.FCType() != wire.FCTypePropertyGet || off != wire.PropertyCSTS {
				return false
			}
			q.Respond(cmd, nvme.StatusSuccess, 0)
			return true
		}
		o := oneQueue
		o.Dial = c.Dial
		begin := time.Now()
		_, err := host.Connect(context.Background(), nvme.Addr{Host: "pipe"}, testNQN, o)
		// (TO+1)/2 s, where TO is in units of 500 ms.
		if d := time.Since(begin); err == nil || d < 3*time.Second || d > 4*time.Second {
			t.Errorf("after %v: %v", d, err)
		}
		gaveUp := time.Now()
		time.Sleep(time.Minute)
		synctest.Wait()
		if last.After(gaveUp) || c.Connections() != 0 {
			t.Errorf("the host goes on after it gave up: %d connections, last command %v later", c.Connections(), last.Sub(gaveUp))
		}
	})
}

func TestHostF12KeepAliveGranularity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := nvmetest.NewController(t, testNQN)
		c.Identify.KAS = 100
		var beats atomic.Int32
		c.OnCommand = func(_ *nvmetest.Queue, cmd *nvmetest.Command) bool {
			if cmd.Opcode == wire.OpKeepAlive {
				beats.Add(1)
			}
			return false
		}
		o := oneQueue
		o.Dial, o.KeepAlive = c.Dial, time.Second
		ctl, err := host.Connect(context.Background(), nvme.Addr{Host: "pipe"}, testNQN, o)
		if err != nil {
			t.Fatal(err)
		}
		if got := ctl.KeepAlive(); got != 10*time.Second {
			t.Errorf("keep alive timeout %v", got)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		// The controller may hold the host to the second that it asked for.
		if n := beats.Load(); n < 60 || n > 121 {
			t.Errorf("%d keep alives in a minute for a timeout of 1 s", n)
		}
		if err := ctl.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func TestHostF14ShutdownNeverEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := nvmetest.NewController(t, testNQN)
		shutdown := false
		c.OnCommand = func(q *nvmetest.Queue, cmd *nvmetest.Command) bool {
			off, _, v := cmd.Property()
			switch {
			case !cmd.Fabrics():
				return false
			case cmd.FCType() == wire.FCTypePropertySet && off == wire.PropertyCC && wire.CC(v).SHN() != 0:
				shutdown = true
				q.Respond(cmd, nvme.StatusSuccess, 0)
				return true
			case shutdown && cmd.FCType() == wire.FCTypePropertyGet && off == wire.PropertyCSTS:
				q.Respond(cmd, nvme.StatusSuccess, uint64(wire.CSTSReady|wire.CSTSSHSTOccurring))
				return true
			}
			return false
		}
		o := oneQueue
		o.Dial = c.Dial
		ctl, err := host.Connect(context.Background(), nvme.Addr{Host: "pipe"}, testNQN, o)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		err = ctl.Close(context.Background())
		if d := time.Since(begin); err == nil || d < 4*time.Second || d > 10*time.Second {
			t.Errorf("after %v: %v", d, err)
		}
		synctest.Wait()
		if n := c.Connections(); n != 0 || !shutdown {
			t.Errorf("%d connections are left", n)
		}
	})
}

func TestHostF15FewerQueues(t *testing.T) {
	c := nvmetest.NewController(t, testNQN)
	c.MaxQueues = 2
	o := oneQueue
	o.Queues = 4
	ctl, ns := openNamespace(t, c, o)
	if n, _ := ctl.Queues(); n != 2 {
		t.Errorf("%d queues", n)
	}
	if n := c.Connections(); n != 3 {
		t.Errorf("%d connections", n)
	}
	for range 8 {
		if _, err := ns.ReadAt(make([]byte, 4096), 0); err != nil {
			t.Error(err)
		}
	}
}

// discoveryController is a discovery service with the entries given.
func discoveryController(t *testing.T, entries ...wire.DiscoveryEntry) *nvmetest.Controller {
	c := nvmetest.NewController(t, nvme.DiscoveryNQN)
	c.Entries = entries
	return c
}

func entry(subtype uint8, nqn nvme.NQN, addr nvme.Addr) wire.DiscoveryEntry {
	return wire.DiscoveryEntry{TRTYPE: wire.TRTypeTCP, ADRFAM: wire.AdrFamIPv4, SUBTYPE: subtype, CNTLID: wire.CNTLIDDynamic, ASQSZ: 32,
		SUBNQN: nqn, TRADDR: addr.Host, TRSVCID: addr.Service}
}

func someEntries(n int) (list []wire.DiscoveryEntry) {
	for i := range n {
		list = append(list, entry(wire.SubtypeNVM, nvme.NQN(fmt.Sprintf("%s%d", testNQN, i)), nvme.Addr{Host: "192.0.2.1", Service: "4420"}))
	}
	return list
}

func discover(t *testing.T, addr nvme.Addr) (*host.Discovery, error) {
	return host.Discover(testContext(t), addr, host.Options{})
}

// logReads makes f see each Get Log Page of the discovery log.
func logReads(c *nvmetest.Controller, f func(q *nvmetest.Queue, cmd *nvmetest.Command, p wire.GetLogPage) bool) {
	c.OnCommand = func(q *nvmetest.Queue, cmd *nvmetest.Command) bool {
		if cmd.Fabrics() || cmd.Opcode != wire.OpGetLogPage {
			return false
		}
		return f(q, cmd, cmd.GetLogPage())
	}
}

func TestHostD01GenerationChanges(t *testing.T) {
	// A log that changes each time its entries are read is given up after a bounded number of tries.
	c := discoveryController(t, someEntries(40)...)
	reads := 0
	logReads(c, func(_ *nvmetest.Queue, _ *nvmetest.Command, p wire.GetLogPage) bool {
		if reads++; p.Offset > 0 {
			c.SetLog(c.GENCTR+1, c.Entries)
		}
		return false
	})
	if _, err := discover(t, c.Start()); !errors.Is(err, host.ErrChanging) {
		t.Errorf("%v", err)
	}
	c.Stop()
	if reads > 100 {
		t.Errorf("%d reads", reads)
	}
	// One that changes once, between two chunks, is read as it is afterwards.
	c = discoveryController(t, someEntries(100)...)
	changed := false
	logReads(c, func(_ *nvmetest.Queue, _ *nvmetest.Command, p wire.GetLogPage) bool {
		if p.Offset > 1024 && !changed {
			changed = true
			c.SetLog(c.GENCTR+1, someEntries(50)[:49])
		}
		return false
	})
	d, err := discover(t, c.Start())
	c.Stop()
	if err != nil || !changed || len(d.Records) != 49 {
		t.Fatalf("changed %v, %+v, %v", changed, d, err)
	}
	for i, r := range d.Records {
		if r.DiscoveryEntry != someEntries(50)[i] {
			t.Errorf("record %d: %+v", i, r)
		}
	}
}

func TestHostD02HugeRecordCount(t *testing.T) {
	for _, numrec := range []uint64{100_000, 1 << 32, math.MaxUint64, 60_000} {
		c := discoveryController(t)
		reads := 0
		logReads(c, func(q *nvmetest.Queue, cmd *nvmetest.Command, p wire.GetLogPage) bool {
			reads++
			page := make([]byte, p.Length)
			if p.Offset == 0 {
				copy(page, (&wire.DiscoveryHeader{GENCTR: 1, NUMREC: numrec}).AppendTo(nil))
			} else if p.Offset >= 4096 {
				q.Respond(cmd, nvme.StatusInvalidField|nvme.StatusDNR, 0) // the log is no longer than that
				return true
			}
			q.SendData(cmd, page)
			return true
		})
		addr := c.Start()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := discover(t, addr)
		runtime.ReadMemStats(&after)
		c.Stop()
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d records: %v", numrec, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 || reads > 20 {
			t.Errorf("%d records: %d bytes taken, %d reads", numrec, got, reads)
		}
	}
}

func TestHostD03ReferralLoop(t *testing.T) {
	a, b := discoveryController(t), discoveryController(t)
	asked := func(c *nvmetest.Controller) *atomic.Int32 {
		n := new(atomic.Int32)
		c.OnCommand = func(_ *nvmetest.Queue, cmd *nvmetest.Command) bool {
			if cmd.Fabrics() && cmd.FCType() == wire.FCTypeConnect {
				n.Add(1)
			}
			return false
		}
		return n
	}
	nA, nB := asked(a), asked(b)
	addrA, addrB := a.Start(), b.Start()
	a.SetLog(1, []wire.DiscoveryEntry{entry(wire.SubtypeReferral, nvme.DiscoveryNQN, addrB), entry(wire.SubtypeNVM, testNQN+"a", addrA)})
	b.SetLog(1, []wire.DiscoveryEntry{entry(wire.SubtypeReferral, nvme.DiscoveryNQN, addrA), entry(wire.SubtypeNVM, testNQN+"b", addrB), entry(wire.SubtypeReferral, nvme.DiscoveryNQN, addrB)})
	d, err := discover(t, addrA)
	if err != nil {
		t.Fatal(err)
	}
	found := map[nvme.NQN]int{}
	for _, r := range d.Records {
		if r.SUBTYPE == wire.SubtypeNVM {
			found[r.SUBNQN]++
		}
	}
	if found[testNQN+"a"] != 1 || found[testNQN+"b"] != 1 || len(found) != 2 || nA.Load() != 1 || nB.Load() != 1 || len(d.Unreachable) != 0 {
		t.Errorf("found %v, asked %d and %d times, %v", found, nA.Load(), nB.Load(), d.Unreachable)
	}
}

func TestHostD04PaddedStrings(t *testing.T) {
	b := discoveryController(t, entry(wire.SubtypeNVM, testNQN, nvme.Addr{Host: "192.0.2.7", Service: "4420"}))
	addr := b.Start()
	a := discoveryController(t)
	logReads(a, func(q *nvmetest.Queue, cmd *nvmetest.Command, p wire.GetLogPage) bool {
		e := entry(wire.SubtypeReferral, nvme.DiscoveryNQN, addr)
		log := nvmetest.DiscoveryLog(1, []wire.DiscoveryEntry{e, entry(wire.SubtypeNVM, testNQN+"full", nvme.Addr{})})
		// The referral's strings are padded with spaces to the end of their fields; the other entry's fill them.
		copy(log[1024+32:], addr.Service+strings.Repeat(" ", 32-len(addr.Service)))
		copy(log[1024+512:], addr.Host+strings.Repeat(" ", 256-len(addr.Host)))
		copy(log[2048+32:], strings.Repeat("9", 32))
		copy(log[2048+512:], strings.Repeat("h", 256))
		page := make([]byte, p.Length)
		copy(page, log[min(int(p.Offset), len(log)):])
		q.SendData(cmd, page)
		return true
	})
	d, err := discover(t, a.Start())
	if err != nil || len(d.Unreachable) != 0 || len(d.Records) != 3 {
		t.Fatalf("%+v, %v", d, err)
	}
	if r := d.Records[0]; r.Addr() != addr {
		t.Errorf("referral to %q", r.Addr())
	}
	if r := d.Records[1]; r.TRADDR != strings.Repeat("h", 256) || r.TRSVCID != strings.Repeat("9", 32) {
		t.Errorf("%+v", r)
	}
	if r := d.Records[2]; r.Addr().String() != "192.0.2.7:4420" {
		t.Errorf("%v", r.Addr())
	}
}

func TestHostD05UnknownTypes(t *testing.T) {
	known := entry(wire.SubtypeNVM, testNQN, nvme.Addr{Host: "192.0.2.7", Service: "4420"})
	subtype, trtype, family, both := known, known, known, known
	subtype.SUBTYPE, trtype.TRTYPE, family.ADRFAM = 9, 77, 99
	both.SUBTYPE, both.TRTYPE = wire.SubtypeReferral, 77 // a referral that can't be followed
	c := discoveryController(t, subtype, trtype, both, family, known)
	d, err := discover(t, c.Start())
	if err != nil || len(d.Unreachable) != 0 || len(d.Records) == 0 {
		t.Fatalf("%+v, %v", d, err)
	}
	if r := d.Records[len(d.Records)-1]; r.DiscoveryEntry != known || r.Addr().Transport != nvme.TransportTCP {
		t.Errorf("%+v", r)
	}
	for _, r := range d.Records {
		if r.TRTYPE == 77 && r.Addr().Transport != "" {
			t.Errorf("transport type 77 became %q", r.Addr().Transport)
		}
	}
}

// Commands in flight when a controller breaks a rule all come back, once.
func TestHostFailsAllInFlight(t *testing.T) {
	c := nvmetest.NewController(t, testNQN)
	var mu sync.Mutex
	held := 0
	onIO(c, wire.OpRead, func(q *nvmetest.Queue, cmd *nvmetest.Command) {
		mu.Lock()
		defer mu.Unlock()
		if held++; held == 16 {
			q.Respond(&nvmetest.Command{Command: wire.Command{CID: 0xffff}}, nvme.StatusSuccess, 0)
		}
	})
	ctl, ns := openNamespace(t, c, oneQueue)
	back := make(chan error, 64)
	ios := make([]*host.IO, 16)
	for i := range ios {
		ios[i] = &host.IO{Op: host.OpRead, Data: make([]byte, 4096), Length: 4096, Done: func(io *host.IO) { back <- io.Err }}
	}
	ns.Submit(ios...)
	for range ios {
		if err := <-back; err == nil || err == io.EOF {
			t.Errorf("read: %v", err)
		}
	}
	ended(t, c, ctl, wire.FESSequence, 0)
	if len(back) != 0 {
		t.Errorf("%d completions too many", len(back))
	}
}
