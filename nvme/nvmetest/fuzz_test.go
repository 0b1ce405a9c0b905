package nvmetest_test

import (
	"errors"
	"os"
	"testing"
	"time"

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
