package targetlite

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// What Linux's block layer says that other systems have no word for (block/blk-core.c, blk_errors).
const (
	errnoTarget      = unix.EREMOTEIO
	errnoReservation = unix.EBADE
	errnoMedium      = unix.ENODATA
)

// sendTimeout is how long a host may leave what it was sent unacknowledged, or its receive window closed.
const sendTimeout = 30 * time.Second

func physicalMemory() int64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 0
	}
	return int64(si.Totalram) * int64(si.Unit)
}

// setUserTimeout ends connections to hosts that are gone or do not read. One without it is served all the same.
func setUserTimeout(nc net.Conn) {
	t, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	if rc, err := t.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(sendTimeout.Milliseconds()))
		})
	}
}
