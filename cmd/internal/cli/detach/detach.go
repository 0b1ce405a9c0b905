// Package detach is 'hawser detach'.
package detach

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/output"
	"hawser.dev/hawser/cmd/internal/cli/volume"
	"hawser.dev/hawser/nvme"
)

type options struct {
	nqn     string
	devices []string
	force   bool
	check   bool
	flush   time.Duration
	timeout factory.Timeout
}

// New returns the command.
func New(f *factory.Factory) *cobra.Command {
	opts := &options{}
	cmd := &cobra.Command{
		Use:   "detach TARGET|VOLUME|DEVICE…",
		Short: "Let volumes go",
		Long: `Lets volumes go that 'hawser attach' brought online: named by name or identifier, by device, or by the URL of their target. It
refuses while somebody uses the device, flushes, ends the connection, and takes the device away.

It ends in bounded time, even when the target is dead: then the flush does not finish and the volume stays attached. --force lets
it go nevertheless, cuts off who uses it, and says when data may be lost.

A target that is not attached is left so, which is no error; a name or device that is not known is.`,
		Example: `  hawser detach data
  hawser detach nvme://192.0.2.10/nqn.2026-01.org.example:vol1 -o json
  hawser detach -n nqn.2026-01.org.example:vol1 --check`,
		RunE: func(cmd *cobra.Command, args []string) error {
			selectors, err := opts.selectors(args)
			if err != nil {
				return err
			}
			return run(cmd.Context(), f, opts, selectors)
		},
		ValidArgsFunction: volume.Complete(f),
	}
	fl := cmd.Flags()
	fl.StringVarP(&opts.nqn, "nqn", "n", "", "in place of an argument: the volume of the subsystem with this `NQN`")
	fl.StringArrayVarP(&opts.devices, "device", "d", nil, "in place of an argument: this `DEVICE`; repeatable")
	fl.BoolVar(&opts.force, "force", false, "cut off who uses the device, and let go of what cannot be flushed")
	fl.BoolVar(&opts.check, "check", false, "say what would be done, or what is in the way, and change nothing")
	fl.DurationVar(&opts.flush, "flush-timeout", 10*time.Second, "let the flush of a volume take this `DURATION`")
	opts.timeout.AddFlag(cmd, 30*time.Second)
	exit.Document(cmd, exit.Partial, exit.NotFound, exit.Unreachable, exit.Permission, exit.InUse)
	return cmd
}

func (o *options) selectors(args []string) ([]attach.Selector, error) {
	if o.flush <= 0 {
		return nil, exit.Usagef("--flush-timeout %v: must be above zero", o.flush)
	}
	var all []attach.Selector
	for _, arg := range append(slices.Clone(args), o.devices...) {
		sel, err := attach.ParseSelector(arg)
		if err != nil {
			return nil, err
		}
		all = append(all, sel)
	}
	if o.nqn != "" {
		nqn, err := nvme.ParseNQN(o.nqn)
		if err != nil {
			return nil, exit.Usagef("--nqn: %w", err)
		}
		t := attach.Target{Portal: attach.Portal{Protocol: attach.NVMe, Addr: nvme.Addr{Transport: nvme.TransportTCP}}, Name: string(nqn)}
		all = append(all, attach.Selector{Text: o.nqn, Target: &t, AnyPortal: true})
	}
	if len(all) == 0 {
		return nil, exit.Usagef("TARGET, VOLUME or DEVICE is missing")
	}
	return all, nil
}

func run(ctx context.Context, f *factory.Factory, opts *options, selectors []attach.Selector) error {
	m, err := volume.NewManager(f)
	if err != nil {
		return err
	}
	ctx, cancel := opts.timeout.Context(ctx)
	defer cancel()
	progress := f.IO.StartProgress("detaching")
	defer progress.Done()
	all := make([]volume.Asked, len(selectors))
	for i, sel := range selectors {
		progress.Set("detaching %s", sel.Text)
		all[i].Arg = sel.Text
		all[i].Volume, all[i].Err = m.Detach(ctx, sel, attach.DetachOptions{Force: opts.force, FlushTimeout: opts.flush}, opts.check)
		all[i].Err = factory.Explain(ctx, all[i].Err)
		if lost := all[i].Volume.DataLost; lost != "" {
			fmt.Fprintf(f.IO.Err, "hawser: %s: loss of data is %s: its users were cut off, or what was written could not be flushed\n", all[i].Volume.Name, lost)
		}
	}
	progress.Done()
	return volume.Report(f, all, func(t *output.Text, v attach.Volume) error {
		name := v.Name
		if name == "" {
			name = v.Target
		}
		switch {
		case !*v.Changed:
			t.Printf("%s  was not attached\n", name)
		case opts.check:
			t.Printf("%s  would be detached from %s\n", name, v.Device)
		default:
			t.Printf("%s  %s\n", name, t.Good("detached"))
		}
		return nil
	})
}
