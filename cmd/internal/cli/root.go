package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hawser.dev/hawser/cmd/internal/cli/agent"
	"hawser.dev/hawser/cmd/internal/cli/attach"
	"hawser.dev/hawser/cmd/internal/cli/completion"
	"hawser.dev/hawser/cmd/internal/cli/demo"
	"hawser.dev/hawser/cmd/internal/cli/detach"
	"hawser.dev/hawser/cmd/internal/cli/discover"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/host"
	"hawser.dev/hawser/cmd/internal/cli/iostreams"
	"hawser.dev/hawser/cmd/internal/cli/list"
	"hawser.dev/hawser/cmd/internal/cli/probe"
	"hawser.dev/hawser/cmd/internal/cli/show"
	"hawser.dev/hawser/cmd/internal/cli/target"
	"hawser.dev/hawser/cmd/internal/cli/version"
)

const (
	groupVolumes = "volumes"
	groupHost    = "host"
	groupTarget  = "target"
	groupOther   = "other"
)

// Root returns the tree of commands as it is for nobody in particular, for what is generated from it.
func Root() *cobra.Command { return newRoot(factory.New(iostreams.Streams{})) }

// newRoot builds the whole tree of commands. Each verb is one package with a New function; add it to its group here.
func newRoot(f *factory.Factory) *cobra.Command {
	root := &cobra.Command{
		Use:   "hawser VERB",
		Short: "Make a host fast to its block storage",
		Long: `hawser discovers volumes over NVMe/TCP, attaches them, keeps their paths alive, and lets them go
without losing a byte. In the same binary, 'hawser target' exports local drives.

TARGET is nvme://HOST[:PORT]/NQN[#NAMESPACE], where NAMESPACE is a UUID, NGUID, EUI-64 or nsid=N;
PORTAL is HOST[:PORT]. IPv6 addresses stand in brackets.`,
		Example: `  hawser demo
  hawser discover 192.0.2.10
  hawser attach nvme://192.0.2.10/nqn.2026-01.org.example:vol1`,
		Version:       version.Read().Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          knownVerb,
		RunE:          needVerb,
		// Every command passes here before it runs.
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return f.Finalize(cmd) },
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetIn(f.IO.In)
	root.SetOut(f.IO.Out)
	root.SetErr(f.IO.Err)
	root.SetVersionTemplate("hawser {{.Version}}\n")
	root.SetUsageTemplate(usageTemplate)
	cobra.AddTemplateFunc("exitCodes", exitCodes)
	f.AddGlobalFlags(root)
	root.Flags().SortFlags = false

	root.AddGroup(
		&cobra.Group{ID: groupVolumes, Title: "Volumes:"},
		&cobra.Group{ID: groupTarget, Title: "Exporting:"},
		&cobra.Group{ID: groupHost, Title: "This host:"},
		&cobra.Group{ID: groupOther, Title: "Other:"},
	)
	add := func(group string, verbs ...*cobra.Command) {
		for _, v := range verbs {
			v.GroupID = group
		}
		root.AddCommand(verbs...)
	}
	add(groupTarget, target.New(f))
	add(groupVolumes, demo.New(f), discover.New(f), probe.New(f), attach.New(f), detach.New(f), list.New(f), show.New(f))
	add(groupHost, host.New(f))
	add(groupOther, version.New(f), completion.New(f), agent.New(f))
	root.SetHelpCommand(newHelp())
	root.SetHelpCommandGroupID(groupOther)
	root.InitDefaultHelpCmd()
	root.AddCommand(topics()...)

	finish(root)
	return root
}

// finish gives commands that only hold others the behaviour of the root, and the values of flags their completion.
func finish(cmd *cobra.Command) {
	completeFlags(cmd)
	for _, c := range cmd.Commands() {
		if c.HasSubCommands() && c.RunE == nil {
			c.Args, c.RunE = knownVerb, needVerb
			exit.Document(c)
		}
		finish(c)
	}
}

// completeFlags has the shell offer the words that a flag takes, and files only where it takes one.
func completeFlags(cmd *cobra.Command) {
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if _, ok := cmd.GetFlagCompletionFunc(f.Name); ok {
			return
		}
		complete := cobra.NoFileCompletions
		if words, ok := f.Value.(interface{ Choices() []string }); ok {
			complete = cobra.FixedCompletions(words.Choices(), cobra.ShellCompDirectiveNoFileComp)
		} else if word, _ := pflag.UnquoteUsage(f); strings.Contains("SOCKET FOLDER DEVICE @FILE PATH[,OPTION…]", word) && word != "" {
			return
		}
		// The flag exists and has no function yet, which is all that can be wrong.
		_ = cmd.RegisterFlagCompletionFunc(f.Name, complete)
	})
}

// knownVerb refuses arguments of a command that takes only subcommands: cobra hands it those it does not know.
func knownVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := fmt.Sprintf("'%s --help' lists the verbs", cmd.CommandPath())
	if cmd.SuggestionsMinimumDistance == 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return exit.New(exit.Usage, fmt.Errorf("unknown verb %q", args[0]), hint)
}

// newHelp is 'hawser help': cobra's own ends with 0 for what it does not know.
func newHelp() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "help [VERB | TOPIC]",
		Short:   "Explain a verb or a topic",
		Long:    "Explains a verb, as 'hawser VERB --help' does, or one of the topics that 'hawser --help' ends with.",
		Example: "  hawser help exit-codes\n  hawser help target serve",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return exit.New(exit.Usage, fmt.Errorf("no verb or topic %q", strings.Join(args, " ")), "'hawser --help' lists them")
			}
			c.InitDefaultHelpFlag()
			return c.Help()
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			c, _, err := cmd.Root().Find(args)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []cobra.Completion
			for _, sub := range c.Commands() {
				if (sub.IsAvailableCommand() || sub.IsAdditionalHelpTopicCommand()) && strings.HasPrefix(sub.Name(), prefix) {
					names = append(names, cobra.CompletionWithDesc(sub.Name(), sub.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
	exit.Document(cmd)
	return cmd
}

// needVerb answers a call without a verb with help, and with the code of a call that asked for nothing.
func needVerb(cmd *cobra.Command, _ []string) error {
	cmd.SetOut(cmd.ErrOrStderr())
	if err := cmd.Help(); err != nil {
		return err
	}
	return exit.New(exit.Usage, fmt.Errorf("a verb is missing"), "the verbs are listed above")
}

const usageTemplate = `Usage:{{if .Runnable}}
  {{.UseLine}}{{end}}{{if .HasAvailableSubCommands}}{{$cmds := .Commands}}{{if eq (len .Groups) 0}}

Verbs:{{range $cmds}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{else}}{{range $group := .Groups}}

{{.Title}}{{range $cmds}}{{if and (eq .GroupID $group.ID) (or .IsAvailableCommand (eq .Name "help"))}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{end}}{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableInheritedFlags}}

Flags of every verb:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{with exitCodes .}}

Exit codes:
{{.}}{{end}}{{if .HasHelpSubCommands}}

Topics:{{range .Commands}}{{if .IsAdditionalHelpTopicCommand}}
  {{rpad .CommandPath .CommandPathPadding}} {{.Short}}{{end}}{{end}}{{end}}
`

// exitCodes renders the codes that a command documents.
func exitCodes(cmd *cobra.Command) string {
	var b strings.Builder
	for i, c := range exit.Documented(cmd) {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "  %3d  %s", c, c)
	}
	return b.String()
}
