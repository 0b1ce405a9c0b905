package userdriver

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"hawser.dev/hawser/attach"
)

// standIn is what the process of TestStandIn does before it ends without a word; unset elsewhere.
const standIn = "HAWSER_TEST_STAND_IN"

// TestStandIn is no test where standIn is unset: it is the first process of an agent that dies at once.
func TestStandIn(t *testing.T) {
	what, pidFile, _ := strings.Cut(os.Getenv(standIn), " ")
	switch what {
	case "":
		return
	case "talk":
		os.Stderr.WriteString("what went wrong\n")
	case "orphan": // as a worker whose monitor was killed when it had started
		syscall.CloseOnExec(readyFD)
		cmd := exec.Command("sleep", "60")
		cmd.Stdout = os.Stdout
		if err := cmd.Start(); err != nil {
			os.Stderr.WriteString(err.Error())
		}
		os.WriteFile(pidFile, []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
	}
	syscall.Exit(0) // not os.Exit: the package testing has something to say about that
}

// An agent that does not start leaves its folder only where that is needed: for what its log says, or while a process of it
// is alive.
func TestStartFails(t *testing.T) {
	for _, c := range []struct {
		name   string
		remain bool
	}{{"silent", false}, {"talk", true}, {"orphan", true}} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			store, err := attach.NewStore(dir)
			if err != nil {
				t.Fatal(err)
			}
			pidFile := filepath.Join(t.TempDir(), "pid")
			t.Setenv(standIn, c.name+" "+pidFile)
			d := &Driver{Store: store, Command: []string{os.Args[0], "-test.run=^TestStandIn$", "--"}}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := d.start(ctx, "1"); err == nil || !strings.Contains(err.Error(), "agent 1 does not start") {
				t.Errorf("start: %v", err)
			}
			_, err = os.Stat(LogFile(d.folder("1")))
			if c.remain && err != nil {
				t.Errorf("the log: %v", err)
			} else if !c.remain && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the log is left: %v", err)
			}
			if c.name != "orphan" {
				return
			}
			b, err := os.ReadFile(pidFile)
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(string(b))
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			d.clear(ctx, "1")
			if _, err := os.Stat(d.folder("1")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the folder of a dead agent is left: %v", err)
			}
		})
	}
}
