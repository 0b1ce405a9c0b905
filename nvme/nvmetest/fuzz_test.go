package nvmetest_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/nvme/nvmetest"
	"hawser.dev/hawser/nvme/wire"
)

// FuzzTargetCommands sends any submission queue entries, framed well, to a target: all of them must be answered or end
// the connection, and a host that watches must not be hurt.
func FuzzTargetCommands(f *testing.F) {
	for _, c := range []wire.Command{
		wire.ReadCmd(1, 0, 8, 0), wire.ReadCmd(1, 1<<63, 1<<16, 0), wire.WriteCmd(1, 0, 1, wire.ControlFUA), wire.CompareCmd(1, 0, 1, 0),
		wire.WriteZeroesCmd(1, 0, 1<<16, wire.ControlDEAC), wire.FlushCmd(wire.NSIDAll), wire.DSMCmd(1, 256, wire.DSMDeallocate),
		wire.IdentifyCmd(wire.CNSController, 0, 0, 0), wire.IdentifyCmd(wire.CNSActiveNamespaces, 0xfffffffe, 0, 0),
		wire.IdentifyCmd(wire.CNSNamespaceDescriptors, 1, 0, 0), wire.IdentifyCmd(wire.CNSIndependentNamespace, 1, 0, 0),
		wire.GetLogPage{LID: wire.LogSMART, Length: 512}.Command(), wire.GetLogPage{LID: wire.LogANA, Length: 1 << 34}.Command(),
		wire.GetLogPage{LID: wire.LogError, Length: 4096, Offset: 1<<64 - 4}.Command(),
		wire.GetFeaturesCmd(wire.FeatureHostIdentifier, wire.SelectSupported, 0, 1), wire.SetFeaturesCmd(wire.FeatureKeepAlive, 0, 1),
		wire.SetFeaturesCmd(wire.FeatureNumberOfQueues, 0, wire.QueueCount(65535)), wire.KeepAliveCmd(), wire.AERCmd(), wire.AbortCmd(1, 1),
		wire.Connect{QID: 1, SQSize: 31}.Command(), wire.PropertyGetCmd(wire.PropertyCAP, 8), wire.PropertySetCmd(wire.PropertyCC, 4, 1<<14|1),
	} {
		c.SGL.Length = 4096
		f.Add(c.AppendTo(nil), []byte("data in the capsule"), true)
		f.Add(c.AppendTo(c.AppendTo(nil)), []byte(nil), false)
	}
	s := serve(f)
	f.Fuzz(func(t *testing.T, sqes, data []byte, io bool) {
		h := nvmetest.ConnectAdmin(t, s.addr, nvmetest.HostOptions{SubNQN: testNQN})
		defer h.Close()
		q := h
		if io {
			q = h.ConnectIO(1)
			defer q.Close()
		}
		data = data[:min(len(data), 8192)]
		for n := 0; n < 16 && len(sqes) >= wire.CommandSize; n++ {
			var inside []byte
			if n == 0 {
				inside = data
			}
			if _, err := q.Write(q.Frame(wire.TypeCapsuleCmd, 0, sqes[:wire.CommandSize], inside)); err != nil {
				break // the target has had enough
			}
			sqes = sqes[wire.CommandSize:]
		}
		// Whatever it was, the target reads on or closes, and what it sends is well formed.
		q.SetDeadline(time.Now().Add(20 * time.Second))
		q.TCP.CloseWrite() // fails if the target has closed already
		for {
			p, err := q.ReadPDU()
			if err != nil {
				if !nvmetest.Gone(err) || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatal(err)
				}
				break
			}
			switch p.Type {
			case wire.TypeCapsuleResp, wire.TypeC2HData, wire.TypeR2T, wire.TypeC2HTermReq:
			default:
				t.Fatalf("target sent %v", p.Type)
			}
		}
		if n := s.Status().Connections; n > 64 {
			t.Fatalf("%d connections are left", n)
		}
	})
}

// FuzzHostData answers every Identify and Get Log Page of our host with any data: it must come to an end, with an
// error or without.
func FuzzHostData(f *testing.F) {
	id := wire.IdentifyController{CNTLID: 1, SUBNQN: testNQN, SGLS: 1, IOCCSZ: 260, IORCSZ: 1, KAS: 1, MDTS: 255, NN: 1 << 31}
	ns := wire.IdentifyNamespace{NSZE: 1 << 62, NCAP: 1 << 62, FLBAS: 0xff, NOIOB: 0xffff}
	ns.LBAF[63].DS = 9
	f.Add(id.AppendTo(nil), ns.AppendTo(nil), (&wire.NamespaceDescriptors{HasCSI: true, CSI: 2}).AppendTo(nil), (&wire.NamespaceList{1, 2}).AppendTo(nil))
	f.Add(id.AppendTo(nil), (&wire.IdentifyNamespace{}).AppendTo(nil), []byte{3, 16}, bytes.Repeat([]byte{1}, 4096))
	f.Add([]byte{}, []byte{}, []byte{}, []byte{})
	f.Add([]byte{}, []byte{}, []byte{}, nvmetest.DiscoveryLog(7, someEntries(3)))
	f.Fuzz(func(t *testing.T, ctrl, nspace, descs, list []byte) {
		answer := func(q *nvmetest.Queue, cmd *nvmetest.Command) bool {
			var data []byte
			switch {
			case cmd.Fabrics() || q.QID != 0:
				return false
			case cmd.Opcode == wire.OpGetLogPage:
				p := cmd.GetLogPage()
				data = list[min(p.Offset, uint64(len(list))):]
			case cmd.Opcode != wire.OpIdentify:
				return false
			case cmd.CNS() == wire.CNSController && len(ctrl) > 0:
				data = ctrl
			case cmd.CNS() == wire.CNSNamespace:
				data = nspace
			case cmd.CNS() == wire.CNSNamespaceDescriptors:
				data = descs
			case cmd.CNS() == wire.CNSActiveNamespaces:
				data = list
			default:
				return false
			}
			whole := make([]byte, min(cmd.SGL.Length, 1<<20))
			copy(whole, data)
			q.SendData(cmd, whole)
			return true
		}
		for _, nqn := range []nvme.NQN{testNQN, nvme.DiscoveryNQN} {
			c := nvmetest.NewController(t, nqn)
			c.OnCommand = answer
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			o := host.Options{Queues: 1, Dial: c.Dial, KeepAlive: -1}
			ctl, err := host.Connect(ctx, nvme.Addr{Host: "pipe"}, nqn, o)
			if err == nil {
				if nqn.Discovery() {
					ctl.DiscoveryLog(ctx)
				} else {
					ctl.Namespaces(ctx)
					if n, err := ctl.Open(ctx, 1); err == nil {
						if n.Size < 0 || n.BlockSize < 512 || n.Size%int64(n.BlockSize) != 0 {
							t.Errorf("%+v", n.NamespaceInfo)
						}
						n.ReadAt(make([]byte, n.BlockSize), 0)
					}
				}
				ctl.Close(ctx)
			}
			if ctx.Err() != nil {
				t.Errorf("no end: %v", err)
			}
			cancel()
			c.Stop()
		}
	})
}
