package discover

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/nvme/wire"
)

// What discovery services say becomes a list without doubles, whatever kind of record it is.
func TestAdd(t *testing.T) {
	const nqn = "nqn.2026-01.org.example:a#b"
	from := nvme.Addr{Transport: nvme.TransportTCP, Host: "192.0.2.1", Service: "8009"}
	record := func(e wire.DiscoveryEntry) *host.Record { return &host.Record{DiscoveryEntry: e, From: from} }
	tcp := wire.DiscoveryEntry{TRTYPE: wire.TRTypeTCP, SUBTYPE: wire.SubtypeNVM, TRADDR: "2001:db8::1", TRSVCID: "4420", SUBNQN: nqn, PORTID: 3}
	tls := tcp
	tls.TRADDR, tls.TREQ, tls.SECTYPE = "192.0.2.2", wire.TREQSecureRequired, wire.SecTypeTLS13
	rdma := wire.DiscoveryEntry{TRTYPE: wire.TRTypeRDMA, SUBTYPE: wire.SubtypeNVM, TRADDR: "192.0.2.3", TRSVCID: "4420", SUBNQN: nqn, TREQ: wire.TREQSecureNotRequired}
	odd := wire.DiscoveryEntry{TRTYPE: 77, SUBTYPE: wire.SubtypeNVM, TRADDR: "x", SUBNQN: nqn}
	referral := wire.DiscoveryEntry{TRTYPE: wire.TRTypeTCP, SUBTYPE: wire.SubtypeReferral, TRADDR: "192.0.2.9", TRSVCID: "8009", SUBNQN: nvme.DiscoveryNQN}
	self := wire.DiscoveryEntry{TRTYPE: wire.TRTypeTCP, SUBTYPE: wire.SubtypeCurrentDiscovery, TRADDR: "192.0.2.1", TRSVCID: "8009", SUBNQN: nvme.DiscoveryNQN}

	var got Discovered
	seen := make(map[any]bool)
	for _, e := range []wire.DiscoveryEntry{self, tcp, tcp, tls, rdma, odd, referral, referral} {
		got.add(record(e), seen)
	}
	want := Discovered{
		Subsystems: []Subsystem{
			{nqn, "nvme://[2001:db8::1]:4420/nqn.2026-01.org.example:a%23b", "tcp", "[2001:db8::1]:4420", 3, "none", "192.0.2.1:8009"},
			{nqn, "nvme://192.0.2.2:4420/nqn.2026-01.org.example:a%23b", "tcp", "192.0.2.2:4420", 3, "required tls1.3", "192.0.2.1:8009"},
			{nqn, "nvme+rdma://192.0.2.3:4420/nqn.2026-01.org.example:a%23b", "rdma", "192.0.2.3:4420", 0, "optional", "192.0.2.1:8009"},
			{nqn, "", "type 77", "x", 0, "none", "192.0.2.1:8009"},
		},
		Referrals: []Referral{{nvme.DiscoveryNQN, "tcp", "192.0.2.9:8009", "192.0.2.1:8009"}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
