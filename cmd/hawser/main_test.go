package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"hawser": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":     exits,
			"interrupt": interrupt,
			"target":    startTarget,
			"stop":      stopTarget,
		},
		Setup: func(env *testscript.Env) error {
			// The scripts are a user of their own.
			for _, v := range []string{"HOME", "TMPDIR", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"} {
				env.Setenv(v, env.WorkDir)
			}
			env.Values[targetsKey{}] = make(map[string]*target)
			return nil
		},
	})
}

// exits CODE PROGRAM ARG… runs a program and checks its exit code; its output is for the commands stdout and stderr.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG…")
	}
	if got := exitCode(ts.Exec(args[1], args[2:]...)); got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

func exitCode(err error) string {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return strconv.Itoa(exit.ExitCode())
	}
	if err == nil {
		return "0"
	}
	return err.Error()
}

// interrupt WORD PROGRAM ARG… runs a program and sends it SIGINT when it prints a line that begins with WORD; it has to end with 130.
func interrupt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: interrupt WORD PROGRAM ARG…")
	}
	cmd := command(ts, args[1], args[2:]...)
	stdout, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	deadline := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer deadline.Stop()
	sent := false
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if !sent && strings.HasPrefix(lines.Text(), args[0]) {
			ts.Check(cmd.Process.Signal(os.Interrupt))
			sent = true
		}
	}
	if code := exitCode(cmd.Wait()); !sent || code != "130" {
		ts.Fatalf("SIGINT sent: %v, exit code %s, want 130", sent, code)
	}
}

// command makes a command with the environment of the script.
func command(ts *testscript.TestScript, program string, args ...string) *exec.Cmd {
	cmd := exec.Command(lookPath(ts, program), args...)
	cmd.Dir = ts.MkAbs(".")
	for _, v := range []string{"PATH", "HOME", "TMPDIR", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "GOCOVERDIR"} {
		cmd.Env = append(cmd.Env, v+"="+ts.Getenv(v))
	}
	return cmd
}

type targetsKey struct{}

type target struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
}

// target NAME ARG… starts 'hawser target serve ARG…' in the background and waits until it says that hosts can connect. It sets
// NAME_PORTAL, NAME_URL (of the first volume), NAME_NQN and NAME_CONTROL.
func startTarget(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: target NAME ARG…")
	}
	name := args[0]
	t := &target{}
	t.cmd = command(ts, "hawser", append([]string{"target", "serve", "-o", "jsonl", "--control", ts.MkAbs("control/" + name)}, args[1:]...)...)
	t.cmd.Stderr = &t.stderr
	stdout, err := t.cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(t.cmd.Start())
	ts.Defer(func() {
		if t.cmd.ProcessState == nil {
			t.cmd.Process.Kill()
			t.cmd.Wait()
		}
	})
	ts.Value(targetsKey{}).(map[string]*target)[name] = t
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		t.cmd.Wait()
		ts.Fatalf("target %s did not start: %s", name, &t.stderr)
	}
	var served struct {
		Portals []string
		Control string
		Volumes []struct{ URL, Target string }
	}
	ts.Check(json.Unmarshal(line, &served))
	ts.Setenv(name+"_PORTAL", served.Portals[0])
	ts.Setenv(name+"_URL", served.Volumes[0].URL)
	ts.Setenv(name+"_NQN", served.Volumes[0].Target)
	ts.Setenv(name+"_CONTROL", served.Control)
}

// stop NAME ends a target by SIGTERM, which it has to answer with exit code 0.
func stopTarget(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: stop NAME")
	}
	t := ts.Value(targetsKey{}).(map[string]*target)[args[0]]
	ts.Check(t.cmd.Process.Signal(syscall.SIGTERM))
	deadline := time.AfterFunc(time.Minute, func() { t.cmd.Process.Kill() })
	defer deadline.Stop()
	if code := exitCode(t.cmd.Wait()); code != "0" {
		ts.Fatalf("exit code %s: %s", code, &t.stderr)
	}
}

func lookPath(ts *testscript.TestScript, program string) string {
	for _, dir := range strings.Split(ts.Getenv("PATH"), string(filepath.ListSeparator)) {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path
		}
	}
	ts.Fatalf("%s is not in PATH", program)
	return ""
}
