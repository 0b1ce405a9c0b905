package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"

	"hawser.dev/hawser/attach/frontend"
	"hawser.dev/hawser/attach/frontend/frontendtest"
)

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func checkLeaks(t *testing.T) { frontendtest.CheckLeaks(t, "attach/frontend/") }

// everyKind runs a test over both kinds of socket and reply.
func everyKind(t *testing.T, f func(t *testing.T, network string, structured bool)) {
	for _, network := range []string{"unix", "tcp"} {
		for _, structured := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/structured=%v", network, structured), func(t *testing.T) {
				checkLeaks(t)
				f(t, network, structured)
			})
		}
	}
}

func TestCommands(t *testing.T) {
	everyKind(t, func(t *testing.T, network string, structured bool) {
		v := newVolume(t, frontendtest.Shuffle(2))
		c := serve(t, network, v, Options{}).dial(structured)
		if c.size != 1<<20 {
			t.Errorf("size %d", c.size)
		}
		want := make([]byte, 1<<20)
		steps := []command{
			cmd(cmdWrite, 1, 4096, 8192),
			cmd(cmdWrite, 2, 8192, 512, cmdFlagFUA),
			cmd(cmdWrite, 3, 1<<20-200<<10, 200<<10), // more than one read takes
			cmd(cmdTrim, 4, 4096, 512),
			cmd(cmdWriteZeroes, 5, 5120, 1024, cmdFlagNoHole|cmdFlagFUA),
			cmd(cmdFlush, 6, 0, 0),
		}
		for _, q := range steps {
			if r := c.do(q); r.Error != 0 {
				t.Fatalf("%+v: %+v", q.request, r)
			}
			if len(q.payload) > 0 {
				copy(want[q.Offset:], q.payload)
			} else {
				clear(want[q.Offset : q.Offset+uint64(q.Length)])
			}
		}
		if got := c.do(cmd(cmdRead, 7, 0, 1<<20)); got.Error != 0 || !bytes.Equal(got.Data, want) {
			t.Errorf("read %d bytes, error %d; not what was written", len(got.Data), got.Error)
		}
		if !bytes.Equal(v.Durable(), want) {
			t.Error("not all of it durable after a flush")
		}
		if s := v.Stats(); s.FUA != 2 || s.NoHole != 1 {
			t.Errorf("%d with FUA, want 2; %d with NoHole, want 1", s.FUA, s.NoHole)
		}
	})
}

// A trim can't carry FUA to a volume: it is followed by a flush.
func TestTrimFUA(t *testing.T) {
	everyKind(t, func(t *testing.T, network string, structured bool) {
		v := newVolume(t)
		v.Fill(pattern(1, 1<<20))
		c := serve(t, network, v, Options{}).dial(structured)
		if r := c.do(cmd(cmdTrim, 1, 0, 4096, cmdFlagFUA)); r.Error != 0 {
			t.Fatalf("%+v", r)
		}
		if s := v.Stats(); s.Ops[frontend.OpTrim] != 1 || s.Ops[frontend.OpFlush] != 1 {
			t.Errorf("%v, want a trim and a flush", s.Ops)
		}
		if !bytes.Equal(v.Durable()[:4096], make([]byte, 4096)) {
			t.Error("the trim is not durable")
		}
	})
}

func TestRefusals(t *testing.T) {
	const size = 1 << 20
	type refused struct {
		name string
		q    command
		want errno
	}
	raw := func(t cmdType, offset uint64, length uint32, flags uint16) command {
		return command{request: request{Type: t, Cookie: 99, Offset: offset, Length: length, Flags: flags}}
	}
	common := []refused{
		{"read beyond", cmd(cmdRead, 1, size-512, 1024), errnoInval},
		{"read far beyond", cmd(cmdRead, 2, 1<<63, 512), errnoInval},
		{"read wrapping", cmd(cmdRead, 3, 1<<64-512, 1024), errnoInval},
		{"write beyond", cmd(cmdWrite, 4, size-512, 1024), errnoNoSpc},
		{"write wrapping", cmd(cmdWrite, 5, 1<<64-512, 1024), errnoNoSpc},
		{"write zeroes beyond", cmd(cmdWriteZeroes, 6, size, 512), errnoNoSpc},
		{"trim beyond", cmd(cmdTrim, 7, size, 512), errnoInval},
		{"trim of 4 GiB", cmd(cmdTrim, 8, 0, 0xfffffe00), errnoInval},
		{"unaligned offset", cmd(cmdRead, 9, 100, 512), errnoInval},
		{"unaligned length", cmd(cmdRead, 10, 512, 100), errnoInval},
		{"unaligned write", cmd(cmdWrite, 11, 1, 1023), errnoInval},
		{"unaligned trim", cmd(cmdTrim, 12, 1, 512), errnoInval},
		{"write longer than the maximum", cmd(cmdWrite, 13, 0, 512<<10), errnoInval},
		{"flush with a range", raw(cmdFlush, 0, 512, 0), errnoInval},
		{"cache", raw(5, 0, 512, 0), errnoInval},
		{"block status", raw(7, 0, 512, 0), errnoInval},
		{"unknown command", raw(0xffff, 0, 512, 0), errnoInval},
		{"unknown flag", raw(cmdTrim, 0, 512, 1<<9), errnoInval},
		{"flag of another command", raw(cmdTrim, 0, 512, cmdFlagNoHole), errnoInval},
		{"write with an unknown flag", cmd(cmdWrite, 14, 0, 2048, 1<<15), errnoInval},
		{"fast zero", cmd(cmdWriteZeroes, 15, 0, 512, 1<<4), errnoInval},
	}
	everyKind(t, func(t *testing.T, network string, structured bool) {
		info := testInfo(size + 100) // a last part of a block is not exported
		info.MaxTransfer = 256<<10 + 100
		v := frontendtest.NewVolume(t, info)
		c := serve(t, network, v, Options{}).dial(structured)
		if c.size != size {
			t.Errorf("exported size %d, want %d", c.size, size)
		}
		tests := append(common[:len(common):len(common)],
			refused{"read longer than the maximum", cmd(cmdRead, 20, 0, 512<<10), map[bool]errno{false: errnoInval, true: errnoOverflow}[structured]},
			refused{"DF", cmd(cmdRead, 21, 0, 512, cmdFlagDF), map[bool]errno{false: errnoInval}[structured]},
		)
		for _, tt := range tests {
			if r := c.do(tt.q); r.Error != tt.want {
				t.Errorf("%s: error %d %q, want %d", tt.name, r.Error, r.Text, tt.want)
			}
		}
		// All at once, then one that is right: nothing may have come out of step.
		var all []command
		for _, tt := range tests {
			all = append(all, tt.q)
		}
		c.send(all...)
		for range all {
			c.recv()
		}
		if r := c.do(cmd(cmdRead, 30, 512, 512)); r.Error != 0 || len(r.Data) != 512 {
			t.Errorf("afterwards: %+v", r)
		}
		if !bytes.Equal(v.Bytes(), make([]byte, size+100)) {
			t.Error("a refused write changed the volume")
		}
	})
}

// Zero lengths are "unspecified", but the server must not disconnect.
func TestZeroLength(t *testing.T) {
	everyKind(t, func(t *testing.T, network string, structured bool) {
		c := serve(t, network, newVolume(t), Options{}).dial(structured)
		for i, typ := range []cmdType{cmdRead, cmdWrite, cmdTrim, cmdWriteZeroes} {
			if r := c.do(cmd(typ, uint64(i), 512, 0)); r.Error != 0 || len(r.Data) > 0 {
				t.Errorf("command %d: %+v", typ, r)
			}
		}
	})
}

func TestReadOnly(t *testing.T) {
	everyKind(t, func(t *testing.T, network string, structured bool) {
		info := testInfo(1 << 20)
		info.ReadOnly = true
		c := serve(t, network, frontendtest.NewVolume(t, info), Options{}).dial(structured)
		if c.flags&flagReadOnly == 0 || c.flags&(flagTrim|flagWriteZeroes) != 0 {
			t.Errorf("flags %#x", c.flags)
		}
		for i, typ := range []cmdType{cmdWrite, cmdTrim, cmdWriteZeroes} {
			if r := c.do(cmd(typ, uint64(i), 0, 4096)); r.Error != errnoPerm {
				t.Errorf("command %d: %+v, want EPERM", typ, r)
			}
		}
		if r := c.do(cmd(cmdRead, 9, 0, 4096)); r.Error != 0 {
			t.Errorf("read: %+v", r)
		}
	})
}

// What the volume can't do is neither advertised nor done.
func TestNotOffered(t *testing.T) {
	everyKind(t, func(t *testing.T, network string, structured bool) {
		info := frontend.Info{Size: 1 << 20, BlockSize: 1}
		c := serve(t, network, frontendtest.NewVolume(t, info), Options{}).dial(structured)
		want := uint16(flagHasFlags | flagMultiConn)
		if structured {
			want |= flagDF
		}
		if c.flags != want {
			t.Errorf("flags %#x, want %#x", c.flags, want)
		}
		for i, q := range []command{
			cmd(cmdFlush, 0, 0, 0), cmd(cmdTrim, 1, 0, 512), cmd(cmdWriteZeroes, 2, 0, 512), cmd(cmdWrite, 3, 0, 512, cmdFlagFUA),
		} {
			if r := c.do(q); r.Error != errnoInval {
				t.Errorf("command %d: %+v, want EINVAL", i, r)
			}
		}
		if r := c.do(cmd(cmdWrite, 9, 3, 5)); r.Error != 0 {
			t.Errorf("a write of bytes: %+v", r)
		}
		if r := c.do(cmd(cmdRead, 10, 3, 5)); !bytes.Equal(r.Data, pattern(9, 5)) {
			t.Errorf("a read of bytes: %+v", r)
		}
	})
}

func TestVolumeErrors(t *testing.T) {
	for err, want := range map[error]errno{
		syscall.EIO:           errnoIO,
		syscall.EPERM:         errnoPerm,
		syscall.EACCES:        errnoPerm,
		syscall.EROFS:         errnoPerm,
		fs.ErrPermission:      errnoPerm,
		syscall.ENOMEM:        errnoNoMem,
		syscall.EINVAL:        errnoInval,
		errors.ErrUnsupported: errnoInval,
		syscall.ENOSPC:        errnoNoSpc,
		syscall.EDQUOT:        errnoNoSpc,
		syscall.EFBIG:         errnoNoSpc,
		syscall.ESHUTDOWN:     errnoShutdown,
		syscall.ETIMEDOUT:     errnoIO,
		context.Canceled:      errnoIO,
		fmt.Errorf("backing: %w", syscall.ENOSPC):          errnoNoSpc,
		errors.New("\xff\x00" + strings.Repeat("é", 3000)): errnoIO,
	} {
		everyKind(t, func(t *testing.T, network string, structured bool) {
			v := newVolume(t, frontendtest.Shuffle(1), frontendtest.Fail(func(*frontend.Request) error { return err }))
			c := serve(t, network, v, Options{}).dial(structured)
			for i, q := range []command{
				cmd(cmdRead, 1, 0, 4096), cmd(cmdWrite, 2, 0, 4096), cmd(cmdFlush, 3, 0, 0), cmd(cmdTrim, 4, 0, 4096, cmdFlagFUA),
			} {
				r := c.do(q)
				if r.Error != want || len(r.Data) > 0 {
					t.Errorf("%d: %+v, want %d", i, r, want)
				}
				if text := clip(err.Error(), maxErrorText); structured && r.Text != text {
					t.Errorf("%d: text %q, want %q", i, r.Text, text)
				}
			}
			if s := v.Stats(); len(s.Ops) > 0 {
				t.Errorf("%v executed", s.Ops)
			}
		})
	}
}

// Replies leave in the order of completion, whatever the order of requests.
func TestOutOfOrder(t *testing.T) {
	everyKind(t, func(t *testing.T, network string, structured bool) {
		v := newVolume(t, frontendtest.Held)
		v.Fill(pattern(7, 1<<20))
		c := serve(t, network, v, Options{}).dial(structured)
		c.send(cmd(cmdRead, 1, 0, 4096))
		v.WaitHeld(1)
		// The volume has one; a refusal and what doesn't need it overtake it.
		if r := c.do(cmd(cmdRead, 2, 1, 1)); r.Error != errnoInval {
			t.Errorf("%+v", r)
		}
		if r := c.do(cmd(cmdRead, 3, 0, 0)); r.Error != 0 {
			t.Errorf("%+v", r)
		}
		v.ReleaseOne()
		if r := c.recv(); r.Cookie != 1 || !bytes.Equal(r.Data, pattern(7, 4096)) {
			t.Errorf("%+v", r.Cookie)
		}
		v.Release()
	})
}

// Many commands in one write reach the volume in few batches.
func TestBatch(t *testing.T) {
	everyKind(t, func(t *testing.T, network string, structured bool) {
		v := newVolume(t)
		c := serve(t, network, v, Options{MaxInFlight: 64}).dial(structured)
		var qs []command
		for i := range 64 {
			qs = append(qs, cmd(cmdRead, uint64(i), uint64(i)*512, 512))
		}
		c.send(qs...)
		for range qs {
			if r := c.recv(); r.Error != 0 {
				t.Errorf("%+v", r)
			}
		}
		if n := v.Stats().Batch; n < 2 {
			t.Errorf("largest batch has %d requests", n)
		}
	})
}

// Random commands on several connections against a volume that completes in
// random order: every byte is checked, each connection in its own region.
func TestRandomCommands(t *testing.T) {
	everyKind(t, func(t *testing.T, network string, structured bool) {
		const conns, region, rounds, depth = 4, 512 << 10, 60, 16
		v := frontendtest.NewVolume(t, testInfo(conns*region), frontendtest.Shuffle(3))
		e := serve(t, network, v, Options{MaxInFlight: 8, MaxInFlightBytes: 256 << 10})
		var wg sync.WaitGroup
		for n := range conns {
			c := e.dial(structured)
			wg.Go(func() {
				if err := randomCommands(c, uint64(n), uint64(n)*region, region, rounds, depth); err != nil {
					t.Errorf("connection %d: %v", n, err)
				}
			})
		}
		wg.Wait()
	})
}

// randomCommands keeps depth commands going that don't overlap, and checks
// what they read against a model.
func randomCommands(c *client, seed, base, region uint64, rounds, depth int) error {
	rnd := rand.New(rand.NewPCG(seed, 2))
	model := make([]byte, region)
	part := region / uint64(depth)
	for round := range rounds {
		var out []byte
		want := map[uint64][]byte{}
		for i := range uint64(depth) {
			cookie := uint64(round)<<32 | seed<<16 | i
			off := i*part + uint64(rnd.IntN(int(part/512)))*512
			length := uint32(1+rnd.IntN(int((i+1)*part-off)/512)) * 512
			typ := []cmdType{cmdRead, cmdRead, cmdWrite, cmdWrite, cmdWriteZeroes, cmdFlush}[rnd.IntN(6)]
			q := cmd(typ, cookie, base+off, length)
			area := model[off : off+uint64(length)]
			switch typ {
			case cmdRead:
				want[cookie] = bytes.Clone(area)
			case cmdWrite:
				copy(area, q.payload)
				want[cookie] = nil
			case cmdWriteZeroes:
				clear(area)
				want[cookie] = nil
			case cmdFlush:
				q = cmd(typ, cookie, 0, 0)
				want[cookie] = nil
			}
			out = c.encode(out, q)
		}
		// A client that doesn't read while it writes may wait for itself.
		sent := make(chan error, 1)
		go func() {
			_, err := c.Write(out)
			sent <- err
		}()
		for len(want) > 0 {
			r, err := c.tryRecv()
			if err != nil {
				return err
			}
			data, ok := want[r.Cookie]
			if !ok || r.Error != 0 || !bytes.Equal(r.Data, data) {
				return fmt.Errorf("cookie %#x (asked for: %v): error %d %q, %d bytes, equal: %v", r.Cookie, ok, r.Error, r.Text, len(r.Data), bytes.Equal(r.Data, data))
			}
			delete(want, r.Cookie)
		}
		if err := <-sent; err != nil {
			return err
		}
	}
	return nil
}

// Commands beyond the bounds wait in the socket; none is refused.
func TestBackpressure(t *testing.T) {
	for name, opts := range map[string]Options{
		"commands": {MaxInFlight: 4},
		"bytes":    {MaxInFlightBytes: 4 * 64 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			everyKind(t, func(t *testing.T, network string, structured bool) {
				v := newVolume(t, frontendtest.Held)
				c := serve(t, network, v, opts).dial(structured)
				var qs []command
				for i := range 12 {
					qs = append(qs, cmd(cmdRead, uint64(i), 0, 64<<10))
				}
				c.send(qs...)
				v.WaitHeld(4)
				if n := v.Pending(); n != 4 {
					t.Errorf("%d in the volume, want 4", n)
				}
				v.Release()
				for range qs {
					if r := c.recv(); r.Error != 0 || len(r.Data) != 64<<10 {
						t.Errorf("%+v", r.Error)
					}
				}
			})
		})
	}
}

// One command larger than the bound on bytes still goes, alone.
func TestLargerThanBound(t *testing.T) {
	checkLeaks(t)
	v := newVolume(t)
	c := serve(t, "unix", v, Options{MaxInFlightBytes: 4096}).dial(true)
	for i := range 3 {
		if r := c.do(cmd(cmdWrite, uint64(i), 0, 1<<20)); r.Error != 0 {
			t.Errorf("%+v", r)
		}
	}
	if !bytes.Equal(v.Bytes(), pattern(2, 1<<20)) {
		t.Error("not what was written")
	}
}

// A client that doesn't read its replies doesn't hold up the volume or others.
func TestClientNotReading(t *testing.T) {
	everyKind(t, func(t *testing.T, network string, structured bool) {
		v := newVolume(t, frontendtest.Shuffle(2))
		e := serve(t, network, v, Options{})
		deaf, other := e.dial(structured), e.dial(structured)
		var qs []command
		for i := range 64 {
			qs = append(qs, cmd(cmdRead, uint64(i), 0, 1<<20))
		}
		deaf.send(qs...)
		for i := range 20 {
			if r := other.do(cmd(cmdWrite, uint64(i), 0, 64<<10)); r.Error != 0 {
				t.Fatalf("%+v", r)
			}
		}
		for range qs {
			if r := deaf.recv(); r.Error != 0 || len(r.Data) != 1<<20 {
				t.Fatalf("error %d, %d bytes", r.Error, len(r.Data))
			}
		}
	})
}

// After DISC what is outstanding is still handled, and the socket closed.
func TestDisconnect(t *testing.T) {
	everyKind(t, func(t *testing.T, network string, structured bool) {
		v := newVolume(t, frontendtest.Held)
		e := serve(t, network, v, Options{})
		c := e.dial(structured)
		c.send(cmd(cmdWrite, 1, 0, 4096), cmd(cmdRead, 2, 8192, 512), cmd(cmdDisc, 3, 0, 0))
		v.WaitHeld(2)
		if n := e.Clients(); n != 1 {
			t.Errorf("%d clients, want 1", n)
		}
		v.Release()
		for range 2 {
			if r := c.recv(); r.Error != 0 {
				t.Errorf("%+v", r)
			}
		}
		c.expectEnd()
		if !bytes.Equal(v.Bytes()[:4096], pattern(1, 4096)) {
			t.Error("the write is missing")
		}
	})
}

// A client that dies leaves its commands to complete into its buffers; the
// buffers are not anybody else's before.
func TestClientDies(t *testing.T) {
	everyKind(t, func(t *testing.T, network string, structured bool) {
		v := newVolume(t, frontendtest.Held)
		e := serve(t, network, v, Options{})
		c := e.dial(structured)
		c.send(cmd(cmdWrite, 1, 0, 4096), cmd(cmdRead, 2, 8192, 64<<10))
		v.WaitHeld(2)
		c.Close()
		other := e.dial(structured)
		v.Release()
		if r := other.do(cmd(cmdRead, 1, 0, 4096)); !bytes.Equal(r.Data, pattern(1, 4096)) {
			t.Error("the write of the client that died is missing")
		}
	})
}

// What breaks the protocol ends the session of who broke it, and no other's.
func TestTransmissionBreaches(t *testing.T) {
	bad := cmd(cmdRead, 1, 0, 512).AppendTo(nil)
	bad[0] ^= 0x80
	long := command{request: request{Type: cmdWrite, Length: maxPayload + 1}}
	everyKind(t, func(t *testing.T, network string, structured bool) {
		v := newVolume(t)
		e := serve(t, network, v, Options{})
		other := e.dial(structured)
		for name, b := range map[string][]byte{
			"magic":            bad,
			"oversized write":  long.AppendTo(nil),
			"historic magic":   append([]byte{0x12, 0x56, 0x09, 0x53}, bad[4:]...),
			"extended request": append([]byte{0x21, 0xe4, 0x1c, 0x71}, bad[4:]...),
		} {
			t.Run(name, func(t *testing.T) {
				c := e.dial(structured)
				c.write(b)
				c.expectEnd()
			})
		}
		if r := other.do(cmd(cmdRead, 1, 0, 512)); r.Error != 0 {
			t.Errorf("%+v", r)
		}
	})
}

// A session cut anywhere ends; a command that was not whole is not executed.
func TestTruncatedTransmission(t *testing.T) {
	checkLeaks(t)
	v := newVolume(t)
	e := serve(t, "unix", v, Options{})
	whole := cmd(cmdWrite, 1, 0, 512)
	b := append(whole.AppendTo(nil), whole.payload...)
	for n := range len(b) {
		c := e.dial(true)
		c.write(b[:n])
		c.Conn.(interface{ CloseWrite() error }).CloseWrite()
		c.expectEnd()
	}
	if n := v.Stats().Ops[frontend.OpWrite]; n != 0 {
		t.Errorf("%d writes executed", n)
	}
}
