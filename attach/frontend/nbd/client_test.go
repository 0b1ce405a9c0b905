package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hawser.dev/hawser/attach/frontend"
	"hawser.dev/hawser/attach/frontend/frontendtest"
)

// patience bounds what a test waits for; nothing that passes comes near it.
const patience = 60 * time.Second

func testInfo(size int64) frontend.Info {
	return frontend.Info{
		Size: size, BlockSize: 512, OptimalIO: 16 << 10,
		CanFlush: true, CanFUA: true, CanTrim: true, CanWriteZeroes: true,
		Name: "vol-1", Description: "a volume of the tests",
	}
}

// export is a running server and where it listens.
type export struct {
	*Server
	tb   testing.TB
	addr net.Addr
}

// serve runs a server for vol on a socket of the network until the test ends.
func serve(tb testing.TB, network string, vol frontend.Volume, opts Options) *export {
	tb.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		dir, err := os.MkdirTemp("", "nbd")
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { os.RemoveAll(dir) })
		addr = filepath.Join(dir, "s")
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		tb.Fatal(err)
	}
	return serveOn(tb, ln, vol, opts)
}

func serveOn(tb testing.TB, ln net.Listener, vol frontend.Volume, opts Options) *export {
	tb.Helper()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	e := &export{NewServer(vol, opts), tb, ln.Addr()}
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { ended <- e.Serve(ctx, ln) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			tb.Errorf("Serve: %v", err)
		}
		if n := e.Clients(); n != 0 {
			tb.Errorf("%d clients after Serve returned", n)
		}
	})
	return e
}

// client speaks the protocol plainly, so that tests can also misspeak it.
type client struct {
	tb testing.TB
	net.Conn
	structured bool
	flags      uint16 // transmission flags
	size       uint64
	lengths    map[uint64]int // of reads, by cookie: simple replies don't tell
}

func (e *export) connect() *client {
	e.tb.Helper()
	nc, err := net.Dial(e.addr.Network(), e.addr.String())
	if err != nil {
		e.tb.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(patience))
	e.tb.Cleanup(func() { nc.Close() })
	return &client{tb: e.tb, Conn: nc, lengths: map[uint64]int{}}
}

// greet exchanges the flags.
func (c *client) greet(flags uint32) *client {
	c.tb.Helper()
	want := binary.BigEndian.AppendUint64(nil, magicInit)
	want = binary.BigEndian.AppendUint64(want, magicOption)
	want = append(want, 0, 3)
	if got := c.read(18); !bytes.Equal(got, want) {
		c.tb.Fatalf("greeting %x, want %x", got, want)
	}
	c.write(binary.BigEndian.AppendUint32(nil, flags))
	return c
}

type answer struct {
	Type repType
	Data string
}

// option sends one and returns the replies, up to the final one.
func (c *client) option(t optType, data string) []answer {
	c.tb.Helper()
	c.write(append(option{t, uint32(len(data))}.AppendTo(nil), data...))
	var all []answer
	for {
		var r optReply
		if err := r.Parse(c.read(optReplySize)); err != nil || r.Option != t {
			c.tb.Fatalf("reply to %v: %+v, %v", t, r, err)
		}
		all = append(all, answer{r.Type, string(c.read(int(r.Length)))})
		if r.Type == repAck || r.Type>>31 != 0 {
			return all
		}
	}
}

// query is the data of INFO and GO.
func query(name string, infos ...uint16) string {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(infos)))
	for _, i := range infos {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	return string(b)
}

// dial enters the transmission phase.
func (e *export) dial(structured bool) *client {
	e.tb.Helper()
	c := e.connect().greet(3)
	if structured {
		if got := c.option(optStructuredReply, ""); got[0].Type != repAck {
			c.tb.Fatalf("structured replies: %+v", got)
		}
		c.structured = true
	}
	got := c.option(optGo, query("", infoBlockSize))
	if len(got) < 2 || got[len(got)-1].Type != repAck || len(got[0].Data) != 12 {
		c.tb.Fatalf("NBD_OPT_GO: %+v", got)
	}
	c.size = binary.BigEndian.Uint64([]byte(got[0].Data[2:]))
	c.flags = binary.BigEndian.Uint16([]byte(got[0].Data[10:]))
	return c
}

func (c *client) read(n int) []byte {
	c.tb.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c.Conn, b); err != nil {
		c.tb.Fatalf("reading %d bytes: %v", n, err)
	}
	return b
}

func (c *client) write(b []byte) {
	c.tb.Helper()
	if _, err := c.Conn.Write(b); err != nil {
		c.tb.Fatalf("writing %d bytes: %v", len(b), err)
	}
}

// expectEnd checks that the server sends nothing more and closes.
func (c *client) expectEnd() {
	c.tb.Helper()
	if b, err := io.ReadAll(c.Conn); len(b) > 0 || err != nil && !isReset(err) {
		c.tb.Fatalf("after what should end the session: %d bytes %.64x, %v", len(b), b, err)
	}
}

// send sends commands in one write; a write's Length is that of its payload.
func (c *client) send(qs ...command) {
	c.tb.Helper()
	c.write(c.encode(nil, qs...))
}

type command struct {
	request
	payload []byte
}

func cmd(t cmdType, cookie, offset uint64, length uint32, flags ...uint16) command {
	q := command{request: request{Type: t, Cookie: cookie, Offset: offset, Length: length}}
	for _, f := range flags {
		q.Flags |= f
	}
	if t == cmdWrite {
		q.payload = pattern(cookie, int(length))
	}
	return q
}

// pattern is n bytes that differ by seed and place.
func pattern(seed uint64, n int) []byte {
	b := make([]byte, (n+7)&^7)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], (seed<<32|uint64(i))*0x9e3779b97f4a7c15)
	}
	return b[:n]
}

func (c *client) encode(b []byte, qs ...command) []byte {
	for _, q := range qs {
		b = append(q.AppendTo(b), q.payload...)
		if q.Type == cmdRead {
			c.lengths[q.Cookie] = int(q.Length)
		}
	}
	return b
}

type reply struct {
	Cookie uint64
	Error  errno
	Text   string
	Data   []byte
}

// recv reads one reply of either kind and checks its form.
func (c *client) recv() reply {
	c.tb.Helper()
	r, err := c.tryRecv()
	if err != nil {
		c.tb.Fatal(err)
	}
	return r
}

func (c *client) tryRecv() (reply, error) {
	var head [chunkSize]byte
	if _, err := io.ReadFull(c.Conn, head[:simpleReplySize]); err != nil {
		return reply{}, err
	}
	if binary.BigEndian.Uint32(head[:]) != magicStructured {
		var s simpleReply
		if err := s.Parse(head[:]); err != nil {
			return reply{}, err
		}
		r := reply{Cookie: s.Cookie, Error: s.Error}
		n, isRead := c.lengths[s.Cookie]
		if isRead && c.structured {
			return r, fmt.Errorf("simple reply to read %d", s.Cookie)
		}
		if r.Error != 0 {
			return r, nil
		}
		r.Data = make([]byte, n)
		_, err := io.ReadFull(c.Conn, r.Data)
		return r, err
	}
	if _, err := io.ReadFull(c.Conn, head[simpleReplySize:]); err != nil {
		return reply{}, err
	}
	var k chunk
	if err := k.Parse(head[:]); err != nil {
		return reply{}, err
	}
	r := reply{Cookie: k.Cookie}
	if k.Length > maxPayload+8 {
		return r, fmt.Errorf("chunk of %d bytes", k.Length)
	}
	b := make([]byte, k.Length)
	if _, err := io.ReadFull(c.Conn, b); err != nil {
		return r, err
	}
	switch {
	case !c.structured || k.Flags != chunkDone:
		return r, fmt.Errorf("chunk %+v, structured replies negotiated: %v", k, c.structured)
	case k.Type == 0 && k.Length == 0:
	case k.Type == chunkOffsetData && k.Length > 8 && int(k.Length-8) == c.lengths[k.Cookie]:
		r.Data = b[8:]
	case k.Type == chunkError && k.Length >= 6 && int(binary.BigEndian.Uint16(b[4:])) == len(b)-6:
		r.Error, r.Text = errno(binary.BigEndian.Uint32(b)), string(b[6:])
		if r.Error == 0 || r.Text == "" {
			return r, fmt.Errorf("error chunk %+v", r)
		}
	default:
		return r, fmt.Errorf("chunk %+v", k)
	}
	return r, nil
}

// do sends one command and returns its reply.
func (c *client) do(q command) reply {
	c.tb.Helper()
	c.send(q)
	r := c.recv()
	if r.Cookie != q.Cookie {
		c.tb.Fatalf("reply to %#x, want %#x", r.Cookie, q.Cookie)
	}
	return r
}

func newVolume(tb testing.TB, opts ...frontendtest.Option) *frontendtest.Volume {
	return frontendtest.NewVolume(tb, testInfo(1<<20), opts...)
}
