package main

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hawser.dev/hawser/cmd/internal/cli"
	"hawser.dev/hawser/cmd/internal/cli/completion"
	"hawser.dev/hawser/cmd/internal/cli/exit"
)

// folders hold nothing but files that are made here.
var folders = []string{"completions", "docs/man"}

// files returns path below the top of the source tree → contents.
func files() map[string][]byte {
	files := map[string][]byte{"docs/exit-codes.md": codes()}
	scripts(files)
	pages(files)
	return files
}

// codes writes the table of exit codes.
func codes() []byte {
	var b bytes.Buffer
	b.WriteString("# Exit codes\n\nA script may rely on these. Where several causes come together, 9 comes first. A later version may add codes: take an\n" +
		"unknown one for a failure.\n\n| code | meaning | causes |\n|--:|---|---|\n")
	for _, e := range exit.Table() {
		fmt.Fprintf(&b, "| %d | %s | %s |\n", e.Code, e.Meaning, e.Causes)
	}
	return b.Bytes()
}

// scripts adds the completion scripts, each under the name its shell looks for.
func scripts(files map[string][]byte) {
	names := map[string]string{"bash": "hawser.bash", "zsh": "_hawser", "fish": "hawser.fish", "powershell": "hawser.ps1"}
	for _, shell := range completion.Shells() {
		var b bytes.Buffer
		if err := completion.Write(cli.Root(), &b, shell); err != nil {
			panic(err) // the shells are completion's own
		}
		files["completions/"+names[shell]] = b.Bytes()
	}
}

// pages adds a man page for every command and topic that help shows.
func pages(files map[string][]byte) {
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		section := "1"
		if c.IsAdditionalHelpTopicCommand() {
			section = "7"
		}
		files["docs/man/"+pageName(c)+"."+section] = page(c, section)
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(cli.Root())
}

func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// page writes the man page of one command (man(7) macros).
func page(c *cobra.Command, section string) []byte {
	var b bytes.Buffer
	// The date is fixed: the same commands always make the same pages.
	fmt.Fprintf(&b, ".TH %q %q \"2026\" \"hawser\" \"hawser manual\"\n.SH NAME\n%s \\- %s\n",
		strings.ToUpper(pageName(c)), section, roff(pageName(c)), roff(c.Short))
	if c.Runnable() {
		fmt.Fprintf(&b, ".SH SYNOPSIS\n\\fB%s\\fR\n", roff(c.UseLine()))
	}
	b.WriteString(".SH DESCRIPTION\n")
	prose(&b, c.Long)
	if c.HasAvailableSubCommands() {
		b.WriteString(".SH VERBS\n")
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(&b, ".TP\n\\fB%s\\fR\n%s\n", roff(sub.Name()), roff(sub.Short))
			}
		}
	}
	if c.Runnable() {
		c.InitDefaultHelpFlag()
		flags(&b, "OPTIONS", c.NonInheritedFlags())
		flags(&b, "OPTIONS OF EVERY VERB", c.InheritedFlags())
	}
	if c.Example != "" {
		b.WriteString(".SH EXAMPLES\n")
		prose(&b, c.Example)
	}
	if codes := exit.Documented(c); codes != nil {
		b.WriteString(".SH EXIT STATUS\n")
		for _, code := range codes {
			fmt.Fprintf(&b, ".TP\n\\fB%d\\fR\n%s\n", code, roff(code.String()))
		}
	}
	b.WriteString(".SH SEE ALSO\n")
	var see []string
	if p := c.Parent(); p != nil {
		see = append(see, fmt.Sprintf("\\fB%s\\fR(1)", roff(pageName(p))))
	}
	for _, sub := range c.Commands() {
		switch {
		case sub.IsAvailableCommand():
			see = append(see, fmt.Sprintf("\\fB%s\\fR(1)", roff(pageName(sub))))
		case sub.IsAdditionalHelpTopicCommand():
			see = append(see, fmt.Sprintf("\\fB%s\\fR(7)", roff(pageName(sub))))
		}
	}
	b.WriteString(strings.Join(see, ", ") + "\n")
	return b.Bytes()
}

func flags(b *bytes.Buffer, title string, set *pflag.FlagSet) {
	if !set.HasAvailableFlags() {
		return
	}
	fmt.Fprintf(b, ".SH %s\n", title)
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		word, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		fmt.Fprintf(b, ".TP\n\\fB%s\\fR", roff(name))
		if word != "" && word != "count" {
			fmt.Fprintf(b, " \\fI%s\\fR", roff(word))
		}
		fmt.Fprintf(b, "\n%s\n", roff(usage))
	})
}

// prose writes paragraphs; runs of indented lines are kept as they are.
func prose(b *bytes.Buffer, text string) {
	literal := false
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		indented := strings.HasPrefix(line, "  ")
		if line != "" && indented != literal {
			b.WriteString(map[bool]string{true: ".PP\n.nf\n", false: ".fi\n.PP\n"}[indented])
			literal = indented
		}
		switch {
		case line == "" && literal:
			b.WriteByte('\n')
		case line == "":
			b.WriteString(".PP\n")
		default:
			b.WriteString(roff(line) + "\n")
		}
	}
	if literal {
		b.WriteString(".fi\n")
	}
}

// roff escapes what groff would read as its own.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	var b strings.Builder
	for _, r := range s {
		if r < 128 {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\[u%04X]`, r)
		}
	}
	return b.String()
}
