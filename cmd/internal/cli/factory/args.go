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

// AtMost takes an argument for each name, or fewer.
func AtMost(names ...string) cobra.PositionalArgs {
	exact := ExactArgs(names...)
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return nil
		}
		return exact(cmd, args)
	}
}

func missing(args, names []string) error {
	if len(args) < len(names) {
		return exit.New(exit.Usage, fmt.Errorf("%s is missing", names[len(args)]), "")
	}
	return nil
}
