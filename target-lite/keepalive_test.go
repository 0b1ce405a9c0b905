package targetlite

import (
	"net"
	"testing"
	"testing/synctest"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/nvmetest"
	"hawser.dev/hawser/nvme/wire"
)

// pipeHost is a host's admin queue over a pipe, so that time is the bubble's.
type pipeHost struct {
	*nvmetest.Conn
	t   *testing.T
	cid uint16
}

func (h *pipeHost) do(cmd wire.Command, data []byte) wire.Completion {
	h.t.Helper()
	h.cid++
	cmd.CID = h.cid
	if data != nil {
		cmd.SGL = wire.SGL{Type: wire.SGLInCapsule, Length: uint32(len(data))}
	}
	if err := h.SendPDU(wire.TypeCapsuleCmd, 0, cmd.AppendTo(nil), data); err != nil {
		h.t.Fatal(err)
	}
	p, err := h.ReadPDU()
	if err != nil {
		h.t.Fatal(err)
	}
	var c wire.Completion
	if err := c.Parse(p.Spec()); err != nil || !c.Status.OK() {
		h.t.Fatalf("%+v, %v", c, err)
	}
	return c
}

func dialPipe(t *testing.T, s *Server, nqn nvme.NQN, kato uint32) *pipeHost {
	t.Helper()
	a, b := net.Pipe()
	s.start(b, &portal{id: 1})
	h := &pipeHost{Conn: &nvmetest.Conn{Conn: a}, t: t}
	h.SendPDU(wire.TypeICReq, 0, (&wire.ICReq{}).AppendTo(nil), nil)
	if _, err := h.ReadPDU(); err != nil {
		t.Fatal(err)
	}
	d := wire.ConnectData{HostID: nvme.UUID{1}, CNTLID: wire.CNTLIDDynamic, SubNQN: nqn, HostNQN: "nqn.2024-01.dev.hawser:h"}
	h.do(wire.Connect{SQSize: 31, KATO: kato}.Command(), d.AppendTo(nil))
	h.do(wire.PropertySetCmd(wire.PropertyCC, 4, uint64(wire.CCIOEntries|wire.CCEnable)), nil)
	return h
}

// ended waits for the end of the connection and returns how long that took.
func (h *pipeHost) ended() time.Duration {
	start := time.Now()
	for {
		if _, err := h.ReadPDU(); err != nil {
			return time.Since(start)
		}
	}
}

func TestKeepAlive(t *testing.T) {
	const sub nvme.NQN = "nqn.2024-01.dev.hawser:s"
	for _, c := range []struct {
		name        string
		nqn         nvme.NQN
		kato        uint32 // ms
		least, most time.Duration
	}{
		{"5 s", sub, 5000, 5 * time.Second, 6250 * time.Millisecond},
		{"rounded up", sub, 1001, 2 * time.Second, 2500 * time.Millisecond},
		{"discovery", nvme.DiscoveryNQN, 0, 120 * time.Second, 150 * time.Second},
		{"persistent discovery", nvme.DiscoveryNQN, 30000, 30 * time.Second, 37500 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, err := New(Config{Portals: []nvme.Addr{{}}, Subsystems: []Subsystem{{NQN: sub, AllowAnyHost: true}}})
				if err != nil {
					t.Fatal(err)
				}
				h := dialPipe(t, s, c.nqn, c.kato)
				for range 5 { // commands keep it alive, and so do other commands than Keep Alive
					time.Sleep(c.least * 9 / 10)
					h.do(wire.KeepAliveCmd(), nil)
					time.Sleep(c.least * 9 / 10)
					h.do(wire.PropertyGetCmd(wire.PropertyCSTS, 4), nil)
				}
				if d := h.ended(); d < c.least || d > c.most {
					t.Errorf("it ended after %v, want %v to %v", d, c.least, c.most)
				}
				synctest.Wait()
				if n := len(s.subsystem(c.nqn).list()); n != 0 {
					t.Errorf("%d controllers are left", n)
				}
				s.Close()
			})
		})
	}
	t.Run("none", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, err := New(Config{Portals: []nvme.Addr{{}}, Subsystems: []Subsystem{{NQN: sub, AllowAnyHost: true}}})
			if err != nil {
				t.Fatal(err)
			}
			h := dialPipe(t, s, sub, 0)
			time.Sleep(24 * time.Hour)
			h.do(wire.PropertyGetCmd(wire.PropertyCSTS, 4), nil)
			h.Close()
			synctest.Wait()
			s.Close()
		})
	})
}

func TestHandshakeTimeout(t *testing.T) {
	const sub nvme.NQN = "nqn.2024-01.dev.hawser:s"
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{Portals: []nvme.Addr{{}}, Subsystems: []Subsystem{{NQN: sub, AllowAnyHost: true}}, HandshakeTimeout: 3 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		connected := dialPipe(t, s, sub, 0)
		for _, part := range []int{0, 20, wire.HLenICReq} { // silent, half an ICReq, a whole one
			a, b := net.Pipe()
			s.start(b, &portal{id: 1})
			h := &pipeHost{Conn: &nvmetest.Conn{Conn: a}, t: t}
			h.Write(h.Frame(wire.TypeICReq, 0, (&wire.ICReq{}).AppendTo(nil), nil)[:part])
			if d := h.ended(); d < 3*time.Second || d > 6*time.Second {
				t.Errorf("after %d bytes it ended in %v", part, d)
			}
		}
		connected.do(wire.PropertyGetCmd(wire.PropertyCSTS, 4), nil)
		connected.Close()
		synctest.Wait()
		s.Close()
	})
}

// An event is sent once until its log page is read, and only if the host wants it.
func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sub nvme.NQN = "nqn.2024-01.dev.hawser:s"
		s, err := New(Config{Portals: []nvme.Addr{{}}, Subsystems: []Subsystem{{NQN: sub, AllowAnyHost: true}}})
		if err != nil {
			t.Fatal(err)
		}
		h := dialPipe(t, s, sub, 0)
		ctrl := s.subsystem(sub).list()[0]
		expect := func(cid uint16) {
			t.Helper()
			p, err := h.ReadPDU()
			if err != nil {
				t.Fatal(err)
			}
			var c wire.Completion
			if c.Parse(p.Spec()); c.CID != cid || wire.AsyncEvent(c.DW0) != wire.EventNamespaceChanged || !c.Status.OK() {
				t.Fatalf("event %+v", c)
			}
		}
		aer := func(cid uint16) {
			cmd := wire.AERCmd()
			cmd.CID = cid
			h.SendPDU(wire.TypeCapsuleCmd, 0, cmd.AppendTo(nil), nil)
		}
		aer(1000)
		synctest.Wait()
		ctrl.notify(wire.EventNamespaceChanged, wire.NoticeNamespace)
		expect(1000)
		ctrl.notify(wire.EventNamespaceChanged, wire.NoticeNamespace) // masked
		aer(1001)
		h.do(wire.PropertyGetCmd(wire.PropertyCSTS, 4), nil) // nothing but this answer comes
		read := wire.GetLogPage{LID: wire.LogChangedNamespaces, Length: 4096}
		ctrl.logRead(wire.GetLogPage{LID: read.LID, RAE: true})
		ctrl.notify(wire.EventNamespaceChanged, wire.NoticeNamespace) // still masked
		h.do(wire.PropertyGetCmd(wire.PropertyCSTS, 4), nil)
		ctrl.logRead(read)
		ctrl.notify(wire.EventNamespaceChanged, wire.NoticeNamespace)
		expect(1001)
		ctrl.logRead(read)
		ctrl.notify(wire.EventNamespaceChanged, wire.NoticeNamespace) // before the host asks
		aer(1002)
		expect(1002)
		h.do(wire.SetFeaturesCmd(wire.FeatureAsyncEvents, 0, 0), nil)
		ctrl.logRead(read)
		ctrl.notify(wire.EventNamespaceChanged, wire.NoticeNamespace)
		aer(1003)
		h.do(wire.PropertyGetCmd(wire.PropertyCSTS, 4), nil)
		h.Close()
		synctest.Wait()
		s.Close()
	})
}
