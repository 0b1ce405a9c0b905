package capture

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func pdu(fromHost bool, kind byte, body ...byte) PDU {
	b := []byte{kind, 0, 8, 0, 0, 0, 0, 0}
	b = append(b, body...)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)))
	return PDU{FromHost: fromHost, Bytes: b}
}

func TestText(t *testing.T) {
	want := []PDU{
		pdu(true, 0, bytes.Repeat([]byte{0}, 120)...),
		pdu(false, 1, 1, 2, 3),
		pdu(true, 4, append(bytes.Repeat([]byte{7}, 9), 1, 1, 1)...),
		pdu(false, 5),
	}
	text := []byte("# a record\n\n")
	for _, p := range want {
		text = p.AppendText(text)
	}
	got, err := Parse(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if !strings.Contains(string(text), "07x9 010101") {
		t.Errorf("runs are not shortened:\n%s", text)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, line := range []string{
		"X>C 0400080008000000", "H>C 04", "H>C 0400080009000000", "H>C 040008000800000", "H>C 0400080008000000 00x99999999",
		"H>C 00x0", "H>C 0000x9",
	} {
		if _, err := Parse(strings.NewReader(line)); err == nil {
			t.Errorf("%q was taken", line)
		}
	}
}

func TestProxy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answer := pdu(false, 1, 9)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := readPDU(conn); err != nil {
			return
		}
		conn.Write(answer.Bytes)
		io.Copy(io.Discard, conn)
	}()
	p, err := NewProxy("127.0.0.1", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	connect := pdu(true, 4, make([]byte, 64)...)
	connect.Bytes[8], connect.Bytes[12], connect.Bytes[50] = 0x7f, 1, 3
	conn, err := net.Dial("tcp", p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(connect.Bytes); err != nil {
		t.Fatal(err)
	}
	stop, done := p.WaitFor(func(conns []*Conn) bool { return len(conns) == 1 && len(conns[0].PDUs()) == 2 })
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		stop()
		t.Fatal("the answer did not pass")
	}
	conn.Close()
	conns := p.Close()
	if d := cmp.Diff([]PDU{connect, answer}, conns[0].PDUs()); d != "" {
		t.Error(d)
	}
	if qid := conns[0].QID(); qid != 3 {
		t.Errorf("QID %d", qid)
	}
	if n := conns[0].Commands(0x7f); n != 1 {
		t.Errorf("%d fabrics commands", n)
	}
}
