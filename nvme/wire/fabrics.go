package wire

import (
	"fmt"
	"time"

	"hawser.dev/hawser/nvme"
)

// Attributes of Connect (CATTR).
const (
	ConnectDisableSQFlow  uint8 = 1 << 2
	ConnectDeleteIOQueues uint8 = 1 << 3
)

// CNTLIDDynamic in the connect data of an admin queue asks for any controller.
const CNTLIDDynamic uint16 = 0xffff

// Connect is what a Connect command says beside its data (NVMe over Fabrics 1.1, 3.3).
type Connect struct {
	RecFmt uint16 // 0
	QID    uint16
	SQSize uint16 // 0's based
	CATTR  uint8
	KATO   uint32 // keep alive timeout in ms; admin queue only
}

// Command returns the command; ConnectData is its data.
func (p Connect) Command() Command {
	c := newCmd(OpFabrics, uint32(FCTypeConnect))
	c.CDW10 = uint32(p.RecFmt) | uint32(p.QID)<<16
	c.CDW11 = uint32(p.SQSize) | uint32(p.CATTR)<<16
	c.CDW12 = p.KATO
	return c
}

// Connect returns what a Connect command says.
func (c *Command) Connect() Connect {
	return Connect{
		RecFmt: uint16(c.CDW10),
		QID:    uint16(c.CDW10 >> 16),
		SQSize: uint16(c.CDW11),
		CATTR:  uint8(c.CDW11 >> 16),
		KATO:   c.CDW12,
	}
}

// ConnectDataSize is the size of a Connect command's data.
const ConnectDataSize = 1024

// ConnectData is the data of a Connect command (NVMe over Fabrics 1.1, 3.3).
type ConnectData struct {
	HostID  nvme.UUID
	CNTLID  uint16 // CNTLIDDynamic, or for I/O queues what the admin queue was given
	SubNQN  nvme.NQN
	HostNQN nvme.NQN
}

func (d *ConnectData) layout(l *layout) {
	l.bytes(0, d.HostID[:])
	l.u16(16, &d.CNTLID)
	nqn(l, ConnectDataSubNQN, "SUBNQN", &d.SubNQN)
	nqn(l, ConnectDataHostNQN, "HOSTNQN", &d.HostNQN)
}

// AppendTo appends the 1024 bytes of d.
func (d *ConnectData) AppendTo(b []byte) []byte { return appendLayout(b, ConnectDataSize, d) }

// Parse reads 1024 bytes. The NQNs must end in a NUL; they are not validated further.
func (d *ConnectData) Parse(b []byte) error {
	return parseLayout(b, ConnectDataSize, "connect data", d)
}

// Offsets that an answer to Connect names as invalid: in the command, and in its data.
const (
	ConnectCmdQID    uint16 = 42
	ConnectCmdSQSize uint16 = 44
	ConnectCmdCATTR  uint16 = 46
	ConnectCmdKATO   uint16 = 48

	ConnectDataHostID  = 0
	ConnectDataCNTLID  = 16
	ConnectDataSubNQN  = 256
	ConnectDataHostNQN = 512
)

// ConnectInvalid returns dword 0 of a completion with Connect Invalid Parameters: the offset (IPO), and whether it is
// in the data rather than in the command (IATTR).
func ConnectInvalid(offset uint16, inData bool) uint32 {
	if inData {
		return uint32(offset) | 1<<16
	}
	return uint32(offset)
}

// Bits of dword 0 of a successful Connect beside the controller ID in bits 15:0.
const (
	ConnectAuthRequired   uint32 = 1 << 17 // ATR
	ConnectSecureRequired uint32 = 1 << 18 // ASCR: authentication with secure channel concatenation
)

// Property offsets (NVM Express Base 2.0, 3.1.3).
const (
	PropertyCAP  uint32 = 0x00
	PropertyVS   uint32 = 0x08
	PropertyCC   uint32 = 0x14
	PropertyCSTS uint32 = 0x1c
	PropertyNSSR uint32 = 0x20
	PropertyCRTO uint32 = 0x68
)

// NSSRReset is the value of PropertyNSSR that resets the subsystem.
const NSSRReset uint32 = 0x4e564d65

// PropertyGetCmd reads a property of size 4 or 8 bytes; its value is the completion's Result.
func PropertyGetCmd(offset uint32, size int) Command {
	c := newCmd(OpFabrics, uint32(FCTypePropertyGet))
	c.CDW10, c.CDW11 = propertyAttrib(size), offset
	return c
}

// PropertySetCmd writes a property of size 4 or 8 bytes.
func PropertySetCmd(offset uint32, size int, value uint64) Command {
	c := newCmd(OpFabrics, uint32(FCTypePropertySet))
	c.CDW10, c.CDW11 = propertyAttrib(size), offset
	c.CDW12, c.CDW13 = uint32(value), uint32(value>>32)
	return c
}

func propertyAttrib(size int) uint32 {
	if size == 8 {
		return 1
	}
	return 0
}

// Property returns what a Property Get or Property Set names: size is 4 or 8 bytes, 0 if reserved; value is
// Property Set's.
func (c *Command) Property() (offset uint32, size int, value uint64) {
	switch c.CDW10 & 7 {
	case 0:
		size = 4
	case 1:
		size = 8
	}
	return c.CDW11, size, uint64(c.CDW13)<<32 | uint64(c.CDW12)
}

// CAP is the Controller Capabilities property.
type CAP uint64

const (
	CAPCQR    CAP = 1 << 16 // contiguous queues required
	CAPCSSNVM CAP = 1 << 37 // the NVM command set
	CAPCSSIOC CAP = 1 << 43 // one or more I/O command sets: CC.CSS may be 6
	CAPCRWMS  CAP = 1 << 59 // controller ready with media: CRTO is there
	CAPCRIMS  CAP = 1 << 60 // controller ready independent of media
)

// NewCAP returns CAP with the most entries of a queue, 2 to 65536, the ready timeout rounded up to 500 ms, and flags.
func NewCAP(entries int, timeout time.Duration, flags CAP) CAP {
	to := (timeout + 500*time.Millisecond - 1) / (500 * time.Millisecond)
	return CAP(entries-1)&0xffff | CAP(min(to, 255))<<24 | flags
}

// Entries returns the most entries of a queue: MQES plus one.
func (c CAP) Entries() int { return int(c&0xffff) + 1 }

// Timeout returns TO: the longest the controller takes to become ready.
func (c CAP) Timeout() time.Duration { return time.Duration(c>>24&0xff) * 500 * time.Millisecond }

// MPSMin returns the smallest memory page in bytes, the unit of MDTS.
func (c CAP) MPSMin() int { return 4096 << (c >> 48 & 15) }

// CC is the Controller Configuration property.
type CC uint32

const (
	CCEnable    CC = 1 << 0
	CCCSSAll    CC = 6 << 4 // all supported I/O command sets; 0 is the NVM command set
	CCSHNNormal CC = 1 << 14
	CCSHNAbrupt CC = 2 << 14
	CCIOEntries CC = 6<<16 | 4<<20 // IOSQES 64 bytes, IOCQES 16 bytes
	CCCRIME     CC = 1 << 24
	ccSHNMask   CC = 3 << 14
)

func (c CC) Enabled() bool { return c&CCEnable != 0 }
func (c CC) CSS() uint8    { return uint8(c>>4) & 7 }
func (c CC) MPS() uint8    { return uint8(c>>7) & 15 }
func (c CC) AMS() uint8    { return uint8(c>>11) & 7 }
func (c CC) SHN() uint8    { return uint8(c>>14) & 3 }
func (c CC) IOSQES() uint8 { return uint8(c>>16) & 15 }
func (c CC) IOCQES() uint8 { return uint8(c>>20) & 15 }

// WithSHN returns c with a shutdown notification: CCSHNNormal or CCSHNAbrupt.
func (c CC) WithSHN(shn CC) CC { return c&^ccSHNMask | shn }

// CSTS is the Controller Status property.
type CSTS uint32

const (
	CSTSReady         CSTS = 1 << 0
	CSTSFatal         CSTS = 1 << 1 // CFS
	CSTSSHSTOccurring CSTS = 1 << 2
	CSTSSHSTComplete  CSTS = 2 << 2
	CSTSPaused        CSTS = 1 << 5 // PP: processing paused
)

func (c CSTS) Ready() bool            { return c&CSTSReady != 0 }
func (c CSTS) Fatal() bool            { return c&CSTSFatal != 0 }
func (c CSTS) ShutdownComplete() bool { return c>>2&3 == 2 }

// Version is the Version property, and VER in Identify Controller.
type Version uint32

// NewVersion returns the version major.minor.tertiary.
func NewVersion(major, minor, tertiary int) Version {
	return Version(major<<16 | minor<<8 | tertiary)
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v>>16, v>>8&0xff, v&0xff) }

// CRTO is the Controller Ready Timeouts property.
type CRTO uint32

// WithMedia returns CRWMT: the longest until the controller is ready with its media.
func (c CRTO) WithMedia() time.Duration { return time.Duration(c&0xffff) * 500 * time.Millisecond }

// IndependentOfMedia returns CRIMT: the longest until the controller is ready without its media.
func (c CRTO) IndependentOfMedia() time.Duration {
	return time.Duration(c>>16) * 500 * time.Millisecond
}
