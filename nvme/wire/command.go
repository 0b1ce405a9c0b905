package wire

import (
	"fmt"

	"hawser.dev/hawser/nvme"
)

const (
	CommandSize    = 64 // of a submission queue entry
	CompletionSize = 16 // of a completion queue entry
)

// SGL descriptor types: descriptor type in the high nibble, sub type in the low (NVM Express Base 2.0, 4.1.2).
const (
	SGLInCapsule uint8 = 0x01 // data block at an offset: the data is in the capsule
	SGLTransport uint8 = 0x5a // transport data block: the data goes by R2T and H2CData, or C2HData; also no data
)

// CmdPSDT is the Flags value of every command over Fabrics: an SGL, no fused operation.
const CmdPSDT uint8 = 0x40

// SGL is the one SGL descriptor of a command.
type SGL struct {
	Addr   uint64 // SGLInCapsule: offset in the capsule's data. SGLTransport: 0
	Length uint32 // bytes
	Type   uint8
}

// Command is a submission queue entry.
type Command struct {
	Opcode     uint8
	Flags      uint8 // FUSE in bits 1:0, PSDT in bits 7:6
	CID        uint16
	NSID       uint32
	CDW2, CDW3 uint32
	MPTR       uint64
	SGL        SGL
	CDW10      uint32
	CDW11      uint32
	CDW12      uint32
	CDW13      uint32
	CDW14      uint32
	CDW15      uint32
}

// AppendTo appends the 64 bytes of c.
func (c *Command) AppendTo(b []byte) []byte {
	n := len(b)
	b = append(b, make([]byte, CommandSize)...)
	p := b[n : n+CommandSize : n+CommandSize]
	p[0], p[1] = c.Opcode, c.Flags
	le.PutUint16(p[2:], c.CID)
	le.PutUint32(p[4:], c.NSID)
	le.PutUint32(p[8:], c.CDW2)
	le.PutUint32(p[12:], c.CDW3)
	le.PutUint64(p[16:], c.MPTR)
	le.PutUint64(p[24:], c.SGL.Addr)
	le.PutUint32(p[32:], c.SGL.Length)
	p[39] = c.SGL.Type
	le.PutUint32(p[40:], c.CDW10)
	le.PutUint32(p[44:], c.CDW11)
	le.PutUint32(p[48:], c.CDW12)
	le.PutUint32(p[52:], c.CDW13)
	le.PutUint32(p[56:], c.CDW14)
	le.PutUint32(p[60:], c.CDW15)
	return b
}

// Parse reads the 64 bytes of a submission queue entry.
func (c *Command) Parse(b []byte) error {
	if len(b) != CommandSize {
		return lengthError("command", CommandSize, len(b))
	}
	b = b[:CommandSize:CommandSize]
	c.Opcode, c.Flags = b[0], b[1]
	c.CID = le.Uint16(b[2:])
	c.NSID = le.Uint32(b[4:])
	c.CDW2 = le.Uint32(b[8:])
	c.CDW3 = le.Uint32(b[12:])
	c.MPTR = le.Uint64(b[16:])
	c.SGL = SGL{Addr: le.Uint64(b[24:]), Length: le.Uint32(b[32:]), Type: b[39]}
	c.CDW10 = le.Uint32(b[40:])
	c.CDW11 = le.Uint32(b[44:])
	c.CDW12 = le.Uint32(b[48:])
	c.CDW13 = le.Uint32(b[52:])
	c.CDW14 = le.Uint32(b[56:])
	c.CDW15 = le.Uint32(b[60:])
	return nil
}

// Fabrics reports a Fabrics command.
func (c *Command) Fabrics() bool { return c.Opcode == OpFabrics }

// FCType returns the type of a Fabrics command: byte 4 of the entry.
func (c *Command) FCType() uint8 { return uint8(c.NSID) }

// SetFCType sets the type of a Fabrics command. The bytes after it, where other commands have the rest of the
// namespace identifier, become zero.
func (c *Command) SetFCType(t uint8) { c.NSID = uint32(t) }

// Fuse returns the fused operation bits: 0 normal, 1 first, 2 second command.
func (c *Command) Fuse() uint8 { return c.Flags & 3 }

// PSDT returns the bits that say what the data pointer is; Fabrics wants 01b.
func (c *Command) PSDT() uint8 { return c.Flags >> 6 }

// direction returns the data transfer bits of the opcode, or of the type of a Fabrics command: bit 0 is host to
// controller, bit 1 controller to host.
func (c *Command) direction() uint8 {
	if c.Opcode == OpFabrics {
		return uint8(c.NSID) & 3
	}
	return c.Opcode & 3
}

// ToController reports that data, if there is any, goes from host to controller.
func (c *Command) ToController() bool { return c.direction()&1 != 0 }

// FromController reports that data, if there is any, goes from controller to host.
func (c *Command) FromController() bool { return c.direction()&2 != 0 }

// Completion is a completion queue entry. Over Fabrics its phase bit is always 0.
type Completion struct {
	DW0, DW1        uint32
	SQHD, SQID, CID uint16
	Status          nvme.Status
}

// Result returns dwords 0 and 1 as one number.
func (c *Completion) Result() uint64 { return uint64(c.DW1)<<32 | uint64(c.DW0) }

// AppendTo appends the 16 bytes of c.
func (c *Completion) AppendTo(b []byte) []byte {
	b = le.AppendUint64(b, c.Result())
	return le.AppendUint64(b, uint64(c.SQHD)|uint64(c.SQID)<<16|uint64(c.CID)<<32|uint64(c.Status<<1)<<48)
}

// Parse reads the 16 bytes of a completion queue entry.
func (c *Completion) Parse(b []byte) error {
	if len(b) != CompletionSize {
		return lengthError("completion", CompletionSize, len(b))
	}
	c.DW0, c.DW1 = le.Uint32(b), le.Uint32(b[4:])
	c.SQHD, c.SQID, c.CID = le.Uint16(b[8:]), le.Uint16(b[10:]), le.Uint16(b[12:])
	c.Status = nvme.Status(le.Uint16(b[14:]) >> 1)
	return nil
}

// Opcodes of admin commands (NVM Express Base 2.0, 5).
const (
	OpGetLogPage  uint8 = 0x02
	OpIdentify    uint8 = 0x06
	OpAbort       uint8 = 0x08
	OpSetFeatures uint8 = 0x09
	OpGetFeatures uint8 = 0x0a
	OpAER         uint8 = 0x0c
	OpKeepAlive   uint8 = 0x18
)

// Opcodes of NVM command set I/O commands (NVM Command Set 1.0, 3.2).
const (
	OpFlush       uint8 = 0x00
	OpWrite       uint8 = 0x01
	OpRead        uint8 = 0x02
	OpWriteUncor  uint8 = 0x04
	OpCompare     uint8 = 0x05
	OpWriteZeroes uint8 = 0x08
	OpDSM         uint8 = 0x09
	OpVerify      uint8 = 0x0c
	OpResvReg     uint8 = 0x0d
	OpResvReport  uint8 = 0x0e
	OpResvAcquire uint8 = 0x11
	OpResvRelease uint8 = 0x15
	OpCopy        uint8 = 0x19
)

// OpFabrics is the opcode of every Fabrics command; its type (FCTYPE) is byte 4.
const OpFabrics uint8 = 0x7f

// Types of Fabrics commands (NVMe over Fabrics 1.1, 3).
const (
	FCTypePropertySet uint8 = 0x00
	FCTypeConnect     uint8 = 0x01
	FCTypePropertyGet uint8 = 0x04
	FCTypeAuthSend    uint8 = 0x05
	FCTypeAuthRecv    uint8 = 0x06
	FCTypeDisconnect  uint8 = 0x08
)

// CommandName returns the specification's name of a command. admin chooses between the admin and the NVM command
// set.
func CommandName(c *Command, admin bool) string {
	switch {
	case c.Opcode == OpFabrics:
		return fabricsName(c.FCType())
	case admin:
		return adminName(c.Opcode)
	}
	return ioName(c.Opcode)
}

func fabricsName(fctype uint8) string {
	switch fctype {
	case FCTypePropertySet:
		return "Property Set"
	case FCTypeConnect:
		return "Connect"
	case FCTypePropertyGet:
		return "Property Get"
	case FCTypeAuthSend:
		return "Authentication Send"
	case FCTypeAuthRecv:
		return "Authentication Receive"
	case FCTypeDisconnect:
		return "Disconnect"
	}
	return fmt.Sprintf("Fabrics command %02xh", fctype)
}

func adminName(op uint8) string {
	switch op {
	case OpGetLogPage:
		return "Get Log Page"
	case OpIdentify:
		return "Identify"
	case OpAbort:
		return "Abort"
	case OpSetFeatures:
		return "Set Features"
	case OpGetFeatures:
		return "Get Features"
	case OpAER:
		return "Asynchronous Event Request"
	case OpKeepAlive:
		return "Keep Alive"
	}
	return fmt.Sprintf("admin command %02xh", op)
}

func ioName(op uint8) string {
	switch op {
	case OpFlush:
		return "Flush"
	case OpWrite:
		return "Write"
	case OpRead:
		return "Read"
	case OpWriteUncor:
		return "Write Uncorrectable"
	case OpCompare:
		return "Compare"
	case OpWriteZeroes:
		return "Write Zeroes"
	case OpDSM:
		return "Dataset Management"
	case OpVerify:
		return "Verify"
	case OpResvReg:
		return "Reservation Register"
	case OpResvReport:
		return "Reservation Report"
	case OpResvAcquire:
		return "Reservation Acquire"
	case OpResvRelease:
		return "Reservation Release"
	case OpCopy:
		return "Copy"
	}
	return fmt.Sprintf("I/O command %02xh", op)
}
