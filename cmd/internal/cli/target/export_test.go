package target

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/nvme"
)

const (
	testNQN  = "nqn.2026-01.org.example:vol1"
	testUUID = "0f5c9b6e-8d0b-4b57-9d5c-2a4b6d1c7e01"
)

func TestParseExport(t *testing.T) {
	uuid, err := nvme.ParseUUID(testUUID)
	if err != nil {
		t.Fatal(err)
	}
	for s, want := range map[string]export{
		"disk.img":                  {path: "disk.img"},
		`/a\,b,shared`:              {path: "/a,b", shared: true},
		`C:\x\y`:                    {path: `C:\x\y`},
		"mem:a,size=64M,block=4096": {path: "mem:a", size: 64 << 20, block: 4096},
		"/dev/x,nqn=" + testNQN + ",nsid=4294967294,uuid=" + testUUID: {path: "/dev/x", nqn: testNQN, nsid: 0xfffffffe, uuid: uuid},
	} {
		got, err := parseExport(s)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", s, got, err, want)
		}
	}
	for s, want := range map[string]string{
		"":                         "the path is missing",
		",nsid=1":                  "the path is missing",
		"x,":                       `"": the form is PATH`,
		"x,nsid=0":                 "nsid=0: a namespace ID is a number from 1",
		"x,nsid=4294967295":        "nsid=4294967295: ",
		"x,nsid=-1":                "nsid=-1: ",
		"x,nsid=1,nsid=2":          "nsid is given twice",
		"x,nsid":                   `"nsid": the form is`,
		"x,shared=yes":             `"shared=yes": the form is`,
		"x,block=513":              "block=513: blocks have 512 or 4096 bytes",
		"x,size=0":                 "size=0: nothing cannot be exported",
		"x,size=1X":                "size=1X: want a number of bytes",
		"x,size=":                  "size=: want a number of bytes",
		"x,uuid=12":                `invalid UUID "12"`,
		"x,uuid=" + nilUUID:        "a UUID of zero is none",
		"x,nqn=vol1":               `invalid NQN "vol1"`,
		"x,nqn=":                   "invalid NQN",
		"x,nqn=" + discovery:       "names the discovery service",
		"x,ana=1":                  `unknown option "ana"`,
		"x, shared":                `" shared"`,
		"mem:a,size=64M,path=/etc": `unknown option "path"`,
	} {
		if got, err := parseExport(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v, want %s", s, got, err, want)
		}
	}
}

const (
	nilUUID   = "00000000-0000-0000-0000-000000000000"
	discovery = string(nvme.DiscoveryNQN)
)

func TestParseExports(t *testing.T) {
	for _, tc := range []struct {
		values []string
		want   string
	}{
		{[]string{"a", "b,nsid=0"}, `--export "b,nsid=0": nsid=0`},
		{[]string{"a", "./a,nsid=2"}, `--export "a" and --export "./a,nsid=2" are the same`},
		{[]string{"a,nsid=1,nqn=" + testNQN, "b,nqn=" + testNQN + ",nsid=1"}, "namespace ID 1 is used twice"},
		{[]string{"a,uuid=" + testUUID, "b,uuid=" + strings.ToUpper(testUUID)}, "have the same UUID"},
	} {
		if _, err := parseExports(tc.values); exit.CodeOf(err) != exit.Usage || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v, want %s", tc.values, err, tc.want)
		}
	}
	if got, err := parseExports([]string{"a,nsid=1", "b,nsid=1"}); err != nil || len(got) != 2 {
		t.Errorf("in different subsystems: %v", err)
	}
}

func TestParseListens(t *testing.T) {
	got, err := parseListens([]string{"127.0.0.1", "0.0.0.0:1", "[::]", "[fe80::1%eth0]:65535", "127.0.0.1:0", "127.0.0.1:0"})
	want := []nvme.Addr{
		{Transport: "tcp", Host: "127.0.0.1", Service: "4420"},
		{Transport: "tcp", Host: "0.0.0.0", Service: "1"},
		{Transport: "tcp", Host: "::", Service: "4420"},
		{Transport: "tcp", Host: "fe80::1%eth0", Service: "65535"},
		{Transport: "tcp", Host: "127.0.0.1", Service: "0"},
		{Transport: "tcp", Host: "127.0.0.1", Service: "0"},
	}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v\n%s", err, d)
	}
	for v, want := range map[string]string{
		"":                "ADDR must be an address",
		":4420":           "ADDR must be an address",
		"*":               "ADDR must be an address",
		"localhost":       "ADDR must be an address",
		"::1":             "in brackets",
		"[::1":            "']' is missing",
		"[127.0.0.1]":     "IPv4 addresses do not",
		"127.0.0.1:":      "PORT must be a number",
		"127.0.0.1:x":     "PORT must be a number",
		"127.0.0.1:+1":    "PORT must be a number",
		"127.0.0.1:65536": "PORT must be a number",
		"[::1]4420":       "PORT must be a number",
	} {
		if _, err := parseListens([]string{"127.0.0.1", v}); exit.CodeOf(err) != exit.Usage || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), `"`+v+`"`) {
			t.Errorf("%q: %v, want %s", v, err, want)
		}
	}
	if _, err := parseListens([]string{"127.0.0.1", "127.0.0.1:4420"}); err == nil {
		t.Error("one portal was taken twice")
	}
}

func TestURL(t *testing.T) {
	uuid, err := nvme.ParseUUID(testUUID)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		portals []string
		want    string
	}{
		{[]string{"127.0.0.1:4420"}, "nvme://127.0.0.1:4420/" + testNQN + "#" + testUUID},
		{[]string{"0.0.0.0:4420", "[::1]:4421"}, "nvme://[::1]:4421/" + testNQN + "#" + testUUID},
		{[]string{"[::]:4420"}, ""},
	} {
		if got := url(tc.portals, testNQN, uuid); got != tc.want {
			t.Errorf("%q: %s, want %s", tc.portals, got, tc.want)
		}
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := notify(path, "READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	if n, err := c.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("%q, %v", b[:n], err)
	}
	if err := notify("", "READY=1"); err != nil {
		t.Error(err)
	}
	if err := notify(path+"x", "READY=1"); err == nil {
		t.Error("told nobody, and did not notice")
	}
}

func FuzzParseExport(f *testing.F) {
	for _, s := range []string{`/a\,b,shared`, "mem:a,size=64M,block=4096", "x,nqn=" + testNQN + ",nsid=1,uuid=" + testUUID, "x,size=0.3K", ",", "x,,", `\`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := parseExport(s)
		if err != nil {
			return
		}
		if e.path == "" || e.size < 0 || e.nsid == 0xffffffff || e.block != 0 && e.block != 512 && e.block != 4096 || e.nqn != "" && e.nqn.Validate() != nil {
			t.Errorf("%q: %+v", s, e)
		}
	})
}

func FuzzParseListen(f *testing.F) {
	for _, s := range []string{"127.0.0.1", "[::]:0", "[fe80::1%eth0]:65535", "[", "1.2.3.4:", ":1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseListen(s)
		if err != nil {
			return
		}
		if again, err := parseListen(a.String()); err != nil || again != a {
			t.Errorf("%q: %s reads as %s, %v", s, a, again, err)
		}
	})
}
