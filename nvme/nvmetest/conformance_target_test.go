package nvmetest_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/nvmetest"
	"hawser.dev/hawser/nvme/wire"
	targetlite "hawser.dev/hawser/target-lite"
	"hawser.dev/hawser/target-lite/backend"
)

const (
	volumeSize            = 4 << 20
	friendNQN    nvme.NQN = "nqn.2014-08.com.example:friend"
	strangerNQN  nvme.NQN = "nqn.2014-08.com.example:stranger"
	privateNQN   nvme.NQN = "nqn.2014-08.com.example:private"
	targetInCaps          = 8 << 10
)

type target struct {
	*targetlite.Server
	addr string
}

// serve starts our target: testNQN for everybody, with a memory namespace, and privateNQN for friendNQN alone.
func serve(t testing.TB) *target {
	t.Helper()
	memory := func(name string) []targetlite.Namespace {
		b, err := backend.Open(t.Context(), "mem:"+name, backend.Options{Size: volumeSize})
		if err != nil {
			t.Fatal(err)
		}
		return []targetlite.Namespace{{Backend: b}}
	}
	s, err := targetlite.New(targetlite.Config{
		Subsystems: []targetlite.Subsystem{
			{NQN: testNQN, AllowAnyHost: true, Namespaces: memory("public")},
			{NQN: privateNQN, Hosts: []nvme.NQN{friendNQN}, Namespaces: memory("private")},
		},
		Portals:   []nvme.Addr{{Host: "127.0.0.1", Service: "0"}},
		InCapsule: targetInCaps,
		MaxQueues: 8,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Serve: %v", err)
		}
	})
	return &target{s, s.Portals()[0].String()}
}

// withIO connects an admin and an I/O queue and enables the controller.
func withIO(t *testing.T, s *target, o nvmetest.HostOptions) (admin, q *nvmetest.Host) {
	t.Helper()
	o.SubNQN = testNQN
	admin = nvmetest.ConnectAdmin(t, s.addr, o)
	admin.Must(wire.SetFeaturesCmd(wire.FeatureNumberOfQueues, 0, wire.QueueCount(4)), nil, 0)
	q = admin.ConnectIO(1)
	q.InCapsule = targetInCaps
	return admin, q
}

// bystander is a host whose volume must keep working, whatever others do. The check is made when the test ends.
func bystander(t *testing.T, s *target) {
	t.Helper()
	_, q := withIO(t, s, nvmetest.HostOptions{})
	want := pattern(4096, 77)
	last := uint64(volumeSize/512 - 8)
	q.Must(wire.WriteCmd(1, last, 8, 0), want, 0)
	t.Cleanup(func() {
		if _, got := q.Must(wire.ReadCmd(1, last, 8, 0), nil, 4096); !bytes.Equal(got, want) {
			t.Error("another host's data changed")
		}
		q.Close()
	})
}

// eventually waits until ok, which looks at what the target does on its own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestTargetN01Garbage(t *testing.T) {
	s := serve(t)
	bystander(t, s)
	before, conns := descriptors(t), s.Status().Connections
	rng := rand.NewChaCha8([32]byte{1})
	for i := range 64 {
		h := nvmetest.Dial(t, s.addr, nvmetest.HostOptions{})
		b := make([]byte, 128)
		rng.Read(b)
		if i%2 == 1 {
			b[0], b[2] = byte(i%10), 128 // nearly a PDU
		}
		h.Raw(b)
		if i == 0 {
			h.CloseWrite()
		}
		h.ExpectEnd()
		h.Close()
	}
	eventually(t, "all is closed", func() bool { return s.Status().Connections == conns })
	eventually(t, "no descriptor is left", func() bool { return descriptors(t) <= before })
}

func TestTargetN02CapsuleFirst(t *testing.T) {
	s := serve(t)
	bystander(t, s)
	h := nvmetest.Dial(t, s.addr, nvmetest.HostOptions{})
	b, _ := h.Capsule(wire.KeepAliveCmd(), nil)
	h.Raw(b)
	h.ExpectTermReq(wire.FESSequence, 0, b)
}

func TestTargetN03SecondICReq(t *testing.T) {
	s := serve(t)
	bystander(t, s)
	for _, connected := range []bool{false, true} {
		h := nvmetest.Open(t, s.addr, nvmetest.HostOptions{SubNQN: testNQN})
		if connected {
			h.MustConnect(0, wire.CNTLIDDynamic)
		}
		b := h.Frame(wire.TypeICReq, 0, (&wire.ICReq{}).AppendTo(nil), nil)
		h.Raw(b)
		h.ExpectTermReq(wire.FESSequence, 0, b)
	}
}

// refusesICReq sends an ICReq changed by edit.
func refusesICReq(t *testing.T, fei uint32, edit func(b []byte)) {
	t.Helper()
	s := serve(t)
	h := nvmetest.Dial(t, s.addr, nvmetest.HostOptions{})
	b := h.Frame(wire.TypeICReq, 0, (&wire.ICReq{}).AppendTo(nil), nil)
	edit(b)
	h.Raw(b)
	h.ExpectTermReq(wire.FESInvalidHeader, fei, b)
}

func TestTargetN04PFV(t *testing.T) {
	refusesICReq(t, 8, func(b []byte) { b[8] = 1 })
	refusesICReq(t, 8, func(b []byte) { b[9] = 1 })
}

func TestTargetN05HPDA31(t *testing.T) {
	s := serve(t)
	for _, digest := range []uint8{0, wire.DigestHeader | wire.DigestData} {
		// The scripted host refuses C2HData whose PDO is not a multiple of 128.
		_, q := withIO(t, s, nvmetest.HostOptions{IC: wire.ICReq{HPDA: 31, Digest: digest}})
		if q.RecvAlign != 128 {
			t.Fatalf("alignment %d", q.RecvAlign)
		}
		for _, n := range []int{512, 4096, ioSize} {
			want := pattern(n, byte(n>>9))
			q.Must(wire.WriteCmd(1, 0, uint32(n/512), 0), want, 0)
			if _, got := q.Must(wire.ReadCmd(1, 0, uint32(n/512), 0), nil, n); !bytes.Equal(got, want) {
				t.Errorf("%d bytes differ", n)
			}
		}
	}
}

func TestTargetN06HPDA32(t *testing.T) {
	refusesICReq(t, 10, func(b []byte) { b[10] = 32 })
	refusesICReq(t, 10, func(b []byte) { b[10] = 255 })
}

func TestTargetN10PLenTooShort(t *testing.T) {
	s := serve(t)
	bystander(t, s)
	for fei, edit := range map[uint32]func(b []byte){
		4: func(b []byte) { copy(b[4:], []byte{0x10, 0, 0, 0}) },
		2: func(b []byte) { b[2] = 71 },
		0: func(b []byte) { b[0] = 8 },
	} {
		h := nvmetest.ConnectAdmin(t, s.addr, nvmetest.HostOptions{SubNQN: testNQN})
		b, _ := h.Capsule(wire.KeepAliveCmd(), nil)
		edit(b)
		h.Raw(b)
		h.ExpectTermReq(wire.FESInvalidHeader, fei, b)
	}
	h := nvmetest.ConnectAdmin(t, s.addr, nvmetest.HostOptions{SubNQN: testNQN})
	b, _ := h.Capsule(wire.KeepAliveCmd(), nil)
	copy(b[4:], []byte{0xff, 0xff, 0xff, 0xff}) // 4 GiB, of which not a byte may be waited for
	h.Raw(b)
	h.ExpectTermReq(wire.FESInvalidHeader, 4, b)
}

// The row asks that our target never does what it describes; the scripted host checks every R2T.
func TestTargetN11R2TWithinData(t *testing.T) {
	s := serve(t)
	_, q := withIO(t, s, nvmetest.HostOptions{})
	q.InCapsule = 0
	for _, n := range []int{512, 4096, ioSize, 1 << 20} {
		q.Must(wire.WriteCmd(1, 0, uint32(n/512), 0), pattern(n, 1), 0)
	}
}

// write begins a write of n bytes by R2T.
func write(q *nvmetest.Host, n int) (cid uint16, r wire.R2T) {
	cid = q.SendTransport(wire.WriteCmd(1, 0, uint32(n/512), 0), n)
	return cid, q.ExpectR2T(cid, n)
}

func TestTargetN20ManySmallPDUs(t *testing.T) {
	s := serve(t)
	for _, digest := range []uint8{0, wire.DigestHeader | wire.DigestData} {
		_, q := withIO(t, s, nvmetest.HostOptions{IC: wire.ICReq{Digest: digest}})
		const n = 256 << 10
		want := pattern(n, 5+digest)
		cid := q.SendTransport(wire.WriteCmd(1, 8, n/512, 0), n)
		for asked := 0; asked < n; {
			r := q.ExpectR2T(cid, n)
			if int(r.Offset) != asked {
				t.Fatalf("R2T %+v, %d bytes asked for before", r, asked)
			}
			q.AnswerR2T(r, want, 512)
			asked += int(r.Length)
		}
		q.ExpectStatus(cid, nvme.StatusSuccess)
		if _, got := q.Must(wire.ReadCmd(1, 8, n/512, 0), nil, n); !bytes.Equal(got, want) {
			t.Error("data differs")
		}
	}
}

// breaksWrite begins a write of 64 KiB, sends what f returns and wants the connection to end. What was on the volume
// must be there still.
func breaksWrite(t *testing.T, fes uint16, fei uint32, f func(q *nvmetest.Host, cid uint16, r wire.R2T) []byte) {
	t.Helper()
	s := serve(t)
	bystander(t, s)
	before := pattern(ioSize, 40)
	_, first := withIO(t, s, nvmetest.HostOptions{})
	first.Must(wire.WriteCmd(1, 0, ioSize/512, 0), before, 0)
	_, q := withIO(t, s, nvmetest.HostOptions{})
	cid, r := write(q, ioSize)
	b := f(q, cid, r)
	q.Raw(b)
	q.ExpectTermReq(fes, fei, b)
	if _, got := first.Must(wire.ReadCmd(1, 0, ioSize/512, 0), nil, ioSize); !bytes.Equal(got, before) {
		t.Error("a write that broke off changed the volume")
	}
}

// h2c returns an H2CData PDU.
func h2c(q *nvmetest.Host, d wire.DataPDU, n int, flags uint8) []byte {
	return q.Frame(wire.TypeH2CData, flags, d.AppendTo(nil), pattern(n, 200))
}

func TestTargetN21OffsetGap(t *testing.T) {
	for _, off := range []uint32{512, ioSize, 1<<32 - 512} {
		breaksWrite(t, wire.FESDataOutOfRange, 0, func(q *nvmetest.Host, cid uint16, r wire.R2T) []byte {
			return h2c(q, wire.DataPDU{CCCID: cid, TTAG: r.TTAG, Offset: off, Length: 512}, 512, 0)
		})
	}
	// More than was asked for.
	breaksWrite(t, wire.FESDataOutOfRange, 0, func(q *nvmetest.Host, cid uint16, r wire.R2T) []byte {
		n := int(r.Length) + 512
		return h2c(q, wire.DataPDU{CCCID: cid, TTAG: r.TTAG, Length: uint32(n)}, n, wire.FlagLast)
	})
	// A DATAL that is not the PDU's.
	breaksWrite(t, wire.FESInvalidHeader, 16, func(q *nvmetest.Host, cid uint16, r wire.R2T) []byte {
		return h2c(q, wire.DataPDU{CCCID: cid, TTAG: r.TTAG, Length: 1024}, 512, 0)
	})
	// LAST before the end.
	breaksWrite(t, wire.FESSequence, 0, func(q *nvmetest.Host, cid uint16, r wire.R2T) []byte {
		return h2c(q, wire.DataPDU{CCCID: cid, TTAG: r.TTAG, Length: 512}, 512, wire.FlagLast)
	})
}

func TestTargetN22UnknownTTAG(t *testing.T) {
	for _, ttag := range []func(uint16) uint16{
		func(uint16) uint16 { return 0 },
		func(r uint16) uint16 { return r + 1 },
		func(r uint16) uint16 { return r ^ 0x8000 },
		func(uint16) uint16 { return 0xffff },
	} {
		breaksWrite(t, wire.FESInvalidHeader, 10, func(q *nvmetest.Host, cid uint16, r wire.R2T) []byte {
			return h2c(q, wire.DataPDU{CCCID: cid, TTAG: ttag(r.TTAG), Length: 512}, 512, 0)
		})
	}
}

func TestTargetN23OtherCommand(t *testing.T) {
	breaksWrite(t, wire.FESSequence, 0, func(q *nvmetest.Host, cid uint16, r wire.R2T) []byte {
		other, _ := write(q, 512)
		return h2c(q, wire.DataPDU{CCCID: other, TTAG: r.TTAG, Length: 512}, 512, 0)
	})
}

func TestTargetN24AfterCompletion(t *testing.T) {
	s := serve(t)
	bystander(t, s)
	_, q := withIO(t, s, nvmetest.HostOptions{})
	want := pattern(4096, 8)
	cid, r := write(q, 4096)
	q.AnswerR2T(r, want, 0)
	q.ExpectStatus(cid, nvme.StatusSuccess)
	if _, got := q.Must(wire.ReadCmd(1, 0, 8, 0), nil, 4096); !bytes.Equal(got, want) {
		t.Error("data differs")
	}
	b := h2c(q, wire.DataPDU{CCCID: cid, TTAG: r.TTAG, Length: 512}, 512, wire.FlagLast)
	q.Raw(b)
	q.ExpectTermReq(wire.FESInvalidHeader, 10, b)
}

func TestTargetN27WriteDataDigest(t *testing.T) {
	s := serve(t)
	_, q := withIO(t, s, nvmetest.HostOptions{IC: wire.ICReq{Digest: wire.DigestData}})
	before := pattern(ioSize, 1)
	q.Must(wire.WriteCmd(1, 0, ioSize/512, 0), before, 0)
	unchanged := func() {
		t.Helper()
		if _, got := q.Must(wire.ReadCmd(1, 0, ioSize/512, 0), nil, ioSize); !bytes.Equal(got, before) {
			t.Error("damaged data was written")
		}
	}
	// In the capsule.
	b, cid := q.Capsule(wire.WriteCmd(1, 0, 8, 0), pattern(4096, 9))
	b[len(b)-100] ^= 4
	q.Raw(b)
	if c := q.ExpectStatus(cid, nvme.StatusTransientTransportError); c.Status.DNR() {
		t.Error("not retryable")
	}
	unchanged()
	// By R2T, in the first of several PDUs, and in the digest itself.
	for _, at := range []int{200, -1} {
		cid, r := write(q, ioSize)
		data := pattern(ioSize, 9)
		const half = ioSize / 2
		b := q.Frame(wire.TypeH2CData, 0, (&wire.DataPDU{CCCID: cid, TTAG: r.TTAG, Length: half}).AppendTo(nil), data[:half])
		b[(at+len(b))%len(b)] ^= 0x80
		q.Raw(b)
		q.H2CData(cid, r.TTAG, data, half, half, true)
		if c := q.ExpectStatus(cid, nvme.StatusTransientTransportError); c.Status.DNR() {
			t.Error("not retryable")
		}
		unchanged()
	}
}

func TestTargetN28NoHeaderDigest(t *testing.T) {
	s := serve(t)
	bystander(t, s)
	_, q := withIO(t, s, nvmetest.HostOptions{IC: wire.ICReq{Digest: wire.DigestHeader}})
	b, _ := q.Capsule(wire.FlushCmd(1), nil)
	b[1] &^= wire.FlagHDGST
	q.Raw(q.Resum(b))
	q.ExpectTermReq(wire.FESInvalidHeader, 1, b)
}

func TestTargetHeaderDigestError(t *testing.T) {
	s := serve(t)
	bystander(t, s)
	for _, at := range []int{8, 40, 71, 72, 75} {
		_, q := withIO(t, s, nvmetest.HostOptions{IC: wire.ICReq{Digest: wire.DigestHeader}})
		b, _ := q.Capsule(wire.FlushCmd(1), nil)
		b[at] ^= 1
		q.Raw(b)
		q.ExpectTermReq(wire.FESHeaderDigest, 0, b)
	}
}

func TestTargetN29OneByteAtATime(t *testing.T) {
	s := serve(t)
	_, q := withIO(t, s, nvmetest.HostOptions{
		IC: wire.ICReq{Digest: wire.DigestHeader | wire.DigestData},
		Wrap: func(c net.Conn) net.Conn {
			return &nvmetest.FaultConn{Conn: c, OneByteReads: true, OneByteWrites: true}
		},
	})
	for _, n := range []int{512, 8192 + 512} {
		want := pattern(n, 3)
		q.Must(wire.WriteCmd(1, 1, uint32(n/512), 0), want, 0)
		if _, got := q.Must(wire.ReadCmd(1, 1, uint32(n/512), 0), nil, n); !bytes.Equal(got, want) {
			t.Error("data differs")
		}
	}
}

func TestTargetN30TermReqLength(t *testing.T) {
	s := serve(t)
	bystander(t, s)
	for _, plen := range []byte{24, 153, 23, 0} {
		_, q := withIO(t, s, nvmetest.HostOptions{})
		b := q.Frame(wire.TypeH2CTermReq, 0, (&wire.TermReq{FES: wire.FESSequence}).AppendTo(nil), make([]byte, 129))
		b[4] = plen
		q.Raw(b)
		if term, _ := q.ExpectEnd(); term != nil && (term.FES != wire.FESInvalidHeader || term.FEI != 4) {
			t.Errorf("PLEN %d: %+v", plen, term)
		}
	}
	// One in order ends the connection without another.
	_, q := withIO(t, s, nvmetest.HostOptions{})
	q.Raw(q.Frame(wire.TypeH2CTermReq, 0, (&wire.TermReq{FES: wire.FESSequence}).AppendTo(nil), make([]byte, 72)))
	if term, _ := q.ExpectEnd(); term != nil {
		t.Errorf("H2CTermReq was answered with %+v", term)
	}
}

func TestTargetN32InCapsuleLimit(t *testing.T) {
	s := serve(t)
	bystander(t, s)
	// 8 KiB in an admin command's capsule are taken, whatever the command makes of them; more are not.
	for n, tooMuch := range map[int]bool{wire.MaxInCapsule: false, wire.MaxInCapsule + 4: true} {
		h := nvmetest.ConnectAdmin(t, s.addr, nvmetest.HostOptions{SubNQN: testNQN})
		c := h.ExpectResp(h.Send(wire.SetFeaturesCmd(0x7f, 0, 0), make([]byte, n)))
		if c.Status.OK() || tooMuch != (c.Status.Code() == nvme.StatusSGLOffsetInvalid) {
			t.Errorf("%d bytes: %v", n, c.Status)
		}
		h.Must(wire.IdentifyCmd(wire.CNSController, 0, 0, 0), nil, wire.IdentifySize)
	}
	// Get Log Page reads: data in its capsule is refused.
	h := nvmetest.ConnectAdmin(t, s.addr, nvmetest.HostOptions{SubNQN: testNQN})
	cid := h.Send(wire.GetLogPage{LID: wire.LogSMART, Length: 512}.Command(), make([]byte, 512))
	h.ExpectStatus(cid, nvme.StatusInvalidField)
	// On an I/O queue the limit is what IOCCSZ says.
	_, q := withIO(t, s, nvmetest.HostOptions{})
	cid = q.Send(wire.WriteCmd(1, 0, targetInCaps/512, 0), make([]byte, targetInCaps))
	q.ExpectStatus(cid, nvme.StatusSuccess)
	cid = q.Send(wire.WriteCmd(1, 0, targetInCaps/512+1, 0), make([]byte, targetInCaps+512))
	q.ExpectStatus(cid, nvme.StatusSGLOffsetInvalid)
	q.Must(wire.FlushCmd(1), nil, 0)
}

// refuses sends a command changed by edit on an I/O queue.
func refuses(t *testing.T, want nvme.Status, edit func(cmd *wire.Command)) {
	t.Helper()
	s := serve(t)
	_, q := withIO(t, s, nvmetest.HostOptions{})
	cmd := wire.ReadCmd(1, 0, 8, 0)
	cmd.SGL.Length = 4096
	edit(&cmd)
	cid := q.Send(cmd, nil)
	if c := q.ExpectStatus(cid, want); !c.Status.DNR() {
		t.Errorf("%v is retryable", c.Status)
	}
	q.Must(wire.FlushCmd(1), nil, 0)
}

func TestTargetN33PSDT(t *testing.T) {
	for _, psdt := range []uint8{0, 0x80, 0xc0} {
		refuses(t, nvme.StatusInvalidField, func(cmd *wire.Command) { cmd.Flags = psdt })
	}
}

func TestTargetN34SGLType(t *testing.T) {
	for _, typ := range []uint8{0x40, 0x4f, 0x00, 0x20, 0x30, 0x5b, 0xff} {
		refuses(t, nvme.StatusSGLTypeInvalid, func(cmd *wire.Command) { cmd.SGL.Type = typ })
	}
}

func TestTargetN35InCapsuleOffset(t *testing.T) {
	s := serve(t)
	_, q := withIO(t, s, nvmetest.HostOptions{})
	b, cid := q.Capsule(wire.WriteCmd(1, 0, 8, 0), make([]byte, 4096))
	b[wire.HeaderSize+24] = 4 // the SGL's address
	q.Raw(b)
	if c := q.ExpectStatus(cid, nvme.StatusSGLOffsetInvalid); !c.Status.DNR() {
		t.Error("retryable")
	}
	q.Must(wire.FlushCmd(1), nil, 0)
}

func TestTargetN36HalfClose(t *testing.T) {
	s := serve(t)
	controllers := func() int { return len(s.Status().Subsystems[0].Controllers) }
	for range 3 {
		admin, q := withIO(t, s, nvmetest.HostOptions{})
		if n := controllers(); n != 1 {
			t.Fatalf("%d controllers", n)
		}
		admin.CloseWrite()
		if term, _ := admin.ExpectEnd(); term != nil {
			t.Errorf("FIN was answered with %+v", term)
		}
		// The I/O queues go with the admin queue.
		if term, _ := q.ExpectEnd(); term != nil {
			t.Errorf("FIN was answered with %+v", term)
		}
		eventually(t, "the controller is gone", func() bool { return controllers() == 0 && s.Status().Connections == 0 })
	}
}

func TestTargetD08FilteredByHost(t *testing.T) {
	s := serve(t)
	for hostNQN, want := range map[nvme.NQN][]nvme.NQN{
		friendNQN:   {privateNQN, testNQN},
		strangerNQN: {testNQN},
	} {
		h := nvmetest.ConnectAdmin(t, s.addr, nvmetest.HostOptions{SubNQN: nvme.DiscoveryNQN, HostNQN: hostNQN})
		_, b := h.Must(wire.GetLogPage{LID: wire.LogDiscovery, Length: 1024}.Command(), nil, 1024)
		var header wire.DiscoveryHeader
		if err := header.Parse(b); err != nil || header.NUMREC == 0 || header.NUMREC > 16 {
			t.Fatalf("%+v, %v", header, err)
		}
		n := int(header.NUMREC) * wire.DiscoveryEntrySize
		_, b = h.Must(wire.GetLogPage{LID: wire.LogDiscovery, Length: uint64(n), Offset: 1024}.Command(), nil, n)
		var got []nvme.NQN
		for ; len(b) > 0; b = b[wire.DiscoveryEntrySize:] {
			var e wire.DiscoveryEntry
			if err := e.Parse(b[:wire.DiscoveryEntrySize]); err != nil {
				t.Fatal(err)
			}
			if e.SUBTYPE == wire.SubtypeNVM {
				got = append(got, e.SUBNQN)
			}
			if net.JoinHostPort(e.TRADDR, e.TRSVCID) != s.addr || e.TRTYPE != wire.TRTypeTCP || e.ADRFAM != wire.AdrFamIPv4 {
				t.Errorf("%+v", e)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s sees %q, want %q", hostNQN, got, want)
		}
	}
}

// refusesConnect connects queue 0 with what edit makes of a good Connect, and wants status, and dword 0.
func refusesConnect(t *testing.T, want nvme.Status, dw0 uint32, edit func(p *wire.Connect, d *wire.ConnectData)) {
	t.Helper()
	s := serve(t)
	h := nvmetest.Open(t, s.addr, nvmetest.HostOptions{SubNQN: testNQN})
	p, d := h.ConnectCmd(0), h.ConnectData(wire.CNTLIDDynamic)
	edit(&p, &d)
	c := h.Connect(p, d)
	if c.Status.Code() != want || c.DW0 != dw0 {
		t.Errorf("%v, dword 0 %#x; want %v, %#x", c.Status, c.DW0, want, dw0)
	}
	eventually(t, "no controller is left", func() bool { return len(s.Status().Subsystems[0].Controllers) == 0 })
}

func TestTargetF01RecFmt(t *testing.T) {
	refusesConnect(t, nvme.StatusConnectIncompatibleFormat, 0, func(p *wire.Connect, _ *wire.ConnectData) { p.RecFmt = 1 })
}

func TestTargetF02UnknownSubsystem(t *testing.T) {
	invalid := wire.ConnectInvalid(wire.ConnectDataSubNQN, true)
	for _, nqn := range []nvme.NQN{testNQN + "x", testNQN[:len(testNQN)-1], "", "NQN.2014-08.com.example:conformance"} {
		refusesConnect(t, nvme.StatusConnectInvalidParameters, invalid, func(_ *wire.Connect, d *wire.ConnectData) { d.SubNQN = nqn })
	}
}

func TestTargetF03HostNotAllowed(t *testing.T) {
	s := serve(t)
	for _, hostNQN := range []nvme.NQN{strangerNQN, friendNQN + "x", friendNQN[:len(friendNQN)-1]} {
		h := nvmetest.Open(t, s.addr, nvmetest.HostOptions{SubNQN: privateNQN, HostNQN: hostNQN})
		if c := h.Connect(h.ConnectCmd(0), h.ConnectData(wire.CNTLIDDynamic)); c.Status.Code() != nvme.StatusConnectInvalidHost {
			t.Errorf("%s: %v", hostNQN, c.Status)
		}
	}
	nvmetest.ConnectAdmin(t, s.addr, nvmetest.HostOptions{SubNQN: privateNQN, HostNQN: friendNQN})
}

func TestTargetF04SQSize(t *testing.T) {
	invalid := wire.ConnectInvalid(wire.ConnectCmdSQSize, false)
	refusesConnect(t, nvme.StatusConnectInvalidParameters, invalid, func(p *wire.Connect, _ *wire.ConnectData) { p.SQSize = 0 })
	refusesConnect(t, nvme.StatusConnectInvalidParameters, invalid, func(p *wire.Connect, _ *wire.ConnectData) { p.SQSize = 0xffff })
}

// connectIO sends Connect for an I/O queue of admin's controller.
func connectIO(t *testing.T, s *target, admin *nvmetest.Host, qid uint16, o nvmetest.HostOptions) wire.Completion {
	t.Helper()
	o.SubNQN = testNQN
	h := nvmetest.Open(t, s.addr, o)
	return h.Connect(h.ConnectCmd(qid), h.ConnectData(admin.CNTLID))
}

func TestTargetF05QID(t *testing.T) {
	s := serve(t)
	admin, _ := withIO(t, s, nvmetest.HostOptions{})
	for _, qid := range []uint16{9, 65535} {
		c := connectIO(t, s, admin, qid, nvmetest.HostOptions{})
		if c.Status.Code() != nvme.StatusConnectInvalidParameters || c.DW0 != wire.ConnectInvalid(wire.ConnectCmdQID, false) {
			t.Errorf("queue %d: %v, %#x", qid, c.Status, c.DW0)
		}
	}
}

func TestTargetF06DuplicateQID(t *testing.T) {
	s := serve(t)
	admin, q := withIO(t, s, nvmetest.HostOptions{})
	if c := connectIO(t, s, admin, 1, nvmetest.HostOptions{}); c.Status.Code() != nvme.StatusCommandSequenceError && c.Status.Code() != nvme.StatusInvalidQueueID {
		t.Errorf("%v", c.Status)
	}
	q.Must(wire.FlushCmd(1), nil, 0)
	// Another host's controller is not to be joined.
	c := connectIO(t, s, admin, 2, nvmetest.HostOptions{HostNQN: strangerNQN})
	if c.Status.Code() != nvme.StatusConnectInvalidParameters || c.DW0 != wire.ConnectInvalid(wire.ConnectDataCNTLID, true) {
		t.Errorf("%v, %#x", c.Status, c.DW0)
	}
}

func TestTargetF07Unterminated(t *testing.T) {
	s := serve(t)
	for _, at := range []int{wire.ConnectDataHostNQN, wire.ConnectDataSubNQN} {
		h := nvmetest.Open(t, s.addr, nvmetest.HostOptions{SubNQN: testNQN})
		d := h.ConnectData(wire.CNTLIDDynamic)
		b := d.AppendTo(nil)
		copy(b[at:at+256], bytes.Repeat([]byte("n"), 256))
		cid := h.Send(h.ConnectCmd(0).Command(), b)
		if c := h.ExpectStatus(cid, nvme.StatusConnectInvalidParameters); c.DW0 != wire.ConnectInvalid(uint16(at), true) {
			t.Errorf("dword 0 %#x", c.DW0)
		}
	}
	for n := range []int{0, 1, 512, 1023} {
		h := nvmetest.Open(t, s.addr, nvmetest.HostOptions{SubNQN: testNQN})
		var cid uint16
		if n == 0 {
			cid = h.SendTransport(h.ConnectCmd(0).Command(), 0)
		} else {
			cid = h.Send(h.ConnectCmd(0).Command(), make([]byte, n))
		}
		if c := h.ExpectResp(cid); c.Status.OK() {
			t.Errorf("%d bytes of connect data: %v", n, c.Status)
		}
	}
}

func TestTargetF08IdentifyCNS(t *testing.T) {
	s := serve(t)
	h := nvmetest.ConnectAdmin(t, s.addr, nvmetest.HostOptions{SubNQN: testNQN})
	cid := h.SendTransport(wire.IdentifyCmd(0x7f, 0, 0, 0), wire.IdentifySize)
	if c := h.ExpectStatus(cid, nvme.StatusInvalidField); !c.Status.DNR() {
		t.Error("retryable")
	}
}

func TestTargetF09IOConnectBeforeEnable(t *testing.T) {
	s := serve(t)
	admin := nvmetest.Open(t, s.addr, nvmetest.HostOptions{SubNQN: testNQN})
	admin.MustConnect(0, wire.CNTLIDDynamic)
	if c := connectIO(t, s, admin, 1, nvmetest.HostOptions{}); c.Status.Code() != nvme.StatusConnectInvalidParameters {
		t.Errorf("%v", c.Status)
	}
	admin.Enable()
	if c := connectIO(t, s, admin, 1, nvmetest.HostOptions{}); !c.Status.OK() {
		t.Errorf("%v", c.Status)
	}
}

func TestTargetF12KeepAliveGranularity(t *testing.T) {
	s := serve(t)
	h := nvmetest.ConnectAdmin(t, s.addr, nvmetest.HostOptions{SubNQN: testNQN, KATO: 50})
	_, b := h.Must(wire.IdentifyCmd(wire.CNSController, 0, 0, 0), nil, wire.IdentifySize)
	var id wire.IdentifyController
	if err := id.Parse(b); err != nil || id.KAS == 0 {
		t.Fatalf("KAS %d, %v", id.KAS, err)
	}
	// A timeout below the granularity is rounded up to it.
	v, _ := h.Must(wire.GetFeaturesCmd(wire.FeatureKeepAlive, wire.SelectCurrent, 0, 0), nil, 0)
	if uint64(id.KAS)*100 > v || v%(uint64(id.KAS)*100) != 0 {
		t.Errorf("KATO %d ms with a granularity of %d ms", v, int(id.KAS)*100)
	}
}

func TestTargetF15FewerQueues(t *testing.T) {
	s := serve(t)
	h := nvmetest.ConnectAdmin(t, s.addr, nvmetest.HostOptions{SubNQN: testNQN})
	for _, asked := range []int{1, 8, 1000} {
		v, _ := h.Must(wire.SetFeaturesCmd(wire.FeatureNumberOfQueues, 0, wire.QueueCount(asked)), nil, 0)
		if got := wire.Queues(uint32(v)); got < min(asked, 8) || got > 8 {
			t.Errorf("%d asked for, %d given", asked, got)
		}
	}
	cid := h.Send(wire.SetFeaturesCmd(wire.FeatureNumberOfQueues, 0, 0xffff), nil)
	h.ExpectStatus(cid, nvme.StatusInvalidField)
}

// Linux sends room for as many ranges as a command may have, whatever it uses of it.
func TestTargetDSMRoom(t *testing.T) {
	s := serve(t)
	_, q := withIO(t, s, nvmetest.HostOptions{})
	want := pattern(8192, 5)
	data := (&wire.DSMRange{Blocks: 8, SLBA: 8}).AppendTo(nil)
	data = append(data, (&wire.DSMRange{Blocks: 8}).AppendTo(nil)...) // beyond the one range that counts
	data = append(data, make([]byte, 4096-len(data))...)
	for _, inCapsule := range []int{targetInCaps, 0} {
		q.InCapsule = targetInCaps
		q.Must(wire.WriteCmd(1, 0, 16, 0), want, 0)
		q.InCapsule = inCapsule
		q.Must(wire.DSMCmd(1, 1, wire.DSMDeallocate), data, 0)
		if _, got := q.Must(wire.ReadCmd(1, 0, 16, 0), nil, 8192); !bytes.Equal(got[:4096], want[:4096]) || !bytes.Equal(got[4096:], make([]byte, 4096)) {
			t.Error("the range is not deallocated, or more than it is")
		}
	}
}

// A host that shuts down may have forgotten its Asynchronous Event Requests, and use their CIDs again.
func TestTargetCIDOfAER(t *testing.T) {
	s := serve(t)
	h := nvmetest.ConnectAdmin(t, s.addr, nvmetest.HostOptions{SubNQN: testNQN})
	const cid = 0x4321
	send := func(cmd wire.Command) {
		cmd.CID = cid
		h.Raw(h.Frame(wire.TypeCapsuleCmd, 0, cmd.AppendTo(nil), nil))
	}
	send(wire.AERCmd())
	for range 3 {
		send(wire.PropertyGetCmd(wire.PropertyVS, 4))
		if c := h.ExpectStatus(cid, nvme.StatusSuccess); c.DW0 != 2<<16 {
			t.Errorf("VS %#x", c.DW0)
		}
	}
}

// A command without data may leave its SGL blank.
func TestTargetBlankSGL(t *testing.T) {
	s := serve(t)
	h := nvmetest.Open(t, s.addr, nvmetest.HostOptions{SubNQN: testNQN})
	h.MustConnect(0, wire.CNTLIDDynamic)
	cmd := wire.PropertySetCmd(wire.PropertyCC, 4, uint64(wire.CCIOEntries|wire.CCEnable))
	cmd.SGL = wire.SGL{}
	h.ExpectStatus(h.Send(cmd, nil), nvme.StatusSuccess)
	if !wire.CSTS(h.Property(wire.PropertyCSTS, 4)).Ready() {
		t.Error("not enabled")
	}
}
