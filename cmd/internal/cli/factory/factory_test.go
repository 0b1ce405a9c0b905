package factory

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/cmd/internal/cli/exit"
)

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cmd := &cobra.Command{Use: "x", SilenceErrors: true, SilenceUsage: true}
		var limit Timeout
		limit.AddFlag(cmd, 10*time.Second)
		for _, bad := range []string{"5", "-1s", "soon", ""} {
			if err := cmd.Flags().Set("timeout", bad); err == nil {
				t.Errorf("%q was taken", bad)
			}
		}
		if got := cmd.Flags().Lookup("timeout").DefValue; got != "10s" {
			t.Errorf("default is %s", got)
		}
		if err := cmd.Flags().Set("timeout", "2s"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := limit.Context(context.Background())
		defer cancel()
		<-ctx.Done()
		err := Explain(ctx, ctx.Err())
		if err.Error() != "gave up after 2s (--timeout)" || exit.CodeOf(err) != exit.Unreachable || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, code %d", err, exit.CodeOf(err))
		}
		other := errors.New("refused")
		if Explain(ctx, other) != other || Explain(ctx, nil) != nil {
			t.Error("another error was replaced")
		}
	})
}
