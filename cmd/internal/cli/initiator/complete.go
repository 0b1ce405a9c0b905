package initiator

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/nvme/wire"
)

// completionTimeout bounds how long a shell waits for a portal that does not answer.
const completionTimeout = 2 * time.Second

// Complete has the shell offer, once the portal of a TARGET or --traddr is there, the subsystems that this host may use on it.
// The other flags must be defined already.
func (t *TargetFlags) Complete(f *factory.Factory, cmd *cobra.Command, who *factory.HostFlags) {
	cmd.ValidArgsFunction = func(cmd *cobra.Command, given []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		scheme, rest, _ := strings.Cut(prefix, "://")
		authority, _, named := strings.Cut(rest, "/")
		portal, err := attach.ParsePortal(scheme + "://" + authority)
		if !named || err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var urls []cobra.Completion
		for _, nqn := range offered(cmd.Context(), f, portal, who) {
			// The portal stays as it was typed: that is what the shell compares.
			target := attach.Target{Portal: portal, Name: nqn}.String()
			_, name, _ := strings.Cut(target[strings.Index(target, "://")+3:], "/")
			url := scheme + "://" + authority + "/" + name
			if strings.HasPrefix(url, prefix) && !slices.Contains(given, url) {
				urls = append(urls, url)
			}
		}
		return urls, cobra.ShellCompDirectiveNoFileComp
	}
	// The flag is defined and has no function yet, which is all that can be wrong.
	_ = cmd.RegisterFlagCompletionFunc("nqn", func(cmd *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		portal, err := t.portal()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return slices.DeleteFunc(offered(cmd.Context(), f, portal, who), func(nqn string) bool { return !strings.HasPrefix(nqn, prefix) }),
			cobra.ShellCompDirectiveNoFileComp
	})
}

// offered lists the NQNs of the subsystems that a portal offers to this host, none when it cannot be asked.
func offered(ctx context.Context, f *factory.Factory, portal attach.Portal, who *factory.HostFlags) []string {
	id, err := who.Identity(f)
	if err != nil || Supported(portal) != nil {
		return nil
	}
	if portal.Service == "" { // what is offered where an attach would go, and nowhere else
		portal = portal.WithPort()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	d, err := host.Discover(ctx, portal.Addr, host.Options{HostNQN: id.NQN, HostID: id.ID})
	if err != nil {
		return nil
	}
	var nqns []string
	for i := range d.Records {
		if r := &d.Records[i]; r.SUBTYPE == wire.SubtypeNVM && !slices.Contains(nqns, string(r.SUBNQN)) {
			nqns = append(nqns, string(r.SUBNQN))
		}
	}
	return nqns
}
