package wire

import (
	"fmt"

	"hawser.dev/hawser/nvme"
)

// Sizes of log pages in bytes.
const (
	SupportedLogsSize   = 1024
	ErrorLogEntrySize   = 64
	SMARTLogSize        = 512
	FirmwareLogSize     = 512
	CommandEffectsSize  = 4096
	FeatureEffectsSize  = 1024
	DiscoveryEntrySize  = 1024
	DiscoveryHeaderSize = 1024
	ANAHeaderSize       = 16
	ANAGroupSize        = 32 // without its namespaces
)

// Values of TRTYPE.
const (
	TRTypeRDMA uint8 = 1
	TRTypeFC   uint8 = 2
	TRTypeTCP  uint8 = 3
	TRTypeLoop uint8 = 254
)

// Values of ADRFAM.
const (
	AdrFamIPv4 uint8 = 1
	AdrFamIPv6 uint8 = 2
	AdrFamIB   uint8 = 3
	AdrFamFC   uint8 = 4
)

// Values of SUBTYPE in a discovery log entry.
const (
	SubtypeReferral         uint8 = 1 // another discovery service
	SubtypeNVM              uint8 = 2
	SubtypeCurrentDiscovery uint8 = 3 // the discovery subsystem that answers
)

// Bits of TREQ.
const (
	TREQSecureMask        uint8 = 3
	TREQSecureRequired    uint8 = 1
	TREQSecureNotRequired uint8 = 2
	TREQDisableSQFlow     uint8 = 1 << 2
)

// Bits of EFLAGS.
const (
	EFlagDuplicate  uint16 = 1 << 0 // DUPRETINFO: another entry reaches the same
	EFlagPersistent uint16 = 1 << 1 // EPCSD: explicit persistent connections
	EFlagNoCDC      uint16 = 1 << 2
)

// Values of SECTYPE, in the transport specific address subtype of TCP.
const (
	SecTypeNone  uint8 = 0
	SecTypeTLS12 uint8 = 1
	SecTypeTLS13 uint8 = 2
)

// DiscoveryHeader is the first 1024 bytes of the discovery log page, before its entries (NVM Express Base 2.0,
// 5.16.1.23).
type DiscoveryHeader struct {
	GENCTR, NUMREC uint64
	RECFMT         uint16
	DLPF           uint8
	TDLPL          uint32 // bytes; extended log pages only
}

func (h *DiscoveryHeader) layout(l *layout) {
	l.u64(0, &h.GENCTR)
	l.u64(8, &h.NUMREC)
	l.u16(16, &h.RECFMT)
	l.u8(18, &h.DLPF)
	l.u32(20, &h.TDLPL)
}

// discoveryHeaderFields is how far the fields of a DiscoveryHeader reach.
const discoveryHeaderFields = 24

// AppendTo appends the 1024 bytes of h.
func (h *DiscoveryHeader) AppendTo(b []byte) []byte { return appendLayout(b, DiscoveryHeaderSize, h) }

// Parse reads the beginning of a log page: 24 bytes are enough.
func (h *DiscoveryHeader) Parse(b []byte) error {
	if len(b) < discoveryHeaderFields {
		return shortError("discovery log header", discoveryHeaderFields, len(b))
	}
	h.layout(&layout{b: b})
	return nil
}

// DiscoveryEntry is one entry of the discovery log page (NVM Express Base 2.0, 5.16.1.23).
type DiscoveryEntry struct {
	TRTYPE, ADRFAM, SUBTYPE, TREQ uint8
	PORTID, CNTLID                uint16
	ASQSZ                         uint16
	EFLAGS                        uint16
	TRSVCID                       string // ASCII, at most 32 bytes
	SUBNQN                        nvme.NQN
	TRADDR                        string // ASCII, at most 256 bytes
	SECTYPE                       uint8  // TCP: of TSAS
}

func (e *DiscoveryEntry) layout(l *layout) {
	l.u8(0, &e.TRTYPE)
	l.u8(1, &e.ADRFAM)
	l.u8(2, &e.SUBTYPE)
	l.u8(3, &e.TREQ)
	l.u16(4, &e.PORTID)
	l.u16(6, &e.CNTLID)
	l.u16(8, &e.ASQSZ)
	l.u16(10, &e.EFLAGS)
	l.text(32, 32, 0, &e.TRSVCID)
	nqn(l, 256, "SUBNQN", &e.SUBNQN)
	l.text(512, 256, 0, &e.TRADDR)
	l.u8(768, &e.SECTYPE)
}

// AppendTo appends the 1024 bytes of e. TRADDR and TRSVCID are padded with NULs as Linux does.
func (e *DiscoveryEntry) AppendTo(b []byte) []byte { return appendLayout(b, DiscoveryEntrySize, e) }

// Parse reads 1024 bytes. SUBNQN must end in a NUL; TRADDR and TRSVCID end where a NUL, the padding or the field does.
func (e *DiscoveryEntry) Parse(b []byte) error {
	return parseLayout(b, DiscoveryEntrySize, "discovery log entry", e)
}

// ANAState is an asymmetric namespace access state.
type ANAState uint8

const (
	ANAOptimized      ANAState = 0x1
	ANANonOptimized   ANAState = 0x2
	ANAInaccessible   ANAState = 0x3
	ANAPersistentLoss ANAState = 0x4
	ANAChange         ANAState = 0xf
)

func (s ANAState) String() string {
	switch s {
	case ANAOptimized:
		return "optimized"
	case ANANonOptimized:
		return "non-optimized"
	case ANAInaccessible:
		return "inaccessible"
	case ANAPersistentLoss:
		return "persistent-loss"
	case ANAChange:
		return "change"
	}
	return fmt.Sprintf("ANA state %xh", uint8(s))
}

// ANAGroup is an ANA group descriptor.
type ANAGroup struct {
	ID          uint32
	ChangeCount uint64
	State       ANAState
	NSIDs       []uint32 // ascending; none if only groups were asked for
}

// ANALog is the Asymmetric Namespace Access log page (NVM Express Base 2.0, 5.16.1.13).
type ANALog struct {
	ChangeCount uint64
	Groups      []ANAGroup // at most 65535
}

// AppendTo appends a, whose size depends on its groups and namespaces.
func (a *ANALog) AppendTo(b []byte) []byte {
	b = le.AppendUint64(b, a.ChangeCount)
	b = append(le.AppendUint16(b, uint16(len(a.Groups))), 0, 0, 0, 0, 0, 0)
	for i := range a.Groups {
		g := &a.Groups[i]
		b = le.AppendUint32(le.AppendUint32(b, g.ID), uint32(len(g.NSIDs)))
		b = append(le.AppendUint64(b, g.ChangeCount), uint8(g.State))
		b = append(b, make([]byte, 15)...)
		for _, id := range g.NSIDs {
			b = le.AppendUint32(b, id)
		}
	}
	return b
}

// Parse reads a log page. Bytes after the last descriptor are ignored; one that is cut off is an error.
func (a *ANALog) Parse(b []byte) error {
	const name = "ANA log"
	*a = ANALog{}
	if len(b) < ANAHeaderSize {
		return shortError(name, ANAHeaderSize, len(b))
	}
	groups := int(le.Uint16(b[8:]))
	if need := ANAHeaderSize + groups*ANAGroupSize; len(b) < need {
		return &Error{Struct: name, Field: "NGRPS", Offset: 8, Reason: fmt.Sprintf("%d groups take %d bytes, there are %d", groups, need, len(b))}
	}
	parsed := ANALog{ChangeCount: le.Uint64(b), Groups: make([]ANAGroup, 0, groups)}
	off := ANAHeaderSize
	for range groups {
		if len(b)-off < ANAGroupSize {
			return &Error{Struct: name, Field: "group", Offset: off, Reason: "cut off"}
		}
		d := b[off:]
		g := ANAGroup{ID: le.Uint32(d), ChangeCount: le.Uint64(d[8:]), State: ANAState(d[16] & 0xf)}
		n := le.Uint32(d[4:])
		d = d[ANAGroupSize:]
		if uint64(n)*4 > uint64(len(d)) {
			return &Error{Struct: name, Field: "NNSIDS", Offset: off + 4, Reason: fmt.Sprintf("%d namespaces in %d bytes", n, len(d))}
		}
		if n > 0 {
			g.NSIDs = make([]uint32, n)
			for i := range g.NSIDs {
				g.NSIDs[i] = le.Uint32(d[4*i:])
			}
		}
		parsed.Groups = append(parsed.Groups, g)
		off += ANAGroupSize + 4*int(n)
	}
	*a = parsed
	return nil
}

// SMARTLog is the SMART / Health Information log page (NVM Express Base 2.0, 5.16.1.3).
type SMARTLog struct {
	CriticalWarning           uint8
	Temperature               uint16 // K
	AvailableSpare            uint8  // %
	SpareThreshold            uint8  // %
	PercentageUsed            uint8
	EnduranceCritical         uint8
	DataUnitsRead             Uint128 // 1000 units of 512 bytes, rounded up
	DataUnitsWritten          Uint128 // 1000 units of 512 bytes, rounded up
	HostReads, HostWrites     Uint128 // commands
	BusyTime                  Uint128 // minutes
	PowerCycles, PowerOnHours Uint128
	UnsafeShutdowns           Uint128
	MediaErrors               Uint128
	ErrorLogEntries           Uint128
	WarningTempTime           uint32    // minutes
	CriticalTempTime          uint32    // minutes
	TempSensors               [8]uint16 // K, 0 if there is none
	TMT1Transitions           uint32
	TMT2Transitions           uint32
	TMT1Time, TMT2Time        uint32 // s
}

func (s *SMARTLog) layout(l *layout) {
	l.u8(0, &s.CriticalWarning)
	l.u16(1, &s.Temperature)
	l.u8(3, &s.AvailableSpare)
	l.u8(4, &s.SpareThreshold)
	l.u8(5, &s.PercentageUsed)
	l.u8(6, &s.EnduranceCritical)
	l.u128(32, &s.DataUnitsRead)
	l.u128(48, &s.DataUnitsWritten)
	l.u128(64, &s.HostReads)
	l.u128(80, &s.HostWrites)
	l.u128(96, &s.BusyTime)
	l.u128(112, &s.PowerCycles)
	l.u128(128, &s.PowerOnHours)
	l.u128(144, &s.UnsafeShutdowns)
	l.u128(160, &s.MediaErrors)
	l.u128(176, &s.ErrorLogEntries)
	l.u32(192, &s.WarningTempTime)
	l.u32(196, &s.CriticalTempTime)
	for i := range s.TempSensors {
		l.u16(200+2*i, &s.TempSensors[i])
	}
	l.u32(216, &s.TMT1Transitions)
	l.u32(220, &s.TMT2Transitions)
	l.u32(224, &s.TMT1Time)
	l.u32(228, &s.TMT2Time)
}

// AppendTo appends the 512 bytes of s.
func (s *SMARTLog) AppendTo(b []byte) []byte { return appendLayout(b, SMARTLogSize, s) }

// Parse reads 512 bytes.
func (s *SMARTLog) Parse(b []byte) error { return parseLayout(b, SMARTLogSize, "SMART log", s) }

// ErrorLogEntry is one entry of the Error Information log page, which has them newest first (NVM Express Base 2.0,
// 5.16.1.2).
type ErrorLogEntry struct {
	ErrorCount        uint64 // 0: the entry is not used
	SQID, CID         uint16
	Status            nvme.Status
	ParameterLocation uint16 // byte in bits 7:0, bit in 10:8; FFFFh for none
	LBA               uint64
	NSID              uint32
	VendorLog         uint8
	TRTYPE            uint8
	CSI, Opcode       uint8
	CommandSpecific   uint64
	TransportSpecific uint16
}

func (e *ErrorLogEntry) layout(l *layout) {
	l.u64(0, &e.ErrorCount)
	l.u16(8, &e.SQID)
	l.u16(10, &e.CID)
	status := uint16(e.Status << 1)
	l.u16(12, &status)
	e.Status = nvme.Status(status >> 1)
	l.u16(14, &e.ParameterLocation)
	l.u64(16, &e.LBA)
	l.u32(24, &e.NSID)
	l.u8(28, &e.VendorLog)
	l.u8(29, &e.TRTYPE)
	l.u8(30, &e.CSI)
	l.u8(31, &e.Opcode)
	l.u64(32, &e.CommandSpecific)
	l.u16(40, &e.TransportSpecific)
}

// AppendTo appends the 64 bytes of e.
func (e *ErrorLogEntry) AppendTo(b []byte) []byte { return appendLayout(b, ErrorLogEntrySize, e) }

// Parse reads 64 bytes.
func (e *ErrorLogEntry) Parse(b []byte) error {
	return parseLayout(b, ErrorLogEntrySize, "error log entry", e)
}

// FirmwareLog is the Firmware Slot Information log page (NVM Express Base 2.0, 5.16.1.4).
type FirmwareLog struct {
	AFI uint8     // active slot in bits 2:0
	FRS [7]string // ASCII, at most 8 bytes, of slots 1 to 7
}

func (f *FirmwareLog) layout(l *layout) {
	l.u8(0, &f.AFI)
	for i := range f.FRS {
		// An empty slot is zeros, a revision is padded with spaces.
		pad := byte(' ')
		if f.FRS[i] == "" {
			pad = 0
		}
		l.text(8+8*i, 8, pad, &f.FRS[i])
	}
}

// AppendTo appends the 512 bytes of f.
func (f *FirmwareLog) AppendTo(b []byte) []byte { return appendLayout(b, FirmwareLogSize, f) }

// Parse reads 512 bytes.
func (f *FirmwareLog) Parse(b []byte) error {
	return parseLayout(b, FirmwareLogSize, "firmware log", f)
}

// ChangedNamespaces is the Changed Attached Namespace List log page (NVM Express Base 2.0, 5.16.1.5).
type ChangedNamespaces struct {
	NSIDs    []uint32 // ascending
	Overflow bool     // more than the page holds: NSIDs is empty, all must be looked at
}

// AppendTo appends a list of 4096 bytes. More than MaxNamespaceList identifiers are an overflow.
func (c *ChangedNamespaces) AppendTo(b []byte) []byte {
	if c.Overflow || len(c.NSIDs) > MaxNamespaceList {
		return append(le.AppendUint32(b, NSIDAll), make([]byte, IdentifySize-4)...)
	}
	return appendNSIDs(b, c.NSIDs)
}

// Parse reads a list of 4096 bytes.
func (c *ChangedNamespaces) Parse(b []byte) (err error) {
	ids := c.NSIDs[:0]
	*c = ChangedNamespaces{}
	if len(b) == IdentifySize && le.Uint32(b) == NSIDAll {
		c.Overflow = true
		return nil
	}
	c.NSIDs, err = parseNSIDs("changed namespace list", ids, b)
	return err
}

// Bits of a command's or feature's effects.
const (
	EffectsSupported uint32 = 1 << 0 // CSUPP, FSUPP
	EffectsLBCC      uint32 = 1 << 1 // logical block content change; of a feature: user data content change
	EffectsNCC       uint32 = 1 << 2 // namespace capability change
	EffectsNIC       uint32 = 1 << 3 // namespace inventory change
	EffectsCCC       uint32 = 1 << 4 // controller capability change

	EffectsFeatureNamespace  uint32 = 1 << 20 // FSP: namespace scope
	EffectsFeatureController uint32 = 1 << 21 // FSP: controller scope
)

// CommandEffects is the Commands Supported and Effects log page (NVM Express Base 2.0, 5.16.1.6).
type CommandEffects struct {
	Admin, IO [256]uint32 // by opcode
}

func (e *CommandEffects) layout(l *layout) {
	for i := range e.Admin {
		l.u32(4*i, &e.Admin[i])
		l.u32(1024+4*i, &e.IO[i])
	}
}

// AppendTo appends the 4096 bytes of e.
func (e *CommandEffects) AppendTo(b []byte) []byte { return appendLayout(b, CommandEffectsSize, e) }

// Parse reads 4096 bytes.
func (e *CommandEffects) Parse(b []byte) error {
	return parseLayout(b, CommandEffectsSize, "command effects log", e)
}

// FeatureEffects is the Feature Identifiers Supported and Effects log page (NVM Express Base 2.0, 5.16.1.19), by
// feature identifier.
type FeatureEffects [256]uint32

func (e *FeatureEffects) layout(l *layout) { layoutU32s(l, (*[256]uint32)(e)) }

// AppendTo appends the 1024 bytes of e.
func (e *FeatureEffects) AppendTo(b []byte) []byte { return appendLayout(b, FeatureEffectsSize, e) }

// Parse reads 1024 bytes.
func (e *FeatureEffects) Parse(b []byte) error {
	return parseLayout(b, FeatureEffectsSize, "feature effects log", e)
}

// LogSupported is set for each page of SupportedLogs that can be read.
const LogSupported uint32 = 1 << 0

// SupportedLogs is the Supported Log Pages log page (NVM Express Base 2.0, 5.16.1.1), by log page identifier.
type SupportedLogs [256]uint32

func (s *SupportedLogs) layout(l *layout) { layoutU32s(l, (*[256]uint32)(s)) }

// AppendTo appends the 1024 bytes of s.
func (s *SupportedLogs) AppendTo(b []byte) []byte { return appendLayout(b, SupportedLogsSize, s) }

// Parse reads 1024 bytes.
func (s *SupportedLogs) Parse(b []byte) error {
	return parseLayout(b, SupportedLogsSize, "supported log pages", s)
}

func layoutU32s(l *layout, v *[256]uint32) {
	for i := range v {
		l.u32(4*i, &v[i])
	}
}
