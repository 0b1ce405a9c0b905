package targetlite

import (
	"net"
	"net/netip"
	"strconv"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
)

// adminQueueSize is ASQSZ in discovery log entries: what an admin queue may have at least, as hosts do not know CAP before it.
const adminQueueSize = 32

// endpoint is a portal as one host sees it.
type endpoint struct {
	id   uint16
	addr netip.AddrPort
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// inZone gives a link-local address that was bound by its zone that zone back: not every kernel's getsockname(2) tells it of a
// socket that listens.
func inZone(ap netip.AddrPort, zone string) netip.AddrPort {
	if a := ap.Addr(); zone != "" && a.Is6() && a.Zone() == "" {
		return netip.AddrPortFrom(a.WithZone(zone), ap.Port())
	}
	return ap
}

// endpoints returns where the host behind c can try to connect, the portal it came by first. A portal on all addresses
// has the address it came by; one that other machines or links can't reach is for those who came by it.
func (s *Server) endpoints(c *conn) []endpoint {
	local := addrPort(c.q.LocalAddr()).Addr()
	var out []endpoint
	seen := map[netip.AddrPort]bool{}
	add := func(p *portal) {
		a := p.bound.Addr()
		switch {
		case a.IsUnspecified() && a.Is4() && !local.Is4():
			return
		case a.IsUnspecified():
			a = local
		case a.IsLoopback() && !local.IsLoopback(), a.IsLinkLocalUnicast() && a != local:
			return
		}
		ap := netip.AddrPortFrom(a.WithZone(""), p.bound.Port())
		if a.IsValid() && !seen[ap] {
			seen[ap] = true
			out = append(out, endpoint{p.id, ap})
		}
	}
	add(c.portal)
	for _, p := range s.portals {
		add(p)
	}
	return out
}

func (e endpoint) entry(subtype uint8, nqn nvme.NQN) wire.DiscoveryEntry {
	d := wire.DiscoveryEntry{
		TRTYPE: wire.TRTypeTCP, ADRFAM: wire.AdrFamIPv4, SUBTYPE: subtype, TREQ: wire.TREQDisableSQFlow,
		PORTID: e.id, CNTLID: wire.CNTLIDDynamic, ASQSZ: adminQueueSize,
		TRSVCID: strconv.Itoa(int(e.addr.Port())), SUBNQN: nqn, TRADDR: e.addr.Addr().String(),
		SECTYPE: wire.SecTypeNone,
	}
	if e.addr.Addr().Is6() {
		d.ADRFAM = wire.AdrFamIPv6
	}
	if subtype == wire.SubtypeCurrentDiscovery {
		d.EFLAGS = wire.EFlagPersistent
	}
	return d
}

// discoveryLog fills out with the discovery log page from offset on, as the host of ctrl may see it: this discovery
// subsystem, then each subsystem by each portal. It reports false if the page ends before offset.
func (s *Server) discoveryLog(ctrl *controller, c *conn, offset uint64, out []byte) bool {
	cat := s.catalog.Load()
	var visible []*subsystem
	for _, sub := range cat.list {
		if sub.access.Load().allows(ctrl.hostNQN) {
			visible = append(visible, sub)
		}
	}
	ends := s.endpoints(c)
	if len(ends) == 0 {
		visible = nil
	}
	records := 1 + len(visible)*len(ends)
	const size = wire.DiscoveryEntrySize // and of the header
	if offset > uint64(1+records)*size {
		return false
	}
	var part []byte
	for at := offset / size; at <= uint64(records) && len(out) > 0; at++ {
		switch {
		case at == 0:
			part = (&wire.DiscoveryHeader{GENCTR: cat.genctr, NUMREC: uint64(records)}).AppendTo(part[:0])
		case at == 1:
			e := endpoint{id: c.portal.id, addr: addrPort(c.q.LocalAddr())}
			if len(ends) > 0 {
				e = ends[0]
			}
			d := e.entry(wire.SubtypeCurrentDiscovery, nvme.DiscoveryNQN)
			part = d.AppendTo(part[:0])
		default:
			i := int(at) - 2
			d := ends[i%len(ends)].entry(wire.SubtypeNVM, visible[i/len(ends)].nqn)
			part = d.AppendTo(part[:0])
		}
		out = out[copy(out, part[offset%size:]):]
		offset = 0
	}
	return true
}
