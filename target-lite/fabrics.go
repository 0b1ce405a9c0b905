package targetlite

import (
	"errors"
	"fmt"
	"log/slog"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
)

// beginFabrics checks a Fabrics command.
func (c *conn) beginFabrics(t *task) (nvme.Status, uint16) {
	switch t.cmd.SQE.FCType() {
	case wire.FCTypeConnect:
		return nvme.StatusSuccess, 0
	case wire.FCTypePropertyGet, wire.FCTypePropertySet:
		if c.qid == 0 {
			return nvme.StatusSuccess, 0
		}
	}
	return nvme.StatusInvalidOpcode | nvme.StatusDNR, 4
}

func (c *conn) fabrics(t *task) {
	sqe := &t.cmd.SQE
	if sqe.FCType() == wire.FCTypeConnect {
		var d wire.ConnectData
		status, result, why := c.connect(t, &d)
		if !status.OK() {
			c.srv.refusals.log(c.srv.log, slog.LevelWarn, "connect refused: "+why, "address", c.nc.RemoteAddr(),
				"host", d.HostNQN, "subsystem", d.SubNQN, "status", status.Name(true))
			c.ctrl, c.qid = nil, 0
		}
		t.complete(status, uint64(result))
		return
	}
	offset, size, value := sqe.Property()
	if sqe.FCType() == wire.FCTypePropertyGet {
		value, ok := c.ctrl.property(offset, size)
		if !ok {
			t.fail(nvme.StatusInvalidField|nvme.StatusDNR, locCDW11)
			return
		}
		t.complete(nvme.StatusSuccess, value)
		return
	}
	if offset != wire.PropertyCC || size != 4 {
		t.fail(nvme.StatusInvalidField|nvme.StatusDNR, locCDW11)
		return
	}
	c.ctrl.configure(wire.CC(value))
	t.complete(nvme.StatusSuccess, 0)
}

// connect answers Connect (NVMe over Fabrics 1.1, 3.3) with a status and dword 0. It fills d; why is for people.
func (c *conn) connect(t *task, d *wire.ConnectData) (status nvme.Status, result uint32, why string) {
	p := t.cmd.SQE.Connect()
	badCommand := func(offset uint16, why string, args ...any) (nvme.Status, uint32, string) {
		return nvme.StatusConnectInvalidParameters | nvme.StatusDNR, wire.ConnectInvalid(offset, false), fmt.Sprintf(why, args...)
	}
	badData := func(offset uint16, why string, args ...any) (nvme.Status, uint32, string) {
		return nvme.StatusConnectInvalidParameters | nvme.StatusDNR, wire.ConnectInvalid(offset, true), fmt.Sprintf(why, args...)
	}
	if p.RecFmt != 0 {
		return nvme.StatusConnectIncompatibleFormat | nvme.StatusDNR, 0, fmt.Sprintf("record format %d is unknown", p.RecFmt)
	}
	if err := d.Parse(t.cmd.Data); err != nil {
		var we *wire.Error
		if errors.As(err, &we) {
			return badData(uint16(we.Offset), "%v", err)
		}
		return badData(0, "%v", err)
	}
	entries := c.srv.cfg.QueueDepth
	if p.QID == 0 {
		entries = max(entries, adminQueueSize)
	}
	sub := c.srv.subsystem(d.SubNQN)
	switch {
	case sub == nil:
		return badData(wire.ConnectDataSubNQN, "there is no such subsystem")
	case d.HostNQN == "":
		return badData(wire.ConnectDataHostNQN, "host NQN is empty")
	case !sub.access.Load().allows(d.HostNQN):
		return nvme.StatusConnectInvalidHost | nvme.StatusDNR, wire.ConnectInvalid(wire.ConnectDataHostNQN, true), "the subsystem does not allow this host"
	case p.SQSize == 0 || int(p.SQSize) >= entries:
		return badCommand(wire.ConnectCmdSQSize, "queue of %d entries, want 2 to %d", int(p.SQSize)+1, entries)
	}
	if p.QID == 0 {
		if d.CNTLID != wire.CNTLIDDynamic {
			return badData(wire.ConnectDataCNTLID, "controller ID %#x, want %#x: controllers are dynamic", d.CNTLID, wire.CNTLIDDynamic)
		}
		ctrl := newController(c.srv, sub, d, p.KATO)
		if !sub.add(ctrl) {
			return nvme.StatusConnectControllerBusy, 0, "the subsystem has no controller left"
		}
		c.ctrl, c.qid = ctrl, 0
		ctrl.attach(c, 0)
	} else {
		switch {
		case sub.discovery:
			return badCommand(wire.ConnectCmdQID, "queue ID %d: a discovery controller has no I/O queues", p.QID)
		case int(p.QID) > c.srv.cfg.MaxQueues:
			return badCommand(wire.ConnectCmdQID, "queue ID %d, want at most %d", p.QID, c.srv.cfg.MaxQueues)
		}
		ctrl := sub.controller(d.CNTLID)
		switch {
		case ctrl == nil || ctrl.hostNQN != d.HostNQN || ctrl.hostID != d.HostID:
			return badData(wire.ConnectDataCNTLID, "the host has no controller with ID %#x", d.CNTLID)
		case !ctrl.live.Load():
			return badCommand(wire.ConnectCmdQID, "queue ID %d: controller %#x is not enabled", p.QID, d.CNTLID)
		}
		c.ctrl, c.qid = ctrl, p.QID
		switch status := ctrl.attach(c, p.QID); status {
		case nvme.StatusSuccess:
		case nvme.StatusConnectInvalidParameters:
			return badData(wire.ConnectDataCNTLID, "controller %#x is gone", d.CNTLID)
		default:
			return status | nvme.StatusDNR, 0, fmt.Sprintf("queue ID %d is connected already", p.QID)
		}
	}
	c.srv.settled(c)
	c.q.SetQID(p.QID)
	c.q.SetSQFlowDisabled(p.CATTR&wire.ConnectDisableSQFlow != 0)
	c.q.SetDepth(int(p.SQSize) + 1)
	if p.QID != 0 {
		c.q.SetSpin(c.srv.cfg.Spin)
	}
	c.srv.log.Debug("connected", "address", c.nc.RemoteAddr(), "host", d.HostNQN, "subsystem", d.SubNQN, "cntlid", c.ctrl.cntlid, "qid", p.QID)
	return nvme.StatusSuccess, uint32(c.ctrl.cntlid), ""
}
