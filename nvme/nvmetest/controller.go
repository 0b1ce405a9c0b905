package nvmetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
)

// Namespace is a namespace of a Controller.
type Namespace struct {
	Data      []byte // what it holds; a multiple of BlockSize
	BlockSize int    // 512 or 4096
	IDs       wire.NamespaceDescriptors
}

// Controller is a scripted subsystem with one dynamic controller after another. By default it does what a host may
// expect; a script takes over where it wants by OnICReq and OnCommand. The fields are set before Start.
type Controller struct {
	NQN        nvme.NQN
	CAP        wire.CAP
	Identify   wire.IdentifyController // CNTLID and SUBNQN are filled in
	Namespaces map[uint32]*Namespace
	MaxQueues  int // I/O queues
	// ICResp is what ICReq is answered with; Digest is the part of it that the host asks for.
	ICResp wire.ICResp
	// Entries and GENCTR are the discovery log.
	Entries []wire.DiscoveryEntry
	GENCTR  uint64
	// R2TData is the most data that one R2T asks for; 0: all of it.
	R2TData int

	// OnICReq is called for the ICReq of each connection. If it returns true it has done what is to be done.
	OnICReq func(q *Queue, r wire.ICReq) bool
	// OnCommand is called for each command. If it returns true it has done what is to be done.
	OnCommand func(q *Queue, c *Command) bool

	t     testing.TB
	mu    sync.Mutex
	wg    sync.WaitGroup
	ln    net.Listener
	open  map[*Queue]struct{}
	assoc map[uint16]*association
	ends  chan End
	last  uint16
	over  bool
}

// association is the state of one controller.
type association struct {
	cc   wire.CC
	csts wire.CSTS
	aers []*aer
	kato uint32
}

type aer struct {
	q   *Queue
	cid uint16
}

// End is how a connection ended.
type End struct {
	QID       uint16
	Connected bool          // Connect had succeeded
	TermReq   *wire.TermReq // what the host sent, if it did
	Echo      []byte        // the header in TermReq
	Err       error         // nil: the host closed between PDUs
}

// Command is a command that the host has sent.
type Command struct {
	wire.Command
	Data []byte // in the capsule
}

// Queue is one connection of a host. A script may use it in OnICReq and OnCommand only.
type Queue struct {
	*Conn
	C      *Controller
	QID    uint16
	CNTLID uint16
	ICReq  wire.ICReq

	connected bool
	quiet     bool // SQ flow control is off
	size      uint16
	sqhd      uint16
	ttag      uint16
	backlog   []*PDU
	a         *association
	wmu       sync.Mutex
}

// NewController returns a Controller with one namespace of 1 MiB, NSID 1.
func NewController(t testing.TB, nqn nvme.NQN) *Controller {
	c := &Controller{
		t:         t,
		NQN:       nqn,
		CAP:       wire.NewCAP(128, time.Second, wire.CAPCQR|wire.CAPCSSNVM),
		MaxQueues: 4,
		ICResp:    wire.ICResp{Digest: wire.DigestHeader | wire.DigestData, MaxH2CData: 128 << 10},
		Identify: wire.IdentifyController{
			SN: "nvmetest", MN: "Scripted", FR: "1", MDTS: 5, VER: wire.NewVersion(1, 4, 0), CNTRLTYPE: wire.CNTRLTypeIO,
			AERL: 3, ACL: 3, LPA: wire.LPAExtendedData, KAS: 1, SQES: wire.SQES64, CQES: wire.CQES16, MAXCMD: 128, NN: 1024,
			OAES: wire.NoticeNamespace, CTRATT: wire.CTRATTHostID128,
			ONCS: wire.ONCSDSM | wire.ONCSWriteZeroes | wire.ONCSCompare, VWC: wire.VWCPresent | wire.VWCFlushAll,
			SGLS: wire.SGLSSupported | wire.SGLSOffset, IOCCSZ: (wire.CommandSize + 4096) / 16, IORCSZ: 1, MSDBD: 1,
		},
		Namespaces: map[uint32]*Namespace{1: {Data: make([]byte, 1<<20), BlockSize: 512, IDs: wire.NamespaceDescriptors{UUID: nvme.UUID{1, 15: 1}}}},
		GENCTR:     1,
		open:       map[*Queue]struct{}{},
		assoc:      map[uint16]*association{},
		ends:       make(chan End, 1024),
	}
	t.Cleanup(c.Stop)
	return c
}

// Start listens on a loopback address and serves until the test ends. It returns the address.
func (c *Controller) Start() nvme.Addr {
	c.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	c.ln = ln
	c.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			c.Serve(conn)
		}
	})
	host, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		c.t.Fatal(err)
	}
	return nvme.Addr{Transport: nvme.TransportTCP, Host: host, Service: port}
}

// Dial returns the host's end of a new connection that needs no network; it fits host.Options.Dial.
func (c *Controller) Dial(context.Context, nvme.Addr) (net.Conn, error) {
	ours, theirs := net.Pipe()
	c.Serve(ours)
	return theirs, nil
}

// Stop closes every connection and waits until all is quiet. The end of the test does it too.
func (c *Controller) Stop() {
	if c.ln != nil {
		c.ln.Close()
	}
	c.mu.Lock()
	c.over = true
	for q := range c.open {
		q.Close()
	}
	c.mu.Unlock()
	c.wg.Wait()
}

// Serve runs a connection in the background.
func (c *Controller) Serve(conn net.Conn) {
	q := &Queue{Conn: &Conn{Conn: conn}, C: c}
	c.mu.Lock()
	c.open[q] = struct{}{}
	over := c.over
	c.mu.Unlock()
	if over {
		conn.Close()
	}
	c.wg.Go(func() {
		end := q.run()
		conn.Close()
		c.mu.Lock()
		delete(c.open, q)
		c.mu.Unlock()
		select {
		case c.ends <- end:
		default: // nobody looks
		}
	})
}

// WaitEnd returns how the next connection ended.
func (c *Controller) WaitEnd() End {
	c.t.Helper()
	select {
	case e := <-c.ends:
		return e
	case <-time.After(hangTimeout):
		c.t.Fatal("no connection ends")
		return End{}
	}
}

// WaitTermReq returns the first connection that ends with an H2CTermReq; those without are skipped.
func (c *Controller) WaitTermReq() End {
	c.t.Helper()
	for {
		if e := c.WaitEnd(); e.TermReq != nil {
			return e
		}
	}
}

// SetLog replaces the discovery log. A script may call it.
func (c *Controller) SetLog(genctr uint64, entries []wire.DiscoveryEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.GENCTR, c.Entries = genctr, entries
}

// Connections returns how many connections are open.
func (c *Controller) Connections() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}

// Event answers one Asynchronous Event Request of every association that has one waiting, and returns how many.
func (c *Controller) Event(e wire.AsyncEvent) (n int) {
	c.mu.Lock()
	var due []*aer
	for _, a := range c.assoc {
		if len(a.aers) > 0 {
			due = append(due, a.aers[0])
			a.aers = a.aers[1:]
		}
	}
	c.mu.Unlock()
	for _, r := range due {
		if r.q.complete(r.cid, nvme.StatusSuccess, uint64(e)) == nil {
			n++
		}
	}
	return n
}

// Gone reports an error that says no more than that the other side, or this one, has closed the connection.
func Gone(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, net.ErrClosed) || errors.As(err, &op)
}

// run serves the connection until it ends.
func (q *Queue) run() (end End) {
	var err error
	defer func() {
		end.QID, end.Connected = q.QID, q.connected
		if err != nil && err != io.EOF {
			end.Err = err
			if !Gone(err) {
				q.C.t.Errorf("queue %d: the host broke a rule: %v", q.QID, err)
			}
		}
	}()
	p, err := q.ReadPDU()
	if err != nil {
		return end
	}
	if p.Type != wire.TypeICReq {
		err = fmt.Errorf("host began with %v", p.Type)
		return end
	}
	if err = q.ICReq.Parse(p.Spec()); err != nil {
		return end
	}
	q.RecvAlign = int(q.C.ICResp.CPDA+1) * 4
	q.SendAlign = int(q.ICReq.HPDA+1) * 4
	if q.C.OnICReq == nil || !q.C.OnICReq(q, q.ICReq) {
		r := q.C.ICResp
		r.Digest &= q.ICReq.Digest
		if err = q.SendICResp(r); err != nil {
			return end
		}
	}
	for {
		if p, err = q.next(); err != nil {
			return end
		}
		switch p.Type {
		case wire.TypeCapsuleCmd:
			c := &Command{Data: p.Data}
			if err = c.Parse(p.Spec()); err != nil {
				return end
			}
			q.sqhd++
			if q.size > 0 {
				q.sqhd %= q.size
			}
			if q.C.OnCommand != nil && q.C.OnCommand(q, c) {
				continue
			}
			if err = q.Default(c); err != nil {
				return end
			}
		case wire.TypeH2CTermReq:
			end.TermReq, end.Echo = &wire.TermReq{}, p.Data
			if err = end.TermReq.Parse(p.Spec()); err != nil {
				return end
			}
		default:
			err = fmt.Errorf("unexpected %v", p.Type)
			return end
		}
	}
}

// next returns the next PDU: first what ReceiveData put aside.
func (q *Queue) next() (*PDU, error) {
	if len(q.backlog) > 0 {
		p := q.backlog[0]
		q.backlog = q.backlog[1:]
		return p, nil
	}
	return q.ReadPDU()
}

// Raw sends bytes as they are.
func (q *Queue) Raw(b []byte) error {
	q.wmu.Lock()
	defer q.wmu.Unlock()
	_, err := q.Write(b)
	return err
}

// SendICResp answers the ICReq and takes the digests of r into use.
func (q *Queue) SendICResp(r wire.ICResp) error {
	if err := q.Raw(q.Frame(wire.TypeICResp, 0, r.AppendTo(nil), nil)); err != nil {
		return err
	}
	q.HDGST, q.DDGST = r.Digest&wire.DigestHeader != 0, r.Digest&wire.DigestData != 0
	return nil
}

// Respond sends the response capsule of c.
func (q *Queue) Respond(c *Command, status nvme.Status, result uint64) error {
	return q.complete(c.CID, status, result)
}

func (q *Queue) complete(cid uint16, status nvme.Status, result uint64) error {
	r := wire.Completion{DW0: uint32(result), DW1: uint32(result >> 32), SQHD: q.sqhd, SQID: q.QID, CID: cid, Status: status}
	if q.quiet {
		r.SQHD = 0xffff
	}
	return q.Raw(q.Frame(wire.TypeCapsuleResp, 0, r.AppendTo(nil), nil))
}

// C2HData returns a C2HData PDU for c.
func (q *Queue) C2HData(c *Command, off int, data []byte, flags uint8) []byte {
	d := wire.DataPDU{CCCID: c.CID, Offset: uint32(off), Length: uint32(len(data))}
	return q.Frame(wire.TypeC2HData, flags, d.AppendTo(nil), data)
}

// SendData sends data for c in one C2HData PDU and the response capsule.
func (q *Queue) SendData(c *Command, data []byte) error {
	if len(data) > 0 {
		if err := q.Raw(q.C2HData(c, 0, data, wire.FlagLast)); err != nil {
			return err
		}
	}
	return q.Respond(c, nvme.StatusSuccess, 0)
}

// R2T returns an R2T for n bytes of c from off, and its tag.
func (q *Queue) R2T(c *Command, off, n int) ([]byte, uint16) {
	q.ttag++
	r := wire.R2T{CCCID: c.CID, TTAG: q.ttag, Offset: uint32(off), Length: uint32(n)}
	return q.Frame(wire.TypeR2T, 0, r.AppendTo(nil), nil), q.ttag
}

// ReceiveData reads the H2CData PDUs that answer an R2T for dst, off bytes into the data of c. Capsules between them
// are put aside. What breaks a rule is an error.
func (q *Queue) ReceiveData(c *Command, ttag uint16, dst []byte, off int) error {
	for got := 0; got < len(dst); {
		p, err := q.ReadPDU()
		if err != nil {
			return err
		}
		if p.Type != wire.TypeH2CData {
			q.backlog = append(q.backlog, p)
			if p.Type == wire.TypeH2CTermReq {
				return nil
			}
			continue
		}
		var d wire.DataPDU
		if err := d.Parse(p.Spec()); err != nil {
			return err
		}
		n := len(p.Data)
		last := p.Flags&wire.FlagLast != 0
		if d.CCCID != c.CID || d.TTAG != ttag || int(d.Offset) != off+got || int(d.Length) != n || n == 0 || got+n > len(dst) ||
			n > int(q.C.ICResp.MaxH2CData) || last != (got+n == len(dst)) {
			return fmt.Errorf("H2CData %+v with %d bytes, LAST %v: command %#x wants %d more from %d by tag %#x", d, n, last, c.CID, len(dst)-got, off+got, ttag)
		}
		got += copy(dst[got:], p.Data)
	}
	return nil
}

// Drain lets H2CData PDUs come that no script waits for, until the connection ends or another PDU comes.
func (q *Queue) Drain() {
	for {
		p, err := q.ReadPDU()
		if err != nil {
			return
		}
		if p.Type != wire.TypeH2CData {
			q.backlog = append(q.backlog, p)
			return
		}
	}
}

// Fetch returns the data that the host sends with c: what is in the capsule, or what R2Ts bring.
func (q *Queue) Fetch(c *Command) ([]byte, error) {
	if c.SGL.Type == wire.SGLInCapsule {
		return c.Data, nil
	}
	data := make([]byte, c.SGL.Length)
	step := q.C.R2TData
	if step == 0 {
		step = len(data)
	}
	for off := 0; off < len(data); off += step {
		n := min(step, len(data)-off)
		b, ttag := q.R2T(c, off, n)
		if err := q.Raw(b); err != nil {
			return nil, err
		}
		if err := q.ReceiveData(c, ttag, data[off:off+n], off); err != nil {
			return nil, err
		}
	}
	return data, nil
}

// Default does what a well-behaved controller does with c. An error ends the connection: the host broke a rule, or
// went away.
func (q *Queue) Default(c *Command) error {
	if c.PSDT() != 1 {
		return fmt.Errorf("command %02x with PSDT %d", c.Opcode, c.PSDT())
	}
	if sgl := c.SGL; sgl.Type == wire.SGLInCapsule && (sgl.Addr != 0 || int(sgl.Length) != len(c.Data)) ||
		sgl.Type == wire.SGLTransport && (sgl.Addr != 0 || len(c.Data) != 0) ||
		sgl.Type != wire.SGLInCapsule && sgl.Type != wire.SGLTransport {
		return fmt.Errorf("command %02x with SGL %+v and %d bytes in its capsule", c.Opcode, c.SGL, len(c.Data))
	}
	switch {
	case c.Fabrics():
		return q.fabrics(c)
	case !q.connected:
		return q.Respond(c, nvme.StatusCommandSequenceError|nvme.StatusDNR, 0)
	case q.QID == 0:
		return q.admin(c)
	}
	return q.io(c)
}

func (q *Queue) fabrics(c *Command) error {
	if c.FCType() == wire.FCTypeConnect && !q.connected {
		return q.connect(c)
	}
	if !q.connected || q.QID != 0 {
		return q.Respond(c, nvme.StatusInvalidOpcode|nvme.StatusDNR, 0)
	}
	offset, size, value := c.Property()
	q.C.mu.Lock()
	a := q.a
	status, result := nvme.StatusSuccess, uint64(0)
	switch {
	case c.FCType() == wire.FCTypePropertyGet && offset == wire.PropertyCAP && size == 8:
		result = uint64(q.C.CAP)
	case c.FCType() == wire.FCTypePropertyGet && offset == wire.PropertyVS && size == 4:
		result = uint64(q.C.Identify.VER)
	case c.FCType() == wire.FCTypePropertyGet && offset == wire.PropertyCC && size == 4:
		result = uint64(a.cc)
	case c.FCType() == wire.FCTypePropertyGet && offset == wire.PropertyCSTS && size == 4:
		result = uint64(a.csts)
	case c.FCType() == wire.FCTypePropertySet && offset == wire.PropertyCC && size == 4:
		a.cc = wire.CC(value)
		a.csts = 0
		switch {
		case a.cc.SHN() != 0:
			a.csts = wire.CSTSSHSTComplete
		case a.cc.Enabled() && (a.cc.IOSQES() != 6 || a.cc.IOCQES() != 4 || a.cc.MPS() != 0):
			a.csts = wire.CSTSFatal
		case a.cc.Enabled():
			a.csts = wire.CSTSReady
		}
	default:
		status = nvme.StatusInvalidField | nvme.StatusDNR
	}
	q.C.mu.Unlock()
	return q.Respond(c, status, result)
}

func (q *Queue) connect(c *Command) error {
	p := c.Connect()
	var d wire.ConnectData
	if err := d.Parse(c.Data); err != nil {
		return err
	}
	invalid := func(offset uint16, inData bool) error {
		return q.Respond(c, nvme.StatusConnectInvalidParameters|nvme.StatusDNR, uint64(wire.ConnectInvalid(offset, inData)))
	}
	ctl := q.C
	switch {
	case d.SubNQN != ctl.NQN:
		return invalid(wire.ConnectDataSubNQN, true)
	case d.HostNQN.Validate() != nil:
		return invalid(wire.ConnectDataHostNQN, true)
	case d.HostID.IsZero():
		return invalid(wire.ConnectDataHostID, true)
	case p.SQSize == 0:
		return invalid(wire.ConnectCmdSQSize, false)
	}
	ctl.mu.Lock()
	if p.QID == 0 {
		ctl.last++
		q.CNTLID = ctl.last
		ctl.assoc[q.CNTLID] = &association{kato: p.KATO}
	} else {
		q.CNTLID = d.CNTLID
	}
	q.a = ctl.assoc[q.CNTLID]
	ready := q.a != nil && (p.QID == 0 || q.a.csts.Ready())
	ctl.mu.Unlock()
	switch {
	case q.a == nil || p.QID == 0 && d.CNTLID != wire.CNTLIDDynamic:
		return invalid(wire.ConnectDataCNTLID, true)
	case int(p.QID) > ctl.MaxQueues || !ready:
		return invalid(wire.ConnectCmdQID, false)
	}
	q.connected, q.QID, q.size, q.quiet = true, p.QID, p.SQSize+1, p.CATTR&wire.ConnectDisableSQFlow != 0
	return q.Respond(c, nvme.StatusSuccess, uint64(q.CNTLID))
}

func (q *Queue) admin(c *Command) error {
	ctl := q.C
	invalid := nvme.StatusInvalidField | nvme.StatusDNR
	switch c.Opcode {
	case wire.OpKeepAlive:
		return q.Respond(c, nvme.StatusSuccess, 0)
	case wire.OpAER:
		ctl.mu.Lock()
		full := len(q.a.aers) > int(ctl.Identify.AERL)
		if !full {
			q.a.aers = append(q.a.aers, &aer{q, c.CID})
		}
		ctl.mu.Unlock()
		if full {
			return q.Respond(c, nvme.StatusAERLimitExceeded|nvme.StatusDNR, 0)
		}
		return nil
	case wire.OpAbort:
		return q.Respond(c, nvme.StatusSuccess, uint64(wire.AbortNotDone))
	case wire.OpIdentify:
		data := q.identify(c)
		if data == nil || c.SGL.Length != wire.IdentifySize {
			return q.Respond(c, invalid, 0)
		}
		return q.SendData(c, data)
	case wire.OpGetLogPage:
		data := ctl.logPage(c)
		if data == nil {
			return q.Respond(c, invalid, 0)
		}
		return q.SendData(c, data)
	case wire.OpGetFeatures, wire.OpSetFeatures:
		switch c.FID() {
		case wire.FeatureNumberOfQueues:
			return q.Respond(c, nvme.StatusSuccess, uint64(wire.QueueCount(min(wire.Queues(c.CDW11), ctl.MaxQueues))))
		case wire.FeatureKeepAlive:
			ctl.mu.Lock()
			if c.Opcode == wire.OpSetFeatures {
				q.a.kato = c.CDW11
			}
			kato := q.a.kato
			ctl.mu.Unlock()
			return q.Respond(c, nvme.StatusSuccess, uint64(kato))
		case wire.FeatureAsyncEvents:
			return q.Respond(c, nvme.StatusSuccess, 0)
		case wire.FeatureVolatileWriteCache:
			return q.Respond(c, nvme.StatusSuccess, 1)
		}
		return q.Respond(c, invalid, 0)
	}
	return q.Respond(c, nvme.StatusInvalidOpcode|nvme.StatusDNR, 0)
}

func (q *Queue) identify(c *Command) []byte {
	ctl := q.C
	ns := ctl.Namespaces[c.NSID]
	switch c.CNS() {
	case wire.CNSController:
		id := ctl.Identify
		id.CNTLID = q.CNTLID
		id.SUBNQN = ctl.NQN
		if ctl.NQN.Discovery() {
			id.CNTRLTYPE = wire.CNTRLTypeDiscovery
		}
		return id.AppendTo(nil)
	case wire.CNSActiveNamespaces:
		var list wire.NamespaceList
		for nsid := range ctl.Namespaces {
			if nsid > c.NSID {
				list = append(list, nsid)
			}
		}
		slices.Sort(list)
		return list.AppendTo(nil)
	case wire.CNSCommandSetController:
		return (&wire.IdentifyControllerNVM{}).AppendTo(nil)
	case wire.CNSNamespace:
		id := wire.IdentifyNamespace{}
		if ns != nil {
			n := uint64(len(ns.Data) / ns.BlockSize)
			id.NSZE, id.NCAP, id.NUSE = n, n, n
			id.NMIC, id.DLFEAT = wire.NMICShared, wire.DLFEATZeroes
			id.NGUID, id.EUI64 = ns.IDs.NGUID, ns.IDs.EUI64
			id.LBAF[0].DS = uint8(bits.TrailingZeros(uint(ns.BlockSize)))
		}
		return id.AppendTo(nil)
	case wire.CNSNamespaceDescriptors:
		if ns != nil {
			return ns.IDs.AppendTo(nil)
		}
	}
	return nil
}

// logPage returns what a Get Log Page asks for, nil if there is no such page.
func (c *Controller) logPage(cmd *Command) []byte {
	p := cmd.GetLogPage()
	var page []byte
	switch p.LID {
	case wire.LogDiscovery:
		c.mu.Lock()
		page = DiscoveryLog(c.GENCTR, c.Entries)
		c.mu.Unlock()
	case wire.LogSMART:
		page = (&wire.SMARTLog{Temperature: 300, AvailableSpare: 100}).AppendTo(nil)
	case wire.LogChangedNamespaces:
		page = (&wire.ChangedNamespaces{}).AppendTo(nil)
	default:
		return nil
	}
	if p.Offset%4 != 0 || p.Offset > uint64(len(page)) || p.Length > 4<<20 || uint64(cmd.SGL.Length) != p.Length {
		return nil
	}
	data := make([]byte, p.Length)
	copy(data, page[p.Offset:])
	return data
}

// DiscoveryLog returns a discovery log page.
func DiscoveryLog(genctr uint64, entries []wire.DiscoveryEntry) []byte {
	b := (&wire.DiscoveryHeader{GENCTR: genctr, NUMREC: uint64(len(entries))}).AppendTo(nil)
	for i := range entries {
		b = entries[i].AppendTo(b)
	}
	return b
}

func (q *Queue) io(c *Command) error {
	if c.Opcode == wire.OpFlush {
		return q.Respond(c, nvme.StatusSuccess, 0)
	}
	ns := q.C.Namespaces[c.NSID]
	if ns == nil {
		return q.Respond(c, nvme.StatusInvalidNamespace|nvme.StatusDNR, 0)
	}
	if c.Opcode == wire.OpDSM {
		return q.dsm(c, ns)
	}
	blocks := uint64(len(ns.Data) / ns.BlockSize)
	n := uint64(c.Blocks())
	if c.SLBA() > blocks || n > blocks-c.SLBA() {
		return q.Respond(c, nvme.StatusLBAOutOfRange|nvme.StatusDNR, 0)
	}
	from, to := c.SLBA()*uint64(ns.BlockSize), (c.SLBA()+n)*uint64(ns.BlockSize)
	if c.Opcode != wire.OpWriteZeroes && uint64(c.SGL.Length) != to-from {
		return q.Respond(c, nvme.StatusDataSGLLengthInvalid|nvme.StatusDNR, 0)
	}
	var in []byte
	if c.Opcode == wire.OpWrite || c.Opcode == wire.OpCompare {
		var err error
		if in, err = q.Fetch(c); err != nil {
			return err
		}
	}
	q.C.mu.Lock()
	status := nvme.StatusSuccess
	var out []byte
	switch c.Opcode {
	case wire.OpRead:
		out = slices.Clone(ns.Data[from:to])
	case wire.OpWrite:
		copy(ns.Data[from:to], in)
	case wire.OpCompare:
		if !slices.Equal(ns.Data[from:to], in) {
			status = nvme.StatusCompareFailure | nvme.StatusDNR
		}
	case wire.OpWriteZeroes:
		clear(ns.Data[from:to])
	default:
		status = nvme.StatusInvalidOpcode | nvme.StatusDNR
	}
	q.C.mu.Unlock()
	if out != nil {
		return q.SendData(c, out)
	}
	return q.Respond(c, status, 0)
}

func (q *Queue) dsm(c *Command, ns *Namespace) error {
	data, err := q.Fetch(c)
	if err != nil {
		return err
	}
	n := c.DSMRanges() * wire.DSMRangeSize
	if len(data) < n {
		return q.Respond(c, nvme.StatusInvalidField|nvme.StatusDNR, 0)
	}
	data = data[:n] // Linux always sends room for all ranges
	blocks := uint64(len(ns.Data) / ns.BlockSize)
	for ; len(data) > 0; data = data[wire.DSMRangeSize:] {
		var r wire.DSMRange
		if err := r.Parse(data[:wire.DSMRangeSize]); err != nil {
			return err
		}
		if r.SLBA > blocks || uint64(r.Blocks) > blocks-r.SLBA {
			return q.Respond(c, nvme.StatusLBAOutOfRange|nvme.StatusDNR, 0)
		}
		if c.CDW11&wire.DSMDeallocate != 0 {
			q.C.mu.Lock()
			clear(ns.Data[r.SLBA*uint64(ns.BlockSize) : (r.SLBA+uint64(r.Blocks))*uint64(ns.BlockSize)])
			q.C.mu.Unlock()
		}
	}
	return q.Respond(c, nvme.StatusSuccess, 0)
}
