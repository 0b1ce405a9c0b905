package tcp

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxIov bounds the vectors of one system call.
const maxIov = 128

type rawConn interface {
	net.Conn
	syscall.Conn
}

// fdStream makes the system calls itself, on the descriptor of a socket that
// the runtime's poller waits for. RawSyscall is right because the descriptor
// never blocks.
type fdStream struct {
	conn net.Conn
	rc   syscall.RawConn

	// Each direction has its own vectors and results; the functions are
	// bound once because a closure per call would be an allocation per call.
	rd, wr iocall
}

type iocall struct {
	iov   [maxIov]unix.Iovec
	n     int
	wait  bool
	done  int
	errno syscall.Errno
	fn    func(fd uintptr) bool
}

// NewFDStream returns the Stream of a TCP socket by raw system calls.
func NewFDStream(conn *net.TCPConn) (Stream, error) { return newFDStream(conn) }

func newFDStream(conn rawConn) (Stream, error) {
	rc, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &fdStream{conn: conn, rc: rc}
	s.rd.fn = func(fd uintptr) bool { return s.rd.try(fd, unix.SYS_RECVFROM, unix.SYS_READV, unix.MSG_DONTWAIT) }
	s.wr.fn = func(fd uintptr) bool {
		return s.wr.try(fd, unix.SYS_SENDTO, unix.SYS_WRITEV, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}
	if t, ok := conn.(*net.TCPConn); ok {
		if err := t.SetNoDelay(true); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (c *iocall) load(bufs [][]byte, wait bool) {
	c.n, c.wait, c.done, c.errno = 0, wait, 0, 0
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		if c.n == maxIov {
			break
		}
		c.iov[c.n].Base = &b[0]
		c.iov[c.n].SetLen(len(b))
		c.n++
	}
}

// clear drops the references to the caller's memory.
func (c *iocall) clear() {
	for i := range c.iov[:c.n] {
		c.iov[i].Base = nil
	}
}

// try makes one call, by the system call for one buffer or that for several.
// It is false when the poller is to wait.
func (c *iocall) try(fd, one, several, flags uintptr) bool {
	for {
		var n uintptr
		var e syscall.Errno
		if c.n == 1 {
			n, _, e = unix.RawSyscall6(one, fd, uintptr(unsafe.Pointer(c.iov[0].Base)), uintptr(c.iov[0].Len), flags, 0, 0)
		} else {
			n, _, e = unix.RawSyscall(several, fd, uintptr(unsafe.Pointer(&c.iov[0])), uintptr(c.n))
		}
		switch e {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			c.errno = e
			return !c.wait
		}
		c.done, c.errno = int(n), e
		return true
	}
}

func (c *iocall) result(call string) (int, error) {
	c.clear()
	switch c.errno {
	case 0:
		return c.done, nil
	case unix.EAGAIN:
		return 0, ErrAgain
	}
	return 0, os.NewSyscallError(call, c.errno)
}

func (s *fdStream) Readv(bufs [][]byte, wait bool) (int, error) {
	s.rd.load(bufs, wait)
	if s.rd.n == 0 {
		return 0, nil
	}
	if err := s.rc.Read(s.rd.fn); err != nil {
		s.rd.clear()
		return 0, err
	}
	n, err := s.rd.result("read")
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return n, err
}

func (s *fdStream) Writev(bufs [][]byte, wait bool) (int, error) {
	s.wr.load(bufs, wait)
	if s.wr.n == 0 {
		return 0, nil
	}
	if err := s.rc.Write(s.wr.fn); err != nil {
		s.wr.clear()
		return 0, err
	}
	return s.wr.result("write")
}

func (s *fdStream) CloseWrite() error {
	if c, ok := s.conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return s.conn.Close()
}

func (s *fdStream) Close() error { return s.conn.Close() }

func (s *fdStream) Abort() error {
	if c, ok := s.conn.(*net.TCPConn); ok {
		c.SetLinger(0)
	}
	return s.conn.Close()
}

func (s *fdStream) LocalAddr() net.Addr  { return s.conn.LocalAddr() }
func (s *fdStream) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }
