package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"hawser.dev/hawser/nvme"
)

// dial makes the TCP connection of one queue.
func (o *Options) dial(ctx context.Context, addr nvme.Addr) (net.Conn, error) {
	if o.Dial != nil {
		return o.Dial(ctx, addr)
	}
	if addr.Transport != nvme.TransportTCP && addr.Transport != "" {
		return nil, fmt.Errorf("transport %q: %w by the user-space initiator", addr.Transport, errors.ErrUnsupported)
	}
	d := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 6},
		FallbackDelay:   -1,
	}
	if o.Source.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: o.Source.AsSlice(), Zone: o.Source.Zone()}
	}
	if o.Interface != "" || o.TOS != 0 {
		d.Control = func(network, _ string, c syscall.RawConn) error {
			var err error
			if e := c.Control(func(fd uintptr) { err = setSocket(int(fd), network, o.Interface, o.TOS) }); e != nil {
				return e
			}
			return err
		}
	}
	return d.DialContext(ctx, "tcp", net.JoinHostPort(addr.Host, addr.Service))
}
