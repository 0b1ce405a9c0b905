// Package host is an NVMe/TCP initiator: it connects to a subsystem's
// controllers, discovers subsystems, and reads and writes namespaces, with no
// help from the kernel.
//
// Sources: NVM Express Base Specification 2.0, NVMe over Fabrics 1.1, NVM
// Command Set Specification 1.0; for the order of initialisation Linux
// drivers/nvme/host/{core,fabrics,tcp}.c.
package host

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/tcp"
)

// Options says how to connect. The zero value of a field is its default.
type Options struct {
	// HostNQN and HostID say who this host is; targets allow and fence by them.
	// A random identity if neither is set; one made of the other if one is not.
	HostNQN nvme.NQN
	HostID  nvme.UUID

	HeaderDigest, DataDigest bool

	// Queues is how many I/O queues to ask for; the processors, at most 4.
	Queues int
	// QueueSize is the entries of an I/O queue, 2 to 512; 128. The controller may have fewer.
	QueueSize int
	// KeepAlive is the keep alive timeout; 5 s. Below 0 there is none. Without
	// I/O queues (discovery) the default is none.
	KeepAlive time.Duration
	// Timeout is how long an I/O command may take before it is aborted; once more, and
	// the controller is given up. 30 s.
	Timeout time.Duration
	// AdminTimeout is how long an admin command may take before the controller is given up; 60 s.
	AdminTimeout time.Duration
	// MaxTransfer bounds the data of one command, in bytes; 1 MiB, or less if the controller says so (MDTS).
	MaxTransfer int

	// Interface binds every connection to a network interface, Source to a local address.
	Interface string
	Source    netip.Addr
	// TOS is the IPv4 type of service or IPv6 traffic class; 0 is the system's.
	TOS int
	// Dial replaces the TCP connect, for example by one through TLS.
	Dial func(ctx context.Context, addr nvme.Addr) (net.Conn, error)

	// Spin is how long the loop of an I/O queue polls before it waits; below 0 it never waits.
	Spin time.Duration

	// HPDA and MaxR2T are offered in the handshake; see tcp.HostConfig.
	HPDA   uint8
	MaxR2T int

	Logger *slog.Logger
}

const (
	adminDepth     = 32
	maxQueueSize   = tcp.MaxDepth / 2
	defaultTimeout = 30 * time.Second
)

func (o Options) withDefaults() (Options, error) {
	if o.HostID.IsZero() {
		o.HostID = nvme.NewUUID()
	}
	if o.HostNQN == "" {
		o.HostNQN = nvme.UUIDNQN(o.HostID)
	}
	if err := o.HostNQN.Validate(); err != nil {
		return o, fmt.Errorf("host NQN: %w", err)
	}
	o.Queues = cmp.Or(o.Queues, min(runtime.GOMAXPROCS(0), 4))
	o.QueueSize = cmp.Or(o.QueueSize, 128)
	o.Timeout = cmp.Or(o.Timeout, defaultTimeout)
	o.AdminTimeout = cmp.Or(o.AdminTimeout, 60*time.Second)
	o.MaxTransfer = cmp.Or(o.MaxTransfer, 1<<20)
	o.MaxR2T = cmp.Or(o.MaxR2T, 1)
	switch {
	case o.Queues < 1 || o.Queues > 1024:
		return o, fmt.Errorf("%d I/O queues: want 1 to 1024", o.Queues)
	case o.QueueSize < 2 || o.QueueSize > maxQueueSize:
		return o, fmt.Errorf("queue size %d: want 2 to %d", o.QueueSize, maxQueueSize)
	case o.MaxTransfer < 4096 || o.MaxTransfer%4096 != 0:
		return o, fmt.Errorf("transfer size %d: want a multiple of 4096", o.MaxTransfer)
	case o.Timeout < 0 || o.AdminTimeout < 0:
		return o, fmt.Errorf("a timeout below zero")
	case o.TOS < 0 || o.TOS > 255:
		return o, fmt.Errorf("type of service %d: want 0 to 255", o.TOS)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// Error is what went wrong with a controller.
type Error struct {
	Op   string // what was being done: "connect", "initialise", "discover", …
	Addr nvme.Addr
	NQN  nvme.NQN
	Err  error
}

func (e *Error) Error() string {
	if e.NQN == "" {
		return fmt.Sprintf("%s %s: %v", e.Op, e.Addr, e.Err)
	}
	return fmt.Sprintf("%s %s at %s: %v", e.Op, e.NQN, e.Addr, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }
