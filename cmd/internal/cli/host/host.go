// Package host is 'hawser host': the identity that targets know this host by.
package host

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/attach/hostid"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/output"
	"hawser.dev/hawser/nvme"
)

// New returns the command with its verbs.
func New(f *factory.Factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "host",
		Short: "Show, create or check the identity of this host",
		Long: `Targets know a host by its host NQN, and kernel and targets tie that to one host ID.

They are read from /etc/nvme/hostnqn and /etc/nvme/hostid, as nvme-cli does. A user who is not root may have an own pair,
in $XDG_STATE_HOME/hawser or ~/.local/state/hawser. Where there is no file, root's identity is the UUID that the
machine's firmware has, and any other is derived from /etc/machine-id and the user.`,
		Example: "  hawser host show",
	}
	cmd.AddCommand(newShow(f), newCreate(f), newCheck(f))
	return cmd
}

// Identity is what is known of the identity, as it is printed.
type Identity struct {
	HostNQN       nvme.NQN  `json:"hostNQN"`
	HostID        nvme.UUID `json:"hostID"`
	HostNQNSource string    `json:"hostNQNSource"`
	HostIDSource  string    `json:"hostIDSource"`
	Permanent     bool      `json:"permanent"`
}

func identity(i hostid.Identity) Identity {
	return Identity{i.NQN, i.ID, i.NQNSource, i.IDSource, i.Permanent}
}

func (i Identity) text(t *output.Text) {
	t.Fields(
		[2]string{"host NQN", string(i.HostNQN)}, [2]string{"from", i.HostNQNSource},
		[2]string{"host ID", i.HostID.String()}, [2]string{"from", i.HostIDSource},
	)
}

// Shown is what 'host show' prints.
type Shown struct {
	output.Header
	Identity
}

func newShow(f *factory.Factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Print host NQN and host ID, and where they come from",
		Long:    "Prints the identity that 'attach', 'discover' and 'probe' use when they are given none.",
		Example: "  hawser host show\n  hawser host show -o json",
		Args:    factory.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			i, err := f.HostIDs().Load()
			if err != nil {
				return explain(err)
			}
			doc := Shown{Identity: identity(i)}
			return f.Printer().Print(output.View{Doc: doc, Text: func(t *output.Text) error {
				doc.text(t)
				return nil
			}})
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	exit.Document(cmd)
	return cmd
}

type createOptions struct {
	factory.HostFlags
	force, check bool
}

// Created is what 'host create' prints.
type Created struct {
	output.Header
	Changed bool `json:"changed"`
	Identity
}

func newCreate(f *factory.Factory) *cobra.Command {
	opts := &createOptions{}
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Write host NQN and host ID to their files",
		Long: `Makes the identity permanent: what is given, else what 'host show' prints. Of a lone host ID or host NQN of the uuid form
the other is made. Files that say something else already are kept, unless --force is given: targets know this host by them.`,
		Example: "  hawser host create\n  hawser host create --hostid 6f3c1d9e-2b7a-4c55-9d0e-1a2b3c4d5e6f",
		Args:    factory.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return create(f, opts)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	fl := cmd.Flags()
	opts.AddFlags(cmd)
	fl.BoolVar(&opts.force, "force", false, "replace an identity that is there")
	fl.BoolVar(&opts.check, "check", false, "say what would be done, and change nothing")
	exit.Document(cmd, exit.Permission, exit.InUse)
	return cmd
}

func create(f *factory.Factory, opts *createOptions) error {
	i, changed, err := f.HostIDs().Create(opts.NQN, opts.ID, opts.force, opts.check)
	if err != nil {
		return explain(err)
	}
	doc := Created{Changed: changed, Identity: identity(i)}
	return f.Printer().Print(output.View{Doc: doc, Text: func(t *output.Text) error {
		doc.text(t)
		switch {
		case !changed:
			t.Printf("%s\n", t.Good("unchanged"))
		case opts.check:
			t.Printf("%s\n", t.Warn("would be written"))
		default:
			t.Printf("%s\n", t.Good("written"))
		}
		return nil
	}})
}

// Checked is what 'host check' prints.
type Checked struct {
	output.Header
	OK       bool      `json:"ok"`
	Identity *Identity `json:"identity,omitempty"` // missing when it cannot be read
	Findings []Finding `json:"findings"`
}

// Finding is one thing to know about the identity.
type Finding struct {
	Severity string `json:"severity"` // "problem" or "remark"
	What     string `json:"what"`
	Remedy   string `json:"remedy,omitempty"`
}

func newCheck(f *factory.Factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check that host NQN and host ID will be accepted",
		Long: `Looks for what makes a kernel or a target refuse this host or take it for another one: files that cannot be read, a NQN and
an ID that do not belong together, connections that are up with another identity. Ends with 1 when there is a problem.`,
		Example: "  hawser host check",
		Args:    factory.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return check(f)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	exit.Document(cmd)
	return cmd
}

func check(f *factory.Factory) error {
	i, found, err := f.HostIDs().Check()
	if err != nil {
		return explain(err)
	}
	doc := Checked{Findings: make([]Finding, 0, len(found))}
	if i.NQN != "" {
		known := identity(i)
		doc.Identity = &known
	}
	problems := 0
	for _, x := range found {
		severity := "remark"
		if x.Problem {
			severity = "problem"
			problems++
		}
		doc.Findings = append(doc.Findings, Finding{severity, x.What, x.Remedy})
	}
	doc.OK = problems == 0
	err = f.Printer().Print(output.View{Doc: doc, Text: func(t *output.Text) error {
		if doc.Identity != nil {
			doc.Identity.text(t)
		}
		for _, x := range doc.Findings {
			word := t.Warn("remark")
			if x.Severity == "problem" {
				word = t.Bad("problem")
			}
			t.Printf("%s: %s\n", word, x.What)
			if x.Remedy != "" {
				t.Printf("  %s\n", x.Remedy)
			}
		}
		if doc.OK {
			t.Printf("%s\n", t.Good("ok"))
		}
		return nil
	}})
	if err == nil && problems > 0 {
		err = fmt.Errorf("%d of %d findings are problems", problems, len(found))
	}
	return err
}

// explain gives the errors of the identity their codes and remedies.
func explain(err error) error {
	var exists *hostid.ExistsError
	if errors.As(err, &exists) {
		return exit.New(exit.InUse, err, "--force replaces it; targets that allow the old host NQN must then be told the new one")
	}
	var file *hostid.Error
	if !errors.As(err, &file) {
		return err
	}
	switch {
	case exit.CodeOf(err) == exit.Permission:
		return exit.WithHint(err, "run it as root")
	case file.Op == "read":
		return exit.WithHint(err, "mend the file, or 'hawser host create --force' writes it anew")
	}
	return err
}
