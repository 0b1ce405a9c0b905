package nvmetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/wire"
)

const testNQN nvme.NQN = "nqn.2014-08.com.example:nvmetest"

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i*7) + byte(i>>8)
	}
	return b
}

// The two scripted ends go through an association with each other, at every combination of digests and alignment.
func TestAssociation(t *testing.T) {
	for _, digests := range []uint8{0, wire.DigestHeader, wire.DigestData, wire.DigestHeader | wire.DigestData} {
		for _, pda := range []uint8{0, 1, 31} {
			c := NewController(t, testNQN)
			c.ICResp.CPDA = pda
			c.R2TData = 12 << 10
			addr := c.Start().String()
			admin := ConnectAdmin(t, addr, HostOptions{SubNQN: testNQN, IC: wire.ICReq{HPDA: pda, Digest: digests}})
			_, b := admin.Must(wire.IdentifyCmd(wire.CNSController, 0, 0, 0), nil, wire.IdentifySize)
			var id wire.IdentifyController
			if err := id.Parse(b); err != nil || id.SUBNQN != testNQN || id.CNTLID != admin.CNTLID {
				t.Fatalf("%+v, %v", id, err)
			}
			admin.Must(wire.SetFeaturesCmd(wire.FeatureNumberOfQueues, 0, wire.QueueCount(1)), nil, 0)
			aer := admin.Send(wire.AERCmd(), nil)
			q := admin.ConnectIO(1)
			for _, n := range []int{512, 4096, 64 << 10, 512 << 10} {
				want := pattern(n, byte(n>>9))
				q.Must(wire.WriteCmd(1, 8, uint32(n/512), 0), want, 0)
				if _, got := q.Must(wire.ReadCmd(1, 8, uint32(n/512), 0), nil, n); !bytes.Equal(got, want) {
					t.Fatalf("digests %d, alignment %d: %d bytes differ", digests, pda, n)
				}
			}
			if n := c.Event(wire.EventNamespaceChanged); n != 1 {
				t.Errorf("%d events", n)
			}
			if e := admin.ExpectResp(aer); wire.AsyncEvent(e.DW0) != wire.EventNamespaceChanged {
				t.Errorf("event %#x", e.DW0)
			}
			q.Close()
			if e := c.WaitEnd(); e.QID != 1 || !e.Connected || e.Err != nil || e.TermReq != nil {
				t.Errorf("%+v", e)
			}
			c.Stop()
		}
	}
}

func TestFrame(t *testing.T) {
	c := &Conn{HDGST: true}
	cmd := wire.KeepAliveCmd()
	cmd.CID = 5
	b := c.Frame(wire.TypeCapsuleCmd, 0, cmd.AppendTo(nil), nil)
	if !bytes.HasPrefix(b, []byte{4, 1, 0x48, 0, 0x4c, 0, 0, 0}) || !bytes.HasSuffix(b, []byte{0x2b, 0x87, 0xc1, 0x94}) {
		t.Errorf("keep alive: % x", b)
	}
	b[10] = 6
	c.Resum(b)
	if got := binary.LittleEndian.Uint32(b[72:]); got == 0x94c1872b || got != digest(b[:72]) {
		t.Errorf("Resum: % x", b)
	}
	c = &Conn{DDGST: true, SendAlign: 128}
	b = c.Frame(wire.TypeC2HData, wire.FlagLast, (&wire.DataPDU{Length: 9}).AppendTo(nil), []byte("123456789"))
	if b[3] != 128 || len(b) != 128+9+4 || !bytes.Equal(b[137:], []byte{0x83, 0x92, 0x06, 0xe3}) {
		t.Errorf("C2HData: % x", b)
	}
}

// What breaks a rule of framing must be seen, or a test that relies on Conn proves nothing.
func TestReadPDURefuses(t *testing.T) {
	plain := &Conn{}
	good := plain.Frame(wire.TypeC2HData, wire.FlagLast, (&wire.DataPDU{Length: 8}).AppendTo(nil), make([]byte, 8))
	summed := (&Conn{HDGST: true, DDGST: true}).Frame(wire.TypeC2HData, wire.FlagLast, (&wire.DataPDU{Length: 8}).AppendTo(nil), make([]byte, 8))
	padded := (&Conn{SendAlign: 64}).Frame(wire.TypeC2HData, wire.FlagLast, (&wire.DataPDU{Length: 8}).AppendTo(nil), make([]byte, 8))
	resp := plain.Frame(wire.TypeCapsuleResp, 0, (&wire.Completion{}).AppendTo(nil), nil)
	edit := func(b []byte, at int, v byte) []byte {
		b = bytes.Clone(b)
		b[at] ^= v
		return b
	}
	for what, c := range map[string]struct {
		conn Conn
		b    []byte
	}{
		"good":              {Conn{}, good},
		"good with digests": {Conn{HDGST: true, DDGST: true}, summed},
		"good with padding": {Conn{RecvAlign: 64}, padded},
		"type":              {Conn{}, edit(good, 0, 8)},
		"HLEN":              {Conn{}, edit(good, 2, 1)},
		"flags":             {Conn{}, edit(good, 1, 0x10)},
		"SUCCESS no LAST":   {Conn{}, edit(good, 1, wire.FlagLast|wire.FlagSuccess)},
		"LAST on response":  {Conn{}, edit(resp, 1, wire.FlagLast)},
		"PDO no data":       {Conn{}, edit(resp, 3, 24)},
		"PLEN":              {Conn{}, edit(resp, 4, 25)},
		"PLEN of 4 GiB":     {Conn{}, edit(resp, 7, 0xff)},
		"PDO":               {Conn{}, edit(good, 3, 24)},
		"alignment":         {Conn{RecvAlign: 128}, padded},
		"padding":           {Conn{RecvAlign: 64}, edit(padded, 40, 1)},
		"no header digest":  {Conn{HDGST: true}, good},
		"header digest":     {Conn{HDGST: true, DDGST: true}, edit(summed, 24, 1)},
		"header":            {Conn{HDGST: true, DDGST: true}, edit(summed, 12, 1)},
		"data":              {Conn{HDGST: true, DDGST: true}, edit(summed, 30, 1)},
		"unwanted digest":   {Conn{}, summed},
		"truncated":         {Conn{}, good[:len(good)-1]},
		"truncated header":  {Conn{}, good[:5]},
	} {
		ours, theirs := net.Pipe()
		go func() {
			theirs.Write(c.b)
			theirs.Close()
		}()
		c.conn.Conn = ours
		p, err := c.conn.ReadPDU()
		ours.Close()
		if ok := what == "good" || what == "good with digests" || what == "good with padding"; ok != (err == nil) {
			t.Errorf("%s: %+v, %v", what, p, err)
		}
	}
}

func TestFaultConn(t *testing.T) {
	run := func(f *FaultConn, in []byte) (got []byte, wrote int, err error) {
		ours, theirs := net.Pipe()
		f.Conn = ours
		done := make(chan []byte)
		go func() {
			b, _ := io.ReadAll(theirs)
			done <- b
		}()
		wrote, err = f.Write(in)
		ours.Close()
		return <-done, wrote, err
	}
	in := []byte("0123456789")
	for _, f := range []*FaultConn{{}, {OneByteWrites: true}} {
		if got, n, err := run(f, in); string(got) != string(in) || n != 10 || err != nil {
			t.Errorf("%+v: %q, %d, %v", f, got, n, err)
		}
	}
	for _, f := range []*FaultConn{{CutWrite: 4}, {CutWrite: 4, OneByteWrites: true}} {
		if got, n, err := run(f, in); string(got) != "0123" || n != 4 || !errors.Is(err, net.ErrClosed) {
			t.Errorf("cut: %q, %d, %v", got, n, err)
		}
	}
	for _, f := range []*FaultConn{{FlipWrite: Flip{4, 1}}, {FlipWrite: Flip{4, 1}, OneByteWrites: true}} {
		if got, _, err := run(f, in); string(got) != "0123556789" || string(in) != "0123456789" || err != nil {
			t.Errorf("flip: %q, %v", got, err)
		}
	}
	ours, theirs := net.Pipe()
	f := &FaultConn{Conn: ours, OneByteReads: true, CutRead: 5, FlipRead: Flip{2, 1}}
	go func() {
		theirs.Write(in)
		theirs.Close()
	}()
	b := make([]byte, 10)
	if n, err := f.Read(b); n != 1 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	got, err := io.ReadAll(f)
	if string(got) != "1334" || !errors.Is(err, net.ErrClosed) {
		t.Errorf("%q, %v", got, err)
	}
}
