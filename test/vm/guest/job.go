// Package guest is what runs inside a guest: how init and the harness understand each other, and what test cases use to
// build targets, find devices and run the peers' tools.
package guest

import (
	"os"
	"slices"
	"strings"
	"time"
)

// What the harness gives a guest.
const (
	Share       = "/hawser"        // the folder shared with the harness
	Bin         = "/usr/local/bin" // the harness's binaries: cases, hawser
	Out         = Share + "/out"   // what is left here is the harness's to keep
	JobFile     = "job.json"       // a Job, in Share
	ShareTag    = "hawser"
	OutputPort  = "hawser.output"
	StatusPort  = "hawser.status"
	LocalSerial = "hawser-local" // of the local NVMe drive
	Parameter   = "hawser.guest" // on the kernel's command line
	Started     = "started "     // what init writes to StatusPort before it runs the job; the exit status follows
)

// Job is what a guest runs once it is up.
type Job struct {
	Args []string
	Env  []string
	Now  time.Time // the guest has no clock of its own to trust
}

// Inside reports whether this process runs in a guest of the harness.
func Inside() bool {
	b, err := os.ReadFile("/proc/cmdline")
	return err == nil && slices.Contains(strings.Fields(string(b)), Parameter)
}
