//go:build !linux

package targetlite

import (
	"net"
	"syscall"
)

// Errors of Linux's block layer, which does not exist here.
const (
	errnoTarget syscall.Errno = 1<<16 + iota
	errnoReservation
	errnoMedium
)

func physicalMemory() int64 { return 0 }

func setUserTimeout(net.Conn) {}
