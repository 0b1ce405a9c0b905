//go:build linux

package guest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Export is a volume that a target offers.
type Export struct {
	Path  string // file or block device
	NQN   string
	NSID  int // 1 when zero
	UUID  string
	Block int // logical block size in bytes, 512 when zero; the kernel's target takes the device's
}

func (e Export) nsid() int { return max(e.NSID, 1) }

// Target is a running target.
type Target struct {
	Host, Port string // of its one portal
	PID        int    // of hawser; 0 for the kernel's target

	exit func() error
	log  func() string
}

// Addr is the portal as host:port.
func (t *Target) Addr() string { return net.JoinHostPort(t.Host, t.Port) }

// Starter starts a target on a free port of host (an address of this guest); cases take one so that they run
// against both targets. The target ends with the test.
type Starter func(t testing.TB, host string, exports ...Export) *Target

// NVMET builds a target of the kernel's through configfs, with the kernel's own in-capsule data size.
func NVMET(t testing.TB, host string, exports ...Export) *Target {
	t.Helper()
	return NVMETInline(t, host, -1, exports...)
}

// NVMETInline is NVMET with in-capsule data of inline bytes; negative leaves the kernel's default.
func NVMETInline(t testing.TB, host string, inline int, exports ...Export) *Target {
	t.Helper()
	Modprobe(t, "nvmet-tcp")
	const root = "/sys/kernel/config/nvmet"
	port := FreePort(t, host)
	dir := filepath.Join(root, "ports", port)
	must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Errorf("nvmet port: %v", err)
		}
	})
	family := "ipv4"
	if strings.Contains(host, ":") {
		family = "ipv6"
	}
	write(t, filepath.Join(dir, "addr_trtype"), "tcp")
	write(t, filepath.Join(dir, "addr_adrfam"), family)
	write(t, filepath.Join(dir, "addr_traddr"), host)
	write(t, filepath.Join(dir, "addr_trsvcid"), port)
	if inline >= 0 {
		write(t, filepath.Join(dir, "param_inline_data_size"), strconv.Itoa(inline))
	}
	for _, e := range exports {
		sub := filepath.Join(root, "subsystems", e.NQN)
		if _, err := os.Stat(sub); err != nil {
			must(t, os.Mkdir(sub, 0o755))
			link := filepath.Join(dir, "subsystems", e.NQN)
			write(t, filepath.Join(sub, "attr_allow_any_host"), "1")
			t.Cleanup(func() {
				if err := os.Remove(sub); err != nil {
					t.Errorf("nvmet subsystem: %v", err)
				}
			})
			defer func() { must(t, os.Symlink(sub, link)); t.Cleanup(func() { os.Remove(link) }) }()
		}
		ns := filepath.Join(sub, "namespaces", strconv.Itoa(e.nsid()))
		must(t, os.Mkdir(ns, 0o755))
		t.Cleanup(func() {
			_ = os.WriteFile(filepath.Join(ns, "enable"), []byte("0"), 0o644)
			if err := os.Remove(ns); err != nil {
				t.Errorf("nvmet namespace: %v", err)
			}
		})
		write(t, filepath.Join(ns, "device_path"), e.Path)
		if e.UUID != "" {
			write(t, filepath.Join(ns, "device_uuid"), e.UUID)
		}
		if info, err := os.Stat(e.Path); err == nil && info.Mode().IsRegular() {
			write(t, filepath.Join(ns, "buffered_io"), "1")
		}
		write(t, filepath.Join(ns, "enable"), "1")
	}
	return &Target{Host: host, Port: port, exit: func() error { return nil }, log: func() string { return "" }}
}

// Hawser starts `hawser target serve`, open to any host.
func Hawser(t testing.TB, host string, exports ...Export) *Target {
	t.Helper()
	args := []string{"--allow-any-host"}
	for _, e := range exports {
		spec := fmt.Sprintf("%s,nqn=%s,nsid=%d", e.Path, e.NQN, e.nsid())
		if e.UUID != "" {
			spec += ",uuid=" + e.UUID
		}
		if e.Block != 0 {
			spec += fmt.Sprintf(",block=%d", e.Block)
		}
		args = append(args, "--export", spec)
	}
	return HawserArgs(t, host, args...)
}

// HawserArgs starts `hawser target serve` with arguments beside --listen and returns once its portal accepts. When the
// test ends it is sent SIGTERM and must end well.
func HawserArgs(t testing.TB, host string, args ...string) *Target {
	t.Helper()
	port := FreePort(t, host)
	addr := net.JoinHostPort(host, port)
	cmd := exec.Command(Bin+"/hawser", append([]string{"target", "serve", "--listen", addr, "--control", ControlSocket(t)}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log lockedBuffer
	cmd.Stdout, cmd.Stderr = &log, &log
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	target := &Target{Host: host, Port: port, PID: cmd.Process.Pid, log: log.String}
	target.exit = sync.OnceValue(func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			return err
		case <-time.After(Deadline):
			_ = cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go to the log
			<-ended
			return fmt.Errorf("did not end within %v of SIGTERM", Deadline)
		}
	})
	t.Cleanup(func() {
		if err := target.exit(); err != nil {
			t.Errorf("hawser target: %v", err)
		}
		if t.Failed() {
			t.Logf("hawser target said:\n%s", log.String())
		}
	})
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return target
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("hawser target ended: %v\n%s", err, log.String())
		default:
		}
		if time.Since(start) > Deadline {
			t.Fatalf("hawser target does not accept at %s: %v\n%s", addr, err, log.String())
		}
	}
}

// ControlSocket is a path for a control socket, in a folder that only this user can enter.
func ControlSocket(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o700))
	return filepath.Join(dir, "control")
}

// Stop ends the target now and returns how it ended.
func (t *Target) Stop() error { return t.exit() }

// FreePort is a TCP port of host that nothing listens on.
func FreePort(t testing.TB, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	must(t, err)
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
