//go:build !linux

package nbd

import "net"

func newTransport(nc net.Conn) transport { return &connTransport{nc: nc} }
