package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/iostreams"
)

func testRoot(t *testing.T) *cobra.Command {
	t.Helper()
	streams, _, _ := iostreams.Test(nil)
	root := newRoot(factory.New(streams))
	root.InitDefaultHelpCmd()
	return root
}

func walk(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, c := range cmd.Commands() {
		walk(c, visit)
	}
}

// Every command that can be run explains itself, and takes its arguments and flags as all others do.
func TestEveryCommand(t *testing.T) {
	known := make(map[exit.Code]bool)
	for _, e := range exit.Table() {
		known[e.Code] = true
	}
	walk(testRoot(t), func(c *cobra.Command) {
		path := c.CommandPath()
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || c.Long == "" {
			t.Errorf("%s: Short must be a phrase without a period, Long must be there", path)
		}
		if !c.Runnable() {
			if !c.IsAdditionalHelpTopicCommand() {
				t.Errorf("%s: neither a verb nor a topic", path)
			}
			return
		}
		if c.RunE == nil || c.Run != nil {
			t.Errorf("%s: must have RunE", path)
		}
		if c.Hidden {
			return
		}
		if c.Example == "" {
			t.Errorf("%s: no Example", path)
		}
		for line := range strings.Lines(c.Example) {
			if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: example %q is not indented by two spaces", path, line)
			}
		}
		codes := exit.Documented(c)
		if len(codes) == 0 && c.HasParent() {
			t.Errorf("%s: exit codes are not documented", path)
		}
		for _, code := range codes {
			if !known[code] {
				t.Errorf("%s: exit code %d is not in the table", path, code)
			}
		}
		if c.HasParent() && !c.Parent().HasParent() && c.GroupID == "" {
			t.Errorf("%s: in no group", path)
		}
		seen := make(map[string]string)
		visit := func(f *pflag.Flag) {
			if f.Usage == "" || strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%s: --%s: usage must be a phrase without a period", path, f.Name)
			}
			if f.Shorthand == "" {
				return
			}
			if other := seen[f.Shorthand]; other != "" && other != f.Name {
				t.Errorf("%s: -%s is both --%s and --%s", path, f.Shorthand, f.Name, other)
			}
			seen[f.Shorthand] = f.Name
		}
		c.InitDefaultHelpFlag()
		c.LocalFlags().VisitAll(visit)
		c.InheritedFlags().VisitAll(visit)
	})
}

func TestHelpListsExitCodes(t *testing.T) {
	streams, out, errOut := iostreams.Test(nil)
	if code := Main(context.Background(), []string{"help", "exit-codes"}, streams); code != 0 {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	for _, e := range exit.Table() {
		if want := fmt.Sprintf("%3d  %s", e.Code, e.Meaning); !strings.Contains(out.String(), want) {
			t.Errorf("missing %q in\n%s", want, out)
		}
	}
}

// What a command returns becomes one line and one code.
func TestErrors(t *testing.T) {
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	for _, tc := range []struct {
		name string
		args []string
		ctx  context.Context
		err  error
		code exit.Code
		text string
	}{
		{name: "plain", err: errors.New("it broke"), code: exit.Failed, text: "hawser: test: it broke\n"},
		{name: "lines", err: errors.Join(errors.New("one"), errors.New("two")), code: exit.Failed, text: "hawser: test: one; two\n"},
		{name: "hint", err: exit.New(exit.InUse, errors.New("busy"), "wait"), code: exit.InUse, text: "hawser: test: busy\nhawser: hint: wait\n"},
		{name: "wrapped", err: fmt.Errorf("x: %w", exit.New(exit.Auth, errors.New("no key"), "")), code: exit.Auth, text: "hawser: test: x: no key\n"},
		{name: "in use first", err: errors.Join(exit.Errorf(exit.Unreachable, "a"), exit.Errorf(exit.InUse, "b")), code: exit.InUse, text: "hawser: test: a; b\n"},
		{name: "permission", err: fmt.Errorf("open /x: %w", fs.ErrPermission), code: exit.Permission, text: "hawser: test: open /x: permission denied\n"},
		{name: "deadline", err: context.DeadlineExceeded, code: exit.Unreachable, text: "hawser: test: context deadline exceeded\n"},
		{name: "interrupted", ctx: canceled, err: fmt.Errorf("reading: %w", context.Canceled), code: exit.Interrupted, text: "hawser: test: interrupted: reading: context canceled\n"},
		{name: "stopped", ctx: canceled, err: errors.New("gave way"), code: exit.Interrupted, text: "hawser: test: interrupted: gave way\n"},
		{name: "stopped while it waited", ctx: canceled, err: exit.Errorf(exit.Unreachable, "reset"), code: exit.Interrupted, text: "hawser: test: interrupted: reset\n"},
		{name: "stopped with a cause", ctx: canceled, err: exit.Errorf(exit.InUse, "busy"), code: exit.InUse, text: "hawser: test: busy\n"},
		{name: "json", args: []string{"-o", "json"}, err: exit.New(exit.NotFound, errors.New("no <x>"), "look"), code: exit.NotFound,
			text: `{"schemaVersion":1,"error":{"code":5,"message":"test: no <x>","hint":"look"}}` + "\n"},
		{name: "flag", args: []string{"--nope"}, code: exit.Usage, text: "hawser: test: unknown flag: --nope\nhawser: hint: 'hawser test --help' shows how it is used\n"},
		{name: "flag before format", args: []string{"--nope", "--output=yaml"}, code: exit.Usage,
			text: `{"schemaVersion":1,"error":{"code":2,"message":"test: unknown flag: --nope","hint":"'hawser test --help' shows how it is used"}}` + "\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			streams, out, errOut := iostreams.Test(nil)
			f := factory.New(streams)
			root := newRoot(f)
			root.AddCommand(&cobra.Command{Use: "test", RunE: func(*cobra.Command, []string) error { return tc.err }})
			ctx := tc.ctx
			if ctx == nil {
				ctx = context.Background()
			}
			code := execute(ctx, f, root, append([]string{"test"}, tc.args...))
			if code != int(tc.code) || errOut.String() != tc.text || out.Len() != 0 {
				t.Errorf("got %d %q (stdout %q), want %d %q", code, errOut, out, tc.code, tc.text)
			}
		})
	}
}
