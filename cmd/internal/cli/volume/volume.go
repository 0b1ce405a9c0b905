// Package volume is what the verbs on attached volumes have in common: the manager they work by, and how results look.
package volume

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/output"
	"hawser.dev/hawser/cmd/internal/cli/size"
	"hawser.dev/hawser/cmd/internal/userdriver"
)

// StateDirEnv names the environment variable that moves the state folder.
const StateDirEnv = "HAWSER_STATE_DIR"

// StateDir is the folder of the records.
func StateDir(f *factory.Factory) string {
	if dir := f.IO.Env(StateDirEnv); dir != "" {
		return dir
	}
	return attach.DefaultDir(f.IO.Env)
}

// Driver returns the user driver over the records in dir.
func Driver(f *factory.Factory, dir string) (*userdriver.Driver, error) {
	store, err := attach.NewStore(dir)
	if err != nil {
		return nil, err
	}
	return &userdriver.Driver{Store: store, Log: f.Logger(), Command: []string{"hawser", "agent"}}, nil
}

// NewManager returns the manager of this host's attachments.
func NewManager(f *factory.Factory) (*attach.Manager, error) {
	d, err := Driver(f, StateDir(f))
	if err != nil {
		return nil, err
	}
	return &attach.Manager{
		Store: d.Store, Drivers: []attach.Driver{d}, Prober: &userdriver.Initiator{Log: f.Logger()}, Log: f.Logger(),
		Resolve: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
	}, nil
}

// Result is what verbs that change something print.
type Result struct {
	output.Header
	Changed bool            `json:"changed"`
	Volumes []attach.Volume `json:"volumes"`
	Errors  []Failure       `json:"errors,omitempty"` // of several things asked, those that did not succeed
}

// Failure is one of several things asked that did not succeed.
type Failure struct {
	Asked string `json:"asked"` // the argument
	output.ErrorBody
}

// Line is a volume as a line of jsonl.
type Line struct {
	output.Header
	attach.Volume
}

// Lines are volumes as jsonl has them.
func Lines(volumes []attach.Volume) []output.Document {
	lines := make([]output.Document, len(volumes))
	for i := range volumes {
		lines[i] = Line{Volume: volumes[i]}
	}
	return lines
}

// Asked is one argument and how it went.
type Asked struct {
	Arg    string
	Volume attach.Volume
	Err    error
}

// Report prints how it went with all that was asked, text for people, and returns the error the verb ends with: that of the only
// argument; exit code 3 where some succeeded; else holders first, then the first error.
func Report(f *factory.Factory, all []Asked, text func(*output.Text, attach.Volume) error) error {
	res := Result{Volumes: []attach.Volume{}}
	var failed []error
	for _, a := range all {
		if a.Err != nil {
			failed = append(failed, a.Err)
			res.Errors = append(res.Errors, Failure{a.Arg, output.ErrorBody{Code: int(exit.CodeOf(a.Err)), Message: a.Err.Error(), Hint: exit.Hint(a.Err)}})
			continue
		}
		res.Volumes = append(res.Volumes, a.Volume)
		res.Changed = res.Changed || a.Volume.Changed != nil && *a.Volume.Changed
		for _, path := range a.Volume.Missing {
			fmt.Fprintf(f.IO.Err, "hawser: %s: path %s is missing\n", a.Volume.Name, path)
		}
	}
	if len(all) == 1 && len(failed) == 1 {
		return failed[0]
	}
	err := f.Printer().Print(output.View{Doc: res, Lines: Lines(res.Volumes), Text: func(t *output.Text) error {
		for _, v := range res.Volumes {
			if err := text(t, v); err != nil {
				return err
			}
		}
		return nil
	}})
	switch {
	case err != nil:
		return err
	case len(failed) == 0:
		return nil
	case len(failed) == len(all):
		return exit.New(exit.CodeOf(errors.Join(failed...)), fmt.Errorf("none of %d succeeded: %w", len(all), errors.Join(failed...)), "")
	}
	return exit.New(exit.Partial, fmt.Errorf("%d of %d failed: %w", len(failed), len(all), errors.Join(failed...)), "")
}

// State is a volume's state, coloured.
func State(t *output.Text, v attach.Volume) string {
	switch v.State {
	case attach.VolumeLive:
		return t.Good(v.State)
	case attach.VolumeDead, attach.VolumeUnknown:
		return t.Bad(v.State)
	}
	return t.Warn(v.State)
}

// Size is a volume's size for people; a dash where it is not known.
func Size(v attach.Volume) string {
	if v.Size == 0 {
		return "-"
	}
	return size.Format(v.Size)
}

// Paths counts the live paths.
func Paths(v attach.Volume) string {
	live := 0
	for _, p := range v.Paths {
		if p.State == attach.PathLive {
			live++
		}
	}
	return fmt.Sprintf("%d/%d", live, len(v.Paths))
}

// Complete offers the names of what is attached.
func Complete(f *factory.Factory) cobra.CompletionFunc {
	return func(_ *cobra.Command, given []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		store, err := attach.NewStore(StateDir(f))
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		records, _ := store.List()
		var names []cobra.Completion
		for _, r := range records {
			if strings.HasPrefix(r.Name, prefix) && !slices.Contains(given, r.Name) {
				names = append(names, cobra.CompletionWithDesc(r.Name, r.Spec.Target.Name))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
