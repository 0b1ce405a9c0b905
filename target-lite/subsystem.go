package targetlite

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
	"hawser.dev/hawser/target-lite/backend"
)

// subsystem is a Subsystem in service; also the discovery subsystem, which has no namespaces.
type subsystem struct {
	nqn           nvme.NQN
	serial, model string
	discovery     bool

	// What commands look at. Both are replaced as a whole.
	access     atomic.Pointer[access]
	namespaces atomic.Pointer[nsTable]

	mu          sync.Mutex
	controllers map[uint16]*controller
	min, max    uint16
	last        uint16 // CNTLID given out last
}

// access is who may connect.
type access struct {
	any   bool
	hosts map[nvme.NQN]bool
	list  []nvme.NQN // as configured
}

func (a *access) allows(host nvme.NQN) bool { return a.any || a.hosts[host] }

// namespace is a Namespace in service.
type namespace struct {
	nsid    uint32
	backend backend.Backend
	kicker  backend.Kicker // nil if backend is none
	info    backend.Info
	spec    string
	uuid    nvme.UUID
	nguid   nvme.NGUID
	shift   uint   // block size as a power of two
	blocks  uint64 // NSZE

	failures quiet

	reads, writes, readBytes, writeBytes, errors atomic.Uint64
}

// nsTable is the namespaces of a subsystem.
type nsTable struct {
	byID     []*namespace // index is the NSID; nil if there is none
	ids      []uint32     // ascending
	nn       uint32       // the largest NSID there can be
	volatile bool         // one of them has a volatile write cache
}

// get returns a namespace, or nil.
func (t *nsTable) get(nsid uint32) *namespace {
	if uint64(nsid) < uint64(len(t.byID)) {
		return t.byID[nsid]
	}
	return nil
}

// after returns the identifiers above nsid.
func (t *nsTable) after(nsid uint32) []uint32 {
	i, found := slices.BinarySearch(t.ids, nsid)
	if found {
		i++
	}
	return t.ids[i:]
}

// newSubsystem checks c and makes a subsystem of it; taken collects the UUIDs and NGUIDs of all subsystems.
func newSubsystem(c Subsystem, cfg *Config, taken map[[16]byte]nvme.NQN) (*subsystem, error) {
	if err := c.NQN.Validate(); err != nil {
		return nil, err
	}
	if c.NQN.Discovery() {
		return nil, invalidf("%s is the discovery service; give the subsystem a name of its own", c.NQN)
	}
	s := &subsystem{nqn: c.NQN, serial: c.Serial, model: c.Model, controllers: map[uint16]*controller{}, min: cfg.MinCNTLID, max: cfg.MaxCNTLID}
	orDefault(&s.model, "Hawser")
	if err := checkText("serial number", s.serial, 20); err != nil {
		return nil, err
	}
	if err := checkText("model", s.model, 40); err != nil {
		return nil, err
	}
	a := &access{any: c.AllowAnyHost, hosts: map[nvme.NQN]bool{}, list: slices.Clone(c.Hosts)}
	for _, h := range c.Hosts {
		if err := h.Validate(); err != nil {
			return nil, err
		}
		a.hosts[h] = true
	}
	s.access.Store(a)
	t, err := newTable(c, taken)
	if err != nil {
		return nil, err
	}
	s.namespaces.Store(t)
	if s.serial == "" {
		identity := string(c.NQN)
		if len(t.ids) > 0 {
			identity = t.get(t.ids[0]).info.Identity
		}
		s.serial = deriveSerial(identity)
	}
	return s, nil
}

func checkText(what, s string, n int) error {
	for _, r := range s {
		if r < ' ' || r > '~' {
			return invalidf("%s %q, use printable ASCII", what, s)
		}
	}
	if len(s) > n {
		return invalidf("%s %q has %d characters, at most %d are allowed", what, s, len(s), n)
	}
	return nil
}

func newTable(c Subsystem, taken map[[16]byte]nvme.NQN) (*nsTable, error) {
	var list []*namespace
	used := map[uint32]bool{}
	for _, n := range c.Namespaces {
		switch {
		case n.NSID > maxNSID:
			return nil, invalidf("namespace %d of %s, use 1 to %d", n.NSID, c.NQN, maxNSID)
		case n.NSID != 0 && used[n.NSID]:
			return nil, invalidf("two namespaces %d in %s", n.NSID, c.NQN)
		case n.Backend == nil:
			return nil, invalidf("namespace %d of %s has no backend", n.NSID, c.NQN)
		}
		used[n.NSID] = true
	}
	free := uint32(1)
	for _, n := range c.Namespaces {
		if n.NSID == 0 {
			for used[free] {
				free++
			}
			n.NSID, used[free] = free, true
		}
		if n.NSID > maxNSID {
			return nil, invalidf("more than %d namespaces in %s", maxNSID, c.NQN)
		}
		ns := newNamespace(n)
		// Hosts refuse the second of two namespaces with one identifier, or take them for paths to one volume.
		for what, id := range map[string][16]byte{"UUID " + ns.uuid.String(): ns.uuid, "NGUID " + ns.nguid.String(): ns.nguid} {
			if other, ok := taken[id]; ok {
				return nil, invalidf("namespace %d of %s has the %s of one in %s; give one of them uuid=", n.NSID, c.NQN, what, other)
			}
			taken[id] = c.NQN
		}
		list = append(list, ns)
	}
	t := &nsTable{nn: defaultNN}
	for _, ns := range list {
		t.ids = append(t.ids, ns.nsid)
		t.nn = max(t.nn, ns.nsid)
		t.volatile = t.volatile || ns.info.VolatileCache
	}
	slices.Sort(t.ids)
	if n := len(t.ids); n > 0 {
		t.byID = make([]*namespace, t.ids[n-1]+1)
	}
	for _, ns := range list {
		t.byID[ns.nsid] = ns
	}
	return t, nil
}

func newNamespace(n Namespace) *namespace {
	ns := &namespace{nsid: n.NSID, backend: n.Backend, info: n.Backend.Info(), spec: n.Spec, uuid: n.UUID, nguid: n.NGUID}
	ns.kicker, _ = n.Backend.(backend.Kicker)
	if ns.nguid.IsZero() {
		ns.nguid = NamespaceNGUID(ns.info.Identity)
		if !ns.uuid.IsZero() { // the given UUID says that this is not the volume of that identity
			ns.nguid = NamespaceNGUID("uuid:" + ns.uuid.String())
		}
	}
	if ns.uuid.IsZero() {
		ns.uuid = NamespaceUUID(ns.info.Identity)
	}
	ns.shift = uint(bits.TrailingZeros(uint(ns.info.BlockSize)))
	ns.blocks = uint64(ns.info.Size) >> ns.shift
	return ns
}

// add gives a controller its ID and lists it. It reports false if there is none left.
func (s *subsystem) add(c *controller) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	// One after another, so that an ID is not soon used again: a host may still hold on to the old one.
	id := s.last
	for range int(s.max-s.min) + 1 {
		if id++; id < s.min || id > s.max {
			id = s.min
		}
		if s.controllers[id] == nil {
			s.last, c.cntlid = id, id
			s.controllers[id] = c
			return true
		}
	}
	return false
}

func (s *subsystem) remove(c *controller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.controllers[c.cntlid] == c {
		delete(s.controllers, c.cntlid)
	}
}

func (s *subsystem) controller(cntlid uint16) *controller {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.controllers[cntlid]
}

// list returns the controllers by ID.
func (s *subsystem) list() []*controller {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*controller
	for _, c := range s.controllers {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *controller) int { return int(a.cntlid) - int(b.cntlid) })
	return out
}

// identify is the Identify Namespace data of an active namespace.
func (ns *namespace) identify() *wire.IdentifyNamespace {
	i := &ns.info
	n := &wire.IdentifyNamespace{
		NSZE: ns.blocks, NCAP: ns.blocks, NUSE: ns.blocks,
		NSFEAT: wire.NSFEATOptPerf,
		NMIC:   wire.NMICShared,
		NVMCAP: wire.Uint128{Lo: uint64(i.Size)},
		NPWG:   ns.granule(int64(i.PhysicalBlock)),
		NPWA:   ns.granule(int64(i.PhysicalBlock)),
		NPDG:   ns.granule(i.DiscardGranularity),
		NPDA:   ns.granule(i.DiscardGranularity),
		NOWS:   ns.granule(i.OptimalIO),
		NGUID:  ns.nguid,
	}
	if i.DeallocateZeroes {
		n.DLFEAT |= wire.DLFEATZeroes
	}
	if i.CanDeallocate {
		n.DLFEAT |= wire.DLFEATWriteZeroes
	}
	if i.ReadOnly {
		n.NSATTR = wire.NSATTRWriteProtected
	}
	n.LBAF[0].DS = uint8(ns.shift)
	return n
}

// granule is a size in blocks, 0's based, at most what 16 bits hold.
func (ns *namespace) granule(bytes int64) uint16 {
	n := bytes >> ns.shift
	return uint16(min(max(n, 1), 1<<16) - 1)
}
