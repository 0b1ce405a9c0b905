package targetlite

import (
	"slices"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
)

// maxAdminData is the most data that a host may send with an admin command.
const maxAdminData = 4096

// answer is the outcome of an admin command: the status, for an error the byte of the command that is wrong, and
// dword 0 and 1.
type answer struct {
	status nvme.Status
	loc    uint16
	result uint64
}

func ok(result uint64) answer { return answer{result: result} }

func bad(status nvme.Status, loc uint16) answer {
	return answer{status: status | nvme.StatusDNR, loc: loc}
}

// beginAdmin checks an admin command.
func (c *conn) beginAdmin(t *task) (nvme.Status, uint16) {
	sqe := &t.cmd.SQE
	effects := adminEffects(c.ctrl.sub.discovery)
	if effects[sqe.Opcode] == 0 {
		return nvme.StatusInvalidOpcode | nvme.StatusDNR, locOpcode
	}
	c.ctrl.mu.Lock()
	ready := c.ctrl.cc.Enabled() && c.ctrl.csts.Ready()
	c.ctrl.mu.Unlock()
	switch {
	case !ready:
		return nvme.StatusCommandSequenceError | nvme.StatusDNR, locOpcode
	case sqe.ToController() && t.cmd.DataLen > maxAdminData:
		return nvme.StatusDataSGLLengthInvalid | nvme.StatusDNR, locSGL
	}
	return nvme.StatusSuccess, 0
}

// runAdmin runs an admin command. t.buf is its data: from the host, or for the host.
func runAdmin(t *task) {
	c := t.conn.ctrl
	sqe := &t.cmd.SQE
	out := t.buf
	if sqe.FromController() {
		clear(out)
	}
	var a answer
	switch sqe.Opcode {
	case wire.OpIdentify:
		a = c.identify(sqe, out)
	case wire.OpGetLogPage:
		a = c.getLogPage(t, out)
	case wire.OpGetFeatures:
		a = c.getFeatures(sqe, out)
	case wire.OpSetFeatures:
		a = c.setFeatures(sqe)
	case wire.OpKeepAlive:
		if c.keepAliveOff() {
			a = bad(nvme.StatusKeepAliveInvalid, locOpcode)
		}
	case wire.OpAbort:
		if !c.abort(sqe.Abort()) {
			a = ok(uint64(wire.AbortNotDone))
		}
	case wire.OpAER:
		c.aer(t)
		return
	}
	if !a.status.OK() {
		t.fail(a.status, a.loc)
		return
	}
	if sqe.FromController() {
		t.cmd.Data = out
	}
	t.complete(nvme.StatusSuccess, a.result)
}

func (c *controller) keepAliveOff() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kato == 0
}

// appender is a structure of package wire.
type appender interface{ AppendTo([]byte) []byte }

func (c *controller) identify(sqe *wire.Command, out []byte) answer {
	if len(out) != wire.IdentifySize {
		return bad(nvme.StatusDataSGLLengthInvalid, locSGL)
	}
	put := func(s appender) answer {
		s.AppendTo(out[:0])
		return ok(0)
	}
	cns := sqe.CNS()
	if c.sub.discovery && cns != wire.CNSController {
		return bad(nvme.StatusInvalidField, locCDW10)
	}
	table := c.sub.namespaces.Load()
	ns := table.get(sqe.NSID)
	inactive := bad(nvme.StatusInvalidNamespace, locNSID)
	switch cns {
	case wire.CNSCommandSetNamespace, wire.CNSCommandSetController, wire.CNSCommandSetActive:
		if sqe.CSI() != wire.CSINVM {
			return bad(nvme.StatusInvalidField, locCDW11+3)
		}
	}
	switch cns {
	case wire.CNSController:
		return put(c.identifyController())
	case wire.CNSCommandSetController:
		return put(&wire.IdentifyControllerNVM{})
	case wire.CNSNamespace, wire.CNSCommandSetNamespace:
		switch {
		case sqe.NSID == 0 || sqe.NSID > table.nn: // namespace management, which takes FFFFFFFFh, is not supported
			return inactive
		case ns != nil && cns == wire.CNSNamespace:
			return put(ns.identify())
		}
		return ok(0) // all zeroes: not active, or nothing to say
	case wire.CNSIndependentNamespace:
		if ns == nil {
			return inactive
		}
		i := ns.identify()
		return put(&wire.IndependentNamespace{NMIC: i.NMIC, ANAGRPID: i.ANAGRPID, NSATTR: i.NSATTR, NSTAT: wire.NSTATReady})
	case wire.CNSNamespaceDescriptors:
		if ns == nil {
			return inactive
		}
		return put(&wire.NamespaceDescriptors{UUID: ns.uuid, NGUID: ns.nguid, HasCSI: true, CSI: wire.CSINVM})
	case wire.CNSActiveNamespaces, wire.CNSCommandSetActive:
		if sqe.NSID >= wire.NSIDAll-1 {
			return inactive
		}
		list := wire.NamespaceList(table.after(sqe.NSID))
		return put(&list)
	case wire.CNSNamespaceControllers, wire.CNSControllers:
		if cns == wire.CNSNamespaceControllers && ns == nil {
			return inactive
		}
		var list wire.ControllerList
		for _, o := range c.sub.list() {
			if o.cntlid >= sqe.CNTID() {
				list = append(list, o.cntlid)
			}
		}
		return put(&list)
	}
	return bad(nvme.StatusInvalidField, locCDW10)
}

func (c *controller) identifyController() *wire.IdentifyController {
	cfg := &c.srv.cfg
	id := &wire.IdentifyController{
		SN: c.sub.serial, MN: c.sub.model, FR: firmware,
		RAB:    6,
		MDTS:   uint8(log2(cfg.MaxTransfer / pageSize)),
		CNTLID: c.cntlid,
		VER:    specVersion,
		RTD3E:  uint32(shutdownTime.Microseconds()),
		OAES:   c.oaes(),
		CTRATT: wire.CTRATTHostID128 | wire.CTRATTTBKAS,
		AERL:   aerLimit,
		LPA:    wire.LPAExtendedData,
		ELPE:   errorLogSize - 1,
		KAS:    uint16(kasGranularity.Milliseconds() / 100),
		SGLS:   wire.SGLSSupported | wire.SGLSOffset,
		MAXCMD: uint16(cfg.QueueDepth),
		SUBNQN: c.sub.nqn,
		IOCCSZ: uint32(wire.CommandSize+cfg.InCapsule) / 16,
		IORCSZ: wire.CompletionSize / 16,
		MSDBD:  1,
	}
	if c.sub.discovery {
		id.CNTRLTYPE, id.DCTYPE = wire.CNTRLTypeDiscovery, wire.DCTypeDirect
		return id
	}
	t := c.sub.namespaces.Load()
	id.CNTRLTYPE = wire.CNTRLTypeIO
	id.CMIC = wire.CMICMultiPort | wire.CMICMultiController
	id.LPA |= wire.LPASMARTPerNamespace | wire.LPACommandEffects
	id.ACL = aerLimit
	id.FRMW = 1 | 1<<1 // one slot, read-only
	id.SQES, id.CQES = wire.SQES64, wire.CQES16
	id.NN, id.MNAN = t.nn, t.nn
	id.ONCS = wire.ONCSCompare | wire.ONCSDSM | wire.ONCSWriteZeroes | wire.ONCSSaveSelect
	id.VWC = wire.VWCFlushAll
	if t.volatile {
		id.VWC |= wire.VWCPresent
	}
	return id
}

// firmware is the firmware revision: that of the protocol implementation.
const firmware = "1"

func log2(n int) int {
	k := 0
	for ; n > 1; n >>= 1 {
		k++
	}
	return k
}

// adminEffects says which admin commands there are, and their effects.
func adminEffects(discovery bool) *[256]uint32 {
	if discovery {
		return &discoveryCommands
	}
	return &adminCommands
}

var discoveryCommands = [256]uint32{
	wire.OpGetLogPage:  wire.EffectsSupported,
	wire.OpIdentify:    wire.EffectsSupported,
	wire.OpAbort:       wire.EffectsSupported,
	wire.OpSetFeatures: wire.EffectsSupported,
	wire.OpGetFeatures: wire.EffectsSupported,
	wire.OpAER:         wire.EffectsSupported,
	wire.OpKeepAlive:   wire.EffectsSupported,
}

var adminCommands = discoveryCommands

var ioCommands = [256]uint32{
	wire.OpFlush:       wire.EffectsSupported,
	wire.OpWrite:       wire.EffectsSupported | wire.EffectsLBCC,
	wire.OpRead:        wire.EffectsSupported,
	wire.OpCompare:     wire.EffectsSupported,
	wire.OpWriteZeroes: wire.EffectsSupported | wire.EffectsLBCC,
	wire.OpDSM:         wire.EffectsSupported | wire.EffectsLBCC,
}

// feature is how Get and Set Features treat a feature.
type feature struct {
	discovery  bool // a discovery controller has it too
	changeable bool
	namespaced bool
	remembered bool   // it has no effect beyond being remembered
	mask       uint32 // its bits, if it is remembered
	def        uint32
}

var features = map[uint8]feature{
	wire.FeatureArbitration:          {changeable: true, remembered: true, mask: ^uint32(0xf8), def: 7},
	wire.FeaturePowerManagement:      {},
	wire.FeatureTemperatureThreshold: {changeable: true, remembered: true, mask: 0x3fffff, def: 0xffff},
	wire.FeatureErrorRecovery:        {changeable: true, remembered: true, namespaced: true, mask: 0xffff},
	wire.FeatureVolatileWriteCache:   {changeable: true, def: 1},
	wire.FeatureNumberOfQueues:       {changeable: true},
	wire.FeatureWriteAtomicity:       {changeable: true, remembered: true, mask: 1},
	wire.FeatureAsyncEvents:          {discovery: true, changeable: true},
	wire.FeatureKeepAlive:            {discovery: true, changeable: true},
	wire.FeatureHostIdentifier:       {},
}

func (c *controller) feature(fid uint8) (feature, bool) {
	f, ok := features[fid]
	if c.sub.discovery && !f.discovery || fid == wire.FeatureVolatileWriteCache && !c.sub.namespaces.Load().volatile {
		return feature{}, false
	}
	return f, ok
}

func (c *controller) getFeatures(sqe *wire.Command, out []byte) answer {
	fid := sqe.FID()
	f, there := c.feature(fid)
	if !there {
		return bad(nvme.StatusInvalidField, locCDW10)
	}
	queues := wire.QueueCount(c.srv.cfg.MaxQueues)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch sqe.Select() {
	case wire.SelectCurrent:
		if f.namespaced && sqe.NSID != wire.NSIDAll && c.sub.namespaces.Load().get(sqe.NSID) == nil {
			return bad(nvme.StatusInvalidNamespace, locNSID)
		}
	case wire.SelectDefault, wire.SelectSaved: // nothing can be saved
		switch fid {
		case wire.FeatureAsyncEvents:
			return ok(uint64(c.oaes()))
		case wire.FeatureNumberOfQueues:
			return ok(uint64(queues))
		}
		return ok(uint64(f.def))
	case wire.SelectSupported:
		var caps uint32
		if f.changeable {
			caps |= wire.FeatureChangeable
		}
		if f.namespaced {
			caps |= wire.FeatureNamespaced
		}
		return ok(uint64(caps))
	default:
		return bad(nvme.StatusInvalidField, locCDW10+1)
	}
	switch fid {
	case wire.FeatureVolatileWriteCache:
		if c.throughs.Load() {
			return ok(0)
		}
		return ok(1)
	case wire.FeatureNumberOfQueues:
		return ok(uint64(queues))
	case wire.FeatureAsyncEvents:
		return ok(uint64(c.aec))
	case wire.FeatureKeepAlive:
		return ok(uint64(c.kato.Milliseconds()))
	case wire.FeatureHostIdentifier:
		// Over Fabrics the identifier is the extended one.
		if sqe.CDW11&1 == 0 {
			return bad(nvme.StatusInvalidField, locCDW11)
		}
		if len(out) < len(c.hostID) {
			return bad(nvme.StatusDataSGLLengthInvalid, locSGL)
		}
		copy(out, c.hostID[:])
		return ok(0)
	}
	if v, set := c.features[fid]; set {
		return ok(uint64(v))
	}
	return ok(uint64(f.def))
}

func (c *controller) setFeatures(sqe *wire.Command) answer {
	fid, v := sqe.FID(), sqe.CDW11
	f, there := c.feature(fid)
	switch {
	case !there:
		return bad(nvme.StatusInvalidField, locCDW10)
	case sqe.Save():
		return bad(nvme.StatusFeatureNotSaveable, locCDW10+3)
	case f.namespaced && sqe.NSID != wire.NSIDAll && c.sub.namespaces.Load().get(sqe.NSID) == nil:
		return bad(nvme.StatusInvalidNamespace, locNSID)
	case !f.namespaced && sqe.NSID != 0 && sqe.NSID != wire.NSIDAll:
		return bad(nvme.StatusFeatureNotNamespace, locNSID)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch fid {
	case wire.FeaturePowerManagement:
		if v&0x1f != 0 { // there is one power state
			return bad(nvme.StatusInvalidField, locCDW11)
		}
	case wire.FeatureVolatileWriteCache:
		c.throughs.Store(v&1 == 0)
	case wire.FeatureNumberOfQueues:
		switch {
		case v&0xffff == 0xffff || v>>16 == 0xffff:
			return bad(nvme.StatusInvalidField, locCDW11)
		case len(c.queues) > 1:
			return bad(nvme.StatusCommandSequenceError, locOpcode)
		}
		return ok(uint64(wire.QueueCount(c.srv.cfg.MaxQueues)))
	case wire.FeatureAsyncEvents:
		const smart = 0xff // critical warnings, of which there are none
		if v&^(c.oaes()|smart) != 0 {
			return bad(nvme.StatusInvalidField, locCDW11)
		}
		c.aec = v
	case wire.FeatureKeepAlive:
		c.setKATO(v)
	case wire.FeatureHostIdentifier:
		return bad(nvme.StatusCommandSequenceError, locOpcode) // Connect has set it
	default:
		if !f.remembered || v&^f.mask != 0 {
			return bad(nvme.StatusInvalidField, locCDW11)
		}
		c.features[fid] = v
	}
	return ok(0)
}

// getLogPage fills out with a part of a log page.
func (c *controller) getLogPage(t *task, out []byte) answer {
	g := t.cmd.SQE.GetLogPage()
	if uint64(len(out)) != g.Length {
		return bad(nvme.StatusDataSGLLengthInvalid, locSGL)
	}
	if g.Offset%4 != 0 {
		return bad(nvme.StatusInvalidField, locCDW12)
	}
	if g.LID == wire.LogDiscovery && c.sub.discovery {
		if !c.srv.discoveryLog(c, t.conn, g.Offset, out) {
			return bad(nvme.StatusInvalidField, locCDW12)
		}
		c.logRead(g)
		return ok(0)
	}
	if !slices.Contains(c.logs(), g.LID) {
		return bad(nvme.StatusInvalidLogPage, locCDW10)
	}
	var page []byte
	switch g.LID {
	case wire.LogSupportedPages:
		var s wire.SupportedLogs
		for _, lid := range c.logs() {
			s[lid] = wire.LogSupported
		}
		page = s.AppendTo(nil)
	case wire.LogError:
		page = c.errorLog()
	case wire.LogSMART:
		ns := c.sub.namespaces.Load().get(g.NSID)
		if ns == nil && g.NSID != 0 && g.NSID != wire.NSIDAll {
			return bad(nvme.StatusInvalidNamespace, locNSID)
		}
		page = c.smartLog(ns).AppendTo(nil)
	case wire.LogFirmwareSlot:
		page = (&wire.FirmwareLog{AFI: 1, FRS: [7]string{firmware}}).AppendTo(nil)
	case wire.LogChangedNamespaces:
		page = c.changedLog(g.Offset, len(out), g.RAE)
	case wire.LogCommandEffects:
		page = (&wire.CommandEffects{Admin: *adminEffects(c.sub.discovery), IO: ioCommands}).AppendTo(nil)
	case wire.LogFeatureEffects:
		var e wire.FeatureEffects
		for fid := range features {
			if f, there := c.feature(fid); there {
				e[fid] = wire.EffectsSupported | wire.EffectsFeatureController
				if f.namespaced {
					e[fid] = wire.EffectsSupported | wire.EffectsFeatureNamespace
				}
			}
		}
		page = e.AppendTo(nil)
	}
	if g.Offset > uint64(len(page)) {
		return bad(nvme.StatusInvalidField, locCDW12)
	}
	copy(out, page[g.Offset:])
	c.logRead(g)
	return ok(0)
}

// logs lists the log pages there are.
func (c *controller) logs() []uint8 {
	if c.sub.discovery {
		return []uint8{wire.LogSupportedPages, wire.LogError, wire.LogDiscovery}
	}
	return []uint8{wire.LogSupportedPages, wire.LogError, wire.LogSMART, wire.LogFirmwareSlot, wire.LogChangedNamespaces,
		wire.LogCommandEffects, wire.LogFeatureEffects}
}

func (c *controller) errorLog() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	page := make([]byte, 0, errorLogSize*wire.ErrorLogEntrySize)
	for _, e := range slices.Backward(c.errors) {
		page = e.AppendTo(page)
	}
	return page[:cap(page)]
}

// smartLog adds up what a namespace has done, or all of them.
func (c *controller) smartLog(ns *namespace) *wire.SMARTLog {
	s := &wire.SMARTLog{AvailableSpare: 100}
	var readBytes, writeBytes uint64
	add := func(ns *namespace) {
		readBytes += ns.readBytes.Load()
		writeBytes += ns.writeBytes.Load()
		s.HostReads.Lo += ns.reads.Load()
		s.HostWrites.Lo += ns.writes.Load()
		s.MediaErrors.Lo += ns.errors.Load()
	}
	if ns != nil {
		add(ns)
	} else {
		t := c.sub.namespaces.Load()
		for _, id := range t.ids {
			add(t.get(id))
		}
	}
	const unit = 1000 * 512
	s.DataUnitsRead.Lo = (readBytes + unit - 1) / unit
	s.DataUnitsWritten.Lo = (writeBytes + unit - 1) / unit
	s.PowerOnHours.Lo = uint64(c.srv.age().Hours())
	c.mu.Lock()
	s.ErrorLogEntries.Lo = c.errCount
	c.mu.Unlock()
	return s
}

// changedLog returns the changed namespace list. Reading its beginning to the end empties it.
func (c *controller) changedLog(offset uint64, n int, retain bool) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list wire.ChangedNamespaces
	for id := range c.changed {
		list.NSIDs = append(list.NSIDs, id)
	}
	slices.Sort(list.NSIDs)
	if !retain && offset+uint64(n) >= uint64(4*min(len(list.NSIDs), wire.MaxNamespaceList)) {
		clear(c.changed)
	}
	return list.AppendTo(nil)
}
