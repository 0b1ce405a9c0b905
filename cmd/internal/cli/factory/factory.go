// Package factory hands every verb what it depends on. Whatever costs something is a function, called when it is needed:
// help opens no file.
package factory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hawser.dev/hawser/attach/hostid"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/iostreams"
	"hawser.dev/hawser/cmd/internal/cli/output"
)

// A Factory is shared by all commands of one invocation.
type Factory struct {
	IO iostreams.Streams

	// HostIDs finds the identity of the user who calls.
	HostIDs func() *hostid.Store

	flags globalFlags
}

type globalFlags struct {
	output    string
	json      bool
	verbose   int
	logFormat string
	color     string
}

// New returns the Factory of a process.
func New(streams iostreams.Streams) *Factory {
	return &Factory{
		IO:      streams,
		HostIDs: func() *hostid.Store { return hostid.New(os.Geteuid(), streams.LookupEnv) },
	}
}

// AddGlobalFlags defines the flags that every command has.
func (f *Factory) AddGlobalFlags(root *cobra.Command) {
	var formats []string
	for _, x := range output.Formats() {
		formats = append(formats, string(x))
	}
	colors := []string{string(iostreams.ColorAuto), string(iostreams.ColorAlways), string(iostreams.ColorNever)}
	logs := []string{"text", "json"}

	fl := root.PersistentFlags()
	fl.VarP(OneOf(&f.flags.output, formats...), "output", "o", "print results as "+strings.Join(formats, ", "))
	fl.BoolVar(&f.flags.json, "json", false, "the same as --output json")
	fl.CountVarP(&f.flags.verbose, "verbose", "v", "log what is done to stderr; twice for more")
	fl.Var(OneOf(&f.flags.logFormat, logs...), "log-format", "log as text or json")
	fl.Var(OneOf(&f.flags.color, colors...), "color", "colour: auto, always, never")
}

// Finalize checks the global flags against each other and makes them count. It runs before each command.
func (f *Factory) Finalize(cmd *cobra.Command) error {
	if f.flags.json && cmd.Flags().Changed("output") && f.flags.output != string(output.FormatJSON) {
		return exit.Usagef("--json and --output %s contradict each other: give one of them", f.flags.output)
	}
	f.IO.SetColor(iostreams.ColorMode(f.flags.color))
	return nil
}

// Format is what results are printed as.
func (f *Factory) Format() output.Format {
	if f.flags.json {
		return output.FormatJSON
	}
	return output.Format(f.flags.output)
}

// Printer prints results to stdout.
func (f *Factory) Printer() *output.Printer {
	return output.NewPrinter(f.IO.Out, f.Format(), f.IO.ColorOut())
}

// Logger logs to stderr: warnings, by -v what is done, by -vv every detail.
func (f *Factory) Logger() *slog.Logger {
	level := slog.LevelWarn
	switch {
	case f.flags.verbose == 1:
		level = slog.LevelInfo
	case f.flags.verbose > 1:
		level = slog.LevelDebug
	}
	opts := &slog.HandlerOptions{Level: level}
	if f.flags.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(f.IO.Err, opts))
	}
	return slog.New(slog.NewTextHandler(f.IO.Err, opts))
}

// A choice is a flag value that must be one of a few words; the first is the default.
type choice struct {
	value  *string
	values []string
}

// OneOf returns a flag value restricted to values; *p is set to the first of them.
func OneOf(p *string, values ...string) pflag.Value {
	*p = values[0]
	return &choice{p, values}
}

// Choices lists the words, for completion.
func (c *choice) Choices() []string { return c.values }

func (c *choice) String() string { return *c.value }
func (c *choice) Type() string   { return "WORD" }

func (c *choice) Set(s string) error {
	if !slices.Contains(c.values, s) {
		return fmt.Errorf("must be one of %s", strings.Join(c.values, ", "))
	}
	*c.value = s
	return nil
}

// A Timeout is the flag --timeout of a verb: how long all of its work may take.
type Timeout struct{ d time.Duration }

// AddFlag defines --timeout with its default.
func (t *Timeout) AddFlag(cmd *cobra.Command, def time.Duration) {
	t.d = def
	cmd.Flags().Var((*timeoutValue)(t), "timeout", "give up after this `DURATION` (10s, 2m; 0: never)")
}

// Context returns a context that ends with the timeout; its cause names the flag.
func (t *Timeout) Context(ctx context.Context) (context.Context, context.CancelFunc) {
	if t.d == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, t.d, &TimeoutError{t.d})
}

// TimeoutError is the cause of a context that a Timeout ended.
type TimeoutError struct{ After time.Duration }

func (e *TimeoutError) Error() string { return fmt.Sprintf("gave up after %v (--timeout)", e.After) }

// Is makes it a context.DeadlineExceeded.
func (e *TimeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// Unwrap leads to the exit code.
func (e *TimeoutError) Unwrap() error { return context.DeadlineExceeded }

// Explain replaces the bare "context deadline exceeded" of err by the cause that ctx knows.
func Explain(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	var timeout *TimeoutError
	if err == nil || !errors.As(cause, &timeout) || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if err == context.DeadlineExceeded {
		return timeout
	}
	if errors.As(err, new(*TimeoutError)) {
		return err
	}
	return exit.New(exit.Unreachable, fmt.Errorf("%w: %v", timeout, err), exit.Hint(err))
}

type timeoutValue Timeout

func (v *timeoutValue) String() string { return v.d.String() }
func (v *timeoutValue) Type() string   { return "DURATION" }

func (v *timeoutValue) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return errors.New("must be a duration such as 500ms, 10s or 2m")
	}
	v.d = d
	return nil
}
