package wire

// The constructors below leave CID zero, and the SGL a transport data block without length: whoever sends the command
// knows where its data is.

// NSIDAll addresses all namespaces.
const NSIDAll uint32 = 0xffffffff

// Control bits of NVM commands that address a range of blocks, in dword 12 (NVM Command Set 1.0, 3.2).
const (
	ControlLR   uint32 = 1 << 31 // limited retry
	ControlFUA  uint32 = 1 << 30 // force unit access
	ControlDEAC uint32 = 1 << 25 // Write Zeroes: deallocate
)

// MaxBlocks is the most logical blocks of one NVM command: NLB is 16 bits, 0's based.
const MaxBlocks = 1 << 16

func newCmd(op uint8, nsid uint32) Command {
	return Command{Opcode: op, Flags: CmdPSDT, NSID: nsid, SGL: SGL{Type: SGLTransport}}
}

func rangeCmd(op uint8, nsid uint32, slba uint64, blocks, control uint32) Command {
	c := newCmd(op, nsid)
	c.CDW10, c.CDW11 = uint32(slba), uint32(slba>>32)
	c.CDW12 = (blocks-1)&0xffff | control
	return c
}

// ReadCmd reads blocks (1 to MaxBlocks) logical blocks from slba. control is of ControlLR and ControlFUA.
func ReadCmd(nsid uint32, slba uint64, blocks, control uint32) Command {
	return rangeCmd(OpRead, nsid, slba, blocks, control)
}

// WriteCmd writes blocks (1 to MaxBlocks) logical blocks at slba. control is of ControlLR and ControlFUA.
func WriteCmd(nsid uint32, slba uint64, blocks, control uint32) Command {
	return rangeCmd(OpWrite, nsid, slba, blocks, control)
}

// CompareCmd compares blocks (1 to MaxBlocks) logical blocks at slba with the data.
func CompareCmd(nsid uint32, slba uint64, blocks, control uint32) Command {
	return rangeCmd(OpCompare, nsid, slba, blocks, control)
}

// WriteZeroesCmd makes blocks (1 to MaxBlocks) logical blocks at slba read as zeros. control is of ControlLR,
// ControlFUA and ControlDEAC.
func WriteZeroesCmd(nsid uint32, slba uint64, blocks, control uint32) Command {
	return rangeCmd(OpWriteZeroes, nsid, slba, blocks, control)
}

// FlushCmd commits what was written to namespace nsid, or to all with NSIDAll, to non-volatile media.
func FlushCmd(nsid uint32) Command { return newCmd(OpFlush, nsid) }

// Attributes of Dataset Management, in dword 11.
const (
	DSMIntegralRead  uint32 = 1 << 0
	DSMIntegralWrite uint32 = 1 << 1
	DSMDeallocate    uint32 = 1 << 2
)

// DSMCmd is Dataset Management of ranges (1 to MaxDSMRanges) ranges, which are its data.
func DSMCmd(nsid uint32, ranges int, attributes uint32) Command {
	c := newCmd(OpDSM, nsid)
	c.CDW10, c.CDW11 = uint32(ranges-1)&0xff, attributes
	return c
}

// SLBA returns the first logical block of Read, Write, Compare, Write Zeroes and Verify.
func (c *Command) SLBA() uint64 { return uint64(c.CDW11)<<32 | uint64(c.CDW10) }

// Blocks returns the number of logical blocks of the same commands, 1 to MaxBlocks.
func (c *Command) Blocks() uint32 { return c.CDW12&0xffff + 1 }

// FUA reports Force Unit Access.
func (c *Command) FUA() bool { return c.CDW12&ControlFUA != 0 }

// DEAC reports that Write Zeroes may deallocate.
func (c *Command) DEAC() bool { return c.CDW12&ControlDEAC != 0 }

// DSMRanges returns the number of ranges of Dataset Management, 1 to MaxDSMRanges.
func (c *Command) DSMRanges() int { return int(c.CDW10&0xff) + 1 }

const (
	DSMRangeSize = 16
	MaxDSMRanges = 256
)

// DSMRange is one range of Dataset Management (NVM Command Set 1.0, 3.2.3).
type DSMRange struct {
	Attributes uint32
	Blocks     uint32 // logical blocks, not 0's based
	SLBA       uint64
}

// AppendTo appends the 16 bytes of r.
func (r *DSMRange) AppendTo(b []byte) []byte {
	return le.AppendUint64(le.AppendUint32(le.AppendUint32(b, r.Attributes), r.Blocks), r.SLBA)
}

// Parse reads 16 bytes.
func (r *DSMRange) Parse(b []byte) error {
	if len(b) != DSMRangeSize {
		return lengthError("DSM range", DSMRangeSize, len(b))
	}
	r.Attributes, r.Blocks, r.SLBA = le.Uint32(b), le.Uint32(b[4:]), le.Uint64(b[8:])
	return nil
}

// CNS values of Identify (NVM Express Base 2.0, 5.17.1).
const (
	CNSNamespace            uint8 = 0x00
	CNSController           uint8 = 0x01
	CNSActiveNamespaces     uint8 = 0x02
	CNSNamespaceDescriptors uint8 = 0x03
	CNSCommandSetNamespace  uint8 = 0x05
	CNSCommandSetController uint8 = 0x06
	CNSCommandSetActive     uint8 = 0x07
	CNSIndependentNamespace uint8 = 0x08
	CNSAllocatedNamespaces  uint8 = 0x10
	CNSAllocatedNamespace   uint8 = 0x11
	CNSNamespaceControllers uint8 = 0x12
	CNSControllers          uint8 = 0x13
	CNSCommandSets          uint8 = 0x1c
)

// IdentifySize is the size of the data of every Identify command.
const IdentifySize = 4096

// CSINVM is the NVM command set's identifier.
const CSINVM uint8 = 0x00

// IdentifyCmd asks for the Identify structure cns. csi chooses a command set and cntid a controller where cns has
// one, and are 0 elsewhere.
func IdentifyCmd(cns uint8, nsid uint32, csi uint8, cntid uint16) Command {
	c := newCmd(OpIdentify, nsid)
	c.CDW10 = uint32(cns) | uint32(cntid)<<16
	c.CDW11 = uint32(csi) << 24
	return c
}

// CNS returns which structure an Identify command asks for.
func (c *Command) CNS() uint8 { return uint8(c.CDW10) }

// CNTID returns the controller that an Identify command names.
func (c *Command) CNTID() uint16 { return uint16(c.CDW10 >> 16) }

// CSI returns the command set that an Identify command names.
func (c *Command) CSI() uint8 { return uint8(c.CDW11 >> 24) }

// Log page identifiers (NVM Express Base 2.0, 5.16.1).
const (
	LogSupportedPages    uint8 = 0x00
	LogError             uint8 = 0x01
	LogSMART             uint8 = 0x02
	LogFirmwareSlot      uint8 = 0x03
	LogChangedNamespaces uint8 = 0x04
	LogCommandEffects    uint8 = 0x05
	LogANA               uint8 = 0x0c
	LogFeatureEffects    uint8 = 0x12
	LogDiscovery         uint8 = 0x70
	LogReservation       uint8 = 0x80
)

// Log specific fields of Get Log Page.
const (
	ANAGroupsOnly      uint8 = 1 << 0 // LogANA: return groups only (RGO)
	DiscoveryExtended  uint8 = 1 << 0 // LogDiscovery: EXTDLPE
	DiscoveryPortLocal uint8 = 1 << 1 // LogDiscovery: PLEO
	DiscoveryAllSubsys uint8 = 1 << 2 // LogDiscovery: ALLSUBE
)

// GetLogPage is what a Get Log Page command asks for.
type GetLogPage struct {
	NSID   uint32
	LID    uint8
	LSP    uint8  // 7 bits
	RAE    bool   // retain the asynchronous event
	Length uint64 // bytes, a multiple of 4 of at least 4 and at most 16 GiB
	LSI    uint16
	Offset uint64 // LPO: bytes, a multiple of 4
	CSI    uint8
}

// Command returns the command that asks for p.
func (p GetLogPage) Command() Command {
	c := newCmd(OpGetLogPage, p.NSID)
	numd := uint32(p.Length/4 - 1)
	c.CDW10 = uint32(p.LID) | uint32(p.LSP&0x7f)<<8 | numd<<16
	if p.RAE {
		c.CDW10 |= 1 << 15
	}
	c.CDW11 = numd>>16 | uint32(p.LSI)<<16
	c.CDW12, c.CDW13 = uint32(p.Offset), uint32(p.Offset>>32)
	c.CDW14 = uint32(p.CSI) << 24
	return c
}

// GetLogPage returns what a Get Log Page command asks for.
func (c *Command) GetLogPage() GetLogPage {
	return GetLogPage{
		NSID:   c.NSID,
		LID:    uint8(c.CDW10),
		LSP:    uint8(c.CDW10>>8) & 0x7f,
		RAE:    c.CDW10&(1<<15) != 0,
		Length: (uint64(c.CDW11&0xffff)<<16 | uint64(c.CDW10>>16) + 1) * 4,
		LSI:    uint16(c.CDW11 >> 16),
		Offset: uint64(c.CDW13)<<32 | uint64(c.CDW12),
		CSI:    uint8(c.CDW14 >> 24),
	}
}

// Feature identifiers (NVM Express Base 2.0, 5.27.1).
const (
	FeatureArbitration           uint8 = 0x01
	FeaturePowerManagement       uint8 = 0x02
	FeatureTemperatureThreshold  uint8 = 0x04
	FeatureErrorRecovery         uint8 = 0x05
	FeatureVolatileWriteCache    uint8 = 0x06
	FeatureNumberOfQueues        uint8 = 0x07
	FeatureInterruptCoalescing   uint8 = 0x08
	FeatureInterruptVector       uint8 = 0x09
	FeatureWriteAtomicity        uint8 = 0x0a
	FeatureAsyncEvents           uint8 = 0x0b
	FeatureTimestamp             uint8 = 0x0e
	FeatureKeepAlive             uint8 = 0x0f
	FeatureHostBehavior          uint8 = 0x16
	FeatureHostIdentifier        uint8 = 0x81
	FeatureReservationMask       uint8 = 0x82
	FeatureReservationPersist    uint8 = 0x83
	FeatureNamespaceWriteProtect uint8 = 0x84
)

// Select values of Get Features.
const (
	SelectCurrent   uint8 = 0
	SelectDefault   uint8 = 1
	SelectSaved     uint8 = 2
	SelectSupported uint8 = 3
)

// Answers to SelectSupported, in dword 0.
const (
	FeatureSaveable   uint32 = 1 << 0
	FeatureNamespaced uint32 = 1 << 1
	FeatureChangeable uint32 = 1 << 2
)

// GetFeaturesCmd asks for feature fid. cdw11 is what the feature takes, mostly 0.
func GetFeaturesCmd(fid, sel uint8, nsid, cdw11 uint32) Command {
	c := newCmd(OpGetFeatures, nsid)
	c.CDW10 = uint32(fid) | uint32(sel&7)<<8
	c.CDW11 = cdw11
	return c
}

// SetFeaturesCmd sets feature fid to cdw11, without saving it.
func SetFeaturesCmd(fid uint8, nsid, cdw11 uint32) Command {
	c := newCmd(OpSetFeatures, nsid)
	c.CDW10, c.CDW11 = uint32(fid), cdw11
	return c
}

// FID returns the feature of Get Features and Set Features.
func (c *Command) FID() uint8 { return uint8(c.CDW10) }

// Select returns the Select field of Get Features.
func (c *Command) Select() uint8 { return uint8(c.CDW10>>8) & 7 }

// Save reports the Save bit of Set Features.
func (c *Command) Save() bool { return c.CDW10&(1<<31) != 0 }

// QueueCount returns the value of FeatureNumberOfQueues, both for asking and in an answer: n submission and n
// completion queues, 1 to 65535.
func QueueCount(n int) uint32 { return uint32(n-1)&0xffff | uint32(n-1)<<16 }

// Queues returns how many pairs of queues a value of FeatureNumberOfQueues stands for.
func Queues(v uint32) int { return int(min(v&0xffff, v>>16)) + 1 }

// KeepAliveCmd restarts the keep alive timer.
func KeepAliveCmd() Command { return newCmd(OpKeepAlive, 0) }

// AERCmd is an Asynchronous Event Request.
func AERCmd() Command { return newCmd(OpAER, 0) }

// AbortCmd asks to abort the command cid of queue sqid.
func AbortCmd(sqid, cid uint16) Command {
	c := newCmd(OpAbort, 0)
	c.CDW10 = uint32(sqid) | uint32(cid)<<16
	return c
}

// Abort returns the queue and the command that an Abort names.
func (c *Command) Abort() (sqid, cid uint16) { return uint16(c.CDW10), uint16(c.CDW10 >> 16) }

// AbortNotDone is set in dword 0 of the answer to an Abort whose command was not aborted.
const AbortNotDone uint32 = 1

// AsyncEvent is dword 0 of the answer to an Asynchronous Event Request: the event's type in bits 2:0, its
// information in 15:8, the log page to read in 23:16.
type AsyncEvent uint32

// Notices.
const (
	EventNamespaceChanged AsyncEvent = 0x040002
	EventFirmwareStarting AsyncEvent = 0x030102
	EventANAChanged       AsyncEvent = 0x0c0302
	EventDiscoveryChanged AsyncEvent = 0x70f002
)

// Event types.
const (
	EventTypeError  uint8 = 0
	EventTypeSMART  uint8 = 1
	EventTypeNotice uint8 = 2
)

// Bits of FeatureAsyncEvents and of OAES in Identify Controller that allow notices.
const (
	NoticeNamespace uint32 = 1 << 8
	NoticeFirmware  uint32 = 1 << 9
	NoticeANA       uint32 = 1 << 11
	NoticeDiscovery uint32 = 1 << 31
)

// Type returns the event's type.
func (e AsyncEvent) Type() uint8 { return uint8(e) & 7 }

// Info returns the event's information.
func (e AsyncEvent) Info() uint8 { return uint8(e >> 8) }

// LogPage returns the log page that tells more, and clears the event when it is read.
func (e AsyncEvent) LogPage() uint8 { return uint8(e >> 16) }
