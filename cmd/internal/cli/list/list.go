// Package list is 'hawser list'.
package list

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/output"
	"hawser.dev/hawser/cmd/internal/cli/volume"
)

// Document is what 'list' prints.
type Document struct {
	output.Header
	Volumes []attach.Volume `json:"volumes"`
}

// New returns the command.
func New(f *factory.Factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List what is attached",
		Long: `Lists the volumes that 'hawser attach' brought online: device, size, driver, live paths of all, and state. It asks the agents
that hold them and waits for none longer than a moment; what does not answer is 'unknown', what is gone is 'dead'.`,
		Example: `  hawser list
  hawser list -o json`,
		Args:              factory.NoArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), f) },
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	exit.Document(cmd, exit.Permission)
	return cmd
}

func run(ctx context.Context, f *factory.Factory) error {
	m, err := volume.NewManager(f)
	if err != nil {
		return err
	}
	volumes, bad := m.List(ctx)
	if bad != nil && volumes == nil {
		return bad
	}
	if volumes == nil {
		volumes = []attach.Volume{}
	}
	err = f.Printer().Print(output.View{Doc: Document{Volumes: volumes}, Lines: volume.Lines(volumes), Text: func(t *output.Text) error {
		if len(volumes) == 0 {
			return nil
		}
		rows := make([][]string, len(volumes))
		for i, v := range volumes {
			rows[i] = []string{v.Name, v.Device, volume.Size(v), v.Driver, volume.Paths(v), volume.State(t, v)}
		}
		return t.Table([]string{"NAME", "DEVICE", "SIZE", "DRIVER", "PATHS", "STATE"}, rows)
	}})
	if err != nil {
		return err
	}
	if len(volumes) == 0 && bad == nil && f.IO.ErrIsTerminal() && !f.Format().Machine() {
		fmt.Fprintln(f.IO.Err, "nothing is attached")
	}
	return bad
}
