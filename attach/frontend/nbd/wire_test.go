package nbd

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// messages are the fixed-size ones, each with a distinct value in every byte.
func messages() map[string]struct {
	b     []byte
	magic int // bytes of magic
	parse func([]byte) ([]byte, error)
} {
	type m = struct {
		b     []byte
		magic int
		parse func([]byte) ([]byte, error)
	}
	return map[string]m{
		"option": {option{0x01020304, 0x05060708}.AppendTo(nil), 8, func(b []byte) ([]byte, error) {
			var v option
			err := v.Parse(b)
			return v.AppendTo(nil), err
		}},
		"option reply": {optReply{0x01020304, 0x05060708, 0x090a0b0c}.AppendTo(nil), 8, func(b []byte) ([]byte, error) {
			var v optReply
			err := v.Parse(b)
			return v.AppendTo(nil), err
		}},
		"request": {request{0x0102, 0x0304, 0x05060708090a0b0c, 0x0d0e0f1011121314, 0x15161718}.AppendTo(nil), 4, func(b []byte) ([]byte, error) {
			var v request
			err := v.Parse(b)
			return v.AppendTo(nil), err
		}},
		"simple reply": {simpleReply{0x01020304, 0x05060708090a0b0c}.AppendTo(nil), 4, func(b []byte) ([]byte, error) {
			var v simpleReply
			err := v.Parse(b)
			return v.AppendTo(nil), err
		}},
		"chunk": {chunk{0x0102, 0x0304, 0x05060708090a0b0c, 0x0d0e0f10}.AppendTo(nil), 4, func(b []byte) ([]byte, error) {
			var v chunk
			err := v.Parse(b)
			return v.AppendTo(nil), err
		}},
	}
}

// Fields follow the magic in the order the document lists them, which here is
// the order of the structs, without gaps.
func TestWireLayout(t *testing.T) {
	for name, m := range messages() {
		for i, b := range m.b[m.magic:] {
			if int(b) != i+1 {
				t.Errorf("%s: byte %d is %#x", name, m.magic+i, b)
			}
		}
		got, err := m.parse(m.b)
		if err != nil || !bytes.Equal(got, m.b) {
			t.Errorf("%s: %x comes back as %x, %v", name, m.b, got, err)
		}
		for n := range m.b {
			if _, err := m.parse(m.b[:n]); err == nil {
				t.Errorf("%s: parsed from %d of %d bytes", name, n, len(m.b))
			}
		}
		for i := range m.magic {
			bad := bytes.Clone(m.b)
			bad[i] ^= 1
			if _, err := m.parse(bad); err == nil {
				t.Errorf("%s: parsed with magic %x", name, bad[:m.magic])
			}
		}
	}
}

func TestExportQuery(t *testing.T) {
	good := []byte(query("disk", 3, 1, 3, 1000))
	var q exportQuery
	if err := q.Parse(good); err != nil || q.Name != "disk" || q.Want != 1<<3|1<<1 {
		t.Errorf("%+v, %v", q, err)
	}
	for n := range good {
		if q.Parse(good[:n]) == nil {
			t.Errorf("parsed from %d of %d bytes", n, len(good))
		}
	}
	long := query(string(make([]byte, maxString+1)))
	for name, b := range map[string][]byte{
		"bytes after the end": append(bytes.Clone(good), 0),
		"name of 4 GiB":       append([]byte{255, 255, 255, 255}, good[4:]...),
		"name over the count": binary.BigEndian.AppendUint32(nil, 2),
		"long name":           []byte(long),
	} {
		if q.Parse(b) == nil {
			t.Errorf("parsed with %s", name)
		}
	}
}

func FuzzRequest(f *testing.F) {
	for typ := range cmdType(9) {
		f.Add(cmd(typ, 1, 4096, 512).AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var q request
		if q.Parse(b) == nil && !bytes.Equal(q.AppendTo(nil), b[:requestSize]) {
			t.Errorf("%x comes back as %+v", b, q)
		}
	})
}

func FuzzExportQuery(f *testing.F) {
	f.Add([]byte(query("disk", 3, 1)))
	f.Add([]byte(query("")))
	f.Fuzz(func(t *testing.T, b []byte) {
		var q exportQuery
		if q.Parse(b) == nil && (len(q.Name) > maxString || len(b) < 6+len(q.Name)) {
			t.Errorf("%x: %+v", b, q)
		}
	})
}
