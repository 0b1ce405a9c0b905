package nbd

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxIov   = 1024    // UIO_MAXIOV
	maxWrite = 1 << 20 // bytes after which no vector is added: no socket takes more at once
)

// fdTransport makes the system calls itself on a non-blocking socket that the
// runtime's poller waits for.
type fdTransport struct {
	rc         syscall.RawConn
	rd, wr     vector
	rdFn, wrFn func(fd uintptr) bool // bound once: a closure a call would be an allocation a call
}

type vector struct {
	iov   []unix.Iovec
	wait  bool
	n     int
	errno syscall.Errno
}

func newTransport(nc net.Conn) transport {
	if sc, ok := nc.(syscall.Conn); ok {
		if rc, err := sc.SyscallConn(); err == nil {
			t := &fdTransport{rc: rc}
			t.rdFn = func(fd uintptr) bool { return t.rd.call(unix.SYS_READV, fd) }
			t.wrFn = func(fd uintptr) bool { return t.wr.call(unix.SYS_WRITEV, fd) }
			return t
		}
	}
	return &connTransport{nc: nc}
}

func (v *vector) add(b []byte) {
	if len(b) > 0 && len(v.iov) < maxIov {
		v.iov = append(v.iov, unix.Iovec{Base: &b[0]})
		v.iov[len(v.iov)-1].SetLen(len(b))
	}
}

func (v *vector) call(trap, fd uintptr) bool {
	for {
		n, _, e := unix.Syscall(trap, fd, uintptr(unsafe.Pointer(&v.iov[0])), uintptr(len(v.iov)))
		switch e {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			v.n, v.errno = 0, e
			return !v.wait
		}
		v.n, v.errno = int(n), e
		return true
	}
}

// result ends a call: it drops the references to the buffers.
func (v *vector) result(name string, err error) (int, error) {
	clear(v.iov)
	v.iov = v.iov[:0]
	switch {
	case err != nil:
		return 0, err
	case v.errno == unix.EAGAIN:
		return 0, errAgain
	case v.errno != 0:
		return 0, os.NewSyscallError(name, v.errno)
	}
	return v.n, nil
}

func (t *fdTransport) readv(first, second []byte) (int, error) {
	t.rd.wait = true
	t.rd.add(first)
	t.rd.add(second)
	n, err := t.rd.result("readv", t.rc.Read(t.rdFn))
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	raceWrote(first[:min(n, len(first))])
	return n, err
}

func (t *fdTransport) writev(bufs [][]byte, wait bool) (int, error) {
	t.wr.wait = wait
	for bytes := 0; len(bufs) > 0 && bytes < maxWrite; bufs = bufs[1:] {
		t.wr.add(bufs[0])
		bytes += len(bufs[0])
	}
	return t.wr.result("writev", t.rc.Write(t.wrFn))
}
