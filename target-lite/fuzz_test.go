package targetlite

import (
	"io"
	"net"
	"testing"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/nvmetest"
	"hawser.dev/hawser/nvme/wire"
	"hawser.dev/hawser/target-lite/backend"
)

// FuzzCommands sends arbitrary admin commands, then arbitrary bytes, to a connected and enabled controller, and the same
// to an I/O queue. Whatever they are, the target answers or ends the connection, and has nothing left afterwards.
func FuzzCommands(f *testing.F) {
	seed := func(data []byte, io bool, cmds ...wire.Command) {
		var b []byte
		for _, c := range cmds {
			b = c.AppendTo(b)
		}
		f.Add(b, data, io)
	}
	seed(nil, false, wire.IdentifyCmd(wire.CNSController, 0, 0, 0), wire.GetLogPage{LID: wire.LogSMART, Length: 512}.Command(), wire.AERCmd())
	seed(nil, false, wire.GetFeaturesCmd(wire.FeatureNumberOfQueues, 0, 0, 0), wire.SetFeaturesCmd(wire.FeatureKeepAlive, 0, 5000), wire.AbortCmd(0, 1))
	seed(nil, false, wire.PropertyGetCmd(wire.PropertyCAP, 8), wire.PropertySetCmd(wire.PropertyCC, 4, 0), wire.Connect{SQSize: 3}.Command())
	seed(make([]byte, 4096), true, wire.ReadCmd(1, 0, 8, 0), wire.WriteCmd(1, 8, 8, wire.ControlFUA), wire.FlushCmd(wire.NSIDAll), wire.CompareCmd(1, 0, 8, 0))
	seed(make([]byte, 16), true, wire.DSMCmd(1, 1, wire.DSMDeallocate), wire.WriteZeroesCmd(1, 0, 8, wire.ControlDEAC))
	f.Fuzz(func(t *testing.T, cmds, data []byte, ioQueue bool) {
		const sub nvme.NQN = "nqn.2024-01.dev.hawser:s"
		b, err := backend.Open(t.Context(), "mem:fuzz", backend.Options{Size: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		s, err := New(Config{
			Portals: []nvme.Addr{{}}, Subsystems: []Subsystem{{NQN: sub, AllowAnyHost: true, Namespaces: []Namespace{{Backend: b}}}},
			MaxTransfer: 16 << 10, BufferMemory: 1 << 20, QueueDepth: 16,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		open := func(qid, cntlid uint16) (*nvmetest.Conn, uint16) {
			a, b := net.Pipe()
			a.SetDeadline(time.Now().Add(10 * time.Second))
			s.start(b, &portal{id: 1})
			h := &nvmetest.Conn{Conn: a}
			h.SendPDU(wire.TypeICReq, 0, (&wire.ICReq{}).AppendTo(nil), nil)
			h.ReadPDU()
			d := wire.ConnectData{HostID: nvme.UUID{1}, CNTLID: cntlid, SubNQN: sub, HostNQN: "nqn.2024-01.dev.hawser:h"}
			c := wire.Connect{QID: qid, SQSize: 15}.Command()
			c.SGL = wire.SGL{Type: wire.SGLInCapsule, Length: wire.ConnectDataSize}
			h.SendPDU(wire.TypeCapsuleCmd, 0, c.AppendTo(nil), d.AppendTo(nil))
			p, err := h.ReadPDU()
			var cqe wire.Completion
			if err == nil {
				err = cqe.Parse(p.Spec())
			}
			if err != nil || !cqe.Status.OK() {
				t.Fatal("connect", cqe, err)
			}
			return h, uint16(cqe.DW0)
		}
		admin, cntlid := open(0, wire.CNTLIDDynamic)
		enable := wire.PropertySetCmd(wire.PropertyCC, 4, uint64(wire.CCIOEntries|wire.CCEnable))
		admin.SendPDU(wire.TypeCapsuleCmd, 0, enable.AppendTo(nil), nil)
		admin.ReadPDU()
		h := admin
		if ioQueue {
			h, _ = open(1, cntlid)
		}
		go io.Copy(io.Discard, h) // a pipe has no room of its own
		for cid := uint16(1); len(cmds) >= wire.CommandSize; cid++ {
			var c wire.Command
			c.Parse(cmds[:wire.CommandSize])
			cmds = cmds[wire.CommandSize:]
			var in []byte
			if c.SGL.Type == wire.SGLInCapsule || c.ToController() && len(data) > 0 && c.SGL.Length == 0 {
				in = data[:min(len(data), 4096)]
				c.SGL = wire.SGL{Type: wire.SGLInCapsule, Length: uint32(len(in))}
			}
			if h.SendPDU(wire.TypeCapsuleCmd, 0, c.AppendTo(nil), in) != nil {
				break
			}
		}
		h.Write(cmds)
		h.Write(data)
		h.Close()
		admin.Close()
		end := time.Now().Add(10 * time.Second)
		for ; ; time.Sleep(100 * time.Microsecond) {
			st := s.Status()
			if st.Connections == 0 && len(st.Subsystems[0].Controllers) == 0 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("left behind: %+v", st)
			}
		}
		s.background.Wait()
		if used := s.unconnected.used.Load(); used != 0 {
			t.Fatalf("%d bytes of buffers are not given back", used)
		}
		free := int64(0)
		for _, c := range s.pool.classes {
			for c.free.pop() != nil {
				free += int64(c.size)
			}
		}
		if free != s.pool.total {
			t.Fatalf("%d bytes of buffers, %d given back", s.pool.total, free)
		}
	})
}
