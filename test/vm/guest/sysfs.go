//go:build linux

package guest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// attr reads one attribute; it is empty when there is none.
func attr(path ...string) string {
	b, _ := os.ReadFile(filepath.Join(path...))
	return strings.TrimSpace(string(b))
}

// Controllers are the kernel's controllers of a subsystem ("nvme1"), found by its NQN.
func Controllers(nqn string) []string {
	paths, _ := filepath.Glob("/sys/class/nvme/nvme*")
	var names []string
	for _, p := range paths {
		if attr(p, "subsysnqn") == nqn {
			names = append(names, filepath.Base(p))
		}
	}
	return names
}

// Namespace is the kernel's block device ("/dev/nvme1n1") of a subsystem's namespace, or empty.
func Namespace(nqn string, nsid int) string {
	paths, _ := filepath.Glob("/sys/block/nvme*n*")
	for _, p := range paths {
		if attr(p, "hidden") != "1" && attr(p, "device/subsysnqn") == nqn && attr(p, "nsid") == strconv.Itoa(nsid) {
			return "/dev/" + filepath.Base(p)
		}
	}
	return ""
}

// LocalNVMe is the guest's own NVMe drive, which no target offers.
func LocalNVMe(t testing.TB) string {
	t.Helper()
	paths, _ := filepath.Glob("/sys/class/nvme/nvme*")
	for _, p := range paths {
		if attr(p, "transport") == "pcie" && attr(p, "serial") == LocalSerial {
			if dev := Namespace(attr(p, "subsysnqn"), 1); dev != "" {
				return dev
			}
		}
	}
	t.Fatal("the guest has no local NVMe drive")
	return ""
}

// Attr reads an attribute of a block device such as "queue/logical_block_size".
func Attr(t testing.TB, device, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), name))
	must(t, err)
	return strings.TrimSpace(string(b))
}

// Size is a block device's or a file's size in bytes.
func Size(t testing.TB, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	n, err := f.Seek(0, unix.SEEK_END)
	must(t, err)
	return n
}

// Process is what a process holds.
type Process struct {
	FDs, Threads int
	RSS          int64 // bytes
}

// Stat reads what a process holds from /proc.
func Stat(t testing.TB, pid int) Process {
	t.Helper()
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	must(t, err)
	b, err := os.ReadFile(filepath.Join(proc, "status"))
	must(t, err)
	p := Process{FDs: len(fds)}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		n, _ := strconv.ParseInt(fields[0], 10, 64)
		switch key {
		case "Threads":
			p.Threads = int(n)
		case "VmRSS":
			p.RSS = n << 10
		}
	}
	return p
}
