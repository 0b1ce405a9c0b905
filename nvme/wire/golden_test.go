package wire

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hawser.dev/hawser/test/capture"
)

// records returns what the Linux kernel's host and target said to each other, by file.
func records(t testing.TB) map[string][]capture.PDU {
	files, err := filepath.Glob("testdata/linux-*/*.pdus")
	if err != nil || len(files) == 0 {
		t.Fatalf("no records: %v", err)
	}
	all := map[string][]capture.PDU{}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if all[name], err = capture.Parse(f); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f.Close()
	}
	return all
}

// specific returns the PDU specific header of type h.Type.
func specific(h Header) codec {
	switch h.Type {
	case TypeICReq:
		return &ICReq{}
	case TypeICResp:
		return &ICResp{}
	case TypeH2CTermReq, TypeC2HTermReq:
		return &TermReq{}
	case TypeCapsuleCmd:
		return &Command{}
	case TypeCapsuleResp:
		return &Completion{}
	case TypeH2CData, TypeC2HData:
		return &DataPDU{}
	case TypeR2T:
		return &R2T{}
	}
	return nil
}

// TestLinuxGoldens parses every PDU that Linux sent, and every structure in one, and encodes it again to the same bytes.
func TestLinuxGoldens(t *testing.T) {
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	seen := map[string]int{}
	for name, pdus := range records(t) {
		admin := strings.Contains(name, "-q0.")
		commands := map[uint16]*Command{} // open, by CID
		for i, p := range pdus {
			at := fmt.Sprintf("%s, PDU %d", name, i+1)
			var h Header
			if err := h.Parse(p.Bytes); err != nil {
				t.Fatalf("%s: %v", at, err)
			}
			s := specific(h)
			if s == nil || h.HLen != h.Type.HLen() || int(h.PLen) != len(p.Bytes) {
				t.Fatalf("%s: %+v", at, h)
			}
			if err := s.Parse(p.Bytes[HeaderSize:h.HLen]); err != nil {
				t.Fatalf("%s: %v", at, err)
			}
			var data []byte
			again := s.AppendTo(h.AppendTo(nil))
			if h.Flags&FlagHDGST != 0 {
				again = le.AppendUint32(again, crc32.Checksum(again, castagnoli))
				seen["header digest"]++
			}
			if h.PDO > 0 {
				data = p.Bytes[h.PDO:]
				again = append(again, make([]byte, int(h.PDO)-len(again))...)
				if h.Flags&FlagDDGST != 0 {
					data = data[:len(data)-DigestSize]
					again = le.AppendUint32(append(again, data...), crc32.Checksum(data, castagnoli))
					seen["data digest"]++
				} else {
					again = append(again, data...)
				}
			}
			if !bytes.Equal(again, p.Bytes) {
				t.Errorf("%s: %+v %+v\n got %x\nwant %x", at, h, s, again, p.Bytes)
			}
			seen[h.Type.String()]++
			switch s := s.(type) {
			case *Command:
				if s.Flags != CmdPSDT || s.SGL.Addr != 0 || s.SGL.Type != SGLInCapsule && s.SGL.Type != SGLTransport || s.SGL.Type == SGLInCapsule && int(s.SGL.Length) != len(data) {
					t.Errorf("%s: %+v", at, s)
				}
				commands[s.CID] = s
				sameStructures(t, at, seen, admin, s, data)
				sameCommand(t, at, seen, admin, s)
			case *DataPDU:
				if int(s.Length) != len(data) || commands[s.CCCID] == nil {
					t.Errorf("%s: %+v with %d bytes", at, s, len(data))
				} else if h.Type == TypeC2HData && s.Offset == 0 {
					sameStructures(t, at, seen, admin, commands[s.CCCID], data)
				}
			}
		}
	}
	for _, what := range []string{
		"ICReq", "ICResp", "CapsuleCmd", "CapsuleResp", "C2HData", "H2CData", "R2T", "header digest", "data digest",
		"Connect", "Property Get", "Property Set", "Identify", "Get Log Page", "Get Features", "Set Features", "Keep Alive",
		"Asynchronous Event Request", "Read", "Write", "Flush", "Compare", "Write Zeroes", "Dataset Management",
		"ConnectData", "DSMRange", "IdentifyController", "IdentifyNamespace", "IdentifyControllerNVM", "NamespaceList", "NamespaceDescriptors",
		"DiscoveryHeader", "DiscoveryEntry", "ANALog", "SMARTLog", "ErrorLogEntry", "FirmwareLog", "ChangedNamespaces", "CommandEffects",
	} {
		if seen[what] == 0 {
			t.Errorf("no %s in any record", what)
		}
	}
}

// sameStructures parses the data of a command and encodes it again.
func sameStructures(t *testing.T, at string, seen map[string]int, admin bool, c *Command, data []byte) {
	t.Helper()
	same := func(v codec, b []byte) {
		t.Helper()
		name := strings.TrimPrefix(fmt.Sprintf("%T", v), "*wire.")
		seen[name]++
		if err := v.Parse(b); err != nil {
			t.Errorf("%s: %v", at, err)
			return
		}
		got := v.AppendTo(nil)
		for i := range max(len(got), len(b)) { // what one of them lacks is zeros: commands ask for more or less than a structure
			var g, w byte
			if i < len(got) {
				g = got[i]
			}
			if i < len(b) {
				w = b[i]
			}
			if g != w {
				t.Errorf("%s: %s: byte %d is %02x, was %02x", at, name, i, g, w)
			}
		}
	}
	each := func(v func() codec, size int) {
		t.Helper()
		for ; len(data) >= size; data = data[size:] {
			same(v(), data[:size])
		}
	}
	if len(data) == 0 {
		return
	}
	switch {
	case c.Fabrics() && c.FCType() == FCTypeConnect:
		same(&ConnectData{}, data)
	case admin && c.Opcode == OpIdentify && len(data) == IdentifySize:
		switch c.CNS() {
		case CNSController:
			same(&IdentifyController{}, data)
		case CNSNamespace:
			same(&IdentifyNamespace{}, data)
		case CNSActiveNamespaces:
			same(&NamespaceList{}, data)
		case CNSNamespaceDescriptors:
			same(&NamespaceDescriptors{}, data)
		case CNSCommandSetController:
			same(&IdentifyControllerNVM{}, data)
		case CNSIndependentNamespace:
			same(&IndependentNamespace{}, data)
		case CNSCommandSetNamespace: // of other command sets, and the NVM command set's protection information
		default:
			t.Errorf("%s: Identify %02xh", at, c.CNS())
		}
	case admin && c.Opcode == OpGetLogPage:
		p := c.GetLogPage()
		if p.Length != uint64(len(data)) {
			t.Errorf("%s: %+v is answered with %d bytes", at, p, len(data))
		}
		switch p.LID {
		case LogError:
			each(func() codec { return &ErrorLogEntry{} }, ErrorLogEntrySize)
		case LogSMART:
			same(&SMARTLog{}, data)
		case LogFirmwareSlot:
			same(&FirmwareLog{}, data)
		case LogChangedNamespaces:
			same(&ChangedNamespaces{}, data)
		case LogCommandEffects:
			same(&CommandEffects{}, data)
		case LogANA:
			same(&ANALog{}, data)
		case LogDiscovery:
			if p.Offset == 0 { // nvme-cli reads as little as 20 bytes of it
				n := min(len(data), DiscoveryHeaderSize)
				same(&DiscoveryHeader{}, append(bytes.Clone(data[:n]), make([]byte, DiscoveryHeaderSize-n)...))
				data = data[n:]
			}
			each(func() codec { return &DiscoveryEntry{} }, DiscoveryEntrySize)
		default:
			t.Errorf("%s: log page %02xh", at, p.LID)
		}
	case !admin && c.Opcode == OpDSM && c.SGL.Type == SGLInCapsule:
		if c.CDW11 == DSMDeallocate && len(data) == c.DSMRanges()*DSMRangeSize {
			each(func() codec { return &DSMRange{} }, DSMRangeSize)
		}
	}
}

// sameCommand builds the command that Linux sent from what its decoders say, and compares.
func sameCommand(t *testing.T, at string, seen map[string]int, admin bool, c *Command) {
	t.Helper()
	var made Command
	switch {
	case c.Fabrics() && c.FCType() == FCTypeConnect:
		made = c.Connect().Command()
	case c.Fabrics() && c.FCType() == FCTypePropertyGet:
		off, size, _ := c.Property()
		made = PropertyGetCmd(off, size)
	case c.Fabrics() && c.FCType() == FCTypePropertySet:
		off, size, value := c.Property()
		made = PropertySetCmd(off, size, value)
	case admin:
		switch c.Opcode {
		case OpIdentify:
			made = IdentifyCmd(c.CNS(), c.NSID, c.CSI(), c.CNTID())
		case OpGetLogPage:
			made = c.GetLogPage().Command()
		case OpGetFeatures:
			made = GetFeaturesCmd(c.FID(), c.Select(), c.NSID, c.CDW11)
		case OpSetFeatures:
			made = SetFeaturesCmd(c.FID(), c.NSID, c.CDW11)
		case OpKeepAlive:
			made = KeepAliveCmd()
		case OpAER:
			made = AERCmd()
		}
	default:
		control := c.CDW12 &^ 0xffff
		switch c.Opcode {
		case OpRead:
			made = ReadCmd(c.NSID, c.SLBA(), c.Blocks(), control)
		case OpWrite:
			made = WriteCmd(c.NSID, c.SLBA(), c.Blocks(), control)
		case OpCompare:
			made = CompareCmd(c.NSID, c.SLBA(), c.Blocks(), control)
		case OpWriteZeroes:
			made = WriteZeroesCmd(c.NSID, c.SLBA(), c.Blocks(), control)
		case OpFlush:
			made = FlushCmd(c.NSID)
		case OpDSM:
			made = DSMCmd(c.NSID, c.DSMRanges(), c.CDW11)
		}
	}
	name := CommandName(c, admin)
	seen[name]++
	made.CID, made.SGL = c.CID, c.SGL
	if made != *c {
		t.Errorf("%s: %s:\nmade %+v\nsent %+v", at, name, made, *c)
	}
}

// TestLinuxGoldensCut cuts every PDU that Linux sent short: what is left of its header must be refused.
func TestLinuxGoldensCut(t *testing.T) {
	for name, pdus := range records(t) {
		for i, p := range pdus {
			var h Header
			if err := h.Parse(p.Bytes); err != nil {
				t.Fatal(err)
			}
			for n := range int(h.HLen) {
				if n < HeaderSize {
					if h.Parse(p.Bytes[:n]) == nil {
						t.Fatalf("%s, PDU %d: %d bytes of header parse", name, i+1, n)
					}
				} else if specific(h).Parse(p.Bytes[HeaderSize:n]) == nil {
					t.Fatalf("%s, PDU %d: %d bytes of %d parse", name, i+1, n, h.HLen)
				}
			}
		}
	}
}
