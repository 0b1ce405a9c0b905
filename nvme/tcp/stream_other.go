//go:build !linux

package tcp

import (
	"errors"
	"net"
)

const maxIov = 128

type rawConn interface{ net.Conn }

// NewFDStream returns the Stream of a TCP socket.
func NewFDStream(conn *net.TCPConn) (Stream, error) { return NewConnStream(conn), nil }

func newFDStream(rawConn) (Stream, error) { return nil, errors.ErrUnsupported }
