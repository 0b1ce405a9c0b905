// Package cli is the command line: the root command, and the way from an error to an exit code.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/iostreams"
	"hawser.dev/hawser/cmd/internal/cli/output"
)

// secondSignal is how long after the first one a second signal kills.
const secondSignal = time.Second

// Main runs hawser with the arguments that follow the program's name, and returns its exit code. SIGINT and SIGTERM (and
// SIGHUP, unless started with it ignored) cancel the context; a further one, some time later, kills as usual.
func Main(ctx context.Context, args []string, streams iostreams.Streams) int {
	ctx, stop := notifyContext(ctx)
	defer stop()

	f := factory.New(streams)
	return execute(ctx, f, newRoot(f), args)
}

func execute(ctx context.Context, f *factory.Factory, root *cobra.Command, args []string) int {
	run := &invocation{}
	run.prepare(root)
	root.SetArgs(args)

	err := root.ExecuteContext(ctx)
	if err == nil {
		return int(exit.OK)
	}
	code, hint := exit.CodeOf(err), exit.Hint(err)
	var typed *exit.Error
	switch {
	case !run.started && !errors.As(err, &typed):
		// cobra's own complaints about flags and arguments have no type.
		code = exit.Usage
	case ctx.Err() != nil && (code == exit.Failed || code == exit.Unreachable || errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx))):
		// What failed did so because it was told to stop.
		code = exit.Interrupted
	}
	name := root.Name()
	if run.path != "" {
		name = run.path
	}
	if code == exit.Usage && hint == "" {
		hint = fmt.Sprintf("'%s --help' shows how it is used", name)
	}
	message := oneLine(err.Error())
	if code == exit.Interrupted {
		message, hint = "interrupted: "+message, ""
	}
	if verb := strings.TrimPrefix(name, root.Name()+" "); run.path != "" && verb != root.Name() {
		message = verb + ": " + message
	}
	format := f.Format()
	if !run.started {
		format = formatOf(args, format)
	}
	output.PrintError(f.IO.Err, format, f.IO.ColorErr(), output.ErrorBody{Code: int(code), Message: message, Hint: oneLine(hint)})
	return int(code)
}

func notifyContext(ctx context.Context) (context.Context, context.CancelFunc) {
	signals := []os.Signal{}
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		// A shell starts what it puts in the background with SIGINT ignored, nohup with SIGHUP: leave it so.
		if !signal.Ignored(s) {
			signals = append(signals, s)
		}
	}
	ctx, stop := signal.NotifyContext(ctx, signals...)
	// Whoever signals a process and then its group, as timeout(1) does, means it once.
	context.AfterFunc(ctx, func() { time.AfterFunc(secondSignal, stop) })
	return ctx, stop
}

// An invocation knows how far cobra came.
type invocation struct {
	path    string // of the command found
	started bool   // its run function was reached: flags and arguments were fine
}

// prepare wraps every command so that errors of arguments and of running can be told apart and name their command.
func (r *invocation) prepare(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		r.path = c.CommandPath()
		return exit.New(exit.Usage, flagError(err), "")
	})
	if args := cmd.Args; args != nil {
		cmd.Args = func(c *cobra.Command, a []string) error {
			r.path = c.CommandPath()
			return args(c, a)
		}
	}
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(c *cobra.Command, a []string) error {
			r.path, r.started = c.CommandPath(), true
			return run(c, a)
		}
	}
	for _, c := range cmd.Commands() {
		r.prepare(c)
	}
}

// flagError words pflag's errors as the rest of hawser does: the flag, the value, what is wrong.
func flagError(err error) error {
	var value *pflag.InvalidValueError
	if errors.As(err, &value) {
		if cause := value.Unwrap(); strings.Contains(cause.Error(), strconv.Quote(value.GetValue())) {
			return fmt.Errorf("--%s: %w", value.GetFlag().Name, cause)
		}
		return fmt.Errorf("--%s %q: %w", value.GetFlag().Name, value.GetValue(), value.Unwrap())
	}
	return err
}

// formatOf finds the format in arguments that were never parsed to their end.
func formatOf(args []string, otherwise output.Format) output.Format {
	for i, a := range args {
		var v string
		switch {
		case a == "--":
			return otherwise
		case a == "--json":
			v = string(output.FormatJSON)
		case (a == "-o" || a == "--output") && i+1 < len(args):
			v = args[i+1]
		case strings.HasPrefix(a, "--output="):
			v = strings.TrimPrefix(a, "--output=")
		case strings.HasPrefix(a, "-o"):
			v = strings.TrimPrefix(strings.TrimPrefix(a, "-o"), "=")
		}
		if slices.Contains(output.Formats(), output.Format(v)) {
			otherwise = output.Format(v)
		}
	}
	return otherwise
}

// oneLine joins what cobra and errors.Join spread over lines.
func oneLine(s string) string {
	var parts []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}
