// Package targetlite exports block storage over NVMe/TCP: subsystems with namespaces, on any number of portals, with a
// discovery service on each of them.
//
// Sources: NVM Express Base 2.0 and NVM Command Set 1.0, NVMe over Fabrics 1.1, NVMe/TCP Transport 1.0; where they leave
// room, what Linux drivers/nvme/target does.
package targetlite

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"time"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/target-lite/backend"
)

// Config says what a Server exports and where.
type Config struct {
	Subsystems []Subsystem
	// Portals are the addresses to listen on. Host is a numeric address, or empty for all of them; Service a port,
	// "0" for any free one, or empty for 4420.
	Portals []nvme.Addr

	// MinCNTLID and MaxCNTLID bound the controller IDs given out, so that several servers can serve one subsystem.
	// Zero: 1 to FFEFh.
	MinCNTLID, MaxCNTLID uint16

	MaxQueues   int // I/O queues of a controller; 0: 64
	QueueDepth  int // entries of a queue, 2 to 1024; 0: 128
	InCapsule   int // bytes of write data in a capsule on I/O queues, a multiple of 16; 0: 16 KiB; below 0: none
	MaxTransfer int // bytes of a command, a power of two from 8 KiB to 16 MiB; 0: 1 MiB

	// BufferMemory bounds the memory of all data buffers, in bytes. When it is in use, commands wait; one controller gets
	// at most a quarter of it. 0: an eighth of the machine's memory, but at least 64 MiB and at most 512 MiB.
	BufferMemory int64
	// MaxConnections bounds the TCP connections; one address gets at most half of them. 0: as many as an eighth of the
	// machine's memory can hold, 1024 to 16384.
	MaxConnections int
	// MaxPending bounds the connections that have not completed Connect; one more ends the oldest. 0: 1024.
	MaxPending int
	// HandshakeTimeout bounds the time until a connection has completed Connect; 0: 10 s.
	HandshakeTimeout time.Duration
	// Spin is how long an idle I/O queue polls before it sleeps; below 0 it never sleeps, and keeps a core busy. 0: not
	// at all.
	Spin time.Duration

	Logger *slog.Logger // nil: discard
}

// Subsystem is an NVM subsystem.
type Subsystem struct {
	NQN    nvme.NQN
	Serial string // at most 20 characters of ASCII; empty: derived from the first namespace
	Model  string // at most 40 characters of ASCII; empty: "Hawser"
	// Hosts may connect, and see the subsystem in discovery.
	Hosts []nvme.NQN
	// AllowAnyHost lets every host in.
	AllowAnyHost bool
	Namespaces   []Namespace
}

// Namespace is one namespace of a subsystem.
type Namespace struct {
	NSID    uint32 // 0: the lowest free
	Backend backend.Backend
	Spec    string // what Backend was opened from; for Status
	UUID    nvme.UUID
	NGUID   nvme.NGUID // UUID and NGUID: zero is derived from the backend's Identity
}

// Limits of a configuration.
const (
	maxNSID       = 1 << 16
	defaultNN     = 1024
	maxCNTLID     = 0xffef
	maxQueueDepth = 1024
	maxQueues     = 1024
	queueMemory   = 384 << 10 // what a connected queue of the default depth takes, buffers aside
)

// ErrInvalid is a configuration that cannot be.
var ErrInvalid = errors.New("invalid target configuration")

func invalidf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

func orDefault[T comparable](v *T, def T) {
	if *v == *new(T) {
		*v = def
	}
}

// DefaultMaxTransfer is what Config.MaxTransfer is where it is zero.
const DefaultMaxTransfer = 1 << 20

// setDefaults fills in what is zero and checks the rest, but not the subsystems.
func (c *Config) setDefaults() error {
	orDefault(&c.MinCNTLID, 1)
	orDefault(&c.MaxCNTLID, maxCNTLID)
	orDefault(&c.MaxQueues, 64)
	orDefault(&c.QueueDepth, 128)
	orDefault(&c.InCapsule, 16<<10)
	orDefault(&c.MaxTransfer, DefaultMaxTransfer)
	orDefault(&c.BufferMemory, defaultBufferMemory())
	orDefault(&c.MaxConnections, int(min(max(physicalMemory()/8/queueMemory, 1024), 16384)))
	orDefault(&c.MaxPending, 1024)
	orDefault(&c.HandshakeTimeout, 10*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.InCapsule = max(c.InCapsule, 0)
	switch {
	case c.MaxCNTLID > maxCNTLID || c.MinCNTLID > c.MaxCNTLID:
		return invalidf("controller IDs %d-%d, use a range within 1-%d", c.MinCNTLID, c.MaxCNTLID, maxCNTLID)
	case c.MaxQueues < 1 || c.MaxQueues > maxQueues:
		return invalidf("%d I/O queues, use 1 to %d", c.MaxQueues, maxQueues)
	case c.QueueDepth < 2 || c.QueueDepth > maxQueueDepth:
		return invalidf("queue depth %d, use 2 to %d", c.QueueDepth, maxQueueDepth)
	case c.MaxTransfer < 8<<10 || c.MaxTransfer > 16<<20 || c.MaxTransfer&(c.MaxTransfer-1) != 0:
		return invalidf("largest transfer %d, use a power of two from 8192 to %d", c.MaxTransfer, 16<<20)
	case c.InCapsule%16 != 0 || c.InCapsule > c.MaxTransfer:
		return invalidf("%d bytes of data in a capsule, use a multiple of 16 up to %d", c.InCapsule, c.MaxTransfer)
	case c.BufferMemory < 2*shareParts*int64(c.MaxTransfer): // Compare takes two buffers
		return invalidf("%d bytes of buffers, use at least %d for transfers of %d", c.BufferMemory, 2*shareParts*c.MaxTransfer, c.MaxTransfer)
	case c.MaxConnections < 1 || c.MaxPending < 1 || c.HandshakeTimeout < 0:
		return invalidf("a limit below zero")
	case len(c.Portals) == 0:
		return invalidf("no portal to listen on")
	}
	for i := range c.Portals {
		if err := checkPortal(&c.Portals[i]); err != nil {
			return err
		}
	}
	return nil
}

func checkPortal(p *nvme.Addr) error {
	orDefault(&p.Transport, nvme.TransportTCP)
	orDefault(&p.Service, nvme.DefaultIOPort)
	if p.Transport != nvme.TransportTCP {
		return invalidf("transport %q of portal %s, only tcp is served", p.Transport, p)
	}
	if p.Host != "" {
		if _, err := netip.ParseAddr(p.Host); err != nil {
			return invalidf("%q is not a numeric address to listen on", p.Host)
		}
	}
	if _, err := strconv.ParseUint(p.Service, 10, 16); err != nil {
		return invalidf("port %q of portal %s, use 0 to 65535", p.Service, p)
	}
	return nil
}

// PortalError is a portal that can't be listened on.
type PortalError struct {
	Portal nvme.Addr
	Err    error // a *net.OpError
}

func (e *PortalError) Error() string {
	err := e.Err
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return fmt.Sprintf("listen on %s: %v", e.Portal, err)
}

func (e *PortalError) Unwrap() error { return e.Err }

func defaultBufferMemory() int64 { return min(max(physicalMemory()/8, 64<<20), 512<<20) }
