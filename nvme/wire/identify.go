package wire

import (
	"fmt"
	"math/big"

	"hawser.dev/hawser/nvme"
)

// Uint128 is a 128-bit counter.
type Uint128 struct{ Lo, Hi uint64 }

// String returns the number in decimal.
func (u Uint128) String() string {
	n := new(big.Int).SetUint64(u.Hi)
	return n.Lsh(n, 64).Or(n, new(big.Int).SetUint64(u.Lo)).String()
}

// Bits of IdentifyController fields.
const (
	CMICMultiPort       uint8 = 1 << 0
	CMICMultiController uint8 = 1 << 1
	CMICANA             uint8 = 1 << 3

	CTRATTHostID128 uint32 = 1 << 0
	CTRATTTBKAS     uint32 = 1 << 6 // traffic based keep alive

	CNTRLTypeIO        uint8 = 1
	CNTRLTypeDiscovery uint8 = 2
	CNTRLTypeAdmin     uint8 = 3

	LPASMARTPerNamespace uint8 = 1 << 0
	LPACommandEffects    uint8 = 1 << 1
	LPAExtendedData      uint8 = 1 << 2 // Get Log Page takes an offset

	ANACAPOptimized      uint8 = 1 << 0
	ANACAPNonOptimized   uint8 = 1 << 1
	ANACAPInaccessible   uint8 = 1 << 2
	ANACAPPersistentLoss uint8 = 1 << 3
	ANACAPChange         uint8 = 1 << 4
	ANACAPGroupFixed     uint8 = 1 << 6 // ANAGRPID does not change while the namespace is attached

	ONCSCompare     uint16 = 1 << 0
	ONCSWriteUncor  uint16 = 1 << 1
	ONCSDSM         uint16 = 1 << 2
	ONCSWriteZeroes uint16 = 1 << 3
	ONCSSaveSelect  uint16 = 1 << 4
	ONCSReservation uint16 = 1 << 5
	ONCSTimestamp   uint16 = 1 << 6
	ONCSVerify      uint16 = 1 << 7
	ONCSCopy        uint16 = 1 << 8

	VWCPresent    uint8 = 1 << 0
	VWCNoFlushAll uint8 = 2 << 1 // Flush with NSIDAll is not supported
	VWCFlushAll   uint8 = 3 << 1 // Flush with NSIDAll is supported

	SGLSSupported uint32 = 1 << 0
	SGLSOffset    uint32 = 1 << 20 // the address of an in-capsule data block is an offset

	OFCSDisconnect uint16 = 1 << 0
)

// Sizes of queue entries in SQES and CQES: the required and the largest, as powers of two.
const (
	SQES64 uint8 = 0x66
	CQES16 uint8 = 0x44
)

// Controller types of a discovery controller (DCTYPE).
const (
	DCTypeNotReported uint8 = 0
	DCTypeDirect      uint8 = 1 // DDC
	DCTypeCentral     uint8 = 2 // CDC
)

// IdentifyController is the Identify Controller data structure, CNS 01h (NVM Express Base 2.0, 5.17.2.1, with what
// the NVM command set, NVMe/TCP and later revisions add). Fields without a comment have the specification's meaning.
type IdentifyController struct {
	VID, SSVID           uint16
	SN                   string // ASCII, at most 20 bytes
	MN                   string // ASCII, at most 40 bytes
	FR                   string // ASCII, at most 8 bytes
	RAB                  uint8
	IEEE                 [3]uint8 // OUI, least significant byte first
	CMIC                 uint8
	MDTS                 uint8 // power of two of CAP.MPSMIN; 0 is no limit
	CNTLID               uint16
	VER                  Version
	RTD3R, RTD3E         uint32 // µs
	OAES                 uint32
	CTRATT               uint32
	RRLS                 uint16
	CNTRLTYPE            uint8
	FGUID                nvme.NGUID
	CRDT1, CRDT2, CRDT3  uint16 // 100 ms
	NVMSR, VWCI, MEC     uint8
	OACS                 uint16
	ACL, AERL            uint8 // 0's based
	FRMW, LPA            uint8
	ELPE                 uint8 // 0's based
	NPSS                 uint8 // 0's based
	AVSCC, APSTA         uint8
	WCTEMP, CCTEMP       uint16 // K
	MTFA                 uint16
	HMPRE, HMMIN         uint32
	TNVMCAP, UNVMCAP     Uint128 // bytes
	RPMBS                uint32
	EDSTT                uint16
	DSTO, FWUG           uint8
	KAS                  uint16 // 100 ms; 0 is no keep alive
	HCTMA, MNTMT, MXTMT  uint16
	SANICAP              uint32
	HMMINDS              uint32
	HMMAXD               uint16
	NSETIDMAX, ENDGIDMAX uint16
	ANATT                uint8 // s
	ANACAP               uint8
	ANAGRPMAX, NANAGRPID uint32
	PELS                 uint32
	DOMAINID             uint16
	MEGCAP               Uint128
	SQES, CQES           uint8
	MAXCMD               uint16
	NN                   uint32
	ONCS, FUSES          uint16
	FNA, VWC             uint8
	AWUN, AWUPF          uint16 // logical blocks, 0's based
	ICSVSCC, NWPC        uint8
	ACWU                 uint16 // logical blocks, 0's based
	OCFS                 uint16
	SGLS                 uint32
	MNAN                 uint32
	MAXDNA               Uint128
	MAXCNA               uint32
	SUBNQN               nvme.NQN
	IOCCSZ, IORCSZ       uint32 // 16 bytes
	ICDOFF               uint16 // 16 bytes
	FCATT                uint8
	MSDBD                uint8
	OFCS                 uint16
	DCTYPE               uint8
	PSD                  [32]PowerState
}

// PowerState is one power state descriptor (NVM Express Base 2.0, figure 276).
type PowerState struct {
	MP                 uint16 // maximum power in units of Flags
	Flags              uint8
	ENLAT, EXLAT       uint32 // µs
	RRT, RRL, RWT, RWL uint8
	IDLP               uint16
	IPS                uint8
	ACTP               uint16
	APWS               uint8
}

func (c *IdentifyController) layout(l *layout) {
	l.u16(0, &c.VID)
	l.u16(2, &c.SSVID)
	l.text(4, 20, ' ', &c.SN)
	l.text(24, 40, ' ', &c.MN)
	l.text(64, 8, ' ', &c.FR)
	l.u8(72, &c.RAB)
	l.bytes(73, c.IEEE[:])
	l.u8(76, &c.CMIC)
	l.u8(77, &c.MDTS)
	l.u16(78, &c.CNTLID)
	l.u32(80, (*uint32)(&c.VER))
	l.u32(84, &c.RTD3R)
	l.u32(88, &c.RTD3E)
	l.u32(92, &c.OAES)
	l.u32(96, &c.CTRATT)
	l.u16(100, &c.RRLS)
	l.u8(111, &c.CNTRLTYPE)
	l.bytes(112, c.FGUID[:])
	l.u16(128, &c.CRDT1)
	l.u16(130, &c.CRDT2)
	l.u16(132, &c.CRDT3)
	l.u8(253, &c.NVMSR)
	l.u8(254, &c.VWCI)
	l.u8(255, &c.MEC)
	l.u16(256, &c.OACS)
	l.u8(258, &c.ACL)
	l.u8(259, &c.AERL)
	l.u8(260, &c.FRMW)
	l.u8(261, &c.LPA)
	l.u8(262, &c.ELPE)
	l.u8(263, &c.NPSS)
	l.u8(264, &c.AVSCC)
	l.u8(265, &c.APSTA)
	l.u16(266, &c.WCTEMP)
	l.u16(268, &c.CCTEMP)
	l.u16(270, &c.MTFA)
	l.u32(272, &c.HMPRE)
	l.u32(276, &c.HMMIN)
	l.u128(280, &c.TNVMCAP)
	l.u128(296, &c.UNVMCAP)
	l.u32(312, &c.RPMBS)
	l.u16(316, &c.EDSTT)
	l.u8(318, &c.DSTO)
	l.u8(319, &c.FWUG)
	l.u16(320, &c.KAS)
	l.u16(322, &c.HCTMA)
	l.u16(324, &c.MNTMT)
	l.u16(326, &c.MXTMT)
	l.u32(328, &c.SANICAP)
	l.u32(332, &c.HMMINDS)
	l.u16(336, &c.HMMAXD)
	l.u16(338, &c.NSETIDMAX)
	l.u16(340, &c.ENDGIDMAX)
	l.u8(342, &c.ANATT)
	l.u8(343, &c.ANACAP)
	l.u32(344, &c.ANAGRPMAX)
	l.u32(348, &c.NANAGRPID)
	l.u32(352, &c.PELS)
	l.u16(356, &c.DOMAINID)
	l.u128(368, &c.MEGCAP)
	l.u8(512, &c.SQES)
	l.u8(513, &c.CQES)
	l.u16(514, &c.MAXCMD)
	l.u32(516, &c.NN)
	l.u16(520, &c.ONCS)
	l.u16(522, &c.FUSES)
	l.u8(524, &c.FNA)
	l.u8(525, &c.VWC)
	l.u16(526, &c.AWUN)
	l.u16(528, &c.AWUPF)
	l.u8(530, &c.ICSVSCC)
	l.u8(531, &c.NWPC)
	l.u16(532, &c.ACWU)
	l.u16(534, &c.OCFS)
	l.u32(536, &c.SGLS)
	l.u32(540, &c.MNAN)
	l.u128(544, &c.MAXDNA)
	l.u32(560, &c.MAXCNA)
	nqn(l, 768, "SUBNQN", &c.SUBNQN)
	l.u32(1792, &c.IOCCSZ)
	l.u32(1796, &c.IORCSZ)
	l.u16(1800, &c.ICDOFF)
	l.u8(1802, &c.FCATT)
	l.u8(1803, &c.MSDBD)
	l.u16(1804, &c.OFCS)
	l.u8(1806, &c.DCTYPE)
	for i := range c.PSD {
		c.PSD[i].layout(l, 2048+32*i)
	}
}

func (p *PowerState) layout(l *layout, off int) {
	l.u16(off, &p.MP)
	l.u8(off+3, &p.Flags)
	l.u32(off+4, &p.ENLAT)
	l.u32(off+8, &p.EXLAT)
	l.u8(off+12, &p.RRT)
	l.u8(off+13, &p.RRL)
	l.u8(off+14, &p.RWT)
	l.u8(off+15, &p.RWL)
	l.u16(off+16, &p.IDLP)
	l.u8(off+18, &p.IPS)
	l.u16(off+20, &p.ACTP)
	l.u8(off+22, &p.APWS)
}

// AppendTo appends the 4096 bytes of c.
func (c *IdentifyController) AppendTo(b []byte) []byte { return appendLayout(b, IdentifySize, c) }

// Parse reads 4096 bytes. SUBNQN must end in a NUL.
func (c *IdentifyController) Parse(b []byte) error {
	return parseLayout(b, IdentifySize, "Identify Controller", c)
}

// MaxTransfer returns the most data of a command in bytes given CAP.MPSMIN in bytes, or 0 if there is no limit
// that an int32 can hold.
func (c *IdentifyController) MaxTransfer(mpsmin int) int {
	if c.MDTS == 0 || c.MDTS > 30 || int64(mpsmin)<<c.MDTS > 1<<30 {
		return 0
	}
	return mpsmin << c.MDTS
}

// InCapsule returns how much data a command of an I/O queue may carry in its capsule (IOCCSZ less the command).
func (c *IdentifyController) InCapsule() int64 {
	return max(int64(c.IOCCSZ)*16-CommandSize, 0)
}

// Bits of IdentifyNamespace fields.
const (
	NSFEATThin    uint8 = 1 << 0
	NSFEATOptPerf uint8 = 1 << 4 // NPWG, NPWA, NPDG, NPDA and NOWS are valid

	NMICShared uint8 = 1 << 0

	DLFEATZeroes      uint8 = 1 << 0 // deallocated blocks read as zeros
	DLFEATWriteZeroes uint8 = 1 << 3 // Write Zeroes takes DEAC

	NSATTRWriteProtected uint8 = 1 << 0
)

// LBAFormat is one LBA format of a namespace.
type LBAFormat struct {
	MS uint16 // bytes of metadata for each block
	DS uint8  // block size as a power of two
	RP uint8
}

// MaxLBAFormats is the most LBA formats of a namespace.
const MaxLBAFormats = 64

// IdentifyNamespace is the Identify Namespace data structure of the NVM command set, CNS 00h (NVM Command Set 1.0,
// 4.1.5.1). A namespace that is not active has all fields zero.
type IdentifyNamespace struct {
	NSZE, NCAP, NUSE     uint64 // logical blocks
	NSFEAT               uint8
	NLBAF                uint8 // 0's based
	FLBAS                uint8
	MC, DPC, DPS         uint8
	NMIC, RESCAP         uint8
	FPI, DLFEAT          uint8
	NAWUN, NAWUPF, NACWU uint16 // logical blocks, 0's based
	NABSN, NABO, NABSPF  uint16
	NOIOB                uint16  // logical blocks
	NVMCAP               Uint128 // bytes
	NPWG, NPWA           uint16  // logical blocks, 0's based
	NPDG, NPDA, NOWS     uint16  // logical blocks, 0's based
	MSSRL                uint16
	MCL                  uint32
	MSRC                 uint8
	ANAGRPID             uint32
	NSATTR               uint8
	NVMSETID, ENDGID     uint16
	NGUID                nvme.NGUID
	EUI64                nvme.EUI64
	LBAF                 [MaxLBAFormats]LBAFormat
}

func (n *IdentifyNamespace) layout(l *layout) {
	l.u64(0, &n.NSZE)
	l.u64(8, &n.NCAP)
	l.u64(16, &n.NUSE)
	l.u8(24, &n.NSFEAT)
	l.u8(25, &n.NLBAF)
	l.u8(26, &n.FLBAS)
	l.u8(27, &n.MC)
	l.u8(28, &n.DPC)
	l.u8(29, &n.DPS)
	l.u8(30, &n.NMIC)
	l.u8(31, &n.RESCAP)
	l.u8(32, &n.FPI)
	l.u8(33, &n.DLFEAT)
	l.u16(34, &n.NAWUN)
	l.u16(36, &n.NAWUPF)
	l.u16(38, &n.NACWU)
	l.u16(40, &n.NABSN)
	l.u16(42, &n.NABO)
	l.u16(44, &n.NABSPF)
	l.u16(46, &n.NOIOB)
	l.u128(48, &n.NVMCAP)
	l.u16(64, &n.NPWG)
	l.u16(66, &n.NPWA)
	l.u16(68, &n.NPDG)
	l.u16(70, &n.NPDA)
	l.u16(72, &n.NOWS)
	l.u16(74, &n.MSSRL)
	l.u32(76, &n.MCL)
	l.u8(80, &n.MSRC)
	l.u32(92, &n.ANAGRPID)
	l.u8(99, &n.NSATTR)
	l.u16(100, &n.NVMSETID)
	l.u16(102, &n.ENDGID)
	l.bytes(104, n.NGUID[:])
	l.bytes(120, n.EUI64[:])
	for i := range n.LBAF {
		l.u16(128+4*i, &n.LBAF[i].MS)
		l.u8(130+4*i, &n.LBAF[i].DS)
		l.u8(131+4*i, &n.LBAF[i].RP)
	}
}

// AppendTo appends the 4096 bytes of n.
func (n *IdentifyNamespace) AppendTo(b []byte) []byte { return appendLayout(b, IdentifySize, n) }

// Parse reads 4096 bytes.
func (n *IdentifyNamespace) Parse(b []byte) error {
	return parseLayout(b, IdentifySize, "Identify Namespace", n)
}

// Format returns the LBA format in use.
func (n *IdentifyNamespace) Format() LBAFormat { return n.LBAF[n.FLBAS&15|n.FLBAS>>1&0x30] }

// BlockSize returns the logical block size in bytes, or 0 if the format has none between 512 bytes and 1 MiB.
func (n *IdentifyNamespace) BlockSize() int {
	if ds := n.Format().DS; ds >= 9 && ds <= 20 {
		return 1 << ds
	}
	return 0
}

// IndependentNamespace is the I/O Command Set Independent Identify Namespace data structure, CNS 08h (NVM Express
// Base 2.0, 5.17.2.8).
type IndependentNamespace struct {
	NSFEAT, NMIC, RESCAP, FPI uint8
	ANAGRPID                  uint32
	NSATTR                    uint8
	NVMSETID, ENDGID          uint16
	NSTAT                     uint8 // bit 0: ready
}

// NSTATReady says that the namespace is ready.
const NSTATReady uint8 = 1 << 0

func (n *IndependentNamespace) layout(l *layout) {
	l.u8(0, &n.NSFEAT)
	l.u8(1, &n.NMIC)
	l.u8(2, &n.RESCAP)
	l.u8(3, &n.FPI)
	l.u32(4, &n.ANAGRPID)
	l.u8(8, &n.NSATTR)
	l.u16(10, &n.NVMSETID)
	l.u16(12, &n.ENDGID)
	l.u8(14, &n.NSTAT)
}

// AppendTo appends the 4096 bytes of n.
func (n *IndependentNamespace) AppendTo(b []byte) []byte { return appendLayout(b, IdentifySize, n) }

// Parse reads 4096 bytes.
func (n *IndependentNamespace) Parse(b []byte) error {
	return parseLayout(b, IdentifySize, "independent Identify Namespace", n)
}

// IdentifyControllerNVM is the Identify Controller data structure of the NVM command set, CNS 06h (NVM Command Set
// 1.0, 4.1.5.2).
type IdentifyControllerNVM struct {
	VSL, WZSL, WUSL uint8  // powers of two of CAP.MPSMIN; 0 is no limit
	DMRL            uint8  // most ranges of Dataset Management; 0 is no limit
	DMRSL           uint32 // most logical blocks of one range; 0 is no limit
	DMSL            uint64 // most logical blocks of one command; 0 is no limit
}

func (n *IdentifyControllerNVM) layout(l *layout) {
	l.u8(0, &n.VSL)
	l.u8(1, &n.WZSL)
	l.u8(2, &n.WUSL)
	l.u8(3, &n.DMRL)
	l.u32(4, &n.DMRSL)
	l.u64(8, &n.DMSL)
}

// AppendTo appends the 4096 bytes of n.
func (n *IdentifyControllerNVM) AppendTo(b []byte) []byte { return appendLayout(b, IdentifySize, n) }

// Parse reads 4096 bytes.
func (n *IdentifyControllerNVM) Parse(b []byte) error {
	return parseLayout(b, IdentifySize, "NVM Identify Controller", n)
}

// Types of namespace identification descriptors, and their lengths.
const (
	nidtEUI64, nidlEUI64 = 1, 8
	nidtNGUID, nidlNGUID = 2, 16
	nidtUUID, nidlUUID   = 3, 16
	nidtCSI, nidlCSI     = 4, 1
)

// NamespaceDescriptors is the Namespace Identification Descriptor list, CNS 03h (NVM Express Base 2.0, 5.17.2.3).
// An identifier that is zero is not in the list.
type NamespaceDescriptors struct {
	UUID   nvme.UUID
	NGUID  nvme.NGUID
	EUI64  nvme.EUI64
	HasCSI bool
	CSI    uint8
}

// AppendTo appends a list of 4096 bytes.
func (d *NamespaceDescriptors) AppendTo(b []byte) []byte {
	n := len(b)
	if !d.UUID.IsZero() {
		b = append(append(b, nidtUUID, nidlUUID, 0, 0), d.UUID[:]...)
	}
	if !d.NGUID.IsZero() {
		b = append(append(b, nidtNGUID, nidlNGUID, 0, 0), d.NGUID[:]...)
	}
	if !d.EUI64.IsZero() {
		b = append(append(b, nidtEUI64, nidlEUI64, 0, 0), d.EUI64[:]...)
	}
	if d.HasCSI {
		b = append(b, nidtCSI, nidlCSI, 0, 0, d.CSI)
	}
	return append(b, make([]byte, IdentifySize-(len(b)-n))...)
}

// Parse reads a list of 4096 bytes. Types it does not know are skipped. A known type must have its length and must
// not come twice: the identity of a namespace has to be beyond doubt.
func (d *NamespaceDescriptors) Parse(b []byte) error {
	const name = "namespace descriptor list"
	if len(b) != IdentifySize {
		return lengthError(name, IdentifySize, len(b))
	}
	*d = NamespaceDescriptors{}
	var seen [nidtCSI + 1]bool
	for off := 0; off+4 <= len(b) && b[off] != 0; {
		nidt, nidl := b[off], int(b[off+1])
		if nidl > len(b)-off-4 {
			return &Error{Struct: name, Field: "NIDL", Offset: off + 1, Reason: fmt.Sprintf("%d bytes run past the end", nidl)}
		}
		if int(nidt) < len(seen) {
			if want := [...]int{0, nidlEUI64, nidlNGUID, nidlUUID, nidlCSI}[nidt]; nidl != want {
				return &Error{Struct: name, Field: "NIDL", Offset: off + 1, Reason: fmt.Sprintf("%d bytes for type %d, want %d", nidl, nidt, want)}
			}
			if seen[nidt] {
				return &Error{Struct: name, Field: "NIDT", Offset: off, Reason: fmt.Sprintf("type %d is there twice", nidt)}
			}
			seen[nidt] = true
		}
		nid := b[off+4 : off+4+nidl]
		switch nidt {
		case nidtEUI64:
			copy(d.EUI64[:], nid)
		case nidtNGUID:
			copy(d.NGUID[:], nid)
		case nidtUUID:
			copy(d.UUID[:], nid)
		case nidtCSI:
			d.HasCSI, d.CSI = true, nid[0]
		}
		off += 4 + nidl
	}
	return nil
}

// MaxNamespaceList is the most identifiers in a NamespaceList.
const MaxNamespaceList = IdentifySize / 4

// NamespaceList is a list of namespace identifiers in ascending order, CNS 02h, 07h and 10h (NVM Express Base 2.0,
// 4.5.2). One that is full may go on: ask again with its last identifier.
type NamespaceList []uint32

// AppendTo appends a list of 4096 bytes with the first MaxNamespaceList identifiers of n.
func (n *NamespaceList) AppendTo(b []byte) []byte { return appendNSIDs(b, *n) }

// Parse reads a list of 4096 bytes into the array that n has, if it is large enough. Identifiers must ascend.
func (n *NamespaceList) Parse(b []byte) (err error) {
	*n, err = parseNSIDs("namespace list", (*n)[:0], b)
	return err
}

func appendNSIDs(b []byte, ids []uint32) []byte {
	ids = ids[:min(len(ids), MaxNamespaceList)]
	for _, id := range ids {
		b = le.AppendUint32(b, id)
	}
	return append(b, make([]byte, IdentifySize-4*len(ids))...)
}

func parseNSIDs(name string, ids []uint32, b []byte) ([]uint32, error) {
	if len(b) != IdentifySize {
		return ids, lengthError(name, IdentifySize, len(b))
	}
	last := uint32(0)
	for off := 0; off < len(b); off += 4 {
		id := le.Uint32(b[off:])
		if id == 0 {
			break
		}
		if id <= last || id == NSIDAll {
			return ids[:0], &Error{Struct: name, Field: "NSID", Offset: off, Reason: fmt.Sprintf("%#x after %#x does not ascend", id, last)}
		}
		ids, last = append(ids, id), id
	}
	return ids, nil
}

// MaxControllerList is the most identifiers in a ControllerList.
const MaxControllerList = IdentifySize/2 - 1

// ControllerList is a list of controller identifiers in ascending order, CNS 12h and 13h (NVM Express Base 2.0,
// 4.5.1).
type ControllerList []uint16

// AppendTo appends a list of 4096 bytes with the first MaxControllerList identifiers of c.
func (c *ControllerList) AppendTo(b []byte) []byte {
	ids := (*c)[:min(len(*c), MaxControllerList)]
	b = le.AppendUint16(b, uint16(len(ids)))
	for _, id := range ids {
		b = le.AppendUint16(b, id)
	}
	return append(b, make([]byte, IdentifySize-2-2*len(ids))...)
}

// Parse reads a list of 4096 bytes into the array that c has, if it is large enough.
func (c *ControllerList) Parse(b []byte) error {
	const name = "controller list"
	*c = (*c)[:0]
	if len(b) != IdentifySize {
		return lengthError(name, IdentifySize, len(b))
	}
	n := int(le.Uint16(b))
	if n > MaxControllerList {
		return &Error{Struct: name, Field: "count", Reason: fmt.Sprintf("%d, at most %d fit", n, MaxControllerList)}
	}
	for i := range n {
		*c = append(*c, le.Uint16(b[2+2*i:]))
	}
	return nil
}
