package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
)

const (
	// maxRecords bounds a discovery log; a log page of 64 MiB is a lie.
	maxRecords = 1 << 16
	// discoveryRetries is how often a log that changes while it is read is read again, as in nvme-cli.
	discoveryRetries = 10
	// discoveryChunk is how much of the log one command reads, in bytes.
	discoveryChunk = 32 << 10
	// maxReferrals bounds the discovery services that one Discover asks.
	maxReferrals = 64
)

// ErrChanging says that a discovery log changed each time it was read.
var ErrChanging = errors.New("the discovery log keeps changing while it is read")

// DiscoveryLog reads the whole discovery log page, consistently: its
// generation counter is the same before and after.
func (c *Controller) DiscoveryLog(ctx context.Context) (generation uint64, entries []wire.DiscoveryEntry, err error) {
	for range discoveryRetries {
		var before, after wire.DiscoveryHeader
		if err := c.discoveryHeader(ctx, &before, true); err != nil {
			return 0, nil, err
		}
		if before.RECFMT != 0 {
			return 0, nil, fmt.Errorf("discovery log: record format %d is not supported", before.RECFMT)
		}
		if before.NUMREC > maxRecords {
			return 0, nil, fmt.Errorf("discovery log: %d records, at most %d are read", before.NUMREC, maxRecords)
		}
		entries, err = c.discoveryEntries(ctx, int(before.NUMREC))
		if err != nil && !errors.As(err, new(*nvme.StatusError)) {
			return 0, nil, err
		}
		if e := c.discoveryHeader(ctx, &after, false); e != nil {
			return 0, nil, e
		}
		if before.GENCTR != after.GENCTR {
			continue // an error of a log that shrank meanwhile doesn't count
		}
		if err == nil && before.NUMREC != after.NUMREC {
			err = fmt.Errorf("discovery log: %d records became %d in the same generation", before.NUMREC, after.NUMREC)
		}
		return after.GENCTR, entries, err
	}
	return 0, nil, ErrChanging
}

func (c *Controller) discoveryHeader(ctx context.Context, h *wire.DiscoveryHeader, retain bool) error {
	b := make([]byte, wire.DiscoveryHeaderSize)
	if err := c.LogPage(ctx, wire.GetLogPage{LID: wire.LogDiscovery, RAE: retain}, b); err != nil {
		return err
	}
	return h.Parse(b)
}

func (c *Controller) discoveryEntries(ctx context.Context, n int) ([]wire.DiscoveryEntry, error) {
	var list []wire.DiscoveryEntry
	chunk := min(discoveryChunk, c.maxIO) / wire.DiscoveryEntrySize
	buf := make([]byte, min(n, chunk)*wire.DiscoveryEntrySize)
	for len(list) < n {
		b := buf[:min(n-len(list), chunk)*wire.DiscoveryEntrySize]
		p := wire.GetLogPage{LID: wire.LogDiscovery, RAE: true, Offset: uint64(wire.DiscoveryHeaderSize + len(list)*wire.DiscoveryEntrySize)}
		if err := c.LogPage(ctx, p, b); err != nil {
			return nil, err
		}
		for ; len(b) > 0; b = b[wire.DiscoveryEntrySize:] {
			var e wire.DiscoveryEntry
			if err := e.Parse(b[:wire.DiscoveryEntrySize]); err != nil {
				return nil, fmt.Errorf("record %d: %w", len(list), err)
			}
			list = append(list, e)
		}
	}
	return list, nil
}

// Record is one entry of a discovery log and where it was found.
type Record struct {
	wire.DiscoveryEntry
	From nvme.Addr
}

// Addr returns where the record's subsystem or discovery service is.
func (r *Record) Addr() nvme.Addr {
	t := nvme.Transport("")
	switch r.TRTYPE {
	case wire.TRTypeTCP:
		t = nvme.TransportTCP
	case wire.TRTypeRDMA:
		t = nvme.TransportRDMA
	case wire.TRTypeFC:
		t = nvme.TransportFC
	case wire.TRTypeLoop:
		t = nvme.TransportLoop
	}
	addr := r.TRADDR
	if a, err := netip.ParseAddr(addr); err == nil && a.IsLinkLocalUnicast() && a.Zone() == "" {
		// It means the link by which the service was asked.
		if from, err := netip.ParseAddr(r.From.Host); err == nil {
			addr = a.WithZone(from.Zone()).String()
		}
	}
	return nvme.Addr{Transport: t, Host: addr, Service: r.TRSVCID}
}

// Discovery is what discovery services said.
type Discovery struct {
	Records []Record
	// Unreachable are referrals that could not be followed.
	Unreachable []*Error
}

// Discover asks the discovery service at addr, and every one it refers to
// once, what there is for this host. Without a port it tries 8009, then 4420.
func Discover(ctx context.Context, addr nvme.Addr, o Options) (*Discovery, error) {
	d := new(Discovery)
	seen := map[nvme.Addr]bool{}
	queue := []nvme.Addr{addr}
	for asked := 0; len(queue) > 0; asked++ {
		at := queue[0]
		queue = queue[1:]
		at.Transport = cmp.Or(at.Transport, nvme.TransportTCP)
		if seen[at] {
			continue
		}
		seen[at] = true
		if asked == maxReferrals {
			d.Unreachable = append(d.Unreachable, &Error{Op: "discover", Addr: at, Err: fmt.Errorf("more than %d referrals", maxReferrals)})
			break
		}
		from, entries, err := discoverAny(ctx, at, o)
		if err != nil {
			if asked == 0 || ctx.Err() != nil {
				return nil, err
			}
			var e *Error
			if !errors.As(err, &e) {
				e = &Error{Op: "discover", Addr: at, Err: err}
			}
			d.Unreachable = append(d.Unreachable, e)
			continue
		}
		seen[from] = true
		for _, e := range entries {
			r := Record{e, from}
			d.Records = append(d.Records, r)
			if e.SUBTYPE == wire.SubtypeReferral && e.TRTYPE == wire.TRTypeTCP {
				queue = append(queue, r.Addr())
			}
		}
	}
	return d, nil
}

func discoverAny(ctx context.Context, addr nvme.Addr, o Options) (nvme.Addr, []wire.DiscoveryEntry, error) {
	if addr.Service != "" {
		list, err := discover(ctx, addr, o)
		return addr, list, err
	}
	var failed error
	for _, port := range []string{nvme.DefaultDiscoveryPort, nvme.DefaultIOPort} {
		at := addr
		at.Service = port
		list, err := discover(ctx, at, o)
		if err == nil {
			return at, list, nil
		}
		var e *Error
		if errors.As(err, &e) {
			err = e.Err
		}
		err = fmt.Errorf("port %s: %w", port, err)
		if failed != nil {
			err = fmt.Errorf("%v; %w", failed, err)
		}
		if failed = err; ctx.Err() != nil {
			break
		}
	}
	return addr, nil, &Error{"discover", addr, "", failed}
}

func discover(ctx context.Context, addr nvme.Addr, o Options) ([]wire.DiscoveryEntry, error) {
	c, err := Connect(ctx, addr, nvme.DiscoveryNQN, o)
	if err != nil {
		return nil, err
	}
	_, list, err := c.DiscoveryLog(ctx)
	c.Close(ctx)
	if err != nil {
		return nil, &Error{"discover", addr, "", err}
	}
	return list, nil
}
