package tcp

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
)

// script is a Stream that has a fixed input, cut into reads of a size, and takes any output.
type script struct {
	in   []byte
	step int
	mu   sync.Mutex
	shut bool
}

func (s *script) Readv(bufs [][]byte, _ bool) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return 0, net.ErrClosed
	}
	if len(s.in) == 0 {
		return 0, io.EOF
	}
	n, left := 0, s.step
	for _, b := range bufs {
		k := copy(b[:min(len(b), left)], s.in)
		s.in = s.in[k:]
		n += k
		left -= k
	}
	return n, nil
}

func (s *script) Writev(bufs [][]byte, _ bool) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return 0, net.ErrClosed
	}
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	return n, nil
}

func (s *script) CloseWrite() error { return nil }
func (s *script) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut = true
	return nil
}
func (s *script) Abort() error         { return s.Close() }
func (s *script) LocalAddr() net.Addr  { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr { return &net.TCPAddr{} }

func message(f format, t wire.PDUType, flags uint8, hlen int, data []byte, body interface{ AppendTo([]byte) []byte }) []byte {
	var p pdu
	b := f.begin(&p, t, flags, hlen, data)
	body.AppendTo(b)
	f.finish(&p, hlen)
	return append(append(append([]byte(nil), p.hdr[:p.hlen]...), data...), p.ddgst[:p.dlen]...)
}

var plain = format{align: 4}

func command(cid uint16, op uint8, sgl wire.SGL) *wire.Command {
	return &wire.Command{Opcode: op, Flags: wire.CmdPSDT, CID: cid, SGL: sgl}
}

// FuzzTarget sends a controller anything, in pieces of any size. Whatever comes, it ends and has released every command.
func FuzzTarget(f *testing.F) {
	ic := message(plain, wire.TypeICReq, 0, wire.HLenICReq, nil, &wire.ICReq{})
	sums := message(plain, wire.TypeICReq, 0, wire.HLenICReq, nil, &wire.ICReq{HPDA: 31, Digest: 3})
	connect := message(plain, wire.TypeCapsuleCmd, 0, wire.HLenCmd, make([]byte, 1024), &wire.Command{Opcode: wire.OpFabrics, Flags: wire.CmdPSDT, NSID: 1, SGL: wire.SGL{Length: 1024, Type: wire.SGLInCapsule}})
	write := message(plain, wire.TypeCapsuleCmd, 0, wire.HLenCmd, nil, command(7, wire.OpWrite, wire.SGL{Length: 8192, Type: wire.SGLTransport}))
	inline := message(plain, wire.TypeCapsuleCmd, 0, wire.HLenCmd, make([]byte, 512), command(8, wire.OpWrite, wire.SGL{Length: 512, Type: wire.SGLInCapsule}))
	read := message(plain, wire.TypeCapsuleCmd, 0, wire.HLenCmd, nil, command(9, wire.OpRead, wire.SGL{Length: 4096, Type: wire.SGLTransport}))
	data := message(plain, wire.TypeH2CData, wire.FlagLast, wire.HLenData, make([]byte, 4096), &wire.DataPDU{CCCID: 7, TTAG: MaxDepth, Length: 4096})
	term := message(plain, wire.TypeH2CTermReq, 0, wire.HLenTermReq, make([]byte, 8), &wire.TermReq{FES: 2})
	cat := func(parts ...[]byte) (b []byte) {
		for _, p := range parts {
			b = append(b, p...)
		}
		return b
	}
	f.Add(cat(ic, connect, write, data, data, inline, read), uint16(4000))
	f.Add(cat(ic, connect, read, read, write, write), uint16(1))
	f.Add(cat(ic, connect, term), uint16(77))
	f.Add(cat(sums, message(format{hdgst: true, ddgst: true, align: 4}, wire.TypeCapsuleCmd, 0, wire.HLenCmd, make([]byte, 1024), &wire.Command{Opcode: wire.OpFabrics, Flags: wire.CmdPSDT, NSID: 1, SGL: wire.SGL{Length: 1024, Type: wire.SGLInCapsule}})), uint16(500))
	f.Fuzz(func(t *testing.T, in []byte, step uint16) {
		h := &ram{mem: make([]byte, 64<<10)}
		c := &connected{ram: h, depth: 8}
		c.q = NewTargetQueue(&script{in: in, step: int(step) + 1}, TargetConfig{Handler: c, MaxInCapsule: 4096, MaxH2CData: 4096, MaxR2TData: 4096, MaxTransfer: 32 << 10})
		c.q.Run()
		if h.begun != h.released {
			t.Errorf("%d commands begun, %d released", h.begun, h.released)
		}
	})
}

// FuzzHost answers a host with anything. Whatever comes, every Request is
// back, and none has succeeded that was not answered in full.
func FuzzHost(f *testing.F) {
	ic := message(plain, wire.TypeICResp, 0, wire.HLenICReq, nil, &wire.ICResp{MaxH2CData: 4096})
	const cid = MaxDepth
	cqe := func(i uint16) []byte {
		return message(plain, wire.TypeCapsuleResp, 0, wire.HLenResp, nil, &wire.Completion{CID: cid + i})
	}
	part := func(off, n uint32, flags uint8) []byte {
		return message(plain, wire.TypeC2HData, flags, wire.HLenData, make([]byte, n), &wire.DataPDU{CCCID: cid, Offset: off, Length: n})
	}
	r2t := message(plain, wire.TypeR2T, 0, wire.HLenR2T, nil, &wire.R2T{CCCID: cid + 1, TTAG: 5, Length: 8192})
	term := message(plain, wire.TypeC2HTermReq, 0, wire.HLenTermReq, make([]byte, 8), &wire.TermReq{FES: 2})
	cat := func(parts ...[]byte) (b []byte) {
		for _, p := range parts {
			b = append(b, p...)
		}
		return b
	}
	f.Add(cat(part(0, 4096, 0), part(4096, 4096, wire.FlagLast|wire.FlagSuccess), r2t, cqe(1), cqe(2)), uint16(5000))
	f.Add(cat(part(0, 8192, wire.FlagLast), cqe(0), r2t, r2t), uint16(1))
	f.Add(cat(cqe(2), cqe(2)), uint16(100))
	f.Add(term, uint16(100))
	f.Fuzz(func(t *testing.T, in []byte, step uint16) {
		s := &script{in: append(append([]byte(nil), ic...), in...), step: int(step) + 1}
		s.step = max(s.step, 1)
		q, err := OpenHost(context.Background(), s, HostConfig{Depth: 4})
		if err != nil {
			return
		}
		back := 0
		done := func(*Request) { back++ }
		reqs := []*Request{{Data: make([]byte, 8192), Done: done}, {Data: make([]byte, 8192), Done: done}, {Done: done}}
		reqs[0].Cmd.Opcode, reqs[1].Cmd.Opcode, reqs[2].Cmd.Opcode = wire.OpRead, wire.OpWrite, wire.OpFlush
		q.Submit(reqs...)
		q.Run()
		if back != len(reqs) {
			t.Errorf("%d of %d requests are back", back, len(reqs))
		}
		if r := reqs[0]; r.Err == nil && r.Completion.Status == nvme.StatusSuccess && len(in) < 8192 {
			t.Error("a read has succeeded without its data")
		}
	})
}
