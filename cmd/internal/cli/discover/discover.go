// Package discover is 'hawser discover'.
package discover

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/initiator"
	"hawser.dev/hawser/cmd/internal/cli/output"
	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
	"hawser.dev/hawser/nvme/wire"
)

type options struct {
	portals initiator.PortalFlags
	flags   initiator.Flags
	binds   initiator.BindFlags
}

// New returns the command.
func New(f *factory.Factory) *cobra.Command {
	opts := &options{}
	cmd := &cobra.Command{
		Use:   "discover PORTAL…",
		Short: "List what portals offer to this host",
		Long: `Asks the discovery service of each PORTAL, and those that it refers to, for the subsystems that this host may use.

PORTAL is HOST[:PORT], with an IPv6 address in brackets. Without a port, 8009 is asked, then 4420.`,
		Example: `  hawser discover 192.0.2.10
  hawser discover [2001:db8::10]:8009 -o json
  hawser discover 192.0.2.10 --hostnqn nqn.2026-01.org.example:other-host`,
		RunE: func(cmd *cobra.Command, args []string) error {
			portals, err := opts.portals.Portals(cmd, args)
			if err != nil {
				return err
			}
			for _, p := range portals {
				if err := initiator.Supported(p); err != nil {
					return err
				}
			}
			binds, err := opts.binds.Bindings(cmd)
			if err != nil {
				return err
			}
			if len(binds) > 1 {
				return exit.Usagef("--bind: discovery uses one path: give it once")
			}
			return run(cmd.Context(), f, opts, portals, append(binds, attach.Binding{})[0])
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	opts.flags.AddFlags(cmd, 10*time.Second)
	opts.portals.AddFlags(cmd, "PORTAL")
	opts.binds.AddFlags(cmd)
	exit.Document(cmd, exit.Partial, exit.Auth, exit.NotFound, exit.Unreachable, exit.Unsupported, exit.Permission, exit.InUse)
	return cmd
}

// Discovered is what 'discover' prints.
type Discovered struct {
	output.Header
	Subsystems []Subsystem `json:"subsystems"`
	Referrals  []Referral  `json:"referrals"`
	Failed     []Failure   `json:"failed"` // portals that could not be asked, those of referrals included
}

// Subsystem is a subsystem at one portal.
type Subsystem struct {
	Target    nvme.NQN `json:"target"`
	URL       string   `json:"url,omitempty"` // what attach takes; missing for transports that it cannot name
	Transport string   `json:"transport"`
	Portal    string   `json:"portal"`
	PortID    uint16   `json:"portID"`
	Security  string   `json:"security"` // "none", or "required" or "optional", and "tls1.2" or "tls1.3"
	From      string   `json:"from"`     // the discovery service that said so
}

// Referral is another discovery service.
type Referral struct {
	Target    nvme.NQN `json:"target"`
	Transport string   `json:"transport"`
	Portal    string   `json:"portal"`
	From      string   `json:"from"`
}

// Failure is a portal that could not be asked.
type Failure struct {
	Portal string           `json:"portal"`
	Error  output.ErrorBody `json:"error"`
}

type line struct {
	output.Header
	Subsystem
}

func run(ctx context.Context, f *factory.Factory, opts *options, portals []attach.Portal, bind attach.Binding) error {
	o, who, err := opts.flags.Options(f)
	if err != nil {
		return err
	}
	o.Interface, o.Source = bind.Interface, bind.Source
	ctx, cancel := opts.flags.Timeout.Context(ctx)
	defer cancel()

	doc := Discovered{Subsystems: []Subsystem{}, Referrals: []Referral{}, Failed: []Failure{}}
	var failures []error
	fail := func(portal string, err error) {
		err = initiator.Explain(ctx, err, who.NQN)
		failures = append(failures, err)
		doc.Failed = append(doc.Failed, Failure{portal, *initiator.Body(err)})
	}
	seen := make(map[any]bool)
	asked := 0
	for _, p := range portals {
		progress := f.IO.StartProgress("asking " + p.String())
		d, err := host.Discover(ctx, p.Addr, o)
		progress.Done()
		if err != nil {
			fail(p.String(), err)
			continue
		}
		asked++
		for i := range d.Records {
			doc.add(&d.Records[i], seen)
		}
		for _, e := range d.Unreachable {
			fail(e.Addr.String(), e)
		}
	}
	if asked == 0 {
		return errors.Join(failures...)
	}
	lines := make([]output.Document, len(doc.Subsystems))
	for i, s := range doc.Subsystems {
		lines[i] = line{Subsystem: s}
	}
	err = f.Printer().Print(output.View{Doc: doc, Lines: lines, Text: func(t *output.Text) error {
		if len(doc.Subsystems) == 0 {
			t.Printf("nothing is offered to host NQN %s\n", who.NQN)
			return nil
		}
		rows := make([][]string, len(doc.Subsystems))
		for i, s := range doc.Subsystems {
			rows[i] = []string{string(s.Target), s.Transport, s.Portal, s.Security, s.From}
		}
		return t.Table([]string{"TARGET", "TRANSPORT", "PORTAL", "SECURITY", "FROM"}, rows)
	}})
	if len(failures) > 0 {
		err = errors.Join(err, exit.New(exit.Partial, errors.Join(failures...), exit.Hint(errors.Join(failures...))))
	}
	return err
}

// add takes a record over, unless another service said the same of the same portal.
func (d *Discovered) add(r *host.Record, seen map[any]bool) {
	addr := r.Addr()
	key := struct {
		addr nvme.Addr
		nqn  nvme.NQN
		kind uint8
	}{addr, r.SUBNQN, r.SUBTYPE}
	if seen[key] {
		return
	}
	seen[key] = true
	transport := string(addr.Transport)
	if transport == "" {
		transport = fmt.Sprintf("type %d", r.TRTYPE)
	}
	switch r.SUBTYPE {
	case wire.SubtypeNVM:
		d.Subsystems = append(d.Subsystems, Subsystem{
			Target: r.SUBNQN, URL: url(addr, r.SUBNQN), Transport: transport, Portal: addr.String(), PortID: r.PORTID,
			Security: security(r), From: r.From.String(),
		})
	case wire.SubtypeReferral:
		d.Referrals = append(d.Referrals, Referral{Target: r.SUBNQN, Transport: transport, Portal: addr.String(), From: r.From.String()})
	}
}

// url is the TARGET of a subsystem, empty where what the record holds does not make one.
func url(addr nvme.Addr, nqn nvme.NQN) string {
	t := attach.Target{Portal: attach.Portal{Protocol: attach.NVMe, Addr: addr}, Name: string(nqn)}
	text := t.String()
	if back, err := attach.ParseTarget(text); err != nil || back.Name != t.Name || back.Addr != addr {
		return ""
	}
	return text
}

func security(r *host.Record) string {
	var words []string
	switch r.TREQ & wire.TREQSecureMask {
	case wire.TREQSecureRequired:
		words = append(words, "required")
	case wire.TREQSecureNotRequired:
		words = append(words, "optional")
	}
	if r.TRTYPE == wire.TRTypeTCP {
		switch r.SECTYPE {
		case wire.SecTypeTLS12:
			words = append(words, "tls1.2")
		case wire.SecTypeTLS13:
			words = append(words, "tls1.3")
		}
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, " ")
}
