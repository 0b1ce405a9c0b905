package wire

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fuzzParse fuzzes the parsers named. What a parser accepts must survive being encoded and parsed again, and what it
// refuses must be refused with an *Error.
func fuzzParse(f *testing.F, names ...string) {
	all := structures()
	for i, name := range names {
		b := all[name].value.AppendTo(nil)
		f.Add(uint8(i), b)
		f.Add(uint8(i), bytes.Repeat([]byte{0xff}, len(b)))
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		s := all[names[int(which)%len(names)]]
		in := bytes.Clone(b)
		first := fresh(s.value)
		if err := first.Parse(b); err != nil {
			if e := (*Error)(nil); !errors.As(err, &e) || e.Offset < 0 || e.Offset > len(b) {
				t.Fatalf("%T: %#v", first, err)
			}
			return
		}
		encoded := first.AppendTo(nil)
		second := fresh(s.value)
		if err := second.Parse(encoded); err != nil {
			t.Fatalf("%T: its own encoding: %v", first, err)
		}
		if !reflect.DeepEqual(first, second) {
			t.Fatalf("%T: %s", first, cmp.Diff(first, second))
		}
		if !bytes.Equal(second.AppendTo(nil), encoded) {
			t.Fatalf("%T: encoding is not stable", first)
		}
		if !bytes.Equal(in, b) {
			t.Fatalf("%T: Parse writes to its input", first)
		}
	})
}

func FuzzPDU(f *testing.F) {
	fuzzParse(f, "Header", "ICReq", "ICResp", "TermReq", "DataPDU", "R2T", "Completion")
}

func FuzzIdentify(f *testing.F) {
	fuzzParse(f, "IdentifyController", "IdentifyNamespace", "IndependentNamespace", "IdentifyControllerNVM",
		"NamespaceDescriptors", "NamespaceList", "ControllerList")
}

func FuzzLogPage(f *testing.F) {
	fuzzParse(f, "DiscoveryHeader", "DiscoveryEntry", "ANALog", "SMARTLog", "ErrorLogEntry", "FirmwareLog",
		"ChangedNamespaces", "CommandEffects", "FeatureEffects", "SupportedLogs")
}

func FuzzCommandData(f *testing.F) { fuzzParse(f, "ConnectData", "DSMRange") }

// FuzzCommand fuzzes the submission queue entry, which has no reserved bytes but three, and every decoder.
func FuzzCommand(f *testing.F) {
	for _, c := range []Command{
		ReadCmd(1, 2, 3, 0), WriteCmd(1, 2, 3, ControlFUA), CompareCmd(1, 2, 3, 0), WriteZeroesCmd(1, 2, 3, ControlDEAC), FlushCmd(1),
		DSMCmd(1, 2, DSMDeallocate), IdentifyCmd(CNSController, 0, 0, 0), GetLogPage{LID: LogANA, Length: 4096}.Command(),
		GetFeaturesCmd(FeatureKeepAlive, 0, 0, 0), SetFeaturesCmd(FeatureNumberOfQueues, 0, QueueCount(2)), KeepAliveCmd(), AERCmd(), AbortCmd(1, 2),
		Connect{QID: 1, SQSize: 31}.Command(), PropertyGetCmd(PropertyCAP, 8), PropertySetCmd(PropertyCC, 4, 1),
	} {
		f.Add(c.AppendTo(nil))
	}
	for _, pdus := range records(f) {
		for _, p := range pdus {
			if sqe, ok := p.Command(); ok {
				f.Add(sqe)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Command
		if err := c.Parse(b); err != nil {
			if len(b) == CommandSize {
				t.Fatal(err)
			}
			return
		}
		want := bytes.Clone(b)
		clear(want[36:39])
		if got := c.AppendTo(nil); !bytes.Equal(got, want) {
			t.Fatalf("%x\n%x", got, want)
		}
		if n := c.Blocks(); n < 1 || n > MaxBlocks {
			t.Errorf("%d blocks", n)
		}
		if n := c.DSMRanges(); n < 1 || n > MaxDSMRanges {
			t.Errorf("%d ranges", n)
		}
		if n := Queues(c.CDW11); n < 1 || n > 65536 {
			t.Errorf("%d queues", n)
		}
		if CommandName(&c, true) == "" || CommandName(&c, false) == "" {
			t.Error("a command without a name")
		}
		again := []Command{c.GetLogPage().Command(), c.Connect().Command()}
		if again[0].GetLogPage() != c.GetLogPage() || again[1].Connect() != c.Connect() {
			t.Error("decoded fields change when encoded again")
		}
		if _, size, _ := c.Property(); size != 0 && size != 4 && size != 8 {
			t.Errorf("a property of %d bytes", size)
		}
	})
}
