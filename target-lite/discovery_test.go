package targetlite

import (
	"net/netip"
	"testing"
)

func TestInZone(t *testing.T) {
	for _, c := range []struct{ addr, zone, want string }{
		{"[fe80::1]:4420", "eth0", "[fe80::1%eth0]:4420"},
		{"[fe80::1%eth0]:4420", "eth0", "[fe80::1%eth0]:4420"},
		{"[::1]:4420", "", "[::1]:4420"},
		{"192.0.2.1:4420", "", "192.0.2.1:4420"},
	} {
		if got := inZone(netip.MustParseAddrPort(c.addr), c.zone).String(); got != c.want {
			t.Errorf("%s in %q: %s", c.addr, c.zone, got)
		}
	}
}
