// Package agent is 'hawser agent', which 'hawser attach' starts.
package agent

import (
	"context"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/volume"
)

type options struct {
	dir    string
	id     string
	worker bool
}

// New returns the command. It is hidden: people have no use for it.
func New(f *factory.Factory) *cobra.Command {
	opts := &options{}
	cmd := &cobra.Command{
		Use:    "agent --state-dir DIR --id NAME",
		Short:  "Hold volumes of the user driver in the background",
		Long:   "Is the background process of the user driver. 'hawser attach' starts it, and it ends when it holds no volume any more.",
		Hidden: true,
		Args:   factory.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), f, opts) },
	}
	fl := cmd.Flags()
	fl.StringVar(&opts.dir, "state-dir", "", "the state `FOLDER`")
	fl.StringVar(&opts.id, "id", "", "the `NAME` of the agent")
	fl.BoolVar(&opts.worker, "worker", false, "be the process that holds the volumes, not the one that watches it")
	exit.Document(cmd, exit.Permission, exit.InUse)
	return cmd
}

func run(ctx context.Context, f *factory.Factory, opts *options) error {
	if opts.dir == "" {
		return exit.Usagef("--state-dir is missing: agents are started by 'hawser attach'")
	}
	if err := attach.ValidName(opts.id); err != nil {
		return exit.Usagef("--id: %w", err)
	}
	d, err := volume.Driver(f, opts.dir)
	if err != nil {
		return err
	}
	// It was started as /proc/self/exe, a name that says nothing to whoever looks at processes (proc_pid_comm(5)).
	_ = os.WriteFile("/proc/self/comm", []byte("hawser"), 0)
	// Everything it says goes to its log, and it says what it does.
	log := slog.New(slog.NewTextHandler(f.IO.Err, nil)).With("pid", os.Getpid())
	if opts.worker {
		return d.Work(ctx, opts.id, log)
	}
	return d.Monitor(ctx, opts.id, log)
}
