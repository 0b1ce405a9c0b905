package agent

import (
	"context"
	"errors"
	"log/slog"
	"os/exec"
	"syscall"
	"time"
)

// Bounds of a supervisor.
const (
	firstPause = 100 * time.Millisecond // before a worker that died is started again; doubled each time
	lastPause  = 10 * time.Second
	steady     = time.Minute // a worker that lived as long dies of something new
	stopGrace  = 20 * time.Second
)

// Supervise runs the process that start makes, and runs it again when it dies, until it ends with status 0 or ctx is done:
// then it is told to end by SIGTERM and given time for that. first is told how the first start went.
func Supervise(ctx context.Context, log *slog.Logger, start func() *exec.Cmd, first func(error)) error {
	pause := firstPause
	for attempt := 0; ; attempt++ {
		cmd := start()
		begun := time.Now()
		err := cmd.Start()
		if attempt == 0 {
			first(err)
			if err != nil {
				return err
			}
		}
		if err == nil {
			exited := make(chan error, 1)
			go func() { exited <- cmd.Wait() }()
			select {
			case err = <-exited:
			case <-ctx.Done():
				return stop(cmd, exited)
			}
		}
		if err == nil {
			return nil
		}
		if time.Since(begun) > steady {
			pause = firstPause
		}
		log.Error("the worker died", "err", err, "again", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, lastPause)
	}
}

func stop(cmd *exec.Cmd, exited <-chan error) error {
	cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-exited:
		return err
	case <-time.After(stopGrace):
		cmd.Process.Kill()
		return errors.Join(errors.New("the worker did not end in time and was killed"), <-exited)
	}
}
