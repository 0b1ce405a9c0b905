// Package initiator is what the verbs that talk to targets themselves have in common: their flags, and what
// to tell of the errors they meet.
package initiator

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/output"
	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/nvme/tcp"
	"hawser.dev/hawser/nvme/wire"
)

// Supported refuses what the initiator here cannot reach.
func Supported(p attach.Portal) error {
	switch {
	case p.Protocol != attach.NVMe:
		return exit.New(exit.Unsupported, errors.New(p.String()+": only NVMe/TCP can be asked"), "")
	case p.Transport != nvme.TransportTCP:
		return exit.New(exit.Unsupported, errors.New(p.String()+": NVMe over "+string(p.Transport)+" cannot be asked without the kernel"), "")
	}
	return nil
}

// Explain gives an error met on the way to a target its exit code, and the remedy where there is one. hostNQN is who asked.
func Explain(ctx context.Context, err error, hostNQN nvme.NQN) error {
	err = factory.Explain(ctx, err)
	timedOut := errors.As(err, new(*factory.TimeoutError))
	if err == nil || exit.Hint(err) != "" || !timedOut && errors.As(err, new(*exit.Error)) {
		return err
	}
	code, hint := exit.CodeOf(err), ""
	var status *nvme.StatusError
	var queue *tcp.Error
	switch {
	case errors.Is(err, host.ErrAuthRequired):
		code, hint = exit.Auth, "this hawser has no DH-HMAC-CHAP: let the target take this host without a key"
	case errors.As(err, &status):
		code, hint = explainStatus(status, hostNQN)
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "the host is up but nothing listens there: is the target running, and is this its port?"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		hint = "no route leads there: 'ip route get ADDRESS' says more"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		code, hint = exit.Usage, "--bind takes an address of this host: 'ip address' lists them"
	case errors.Is(err, syscall.ENODEV):
		code, hint = exit.Usage, "--bind takes an interface of this host: 'ip link' lists them"
	case errors.As(err, new(*net.DNSError)):
		hint = "is the name right, and does the name server answer? An address does without it"
	case errors.Is(err, syscall.EINVAL) && errors.As(err, new(*net.OpError)):
		code, hint = exit.Usage, "an address of one link needs its interface, which must be there: [fe80::1%IFACE]; 'ip link' lists them"
	case errors.As(err, new(*net.AddrError)):
		code, hint = exit.Usage, "--bind takes an address of the portal's kind, IPv4 or IPv6"
	case timedOut, errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, tcp.ErrTimeout):
		code, hint = exit.Unreachable, "nothing answers: a firewall, a wrong address, or a target that hangs; --timeout waits longer"
	case errors.As(err, &queue) && queue.Remote && queue.FES == wire.FESUnsupportedParam:
		code, hint = exit.Unsupported, "the target refuses what was offered: try without digests"
	case errors.As(err, &queue) && queue.FES != 0 && !queue.Remote:
		hint = "what answers does not keep to NVMe/TCP: is that its port?"
	case errors.Is(err, tcp.ErrPeerClosed), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		code, hint = exit.Unreachable, "the connection was cut: is that an NVMe/TCP port, and one without TLS?"
	case errors.Is(err, errors.ErrUnsupported):
		code = exit.Unsupported
	}
	return exit.New(code, err, hint)
}

func explainStatus(e *nvme.StatusError, hostNQN nvme.NQN) (exit.Code, string) {
	code := e.Status.Code()
	if !e.Fabrics {
		if code == nvme.StatusInvalidNamespace {
			return exit.NotFound, "'hawser probe' of the target without #NAMESPACE lists its namespaces"
		}
		return exit.Failed, ""
	}
	switch code {
	case nvme.StatusConnectInvalidHost:
		return exit.Auth, "the target must allow host NQN " + string(hostNQN)
	case nvme.StatusAuthRequired:
		return exit.Auth, "this hawser has no DH-HMAC-CHAP: let the target take this host without a key"
	case nvme.StatusConnectInvalidParameters:
		switch e.InvalidParameter() {
		case "subsystem NQN":
			return exit.NotFound, "'hawser discover' lists what a portal has for this host; some targets say this too when the host is not allowed"
		case "host NQN":
			return exit.Auth, "the target must allow host NQN " + string(hostNQN)
		case "host identifier":
			return exit.Usage, "the target knows this host ID with another host NQN: 'hawser host show' says what is used here"
		}
	case nvme.StatusConnectIncompatibleFormat:
		return exit.Unsupported, ""
	case nvme.StatusConnectControllerBusy:
		return exit.InUse, "the target has no controller to spare: let another host disconnect first"
	}
	return exit.Failed, ""
}

// Body is err as it stands in a document, nil for none.
func Body(err error) *output.ErrorBody {
	if err == nil {
		return nil
	}
	return &output.ErrorBody{Code: int(exit.CodeOf(err)), Message: err.Error(), Hint: exit.Hint(err)}
}
