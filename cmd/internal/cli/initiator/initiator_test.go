package initiator

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
)

// Whatever kept a host from its target has a code and a remedy.
func TestExplain(t *testing.T) {
	over, cancel := context.WithTimeoutCause(t.Context(), 0, &factory.TimeoutError{After: time.Second})
	defer cancel()
	<-over.Done()
	dial := func(err error) error {
		return fmt.Errorf("connect: %w", &net.OpError{Op: "dial", Net: "tcp", Err: err})
	}
	for _, c := range []struct {
		name string
		ctx  context.Context
		err  error
		want exit.Code
	}{
		{"nothing answers until --timeout", over, dial(context.DeadlineExceeded), exit.Unreachable},
		{"nothing answers", t.Context(), dial(os.ErrDeadlineExceeded), exit.Unreachable},
		{"refused", t.Context(), dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), exit.Unreachable},
		{"no interface for a scope", t.Context(), dial(os.NewSyscallError("connect", syscall.EINVAL)), exit.Usage},
		{"a source of another kind", t.Context(), dial(&net.AddrError{Err: "no suitable address found", Addr: "[::1]:0"}), exit.Usage},
	} {
		err := Explain(c.ctx, c.err, "")
		if got := exit.CodeOf(err); got != c.want || exit.Hint(err) == "" {
			t.Errorf("%s: %d, hint %q", c.name, got, exit.Hint(err))
		}
	}
}
