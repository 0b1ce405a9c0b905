package host

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// setSocket binds a socket to an interface and marks its packets, before it connects.
func setSocket(fd int, network, iface string, tos int) error {
	if iface != "" {
		if err := unix.BindToDevice(fd, iface); err != nil {
			return fmt.Errorf("bind to interface %q: %w", iface, err)
		}
	}
	if tos == 0 {
		return nil
	}
	level, opt := unix.IPPROTO_IP, unix.IP_TOS
	if network == "tcp6" {
		level, opt = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	if err := unix.SetsockoptInt(fd, level, opt, tos); err != nil {
		return fmt.Errorf("set type of service %d: %w", tos, err)
	}
	return nil
}
