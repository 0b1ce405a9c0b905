package attach

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Driver makes attachments and ends them. It knows nothing of records but what it is given.
type Driver interface {
	Name() string
	// Check refuses what the driver cannot honour, by an error of CauseUnsupported that names the flag.
	Check(spec *Spec, paths []PathSpec) error
	// Prepare fills in where the attachment will be (Frontend, Device, Agent), so that it is on record before anything is
	// done. It is called with all other records, under the store's lock, and only plans.
	Prepare(r *Record, others []*Record) error
	// Attach makes what r says and returns when I/O through the device works. What is there already stays. When it
	// fails, nothing is left of what it did.
	Attach(ctx context.Context, r *Record) (Status, error)
	// Detach flushes and ends the attachment, and verifies that it is gone. ErrNotAttached when there was nothing left of it;
	// what may have been lying about is removed even so. On any other error the attachment is as it was.
	Detach(ctx context.Context, r *Record, opts DetachOptions) (DetachResult, error)
	// Status looks, and waits for nothing. ErrNotAttached when whatever held the attachment is gone.
	Status(ctx context.Context, r *Record) (Status, error)
	// Sweep removes what calls that died left behind and no record speaks of. What somebody is at work on stays.
	Sweep(records []*Record)
}

// ErrNotAttached means that nothing holds the attachment (any more).
var ErrNotAttached = errors.New("not attached")

// Status is what a driver sees of an attachment.
type Status struct {
	State    string   `json:"state"` // VolumeLive, VolumeConnecting
	Identity Identity `json:"identity"`
	Paths    []Path   `json:"paths"`
	Clients  []Client `json:"clients,omitempty"`
	Agent    *Agent   `json:"agent,omitempty"`
}

// DetachOptions say what a detach may do.
type DetachOptions struct {
	Force        bool          `json:"force,omitempty"`        // in spite of holders and of a flush that does not finish
	FlushTimeout time.Duration `json:"flushTimeout,omitempty"` // how long the flush may take
}

// DetachResult says how a detach ended.
type DetachResult struct {
	DataLost string `json:"dataLost,omitempty"` // DataLostPossible, or empty
}

// Prober asks a target what it has. It changes nothing on either side.
type Prober interface {
	// Volumes lists the volumes of the target's subsystem that this host may use, over the first path of the spec
	// that answers.
	Volumes(ctx context.Context, spec *Spec) ([]Identity, error)
}

// Resolver looks a host name up.
type Resolver func(ctx context.Context, host string) ([]netip.Addr, error)

// CauseOf is the cause of err, CauseFailed when it has none.
func CauseOf(err error) Cause {
	var x interface{ Exit() (int, string) }
	if errors.As(err, &x) {
		code, _ := x.Exit()
		return Cause(code)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return CauseUnreachable
	}
	return CauseFailed
}
