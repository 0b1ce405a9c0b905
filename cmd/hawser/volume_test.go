package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"hawser.dev/hawser/attach/frontend/nbd"
)

// patience bounds what a test waits for; nothing that passes comes near it.
const patience = time.Minute

// noExitSleep keeps processes with the race detector from sleeping for a second when they end.
const noExitSleep = "atexit_sleep_ms=0"

// TestVolumes runs the scripts on attached volumes. Each has a state folder of its own, whose agents end with it.
func TestVolumes(t *testing.T) {
	for tool, pkg := range map[string]string{"nbdinfo": "libnbd-bin", "nbdcopy": "libnbd-bin", "qemu-io": "qemu-utils"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing: install %s", tool, pkg)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/volume",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "target": startTarget, "stop": stopTarget,
			"hold": hold, "signal": signalTarget, "killagent": killAgent, "nothing": nothingLeft, "noagents": noAgents,
		},
		Setup: func(env *testscript.Env) error {
			for _, v := range []string{"HOME", "TMPDIR", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"} {
				env.Setenv(v, env.WorkDir)
			}
			// Short: sockets are in it.
			dir, err := os.MkdirTemp("", "hawser")
			if err != nil {
				return err
			}
			env.Setenv("STATE", filepath.Join(dir, "s"))
			env.Setenv("HAWSER_STATE_DIR", filepath.Join(dir, "s"))
			env.Setenv("SOCKETS", "nbd+unix:///?socket="+filepath.Join(dir, "s", "sockets"))
			env.Setenv("GORACE", noExitSleep)
			env.Values[targetsKey{}] = make(map[string]*target)
			env.Defer(func() {
				killAgents(filepath.Join(dir, "s"))
				os.RemoveAll(dir)
			})
			return nil
		},
	})
}

// agentsOf finds the processes of the agents of a state folder, by the arguments they were started with.
func agentsOf(state string) (pids []int) {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range procs {
		b, err := os.ReadFile(path)
		args := strings.Split(string(b), "\x00")
		if err != nil || len(args) < 4 || args[1] != "agent" || args[3] != state {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func killAgents(state string) {
	for _, pid := range agentsOf(state) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// hold NAME connects to the volume's socket as a client, until the script ends.
func hold(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hold NAME")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := nbd.Dial(ctx, filepath.Join(ts.Getenv("STATE"), "sockets", args[0]), "")
	ts.Check(err)
	ts.Defer(func() { c.Close() })
}

// signal stop|cont TARGET stops a target's process, or lets it go on.
func signalTarget(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"stop": syscall.SIGSTOP, "cont": syscall.SIGCONT, "kill": syscall.SIGKILL}
	if neg || len(args) != 2 || signals[args[0]] == 0 {
		ts.Fatalf("usage: signal stop|cont|kill TARGET")
	}
	t := ts.Value(targetsKey{}).(map[string]*target)[args[1]]
	ts.Check(t.cmd.Process.Signal(signals[args[0]]))
	if args[0] == "kill" {
		t.cmd.Wait()
	}
}

// killagent worker|monitor|both VOLUME kills a process of the volume's agent, or tells both to end, and waits until it is gone.
func killAgent(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: killagent worker|monitor|both VOLUME")
	}
	var shown struct {
		Volumes []struct {
			Agent struct{ PID, MonitorPID int }
		}
	}
	ts.Check(ts.Exec("hawser", "show", args[1], "-o", "json"))
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &shown))
	if len(shown.Volumes) != 1 {
		ts.Fatalf("not one volume: %s", ts.ReadFile("stdout"))
	}
	agent := shown.Volumes[0].Agent
	pids, sig := []int{agent.PID}, syscall.SIGKILL
	switch args[0] {
	case "monitor":
		pids[0] = agent.MonitorPID
	case "both":
		pids, sig = append([]int{agent.MonitorPID}, pids...), syscall.SIGTERM
	}
	if pids[0] <= 1 {
		ts.Fatalf("no %s: %s", args[0], ts.ReadFile("stdout"))
	}
	ts.Check(syscall.Kill(pids[0], sig))
	awaitGone(ts.Fatalf, pids)
}

// awaitGone waits until processes have ended, as zombies at least.
func awaitGone(fatalf func(string, ...any), pids []int) {
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		alive := false
		for _, pid := range pids {
			b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
			if err == nil {
				_, after, _ := bytes.Cut(b, []byte(") "))
				alive = alive || !bytes.HasPrefix(after, []byte("Z"))
			}
		}
		if !alive {
			return
		}
		if time.Now().After(deadline) {
			fatalf("processes %v go on", pids)
		}
	}
}

// nothing checks that no agent, record, socket or lock is left.
func nothingLeft(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: nothing")
	}
	checkNothingLeft(ts.Fatalf, ts.Getenv("STATE"))
}

// noagents waits until no agent of the state folder is left.
func noAgents(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: noagents")
	}
	awaitGone(ts.Fatalf, agentsOf(ts.Getenv("STATE")))
}

func checkNothingLeft(fatalf func(string, ...any), state string) {
	awaitGone(fatalf, agentsOf(state))
	filepath.WalkDir(state, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(state, path)
		switch rel {
		case ".", "records", "locks", "locks/store", "sockets", "agents":
		default:
			if !errors.Is(err, fs.ErrNotExist) {
				fatalf("%s is left", rel)
			}
		}
		return nil
	})
}

// host is a machine of its own, as far as hawser can tell: a state folder, and targets.
type host struct {
	t   *testing.T
	dir string
	exe string
}

func newHost(t *testing.T) *host {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "hawser") // short: sockets are in it
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t, dir, exe}
	t.Cleanup(func() {
		killAgents(h.state())
		os.RemoveAll(dir)
	})
	return h
}

func (h *host) state() string { return filepath.Join(h.dir, "s") }

func (h *host) hawser(args ...string) *exec.Cmd {
	cmd := exec.Command(h.exe, args...)
	cmd.Args[0] = "hawser" // as testscript.Main knows it
	cmd.Env = append(os.Environ(), "HAWSER_STATE_DIR="+h.state(), "HOME="+h.dir, "XDG_STATE_HOME="+h.dir, "TMPDIR="+h.dir, "GORACE="+noExitSleep)
	return cmd
}

func (h *host) run(args ...string) {
	h.t.Helper()
	if b, err := h.hawser(args...).CombinedOutput(); err != nil {
		h.t.Fatalf("hawser %v: %v\n%s", args, err, b)
	}
}

// serve starts a target and returns its portal and what kills it.
func (h *host) serve(args ...string) (portal string, kill func()) {
	h.t.Helper()
	cmd := h.hawser(append([]string{"target", "serve", "--allow-any-host", "-o", "jsonl", "--control", filepath.Join(h.dir, "c", "t")}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	h.t.Cleanup(kill)
	var doc struct{ Portals []string }
	if err := json.NewDecoder(out).Decode(&doc); err != nil {
		h.t.Fatal(err)
	}
	return doc.Portals[0], kill
}

// TestVerifyWhileTargetDies has fio write and verify through the socket while the target is killed and started again. No
// write that was acknowledged may be missing, none may come back from the dead, and fio sees no error.
func TestVerifyWhileTargetDies(t *testing.T) {
	if out, err := exec.Command("fio", "--enghelp=nbd").CombinedOutput(); err != nil || !strings.Contains(string(out), "uri") {
		t.Fatalf("fio with its engine nbd is missing: install fio (%v)", err)
	}
	h := newHost(t)
	export := []string{"--export", filepath.Join(h.dir, "disk") + ",size=32M,nqn=nqn.2026-01.org.example:a", "--listen"}
	portal, kill := h.serve(append(export, "127.0.0.1:0")...)
	h.run("attach", "nvme://"+portal+"/nqn.2026-01.org.example:a", "--name", "v", "-c", "1", "-k", "1")
	fio := exec.Command("fio", "--name=v", "--ioengine=nbd", "--uri=nbd+unix:///?socket="+filepath.Join(h.state(), "sockets", "v"),
		"--rw=randwrite", "--bsrange=4k-128k", "--iodepth=32", "--size=32M", "--io_size=192M", "--rate=24m",
		"--verify=crc32c", "--verify_backlog=128", "--do_verify=1", "--verify_fatal=1")
	fio.Dir = h.dir
	var out bytes.Buffer
	fio.Stdout, fio.Stderr = &out, &out
	if err := fio.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- fio.Wait() }()
	t.Cleanup(func() { fio.Process.Kill() })
	kills := 0
	for alive := true; alive; {
		select {
		case err := <-done:
			if err != nil || strings.Contains(out.String(), "verify:") {
				t.Errorf("fio: %v\n%s", err, &out)
			}
			alive = false
		case <-time.After(1500 * time.Millisecond): // of work between two deaths
			if kills < 2 {
				kill()
				_, kill = h.serve(append(export, portal)...)
				kills++
			}
		}
	}
	if kills == 0 {
		t.Error("the target was not killed: fio was too fast")
	}
	h.run("detach", "v")
	checkNothingLeft(t.Fatalf, h.state())
}

// TestKilledCommands kills attach and detach at any moment; what they leave must be finished or cleaned up by the next call.
func TestKilledCommands(t *testing.T) {
	h := newHost(t)
	portal, _ := h.serve("--listen", "127.0.0.1:0", "--export", "mem:a,size=1M,nqn=nqn.2026-01.org.example:a")
	url := "nvme://" + portal + "/nqn.2026-01.org.example:a"
	begun := time.Now()
	h.run("attach", url)
	whole := time.Since(begun) // of one attach, roughly
	h.run("detach", url)
	for i := range 32 {
		verb := "attach"
		if i%2 == 1 {
			h.run("attach", url)
			verb = "detach"
		}
		cmd := h.hawser(verb, url)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(time.Duration(rand.Int64N(int64(whole))), func() { cmd.Process.Kill() })
		cmd.Wait()
		kill.Stop()
		if i%4 < 2 {
			h.run("attach", url)
			h.run("list")
		}
		h.run("detach", url)
		// An agent that was started for nothing, or lost its caller, ends by itself.
		checkNothingLeft(t.Fatalf, h.state())
	}
}
