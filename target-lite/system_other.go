//go:build !linux

package targetlite

import "net"

func physicalMemory() int64 { return 0 }

func setUserTimeout(net.Conn) {}
