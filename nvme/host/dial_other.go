//go:build !linux

package host

import (
	"errors"
	"fmt"
)

func setSocket(_ int, _, iface string, tos int) error {
	return fmt.Errorf("bind to interface %q, type of service %d: %w on this system", iface, tos, errors.ErrUnsupported)
}
