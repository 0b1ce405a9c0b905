//go:build vm

package cases

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/nvme/nvmetest"
	"hawser.dev/hawser/nvme/wire"
	"hawser.dev/hawser/test/capture"
	"hawser.dev/hawser/test/vm/guest"
)

// The tests of this file are named by the case of docs/conformance.md that they cover: Host is hawser's initiator facing
// the kernel's target, Target hawser's target facing the kernel's host.

const nvmetRoot = "/sys/kernel/config/nvmet"

func caseNQN(t *testing.T) nvme.NQN {
	return nvme.NQN("nqn.2026-01.dev.hawser:" + strings.ToLower(strings.NewReplacer("/", ".", "_", "-", "#", "-").Replace(t.Name())))
}

func caseContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), guest.Deadline)
	t.Cleanup(cancel)
	return ctx
}

func portal(host, port string) nvme.Addr {
	return nvme.Addr{Transport: nvme.TransportTCP, Host: host, Service: port}
}

// nvmetPattern starts the kernel's target with one namespace of a known pattern.
func nvmetPattern(t *testing.T, nqn nvme.NQN, size int) (target *guest.Target, file string, want []byte) {
	t.Helper()
	file = guest.File(t, "disk", int64(size))
	want = make([]byte, size)
	for i := range want {
		want[i] = byte(i>>9) + byte(i)*3
	}
	if err := os.WriteFile(file, want, 0o600); err != nil {
		t.Fatal(err)
	}
	return guest.NVMET(t, "127.0.0.1", guest.Export{Path: guest.Loop(t, file, 512), NQN: string(nqn)}), file, want
}

// recorded puts a recording proxy before a target.
func recorded(t *testing.T, target *guest.Target) (*capture.Proxy, *guest.Target) {
	t.Helper()
	proxy, err := capture.NewProxy("127.0.0.1", target.Addr())
	if err != nil {
		t.Fatal(err)
	}
	return proxy, &guest.Target{Host: "127.0.0.1", Port: strconv.Itoa(proxy.Addr().Port)}
}

// pdus returns the headers of the PDUs of one type on I/O queues.
func pdus(t *testing.T, conns []*capture.Conn, typ wire.PDUType) (list []wire.Header) {
	t.Helper()
	for _, c := range conns {
		if c.QID() < 1 {
			continue
		}
		for _, p := range c.PDUs() {
			var h wire.Header
			if err := h.Parse(p.Bytes); err != nil {
				t.Fatal(err)
			}
			if h.Type == typ {
				list = append(list, h)
			}
		}
	}
	return list
}

func connectHost(t *testing.T, target *guest.Target, nqn nvme.NQN, o host.Options) *host.Controller {
	t.Helper()
	c, err := host.Connect(caseContext(t), portal(target.Host, target.Port), nqn, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(caseContext(t)); err != nil {
			t.Error(err)
		}
	})
	return c
}

// successes reports how many C2HData PDUs end a command by themselves.
func successes(list []wire.Header) (n int) {
	for _, h := range list {
		if h.Flags&(wire.FlagSuccess|wire.FlagLast) == wire.FlagSuccess|wire.FlagLast {
			n++
		}
	}
	return n
}

func TestHostN16Success(t *testing.T) {
	nqn := caseNQN(t)
	target, _, want := nvmetPattern(t, nqn, 1<<20)
	proxy, front := recorded(t, target)
	t.Run("record", func(t *testing.T) {
		ns, err := connectHost(t, front, nqn, host.Options{Queues: 1}).Open(caseContext(t), 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{512, 4096, 1 << 20} {
			got := make([]byte, n)
			if _, err := ns.ReadAt(got, 0); err != nil || !bytes.Equal(got, want[:n]) {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
	})
	if n := successes(pdus(t, proxy.Close(), wire.TypeC2HData)); n < 3 {
		t.Errorf("the kernel sent SUCCESS %d times", n)
	}
}

func TestTargetN16Success(t *testing.T) {
	nqn := caseNQN(t)
	file := guest.File(t, "disk", 1<<20)
	proxy, front := recorded(t, guest.Hawser(t, "127.0.0.1", guest.Export{Path: file, NQN: string(nqn)}))
	t.Run("record", func(t *testing.T) {
		dev := guest.Connect(t, front, string(nqn), "--disable-sqflow")
		guest.Run(t, "dd", "if="+dev, "of=/dev/null", "bs=64k", "count=16", "iflag=direct")
	})
	if n := successes(pdus(t, proxy.Close(), wire.TypeC2HData)); n < 16 {
		t.Errorf("the target sent SUCCESS %d times", n)
	}
}

func TestHostN29OneByteAtATime(t *testing.T) {
	nqn := caseNQN(t)
	target, file, want := nvmetPattern(t, nqn, 1<<20)
	o := host.Options{Queues: 1, HeaderDigest: true, DataDigest: true}
	o.Dial = func(ctx context.Context, addr nvme.Addr) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr.String())
		return &nvmetest.FaultConn{Conn: conn, OneByteReads: true, OneByteWrites: true}, err
	}
	c := connectHost(t, target, nqn, o)
	ns, err := c.Open(caseContext(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8192)
	if _, err := ns.ReadAt(got, 4096); err != nil || !bytes.Equal(got, want[4096:4096+8192]) {
		t.Errorf("read: %v", err)
	}
	slices.Reverse(got)
	if _, err := ns.WriteAt(got, 4096); err != nil {
		t.Errorf("write: %v", err)
	}
	if err := ns.Flush(); err != nil {
		t.Errorf("flush: %v", err)
	}
	onDisk, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(onDisk[4096:4096+8192], got) {
		t.Errorf("the file has other data: %v", err)
	}
}

// refusedByKernel connects to the kernel's target and wants a status.
func refusedByKernel(t *testing.T, target *guest.Target, nqn nvme.NQN, want nvme.Status, says string) {
	t.Helper()
	c, err := host.Connect(caseContext(t), portal(target.Host, target.Port), nqn, host.Options{})
	var se *nvme.StatusError
	if !errors.As(err, &se) || !se.Fabrics || se.Status.Code() != want || !strings.Contains(err.Error(), says) {
		t.Errorf("%v", err)
	}
	if err == nil {
		c.Close(caseContext(t))
	}
}

func TestHostF02UnknownSubsystem(t *testing.T) {
	nqn := caseNQN(t)
	target, _, _ := nvmetPattern(t, nqn, 1<<20)
	refusedByKernel(t, target, nqn+"x", nvme.StatusConnectInvalidParameters, "subsystem NQN")
}

func TestTargetF02UnknownSubsystem(t *testing.T) {
	guest.Modprobe(t, "nvme-tcp")
	nqn := string(caseNQN(t))
	target := guest.Hawser(t, "127.0.0.1", guest.Export{Path: guest.File(t, "disk", 1<<20), NQN: nqn})
	r := guest.NVMe(t, "connect", target, "-n", nqn+"x")
	if r.Code == 0 || len(guest.Controllers(nqn+"x")) != 0 {
		t.Errorf("a subsystem that does not exist was connected: %s%s", r.Stdout, r.Stderr)
	}
}

// allowOnly makes the kernel's target let one host alone into a subsystem.
func allowOnly(t *testing.T, nqn, hostNQN nvme.NQN) {
	t.Helper()
	sub, entry := filepath.Join(nvmetRoot, "subsystems", string(nqn)), filepath.Join(nvmetRoot, "hosts", string(hostNQN))
	link := filepath.Join(sub, "allowed_hosts", string(hostNQN))
	if err := os.WriteFile(filepath.Join(sub, "attr_allow_any_host"), []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(entry, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(entry, link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(os.Remove(link), os.Remove(entry)); err != nil {
			t.Error(err)
		}
	})
}

func TestHostF03HostNotAllowed(t *testing.T) {
	nqn := caseNQN(t)
	target, _, _ := nvmetPattern(t, nqn, 1<<20)
	const friend nvme.NQN = "nqn.2026-01.dev.hawser:friend"
	allowOnly(t, nqn, friend)
	refusedByKernel(t, target, nqn, nvme.StatusConnectInvalidHost, "host NQN")
	connectHost(t, target, nqn, host.Options{HostNQN: friend})
}

func TestHostF12KeepAliveGranularity(t *testing.T) {
	nqn := caseNQN(t)
	target, _, _ := nvmetPattern(t, nqn, 1<<20)
	// The kernel's KAS is 1 s.
	if got := connectHost(t, target, nqn, host.Options{KeepAlive: 1500 * time.Millisecond}).KeepAlive(); got != 2*time.Second {
		t.Errorf("keep alive timeout %v", got)
	}
}

func TestHostF15FewerQueues(t *testing.T) {
	nqn := caseNQN(t)
	target, _, want := nvmetPattern(t, nqn, 1<<20)
	limit := 128 // what the kernel has if it can't be told
	attr := filepath.Join(nvmetRoot, "subsystems", string(nqn), "attr_qid_max")
	if _, err := os.Stat(attr); err == nil {
		limit = 2
		if err := os.WriteFile(attr, []byte("2"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := connectHost(t, target, nqn, host.Options{Queues: 200, QueueSize: 16})
	if n, _ := c.Queues(); n != limit {
		t.Errorf("%d I/O queues, the kernel's target has %d", n, limit)
	}
	ns, err := c.Open(caseContext(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	for range 4 {
		if _, err := ns.ReadAt(got, 0); err != nil || !bytes.Equal(got, want[:4096]) {
			t.Errorf("%v", err)
		}
	}
}

func TestHostD08FilteredByHost(t *testing.T) {
	nqn := caseNQN(t)
	target, _, _ := nvmetPattern(t, nqn, 1<<20)
	const friend nvme.NQN = "nqn.2026-01.dev.hawser:friend"
	allowOnly(t, nqn, friend)
	for hostNQN, want := range map[nvme.NQN]bool{friend: true, friend + "x": false} {
		d, err := host.Discover(caseContext(t), portal(target.Host, target.Port), host.Options{HostNQN: hostNQN})
		if err != nil {
			t.Fatal(err)
		}
		seen := slices.ContainsFunc(d.Records, func(r host.Record) bool { return r.SUBNQN == nqn && r.Addr() == portal(target.Host, target.Port) })
		if seen != want {
			t.Errorf("%s: %+v", hostNQN, d.Records)
		}
	}
}

// The scripted peers are right where the kernel accepts them.
func TestScriptedHost(t *testing.T) {
	nqn := caseNQN(t)
	target, file, want := nvmetPattern(t, nqn, 1<<20)
	for _, digest := range []uint8{0, wire.DigestHeader | wire.DigestData} {
		o := nvmetest.HostOptions{SubNQN: nqn, IC: wire.ICReq{Digest: digest}, CATTR: wire.ConnectDisableSQFlow, KATO: 5000}
		admin := nvmetest.ConnectAdmin(t, target.Addr(), o)
		_, b := admin.Must(wire.IdentifyCmd(wire.CNSController, 0, 0, 0), nil, wire.IdentifySize)
		var id wire.IdentifyController
		if err := id.Parse(b); err != nil || id.SUBNQN != nqn || id.CNTLID != admin.CNTLID {
			t.Fatalf("%+v, %v", id, err)
		}
		admin.ExpectStatus(admin.SendTransport(wire.IdentifyCmd(0x7f, 0, 0, 0), wire.IdentifySize), nvme.StatusInvalidField)
		q := admin.ConnectIO(1)
		for _, n := range []int{512, 4096, 128 << 10} { // in the capsule and by R2T
			slices.Reverse(want[:n])
			q.Must(wire.WriteCmd(1, 0, uint32(n/512), wire.ControlFUA), want[:n], 0)
			if _, got := q.Must(wire.ReadCmd(1, 0, uint32(n/512), 0), nil, n); !bytes.Equal(got, want[:n]) {
				t.Errorf("%d bytes differ", n)
			}
		}
		if onDisk, err := os.ReadFile(file); err != nil || !bytes.Equal(onDisk, want) {
			t.Errorf("the file has other data: %v", err)
		}
		if digest == 0 { // with a header digest the kernel waits for one after ICReq, too
			q.Raw(q.Frame(wire.TypeICReq, 0, (&wire.ICReq{}).AppendTo(nil), nil))
			if term, _ := q.ExpectEnd(); term != nil {
				t.Errorf("the kernel sent %+v, which it never does", term)
			}
		}
		admin.Close()
	}
}

func TestScriptedController(t *testing.T) {
	nqn := caseNQN(t)
	c := nvmetest.NewController(t, nqn)
	c.R2TData = 16 << 10
	addr := c.Start()
	target := &guest.Target{Host: addr.Host, Port: addr.Service}
	source := filepath.Join(t.TempDir(), "data")
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<13)
	if err := os.WriteFile(source, want, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, digests := range [][]string{nil, {"--hdr-digest", "--data-digest"}} {
		t.Run(strings.Join(digests, ""), func(t *testing.T) {
			dev := guest.Connect(t, target, string(nqn), append([]string{"--nr-io-queues=2"}, digests...)...)
			if n := guest.Size(t, dev); n != 1<<20 {
				t.Errorf("%d bytes", n)
			}
			guest.Run(t, "dd", "if="+source, "of="+dev, "bs=128k", "oflag=direct")
			guest.Run(t, "dd", "if="+source, "of="+dev, "bs=4k", "seek=64", "oflag=direct")
			if got := guest.Run(t, "dd", "if="+dev, "bs=128k", "count=1", "iflag=direct"); got != string(want) {
				t.Error("data differs")
			}
			guest.Run(t, "blkdiscard", dev)
			if got := guest.Run(t, "dd", "if="+dev, "bs=4k", "count=1", "iflag=direct"); strings.Trim(got, "\x00") != "" {
				t.Error("discarded blocks are not zero")
			}
		})
	}
}
