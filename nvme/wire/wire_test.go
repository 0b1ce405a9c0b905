package wire

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hawser.dev/hawser/nvme"
)

type codec interface {
	AppendTo(b []byte) []byte
	Parse(b []byte) error
}

// structure is one wire structure: a value with something in every field, and what Parse takes beyond its own bytes.
type structure struct {
	value  codec
	min    int  // bytes that Parse is content with, if not all that AppendTo writes
	longer bool // Parse ignores what follows
}

func structures() map[string]structure {
	uuid := nvme.UUID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	return map[string]structure{
		"Header":  {value: &Header{TypeC2HData, FlagLast | FlagSuccess, 24, 28, 0x01020304}, longer: true},
		"ICReq":   {value: &ICReq{PFV: 0x0102, HPDA: 3, Digest: DigestHeader, MaxR2T: 0x04050607}},
		"ICResp":  {value: &ICResp{PFV: 0x0102, CPDA: 3, Digest: DigestData, MaxH2CData: 0x04050607}},
		"TermReq": {value: &TermReq{FES: FESInvalidHeader, FEI: 0x01020304}},
		"DataPDU": {value: &DataPDU{1, 2, 3, 4}},
		"R2T":     {value: &R2T{1, 2, 3, 4}},
		"Command": {value: &Command{1, 2, 3, 4, 5, 6, 7, SGL{8, 9, 10}, 11, 12, 13, 14, 15, 16}},
		"Completion": {value: &Completion{1, 2, 3, 4, 5,
			nvme.StatusInvalidField | nvme.StatusDNR}},
		"DSMRange":    {value: &DSMRange{1, 2, 3}},
		"ConnectData": {value: &ConnectData{uuid, 0x1234, "nqn.2014-08.com.example:s", "nqn.2014-08.com.example:h"}},
		"DiscoveryHeader": {value: &DiscoveryHeader{GENCTR: 1, NUMREC: 2, RECFMT: 3, DLPF: 4, TDLPL: 5},
			min: discoveryHeaderFields, longer: true},
		"DiscoveryEntry": {value: &DiscoveryEntry{TRTYPE: TRTypeTCP, ADRFAM: AdrFamIPv4, SUBTYPE: SubtypeNVM, TREQ: TREQDisableSQFlow,
			PORTID: 1, CNTLID: CNTLIDDynamic, ASQSZ: 32, EFLAGS: EFlagPersistent, TRSVCID: "4420", SUBNQN: "nqn.x", TRADDR: "192.0.2.1", SECTYPE: SecTypeTLS13}},
		"IdentifyController": {value: &IdentifyController{VID: 1, SN: "serial", MN: "a model", FR: "1.0", CMIC: CMICANA, CNTLID: 7, VER: NewVersion(2, 0, 0),
			TNVMCAP: Uint128{1, 2}, SUBNQN: "nqn.x", IOCCSZ: 4, PSD: [32]PowerState{0: {MP: 1}, 31: {APWS: 2}}}},
		"IdentifyNamespace": {value: &IdentifyNamespace{NSZE: 1 << 40, NLBAF: 1, FLBAS: 0x21, NGUID: nvme.NGUID(uuid), EUI64: nvme.EUI64{1, 2},
			LBAF: [64]LBAFormat{0: {8, 9, 1}, 17: {0, 12, 2}}}},
		"IndependentNamespace":  {value: &IndependentNamespace{NMIC: 1, ANAGRPID: 2, NSTAT: NSTATReady}},
		"IdentifyControllerNVM": {value: &IdentifyControllerNVM{1, 2, 3, 4, 5, 6}},
		"NamespaceDescriptors":  {value: &NamespaceDescriptors{uuid, nvme.NGUID(uuid), nvme.EUI64{9}, true, 2}},
		"NamespaceList":         {value: &NamespaceList{1, 2, 0xfffffffe}},
		"ControllerList":        {value: &ControllerList{1, 2, 3}},
		"ChangedNamespaces":     {value: &ChangedNamespaces{NSIDs: []uint32{1, 5}}},
		"ANALog": {value: &ANALog{1, []ANAGroup{{1, 2, ANAOptimized, []uint32{1, 3}}, {2, 3, ANAInaccessible, nil}, {7, 4, ANAChange, []uint32{9}}}},
			longer: true},
		"SMARTLog":       {value: &SMARTLog{Temperature: 300, HostReads: Uint128{5, 6}, TempSensors: [8]uint16{7: 9}}},
		"ErrorLogEntry":  {value: &ErrorLogEntry{ErrorCount: 1, SQID: 2, CID: 3, Status: nvme.StatusInvalidOpcode, LBA: 4, NSID: 5}},
		"FirmwareLog":    {value: &FirmwareLog{AFI: 1, FRS: [7]string{"1.0", 6: "abcdefgh"}}},
		"CommandEffects": {value: &CommandEffects{Admin: [256]uint32{255: 1}, IO: [256]uint32{0: 3}}},
		"FeatureEffects": {value: &FeatureEffects{7: 1}},
		"SupportedLogs":  {value: &SupportedLogs{255: 1}},
	}
}

func fresh(c codec) codec { return reflect.New(reflect.TypeOf(c).Elem()).Interface().(codec) }

func TestRoundTrip(t *testing.T) {
	for name, s := range structures() {
		t.Run(name, func(t *testing.T) {
			prefix := []byte("before")
			b := s.value.AppendTo(bytes.Clone(prefix))
			if !bytes.HasPrefix(b, prefix) {
				t.Fatal("AppendTo does not append")
			}
			b = b[len(prefix):]
			// A value that was used before must be wholly overwritten.
			got := fresh(s.value)
			_ = got.Parse(bytes.Repeat([]byte{0xff}, len(b)))
			if err := got.Parse(b); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(s.value, got); d != "" {
				t.Error(d)
			}
			if again := got.AppendTo(nil); !bytes.Equal(again, b) {
				t.Errorf("encoded again:\n%x\n%x", b, again)
			}
		})
	}
}

func TestStrictPrefixesAreRefused(t *testing.T) {
	for name, s := range structures() {
		b := s.value.AppendTo(nil)
		least := len(b)
		if s.min != 0 {
			least = s.min
		}
		for n := range least {
			var e *Error
			if err := fresh(s.value).Parse(b[:n:n]); !errors.As(err, &e) {
				t.Errorf("%s: %d of %d bytes: %v", name, n, len(b), err)
			} else if e.Struct == "" || e.Reason == "" {
				t.Errorf("%s: empty error %#v", name, e)
			}
		}
		err := fresh(s.value).Parse(append(b, 0))
		if s.longer != (err == nil) {
			t.Errorf("%s: a byte too many: %v", name, err)
		}
	}
}

// Reserved bytes are what no field covers. Setting them must change nothing.
func TestReservedIsIgnored(t *testing.T) {
	for name, s := range structures() {
		switch s.value.(type) {
		case *NamespaceDescriptors, *NamespaceList, *ControllerList, *ChangedNamespaces, *ANALog:
			continue // their extent is in their data
		}
		b := s.value.AppendTo(nil)
		covered := make([]bool, len(b))
		top := fresh(s.value)
		walk(name, reflect.ValueOf(top).Elem(), func(_ string, v reflect.Value) {
			for _, i := range changed(t, v, top) {
				covered[i] = true
			}
		})
		dirty := bytes.Clone(b)
		reserved := 0
		for i := range dirty {
			if !covered[i] && b[i] == 0 {
				dirty[i] = 0xff
				reserved++
			}
		}
		// The byte after an NQN's longest string is its terminator.
		for i := range dirty {
			if i%nqnSize == nqnSize-1 && i > 0 && covered[i-1] {
				dirty[i] = 0
			}
		}
		if name == "Completion" || name == "ErrorLogEntry" {
			dirty[map[string]int{"Completion": 14, "ErrorLogEntry": 12}[name]] |= 1 // phase
		}
		got := fresh(s.value)
		if err := got.Parse(dirty); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(s.value, got); d != "" {
			t.Errorf("%s: %d reserved bytes set: %s", name, reserved, d)
		}
	}
}

// changed sets v, a field of top, to all ones, encodes top, and returns the bytes that differ from its zero encoding.
func changed(t *testing.T, v reflect.Value, top codec) []int {
	t.Helper()
	zero := fresh(top).AppendTo(nil)
	old := reflect.ValueOf(v.Interface())
	switch v.Kind() {
	case reflect.String:
		v.SetString(strings.Repeat("\xff", 4096))
	case reflect.Array:
		for i := range v.Len() {
			v.Index(i).SetUint(0xff)
		}
	default:
		v.SetUint(1<<v.Type().Bits() - 1)
	}
	b := top.AppendTo(nil)
	v.Set(old)
	if len(b) != len(zero) {
		t.Fatalf("%T: the length changes from %d to %d", top, len(zero), len(b))
	}
	var at []int
	for i := range b {
		if b[i] != zero[i] {
			at = append(at, i)
		}
	}
	return at
}

// walk calls f for every field of v. An identifier counts as one field.
func walk(path string, v reflect.Value, f func(string, reflect.Value)) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			walk(path+"."+v.Type().Field(i).Name, v.Field(i), f)
		}
	case reflect.Array:
		if v.Type().PkgPath() == "hawser.dev/hawser/nvme" { // UUID, NGUID, EUI64
			f(path, v)
			return
		}
		for i := range v.Len() {
			walk(fmt.Sprintf("%s[%d]", path, i), v.Index(i), f)
		}
	default:
		f(path, v)
	}
}

// TestLayout sets one field at a time to all ones and compares the bytes that change with testdata/layout.txt, which
// was written from the specification's tables.
func TestLayout(t *testing.T) {
	file, err := os.Open("testdata/layout.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	want := map[string][2]int{}
	for sc := bufio.NewScanner(file); sc.Scan(); {
		line := sc.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		var field string
		var at [2]int
		if _, err := fmt.Sscan(line, &field, &at[0], &at[1]); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if _, ok := want[field]; ok {
			t.Fatalf("%s is there twice", field)
		}
		want[field] = at
	}
	for name, s := range structures() {
		switch s.value.(type) {
		case *NamespaceDescriptors, *NamespaceList, *ControllerList, *ChangedNamespaces, *ANALog:
			continue // goldens below
		}
		top := fresh(s.value)
		owner := map[int]string{}
		walk(name, reflect.ValueOf(top).Elem(), func(path string, v reflect.Value) {
			at := changed(t, v, top)
			for _, i := range at {
				if other, ok := owner[i]; ok {
					t.Errorf("%s and %s share byte %d", path, other, i)
				}
				owner[i] = path
			}
			w, ok := want[path]
			if !ok {
				if !strings.Contains(path, "[") {
					t.Errorf("%s is at %v and not in the table", path, at)
				}
				return
			}
			delete(want, path)
			if len(at) != w[1] || at[0] != w[0] || at[len(at)-1] != w[0]+w[1]-1 {
				t.Errorf("%s is at %v, want %d bytes at %d", path, at, w[1], w[0])
			}
		})
	}
	for f := range want {
		t.Errorf("the table has %s, the code has not", f)
	}
}

func TestListGoldens(t *testing.T) {
	pad := func(s string, n int) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return append(b, make([]byte, n-len(b))...)
	}
	for _, c := range []struct {
		value codec
		want  []byte
	}{
		{&NamespaceDescriptors{UUID: nvme.UUID{0xaa, 15: 0xbb}, NGUID: nvme.NGUID{0xcc}, EUI64: nvme.EUI64{0xdd}, HasCSI: true, CSI: 2},
			pad("0310 0000 aa0000000000000000000000000000bb 0210 0000 cc000000000000000000000000000000 0108 0000 dd00000000000000 0401 0000 02", 4096)},
		{&NamespaceList{1, 0x01020304}, pad("01000000 04030201", 4096)},
		{&ControllerList{1, 0x0102}, pad("0200 0100 0201", 4096)},
		{&ChangedNamespaces{Overflow: true}, pad("ffffffff", 4096)},
		{&ChangedNamespaces{NSIDs: []uint32{3}}, pad("03000000", 4096)},
		{&ANALog{0x11, []ANAGroup{{1, 0x22, ANANonOptimized, []uint32{7}}, {2, 0x33, ANAPersistentLoss, nil}}},
			pad("1100000000000000 0200 000000000000"+
				"01000000 01000000 2200000000000000 02 000000000000000000000000000000 07000000"+
				"02000000 00000000 3300000000000000 04", 16+32+4+32)},
	} {
		if got := c.value.AppendTo(nil); !bytes.Equal(got, c.want) {
			t.Errorf("%#v:\n%x\n%x", c.value, got[:64], c.want[:64])
		}
	}
}

// A list longer than its page must be cut, not grow the page.
func TestListsAreBounded(t *testing.T) {
	ids := make([]uint32, MaxNamespaceList+5)
	for i := range ids {
		ids[i] = uint32(i + 1)
	}
	n := NamespaceList(ids)
	b := n.AppendTo(nil)
	var got NamespaceList
	if err := got.Parse(b); err != nil || len(b) != IdentifySize || len(got) != MaxNamespaceList {
		t.Errorf("%d bytes, %d identifiers, %v", len(b), len(got), err)
	}
	var ch ChangedNamespaces
	if err := ch.Parse((&ChangedNamespaces{NSIDs: ids}).AppendTo(nil)); err != nil || !ch.Overflow || ch.NSIDs != nil {
		t.Errorf("%+v, %v", ch, err)
	}
	c := ControllerList(make([]uint16, MaxControllerList+1))
	b = c.AppendTo(nil)
	if err := c.Parse(b); err != nil || len(b) != IdentifySize || len(c) != MaxControllerList {
		t.Errorf("%d bytes, %d identifiers, %v", len(b), len(c), err)
	}
}

func TestParseRefuses(t *testing.T) {
	edit := func(c codec, edits ...int) []byte {
		b := c.AppendTo(nil)
		for i := 0; i < len(edits); i += 2 {
			b[edits[i]] = byte(edits[i+1])
		}
		return b
	}
	fill := func(c codec, from, to int) []byte {
		b := c.AppendTo(nil)
		for i := from; i < to; i++ {
			b[i] = 'x'
		}
		return b
	}
	ids := &NamespaceDescriptors{UUID: nvme.UUID{1}, NGUID: nvme.NGUID{1}}
	ana := &ANALog{Groups: []ANAGroup{{ID: 1, NSIDs: []uint32{1, 2}}}}
	for _, c := range []struct {
		what   string
		into   codec
		b      []byte
		field  string
		offset int
	}{
		{"unterminated SUBNQN", &ConnectData{}, fill(&ConnectData{}, 256, 512), "SUBNQN", 256},
		{"unterminated HOSTNQN", &ConnectData{}, fill(&ConnectData{}, 512, 768), "HOSTNQN", 512},
		{"both unterminated", &ConnectData{}, fill(&ConnectData{}, 256, 768), "SUBNQN", 256},
		{"unterminated SUBNQN", &IdentifyController{}, fill(&IdentifyController{}, 768, 1024), "SUBNQN", 768},
		{"unterminated SUBNQN", &DiscoveryEntry{}, fill(&DiscoveryEntry{}, 256, 512), "SUBNQN", 256},
		{"UUID of 15 bytes", &NamespaceDescriptors{}, edit(ids, 1, 15), "NIDL", 1},
		{"UUID of 0 bytes", &NamespaceDescriptors{}, edit(ids, 1, 0), "NIDL", 1},
		{"two UUIDs", &NamespaceDescriptors{}, edit(ids, 20, 3), "NIDT", 20},
		{"past the end", &NamespaceDescriptors{}, fill(ids, 0, 4096), "NIDL", 4093 - 4093%(4+'x') + 1},
		{"not ascending", &NamespaceList{}, edit(&NamespaceList{1, 2}, 4, 1), "NSID", 4},
		{"all ones", &NamespaceList{}, edit(&NamespaceList{}, 0, 255, 1, 255, 2, 255, 3, 255), "NSID", 0},
		{"overflow not alone", &ChangedNamespaces{}, edit(&ChangedNamespaces{NSIDs: []uint32{1}}, 4, 255, 5, 255, 6, 255, 7, 255), "NSID", 4},
		{"2048 controllers", &ControllerList{}, edit(&ControllerList{}, 1, 8), "count", 0},
		{"65535 groups", &ANALog{}, edit(ana, 8, 255, 9, 255), "NGRPS", 8},
		{"2^32-1 namespaces", &ANALog{}, edit(ana, 20, 255, 21, 255, 22, 255, 23, 255), "NNSIDS", 20},
		{"2^30 namespaces", &ANALog{}, edit(ana, 20, 0, 23, 0x40), "NNSIDS", 20},
		{"second group cut off", &ANALog{}, append(edit(ana, 8, 2), make([]byte, 31)...), "group", 56},
	} {
		var e *Error
		if err := c.into.Parse(c.b); !errors.As(err, &e) || e.Field != c.field || e.Offset != c.offset {
			t.Errorf("%T, %s: %v (%+v)", c.into, c.what, err, e)
		} else if strings.ContainsAny(err.Error(), "\n\x00") {
			t.Errorf("%T, %s: error %q", c.into, c.what, err)
		}
	}
	if err := new(NamespaceDescriptors).Parse(edit(ids, 20, 9)); err != nil {
		t.Errorf("an unknown descriptor type is not skipped: %v", err)
	}
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"4420":                            "4420",
		"4420   ":                         "4420",
		"4420\x00junk":                    "4420",
		"4420  \x00  ":                    "4420",
		"\x00":                            "",
		" 4420":                           " 4420",
		strings.Repeat("4", 32) + "spill": strings.Repeat("4", 32),
	} {
		b := (&DiscoveryEntry{}).AppendTo(nil)
		copy(b[32:64], in)
		var e DiscoveryEntry
		if err := e.Parse(b); err != nil || e.TRSVCID != want {
			t.Errorf("%q is read as %q, %v", in, e.TRSVCID, err)
		}
	}
	c := IdentifyController{SN: "123456789012345678901234567890", MN: "m", FR: ""}
	b := c.AppendTo(nil)
	if got := string(b[4:72]); got != "12345678901234567890"+"m"+strings.Repeat(" ", 39+8) {
		t.Errorf("padded as %q", got)
	}
}

func TestCommands(t *testing.T) {
	hexOf := func(c Command) string {
		b := c.AppendTo(nil)
		if b[1] != 0x40 || b[39] != 0x5a {
			t.Errorf("opcode %02x: PSDT %02x, SGL type %02x", b[0], b[1], b[39])
		}
		return fmt.Sprintf("%02x %x %x", b[0], b[4:8], bytes.TrimRight(b[40:], "\x00"))
	}
	for _, c := range []struct {
		cmd  Command
		want string // opcode, NSID or FCTYPE, dwords 10 to 15 without trailing zeros
	}{
		{ReadCmd(1, 0x0102030405060708, 1, 0), "02 01000000 0807060504030201"},
		{WriteCmd(2, 0x10, MaxBlocks, ControlFUA), "01 02000000 1000000000000000ffff0040"},
		{CompareCmd(3, 1, 2, 0), "05 03000000 010000000000000001"},
		{WriteZeroesCmd(4, 1, 8, ControlDEAC|ControlLR), "08 04000000 010000000000000007000082"},
		{FlushCmd(NSIDAll), "00 ffffffff "},
		{DSMCmd(5, 256, DSMDeallocate), "09 05000000 ff00000004"},
		{IdentifyCmd(CNSController, 0, 0, 0), "06 00000000 01"},
		{IdentifyCmd(CNSCommandSetNamespace, 7, 2, 0x1234), "06 07000000 0500341200000002"},
		{GetLogPage{LID: LogDiscovery, LSP: DiscoveryAllSubsys, RAE: true, Length: 4096, Offset: 1024}.Command(), "02 00000000 7084ff0300000000" + "0004"},
		{GetLogPage{NSID: NSIDAll, LID: LogSMART, Length: 1 << 34, LSI: 0x0102, CSI: 3}.Command(), "02 ffffffff 0200ffffffff02010000000000000000" + "00000003"},
		{GetFeaturesCmd(FeatureKeepAlive, SelectSupported, 0, 0), "0a 00000000 0f03"},
		{SetFeaturesCmd(FeatureNumberOfQueues, 0, QueueCount(4)), "09 00000000 0700000003000300"[:len("09 00000000 07000000030003")]},
		{KeepAliveCmd(), "18 00000000 "},
		{AERCmd(), "0c 00000000 "},
		{AbortCmd(0x0102, 0x0304), "08 00000000 02010403"},
		{Connect{QID: 1, SQSize: 127, CATTR: ConnectDisableSQFlow, KATO: 5000}.Command(), "7f 01000000 000001007f0004008813"},
		{PropertyGetCmd(PropertyCAP, 8), "7f 04000000 01"},
		{PropertySetCmd(PropertyCC, 4, 0x00460001), "7f 00000000 000000001400000001004600"[:len("7f 00000000 0000000014000000010046")]},
	} {
		if got := hexOf(c.cmd); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", CommandName(&c.cmd, true), got, c.want)
		}
	}
}

func TestCommandDecoders(t *testing.T) {
	c := WriteCmd(2, 0x0102030405060708, MaxBlocks, ControlFUA)
	if c.SLBA() != 0x0102030405060708 || c.Blocks() != MaxBlocks || !c.FUA() || c.DEAC() || !c.ToController() || c.FromController() {
		t.Errorf("write: %+v", c)
	}
	c = WriteZeroesCmd(2, 1, 1, ControlDEAC)
	if !c.DEAC() || c.FUA() || c.Blocks() != 1 || c.ToController() || c.FromController() {
		t.Errorf("write zeroes: %+v", c)
	}
	c = DSMCmd(1, 256, DSMDeallocate)
	if c.DSMRanges() != 256 || !c.ToController() {
		t.Errorf("DSM: %+v", c)
	}
	c = IdentifyCmd(CNSControllers, 1, 2, 0x1234)
	if c.CNS() != CNSControllers || c.CSI() != 2 || c.CNTID() != 0x1234 || !c.FromController() {
		t.Errorf("identify: %+v", c)
	}
	for _, p := range []GetLogPage{
		{NSIDAll, LogANA, ANAGroupsOnly, true, 4, 1, 1 << 40, 2},
		{1, 0xff, 0x7f, false, 1 << 34, 0xffff, 1<<64 - 4, 0xff},
	} {
		c = p.Command()
		if got := c.GetLogPage(); got != p {
			t.Errorf("get log page: %+v, want %+v", got, p)
		}
	}
	c = GetFeaturesCmd(FeatureAsyncEvents, SelectSaved, 1, 2)
	if c.FID() != FeatureAsyncEvents || c.Select() != SelectSaved || c.Save() {
		t.Errorf("get features: %+v", c)
	}
	if sqid, cid := new(Command).Abort(); sqid != 0 || cid != 0 {
		t.Error("abort of nothing")
	}
	c = AbortCmd(1, 0xffff)
	if sqid, cid := c.Abort(); sqid != 1 || cid != 0xffff {
		t.Error("abort")
	}
	conn := Connect{RecFmt: 1, QID: 2, SQSize: 3, CATTR: 4, KATO: 5}
	c = conn.Command()
	if got := c.Connect(); got != conn || !c.Fabrics() || c.FCType() != FCTypeConnect || !c.ToController() || c.PSDT() != 1 || c.Fuse() != 0 {
		t.Errorf("connect: %+v", got)
	}
	c = PropertySetCmd(PropertyCC, 8, 1<<63|1)
	if off, size, v := c.Property(); off != PropertyCC || size != 8 || v != 1<<63|1 || c.ToController() || c.FromController() {
		t.Errorf("property set: %x %d %x", off, size, v)
	}
	c.CDW10 = 2
	if _, size, _ := c.Property(); size != 0 {
		t.Error("reserved property size accepted")
	}
	c.SetFCType(FCTypeAuthRecv)
	if !c.FromController() || c.ToController() {
		t.Error("direction of Authentication Receive")
	}
	if Queues(QueueCount(7)) != 7 || Queues(3|1<<16) != 2 {
		t.Error("number of queues")
	}
	if e := EventANAChanged; e.Type() != EventTypeNotice || e.Info() != 3 || e.LogPage() != LogANA {
		t.Error("ANA event")
	}
	if ConnectInvalid(ConnectDataSubNQN, true) != 0x10100 || ConnectInvalid(ConnectCmdSQSize, false) != 44 {
		t.Error("ConnectInvalid")
	}
}

func TestProperties(t *testing.T) {
	c := NewCAP(1024, 7200e6, CAPCQR|CAPCSSNVM|CAPCSSIOC)
	if c.Entries() != 1024 || c.Timeout() != 7500e6 || c.MPSMin() != 4096 || uint64(c) != 0x0000_0820_0f01_03ff {
		t.Errorf("CAP %x: %d entries, %v, %d", uint64(c), c.Entries(), c.Timeout(), c.MPSMin())
	}
	if CAP(2<<48).MPSMin() != 16384 || CAP(0).Entries() != 1 {
		t.Error("CAP")
	}
	cc := CCEnable | CCIOEntries | CCCSSAll
	if !cc.Enabled() || cc.CSS() != 6 || cc.MPS() != 0 || cc.AMS() != 0 || cc.IOSQES() != 6 || cc.IOCQES() != 4 || cc.SHN() != 0 || uint32(cc) != 0x460061 {
		t.Errorf("CC %x", uint32(cc))
	}
	if cc.WithSHN(CCSHNAbrupt).WithSHN(CCSHNNormal).SHN() != 1 {
		t.Error("SHN")
	}
	if s := CSTSReady | CSTSSHSTComplete; !s.Ready() || s.Fatal() || !s.ShutdownComplete() || (CSTSSHSTComplete | CSTSSHSTOccurring).ShutdownComplete() {
		t.Error("CSTS")
	}
	if v := NewVersion(1, 2, 1); v != 0x00010201 || v.String() != "1.2.1" {
		t.Errorf("version %x %v", uint32(v), v)
	}
	if r := CRTO(3<<16 | 2); r.WithMedia() != 1e9 || r.IndependentOfMedia() != 1500e6 {
		t.Error("CRTO")
	}
}

func TestIdentifyHelpers(t *testing.T) {
	var n IdentifyNamespace
	if n.BlockSize() != 0 {
		t.Error("an inactive namespace has a block size")
	}
	n.LBAF[0x35] = LBAFormat{DS: 12}
	n.FLBAS = 0x60 | 0x10 | 0x05
	if n.BlockSize() != 4096 {
		t.Errorf("format %+v", n.Format())
	}
	n.FLBAS = 0xff // the format index has 6 bits
	n.LBAF[63].DS = 255
	if n.BlockSize() != 0 {
		t.Error("2^255 bytes")
	}
	for mdts, want := range map[uint8]int{0: 0, 1: 8192, 8: 1 << 20, 18: 1 << 30, 19: 0, 255: 0} {
		if got := (&IdentifyController{MDTS: mdts}).MaxTransfer(4096); got != want {
			t.Errorf("MDTS %d: %d", mdts, got)
		}
	}
	for ioccsz, want := range map[uint32]int64{0: 0, 3: 0, 4: 0, 260: 4096, 1028: 16384, 1<<32 - 1: (1<<32-1)*16 - 64} {
		if got := (&IdentifyController{IOCCSZ: ioccsz}).InCapsule(); got != want {
			t.Errorf("IOCCSZ %d: %d", ioccsz, got)
		}
	}
	if s := (Uint128{Lo: 5, Hi: 1}).String(); s != "18446744073709551621" {
		t.Error(s)
	}
}

func TestPDUTypes(t *testing.T) {
	hlen := map[PDUType]uint8{0: 128, 1: 128, 2: 24, 3: 24, 4: 72, 5: 24, 6: 24, 7: 24, 9: 24}
	for v := range 256 {
		p := PDUType(v)
		if p.HLen() != hlen[p] {
			t.Errorf("%v: HLEN %d", p, p.HLen())
		}
		if known := !strings.HasPrefix(p.String(), "PDU type"); known != (hlen[p] != 0) {
			t.Errorf("%02x is called %v", v, p)
		}
	}
	for fes := range uint16(8) {
		if known := !strings.HasPrefix(FESString(fes), "Fatal"); known != (fes >= 1 && fes <= 6) {
			t.Errorf("FES %d is called %s", fes, FESString(fes))
		}
	}
}

// The CRC32C vectors of RFC 3720, B.4, and a Keep Alive capsule with header digest.
func TestDigestGolden(t *testing.T) {
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	ascending := make([]byte, 32)
	for i := range ascending {
		ascending[i] = byte(i)
	}
	for _, c := range []struct {
		b    []byte
		want uint32
	}{
		{[]byte("123456789"), 0xe3069283},
		{make([]byte, 32), 0x8a9136aa},
		{bytes.Repeat([]byte{0xff}, 32), 0x62a8ab43},
		{ascending, 0x46dd794e},
	} {
		if got := crc32.Checksum(c.b, castagnoli); got != c.want {
			t.Errorf("%x: %08x, want %08x", c.b, got, c.want)
		}
	}
	cmd := KeepAliveCmd()
	cmd.CID = 5
	h := Header{Type: TypeCapsuleCmd, Flags: FlagHDGST, HLen: HLenCmd, PLen: HLenCmd + DigestSize}
	b := cmd.AppendTo(h.AppendTo(nil))
	b = le.AppendUint32(b, crc32.Checksum(b, castagnoli))
	want := "040148004c000000" + "18400500" + strings.Repeat("00", 35) + "5a" + strings.Repeat("00", 24) + "2b87c194"
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	buf := make([]byte, 0, 256)
	var h Header
	var c Command
	var q Completion
	var d DataPDU
	var r R2T
	if n := testing.AllocsPerRun(100, func() {
		b := h.AppendTo(buf[:0])
		b = c.AppendTo(b)
		b = q.AppendTo(b)
		b = d.AppendTo(b)
		b = r.AppendTo(b)
		if h.Parse(b[:8]) != nil || c.Parse(b[8:72]) != nil || q.Parse(b[72:88]) != nil || d.Parse(b[88:104]) != nil || r.Parse(b[104:120]) != nil {
			t.Error("does not parse")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
