package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/tcp"
	"hawser.dev/hawser/nvme/wire"
)

// NamespaceInfo is what a controller says of a namespace.
type NamespaceInfo struct {
	NSID  uint32
	UUID  nvme.UUID // zero: none, also of the other identifiers
	NGUID nvme.NGUID
	EUI64 nvme.EUI64

	Size      int64 // bytes
	BlockSize int   // logical block, bytes
	Shared    bool  // may be reached through several controllers
	ReadOnly  bool  // write protected
	ANAGroup  uint32
	OptimalIO int64 // bytes, 0 if not told

	VolatileCache  bool // Flush or FUA is needed for data to be durable
	CanWriteZeroes bool
	CanDeallocate  bool
	CanCompare     bool
	ReadsZeroes    bool // deallocated blocks read as zeros
	unmaps         bool // write zeroes may deallocate
}

// maxNamespaces is how many namespaces of a controller are believed.
const maxNamespaces = 1 << 16

// NSIDs returns the active namespaces in ascending order.
func (c *Controller) NSIDs(ctx context.Context) ([]uint32, error) {
	var all []uint32
	b := make([]byte, wire.IdentifySize)
	for last := uint32(0); ; {
		if _, err := c.Admin(ctx, "identify active namespaces", wire.IdentifyCmd(wire.CNSActiveNamespaces, last, 0, 0), b); err != nil {
			return nil, err
		}
		var list wire.NamespaceList
		if err := list.Parse(b); err != nil {
			return nil, err
		}
		for _, id := range list {
			if id <= last || id >= wire.NSIDAll-1 {
				return nil, fmt.Errorf("identify active namespaces: %d after %d", id, last)
			}
			last = id
		}
		all = append(all, list...)
		if len(list) < wire.IdentifySize/4 {
			return all, nil
		}
		if len(all) > maxNamespaces {
			return nil, fmt.Errorf("identify active namespaces: more than %d", maxNamespaces)
		}
	}
}

// errInactive says that a namespace is not there.
var errInactive = &nvme.StatusError{Op: "identify namespace", Status: nvme.StatusInvalidNamespace | nvme.StatusDNR}

// Namespace returns what the controller says of a namespace.
func (c *Controller) Namespace(ctx context.Context, nsid uint32) (NamespaceInfo, error) {
	n := NamespaceInfo{NSID: nsid}
	b := make([]byte, wire.IdentifySize)
	if _, err := c.Admin(ctx, "identify namespace", wire.IdentifyCmd(wire.CNSNamespace, nsid, 0, 0), b); err != nil {
		return n, err
	}
	var id wire.IdentifyNamespace
	if err := id.Parse(b); err != nil {
		return n, err
	}
	if id.NSZE == 0 || id.NCAP == 0 {
		return n, errInactive
	}
	n.BlockSize = id.BlockSize()
	switch f := id.Format(); {
	case n.BlockSize == 0:
		return n, fmt.Errorf("identify namespace %d: blocks of 2^%d bytes are not supported", nsid, f.DS)
	case f.MS != 0:
		return n, fmt.Errorf("identify namespace %d: formats with metadata (%d bytes a block) are not supported", nsid, f.MS)
	case id.NSZE > math.MaxInt64/uint64(n.BlockSize):
		return n, fmt.Errorf("identify namespace %d: %d blocks of %d bytes are beyond any size", nsid, id.NSZE, n.BlockSize)
	}
	n.Size = int64(id.NSZE) * int64(n.BlockSize)
	n.NGUID, n.EUI64 = id.NGUID, id.EUI64
	n.Shared = id.NMIC&wire.NMICShared != 0
	n.ReadOnly = id.NSATTR&wire.NSATTRWriteProtected != 0
	n.ANAGroup = id.ANAGRPID
	if id.NSFEAT&wire.NSFEATOptPerf != 0 {
		n.OptimalIO = (int64(id.NOWS) + 1) * int64(n.BlockSize)
	}
	n.VolatileCache = c.id.VWC&wire.VWCPresent != 0
	n.CanWriteZeroes = c.id.ONCS&wire.ONCSWriteZeroes != 0
	n.CanDeallocate = c.id.ONCS&wire.ONCSDSM != 0
	n.CanCompare = c.id.ONCS&wire.ONCSCompare != 0
	n.ReadsZeroes = id.DLFEAT&7 == wire.DLFEATZeroes
	n.unmaps = n.ReadsZeroes && id.DLFEAT&wire.DLFEATWriteZeroes != 0
	if c.vs >= wire.NewVersion(1, 3, 0) {
		if _, err := c.Admin(ctx, "identify namespace descriptors", wire.IdentifyCmd(wire.CNSNamespaceDescriptors, nsid, 0, 0), b); err != nil {
			return n, err
		}
		var d wire.NamespaceDescriptors
		if err := d.Parse(b); err != nil {
			return n, err
		}
		if d.HasCSI && d.CSI != wire.CSINVM {
			return n, fmt.Errorf("namespace %d: I/O command set %d is not supported", nsid, d.CSI)
		}
		n.UUID = d.UUID
		if !d.NGUID.IsZero() {
			n.NGUID = d.NGUID
		}
		if !d.EUI64.IsZero() {
			n.EUI64 = d.EUI64
		}
	}
	return n, nil
}

// Namespaces returns all active namespaces, in the order of their NSIDs.
func (c *Controller) Namespaces(ctx context.Context) ([]NamespaceInfo, error) {
	ids, err := c.NSIDs(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]NamespaceInfo, 0, len(ids))
	for _, id := range ids {
		n, err := c.Namespace(ctx, id)
		var se *nvme.StatusError
		if errors.As(err, &se) && se.Status.Code() == nvme.StatusInvalidNamespace {
			continue // gone since the list was read
		}
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, nil
}

// Op is what an IO does.
type Op uint8

const (
	OpRead Op = iota
	OpWrite
	OpFlush
	OpWriteZeroes
	OpDeallocate
	OpCompare // Data with what is there: StatusCompareFailure if it differs
)

func (o Op) String() string {
	return [...]string{"read", "write", "flush", "write zeroes", "deallocate", "compare"}[o]
}

// IO is one asynchronous operation on a namespace. The caller owns it, and
// Data, again when Done is called, and not before. Offset and Length are in
// bytes, multiples of the block size; Length is len(Data) where there is Data.
type IO struct {
	Op             Op
	FUA            bool // durable before it is done
	MayUnmap       bool // write zeroes may deallocate
	Offset, Length int64
	Data           []byte
	// Done is called once, from a queue's loop or inside Submit, without locks. It may Submit; it must not block.
	Done func(*IO)
	Err  error // a *nvme.StatusError, or why the association ended
	User any   // the caller's

	ns  *Namespace
	req part // the whole, if one command is enough
	// Of an IO in several commands:
	cursor  atomic.Int64 // bytes begun
	limit   int64
	pending atomic.Int32
	failed  atomic.Pointer[error]
}

// part is one command of an IO.
type part struct {
	tcp.Request
	io    *IO
	rng   [wire.DSMRangeSize]byte
	queue *tcp.HostQueue
}

// maxParts is how many commands of one IO are open at once.
const maxParts = 32

// Namespace is a namespace through one controller.
type Namespace struct {
	NamespaceInfo
	c     *Controller
	shift uint
	parts sync.Pool
	calls sync.Pool
}

// Open returns a namespace for I/O.
func (c *Controller) Open(ctx context.Context, nsid uint32) (*Namespace, error) {
	info, err := c.Namespace(ctx, nsid)
	if err == nil && len(c.io) == 0 {
		err = errors.New("the controller has no I/O queues")
	}
	if err == nil && info.BlockSize > c.maxIO {
		err = fmt.Errorf("blocks of %d bytes do not fit in a command of at most %d", info.BlockSize, c.maxIO)
	}
	if err != nil {
		return nil, &Error{"open namespace of", c.addr, c.nqn, err}
	}
	n := &Namespace{NamespaceInfo: info, c: c}
	for 1<<n.shift < info.BlockSize {
		n.shift++
	}
	n.parts.New = func() any { return new(part) }
	n.calls.New = func() any {
		w := &waiter{ch: make(chan struct{}, 1)}
		w.Done = func(*IO) { w.ch <- struct{}{} }
		return w
	}
	return n, nil
}

// Controller returns the controller that the namespace was opened through.
func (n *Namespace) Controller() *Controller { return n.c }

// batch bounds how many commands are handed to a queue at once.
const batch = 64

// Submit starts operations. They are not ordered among each other, as in
// NVMe. Those of one call share a queue and leave together.
func (n *Namespace) Submit(ios ...*IO) {
	q := n.c.io[n.c.next.Add(1)%uint32(len(n.c.io))]
	var reqs [batch]*tcp.Request
	k := 0
	for _, o := range ios {
		o.ns, o.Err = n, nil
		if err := n.check(o); err != nil {
			o.Err = err
			o.Done(o)
			continue
		}
		if o.limit = n.limitOf(o); o.Length > o.limit {
			n.split(q, o)
			continue
		}
		o.req.io, o.req.queue = o, q
		o.req.User, o.req.Done = &o.req, wholeDone
		n.command(&o.req, o.Offset, o.Length)
		reqs[k] = &o.req.Request
		if k++; k == batch {
			q.Submit(reqs[:]...)
			k = 0
		}
	}
	if k > 0 {
		q.Submit(reqs[:k]...)
	}
}

func (n *Namespace) check(o *IO) error {
	mask := int64(n.BlockSize - 1)
	switch o.Op {
	case OpFlush:
		o.Length = 0
		return nil
	case OpRead, OpWrite, OpCompare:
		o.Length = int64(len(o.Data))
	case OpWriteZeroes, OpDeallocate:
	default:
		return fmt.Errorf("operation %d is unknown", o.Op)
	}
	if o.Offset < 0 || o.Length <= 0 || (o.Offset|o.Length)&mask != 0 || o.Offset > math.MaxInt64-o.Length {
		return fmt.Errorf("%v of %d bytes at %d: not whole blocks of %d bytes", o.Op, o.Length, o.Offset, n.BlockSize)
	}
	return nil
}

// limitOf returns the most bytes that one command of this kind may cover.
func (n *Namespace) limitOf(o *IO) int64 {
	blocks := int64(wire.MaxBlocks)
	switch o.Op {
	case OpFlush:
		return 0
	case OpRead, OpWrite, OpCompare:
		return min(int64(n.c.maxIO)&^int64(n.BlockSize-1), blocks<<n.shift)
	case OpWriteZeroes:
		if z := n.c.limits.WZSL; z > 0 && z < 32 {
			blocks = max(min(blocks, int64(n.c.cap.MPSMin())<<z>>n.shift), 1)
		}
	case OpDeallocate:
		blocks = math.MaxUint32
		if l := n.c.limits.DMRSL; l > 0 {
			blocks = int64(l)
		}
		if l := n.c.limits.DMSL; l > 0 && l < uint64(blocks) {
			blocks = int64(l)
		}
	}
	return blocks << n.shift
}

// command fills a part with the command for length bytes at off.
func (n *Namespace) command(p *part, off, length int64) {
	o := p.io
	slba, blocks := uint64(off)>>n.shift, uint32(length>>n.shift)
	var control uint32
	if o.FUA && (o.Op == OpWrite || o.Op == OpWriteZeroes) {
		control = wire.ControlFUA
	}
	p.Data = nil
	switch o.Op {
	case OpFlush:
		p.Cmd = wire.FlushCmd(n.NSID)
	case OpRead:
		p.Cmd = wire.ReadCmd(n.NSID, slba, blocks, 0)
	case OpWrite:
		p.Cmd = wire.WriteCmd(n.NSID, slba, blocks, control)
	case OpCompare:
		p.Cmd = wire.CompareCmd(n.NSID, slba, blocks, 0)
	case OpWriteZeroes:
		if o.MayUnmap && n.unmaps {
			control |= wire.ControlDEAC
		}
		p.Cmd = wire.WriteZeroesCmd(n.NSID, slba, blocks, control)
	case OpDeallocate:
		p.Cmd = wire.DSMCmd(n.NSID, 1, wire.DSMDeallocate)
		r := wire.DSMRange{Blocks: blocks, SLBA: slba}
		p.Data = r.AppendTo(p.rng[:0])
	}
	if o.Data != nil {
		at := off - o.Offset
		p.Data = o.Data[at : at+length]
	}
}

func (p *part) status() error {
	if p.Err != nil {
		return p.Err
	}
	if s := p.Completion.Status; !s.OK() {
		return &nvme.StatusError{Op: p.io.Op.String(), Status: s, Result: p.Completion.Result()}
	}
	return nil
}

// owner returns the part that a request is the beginning of.
func owner(r *tcp.Request) *part { return r.User.(*part) }

func wholeDone(r *tcp.Request) {
	p := owner(r)
	p.io.Err = p.status()
	p.io.Done(p.io)
}

// split starts an IO that needs several commands.
func (n *Namespace) split(q *tcp.HostQueue, o *IO) {
	k := int32(min((o.Length+o.limit-1)/o.limit, maxParts))
	o.cursor.Store(0)
	o.failed.Store(nil)
	o.pending.Store(k)
	for range k {
		p := n.parts.Get().(*part)
		p.io, p.queue = o, q
		p.User, p.Done = p, partDone
		n.advance(p)
	}
}

// advance sends p's next command, if there is one.
func (n *Namespace) advance(p *part) {
	o := p.io
	at := o.cursor.Add(o.limit) - o.limit
	if at < o.Length && o.failed.Load() == nil {
		n.command(p, o.Offset+at, min(o.limit, o.Length-at))
		p.queue.Submit(&p.Request)
		return
	}
	p.io, p.Data = nil, nil
	n.parts.Put(p)
	if o.pending.Add(-1) > 0 {
		return
	}
	if err := o.failed.Load(); err != nil {
		o.Err = *err
	}
	o.Done(o)
}

func partDone(r *tcp.Request) {
	p := owner(r)
	if err := p.status(); err != nil {
		p.io.failed.CompareAndSwap(nil, &err)
	}
	p.io.ns.advance(p)
}

type waiter struct {
	IO
	ch chan struct{}
}

// do runs one operation to its end.
func (n *Namespace) do(op Op, off, length int64, data []byte, fua, unmap bool) error {
	w := n.calls.Get().(*waiter)
	w.Op, w.Offset, w.Length, w.Data, w.FUA, w.MayUnmap = op, off, length, data, fua, unmap
	n.Submit(&w.IO)
	<-w.ch
	err := w.Err
	w.Data, w.Err = nil, nil
	n.calls.Put(w)
	if err != nil {
		return &Error{op.String(), n.c.addr, n.c.nqn, err}
	}
	return nil
}

// ReadAt reads whole blocks. At the end of the namespace it returns io.EOF as io.ReaderAt wants.
func (n *Namespace) ReadAt(b []byte, off int64) (int, error) {
	short := false
	if rest := n.Size - off; off >= 0 && int64(len(b)) > rest {
		b, short = b[:max(rest, 0)], true
	}
	if len(b) > 0 {
		if err := n.do(OpRead, off, 0, b, false, false); err != nil {
			return 0, err
		}
	}
	if short {
		return len(b), io.EOF
	}
	return len(b), nil
}

// WriteAt writes whole blocks; they are durable after Flush.
func (n *Namespace) WriteAt(b []byte, off int64) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if err := n.do(OpWrite, off, 0, b, false, false); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Flush makes every write that was done before durable.
func (n *Namespace) Flush() error { return n.do(OpFlush, 0, 0, nil, false, false) }

// WriteZeroes makes a range of whole blocks read as zeros.
func (n *Namespace) WriteZeroes(off, length int64, mayUnmap bool) error {
	return n.do(OpWriteZeroes, off, length, nil, false, mayUnmap)
}

// Deallocate says that the contents of a range of whole blocks are not needed any more.
func (n *Namespace) Deallocate(off, length int64) error {
	return n.do(OpDeallocate, off, length, nil, false, false)
}

// Compare fails with StatusCompareFailure if b is not what the namespace has at off.
func (n *Namespace) Compare(b []byte, off int64) error {
	return n.do(OpCompare, off, 0, b, false, false)
}

var _ interface {
	io.ReaderAt
	io.WriterAt
} = (*Namespace)(nil)
