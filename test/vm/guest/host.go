//go:build linux

package guest

import (
	"os"
	"os/exec"
	"testing"
)

// The host identity of cases that do not care.
const (
	HostNQN = "nqn.2014-08.org.nvmexpress:uuid:5e0fa1f2-43f0-4f0e-9d6a-6f5d7fd3c001"
	HostID  = "5e0fa1f2-43f0-4f0e-9d6a-6f5d7fd3c001"
)

// NVMe runs `nvme VERB` of nvme-cli for a target's portal with this guest's identity.
func NVMe(t testing.TB, verb string, target *Target, args ...string) Result {
	t.Helper()
	return Try(t, "nvme", append([]string{verb, "-t", "tcp", "-a", target.Host, "-s", target.Port,
		"--hostnqn=" + HostNQN, "--hostid=" + HostID}, args...)...)
}

// Connect connects the kernel's host to a subsystem, with nvme-cli's options such as "--data-digest", and returns the
// block device of its namespace 1 once it is there. The test's end disconnects it.
func Connect(t testing.TB, target *Target, nqn string, args ...string) (device string) {
	t.Helper()
	Modprobe(t, "nvme-tcp")
	if r := NVMe(t, "connect", target, append([]string{"-n", nqn}, args...)...); r.Code != 0 {
		t.Fatalf("nvme connect %s: exit status %d\n%s%s\n%s", nqn, r.Code, r.Stdout, r.Stderr, target.log())
	}
	t.Cleanup(func() {
		if len(Controllers(nqn)) == 0 {
			return // the case has disconnected it
		}
		if out, err := exec.Command("nvme", "disconnect", "-n", nqn).CombinedOutput(); err != nil {
			t.Errorf("nvme disconnect %s: %v %s", nqn, err, out)
		}
	})
	WaitFor(t, "namespace 1 of "+nqn, func() bool {
		device = Namespace(nqn, 1)
		info, err := os.Stat(device)
		return err == nil && info.Mode()&os.ModeDevice != 0
	})
	return device
}

// Disconnect disconnects every controller of a subsystem and waits until they are gone.
func Disconnect(t testing.TB, nqn string) {
	t.Helper()
	Run(t, "nvme", "disconnect", "-n", nqn)
	WaitFor(t, nqn+" to go", func() bool { return len(Controllers(nqn)) == 0 })
}
