package tcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"hawser.dev/hawser/nvme/wire"
)

const (
	minReceive = 2 << 10 // before Connect: ICReq, a Connect capsule
	// One read takes as many PDUs as fit: a host gets data, a controller mostly commands.
	hostReceive   = 128 << 10
	targetReceive = 64 << 10

	// After a PDU with that much data the next read takes little beyond the
	// expected bytes, so that the data of the next PDU goes straight into the caller's buffer.
	bigPayload = 16 << 10
	readAhead  = 4 << 10
)

// role is the side-specific part of receiving.
type role interface {
	// check validates type, lengths and order of a PDU by its common header, before memory or data is taken.
	check(h wire.Header) *Error
	// header takes a whole, digest-checked header (bytes 0..HLEN). For a PDU with
	// data it returns where n data bytes go: dst of n bytes, or nil to throw them away.
	header(h wire.Header, b []byte) (dst []byte, n int, e *Error)
	// payload is called when the data of the last header is in; ok is false if its digest doesn't match.
	payload(ok bool) *Error
}

// receiver is the incoming half: it cuts the stream into PDUs and puts data
// where the role wants it. It belongs to the queue's loop.
type receiver struct {
	s    Stream
	role role
	buf  []byte
	r, w int

	hdgst, ddgst bool
	align        int // the alignment that the peer's PDO must have, in bytes

	dst    []byte // where the rest of the data goes; nil: nowhere
	remain int    // data bytes to come
	tail   bool   // a data digest follows
	inData bool
	crc    uint32
	last   int // data bytes of the last PDU
	hdr    wire.Header
	head   [wire.HLenCmd]byte // the header whose data is coming
	iov    [2][]byte
}

func (r *receiver) init(s Stream, role role) {
	r.s, r.role, r.align = s, role, 4
	r.buf = make([]byte, minReceive)
}

// grow makes room for busy connections.
func (r *receiver) grow(n int) {
	if n <= len(r.buf) {
		return
	}
	b := make([]byte, n)
	r.w = copy(b, r.buf[r.r:r.w])
	r.r, r.buf = 0, b
}

// fill makes one read. It returns ErrAgain, io.EOF or the stream's error.
func (r *receiver) fill(wait bool) (int, error) {
	if r.r > 0 {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	room := r.buf[r.w:]
	if r.last >= bigPayload && len(room) > readAhead {
		room = room[:readAhead]
	}
	direct := 0
	iov := r.iov[1:]
	if r.inData && r.w == 0 && r.dst != nil {
		direct = r.remain
		r.iov[0] = r.dst[:direct]
		iov = r.iov[:]
	}
	r.iov[1] = room
	n, err := r.s.Readv(iov, wait)
	r.iov[0], r.iov[1] = nil, nil
	if n > 0 && direct > 0 {
		k := min(n, direct)
		r.took(r.dst[:k])
		r.dst = r.dst[k:]
		r.remain -= k
		r.w += n - k
	} else {
		r.w += n
	}
	return n, err
}

func (r *receiver) took(b []byte) {
	if r.tail {
		r.crc = crc32.Update(r.crc, castagnoli, b)
	}
}

// parse hands over everything that is complete.
func (r *receiver) parse() *Error {
	for {
		if r.inData {
			if done, e := r.data(); e != nil || !done {
				return e
			}
			continue
		}
		b := r.buf[r.r:r.w]
		if len(b) < wire.HeaderSize {
			return nil
		}
		h := &r.hdr
		if err := h.Parse(b[:wire.HeaderSize]); err != nil {
			return &Error{Op: "receive", FES: wire.FESInvalidHeader, Err: err}
		}
		hlen := int(h.HLen)
		e := r.role.check(*h)
		if e == nil {
			e = r.frame(*h)
		}
		if e != nil {
			e.header = b[:min(len(b), max(hlen, wire.HeaderSize))]
			return e
		}
		need := hlen
		dgst := r.hdgst && h.Type > wire.TypeC2HTermReq
		if dgst {
			need += digestLen
		}
		if h.PDO > 0 && h.Type > wire.TypeC2HTermReq {
			need = int(h.PDO)
		}
		if len(b) < need {
			return nil
		}
		if dgst && binary.LittleEndian.Uint32(b[hlen:]) != crc32.Checksum(b[:hlen], castagnoli) {
			return &Error{Op: "receive", FES: wire.FESHeaderDigest, Err: fmt.Errorf("header digest of a type %#02x PDU does not match", uint8(h.Type)), header: b[:hlen]}
		}
		dst, n, e := r.role.header(*h, b[:hlen])
		if e != nil {
			e.header = b[:hlen]
			return e
		}
		r.r += need
		r.last = n
		if n > 0 {
			r.dst, r.remain, r.inData, r.crc = dst, n, true, 0
			copy(r.head[:], b[:hlen])
			r.tail = r.ddgst && h.Type > wire.TypeC2HTermReq
		}
	}
}

// data moves buffered bytes to where they belong; done when the PDU is complete.
func (r *receiver) data() (done bool, e *Error) {
	if r.remain > 0 {
		b := r.buf[r.r:r.w]
		b = b[:min(len(b), r.remain)]
		r.took(b)
		if r.dst != nil {
			r.dst = r.dst[copy(r.dst, b):]
		}
		r.r += len(b)
		if r.remain -= len(b); r.remain > 0 {
			return false, nil
		}
	}
	ok := true
	if r.tail {
		if r.w-r.r < digestLen {
			return false, nil
		}
		ok = binary.LittleEndian.Uint32(r.buf[r.r:]) == r.crc
		r.r += digestLen
	}
	r.inData, r.dst = false, nil
	if e = r.role.payload(ok); e != nil {
		e.header = r.head[:r.hdr.HLen]
	}
	return true, e
}

// frame checks what is the same for every PDU that carries HLEN, PDO, PLEN and digests.
func (r *receiver) frame(h wire.Header) *Error {
	if h.Type <= wire.TypeC2HTermReq {
		return nil
	}
	end := uint32(h.HLen)
	if want := r.hdgst; want != (h.Flags&wire.FlagHDGST != 0) {
		return invalid(1, "HDGSTF is %v, negotiated %v", !want, want)
	} else if want {
		end += digestLen
	}
	if h.PLen < end {
		return invalid(4, "PLEN %d is shorter than the header of %d bytes", h.PLen, end)
	}
	if h.PLen == end {
		if h.PDO != 0 && uint32(h.PDO) != end {
			return invalid(3, "PDO %d in a PDU without data", h.PDO)
		}
		return nil
	}
	if h.Type == wire.TypeCapsuleResp || h.Type == wire.TypeR2T {
		return invalid(4, "PLEN %d of a PDU that carries no data, want %d", h.PLen, end)
	}
	if uint32(h.PDO) < end || int(h.PDO)%r.align != 0 {
		return invalid(3, "PDO %d, want a multiple of %d from %d", h.PDO, r.align, end)
	}
	tail := uint32(0)
	if r.ddgst {
		tail = digestLen
	}
	if r.ddgst != (h.Flags&wire.FlagDDGST != 0) {
		return invalid(1, "DDGSTF is %v, negotiated %v", !r.ddgst, r.ddgst)
	}
	if h.PLen <= uint32(h.PDO)+tail {
		return invalid(4, "PLEN %d leaves no data after PDO %d", h.PLen, h.PDO)
	}
	return nil
}

// dataLen returns the data bytes of a PDU that frame has accepted.
func (r *receiver) dataLen(h wire.Header) int {
	if h.PDO == 0 || h.PLen <= uint32(h.PDO) {
		return 0
	}
	n := h.PLen - uint32(h.PDO)
	if r.ddgst {
		n -= digestLen
	}
	return int(n)
}

func invalid(offset uint32, format string, args ...any) *Error {
	return &Error{Op: "receive", FES: wire.FESInvalidHeader, FEI: offset, Err: fmt.Errorf(format, args...)}
}

func outOfOrder(format string, args ...any) *Error {
	return &Error{Op: "receive", FES: wire.FESSequence, Err: fmt.Errorf(format, args...)}
}

// readError names what a failed read means.
func readError(err error) error {
	if errors.Is(err, io.EOF) {
		return &Error{Op: "receive", Err: ErrPeerClosed}
	}
	return opError("receive", err)
}

// termReq builds the PDU that answers e (NVMe/TCP 3.6.2.4): at most 128 bytes
// of the offending header are echoed.
func termReq(p *pdu, t wire.PDUType, e *Error) {
	echo := append([]byte(nil), e.header[:min(len(e.header), wire.MaxTermReqData)]...)
	b := format{align: 4}.begin(p, t, 0, wire.HLenTermReq, nil)
	b = (&wire.TermReq{FES: e.FES, FEI: e.FEI}).AppendTo(b)
	p.hlen, p.data = len(b), echo
	binary.LittleEndian.PutUint32(p.hdr[4:], uint32(p.size()))
}

// parseTerm understands a TermReq of the peer.
func parseTerm(h wire.Header, b []byte) *Error {
	var t wire.TermReq
	if err := t.Parse(b[wire.HeaderSize:]); err != nil {
		return invalid(2, "%v", err)
	}
	return &Error{Op: "receive", FES: t.FES, FEI: t.FEI, Remote: true}
}
