// Package nvmetest has what tests of an NVMe/TCP host or controller need: a scripted host and a scripted controller,
// which share no code with nvme/tcp, keep to the letter of the protocol by default and break any rule on demand, and a
// connection that fails as told.
package nvmetest

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"time"

	"hawser.dev/hawser/nvme/wire"
)

// hangTimeout bounds every wait for a peer, so that a test fails instead of hanging.
const hangTimeout = 30 * time.Second

// maxPDU bounds what a Conn reads.
const maxPDU = 64 << 20

// Conn is one end of a queue pair's connection. It sends whatever it is told, and refuses to read what breaks a rule
// of PDU framing (NVMe/TCP Transport 1.0, 3.6).
type Conn struct {
	net.Conn
	HDGST, DDGST bool // in use
	SendAlign    int  // of data sent, in bytes; 0: 4
	RecvAlign    int  // of data received, in bytes; 0: 4
}

// PDU is one PDU received.
type PDU struct {
	wire.Header
	Raw  []byte // the header with its HLEN bytes
	Data []byte
}

// Spec returns the PDU specific header: bytes 8 to HLEN.
func (p *PDU) Spec() []byte { return p.Raw[wire.HeaderSize:] }

func digest(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func digestible(t wire.PDUType) bool { return t > wire.TypeC2HTermReq }

// Frame returns the bytes of a PDU as the connection's parameters want it: digests, padding, PDO and PLEN. spec is
// what follows the common header.
func (c *Conn) Frame(t wire.PDUType, flags uint8, spec, data []byte) []byte {
	hlen := wire.HeaderSize + len(spec)
	end := hlen
	if c.HDGST && digestible(t) {
		flags |= wire.FlagHDGST
		end += wire.DigestSize
	}
	h := wire.Header{Type: t, Flags: flags, HLen: uint8(hlen), PLen: uint32(end)}
	tail := 0
	if len(data) > 0 && digestible(t) {
		align := max(c.SendAlign, 4)
		end = (end + align - 1) / align * align
		h.PDO = uint8(end)
		if c.DDGST {
			h.Flags |= wire.FlagDDGST
			tail = wire.DigestSize
		}
	}
	h.PLen = uint32(end + len(data) + tail)
	b := append(h.AppendTo(nil), spec...)
	if h.Flags&wire.FlagHDGST != 0 {
		b = binary.LittleEndian.AppendUint32(b, digest(b))
	}
	b = append(b, make([]byte, end-len(b))...)
	b = append(b, data...)
	if tail > 0 {
		b = binary.LittleEndian.AppendUint32(b, digest(data))
	}
	return b
}

// Resum puts the right header digest into b, a PDU that Frame made and a test changed.
func (c *Conn) Resum(b []byte) []byte {
	if c.HDGST && digestible(wire.PDUType(b[0])) {
		binary.LittleEndian.PutUint32(b[b[2]:], digest(b[:b[2]]))
	}
	return b
}

// SendPDU writes Frame's bytes.
func (c *Conn) SendPDU(t wire.PDUType, flags uint8, spec, data []byte) error {
	_, err := c.Write(c.Frame(t, flags, spec, data))
	return err
}

// flagsAllowed are the flags a PDU may have, digests aside.
func flagsAllowed(t wire.PDUType) uint8 {
	switch t {
	case wire.TypeH2CData:
		return wire.FlagLast
	case wire.TypeC2HData:
		return wire.FlagLast | wire.FlagSuccess
	}
	return 0
}

// ReadPDU reads a PDU. The error is io.EOF when the peer has closed between PDUs.
func (c *Conn) ReadPDU() (*PDU, error) {
	b := make([]byte, wire.HeaderSize, 256)
	if _, err := io.ReadFull(c.Conn, b); err != nil {
		return nil, err
	}
	p := &PDU{}
	if err := p.Parse(b); err != nil {
		return nil, err
	}
	broken := func(format string, args ...any) (*PDU, error) {
		return nil, fmt.Errorf("peer sent %v (% x): %s", p.Type, b[:8], fmt.Sprintf(format, args...))
	}
	hlen := int(p.Type.HLen())
	if hlen == 0 || int(p.HLen) != hlen {
		return broken("HLEN %d, want %d", p.HLen, hlen)
	}
	end := hlen
	digests := p.Flags & (wire.FlagHDGST | wire.FlagDDGST)
	if extra := p.Flags &^ digests &^ flagsAllowed(p.Type); extra != 0 {
		return broken("flags %02x are not allowed", extra)
	}
	if p.Flags&wire.FlagSuccess != 0 && p.Flags&wire.FlagLast == 0 {
		return broken("SUCCESS without LAST")
	}
	if want := c.HDGST && digestible(p.Type); want != (digests&wire.FlagHDGST != 0) {
		return broken("HDGSTF is %v, want %v", !want, want)
	} else if want {
		end += wire.DigestSize
	}
	if p.PLen < uint32(end) || p.PLen > maxPDU {
		return broken("PLEN %d with a header of %d bytes", p.PLen, end)
	}
	b = append(b, make([]byte, int(p.PLen)-len(b))...)
	if _, err := io.ReadFull(c.Conn, b[wire.HeaderSize:]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("in a %v of %d bytes: %w", p.Type, p.PLen, err)
	}
	p.Raw = b[:hlen:hlen]
	if digests&wire.FlagHDGST != 0 && binary.LittleEndian.Uint32(b[hlen:]) != digest(p.Raw) {
		return broken("header digest does not match")
	}
	hasData := len(b) > end
	if !digestible(p.Type) {
		if p.PDO != 0 {
			return broken("PDO %d, want 0", p.PDO)
		}
		p.Data = b[end:]
		return p, nil
	}
	if !hasData {
		if p.PDO != 0 || digests&wire.FlagDDGST != 0 {
			return broken("PDO %d or DDGSTF without data", p.PDO)
		}
		return p, nil
	}
	if align := max(c.RecvAlign, 4); int(p.PDO) < end || int(p.PDO) > len(b) || int(p.PDO)%align != 0 {
		return broken("PDO %d, want a multiple of %d from %d", p.PDO, align, end)
	}
	for _, v := range b[end:p.PDO] {
		if v != 0 {
			return broken("padding is not zero")
		}
	}
	p.Data = b[p.PDO:]
	if c.DDGST != (digests&wire.FlagDDGST != 0) {
		return broken("DDGSTF is %v, want %v", !c.DDGST, c.DDGST)
	}
	if c.DDGST {
		n := len(p.Data) - wire.DigestSize
		if n <= 0 {
			return broken("no room for data and its digest")
		}
		if binary.LittleEndian.Uint32(p.Data[n:]) != digest(p.Data[:n]) {
			return broken("data digest does not match")
		}
		p.Data = p.Data[:n:n]
	}
	return p, nil
}
