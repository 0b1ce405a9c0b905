package backend

import (
	"fmt"
)

// null takes writes and forgets them; it reads as zeroes.
type null struct {
	info Info
}

func newNull(spec string, o Options) *null {
	return &null{info: volatileInfo(spec, o)}
}

func volatileInfo(spec string, o Options) Info {
	bs := blockSize(o)
	return Info{
		Size: o.Size, BlockSize: bs, PhysicalBlock: max(bs, 4096),
		CanDeallocate: true, DeallocateZeroes: true, CanWriteZeroes: true,
		DiscardGranularity: 4096, ReadOnly: o.ReadOnly,
		Identity: spec + "@" + machineID("/"),
	}
}

func (n *null) Info() Info { return n.info }

func (n *null) Submit(r *Request) bool {
	if r.Err = r.check(n.info.Size, n.info.ReadOnly); r.Err == nil && r.Op == OpRead {
		clear(r.Data)
	}
	return true
}

func (n *null) Close() error { return nil }

// memory is an anonymous mapping: pages come into being when they are written and go when they are deallocated.
type memory struct {
	info    Info
	mem     []byte
	workers workers
}

// inlineBytes is the most memory that is cleared or copied on the caller's own time; more goes to a worker.
const inlineBytes = 1 << 20

func newMemory(spec string, o Options) (Backend, error) {
	if total := physicalMemory(); total > 0 && o.Size > total {
		return nil, invalid(spec, "size %d is more than this machine's %d bytes of memory; use a smaller size= or a file", o.Size, total)
	}
	if int64(int(o.Size)) != o.Size {
		return nil, invalid(spec, "size %d is more than this machine can address", o.Size)
	}
	mem, err := mapMemory(int(o.Size))
	if err != nil {
		return nil, &Error{Op: "open", Path: spec, Err: fmt.Errorf("map %d bytes: %w", o.Size, err)}
	}
	m := &memory{info: volatileInfo(spec, o), mem: mem}
	m.workers.init(m.do, o.Threads)
	return m, nil
}

func (m *memory) Info() Info { return m.info }

func (m *memory) Submit(r *Request) bool {
	if r.Err = r.check(m.info.Size, m.info.ReadOnly); r.Err != nil {
		return true
	}
	if r.Op != OpFlush && r.Length > inlineBytes {
		return !m.workers.submit(r)
	}
	r.Err = m.do(r)
	return true
}

func (m *memory) do(r *Request) error {
	switch r.Op {
	case OpRead:
		copy(r.Data, m.mem[r.Offset:])
	case OpWrite:
		copy(m.mem[r.Offset:], r.Data)
	case OpWriteZeroes, OpDeallocate:
		return zeroMemory(m.mem, int(r.Offset), int(r.Offset+r.Length), r.Op == OpDeallocate)
	}
	return nil
}

func (m *memory) Close() error {
	m.workers.close()
	return unmapMemory(m.mem)
}
