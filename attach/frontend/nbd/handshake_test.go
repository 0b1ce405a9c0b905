package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"hawser.dev/hawser/attach/frontend"
	"hawser.dev/hawser/attach/frontend/frontendtest"
)

func info(typ uint16, rest ...any) answer {
	b := binary.BigEndian.AppendUint16(nil, typ)
	for _, r := range rest {
		if s, ok := r.(string); ok {
			b = append(b, s...)
		} else {
			b, _ = binary.Append(b, binary.BigEndian, r)
		}
	}
	return answer{repInfo, string(b)}
}

const (
	testFlags    = uint16(flagHasFlags | flagFlush | flagFUA | flagTrim | flagWriteZeroes | flagMultiConn)
	exportSize1M = uint64(1 << 20)
)

func TestOptions(t *testing.T) {
	var (
		ack    = answer{repAck, ""}
		export = info(infoExport, exportSize1M, testFlags)
		name   = info(infoName, "vol-1")
		desc   = info(infoDescription, "a volume of the tests")
		sizes  = info(infoBlockSize, uint32(512), uint32(16<<10), uint32(32<<20))
	)
	for _, tt := range []struct {
		name string
		opt  optType
		data string
		want []answer // of a refusal only the type counts
	}{
		{"list", optList, "", []answer{{repServer, "\x00\x00\x00\x05vol-1a volume of the tests"}, ack}},
		{"list with data", optList, "x", []answer{{repErrInvalid, ""}}},
		{"info", optInfo, query("vol-1"), []answer{export, sizes, ack}},
		{"info of the default export", optInfo, query(""), []answer{export, sizes, ack}},
		{"info with everything", optInfo, query("vol-1", 0, 1, 2, 3, 2, 77), []answer{export, name, desc, sizes, ack}},
		{"info of another export", optInfo, query("vol-2"), []answer{{repErrUnknown, ""}}},
		{"info of no UTF-8", optInfo, query("\xff\x00"), []answer{{repErrUnknown, ""}}},
		{"info of a long name", optInfo, query(strings.Repeat("x", 4097)), []answer{{repErrInvalid, ""}}},
		{"info without data", optInfo, "", []answer{{repErrInvalid, ""}}},
		{"go to another export", optGo, query("vol-2"), []answer{{repErrUnknown, ""}}},
		{"go with too many requests counted", optGo, query("")[:4] + "\xff\xff", []answer{{repErrInvalid, ""}}},
		{"TLS", optStartTLS, "", []answer{{repErrUnsup, ""}}},
		{"list metadata contexts", optListMeta, "\x00\x00\x00\x00\x00\x00\x00\x00", []answer{{repErrUnsup, ""}}},
		{"set metadata context", optSetMeta, "\x00\x00\x00\x00\x00\x00\x00\x00", []answer{{repErrUnsup, ""}}},
		{"extended headers", optExtendedHeaders, "", []answer{{repErrUnsup, ""}}},
		{"peek export", 4, "", []answer{{repErrUnsup, ""}}},
		{"unknown option", 0xdeadbeef, strings.Repeat("x", 1000), []answer{{repErrUnsup, ""}}},
		{"unknown option with much data", 0xdeadbeef, strings.Repeat("x", maxOptionData+1), []answer{{repErrTooBig, ""}}},
		{"info with too much data", optInfo, strings.Repeat("x", maxOptionSkip), []answer{{repErrTooBig, ""}}},
		{"structured reply with data", optStructuredReply, "x", []answer{{repErrInvalid, ""}}},
		{"structured reply", optStructuredReply, "", []answer{ack}},
		{"abort with data", optAbort, "bye", []answer{ack}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checkLeaks(t)
			e := serve(t, "unix", newVolume(t), Options{})
			c := e.connect().greet(3)
			got := c.option(tt.opt, tt.data)
			if last := &got[len(got)-1]; last.Type>>31 != 0 {
				if last.Data == "" || len(last.Data) > maxString {
					t.Errorf("refused with %q", last.Data)
				}
				last.Data = ""
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if tt.opt == optAbort {
				c.expectEnd()
				return
			}
			// Whatever it was, the session goes on in step.
			want := export
			if tt.opt == optStructuredReply && tt.data == "" {
				want = info(infoExport, exportSize1M, testFlags|flagDF)
			}
			if diff := cmp.Diff([]answer{want, sizes, ack}, c.option(optGo, query("vol-1", infoBlockSize))); diff != "" {
				t.Error(diff)
			}
			if n := e.Clients(); n != 1 {
				t.Errorf("%d clients, want 1", n)
			}
		})
	}
}

// INFO is no promise: nothing is entered, and it agrees with GO.
func TestInfoThenGo(t *testing.T) {
	checkLeaks(t)
	v := newVolume(t)
	e := serve(t, "unix", v, Options{})
	c := e.connect().greet(3)
	first := c.option(optInfo, query("vol-1", 1, 2, 3))
	if n := e.Clients(); n != 0 {
		t.Errorf("%d clients after INFO", n)
	}
	grown := v.Info()
	grown.Size *= 2
	if err := e.SetInfo(grown); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, c.option(optGo, query("vol-1", 1, 2, 3))); diff != "" {
		t.Error(diff)
	}
	if c := e.dial(false); c.size != uint64(grown.Size) {
		t.Errorf("the next client is told %d", c.size)
	}
}

func TestExportName(t *testing.T) {
	for _, tt := range []struct {
		flags uint32
		name  string
		want  int // bytes of the answer; 0: the session ends
	}{
		{3, "vol-1", 10}, {3, "", 10}, {1, "vol-1", 134}, {2, "", 10}, {0, "vol-1", 134},
		{3, "vol-2", 0}, {3, strings.Repeat("v", 4097), 0},
	} {
		checkLeaks(t)
		e := serve(t, "unix", newVolume(t), Options{})
		c := e.connect().greet(tt.flags)
		c.write(append(option{optExportName, uint32(len(tt.name))}.AppendTo(nil), tt.name...))
		if tt.want == 0 {
			c.expectEnd()
			continue
		}
		want := binary.BigEndian.AppendUint64(nil, exportSize1M)
		want = binary.BigEndian.AppendUint16(want, testFlags)
		want = append(want, make([]byte, tt.want-10)...)
		if got := c.read(tt.want); !bytes.Equal(got, want) {
			t.Errorf("%+v: %x, want %x", tt, got, want)
		}
		if r := c.do(cmd(cmdRead, 1, 0, 512)); r.Error != 0 {
			t.Errorf("%+v: %+v", tt, r)
		}
	}
}

// What can't be answered ends the session.
func TestHandshakeBreaches(t *testing.T) {
	opt := func(t optType, n uint32) []byte { return option{t, n}.AppendTo(nil) }
	bad := opt(optList, 0)
	bad[7] ^= 1
	for name, tt := range map[string]struct {
		flags uint32
		send  []byte
	}{
		"unknown client flag":               {1 << 2, nil},
		"all client flags":                  {1<<32 - 1, nil},
		"option magic":                      {3, bad},
		"option of 4 GiB":                   {3, opt(99, 1<<32-1)},
		"option over 1 MiB":                 {3, opt(optGo, maxOptionSkip+1)},
		"option of a plain newstyle client": {2, opt(optList, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			c := serve(t, "unix", newVolume(t), Options{}).connect().greet(tt.flags)
			c.Conn.Write(tt.send)
			c.expectEnd()
		})
	}
	t.Run("endless options", func(t *testing.T) {
		checkLeaks(t)
		c := serve(t, "unix", newVolume(t), Options{}).connect().greet(3)
		for range maxOptions {
			c.option(optList, "")
		}
		c.write(opt(optList, 0))
		c.expectEnd()
	})
}

func TestTruncatedHandshake(t *testing.T) {
	checkLeaks(t)
	e := serve(t, "unix", newVolume(t), Options{})
	b := []byte{0, 0, 0, 3}
	b = option{optStructuredReply, 0}.AppendTo(b)
	q := query("vol-1", 3)
	b = append(option{optGo, uint32(len(q))}.AppendTo(b), q...)
	for n := range b {
		c := e.connect()
		c.read(18)
		c.write(b[:n])
		c.Conn.(*net.UnixConn).CloseWrite()
		if n < 4+optionSize {
			c.expectEnd()
			continue
		}
		c.read(optReplySize) // the structured reply's ACK
		c.expectEnd()
	}
	if n := e.Clients(); n != 0 {
		t.Errorf("%d clients", n)
	}
}

// pipeListener is a listener of net.Pipe, for time that the test controls and
// for connections that aren't sockets.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{make(chan net.Conn), make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (l *pipeListener) dial(tb testing.TB) *client {
	ours, theirs := net.Pipe()
	tb.Cleanup(func() { ours.Close() })
	l.conns <- theirs
	return &client{tb: tb, Conn: ours, lengths: map[uint64]int{}}
}

// The deadline is for the whole handshake: bytes that trickle don't extend it.
func TestHandshakeDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := newPipeListener()
		serveOn(t, ln, newVolume(t), Options{HandshakeTimeout: 10 * time.Second})
		c := ln.dial(t)
		start := time.Now()
		c.read(18)
		var err error
		for n := 0; err == nil && n < 100; n++ {
			_, err = c.Conn.Write([]byte{0})
			time.Sleep(time.Second)
			if n == 3 {
				c.Conn.Write([]byte("IHAVEOPT"))
			}
		}
		if took := time.Since(start); took < 10*time.Second || took > 12*time.Second {
			t.Errorf("cut after %v: %v", took, err)
		}
	})
}

// A client in the transmission phase may be silent for as long as it likes.
func TestIdleClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := newPipeListener()
		serveOn(t, ln, newVolume(t, frontendtest.Shuffle(2)), Options{})
		c := ln.dial(t).greet(3)
		c.option(optGo, query(""))
		time.Sleep(1000 * time.Hour)
		if r := c.do(cmd(cmdWrite, 1, 0, 200<<10)); r.Error != 0 {
			t.Errorf("%+v", r)
		}
		if r := c.do(cmd(cmdRead, 2, 0, 200<<10)); !bytes.Equal(r.Data, pattern(1, 200<<10)) {
			t.Errorf("error %d, %d bytes that differ", r.Error, len(r.Data))
		}
		c.send(cmd(cmdDisc, 0, 0, 0))
	})
}

func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		info frontend.Info
		want limits
	}{
		{frontend.Info{BlockSize: 512}, limits{512, 4096, maxPayload}},
		{frontend.Info{BlockSize: 1}, limits{1, 4096, maxPayload}},
		{frontend.Info{BlockSize: 4096, OptimalIO: 128 << 10}, limits{4096, 128 << 10, maxPayload}},
		{frontend.Info{BlockSize: 4096, OptimalIO: 96 << 10}, limits{4096, 4096, maxPayload}},
		{frontend.Info{BlockSize: 4096, OptimalIO: 512}, limits{4096, 4096, maxPayload}},
		{frontend.Info{BlockSize: 512, OptimalIO: 1 << 40}, limits{512, 4096, maxPayload}},
		{frontend.Info{BlockSize: 65536}, limits{65536, 65536, maxPayload}},
		{frontend.Info{BlockSize: 512, MaxTransfer: 1<<20 + 1}, limits{512, 4096, 1 << 20}},
		{frontend.Info{BlockSize: 512, MaxTransfer: 1 << 40}, limits{512, 4096, maxPayload}},
		{frontend.Info{BlockSize: 512, OptimalIO: 1 << 20, MaxTransfer: 64 << 10}, limits{512, 64 << 10, 64 << 10}},
		{frontend.Info{BlockSize: 512, MaxTransfer: 1024}, limits{512, 1024, 1024}},
	} {
		if got := limitsOf(tt.info); got != tt.want {
			t.Errorf("%+v: %+v, want %+v", tt.info, got, tt.want)
		}
	}
}

// FuzzNegotiation feeds options to the state machine: what it answers is
// well-formed, ends with one final reply an option, and is bounded.
func FuzzNegotiation(f *testing.F) {
	for t := range optType(13) {
		f.Add(uint32(3), append(option{t, 0}.AppendTo(nil), option{optGo, 12}.AppendTo(nil)...))
		q := query("vol-1", 1, 2, 3)
		f.Add(uint32(1), append(option{t, uint32(len(q))}.AppendTo(nil), q...))
	}
	f.Fuzz(func(t *testing.T, flags uint32, b []byte) {
		n := negotiation{name: "vol-1", info: testInfo(1 << 20), enter: func() bool { return len(b)%7 > 0 }}
		if n.setFlags(flags) != nil {
			return
		}
		for {
			var o option
			if o.Parse(b) != nil {
				return
			}
			b = b[optionSize:]
			n.out = n.out[:0]
			skip, err := n.admit(o)
			if err != nil {
				return
			}
			if uint64(len(b)) < uint64(o.Length) {
				return
			}
			data := b[:o.Length]
			b = b[o.Length:]
			at := haggling
			if skip == 0 {
				at, err = n.option(o.Type, data)
			}
			if err != nil {
				if at != hangup && skip == 0 {
					t.Fatalf("%v: phase %v with %v", o, at, err)
				}
				return
			}
			if o.Type == optExportName {
				return
			}
			checkReplies(t, o.Type, n.out)
			if at != haggling {
				return
			}
		}
	})
}

func checkReplies(t *testing.T, o optType, b []byte) {
	if len(b) > 4*maxString {
		t.Fatalf("%v: %d bytes of reply", o, len(b))
	}
	for final := false; len(b) > 0; {
		var r optReply
		if err := r.Parse(b); err != nil || r.Option != o || int(r.Length) > len(b)-optReplySize {
			t.Fatalf("%v: reply %+v, %v", o, r, err)
		}
		if final {
			t.Fatalf("%v: %+v after the final reply", o, r)
		}
		final = r.Type == repAck || r.Type>>31 != 0
		if b = b[optReplySize+int(r.Length):]; len(b) == 0 && !final {
			t.Fatalf("%v: no final reply", o)
		}
	}
}

func TestValidate(t *testing.T) {
	good := testInfo(1 << 20)
	for name, change := range map[string]func(*frontend.Info){
		"block size 0":    func(i *frontend.Info) { i.BlockSize = 0 },
		"NUL in the name": func(i *frontend.Info) { i.Name = "a\x00b" },
		"long name":       func(i *frontend.Info) { i.Name = strings.Repeat("x", 4097) },
	} {
		bad := good
		change(&bad)
		err := NewServer(infoVolume(bad), Options{}).Serve(t.Context(), newPipeListener())
		var typed *Error
		if !errors.As(err, &typed) {
			t.Errorf("%s: Serve: %v", name, err)
		}
	}
}

type infoVolume frontend.Info

func (v infoVolume) Info() frontend.Info         { return frontend.Info(v) }
func (v infoVolume) Submit(...*frontend.Request) {}
