package host_test

import (
	"testing"

	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/nvme/nvmetest"
	"hawser.dev/hawser/nvme/wire"
)

func TestEndlessNamespaces(t *testing.T) {
	c := nvmetest.NewController(t, subsystem)
	c.OnCommand = func(q *nvmetest.Queue, cmd *nvmetest.Command) bool {
		if q.QID != 0 || cmd.Opcode != wire.OpIdentify || cmd.CNS() != wire.CNSActiveNamespaces {
			return false
		}
		list := make(wire.NamespaceList, wire.MaxNamespaceList)
		for i := range list {
			list[i] = cmd.NSID + uint32(i) + 1
		}
		q.SendData(cmd, list.AppendTo(nil))
		return true
	}
	if ids, err := connect(t, c, host.Options{}).NSIDs(t.Context()); err == nil {
		t.Errorf("%d namespaces", len(ids))
	}
}
