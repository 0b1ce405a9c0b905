package nbd

import (
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"hawser.dev/hawser/attach/frontend/frontendtest"
)

// socketPair is the two ends of a connected unix socket.
func socketPair(tb testing.TB) (a, b *net.UnixConn) {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		tb.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		nc, err := net.FileConn(f)
		f.Close()
		if err != nil {
			tb.Fatal(err)
		}
		ends[i] = nc.(*net.UnixConn)
		tb.Cleanup(func() { nc.Close() })
	}
	return ends[0], ends[1]
}

// FuzzConnection throws bytes at a whole connection, from its beginning or
// into the transmission phase: it must end when the bytes do, ask the volume
// only what is allowed, and hold no more than its bounds.
func FuzzConnection(f *testing.F) {
	all := (&client{lengths: map[uint64]int{}}).encode(nil,
		cmd(cmdWrite, 1, 512, 1024), cmd(cmdRead, 2, 0, 4096), cmd(cmdFlush, 3, 0, 0),
		cmd(cmdTrim, 4, 0, 512, cmdFlagFUA), cmd(cmdWriteZeroes, 5, 0, 512, cmdFlagNoHole), cmd(cmdWrite, 6, 0, 100),
		cmd(cmdDisc, 7, 0, 0))
	structured := option{optStructuredReply, 0}.AppendTo([]byte{0, 0, 0, 3})
	f.Add(uint8(0), append(structured, binaryGo()[4:]...))
	f.Add(uint8(0), append(binaryGo(), all...))
	f.Add(uint8(1), all)
	f.Add(uint8(2), all)
	f.Add(uint8(3), all)
	f.Fuzz(func(t *testing.T, mode uint8, b []byte) {
		var opts []frontendtest.Option
		if mode&2 != 0 {
			opts = append(opts, frontendtest.Shuffle(2))
		}
		s := NewServer(frontendtest.NewVolume(t, testInfo(64<<10), opts...), Options{MaxInFlight: 4, MaxInFlightBytes: 16 << 10})
		ours, theirs := socketPair(t)
		c := newConn(s, theirs)
		s.join(t.Context(), c)
		ended := make(chan struct{})
		go func() {
			c.serve()
			s.leave(c)
			close(ended)
		}()
		go func() {
			if mode&1 != 0 {
				ours.Write(binaryGo())
			}
			ours.Write(b)
			ours.CloseWrite()
		}()
		ours.SetDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, ours); err != nil && !isReset(err) {
			t.Fatalf("the server doesn't end the session: %v", err)
		}
		<-ended
		if n, held := c.inflight.Load(), c.bytes.Load(); n != 0 || held != 0 && c.cur == nil {
			t.Errorf("%d commands and %d bytes are left", n, held)
		}
		if n := s.Clients(); n != 0 {
			t.Errorf("%d clients are left", n)
		}
	})
}
