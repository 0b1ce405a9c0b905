package nvmetest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
)

// HostOptions say how a Host connects. The zero value of a field is its default.
type HostOptions struct {
	SubNQN  nvme.NQN
	HostNQN nvme.NQN  // made of HostID
	HostID  nvme.UUID // 1
	IC      wire.ICReq
	SQSize  uint16 // 0's based; 31
	CATTR   uint8
	KATO    uint32 // ms
	Wrap    func(net.Conn) net.Conn
}

func (o HostOptions) withDefaults() HostOptions {
	if o.HostID.IsZero() {
		o.HostID = nvme.UUID{15: 1}
	}
	if o.HostNQN == "" {
		o.HostNQN = nvme.UUIDNQN(o.HostID)
	}
	if o.SQSize == 0 {
		o.SQSize = 31
	}
	return o
}

// Host is a scripted host's end of one queue. Its methods fail the test when the controller does not do what they
// wait for.
type Host struct {
	*Conn
	TCP    *net.TCPConn // under Conn
	ICResp wire.ICResp
	CNTLID uint16
	QID    uint16
	// InCapsule is how much data Do puts in a capsule; 8 KiB.
	InCapsule int

	t    testing.TB
	addr string
	opts HostOptions
	cid  uint16
}

// Dial makes a TCP connection to addr and nothing more.
func Dial(t testing.TB, addr string, o HostOptions) *Host {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, hangTimeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(hangTimeout))
	tcp := conn.(*net.TCPConn)
	if o.Wrap != nil {
		conn = o.Wrap(conn)
	}
	return &Host{Conn: &Conn{Conn: conn}, t: t, TCP: tcp, addr: addr, opts: o.withDefaults(), InCapsule: wire.MaxInCapsule}
}

// Open dials and makes the ICReq/ICResp handshake.
func Open(t testing.TB, addr string, o HostOptions) *Host {
	t.Helper()
	h := Dial(t, addr, o)
	h.Handshake()
	return h
}

// ConnectAdmin opens an admin queue, connects it and enables the controller.
func ConnectAdmin(t testing.TB, addr string, o HostOptions) *Host {
	t.Helper()
	h := Open(t, addr, o)
	h.MustConnect(0, wire.CNTLIDDynamic)
	h.Enable()
	return h
}

// ConnectIO opens I/O queue qid of the controller whose admin queue h is.
func (h *Host) ConnectIO(qid uint16) *Host {
	h.t.Helper()
	q := Open(h.t, h.addr, h.opts)
	q.MustConnect(qid, h.CNTLID)
	return q
}

// Handshake sends the ICReq of the options and takes the connection's parameters from the ICResp.
func (h *Host) Handshake() {
	h.t.Helper()
	h.Raw(h.Frame(wire.TypeICReq, 0, h.opts.IC.AppendTo(nil), nil))
	p := h.Expect(wire.TypeICResp)
	if err := h.ICResp.Parse(p.Spec()); err != nil {
		h.t.Fatal(err)
	}
	r := h.ICResp
	if r.PFV != 0 || r.CPDA > wire.MaxPDA || r.Digest&^h.opts.IC.Digest != 0 || r.MaxH2CData < wire.MinMaxH2CData || r.MaxH2CData%4 != 0 || len(p.Data) != 0 {
		h.t.Fatalf("ICResp %+v", r)
	}
	h.HDGST, h.DDGST = r.Digest&wire.DigestHeader != 0, r.Digest&wire.DigestData != 0
	h.SendAlign, h.RecvAlign = int(r.CPDA+1)*4, int(h.opts.IC.HPDA+1)*4
}

// Raw sends bytes as they are.
func (h *Host) Raw(b []byte) {
	h.t.Helper()
	if _, err := h.Write(b); err != nil {
		h.t.Fatalf("send: %v", err)
	}
}

// CloseWrite ends the sending side: the controller reads EOF.
func (h *Host) CloseWrite() {
	h.t.Helper()
	if err := h.TCP.CloseWrite(); err != nil {
		h.t.Fatal(err)
	}
}

// NextCID returns a command identifier that was not used lately.
func (h *Host) NextCID() uint16 {
	h.cid++
	return h.cid
}

// Capsule returns the CapsuleCmd of cmd with a new CID, which it also returns, and data in the capsule. Without data
// the SGL is cmd's.
func (h *Host) Capsule(cmd wire.Command, data []byte) ([]byte, uint16) {
	cmd.CID = h.NextCID()
	if len(data) > 0 {
		cmd.SGL = wire.SGL{Type: wire.SGLInCapsule, Length: uint32(len(data))}
	}
	return h.Frame(wire.TypeCapsuleCmd, 0, cmd.AppendTo(nil), data), cmd.CID
}

// Send sends Capsule's bytes.
func (h *Host) Send(cmd wire.Command, data []byte) uint16 {
	h.t.Helper()
	b, cid := h.Capsule(cmd, data)
	h.Raw(b)
	return cid
}

// SendTransport sends cmd with an SGL for n bytes that do not travel in the capsule.
func (h *Host) SendTransport(cmd wire.Command, n int) uint16 {
	h.t.Helper()
	cmd.SGL = wire.SGL{Type: wire.SGLTransport, Length: uint32(n)}
	return h.Send(cmd, nil)
}

// Read reads a PDU.
func (h *Host) Read() *PDU {
	h.t.Helper()
	p, err := h.ReadPDU()
	if err != nil {
		h.t.Fatalf("receive: %v", err)
	}
	if p.Type == wire.TypeC2HTermReq {
		var term wire.TermReq
		err := term.Parse(p.Spec())
		h.t.Fatalf("controller ended the connection: %s, FEI %d, % x (%v)", wire.FESString(term.FES), term.FEI, p.Data, err)
	}
	return p
}

// Expect reads a PDU, which must be of type t.
func (h *Host) Expect(t wire.PDUType) *PDU {
	h.t.Helper()
	p := h.Read()
	if p.Type != t {
		h.t.Fatalf("controller sent %v (% x), want %v", p.Type, p.Raw, t)
	}
	return p
}

// ExpectResp reads the response capsule of command cid.
func (h *Host) ExpectResp(cid uint16) wire.Completion {
	h.t.Helper()
	return h.completion(h.Expect(wire.TypeCapsuleResp), cid)
}

func (h *Host) completion(p *PDU, cid uint16) wire.Completion {
	h.t.Helper()
	var c wire.Completion
	if err := c.Parse(p.Spec()); err != nil {
		h.t.Fatal(err)
	}
	if c.CID != cid || p.Raw[22]&1 != 0 {
		h.t.Fatalf("response %+v, phase %d, want command %#x", c, p.Raw[22]&1, cid)
	}
	return c
}

// ExpectStatus reads the response capsule of command cid, whose status must be want, DNR and More aside.
func (h *Host) ExpectStatus(cid uint16, want nvme.Status) wire.Completion {
	h.t.Helper()
	c := h.ExpectResp(cid)
	if c.Status.Code() != want.Code() {
		h.t.Fatalf("status %v, want %v", c.Status, want)
	}
	return c
}

// ExpectR2T reads an R2T for command cid that stays within n bytes of data.
func (h *Host) ExpectR2T(cid uint16, n int) wire.R2T {
	h.t.Helper()
	var r wire.R2T
	if err := r.Parse(h.Expect(wire.TypeR2T).Spec()); err != nil {
		h.t.Fatal(err)
	}
	if r.CCCID != cid || r.Length == 0 || uint64(r.Offset)+uint64(r.Length) > uint64(n) {
		h.t.Fatalf("R2T %+v for command %#x of %d bytes", r, cid, n)
	}
	return r
}

// H2CData sends data[off:off+n] in one H2CData PDU.
func (h *Host) H2CData(cid, ttag uint16, data []byte, off, n int, last bool) {
	h.t.Helper()
	h.Raw(h.Frame(wire.TypeH2CData, flag(last, wire.FlagLast),
		(&wire.DataPDU{CCCID: cid, TTAG: ttag, Offset: uint32(off), Length: uint32(n)}).AppendTo(nil), data[off:off+n]))
}

// AnswerR2T sends the part of data that r asks for in PDUs of at most size bytes, or MAXH2CDATA if size is 0.
func (h *Host) AnswerR2T(r wire.R2T, data []byte, size int) {
	h.t.Helper()
	if size == 0 {
		size = int(h.ICResp.MaxH2CData)
	}
	for off, end := int(r.Offset), int(r.Offset+r.Length); off < end; {
		n := min(size, end-off)
		h.H2CData(r.CCCID, r.TTAG, data, off, n, off+n == end)
		off += n
	}
}

func flag(on bool, f uint8) uint8 {
	if on {
		return f
	}
	return 0
}

// Do runs a command to its end: out is the data it sends, n the bytes it reads. It returns the completion and what
// was read.
func (h *Host) Do(cmd wire.Command, out []byte, n int) (wire.Completion, []byte) {
	h.t.Helper()
	var cid uint16
	if len(out) > 0 && len(out) <= h.InCapsule {
		cid = h.Send(cmd, out)
	} else {
		cid = h.SendTransport(cmd, max(len(out), n))
	}
	var in []byte
	asked := 0
	for {
		p := h.Read()
		switch p.Type {
		case wire.TypeR2T:
			var r wire.R2T
			if err := r.Parse(p.Spec()); err != nil {
				h.t.Fatal(err)
			}
			if r.CCCID != cid || int(r.Offset) != asked || r.Length == 0 || int64(r.Offset)+int64(r.Length) > int64(len(out)) {
				h.t.Fatalf("R2T %+v for command %#x with %d bytes, %d asked for before", r, cid, len(out), asked)
			}
			asked += int(r.Length)
			h.AnswerR2T(r, out, 0)
		case wire.TypeC2HData:
			var d wire.DataPDU
			if err := d.Parse(p.Spec()); err != nil {
				h.t.Fatal(err)
			}
			if d.CCCID != cid || int(d.Offset) != len(in) || int(d.Length) != len(p.Data) || len(in)+len(p.Data) > n {
				h.t.Fatalf("C2HData %+v with %d bytes for command %#x, which has %d of %d", d, len(p.Data), cid, len(in), n)
			}
			in = append(in, p.Data...)
			if p.Flags&wire.FlagSuccess != 0 {
				return wire.Completion{CID: cid}, in
			}
		case wire.TypeCapsuleResp:
			return h.completion(p, cid), in
		default:
			h.t.Fatalf("controller sent %v", p.Type)
		}
	}
}

// Must is Do for a command that has to succeed, with all its data. It returns dwords 0 and 1 of the completion and
// the data.
func (h *Host) Must(cmd wire.Command, out []byte, n int) (uint64, []byte) {
	h.t.Helper()
	c, in := h.Do(cmd, out, n)
	if !c.Status.OK() || len(in) != n {
		h.t.Fatalf("%s: %v, %d of %d bytes", wire.CommandName(&cmd, h.QID == 0), c.Status, len(in), n)
	}
	return c.Result(), in
}

// ConnectData returns the options' connect data.
func (h *Host) ConnectData(cntlid uint16) wire.ConnectData {
	return wire.ConnectData{HostID: h.opts.HostID, CNTLID: cntlid, SubNQN: h.opts.SubNQN, HostNQN: h.opts.HostNQN}
}

// ConnectCmd returns the options' Connect.
func (h *Host) ConnectCmd(qid uint16) wire.Connect {
	c := wire.Connect{QID: qid, SQSize: h.opts.SQSize, CATTR: h.opts.CATTR}
	if qid == 0 {
		c.KATO = h.opts.KATO
	}
	return c
}

// Connect sends Connect and returns its completion.
func (h *Host) Connect(p wire.Connect, d wire.ConnectData) wire.Completion {
	h.t.Helper()
	c, _ := h.Do(p.Command(), d.AppendTo(nil), 0)
	return c
}

// MustConnect connects queue qid with the options.
func (h *Host) MustConnect(qid, cntlid uint16) {
	h.t.Helper()
	c := h.Connect(h.ConnectCmd(qid), h.ConnectData(cntlid))
	if !c.Status.OK() {
		h.t.Fatalf("connect queue %d: %v, result %#x", qid, c.Status, c.DW0)
	}
	h.QID, h.CNTLID = qid, uint16(c.DW0)
}

// Property reads a property.
func (h *Host) Property(offset uint32, size int) uint64 {
	h.t.Helper()
	v, _ := h.Must(wire.PropertyGetCmd(offset, size), nil, 0)
	return v
}

// Enable sets CC.EN and waits for CSTS.RDY.
func (h *Host) Enable() {
	h.t.Helper()
	h.Must(wire.PropertySetCmd(wire.PropertyCC, 4, uint64(wire.CCIOEntries|wire.CCEnable)), nil, 0)
	for !wire.CSTS(h.Property(wire.PropertyCSTS, 4)).Ready() {
		// Each round waits for the controller's answer, and the connection's deadline ends them.
	}
}

// ExpectEnd waits for the controller to end the connection, discarding what else it sends. It returns the TermReq, or
// nil if there was none, and the header echoed in it.
func (h *Host) ExpectEnd() (*wire.TermReq, []byte) {
	h.t.Helper()
	var term *wire.TermReq
	var echo []byte
	for {
		p, err := h.ReadPDU()
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				h.t.Fatal("the controller does not end the connection")
			}
			var op *net.OpError
			if err != io.EOF && !errors.As(err, &op) && !errors.Is(err, io.ErrUnexpectedEOF) {
				h.t.Fatalf("waiting for the end: %v", err)
			}
			return term, echo
		}
		if term != nil {
			h.t.Fatalf("the controller sent %v after C2HTermReq", p.Type)
		}
		if p.Type == wire.TypeC2HTermReq {
			term = &wire.TermReq{}
			if err := term.Parse(p.Spec()); err != nil {
				h.t.Fatal(err)
			}
			if echo = p.Data; len(echo) == 0 || len(echo) > wire.MaxTermReqData {
				h.t.Fatalf("C2HTermReq with %d bytes of data", len(echo))
			}
		}
	}
}

// ExpectTermReq waits for a C2HTermReq with fes, fei and the header of the PDU it is about (offending, of which the
// controller may return no more than it needed), and for the end of the connection.
func (h *Host) ExpectTermReq(fes uint16, fei uint32, offending []byte) {
	h.t.Helper()
	term, echo := h.ExpectEnd()
	switch {
	case term == nil:
		h.t.Fatalf("connection ended without C2HTermReq, want FES %02x", fes)
	case term.FES != fes || term.FEI != fei:
		h.t.Fatalf("C2HTermReq with FES %02x (%s) FEI %d, want FES %02x FEI %d", term.FES, wire.FESString(term.FES), term.FEI, fes, fei)
	case len(echo) < wire.HeaderSize || !bytes.HasPrefix(offending, echo):
		h.t.Fatalf("C2HTermReq echoes % x, sent % x", echo, offending[:min(len(offending), wire.MaxTermReqData)])
	}
}
