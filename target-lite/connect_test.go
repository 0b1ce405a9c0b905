package targetlite_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/nvme/nvmetest"
	"hawser.dev/hawser/nvme/wire"
	targetlite "hawser.dev/hawser/target-lite"
	"hawser.dev/hawser/target-lite/backend"
)

func null(t testing.TB, name string) backend.Backend {
	return open(t, "null:"+name, backend.Options{Size: 1 << 30})
}

// Short I/O queues leave the admin queue as long as hosts make it.
func TestShortestQueues(t *testing.T) {
	cfg := one(targetlite.Namespace{Backend: null(t, "short")})
	cfg.QueueDepth = 2
	c := connect(t, serve(t, cfg).addr, subNQN, host.Options{})
	if _, depth := c.Queues(); depth != 2 {
		t.Errorf("I/O queues of %d entries, want 2", depth)
	}
}

func TestConnectErrors(t *testing.T) {
	cfg := one(targetlite.Namespace{Backend: null(t, "n")})
	cfg.Subsystems[0].AllowAnyHost, cfg.Subsystems[0].Hosts = false, []nvme.NQN{hostNQN}
	cfg.MaxQueues, cfg.QueueDepth = 4, 64
	srv := serve(t, cfg)
	o := nvmetest.HostOptions{SubNQN: subNQN, HostNQN: hostNQN}
	addr := srv.addr.String()
	admin := nvmetest.ConnectAdmin(t, addr, o)
	admin.ConnectIO(1)
	disabled := nvmetest.Open(t, addr, o)
	disabled.MustConnect(0, wire.CNTLIDDynamic)
	disc := nvmetest.ConnectAdmin(t, addr, nvmetest.HostOptions{SubNQN: nvme.DiscoveryNQN, HostNQN: hostNQN})

	const command, data = 0, 1 << 16
	for _, c := range []struct {
		name   string
		change func(*wire.Connect, *wire.ConnectData)
		status nvme.Status
		result uint32
	}{
		{"record format", func(p *wire.Connect, d *wire.ConnectData) { p.RecFmt = 1 }, nvme.StatusConnectIncompatibleFormat, 0},
		{"unknown subsystem", func(p *wire.Connect, d *wire.ConnectData) { d.SubNQN += "x" }, nvme.StatusConnectInvalidParameters, data | 256},
		{"prefix of a subsystem", func(p *wire.Connect, d *wire.ConnectData) { d.SubNQN = d.SubNQN[:len(d.SubNQN)-1] }, nvme.StatusConnectInvalidParameters, data | 256},
		{"other host", func(p *wire.Connect, d *wire.ConnectData) { d.HostNQN += "x" }, nvme.StatusConnectInvalidHost, data | 512},
		{"no host", func(p *wire.Connect, d *wire.ConnectData) { d.HostNQN = "" }, nvme.StatusConnectInvalidParameters, data | 512},
		{"queue of no entries", func(p *wire.Connect, d *wire.ConnectData) { p.SQSize = 0 }, nvme.StatusConnectInvalidParameters, command | 44},
		{"queue too long", func(p *wire.Connect, d *wire.ConnectData) { p.SQSize = 64 }, nvme.StatusConnectInvalidParameters, command | 44},
		{"static controller", func(p *wire.Connect, d *wire.ConnectData) { d.CNTLID = 1 }, nvme.StatusConnectInvalidParameters, data | 16},
		{"unknown controller", func(p *wire.Connect, d *wire.ConnectData) { p.QID, d.CNTLID = 2, 999 }, nvme.StatusConnectInvalidParameters, data | 16},
		{"another host ID's controller", func(p *wire.Connect, d *wire.ConnectData) {
			p.QID, d.CNTLID, d.HostID = 2, admin.CNTLID, nvme.UUID{9}
		}, nvme.StatusConnectInvalidParameters, data | 16},
		{"queue number too high", func(p *wire.Connect, d *wire.ConnectData) { p.QID, d.CNTLID = 5, admin.CNTLID }, nvme.StatusConnectInvalidParameters, command | 42},
		{"highest queue number", func(p *wire.Connect, d *wire.ConnectData) { p.QID, d.CNTLID = 65535, admin.CNTLID }, nvme.StatusConnectInvalidParameters, command | 42},
		{"queue number in use", func(p *wire.Connect, d *wire.ConnectData) { p.QID, d.CNTLID = 1, admin.CNTLID }, nvme.StatusCommandSequenceError, 0},
		{"controller not enabled", func(p *wire.Connect, d *wire.ConnectData) { p.QID, d.CNTLID = 1, disabled.CNTLID }, nvme.StatusConnectInvalidParameters, command | 42},
		{"I/O queue of discovery", func(p *wire.Connect, d *wire.ConnectData) {
			p.QID, d.CNTLID, d.SubNQN = 1, disc.CNTLID, nvme.DiscoveryNQN
		}, nvme.StatusConnectInvalidParameters, command | 42},
	} {
		h := nvmetest.Open(t, addr, o)
		p, d := h.ConnectCmd(0), h.ConnectData(wire.CNTLIDDynamic)
		c.change(&p, &d)
		got := h.Connect(p, d)
		if got.Status != c.status|nvme.StatusDNR || got.DW0 != c.result {
			t.Errorf("%s: %v, result %#x; want %v, %#x", c.name, got.Status, got.DW0, c.status|nvme.StatusDNR, c.result)
		}
		h.MustConnect(0, wire.CNTLIDDynamic) // the connection is still good
	}

	t.Run("unterminated names", func(t *testing.T) {
		for off, want := range map[int]uint32{256: data | 256, 512: data | 512} {
			h := nvmetest.Open(t, addr, o)
			d := h.ConnectData(wire.CNTLIDDynamic)
			b := d.AppendTo(nil)
			copy(b[off:off+256], bytes.Repeat([]byte("n"), 256))
			got, _ := h.Do(h.ConnectCmd(0).Command(), b, 0)
			if got.Status.Code() != nvme.StatusConnectInvalidParameters || got.DW0 != want {
				t.Errorf("offset %d: %v, %#x", off, got.Status, got.DW0)
			}
		}
	})
	t.Run("data length", func(t *testing.T) {
		h := nvmetest.Open(t, addr, o)
		d := h.ConnectData(wire.CNTLIDDynamic)
		got, _ := h.Do(h.ConnectCmd(0).Command(), d.AppendTo(nil)[:1020], 0)
		if got.Status.Code() != nvme.StatusDataSGLLengthInvalid {
			t.Error(got.Status)
		}
	})
	t.Run("by R2T", func(t *testing.T) {
		h := nvmetest.Open(t, addr, o)
		h.InCapsule = 0
		h.MustConnect(0, wire.CNTLIDDynamic)
	})
	t.Run("other commands first", func(t *testing.T) {
		h := nvmetest.Open(t, addr, o)
		for _, cmd := range []wire.Command{wire.KeepAliveCmd(), wire.PropertyGetCmd(wire.PropertyCAP, 8), wire.FlushCmd(1)} {
			if got, _ := h.Do(cmd, nil, 0); got.Status.Code() != nvme.StatusCommandSequenceError {
				t.Errorf("%s: %v", wire.CommandName(&cmd, true), got.Status)
			}
		}
	})
	t.Run("connected already", func(t *testing.T) {
		got := admin.Connect(admin.ConnectCmd(0), admin.ConnectData(wire.CNTLIDDynamic))
		if got.Status.Code() != nvme.StatusCommandSequenceError {
			t.Error(got.Status)
		}
	})
	t.Run("admin command before enable", func(t *testing.T) {
		if got, _ := disabled.Do(wire.IdentifyCmd(wire.CNSController, 0, 0, 0), nil, 4096); got.Status.Code() != nvme.StatusCommandSequenceError {
			t.Error(got.Status)
		}
	})
}

func TestControllerIDs(t *testing.T) {
	cfg := one()
	cfg.MinCNTLID, cfg.MaxCNTLID = 10, 12
	srv := serve(t, cfg)
	o := nvmetest.HostOptions{SubNQN: subNQN}
	var hosts []*nvmetest.Host
	for want := uint16(10); want <= 12; want++ {
		h := nvmetest.ConnectAdmin(t, srv.addr.String(), o)
		if h.CNTLID != want {
			t.Errorf("controller %d, want %d", h.CNTLID, want)
		}
		hosts = append(hosts, h)
	}
	h := nvmetest.Open(t, srv.addr.String(), o)
	if got := h.Connect(h.ConnectCmd(0), h.ConnectData(wire.CNTLIDDynamic)); got.Status != nvme.StatusConnectControllerBusy {
		t.Errorf("no controller left: %v", got.Status)
	}
	hosts[1].Close()
	eventually(t, func() bool { return len(srv.Status().Subsystems[0].Controllers) == 2 })
	h.MustConnect(0, wire.CNTLIDDynamic)
	if h.CNTLID != 11 {
		t.Errorf("controller %d, want the free one, 11", h.CNTLID)
	}
}

// eventually waits for what another goroutine brings about.
func eventually(t testing.TB, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

func TestProperties(t *testing.T) {
	srv := serve(t, one())
	h := nvmetest.Open(t, srv.addr.String(), nvmetest.HostOptions{SubNQN: subNQN})
	h.MustConnect(0, wire.CNTLIDDynamic)
	if c := wire.CAP(h.Property(wire.PropertyCAP, 8)); c.Entries() != 128 || c&wire.CAPCQR == 0 || c&wire.CAPCSSNVM == 0 || c.MPSMin() != 4096 || c.Timeout() == 0 {
		t.Errorf("CAP %#x", uint64(c))
	}
	if v := h.Property(wire.PropertyVS, 4); v != 0x20000 {
		t.Errorf("VS %#x", v)
	}
	for _, cmd := range []wire.Command{
		wire.PropertyGetCmd(wire.PropertyCAP, 4), wire.PropertyGetCmd(wire.PropertyCC, 8), wire.PropertyGetCmd(wire.PropertyNSSR, 4), wire.PropertyGetCmd(0x1000, 4),
		wire.PropertySetCmd(wire.PropertyCAP, 8, 1), wire.PropertySetCmd(wire.PropertyCC, 8, 1), wire.PropertySetCmd(wire.PropertyCSTS, 4, 1),
	} {
		if got, _ := h.Do(cmd, nil, 0); got.Status.Code() != nvme.StatusInvalidField || !got.Status.DNR() {
			t.Errorf("%s of %#x: %v", wire.CommandName(&cmd, true), cmd.CDW11, got.Status)
		}
	}
	set := func(cc wire.CC) wire.CSTS {
		h.Must(wire.PropertySetCmd(wire.PropertyCC, 4, uint64(cc)), nil, 0)
		if got := wire.CC(h.Property(wire.PropertyCC, 4)); got != cc {
			t.Errorf("CC %#x, set to %#x", got, cc)
		}
		return wire.CSTS(h.Property(wire.PropertyCSTS, 4))
	}
	if s := set(wire.CCIOEntries); s != 0 {
		t.Errorf("CSTS %#x before enable", s)
	}
	for _, cc := range []wire.CC{wire.CCEnable, wire.CCEnable | wire.CCIOEntries | 1<<7, wire.CCEnable | wire.CCIOEntries | 1<<11, wire.CCEnable | wire.CCIOEntries | 1<<4} {
		if s := set(cc); !s.Fatal() || s.Ready() {
			t.Errorf("CSTS %#x after enabling with CC %#x", s, cc)
		}
		if s := set(0); s != 0 {
			t.Errorf("CSTS %#x after reset", s)
		}
	}
	if s := set(wire.CCIOEntries | wire.CCEnable); s != wire.CSTSReady {
		t.Errorf("CSTS %#x after enable", s)
	}
	q := h.ConnectIO(1)
	q.Send(wire.FlushCmd(1), nil)
	set((wire.CCIOEntries | wire.CCEnable).WithSHN(wire.CCSHNNormal))
	eventually(t, func() bool { return wire.CSTS(h.Property(wire.PropertyCSTS, 4)) == wire.CSTSSHSTComplete })
	q.ExpectEnd()
	if got, _ := h.Do(wire.IdentifyCmd(wire.CNSController, 0, 0, 0), nil, 4096); got.Status.Code() != nvme.StatusCommandSequenceError {
		t.Errorf("Identify after shutdown: %v", got.Status)
	}
	set(0)
	if s := set(wire.CCIOEntries | wire.CCEnable); s != wire.CSTSReady {
		t.Errorf("CSTS %#x after enabling again", s)
	}
	h.ConnectIO(1)
}

func TestAdminCommands(t *testing.T) {
	ns := open(t, "mem:admin", backend.Options{Size: 1 << 20, BlockSize: 4096})
	file := open(t, t.TempDir()+"/f", backend.Options{Size: 1 << 20})
	srv := serve(t, one(targetlite.Namespace{NSID: 7, Backend: ns}, targetlite.Namespace{NSID: 5, Backend: file}))
	h := nvmetest.ConnectAdmin(t, srv.addr.String(), nvmetest.HostOptions{SubNQN: subNQN})
	expect := func(name string, cmd wire.Command, n int, want nvme.Status) {
		t.Helper()
		got, _ := h.Do(cmd, nil, n)
		if got.Status.Code() != want || want != 0 && (!got.Status.DNR() || !got.Status.More()) {
			t.Errorf("%s: %v, want %v", name, got.Status, want)
		}
	}

	_, b := h.Must(wire.IdentifyCmd(wire.CNSController, 0, 0, 0), nil, 4096)
	var id wire.IdentifyController
	if err := id.Parse(b); err != nil {
		t.Fatal(err)
	}
	if id.CNTLID != h.CNTLID || id.SUBNQN != subNQN || id.MaxTransfer(4096) != 1<<20 || id.InCapsule() != 16<<10 || id.IORCSZ != 1 || id.ICDOFF != 0 ||
		id.KAS != 10 || id.VWC != 7 || id.NN != 1024 || id.MAXCMD != 128 || id.CNTRLTYPE != 1 || len(id.SN) != 20 || id.AERL != 3 || id.SGLS&3 == 0 {
		t.Errorf("Identify Controller %+v", id)
	}
	var idns wire.IdentifyNamespace
	_, b = h.Must(wire.IdentifyCmd(wire.CNSNamespace, 7, 0, 0), nil, 4096)
	if err := idns.Parse(b); err != nil || idns.BlockSize() != 4096 || idns.NSZE != 256 || idns.NMIC != 1 || idns.NGUID != targetlite.NamespaceNGUID(ns.Info().Identity) {
		t.Errorf("Identify Namespace %+v, %v", idns, err)
	}
	if _, b = h.Must(wire.IdentifyCmd(wire.CNSNamespace, 6, 0, 0), nil, 4096); !bytes.Equal(b, make([]byte, 4096)) {
		t.Error("an inactive namespace is not all zeroes")
	}
	var list wire.NamespaceList
	_, b = h.Must(wire.IdentifyCmd(wire.CNSActiveNamespaces, 0, 0, 0), nil, 4096)
	if err := list.Parse(b); err != nil || len(list) != 2 || list[0] != 5 || list[1] != 7 {
		t.Errorf("active namespaces %v, %v", list, err)
	}
	_, b = h.Must(wire.IdentifyCmd(wire.CNSActiveNamespaces, 5, 0, 0), nil, 4096)
	if list.Parse(b); len(list) != 1 || list[0] != 7 {
		t.Errorf("active namespaces after 5: %v", list)
	}
	var desc wire.NamespaceDescriptors
	_, b = h.Must(wire.IdentifyCmd(wire.CNSNamespaceDescriptors, 7, 0, 0), nil, 4096)
	if err := desc.Parse(b); err != nil || desc.UUID != targetlite.NamespaceUUID(ns.Info().Identity) || desc.NGUID != idns.NGUID {
		t.Errorf("descriptors %+v, %v", desc, err)
	}
	var ctrls wire.ControllerList
	_, b = h.Must(wire.IdentifyCmd(wire.CNSControllers, 0, 0, 0), nil, 4096)
	if ctrls.Parse(b); len(ctrls) != 1 || ctrls[0] != h.CNTLID {
		t.Errorf("controllers %v", ctrls)
	}
	for _, cns := range []uint8{wire.CNSCommandSetController, wire.CNSIndependentNamespace, wire.CNSCommandSetNamespace, wire.CNSCommandSetActive} {
		h.Must(wire.IdentifyCmd(cns, 5, 0, 0), nil, 4096)
	}
	expect("CNS 7Fh", wire.IdentifyCmd(0x7f, 0, 0, 0), 4096, nvme.StatusInvalidField)
	expect("CSI 2", wire.IdentifyCmd(wire.CNSCommandSetController, 0, 2, 0), 4096, nvme.StatusInvalidField)
	expect("namespace FFFFFFFFh", wire.IdentifyCmd(wire.CNSNamespace, wire.NSIDAll, 0, 0), 4096, nvme.StatusInvalidNamespace)
	expect("namespace 0", wire.IdentifyCmd(wire.CNSNamespace, 0, 0, 0), 4096, nvme.StatusInvalidNamespace)
	expect("list after FFFFFFFEh", wire.IdentifyCmd(wire.CNSActiveNamespaces, wire.NSIDAll-1, 0, 0), 4096, nvme.StatusInvalidNamespace)
	expect("descriptors of none", wire.IdentifyCmd(wire.CNSNamespaceDescriptors, 6, 0, 0), 4096, nvme.StatusInvalidNamespace)
	expect("short Identify", wire.IdentifyCmd(wire.CNSController, 0, 0, 0), 4092, nvme.StatusDataSGLLengthInvalid)
	expect("unknown opcode", wire.Command{Opcode: 0x84, Flags: wire.CmdPSDT}, 0, nvme.StatusInvalidOpcode)
	fused := wire.KeepAliveCmd()
	fused.Flags |= 1
	expect("fused admin command", fused, 0, nvme.StatusInvalidField)

	// Features.
	get := func(fid uint8, sel uint8, cdw11 uint32, n int) (uint64, []byte) {
		t.Helper()
		return h.Must(wire.GetFeaturesCmd(fid, sel, 0, cdw11), nil, n)
	}
	if v, _ := get(wire.FeatureNumberOfQueues, 0, 0, 0); wire.Queues(uint32(v)) != 64 {
		t.Errorf("queues %#x", v)
	}
	if v, _ := h.Must(wire.SetFeaturesCmd(wire.FeatureNumberOfQueues, 0, wire.QueueCount(2)), nil, 0); wire.Queues(uint32(v)) != 64 {
		t.Errorf("queues %#x", v)
	}
	expect("FFFFh queues", wire.SetFeaturesCmd(wire.FeatureNumberOfQueues, 0, 0xffff), 0, nvme.StatusInvalidField)
	if v, _ := get(wire.FeatureAsyncEvents, 0, 0, 0); uint32(v) != wire.NoticeNamespace {
		t.Errorf("AEC %#x", v)
	}
	h.Must(wire.SetFeaturesCmd(wire.FeatureAsyncEvents, 0, 0), nil, 0)
	expect("reserved AEC bits", wire.SetFeaturesCmd(wire.FeatureAsyncEvents, 0, 1<<20), 0, nvme.StatusInvalidField)
	h.Must(wire.SetFeaturesCmd(wire.FeatureKeepAlive, 0, 12345), nil, 0)
	if v, _ := get(wire.FeatureKeepAlive, 0, 0, 0); v != 13000 {
		t.Errorf("KATO %d, want it rounded up to 13000", v)
	}
	if _, b := get(wire.FeatureHostIdentifier, 0, 1, 16); b[15] != 1 {
		t.Errorf("host ID % x", b)
	}
	expect("64-bit host ID", wire.GetFeaturesCmd(wire.FeatureHostIdentifier, 0, 0, 0), 8, nvme.StatusInvalidField)
	if v, _ := get(wire.FeatureVolatileWriteCache, 0, 0, 0); v != 1 {
		t.Errorf("WCE %d", v)
	}
	h.Must(wire.SetFeaturesCmd(wire.FeatureVolatileWriteCache, 0, 0), nil, 0)
	if v, _ := get(wire.FeatureVolatileWriteCache, 0, 0, 0); v != 0 {
		t.Errorf("WCE %d after it was cleared", v)
	}
	h.Must(wire.SetFeaturesCmd(wire.FeatureArbitration, 0, 3), nil, 0)
	if v, _ := get(wire.FeatureArbitration, 0, 0, 0); v != 3 {
		t.Errorf("arbitration %d", v)
	}
	if v, _ := get(wire.FeatureArbitration, wire.SelectDefault, 0, 0); v != 7 {
		t.Errorf("default arbitration %d", v)
	}
	if v, _ := get(wire.FeatureErrorRecovery, wire.SelectSupported, 0, 0); uint32(v) != wire.FeatureChangeable|wire.FeatureNamespaced {
		// asked for namespace 0, which error recovery does not have
		t.Errorf("capabilities %#x", v)
	}
	save := wire.SetFeaturesCmd(wire.FeatureArbitration, 0, 3)
	save.CDW10 |= 1 << 31
	expect("save", save, 0, nvme.StatusFeatureNotSaveable)
	expect("feature of a namespace", wire.SetFeaturesCmd(wire.FeatureArbitration, 5, 3), 0, nvme.StatusFeatureNotNamespace)
	expect("unknown feature", wire.GetFeaturesCmd(0x77, 0, 0, 0), 0, nvme.StatusInvalidField)

	// Log pages.
	for lid, size := range map[uint8]int{wire.LogSupportedPages: 1024, wire.LogError: 128 * 64, wire.LogSMART: 512, wire.LogFirmwareSlot: 512,
		wire.LogChangedNamespaces: 4096, wire.LogCommandEffects: 4096, wire.LogFeatureEffects: 1024} {
		_, all := h.Must(wire.GetLogPage{LID: lid, Length: uint64(size)}.Command(), nil, size)
		if lid == wire.LogError {
			continue
		}
		_, part := h.Must(wire.GetLogPage{LID: lid, Length: 16, Offset: uint64(size) - 16}.Command(), nil, 16)
		if !bytes.Equal(part, all[size-16:]) {
			t.Errorf("log %#x by offset differs", lid)
		}
		_, beyond := h.Must(wire.GetLogPage{LID: lid, Length: 16, Offset: uint64(size)}.Command(), nil, 16)
		if !bytes.Equal(beyond, make([]byte, 16)) {
			t.Errorf("log %#x goes on after its end", lid)
		}
		expect("offset beyond", wire.GetLogPage{LID: lid, Length: 16, Offset: uint64(size) + 4}.Command(), 16, nvme.StatusInvalidField)
		expect("odd offset", wire.GetLogPage{LID: lid, Length: 16, Offset: 2}.Command(), 16, nvme.StatusInvalidField)
		expect("length of another transfer", wire.GetLogPage{LID: lid, Length: 16}.Command(), 32, nvme.StatusDataSGLLengthInvalid)
	}
	for _, lid := range []uint8{wire.LogDiscovery, wire.LogANA, 0xc0} {
		expect("log not there", wire.GetLogPage{LID: lid, Length: 16}.Command(), 16, nvme.StatusInvalidLogPage)
	}
	expect("SMART of no namespace", wire.GetLogPage{LID: wire.LogSMART, NSID: 6, Length: 512}.Command(), 512, nvme.StatusInvalidNamespace)
	_, b = h.Must(wire.GetLogPage{LID: wire.LogError, Length: 128}.Command(), nil, 128)
	var e0, e1 wire.ErrorLogEntry
	e0.Parse(b[:64])
	e1.Parse(b[64:])
	if e0.ErrorCount != e1.ErrorCount+1 || e0.Status.Code() != nvme.StatusInvalidNamespace || e0.Opcode != wire.OpGetLogPage || e0.ParameterLocation != 4 || e0.NSID != 6 {
		t.Errorf("newest entry of the error log %+v, then %+v", e0, e1)
	}
}

func TestAsyncEventRequests(t *testing.T) {
	srv := serve(t, one())
	h := nvmetest.ConnectAdmin(t, srv.addr.String(), nvmetest.HostOptions{SubNQN: subNQN})
	var cids []uint16
	for range 4 {
		cids = append(cids, h.Send(wire.AERCmd(), nil))
	}
	h.ExpectStatus(h.Send(wire.AERCmd(), nil), nvme.StatusAERLimitExceeded)
	abort := wire.AbortCmd(0, cids[2])
	a := h.Send(abort, nil)
	h.ExpectStatus(cids[2], nvme.StatusAbortRequested)
	if c := h.ExpectStatus(a, nvme.StatusSuccess); c.DW0 != 0 {
		t.Errorf("Abort says %#x", c.DW0)
	}
	if c := h.ExpectStatus(h.Send(wire.AbortCmd(0, 0x7777), nil), nvme.StatusSuccess); c.DW0&1 == 0 {
		t.Error("Abort of an unknown command says that it was done")
	}
	h.Send(wire.AERCmd(), nil) // there is room again
	h.ExpectStatus(h.Send(wire.KeepAliveCmd(), nil), nvme.StatusKeepAliveInvalid)
}

func TestIOErrors(t *testing.T) {
	srv := serve(t, one(targetlite.Namespace{Backend: null(t, "io")}))
	blocks := uint64(1<<30) / 512
	h := nvmetest.ConnectAdmin(t, srv.addr.String(), nvmetest.HostOptions{SubNQN: subNQN})
	q := h.ConnectIO(1)
	p := make([]byte, 4096)
	dsm := func(ranges int, r ...wire.DSMRange) (wire.Command, []byte) {
		var b []byte
		for _, r := range r {
			b = r.AppendTo(b)
		}
		return wire.DSMCmd(1, ranges, wire.DSMDeallocate), b
	}
	for _, c := range []struct {
		name   string
		cmd    wire.Command
		out    []byte
		n      int
		status nvme.Status
	}{
		{"read at the end", wire.ReadCmd(1, blocks, 1, 0), nil, 512, nvme.StatusLBAOutOfRange},
		{"read across the end", wire.ReadCmd(1, blocks-1, 2, 0), nil, 1024, nvme.StatusLBAOutOfRange},
		{"read that overflows", wire.ReadCmd(1, ^uint64(0), 2, 0), nil, 1024, nvme.StatusLBAOutOfRange},
		{"read whose offset in bytes overflows", wire.ReadCmd(1, 1<<55, 1, 0), nil, 512, nvme.StatusLBAOutOfRange},
		{"last block", wire.ReadCmd(1, blocks-1, 1, 0), nil, 512, 0},
		{"write across the end", wire.WriteCmd(1, blocks-7, 8, 0), p, 0, nvme.StatusLBAOutOfRange},
		{"write zeroes across the end", wire.WriteZeroesCmd(1, blocks-7, 8, 0), nil, 0, nvme.StatusLBAOutOfRange},
		{"write zeroes", wire.WriteZeroesCmd(1, blocks-65536, 65536, wire.ControlDEAC|wire.ControlFUA), nil, 0, 0},
		{"compare across the end", wire.CompareCmd(1, blocks-7, 8, 0), p, 0, nvme.StatusLBAOutOfRange},
		{"compare", wire.CompareCmd(1, 0, 8, 0), p, 0, 0},
		{"length of another transfer", wire.ReadCmd(1, 0, 2, 0), nil, 512, nvme.StatusDataSGLLengthInvalid},
		{"write of another length", wire.WriteCmd(1, 0, 1, 0), p, 0, nvme.StatusDataSGLLengthInvalid},
		{"beyond MDTS", wire.ReadCmd(1, 0, 4096, 0), nil, 2 << 20, nvme.StatusDataSGLLengthInvalid},
		{"no namespace", wire.ReadCmd(2, 0, 1, 0), nil, 512, nvme.StatusInvalidNamespace},
		{"namespace 0", wire.WriteCmd(0, 0, 8, 0), p, 0, nvme.StatusInvalidNamespace},
		{"all namespaces", wire.ReadCmd(wire.NSIDAll, 0, 1, 0), nil, 512, nvme.StatusInvalidNamespace},
		{"flush all", wire.FlushCmd(wire.NSIDAll), nil, 0, 0},
		{"flush none", wire.FlushCmd(3), nil, 0, nvme.StatusInvalidNamespace},
		{"unknown opcode", wire.Command{Opcode: 0x99, Flags: wire.CmdPSDT, NSID: 1}, p, 0, nvme.StatusInvalidOpcode},
		{"reservation", wire.Command{Opcode: wire.OpResvReg, Flags: wire.CmdPSDT, NSID: 1}, p, 0, nvme.StatusInvalidOpcode},
		{"property on an I/O queue", wire.PropertyGetCmd(wire.PropertyCAP, 8), nil, 0, nvme.StatusInvalidOpcode},
	} {
		if got, _ := q.Do(c.cmd, c.out, c.n); got.Status.Code() != c.status {
			t.Errorf("%s: %v, want %v", c.name, got.Status, c.status)
		}
	}
	cmd, b := dsm(2, wire.DSMRange{Blocks: 8, SLBA: 0}, wire.DSMRange{Blocks: 8, SLBA: blocks - 8})
	q.Must(cmd, b, 0)
	cmd, b = dsm(2, wire.DSMRange{Blocks: 8, SLBA: 0}, wire.DSMRange{Blocks: 9, SLBA: blocks - 8})
	if got, _ := q.Do(cmd, b, 0); got.Status.Code() != nvme.StatusLBAOutOfRange {
		t.Errorf("range across the end: %v", got.Status)
	}
	cmd, b = dsm(3, wire.DSMRange{Blocks: 8}, wire.DSMRange{Blocks: 8})
	if got, _ := q.Do(cmd, b, 0); got.Status.Code() != nvme.StatusInvalidField {
		t.Errorf("NR of more ranges than there are: %v", got.Status)
	}
	for name, flags := range map[string]uint8{"PRP": 0, "fused first": wire.CmdPSDT | 1, "fused second": wire.CmdPSDT | 2} {
		cmd := wire.FlushCmd(1)
		cmd.Flags = flags
		if got, _ := q.Do(cmd, nil, 0); got.Status.Code() != nvme.StatusInvalidField || !got.Status.DNR() {
			t.Errorf("%s: %v", name, got.Status)
		}
	}
	for name, c := range map[string]struct {
		sgl  wire.SGL
		want nvme.Status
	}{
		"keyed SGL":      {wire.SGL{Type: 0x40, Length: 512}, nvme.StatusSGLTypeInvalid},
		"capsule offset": {wire.SGL{Type: wire.SGLInCapsule, Length: 512, Addr: 4}, nvme.StatusSGLOffsetInvalid},
	} {
		w := wire.WriteCmd(1, 0, 1, 0)
		w.CID, w.SGL = q.NextCID(), c.sgl
		q.Raw(q.Frame(wire.TypeCapsuleCmd, 0, w.AppendTo(nil), p[:512]))
		if got := q.ExpectResp(w.CID); got.Status.Code() != c.want {
			t.Errorf("%s: %v", name, got.Status)
		}
	}
	q.Must(wire.WriteCmd(1, 0, 8, wire.ControlFUA), p, 0)
	r := nvmetest.Open(t, srv.addr.String(), nvmetest.HostOptions{SubNQN: subNQN})
	r.MustConnect(2, h.CNTLID)
	r.Must(wire.ReadCmd(1, 0, 8, 0), nil, 4096)
}

func TestConfigErrors(t *testing.T) {
	good := func() targetlite.Config {
		c := one(targetlite.Namespace{Backend: null(t, "a")})
		c.Portals = []nvme.Addr{{Host: "127.0.0.1", Service: "0"}}
		return c
	}
	for text, change := range map[string]func(*targetlite.Config){
		"no portal":              func(c *targetlite.Config) { c.Portals = nil },
		`"storage.example"`:      func(c *targetlite.Config) { c.Portals[0].Host = "storage.example" },
		`"70000"`:                func(c *targetlite.Config) { c.Portals[0].Service = "70000" },
		`"rdma"`:                 func(c *targetlite.Config) { c.Portals[0].Transport = "rdma" },
		"20-10":                  func(c *targetlite.Config) { c.MinCNTLID, c.MaxCNTLID = 20, 10 },
		"depth 4096":             func(c *targetlite.Config) { c.QueueDepth = 4096 },
		"transfer 5000":          func(c *targetlite.Config) { c.MaxTransfer = 5000 },
		"100 bytes of data in a": func(c *targetlite.Config) { c.InCapsule = 100 },
		"discovery service":      func(c *targetlite.Config) { c.Subsystems[0].NQN = nvme.DiscoveryNQN },
		`"hello"`:                func(c *targetlite.Config) { c.Subsystems[0].NQN = "hello" },
		`"host"`:                 func(c *targetlite.Config) { c.Subsystems[0].Hosts = []nvme.NQN{"host"} },
		"two subsystems":         func(c *targetlite.Config) { c.Subsystems = append(c.Subsystems, targetlite.Subsystem{NQN: subNQN}) },
		"21 characters":          func(c *targetlite.Config) { c.Subsystems[0].Serial = strings.Repeat("x", 21) },
		"printable":              func(c *targetlite.Config) { c.Subsystems[0].Model = "é" },
		"has no backend":         func(c *targetlite.Config) { c.Subsystems[0].Namespaces[0].Backend = nil },
		"namespace 70000":        func(c *targetlite.Config) { c.Subsystems[0].Namespaces[0].NSID = 70000 },
		"two namespaces 3": func(c *targetlite.Config) {
			c.Subsystems[0].Namespaces = []targetlite.Namespace{{NSID: 3, Backend: null(t, "a")}, {NSID: 3, Backend: null(t, "b")}}
		},
		"has the UUID": func(c *targetlite.Config) {
			c.Subsystems[0].Namespaces = []targetlite.Namespace{{Backend: null(t, "a"), UUID: nvme.UUID{1}}, {Backend: null(t, "b"), UUID: nvme.UUID{1}}}
		},
	} {
		c := good()
		change(&c)
		_, err := targetlite.New(c)
		if err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
			// Two identifiers clash at once where the UUID was given twice; either may be named.
			if text != "has the UUID" || err == nil || !strings.Contains(err.Error(), "NGUID") {
				t.Errorf("%v, want it to name %s", err, text)
			}
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c := good()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	c.Portals = append(c.Portals, nvme.Addr{Host: "127.0.0.1", Service: port})
	s, err := targetlite.New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var pe *targetlite.PortalError
	if err := s.Listen(t.Context()); !errors.As(err, &pe) || pe.Portal.Service != port {
		t.Errorf("port in use: %v", err)
	}
}

// The identifiers of a backing are the same in every server.
func TestIdentifiers(t *testing.T) {
	path := t.TempDir() + "/f"
	b := open(t, path, backend.Options{Size: 1 << 20})
	id := b.Info().Identity
	b.Close()
	status := func(nqn nvme.NQN) (targetlite.NamespaceStatus, string) {
		cfg := one(targetlite.Namespace{NSID: 9, Backend: open(t, path, backend.Options{})})
		cfg.Subsystems[0].NQN = nqn
		cfg.Portals = []nvme.Addr{{Host: "127.0.0.1", Service: "0"}}
		s, err := targetlite.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		sub := s.Status().Subsystems[0]
		return sub.Namespaces[0], sub.Serial
	}
	ns1, serial1 := status(subNQN)
	ns2, serial2 := status(subNQN + "2")
	if ns1.UUID != ns2.UUID || ns1.NGUID != ns2.NGUID || serial1 != serial2 || ns1.UUID.IsZero() || ns1.NGUID.IsZero() || ns1.UUID != targetlite.NamespaceUUID(id) {
		t.Errorf("%+v %s, then %+v %s", ns1, serial1, ns2, serial2)
	}
	if nqn := targetlite.DefaultNQN(id); nqn.Validate() != nil || nqn != targetlite.DefaultNQN(id) || nqn == targetlite.DefaultNQN(id+"x") {
		t.Errorf("default NQN %s", nqn)
	}
}

func TestShutdownDrains(t *testing.T) {
	b := newSlow(open(t, "mem:slow", backend.Options{Size: 1 << 20}))
	srv := serve(t, one(targetlite.Namespace{Backend: b}))
	h := nvmetest.ConnectAdmin(t, srv.addr.String(), nvmetest.HostOptions{SubNQN: subNQN})
	h.Send(wire.AERCmd(), nil)
	q := h.ConnectIO(1)
	idle := h.ConnectIO(2)
	pending := nvmetest.Open(t, srv.addr.String(), nvmetest.HostOptions{SubNQN: subNQN})
	want := pattern(4096, 1)
	cid := q.Send(wire.WriteCmd(1, 0, 8, 0), want)
	<-b.started
	done := make(chan error, 1)
	go func() { done <- srv.Shutdown(context.Background()) }()
	for _, h := range []*nvmetest.Host{idle, pending} {
		h.ExpectEnd()
		h.Close()
	}
	q.Send(wire.ReadCmd(1, 0, 8, 0), nil) // it will be sent to another target
	select {
	case err := <-done:
		t.Fatalf("Shutdown returned (%v) with a command in flight", err)
	default:
	}
	close(b.gate)
	q.ExpectStatus(cid, nvme.StatusSuccess)
	if p, err := q.ReadPDU(); err == nil {
		t.Errorf("%v after the last answer", p.Type)
	}
	if len(b.started) > 0 {
		t.Error("a command that came after Shutdown was run")
	}
	q.Close()
	h.ExpectEnd()
	h.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := net.DialTimeout("tcp", srv.addr.String(), time.Second); err == nil {
		t.Error("it still listens")
	}
}

// slow is a backend whose requests wait for its gate.
type slow struct {
	backend.Backend
	started chan struct{}
	gate    chan struct{}
}

func newSlow(b backend.Backend) *slow {
	return &slow{b, make(chan struct{}, 1000), make(chan struct{})}
}

func (s *slow) Submit(r *backend.Request) bool {
	s.started <- struct{}{}
	go func() {
		<-s.gate
		if s.Backend.Submit(r) {
			r.Done(r)
		}
	}()
	return false
}

// A host that is gone takes its controller and its queues along, and nothing stays behind.
func TestNothingLeaks(t *testing.T) {
	srv := serve(t, one(targetlite.Namespace{Backend: memory(t, "leak", 1<<20)}))
	before := runtime.NumGoroutine()
	for i := range 100 {
		h := nvmetest.ConnectAdmin(t, srv.addr.String(), nvmetest.HostOptions{SubNQN: subNQN})
		h.Send(wire.AERCmd(), nil)
		q := h.ConnectIO(1)
		switch i % 4 {
		case 0:
			q.Must(wire.WriteCmd(1, 0, 8, 0), make([]byte, 4096), 0)
		case 1: // in the middle of a transfer
			q.ExpectR2T(q.SendTransport(wire.WriteCmd(1, 0, 64, 0), 32768), 32768)
		case 2: // in the middle of a capsule
			b, _ := q.Capsule(wire.WriteCmd(1, 0, 8, 0), make([]byte, 4096))
			q.Raw(b[:1000])
		case 3:
			q.Conn.Conn.(*net.TCPConn).SetLinger(0)
		}
		h.Close()
		q.Close()
	}
	eventually(t, func() bool {
		st := srv.Status()
		return st.Connections == 0 && st.Pending == 0 && len(st.Subsystems[0].Controllers) == 0
	})
	eventually(t, func() bool { return runtime.NumGoroutine() <= before+2 })
}

// What is logged of a refused Connect names who wanted what, and what is wrong with it.
func TestConnectRefusedLog(t *testing.T) {
	for _, c := range []struct {
		change func(*wire.Connect, *wire.ConnectData)
		want   []string
	}{
		{func(_ *wire.Connect, d *wire.ConnectData) { d.HostNQN = "" }, []string{"host NQN is empty", "subsystem=" + string(subNQN), "Connect Invalid Parameters"}},
		{func(_ *wire.Connect, d *wire.ConnectData) { d.SubNQN += "x" }, []string{"no such subsystem", "host=" + string(hostNQN), "subsystem=" + string(subNQN) + "x"}},
		{func(_ *wire.Connect, d *wire.ConnectData) { d.HostNQN += "x" }, []string{"does not allow this host", "host=" + string(hostNQN) + "x", "Connect Invalid Host"}},
		{func(p *wire.Connect, _ *wire.ConnectData) { p.SQSize = 64 }, []string{"queue of 65 entries, want 2 to 64"}},
		{func(p *wire.Connect, d *wire.ConnectData) { p.QID, d.CNTLID = 1, 7 }, []string{"no controller with ID 0x7"}},
	} {
		var log lines
		cfg := one(targetlite.Namespace{Backend: null(t, "refused")})
		cfg.Subsystems[0].AllowAnyHost, cfg.Subsystems[0].Hosts = false, []nvme.NQN{hostNQN}
		cfg.QueueDepth = 64
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		h := nvmetest.Open(t, serve(t, cfg).addr.String(), nvmetest.HostOptions{SubNQN: subNQN, HostNQN: hostNQN})
		p, d := h.ConnectCmd(0), h.ConnectData(wire.CNTLIDDynamic)
		c.change(&p, &d)
		h.Connect(p, d)
		got := log.String()
		for _, want := range append(c.want, "connect refused", "level=WARN") {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in %q", want, got)
			}
		}
	}
}

// lines keeps what is logged.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A host that closes in order hears of no error, also if its I/O queues go first.
func TestCloseInOrder(t *testing.T) {
	srv := serve(t, one(targetlite.Namespace{Backend: memory(t, "close", 1<<20)}))
	for i := range 20 {
		ctrl := connect(t, srv.addr, subNQN, host.Options{Queues: 4, HeaderDigest: i%2 == 1})
		ns, err := ctrl.Open(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ns.WriteAt(pattern(4096, byte(i)), 0); err != nil {
			t.Fatal(err)
		}
		if n, _ := ctrl.Queues(); n != 4 {
			t.Fatalf("%d I/O queues", n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		if err := ctrl.Close(ctx); err != nil {
			t.Errorf("close %d: %v", i, err)
		}
		cancel()
	}
}

func TestFloodIsBounded(t *testing.T) {
	cfg := one(targetlite.Namespace{Backend: memory(t, "flood", 1<<20)})
	cfg.MaxPending = 64
	srv := serve(t, cfg)
	ctrl := connect(t, srv.addr, subNQN, host.Options{Queues: 1})
	ns, err := ctrl.Open(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	var silent []net.Conn
	for i := range 2000 {
		c, err := net.Dial("tcp", srv.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%3 == 0 {
			c.Write([]byte{0, 0, 128}) // a handshake that goes no further
		}
		silent = append(silent, c)
		if i%500 == 499 {
			if _, err := ns.WriteAt(pattern(4096, byte(i)), 0); err != nil {
				t.Fatalf("another host suffers: %v", err)
			}
			nvmetest.ConnectAdmin(t, srv.addr.String(), nvmetest.HostOptions{SubNQN: subNQN}).Close()
		}
	}
	eventually(t, func() bool {
		st := srv.Status()
		return st.Pending <= 64 && st.Connections <= 64+10
	})
	for _, c := range silent {
		c.Close()
	}
	eventually(t, func() bool { return srv.Status().Pending == 0 })
}

func TestTooManyConnections(t *testing.T) {
	cfg := one()
	cfg.MaxConnections = 6 // half of them for one address
	srv := serve(t, cfg)
	h := nvmetest.ConnectAdmin(t, srv.addr.String(), nvmetest.HostOptions{SubNQN: subNQN})
	h.ConnectIO(1)
	h.ConnectIO(2)
	c, err := net.Dial("tcp", srv.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(deadline))
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes of a connection too many", n)
	}
	h.Must(wire.IdentifyCmd(wire.CNSController, 0, 0, 0), nil, 4096)
}

// Commands wait when the memory for buffers is in use, and all of them are answered in the end.
func TestMemoryIsBounded(t *testing.T) {
	b := newSlow(open(t, "mem:pool", backend.Options{Size: 1 << 20}))
	cfg := one(targetlite.Namespace{Backend: b})
	cfg.MaxTransfer, cfg.BufferMemory, cfg.InCapsule = 64<<10, 1<<20, 4096 // a controller gets 256 KiB
	srv := serve(t, cfg)
	type stream struct {
		h, q *nvmetest.Host
		cids map[uint16]int
	}
	var streams []stream
	for range 5 {
		h := nvmetest.ConnectAdmin(t, srv.addr.String(), nvmetest.HostOptions{SubNQN: subNQN})
		s := stream{h, h.ConnectIO(1), map[uint16]int{}}
		for range 16 {
			s.cids[s.q.SendTransport(wire.ReadCmd(1, 0, 96, 0), 48<<10)] = 48 << 10
		}
		streams = append(streams, s)
	}
	for range 16 { // 1 MiB: as many as there is memory for
		<-b.started
	}
	select {
	case <-b.started:
		t.Error("more memory is in use than there may be")
	default:
	}
	// Data that comes unasked has its own room, and an Abort finds a command that waits.
	last := streams[4]
	waits := last.q.NextCID() - 1 // the newest of 16 reads, of which at most 4 can run
	eventually(t, func() bool {   // it may not have come to the other queue yet
		return last.h.ExpectStatus(last.h.Send(wire.AbortCmd(1, waits), nil), nvme.StatusSuccess).DW0 == 0
	})
	last.q.ExpectStatus(waits, nvme.StatusAbortRequested)
	delete(last.cids, waits)
	w := last.q.Send(wire.WriteCmd(1, 0, 8, 0), make([]byte, 4096))
	<-b.started
	close(b.gate)
	last.cids[w] = 0
	for _, s := range streams {
		for len(s.cids) > 0 {
			p := s.q.Read()
			if p.Type == wire.TypeC2HData {
				s.cids[binary.LittleEndian.Uint16(p.Raw[8:])] -= len(p.Data)
				continue
			}
			var c wire.Completion
			c.Parse(p.Spec())
			if left, ok := s.cids[c.CID]; !ok || left != 0 || !c.Status.OK() {
				t.Fatalf("answer to %#x: %v, %d bytes are missing", c.CID, c.Status, left)
			}
			delete(s.cids, c.CID)
		}
	}
}
