package output

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"unicode"
)

type doc struct {
	Header
	Name  string   `json:"name"`
	Paths []string `json:"paths"`
}

type line struct {
	Header
	Path string `json:"path"`
}

func TestPrint(t *testing.T) {
	d := doc{Name: "a<b> 1e3", Paths: []string{"no", "0x10"}}
	view := View{
		Doc:   d,
		Lines: []Document{line{Path: "x"}, line{Path: "y"}},
		Text: func(t *Text) error {
			t.Fields([2]string{"name", d.Name}, [2]string{"longer", "v"})
			return t.Table([]string{"PATH", "STATE"}, [][]string{{"192.0.2.1:4420", t.Good("live")}, {"hostile\x1b[2J\r\n\xff", "ü"}, {"", ""}})
		},
	}
	for _, tc := range []struct {
		format Format
		color  bool
		want   string
	}{
		{FormatJSON, false, "{\n  \"schemaVersion\": 1,\n  \"name\": \"a<b> 1e3\",\n  \"paths\": [\n    \"no\",\n    \"0x10\"\n  ]\n}\n"},
		{FormatYAML, false, "schemaVersion: 1\nname: a<b> 1e3\npaths:\n- \"no\"\n- \"0x10\"\n"},
		{FormatJSONL, false, "{\"schemaVersion\":1,\"path\":\"x\"}\n{\"schemaVersion\":1,\"path\":\"y\"}\n"},
		{FormatTable, false, "name:   a<b> 1e3\nlonger: v\n" +
			"PATH                    STATE\n192.0.2.1:4420          live\n" + `hostile\x1b[2J\r\n\xff` + "  ü\n\n"},
		{FormatTable, true, "\x1b[1mname:\x1b[22m   a<b> 1e3\n\x1b[1mlonger:\x1b[22m v\n" +
			"\x1b[1mPATH\x1b[22m                    \x1b[0m\x1b[1mSTATE\x1b[22m\n192.0.2.1:4420          \x1b[32mlive\x1b[0m\n" + `hostile\x1b[2J\r\n\xff` + "  ü\n\n"},
	} {
		var b bytes.Buffer
		if err := NewPrinter(&b, tc.format, tc.color).Print(view); err != nil {
			t.Fatal(err)
		}
		if b.String() != tc.want {
			t.Errorf("%s, colour %v:\n%s\nwant\n%s\n%q", tc.format, tc.color, b.String(), tc.want, b.String())
		}
	}
}

// A result that cannot be shown as a whole is not shown at all.
func TestPrintFails(t *testing.T) {
	var b bytes.Buffer
	err := NewPrinter(&b, FormatTable, false).Print(View{Text: func(t *Text) error {
		t.Printf("half")
		return errors.New("x")
	}})
	if err == nil || b.Len() != 0 {
		t.Errorf("%v, %q", err, b.String())
	}
}

func TestPrintError(t *testing.T) {
	var b bytes.Buffer
	PrintError(&b, FormatTable, false, ErrorBody{Code: 5, Message: "attach: no <volume>", Hint: "look"})
	PrintError(&b, FormatYAML, true, ErrorBody{Code: 5, Message: "attach: no <volume>"})
	want := "hawser: attach: no <volume>\nhawser: hint: look\n" + `{"schemaVersion":1,"error":{"code":5,"message":"attach: no <volume>"}}` + "\n"
	if b.String() != want {
		t.Errorf("got %s", b.String())
	}
}

func TestVersion(t *testing.T) {
	var v Version
	if err := v.UnmarshalJSON([]byte("1")); err != nil {
		t.Error(err)
	}
	if err := v.UnmarshalJSON([]byte("2")); err == nil || !strings.Contains(err.Error(), "2") {
		t.Errorf("version 2: %v", err)
	}
}

// Whatever a target calls itself, a terminal sees only what can be printed.
func FuzzSafe(f *testing.F) {
	for _, s := range []string{"nqn.2026-01.org.example:ü", "\x1b[31mred\x1b[0m", "\x1b]0;title\a", "\xff\xfe", "\u202e", "a\r\nb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Palette{}.Safe(s)
		if i := strings.IndexFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%q became %q", s, got)
		}
	})
}
