package initiator

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/attach/hostid"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
)

// The letters of all flags here are those that nvme-cli gives them.

// Flags say how to connect.
type Flags struct {
	factory.HostFlags
	HeaderDigest, DataDigest bool
	Timeout                  factory.Timeout
}

// AddFlags defines the flags.
func (fl *Flags) AddFlags(cmd *cobra.Command, timeout time.Duration) {
	fl.HostFlags.AddFlags(cmd)
	cmd.Flags().BoolVarP(&fl.HeaderDigest, "hdr-digest", "g", false, "protect PDU headers by a CRC32C")
	cmd.Flags().BoolVarP(&fl.DataDigest, "data-digest", "G", false, "protect data by a CRC32C")
	fl.Timeout.AddFlag(cmd, timeout)
}

// Options returns the options to connect with, and the identity in them.
func (fl *Flags) Options(f *factory.Factory) (host.Options, hostid.Identity, error) {
	i, err := fl.Identity(f)
	return host.Options{
		HostNQN: i.NQN, HostID: i.ID,
		HeaderDigest: fl.HeaderDigest, DataDigest: fl.DataDigest,
		Logger: f.Logger(),
	}, i, err
}

// BindFlags are --bind, repeatable, and --host-traddr with --host-iface, which say one binding in nvme-cli's words.
type BindFlags struct {
	binds         []attach.Binding
	traddr, iface string
}

// AddFlags defines them.
func (b *BindFlags) AddFlags(cmd *cobra.Command) {
	cmd.Flags().Var((*bindValue)(&b.binds), "bind", "leave by this `BINDING`: IFACE, ADDRESS or IFACE/ADDRESS; repeatable, one path for each")
	cmd.Flags().StringVarP(&b.traddr, "host-traddr", "w", "", "leave by this source `ADDRESS`")
	cmd.Flags().StringVarP(&b.iface, "host-iface", "f", "", "leave by this `IFACE`")
	for _, flag := range []string{"bind", "host-iface"} {
		// The flags were defined above, which is all that can be wrong.
		_ = cmd.RegisterFlagCompletionFunc(flag, completeInterfaces)
	}
}

func completeInterfaces(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	list, _ := net.Interfaces()
	for _, i := range list {
		names = append(names, i.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// Bindings returns the bindings asked for, none if the routes shall decide.
func (b *BindFlags) Bindings(cmd *cobra.Command) ([]attach.Binding, error) {
	traddr, iface := cmd.Flags().Changed("host-traddr"), cmd.Flags().Changed("host-iface")
	if !traddr && !iface {
		return b.binds, nil
	}
	if len(b.binds) > 0 {
		return nil, exit.Usagef("--bind and --host-traddr or --host-iface say the same: give one of them")
	}
	var one attach.Binding
	if traddr {
		a, err := netip.ParseAddr(b.traddr)
		if err != nil {
			return nil, exit.Usagef("--host-traddr %q: it is no address", b.traddr)
		}
		one.Source = a.Unmap()
	}
	if iface {
		parsed, err := attach.ParseBinding(b.iface)
		if err != nil || parsed.Interface != b.iface {
			return nil, exit.Usagef("--host-iface %q: it is no name of an interface", b.iface)
		}
		one.Interface = b.iface
	}
	return []attach.Binding{one}, nil
}

type bindValue []attach.Binding

func (b *bindValue) Type() string   { return "BINDING" }
func (b *bindValue) String() string { return "" }

func (b *bindValue) Set(s string) error {
	v, err := attach.ParseBinding(s)
	*b = append(*b, v)
	return err
}

// PortalFlags are --transport, --traddr and --trsvcid, which stand in place of a PORTAL.
type PortalFlags struct{ transport, traddr, trsvcid string }

// AddFlags defines them; what is what they stand in place of.
func (p *PortalFlags) AddFlags(cmd *cobra.Command, what string) {
	fl := cmd.Flags()
	fl.StringVarP(&p.transport, "transport", "t", string(nvme.TransportTCP), "in place of "+what+": the `TRANSPORT`, tcp, rdma, fc or loop")
	fl.StringVarP(&p.traddr, "traddr", "a", "", "in place of "+what+": the `ADDRESS`")
	fl.StringVarP(&p.trsvcid, "trsvcid", "s", "", "in place of "+what+": the `PORT`")
}

// portal reads them as they would be in a URL, and blames each part by its flag.
func (p *PortalFlags) portal() (portal attach.Portal, err error) {
	scheme, traddr := "nvme+"+p.transport+"://", p.traddr
	switch nvme.Transport(p.transport) {
	case nvme.TransportTCP, nvme.TransportRDMA, nvme.TransportFC:
		if traddr == "" {
			return portal, exit.Usagef("--traddr is missing: it is the target's address")
		}
	case nvme.TransportLoop:
		if traddr != "" {
			return portal, exit.Usagef("--traddr %q: loop has no address", traddr)
		}
	default:
		return portal, exit.Usagef("--transport %q: must be one of tcp, rdma, fc, loop", p.transport)
	}
	if strings.Contains(traddr, ":") && !strings.HasPrefix(traddr, "[") && p.transport != string(nvme.TransportFC) {
		traddr = "[" + traddr + "]"
	}
	if portal, err = attach.ParsePortal(scheme + traddr); err != nil {
		return portal, fmt.Errorf("--traddr: %w", err)
	}
	if portal.Service != "" {
		return portal, exit.Usagef("--traddr %q: the port goes into --trsvcid", traddr)
	}
	if p.trsvcid != "" {
		with, err := attach.ParsePortal(scheme + traddr + ":" + p.trsvcid)
		if err != nil || portal.DefaultPort() == "" {
			return portal, exit.Usagef("--trsvcid %q: it is no port that --transport %s can have", p.trsvcid, p.transport)
		}
		portal = with
	}
	return portal, nil
}

// Portals reads the arguments, or the flags that stand in place of one.
func (p *PortalFlags) Portals(cmd *cobra.Command, args []string) ([]attach.Portal, error) {
	given, err := instead(cmd, "PORTAL", args, "transport", "traddr", "trsvcid")
	if err != nil {
		return nil, err
	}
	if given {
		portal, err := p.portal()
		return []attach.Portal{portal}, err
	}
	portals := make([]attach.Portal, len(args))
	for i, arg := range args {
		if portals[i], err = attach.ParsePortal(arg); err != nil {
			return nil, err
		}
	}
	return portals, nil
}

// TargetFlags are those of PortalFlags, --nqn and --namespace, which together stand in place of a TARGET.
type TargetFlags struct {
	PortalFlags
	nqn, namespace string
}

// AddFlags defines them.
func (t *TargetFlags) AddFlags(cmd *cobra.Command) {
	t.PortalFlags.AddFlags(cmd, "TARGET")
	cmd.Flags().StringVarP(&t.nqn, "nqn", "n", "", "in place of TARGET: the `NQN` of the subsystem")
	cmd.Flags().StringVar(&t.namespace, "namespace", "", "in place of TARGET: the `NAMESPACE`, where the subsystem has several")
}

// Targets reads the arguments, or the flags that stand in place of one.
func (t *TargetFlags) Targets(cmd *cobra.Command, args []string) ([]attach.Target, error) {
	given, err := instead(cmd, "TARGET", args, "transport", "traddr", "trsvcid", "nqn", "namespace")
	if err != nil {
		return nil, err
	}
	if given {
		target, err := t.target()
		return []attach.Target{target}, err
	}
	targets := make([]attach.Target, len(args))
	for i, arg := range args {
		if targets[i], err = attach.ParseTarget(arg); err != nil {
			return nil, err
		}
		for _, other := range targets[:i] {
			if other.String() == targets[i].String() {
				return nil, exit.Usagef("target %s is given twice", other)
			}
		}
	}
	return targets, nil
}

func (t *TargetFlags) target() (target attach.Target, err error) {
	if target.Portal, err = t.portal(); err != nil {
		return target, err
	}
	if t.nqn == "" {
		return target, exit.Usagef("--nqn is missing: it is the name of the subsystem")
	}
	if _, err := nvme.ParseNQN(t.nqn); err != nil {
		return target, exit.Usagef("--nqn: %w", err)
	}
	target.Name = t.nqn
	if t.namespace != "" {
		if target.Namespace, err = attach.ParseNamespaceRef(t.namespace); err != nil {
			return target, fmt.Errorf("--namespace: %w", err)
		}
	}
	return target, nil
}

// instead says whether flags stand in place of an argument; one of both must be there, not both.
func instead(cmd *cobra.Command, what string, args []string, flags ...string) (bool, error) {
	for _, flag := range flags {
		switch {
		case !cmd.Flags().Changed(flag):
		case len(args) > 0:
			return false, exit.Usagef("--%s stands in place of a %s, and %q is given: use one or the other", flag, what, args[0])
		default:
			return true, nil
		}
	}
	if len(args) == 0 {
		return false, exit.Usagef("%s is missing", what)
	}
	return false, nil
}
