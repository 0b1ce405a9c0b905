// Package completion is 'hawser completion'.
package completion

import (
	"io"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
)

// Shells lists the shells there are scripts for.
func Shells() []string { return []string{"bash", "zsh", "fish", "powershell"} }

// Write writes the completion script for a shell, which asks hawser itself for what it completes.
func Write(root *cobra.Command, w io.Writer, shell string) error {
	switch shell {
	case "bash":
		return root.GenBashCompletionV2(w, true)
	case "zsh":
		return root.GenZshCompletion(w)
	case "fish":
		return root.GenFishCompletion(w, true)
	case "powershell":
		return root.GenPowerShellCompletionWithDesc(w)
	}
	return exit.Usagef("no completion for shell %q: it must be bash, zsh, fish or powershell", shell)
}

// New returns the command.
func New(f *factory.Factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print the completion script for a shell",
		Long: `Prints a script that completes verbs, flags and live values in the shell named. Packages install it; by hand:

  bash        hawser completion bash > /etc/bash_completion.d/hawser
  zsh         hawser completion zsh > "${fpath[1]}/_hawser"
  fish        hawser completion fish > ~/.config/fish/completions/hawser.fish
  powershell  hawser completion powershell | Out-String | Invoke-Expression`,
		Example:   "  source <(hawser completion bash)",
		ValidArgs: Shells(),
		Args:      factory.ExactArgs("the shell's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return Write(cmd.Root(), f.IO.Out, args[0])
		},
	}
	exit.Document(cmd)
	return cmd
}
