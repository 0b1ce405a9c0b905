//go:build linux

package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Deadline bounds every command and every wait of a case, unless the case says otherwise.
const Deadline = 60 * time.Second

// Kernel is the running kernel's series, "6.12".
func Kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	parts := strings.SplitN(unix.ByteSliceToString(u.Release[:]), ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

// Result is what a command did.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Try runs a command that may fail. The test fails only if the command can't be run or takes longer than Deadline.
func Try(t testing.TB, name string, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Deadline) // a cleanup runs commands too
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if ctx.Err() != nil {
		t.Fatalf("%s did not end within %v\n%s%s", cmd, Deadline, r.Stdout, r.Stderr)
	}
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v\n%s%s", cmd, err, r.Stdout, r.Stderr)
	}
	return r
}

// Run runs a command that must succeed and returns its standard output.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	r := Try(t, name, args...)
	if r.Code != 0 {
		t.Fatalf("%s %s: exit status %d\n%s%s", name, strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// Modprobe loads kernel modules.
func Modprobe(t testing.TB, modules ...string) {
	t.Helper()
	Run(t, "modprobe", append([]string{"-a"}, modules...)...)
}

// write writes an attribute of sysfs or configfs.
func write(t testing.TB, path, value string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		t.Fatalf("write %q: %v", value, err)
	}
}

// must fails the test on an error of a step that only a broken guest can fail.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// WaitFor returns once cond holds; it is asked again after every uevent, as most of what a case waits for announces
// itself by one, and every quarter of a second for the rest. The test fails after Deadline.
func WaitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}))
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 250_000}))
	buf := make([]byte, 8192)
	for start := time.Now(); !cond(); {
		if time.Since(start) > Deadline {
			t.Fatalf("waited %v for %s", Deadline, what)
		}
		if _, _, err := unix.Recvfrom(fd, buf, 0); err != nil && err != unix.EAGAIN && err != unix.EINTR && err != unix.ENOBUFS {
			t.Fatalf("uevents: %v", err)
		}
	}
}

// File makes a sparse file of size bytes below a folder of the test's own on disk and returns its path.
func File(t testing.TB, name string, size int64) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "case")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := dir + "/" + name
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, size))
	return path
}

// Loop attaches a file to a loop device with the given logical block size.
func Loop(t testing.TB, path string, blockSize int) string {
	t.Helper()
	dev := strings.TrimSpace(Run(t, "losetup", "--find", "--show", "--direct-io=off", "--sector-size", fmt.Sprint(blockSize), path))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v %s", dev, err, out)
		}
	})
	return dev
}

// DropCache makes the next reads of a block device see what was written beneath its page cache.
func DropCache(t testing.TB, device string) {
	t.Helper()
	Run(t, "blockdev", "--flushbufs", device)
}
