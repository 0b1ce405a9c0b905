package nvme

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestAddrString(t *testing.T) {
	for _, c := range []struct {
		a    Addr
		want string
	}{
		{Addr{TransportTCP, "192.0.2.1", "4420"}, "192.0.2.1:4420"},
		{Addr{TransportTCP, "fe80::1%eth0", "4420"}, "[fe80::1%eth0]:4420"},
		{Addr{TransportTCP, "storage.example", "8009"}, "storage.example:8009"},
		{Addr{TransportTCP, "2001:db8::1", ""}, "[2001:db8::1]"},
		{Addr{TransportLoop, "nqn", ""}, "nqn"},
	} {
		if got := c.a.String(); got != c.want {
			t.Errorf("%#v = %q, want %q", c.a, got, c.want)
		}
	}
}

func TestIdentifiers(t *testing.T) {
	type ids struct {
		U UUID
		N NGUID
		E EUI64
	}
	u, err1 := ParseUUID("F81D4FAE-7dec-11d0-a765-00a0c91e6bf6")
	n, err2 := ParseNGUID("0123456789abcdef0123456789ABCDEF")
	e, err3 := ParseEUI64("0025385b71b00001")
	if err1 != nil || err2 != nil || err3 != nil {
		t.Fatal(err1, err2, err3)
	}
	if u[0] != 0xf8 || u[15] != 0xf6 || n[1] != 0x23 || e[1] != 0x25 {
		t.Errorf("byte order: % x, % x, % x", u, n, e)
	}
	for _, in := range []ids{{u, n, e}, {}} {
		b, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		out := ids{U: UUID{1}, N: NGUID{1}, E: EUI64{1}}
		if err := json.Unmarshal(b, &out); err != nil || out != in {
			t.Errorf("%s became %+v, %v", b, out, err)
		}
	}
	for _, s := range []string{"", "f81d4fae7dec11d0a76500a0c91e6bf6", "f81d4fae-7dec-11d0-a765-00a0c91e6bfg", "f81d4fae-7dec-11d0-a765-00a0c91e6bf", "-81d4fae-7dec-11d0-a765-00a0c91e6bf6"} {
		if _, err := ParseUUID(s); err == nil {
			t.Errorf("ParseUUID(%q) succeeded", s)
		}
		if s == "" {
			continue
		}
		if err := new(UUID).UnmarshalText([]byte(s)); err == nil {
			t.Errorf("UnmarshalText(%q) succeeded", s)
		}
	}
	if n2, err := ParseNGUID("f81d4fae-7dec-11d0-a765-00a0c91e6bf6"); err != nil || UUID(n2) != u {
		t.Errorf("NGUID in groups: %v, %v", n2, err)
	}
	if _, err := ParseNGUID("0123"); err == nil {
		t.Error("short NGUID accepted")
	}
	if _, err := ParseEUI64("0025385b71b0000"); err == nil {
		t.Error("short EUI-64 accepted")
	}
	a, b := NewUUID(), NewUUID()
	if a == b || a.String()[14] != '4' || !strings.Contains("89ab", a.String()[19:20]) {
		t.Errorf("NewUUID: %v, %v", a, b)
	}
}

func TestStatus(t *testing.T) {
	s := StatusInvalidField | StatusDNR | StatusMore | 2<<11
	if s.Code() != StatusInvalidField || !s.DNR() || !s.More() || s.RetryDelay() != 2 || s.OK() || s.PathError() {
		t.Errorf("%04x is taken apart wrongly", uint16(s))
	}
	if !StatusSuccess.OK() || !(StatusMore).OK() || !StatusANAInaccessible.PathError() || Status(0x700).PathError() {
		t.Error("OK or PathError")
	}
	for _, c := range []struct {
		s    Status
		want string
	}{
		{s, "Invalid Field in Command (002h, DNR)"},
		{StatusSuccess, "Successful Completion (000h)"},
		{StatusConnectInvalidHost | StatusDNR, "Connect Invalid Host (184h, DNR)"},
		{StatusInvalidProtectionInfo, "Connect Controller Busy or Invalid Protection Information (181h)"},
		{StatusANATransition, "Asymmetric Access Transition (303h)"},
		{0x7ff, "Vendor Specific (7ffh)"},
		{0x6ff, "Unknown Status (6ffh)"},
	} {
		if got := c.s.String(); got != c.want {
			t.Errorf("%04x = %q, want %q", uint16(c.s), got, c.want)
		}
	}
}

func TestStatusError(t *testing.T) {
	for _, c := range []struct {
		e    StatusError
		want string
	}{
		{StatusError{Op: "connect", Status: StatusConnectInvalidParameters | StatusDNR, Result: 256 | 1<<16, Fabrics: true},
			"connect: Connect Invalid Parameters (182h, DNR): subsystem NQN"},
		{StatusError{Op: "connect", Status: StatusConnectInvalidParameters, Result: 44, Fabrics: true},
			"connect: Connect Invalid Parameters (182h): submission queue size"},
		{StatusError{Op: "connect", Status: StatusConnectInvalidParameters, Result: 300 | 1<<16, Fabrics: true},
			"connect: Connect Invalid Parameters (182h): byte 300 of the connect data"},
		{StatusError{Op: "connect", Status: StatusConnectInvalidParameters, Fabrics: true},
			"connect: Connect Invalid Parameters (182h)"},
		{StatusError{Op: "write", Status: StatusWriteToReadOnlyRange, Result: 256 | 1<<16},
			"write: Attempted Write to Read Only Range (182h)"},
		{StatusError{Status: StatusLBAOutOfRange}, "LBA Out of Range (080h)"},
	} {
		if got := c.e.Error(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

// Every code that a host maps or a controller sends must have a name of its own (NVM Express Base 2.0, figures 93 to
// 98, and the Linux kernel's include/linux/nvme.h).
func TestStatusNames(t *testing.T) {
	seen := map[string]Status{}
	for _, s := range []Status{
		0x000, 0x001, 0x002, 0x003, 0x004, 0x005, 0x006, 0x007, 0x008, 0x009, 0x00a, 0x00b, 0x00c, 0x00d, 0x00e, 0x00f,
		0x010, 0x011, 0x012, 0x013, 0x014, 0x015, 0x016, 0x018, 0x019, 0x01a, 0x01b, 0x01c, 0x01d, 0x01e, 0x01f, 0x020,
		0x021, 0x022, 0x023, 0x024, 0x02c, 0x080, 0x081, 0x082, 0x083, 0x084, 0x100, 0x101, 0x102, 0x103, 0x105, 0x106,
		0x107, 0x108, 0x109, 0x10a, 0x10d, 0x10e, 0x10f, 0x118, 0x11a, 0x11c, 0x180, 0x181, 0x182, 0x183, 0x184, 0x185,
		0x190, 0x191, 0x280, 0x281, 0x282, 0x283, 0x284, 0x285, 0x286, 0x287, 0x300, 0x301, 0x302, 0x303, 0x360, 0x370, 0x371,
	} {
		name := s.Name(true)
		if old, ok := seen[name]; ok || name == "" || name == "Unknown Status" {
			t.Errorf("%03x is named %q, like %03x", uint16(s), name, uint16(old))
		}
		seen[name] = s
	}
}
