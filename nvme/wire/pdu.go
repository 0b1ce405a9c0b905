// Package wire encodes and decodes what NVMe over TCP carries: PDU headers, commands, completions, and the data
// structures of Connect, Identify and Get Log Page. It does no I/O.
//
// Each structure has AppendTo, which appends its encoding to a slice, and Parse, which reads it back. Parse checks
// what must hold for the bytes to be read safely (lengths, counts, terminators) and reports an *Error; whether the
// values make sense is the caller's to decide. Reserved bytes are zero when sent and ignored when received. All
// fields are little-endian. Framing (digests, padding, PDO, PLEN) is not done here.
package wire

import (
	"encoding/binary"
	"fmt"
)

var le = binary.LittleEndian

// Error says why bytes are not the structure they should be.
type Error struct {
	Struct string // the structure, by its name in the specification
	Field  string // the field, "" for the structure as a whole
	Offset int    // of the field from the start of the PDU header, or of the structure if it is no PDU header
	Reason string
}

func (e *Error) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("%s: %s", e.Struct, e.Reason)
	}
	return fmt.Sprintf("%s: %s at byte %d: %s", e.Struct, e.Field, e.Offset, e.Reason)
}

// Kept out of line so that Parse can be inlined.
//
//go:noinline
func lengthError(name string, want, have int) error {
	return &Error{Struct: name, Reason: fmt.Sprintf("%d bytes, want %d", have, want)}
}

//go:noinline
func shortError(name string, want, have int) error {
	return &Error{Struct: name, Reason: fmt.Sprintf("%d bytes, want at least %d", have, want)}
}

// PDUType is the first byte of a PDU (NVMe/TCP Transport 1.0, 3.6.1).
type PDUType uint8

const (
	TypeICReq       PDUType = 0x00
	TypeICResp      PDUType = 0x01
	TypeH2CTermReq  PDUType = 0x02
	TypeC2HTermReq  PDUType = 0x03
	TypeCapsuleCmd  PDUType = 0x04
	TypeCapsuleResp PDUType = 0x05
	TypeH2CData     PDUType = 0x06
	TypeC2HData     PDUType = 0x07
	TypeR2T         PDUType = 0x09
)

func (t PDUType) String() string {
	switch t {
	case TypeICReq:
		return "ICReq"
	case TypeICResp:
		return "ICResp"
	case TypeH2CTermReq:
		return "H2CTermReq"
	case TypeC2HTermReq:
		return "C2HTermReq"
	case TypeCapsuleCmd:
		return "CapsuleCmd"
	case TypeCapsuleResp:
		return "CapsuleResp"
	case TypeH2CData:
		return "H2CData"
	case TypeC2HData:
		return "C2HData"
	case TypeR2T:
		return "R2T"
	}
	return fmt.Sprintf("PDU type %02xh", uint8(t))
}

// HLen returns the HLEN that every PDU of type t must have, 0 if the type is not assigned.
func (t PDUType) HLen() uint8 {
	switch t {
	case TypeICReq, TypeICResp:
		return HLenICReq
	case TypeCapsuleCmd:
		return HLenCmd
	case TypeH2CTermReq, TypeC2HTermReq, TypeCapsuleResp, TypeH2CData, TypeC2HData, TypeR2T:
		return 24
	}
	return 0
}

// Header lengths in bytes: the common header and the PDU specific header, without digest.
const (
	HeaderSize  = 8 // the common header
	HLenICReq   = 128
	HLenTermReq = 24
	HLenCmd     = 72
	HLenResp    = 24
	HLenData    = 24
	HLenR2T     = 24
)

// MaxTermReqData is the most of an offending PDU header that a TermReq may carry.
const MaxTermReqData = 128

// PDU header flags.
const (
	FlagHDGST   uint8 = 1 << 0 // a header digest follows the header
	FlagDDGST   uint8 = 1 << 1 // a data digest follows the data
	FlagLast    uint8 = 1 << 2 // H2CData: last of its R2T. C2HData: last of its command
	FlagSuccess uint8 = 1 << 3 // C2HData with FlagLast: the command succeeded, no CapsuleResp follows
)

// Bits of the DGST field of ICReq and ICResp.
const (
	DigestHeader uint8 = 1 << 0
	DigestData   uint8 = 1 << 1
)

// Limits of ICReq and ICResp fields.
const (
	MaxPDA         = 31   // of HPDA and CPDA: alignment is (n+1)*4 bytes
	MinMaxH2CData  = 4096 // MAXH2CDATA is at least this, and a multiple of 4
	MaxInCapsule   = 8192 // in-capsule data of admin and Fabrics commands
	DigestSize     = 4
	MaxAlignment   = (MaxPDA + 1) * 4
	MaxPDUOverhead = HLenICReq + DigestSize + MaxAlignment + DigestSize // of any PDU beyond its data
)

// Fatal error status of a TermReq (NVMe/TCP Transport 1.0, 3.6.2.3).
const (
	FESInvalidHeader    uint16 = 0x01 // FEI: byte offset of the field in the PDU header
	FESSequence         uint16 = 0x02
	FESHeaderDigest     uint16 = 0x03
	FESDataOutOfRange   uint16 = 0x04
	FESLimitExceeded    uint16 = 0x05 // data transfer limit (from a controller), R2T limit (from a host)
	FESUnsupportedParam uint16 = 0x06 // FEI: byte offset of the field in the PDU header
)

// FESString returns the specification's words for a fatal error status.
func FESString(fes uint16) string {
	switch fes {
	case FESInvalidHeader:
		return "Invalid PDU Header Field"
	case FESSequence:
		return "PDU Sequence Error"
	case FESHeaderDigest:
		return "Header Digest Error"
	case FESDataOutOfRange:
		return "Data Transfer Out of Range"
	case FESLimitExceeded:
		return "Data Transfer or R2T Limit Exceeded"
	case FESUnsupportedParam:
		return "Unsupported Parameter"
	}
	return fmt.Sprintf("Fatal Error Status %02xh", fes)
}

// Header is the common header, the first 8 bytes of every PDU (NVMe/TCP Transport 1.0, 3.6.1).
type Header struct {
	Type  PDUType
	Flags uint8
	HLen  uint8  // bytes of header without its digest
	PDO   uint8  // offset of the data from the start of the PDU, 0 if there is none
	PLen  uint32 // bytes of the whole PDU
}

// AppendTo appends the 8 bytes of h.
func (h *Header) AppendTo(b []byte) []byte {
	return le.AppendUint32(append(b, uint8(h.Type), h.Flags, h.HLen, h.PDO), h.PLen)
}

// Parse reads h from the first 8 bytes of b.
func (h *Header) Parse(b []byte) error {
	if len(b) < HeaderSize {
		return shortError("PDU header", HeaderSize, len(b))
	}
	h.Type, h.Flags, h.HLen, h.PDO = PDUType(b[0]), b[1], b[2], b[3]
	h.PLen = le.Uint32(b[4:])
	return nil
}

// ICReq is bytes 8 to 127 of an Initialize Connection Request.
type ICReq struct {
	PFV    uint16 // PDU format version, 0
	HPDA   uint8  // alignment of the data a controller sends: (HPDA+1)*4 bytes
	Digest uint8  // DigestHeader, DigestData: wanted
	MaxR2T uint32 // outstanding R2Ts per command, 0's based
}

// AppendTo appends the 120 bytes of r.
func (r *ICReq) AppendTo(b []byte) []byte { return appendIC(b, r.PFV, r.HPDA, r.Digest, r.MaxR2T) }

// Parse reads the 120 bytes that follow the common header.
func (r *ICReq) Parse(b []byte) error {
	if len(b) != HLenICReq-HeaderSize {
		return lengthError("ICReq", HLenICReq-HeaderSize, len(b))
	}
	r.PFV, r.HPDA, r.Digest, r.MaxR2T = le.Uint16(b), b[2], b[3], le.Uint32(b[4:])
	return nil
}

// ICResp is bytes 8 to 127 of an Initialize Connection Response.
type ICResp struct {
	PFV        uint16 // PDU format version, 0
	CPDA       uint8  // alignment of the data a host sends: (CPDA+1)*4 bytes
	Digest     uint8  // DigestHeader, DigestData: in use
	MaxH2CData uint32 // most data in one H2CData PDU, in bytes
}

// AppendTo appends the 120 bytes of r.
func (r *ICResp) AppendTo(b []byte) []byte { return appendIC(b, r.PFV, r.CPDA, r.Digest, r.MaxH2CData) }

// Parse reads the 120 bytes that follow the common header.
func (r *ICResp) Parse(b []byte) error {
	if len(b) != HLenICReq-HeaderSize {
		return lengthError("ICResp", HLenICReq-HeaderSize, len(b))
	}
	r.PFV, r.CPDA, r.Digest, r.MaxH2CData = le.Uint16(b), b[2], b[3], le.Uint32(b[4:])
	return nil
}

func appendIC(b []byte, pfv uint16, pda, digest uint8, max uint32) []byte {
	b = append(le.AppendUint16(b, pfv), pda, digest)
	return append(le.AppendUint32(b, max), make([]byte, 112)...)
}

// TermReq is bytes 8 to 23 of a Host or Controller to Host Terminate Connection Request. Up to MaxTermReqData bytes
// of the offending PDU's header follow as its data. FEI is at byte 10, unaligned, as the specification has it.
type TermReq struct {
	FES uint16
	FEI uint32
}

// AppendTo appends the 16 bytes of t.
func (t *TermReq) AppendTo(b []byte) []byte {
	return append(le.AppendUint32(le.AppendUint16(b, t.FES), t.FEI), make([]byte, 10)...)
}

// Parse reads the 16 bytes that follow the common header.
func (t *TermReq) Parse(b []byte) error {
	if len(b) != HLenTermReq-HeaderSize {
		return lengthError("TermReq", HLenTermReq-HeaderSize, len(b))
	}
	t.FES, t.FEI = le.Uint16(b), le.Uint32(b[2:])
	return nil
}

// DataPDU is bytes 8 to 23 of H2CData and C2HData.
type DataPDU struct {
	CCCID  uint16 // CID of the command
	TTAG   uint16 // H2CData: of the R2T it answers. C2HData: reserved
	Offset uint32 // DATAO: of the data within the command's
	Length uint32 // DATAL: bytes of data in this PDU
}

// AppendTo appends the 16 bytes of d.
func (d *DataPDU) AppendTo(b []byte) []byte {
	return appendTransfer(b, d.CCCID, d.TTAG, d.Offset, d.Length)
}

// Parse reads the 16 bytes that follow the common header.
func (d *DataPDU) Parse(b []byte) error {
	if len(b) != HLenData-HeaderSize {
		return lengthError("data PDU", HLenData-HeaderSize, len(b))
	}
	d.CCCID, d.TTAG, d.Offset, d.Length = le.Uint16(b), le.Uint16(b[2:]), le.Uint32(b[4:]), le.Uint32(b[8:])
	return nil
}

// R2T is bytes 8 to 23 of a Ready to Transfer.
type R2T struct {
	CCCID  uint16 // CID of the command
	TTAG   uint16 // chosen by the controller, echoed in H2CData
	Offset uint32 // R2TO: of the data wanted within the command's
	Length uint32 // R2TL: bytes wanted
}

// AppendTo appends the 16 bytes of r.
func (r *R2T) AppendTo(b []byte) []byte {
	return appendTransfer(b, r.CCCID, r.TTAG, r.Offset, r.Length)
}

// Parse reads the 16 bytes that follow the common header.
func (r *R2T) Parse(b []byte) error {
	if len(b) != HLenR2T-HeaderSize {
		return lengthError("R2T", HLenR2T-HeaderSize, len(b))
	}
	r.CCCID, r.TTAG, r.Offset, r.Length = le.Uint16(b), le.Uint16(b[2:]), le.Uint32(b[4:]), le.Uint32(b[8:])
	return nil
}

func appendTransfer(b []byte, cccid, ttag uint16, offset, length uint32) []byte {
	b = le.AppendUint16(le.AppendUint16(b, cccid), ttag)
	return le.AppendUint32(le.AppendUint32(le.AppendUint32(b, offset), length), 0)
}
