// Package version is 'hawser version'.
package version

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/output"
)

// Info says which hawser this is.
type Info struct {
	output.Header
	Version  string `json:"version"`            // of the module; "devel" when built from a work tree
	Revision string `json:"revision,omitempty"` // of the commit; ends in "+dirty" when there were changes on top
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
}

// Read returns what the build recorded.
func Read() Info {
	info := Info{Version: "devel", Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return info
	}
	if v := build.Main.Version; v != "" && v != "(devel)" {
		info.Version = v
	}
	for _, s := range build.Settings {
		switch {
		case s.Key == "vcs.revision":
			info.Revision = s.Value + info.Revision
		case s.Key == "vcs.modified" && s.Value == "true":
			info.Revision += "+dirty"
		}
	}
	return info
}

// New returns the command.
func New(f *factory.Factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Say which hawser this is",
		Long:    "Prints the version, the commit it was built from, and the Go release and platform it was built with.",
		Example: "  hawser version\n  hawser version -o json",
		Args:    factory.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			info := Read()
			return f.Printer().Print(output.View{Doc: info, Text: func(t *output.Text) error {
				t.Printf("hawser %s\n", info.Version)
				if info.Revision != "" {
					t.Printf("commit %s\n", info.Revision)
				}
				t.Printf("%s %s/%s\n", info.Go, info.OS, info.Arch)
				return nil
			}})
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	exit.Document(cmd)
	return cmd
}
