package attach

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"hawser.dev/hawser/nvme"
)

const (
	testNQN  = "nqn.2026-01.org.example:vol1"
	testUUID = "7f1c5d66-9b1e-4b55-a1f0-3c6c1b0c9f11"
)

func TestParseTarget(t *testing.T) {
	for _, tt := range []struct{ in, out, portal, name, ns string }{
		{in: "nvme://192.0.2.10/" + testNQN, portal: "192.0.2.10", name: testNQN},
		{in: "nvme://192.0.2.10:4420/" + testNQN, portal: "192.0.2.10:4420", name: testNQN},
		{in: "NVMe+TCP://192.0.2.10:04420/" + testNQN, out: "nvme://192.0.2.10:4420/" + testNQN, portal: "192.0.2.10:4420", name: testNQN},
		{in: "nvme://Storage.Example.ORG/" + testNQN, out: "nvme://storage.example.org/" + testNQN, portal: "storage.example.org", name: testNQN},
		{in: "nvme://[2001:DB8::0:1]:4420/" + testNQN, out: "nvme://[2001:db8::1]:4420/" + testNQN, portal: "[2001:db8::1]:4420", name: testNQN},
		{in: "nvme://[fe80::1%25eth0]/" + testNQN, portal: "[fe80::1%eth0]", name: testNQN},
		{in: "nvme://[fe80::1%eth0]/" + testNQN, out: "nvme://[fe80::1%25eth0]/" + testNQN, portal: "[fe80::1%eth0]", name: testNQN},
		{in: "nvme://[fe80::1%2525]/" + testNQN, portal: "[fe80::1%25]", name: testNQN},
		{in: "nvme://h.example/" + testNQN + "#" + testUUID, portal: "h.example", name: testNQN, ns: testUUID},
		{in: "nvme://h.example/" + testNQN + "#" + strings.ToUpper(testUUID), out: "nvme://h.example/" + testNQN + "#" + testUUID, portal: "h.example", name: testNQN, ns: testUUID},
		{in: "nvme://h.example/" + testNQN + "#298713d5e39dda124ab6c3dda66c799f", portal: "h.example", name: testNQN, ns: "298713d5e39dda124ab6c3dda66c799f"},
		{in: "nvme://h.example/" + testNQN + "#0025385b71b00001", portal: "h.example", name: testNQN, ns: "0025385b71b00001"},
		{in: "nvme://h.example/" + testNQN + "#nsid=12", portal: "h.example", name: testNQN, ns: "nsid=12"},
		{in: "nvme://h.example/nqn.2026-01.org.example:a%2Fb%23c%3Fd%25e", portal: "h.example", name: "nqn.2026-01.org.example:a/b#c?d%e"},
		{in: "nvme+rdma://192.0.2.10/" + testNQN, portal: "nvme+rdma://192.0.2.10", name: testNQN},
		{in: "nvme+fc://nn-0x20000090fae0b5f5:pn-0x10000090fae0b5f5/" + testNQN, portal: "nvme+fc://nn-0x20000090fae0b5f5:pn-0x10000090fae0b5f5", name: testNQN},
		{in: "nvme+loop:///" + testNQN, portal: "nvme+loop://", name: testNQN},
		{in: "iscsi://192.0.2.10/iqn.2026-01.org.example:disk", portal: "iscsi://192.0.2.10", name: "iqn.2026-01.org.example:disk"},
		{in: "iscsi://192.0.2.10:3260/iqn.2026-01.org.example:disk/7", portal: "iscsi://192.0.2.10:3260", name: "iqn.2026-01.org.example:disk"},
	} {
		got, err := ParseTarget(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		out := tt.out
		if out == "" {
			out = tt.in
		}
		if got.String() != out || got.Portal.String() != tt.portal || got.Name != tt.name || got.Namespace.String() != tt.ns {
			t.Errorf("%s: %s, portal %s, name %s, namespace %s", tt.in, got, got.Portal, got.Name, got.Namespace)
		}
	}
}

func TestParseTargetRefused(t *testing.T) {
	for in, want := range map[string]string{
		"":                                          "scheme is missing",
		"192.0.2.10/" + testNQN:                     "scheme is missing",
		"http://h/" + testNQN:                       `unknown scheme "http"`,
		"nvme://h":                                  "name of the subsystem is missing",
		"nvme://h/":                                 "name of the subsystem is missing",
		"nvme:///" + testNQN:                        "address is missing",
		"nvme://h/nqn.bad":                          "invalid NQN",
		"nvme://h/" + testNQN + "/x":                "%2F",
		"nvme://h/" + testNQN + "?x":                "%3F",
		"nvme://h/" + testNQN + "%2":                "cut short",
		"nvme://h/" + testNQN + "%zz":               "percent-encoded",
		"nvme://h/" + testNQN + "#":                 "none of the forms",
		"nvme://h/" + testNQN + "#1":                "none of the forms",
		"nvme://h/" + testNQN + "#nsid=0":           "1 to 4294967294",
		"nvme://h/" + testNQN + "#nsid=":            "1 to 4294967294",
		"nvme://h/" + testNQN + "#nsid=+1":          "1 to 4294967294",
		"nvme://h/" + testNQN + "#nsid=ffff":        "1 to 4294967294",
		"nvme://h/" + testNQN + "#0000000000000000": "zeroes",
		"nvme://h/" + testNQN + "#7f1c5d669b1e-4b55-a1f0-3c6c1b0c9f11": "none of the forms",
		"nvme://h:0/" + testNQN:                   "port",
		"nvme://h:65536/" + testNQN:               "port",
		"nvme://h:/" + testNQN:                    "port",
		"nvme://h:x/" + testNQN:                   "port",
		"nvme://h:1:2/" + testNQN:                 "port",
		"nvme://2001:db8::1/" + testNQN:           "brackets",
		"nvme://[2001:db8::1/" + testNQN:          "closing bracket",
		"nvme://[2001:db8::1]4420/" + testNQN:     "not a port",
		"nvme://[192.0.2.1]/" + testNQN:           "no IPv6",
		"nvme://[fe80::1%a b]/" + testNQN:         "scope",
		"nvme://192.0.2.999/" + testNQN:           "neither an IP address nor a host name",
		"nvme://192.0.2/" + testNQN:               "neither an IP address nor a host name",
		"nvme://a_b..c/" + testNQN:                "neither",
		"nvme://user:secret@h/" + testNQN:         "credentials",
		"nvme+loop://h/" + testNQN:                "loop has no address",
		"nvme://h/" + string(nvme.DiscoveryNQN):   "discovery",
		"iscsi://h/nqn.2026-01.org.example:x":     "invalid iSCSI name",
		"iscsi://h/iqn.2026-01.org.example:x/a":   "LUN",
		"iscsi://h/iqn.2026-01.org.example:x#1":   "no namespaces",
		"nvme://h/" + strings.Repeat("x", maxURL): "at most",
		"nvme://h/\xff":                           "UTF-8",
	} {
		_, err := ParseTarget(in)
		var e *Error
		if !errors.As(err, &e) || e.Cause != CauseUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want a usage error with %q", in, err, want)
		} else if msg := err.Error(); len(msg) > 600 || strings.Contains(msg, "\n") {
			t.Errorf("%q: message is not one line: %q", in, msg)
		}
	}
}

func TestPortal(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1:4420", true},
		{"192.0.2.1", "nvme://192.0.2.1:4420", true},
		{"192.0.2.1", "192.0.2.1:4421", false},
		{"192.0.2.1", "192.0.2.10", false},
		{"[2001:db8::1]", "[2001:0db8:0::0:1]:4420", true},
		{"[::ffff:192.0.2.1]", "192.0.2.1", true},
		{"[fe80::1%eth0]", "[fe80::1%eth1]", false},
		{"Host.example", "host.EXAMPLE:4420", true},
		{"192.0.2.1", "nvme+rdma://192.0.2.1", false},
		{"192.0.2.1:3260", "iscsi://192.0.2.1", false},
		{"iscsi://192.0.2.1", "iscsi://192.0.2.1:3260", true},
	} {
		a, err := ParsePortal(tt.a)
		if err != nil {
			t.Fatal(err)
		}
		b, err := ParsePortal(tt.b)
		if err != nil {
			t.Fatal(err)
		}
		if a.Equal(b) != tt.same || b.Equal(a) != tt.same {
			t.Errorf("%s and %s: same %v", tt.a, tt.b, !tt.same)
		}
	}
	for _, bad := range []string{"", "h/nqn", "h:99999", "[::1", "nvme://u@h", "ftp://h"} {
		if p, err := ParsePortal(bad); CauseOf(err) != CauseUsage {
			t.Errorf("%q: %v, %v", bad, p, err)
		}
	}
}

func TestBinding(t *testing.T) {
	for in, out := range map[string]string{
		"eth1": "eth1", "192.0.2.21": "192.0.2.21", "eth1/192.0.2.21": "eth1/192.0.2.21",
		"::ffff:192.0.2.21": "192.0.2.21", "bond0.100/2001:db8:0::1": "bond0.100/2001:db8::1",
	} {
		b, err := ParseBinding(in)
		if err != nil || b.String() != out {
			t.Errorf("%s: %s, %v", in, b, err)
		}
	}
	for _, bad := range []string{"", "/", "eth1/", "/192.0.2.1", "eth1/eth2", "an-interface-name-too-long", "a b", ".."} {
		if b, err := ParseBinding(bad); CauseOf(err) != CauseUsage {
			t.Errorf("%q: %v, %v", bad, b, err)
		}
	}
}

func FuzzTarget(f *testing.F) {
	for _, s := range []string{
		"nvme://192.0.2.10:4420/" + testNQN + "#" + testUUID, "nvme://[fe80::1%25eth0]/" + testNQN + "#nsid=1", "nvme+loop:///" + testNQN,
		"nvme+fc://nn-0x1:pn-0x2/" + testNQN, "iscsi://h/iqn.2026-01.org.example:x/3", "nvme://h/nqn.2026-01.org.example:%2F%23%3F%25",
		"[::1]:4420", "192.0.2.1", "eth0/192.0.2.1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if target, err := ParseTarget(s); err == nil {
			again, err := ParseTarget(target.String())
			if err != nil || again.String() != target.String() || again.Name != target.Name || again.Portal != target.Portal || again.Namespace != target.Namespace {
				t.Errorf("%q became %q, which became %q, %v", s, target, again, err)
			}
		} else if CauseOf(err) != CauseUsage {
			t.Errorf("%q: %v", s, err)
		}
		if p, err := ParsePortal(s); err == nil {
			if again, err := ParsePortal(p.String()); err != nil || again != p {
				t.Errorf("%q became %q, which became %q, %v", s, p, again, err)
			}
		}
		if b, err := ParseBinding(s); err == nil {
			if again, err := ParseBinding(b.String()); err != nil || again != b {
				t.Errorf("%q became %q, which became %q, %v", s, b, again, err)
			}
		}
		if ValidName(s) == nil && (strings.ContainsAny(s, "/\x00") || strings.HasPrefix(s, ".") || strings.HasPrefix(s, "-") || s == "") {
			t.Errorf("%q is no name for a file", s)
		}
		if sel, err := ParseSelector(s); err == nil && sel.Text != s {
			t.Errorf("%q became %q", s, sel.Text)
		}
	})
}

func TestTargetInJSON(t *testing.T) {
	want, err := ParseTarget("nvme://[2001:db8::1]/" + testNQN + "#nsid=3")
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(want)
	if err != nil || string(b) != `"nvme://[2001:db8::1]/`+testNQN+`#nsid=3"` {
		t.Fatalf("%s, %v", b, err)
	}
	var got Target
	if err := json.Unmarshal(b, &got); err != nil || got.String() != want.String() {
		t.Errorf("%s, %v", got, err)
	}
}
