package nvme

import (
	"net"
	"strings"
)

// Transport is an NVMe over Fabrics transport, by the name the Linux kernel gives it.
type Transport string

const (
	TransportTCP  Transport = "tcp"
	TransportRDMA Transport = "rdma"
	TransportFC   Transport = "fc"
	TransportLoop Transport = "loop"
)

// The ports IANA assigned: I/O controllers listen on 4420, NVMe/TCP discovery services on 8009.
const (
	DefaultIOPort        = "4420"
	DefaultDiscoveryPort = "8009"
)

// Addr is the address of a portal: what a discovery log calls TRTYPE, TRADDR and TRSVCID.
type Addr struct {
	Transport Transport
	Host      string // without brackets; an IPv6 address may end in %zone
	Service   string // a TCP port in decimal
}

// String returns host:port, with an IPv6 host in brackets. Without a service it is the host alone.
func (a Addr) String() string {
	if a.Service != "" {
		return net.JoinHostPort(a.Host, a.Service)
	}
	if strings.ContainsRune(a.Host, ':') {
		return "[" + a.Host + "]"
	}
	return a.Host
}
