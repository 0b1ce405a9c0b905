package factory

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/cmd/internal/cli/exit"
)

// NoArgs refuses arguments.
func NoArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return exit.Usagef("%q: no argument is expected here", args[0])
	}
	return nil
}

// ExactArgs asks for one argument for each name, in order.
func ExactArgs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > len(names) {
			return exit.Usagef("%q: expected is only %s", args[len(names)], strings.Join(names, " "))
		}
		return missing(args, names)
	}
}

// AtLeastOne asks for one argument or more.
func AtLeastOne(name string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error { return missing(args, []string{name}) }
}

func missing(args, names []string) error {
	if len(args) < len(names) {
		return exit.New(exit.Usage, fmt.Errorf("%s is missing", names[len(args)]), "")
	}
	return nil
}
