package target

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/iostreams"
)

// A service manager is told when hosts can connect, and when the end begins; the end in order is no error.
func TestServeNotifies(t *testing.T) {
	dir := t.TempDir()
	notified, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notified.Close()
	notified.SetDeadline(time.Now().Add(time.Minute))
	next := func() string {
		b := make([]byte, 256)
		n, err := notified.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}

	streams, out, _ := iostreams.Test(map[string]string{"NOTIFY_SOCKET": filepath.Join(dir, "notify"), "HAWSER_STATE_DIR": filepath.Join(dir, "state")})
	f := factory.New(streams)
	cmd := New(f)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	f.AddGlobalFlags(cmd)
	cmd.SetArgs([]string{"serve", "-o", "jsonl", "--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--export", "mem:a,size=1M", "--allow-any-host"})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()

	if got := next(); got != "READY=1" {
		t.Errorf("first %q", got)
	}
	// What was printed before READY=1 may be read after it.
	var doc Served
	if err := json.Unmarshal(bytes.Clone(out.Bytes()), &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Portals) != 2 || len(doc.Volumes) != 1 || doc.Volumes[0].Size != 1<<20 || doc.Volumes[0].URL == "" {
		t.Errorf("%+v", doc)
	}
	cancel()
	if got := next(); got != "STOPPING=1" {
		t.Errorf("then %q", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A target that was killed leaves a socket, which the next one removes; that of a live process stays.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{dead.Process.Pid, os.Getpid()} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketOf(dir, pid), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
	}
	if err := os.WriteFile(filepath.Join(dir, "1.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	sweep(dir)
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 || left[0].Name() != "1.txt" || left[1].Name() != filepath.Base(socketOf(dir, os.Getpid())) {
		t.Errorf("left: %v, %v", left, err)
	}
}
