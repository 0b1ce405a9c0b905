package nbd

import (
	"math/bits"
	"sync"
	"unsafe"
)

const pageSize = 4096

// buffer is page-aligned memory of a power of two of bytes.
type buffer struct {
	mem   []byte
	class int
}

// pool keeps buffers by size, from one page to maxPayload.
type pool struct {
	classes [14]sync.Pool
}

// classOf gives the class of the smallest buffer for n bytes, 1 to maxPayload.
func classOf(n int) int { return bits.Len(uint((n - 1) / pageSize)) }

func classSize(class int) int { return pageSize << class }

func (p *pool) get(class int) *buffer {
	if b, ok := p.classes[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{mem: alignedBytes(classSize(class)), class: class}
}

func (p *pool) put(b *buffer) { p.classes[b.class].Put(b) }

// alignedBytes returns n bytes that begin on a page. The allocator already
// aligns powers of two, but doesn't promise to.
func alignedBytes(n int) []byte {
	b := make([]byte, n)
	if pageOffset(b) != 0 {
		b = make([]byte, n+pageSize-1)
		b = b[(pageSize-pageOffset(b))%pageSize:]
	}
	return b[:n:n]
}

func pageOffset(b []byte) int { return int(uintptr(unsafe.Pointer(&b[0])) % pageSize) }
