// Package attach is 'hawser attach'.
package attach

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/initiator"
	"hawser.dev/hawser/cmd/internal/cli/output"
	"hawser.dev/hawser/cmd/internal/cli/volume"
	"hawser.dev/hawser/nvme"
)

// atOnce is how many targets are attached at the same time.
const atOnce = 8

type options struct {
	targets initiator.TargetFlags
	portals []string
	binds   initiator.BindFlags
	host    factory.HostFlags
	timeout factory.Timeout
	wait    time.Duration
	check   bool

	spec attach.Spec // what is the same for all targets
	ints map[string]*int
	dhchap, dhchapCtrl,
	driver, frontend string
}

// New returns the command.
func New(f *factory.Factory) *cobra.Command {
	opts := &options{ints: map[string]*int{}}
	cmd := &cobra.Command{
		Use:   "attach TARGET…",
		Short: "Bring volumes online",
		Long: `Brings volumes online, and says which device each one is. It returns when the device is there, was read from, and is proven,
by what it says of itself, to be the volume asked for. What is attached already stays as it is.

TARGET is nvme://HOST[:PORT]/NQN[#NAMESPACE]; without NAMESPACE the subsystem must have exactly one. The flags of
'nvme connect' mean the same here and may stand in place of one TARGET.

The driver is 'user': hawser's own initiator in a background process ('hawser agent'), which shows the volume as an NBD server on
a unix socket. It needs no root and no kernel module; qemu, libnbd and every other NBD client speak to it.

When an attach fails, what it did is undone. When it is killed, the next attach or detach finishes or cleans up what it left.`,
		Example: `  hawser attach nvme://192.0.2.10/nqn.2026-01.org.example:vol1
  hawser attach 'nvme://[2001:db8::10]:4420/nqn.2026-01.org.example:pool#7f1c5d66-9b1e-4b55-a1f0-3c6c1b0c9f11' --name data
  hawser attach -t tcp -a 192.0.2.10 -s 4420 -n nqn.2026-01.org.example:vol1 -o json
  nbdinfo "$(hawser attach nvme://192.0.2.10/nqn.2026-01.org.example:vol1 -o json | jq -r .volumes[0].device)"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			specs, err := opts.specs(cmd, f, args)
			if err != nil {
				return err
			}
			return run(cmd.Context(), f, opts, specs)
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&opts.spec.Name, "name", "", "call the volume `NAME` (else its UUID, NGUID or EUI-64)")
	fl.StringArrayVar(&opts.portals, "portal", nil, "reach the volume by this further `PORTAL` too; repeatable")
	opts.binds.AddFlags(cmd)
	fl.IntVar(&opts.spec.MinPaths, "min-paths", 0, "be content with this `NUMBER` of paths (1 unless given)")
	fl.Var(factory.OneOf(&opts.driver, attach.DriverAuto, attach.DriverKernel, attach.DriverUser), "driver", "auto, kernel, user")
	fl.Var(factory.OneOf(&opts.frontend, attach.FrontendAuto, attach.FrontendSocket, attach.FrontendUblk, attach.FrontendNBD), "frontend", "auto, socket: how the user driver shows a volume")
	fl.BoolVar(&opts.spec.ReadOnly, "read-only", false, "refuse writes to the device")
	fl.BoolVar(&opts.check, "check", false, "say what would be done, and change nothing")
	fl.DurationVar(&opts.wait, "wait", 0, "while a target cannot be reached, try again for this `DURATION`; --timeout bounds each try")
	opts.timeout.AddFlag(cmd, 30*time.Second)
	opts.host.AddFlags(cmd)

	opts.targets.AddFlags(cmd)
	opts.targets.Complete(f, cmd, &opts.host)
	o := &opts.spec.Options
	fl.IntVarP(&o.NrIOQueues, "nr-io-queues", "i", 0, "ask for this `NUMBER` of I/O queues")
	fl.IntVarP(&o.NrWriteQueues, "nr-write-queues", "W", 0, "have this `NUMBER` of queues for writes alone")
	fl.IntVarP(&o.NrPollQueues, "nr-poll-queues", "P", 0, "have this `NUMBER` of queues that are polled")
	fl.IntVarP(&o.QueueSize, "queue-size", "Q", 0, "have this `NUMBER` of commands in a queue (128 unless given)")
	opts.intVar(cmd, "keep-alive-tmo", "k", "the keep-alive timeout in `SECONDS`, 0 for none (5 unless given)")
	opts.intVar(cmd, "reconnect-delay", "c", "wait for `SECONDS` between tries to bring a lost path back")
	opts.intVar(cmd, "ctrl-loss-tmo", "l", "give a lost path up after `SECONDS`, -1 never (600 unless given)")
	opts.intVar(cmd, "fast-io-fail-tmo", "F", "let I/O fail when a path was lost for `SECONDS`, -1 never")
	opts.intVar(cmd, "tos", "T", "the type of service of the connections, a `NUMBER` to 255")
	fl.BoolVarP(&o.HdrDigest, "hdr-digest", "g", false, "protect PDU headers by a CRC32C")
	fl.BoolVarP(&o.DataDigest, "data-digest", "G", false, "protect data by a CRC32C")
	fl.BoolVarP(&o.DisableSQFlow, "disable-sqflow", "d", false, "do without submission queue flow control")
	fl.BoolVarP(&o.DuplicateConn, "duplicate-connect", "D", false, "connect again where a connection is there already")
	fl.BoolVar(&o.TLS, "tls", false, "speak TLS to the target")
	fl.StringVarP(&opts.dhchap, "dhchap-secret", "S", "", "prove who this host is by the secret in `@FILE`")
	fl.StringVarP(&opts.dhchapCtrl, "dhchap-ctrl-secret", "C", "", "have the target prove who it is by the secret in `@FILE`")
	exit.Document(cmd, exit.Partial, exit.Auth, exit.NotFound, exit.Unreachable, exit.Unsupported, exit.Permission, exit.InUse)
	return cmd
}

// intVar defines a flag whose zero is a value like any other.
func (o *options) intVar(cmd *cobra.Command, name, short, usage string) {
	o.ints[name] = cmd.Flags().IntP(name, short, 0, usage)
}

// specs makes a Spec for each target. Nothing but the host's own identity is looked at.
func (o *options) specs(cmd *cobra.Command, f *factory.Factory, args []string) ([]attach.Spec, error) {
	given := func(flag string) bool { return cmd.Flags().Changed(flag) }
	common := o.spec
	common.SchemaVersion = attach.SchemaVersion
	common.Driver, common.Frontend = o.driver, o.frontend
	for _, c := range []struct {
		flag string
		p    **int
	}{
		{"keep-alive-tmo", &common.Options.KeepAliveTMO}, {"reconnect-delay", &common.Options.Reconnect},
		{"ctrl-loss-tmo", &common.Options.CtrlLossTMO}, {"fast-io-fail-tmo", &common.Options.FastIOFailTMO}, {"tos", &common.Options.TOS},
	} {
		if given(c.flag) {
			*c.p = o.ints[c.flag]
		}
	}
	// What is not given is zero in a Spec, so a zero that is given cannot stand there.
	for _, flag := range []string{"nr-io-queues", "nr-write-queues", "nr-poll-queues", "queue-size", "min-paths"} {
		if v, _ := cmd.Flags().GetInt(flag); given(flag) && v == 0 {
			return nil, exit.Usagef("--%s 0: must be at least 1", flag)
		}
	}
	if given("name") && common.Name == "" {
		return nil, exit.Usagef("--name: it is empty")
	}
	if o.wait < 0 {
		return nil, exit.Usagef("--wait %v: must not be below zero", o.wait)
	}
	var err error
	for _, c := range []struct {
		flag, value string
		ref         *attach.SecretRef
	}{{"dhchap-secret", o.dhchap, &common.Options.DHCHAPSecret}, {"dhchap-ctrl-secret", o.dhchapCtrl, &common.Options.DHCHAPCtrlSecret}} {
		if given(c.flag) {
			if *c.ref, err = attach.ParseSecretRef(c.value); err != nil {
				return nil, fmt.Errorf("--%s: %w", c.flag, err)
			}
		}
	}
	if common.Bindings, err = o.binds.Bindings(cmd); err != nil {
		return nil, err
	}
	for _, p := range o.portals {
		portal, err := attach.ParsePortal(p)
		if err != nil {
			return nil, fmt.Errorf("--portal: %w", err)
		}
		common.Portals = append(common.Portals, portal)
	}
	targets, err := o.targets.Targets(cmd, args)
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		if nvme.NQN(t.Name).Discovery() {
			return nil, exit.Usagef("target %s: a discovery subsystem has no volumes: 'hawser discover' asks it", t)
		}
	}
	if len(targets) > 1 && (common.Name != "" || len(common.Portals) > 0) {
		return nil, exit.Usagef("--name and --portal concern one target, and %d are given: attach them one by one", len(targets))
	}
	id, err := o.host.Identity(f)
	if err != nil {
		return nil, err
	}
	common.HostNQN, common.HostID = id.NQN, id.ID
	specs := make([]attach.Spec, len(targets))
	for i, t := range targets {
		specs[i] = common
		specs[i].Target = t
		if err := specs[i].Validate(); err != nil {
			return nil, err
		}
	}
	return specs, nil
}

func run(ctx context.Context, f *factory.Factory, opts *options, specs []attach.Spec) error {
	m, err := volume.NewManager(f)
	if err != nil {
		return err
	}
	progress := f.IO.StartProgress(progressLabel(specs))
	defer progress.Done()

	all := make([]volume.Asked, len(specs))
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, spec := range specs {
		all[i].Arg = spec.Target.String()
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			all[i].Volume, all[i].Err = attachOne(ctx, m, spec, opts)
			if all[i].Err == nil {
				for _, p := range all[i].Volume.Paths {
					progress.Println("%s: path %s %s", all[i].Volume.Name, p.Portal, p.State)
				}
			}
		})
	}
	wg.Wait()
	progress.Done()
	return volume.Report(f, all, func(t *output.Text, v attach.Volume) error {
		if opts.check {
			return planned(t, v)
		}
		how := "already attached"
		if *v.Changed {
			how = t.Good("attached")
		}
		t.Printf("%s  %s  %s  %s\n", t.Bold(v.Device), v.Name, volume.Size(v), how)
		return nil
	})
}

func progressLabel(specs []attach.Spec) string {
	if len(specs) == 1 {
		return "attaching " + specs[0].Target.String()
	}
	return fmt.Sprintf("attaching %d volumes", len(specs))
}

func planned(t *output.Text, v attach.Volume) error {
	if !*v.Changed {
		t.Printf("%s  already attached as %s\n", v.Name, v.Device)
		return nil
	}
	t.Printf("%s  %s  would be attached:\n", v.Name, volume.Size(v))
	for _, step := range v.Plan {
		t.Printf("  %s\n", step)
	}
	return nil
}

// Between two tries of --wait.
const (
	firstPause = 500 * time.Millisecond
	lastPause  = 5 * time.Second
)

func attachOne(ctx context.Context, m *attach.Manager, spec attach.Spec, opts *options) (attach.Volume, error) {
	do := m.Attach
	if opts.check {
		do = m.Check
	}
	patience := time.NewTimer(opts.wait)
	defer patience.Stop()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		try, cancel := opts.timeout.Context(ctx)
		v, err := do(try, spec)
		err = factory.Explain(try, err)
		cancel()
		if err == nil || opts.wait == 0 || exit.CodeOf(err) != exit.Unreachable || ctx.Err() != nil {
			return v, err
		}
		select {
		case <-time.After(pause):
		case <-patience.C:
			return v, exit.WithHint(fmt.Errorf("still so after %v (--wait): %w", opts.wait, err), exit.Hint(err))
		case <-ctx.Done():
			return v, errors.Join(err, context.Cause(ctx))
		}
	}
}
