package wire

import (
	"bytes"
	"fmt"
)

// layout walks the fields of a structure of fixed size, writing them to b or reading them from it, so that both
// directions share one table of offsets.
type layout struct {
	b    []byte
	put  bool
	name string
	err  error // the first field that could not be read
}

// fields is a structure that knows its table of offsets.
type fields interface{ layout(l *layout) }

// appendLayout appends the size bytes of s.
func appendLayout(b []byte, size int, s fields) []byte {
	n := len(b)
	b = append(b, make([]byte, size)...)
	s.layout(&layout{b: b[n:], put: true})
	return b
}

// parseLayout reads s from b, which must have size bytes.
func parseLayout(b []byte, size int, name string, s fields) error {
	if len(b) != size {
		return lengthError(name, size, len(b))
	}
	l := layout{b: b, name: name}
	s.layout(&l)
	return l.err
}

func (l *layout) u8(off int, v *uint8) {
	if l.put {
		l.b[off] = *v
	} else {
		*v = l.b[off]
	}
}

func (l *layout) u16(off int, v *uint16) {
	if l.put {
		le.PutUint16(l.b[off:], *v)
	} else {
		*v = le.Uint16(l.b[off:])
	}
}

func (l *layout) u32(off int, v *uint32) {
	if l.put {
		le.PutUint32(l.b[off:], *v)
	} else {
		*v = le.Uint32(l.b[off:])
	}
}

func (l *layout) u64(off int, v *uint64) {
	if l.put {
		le.PutUint64(l.b[off:], *v)
	} else {
		*v = le.Uint64(l.b[off:])
	}
}

func (l *layout) u128(off int, v *Uint128) {
	l.u64(off, &v.Lo)
	l.u64(off+8, &v.Hi)
}

func (l *layout) bytes(off int, v []byte) {
	if l.put {
		copy(l.b[off:], v)
	} else {
		copy(v, l.b[off:])
	}
}

// text is ASCII in a field of n bytes. It is written padded with pad and cut off at n; when read it ends at the first
// NUL, and trailing spaces are dropped: peers pad with either.
func (l *layout) text(off, n int, pad byte, v *string) {
	f := l.b[off : off+n]
	if l.put {
		for i := copy(f, *v); i < n; i++ {
			f[i] = pad
		}
		return
	}
	if i := bytes.IndexByte(f, 0); i >= 0 {
		f = f[:i]
	}
	*v = string(bytes.TrimRight(f, " "))
}

// nqnSize is the size of every field that holds an NQN.
const nqnSize = 256

// nqn is a string in a field of nqnSize bytes that ends in a NUL. It is written cut off at nqnSize-1 bytes.
func nqn[S ~string](l *layout, off int, field string, v *S) {
	f := l.b[off : off+nqnSize]
	if l.put {
		copy(f[:nqnSize-1], *v)
		return
	}
	i := bytes.IndexByte(f, 0)
	if i < 0 {
		if l.err == nil {
			l.err = &Error{Struct: l.name, Field: field, Offset: off, Reason: fmt.Sprintf("no NUL in %d bytes", nqnSize)}
		}
		return
	}
	*v = S(f[:i])
}
