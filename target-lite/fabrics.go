package targetlite

import (
	"errors"
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
		status, result := c.connect(t)
		if !status.OK() {
			c.srv.refusals.log(c.srv.log, slog.LevelWarn, "connect refused", "address", c.nc.RemoteAddr(), "status", status, "offset", result)
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

// connect answers Connect (NVMe over Fabrics 1.1, 3.3) with a status and dword 0.
func (c *conn) connect(t *task) (nvme.Status, uint32) {
	p := t.cmd.SQE.Connect()
	badCommand := func(offset uint16) (nvme.Status, uint32) {
		return nvme.StatusConnectInvalidParameters | nvme.StatusDNR, wire.ConnectInvalid(offset, false)
	}
	badData := func(offset uint16) (nvme.Status, uint32) {
		return nvme.StatusConnectInvalidParameters | nvme.StatusDNR, wire.ConnectInvalid(offset, true)
	}
	if p.RecFmt != 0 {
		return nvme.StatusConnectIncompatibleFormat | nvme.StatusDNR, 0
	}
	var d wire.ConnectData
	if err := d.Parse(t.cmd.Data); err != nil {
		var we *wire.Error
		if errors.As(err, &we) {
			return badData(uint16(we.Offset))
		}
		return badData(0)
	}
	entries := c.srv.cfg.QueueDepth
	if p.QID == 0 {
		entries = max(entries, adminQueueSize)
	}
	sub := c.srv.subsystem(d.SubNQN)
	switch {
	case sub == nil:
		return badData(wire.ConnectDataSubNQN)
	case d.HostNQN == "":
		return badData(wire.ConnectDataHostNQN)
	case !sub.access.Load().allows(d.HostNQN):
		return nvme.StatusConnectInvalidHost | nvme.StatusDNR, wire.ConnectInvalid(wire.ConnectDataHostNQN, true)
	case p.SQSize == 0 || int(p.SQSize) >= entries:
		return badCommand(wire.ConnectCmdSQSize)
	}
	if p.QID == 0 {
		if d.CNTLID != wire.CNTLIDDynamic {
			return badData(wire.ConnectDataCNTLID)
		}
		ctrl := newController(c.srv, sub, &d, p.KATO)
		if !sub.add(ctrl) {
			return nvme.StatusConnectControllerBusy, 0
		}
		c.ctrl, c.qid = ctrl, 0
		ctrl.attach(c, 0)
	} else {
		if sub.discovery || int(p.QID) > c.srv.cfg.MaxQueues {
			return badCommand(wire.ConnectCmdQID)
		}
		ctrl := sub.controller(d.CNTLID)
		switch {
		case ctrl == nil || ctrl.hostNQN != d.HostNQN || ctrl.hostID != d.HostID:
			return badData(wire.ConnectDataCNTLID)
		case !ctrl.live.Load():
			return badCommand(wire.ConnectCmdQID)
		}
		c.ctrl, c.qid = ctrl, p.QID
		switch status := ctrl.attach(c, p.QID); status {
		case nvme.StatusSuccess:
		case nvme.StatusConnectInvalidParameters:
			return badData(wire.ConnectDataCNTLID)
		default:
			return status | nvme.StatusDNR, 0
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
	return nvme.StatusSuccess, uint32(c.ctrl.cntlid)
}
