package host_test

import (
	"testing"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/nvme/wire"
)

// A log page has no scopes: an address of a link is one of the link by which the log was read.
func TestRecordAddr(t *testing.T) {
	for _, c := range []struct{ from, traddr, want string }{
		{"fe80::1%eth0", "fe80::2", "fe80::2%eth0"},
		{"fe80::1%eth0", "2001:db8::2", "2001:db8::2"},
		{"fe80::1%eth0", "169.254.0.2", "169.254.0.2"},
		{"2001:db8::1", "fe80::2", "fe80::2"},
		{"san.example.org", "fe80::2", "fe80::2"},
		{"fe80::1%eth0", "san.example.org", "san.example.org"},
	} {
		r := host.Record{
			DiscoveryEntry: wire.DiscoveryEntry{TRTYPE: wire.TRTypeTCP, TRADDR: c.traddr, TRSVCID: "4420"},
			From:           nvme.Addr{Transport: nvme.TransportTCP, Host: c.from, Service: "8009"},
		}
		if got, want := r.Addr(), (nvme.Addr{Transport: nvme.TransportTCP, Host: c.want, Service: "4420"}); got != want {
			t.Errorf("%s in the log of %s: %v", c.traddr, c.from, got)
		}
	}
}
