package attach

import (
	"net/url"
	"strings"
	"time"

	"hawser.dev/hawser/nvme"
)

// Identity is what a device says of itself: which volume it is, and how large.
type Identity struct {
	NSID      uint32     `json:"nsid,omitempty"`
	UUID      nvme.UUID  `json:"uuid,omitzero"`
	NGUID     nvme.NGUID `json:"nguid,omitzero"`
	EUI64     nvme.EUI64 `json:"eui64,omitzero"`
	Size      int64      `json:"size"`                // bytes
	BlockSize int        `json:"blockSize,omitempty"` // bytes
}

// Name is the volume's identifier: its UUID, else its NGUID, else its EUI-64; empty when it has none of them.
func (id Identity) Name() string {
	id.NSID = 0
	return NamespaceRef{UUID: id.UUID, NGUID: id.NGUID, EUI64: id.EUI64}.String()
}

// String is the identifier with which the volume can be asked for.
func (id Identity) String() string {
	if name := id.Name(); name != "" {
		return name
	}
	return NamespaceRef{NSID: id.NSID}.String()
}

// Is reports whether the volume is the one that ref means. A zero ref means any.
func (id Identity) Is(ref NamespaceRef) bool {
	switch {
	case !ref.UUID.IsZero():
		return id.UUID == ref.UUID
	case !ref.NGUID.IsZero():
		return id.NGUID == ref.NGUID
	case !ref.EUI64.IsZero():
		return id.EUI64 == ref.EUI64
	case ref.NSID != 0:
		return id.NSID == ref.NSID
	}
	return true
}

// Same reports whether both, of one subsystem, are the same volume: every identifier that either has must be equal. Only
// volumes without any identifier are told apart by their namespace ID.
func (id Identity) Same(other Identity) bool {
	if id.Name() == "" && other.Name() == "" {
		return id.NSID == other.NSID
	}
	return id.UUID == other.UUID && id.NGUID == other.NGUID && id.EUI64 == other.EUI64
}

// Path states. They are the kernel's words for a controller.
const (
	PathLive       = "live"
	PathConnecting = "connecting"
	PathDead       = "dead"
	PathUnknown    = "unknown"
)

// Path is one path of an attachment as it is now.
type Path struct {
	Portal  string `json:"portal"`            // as in Portal.String
	Binding string `json:"binding,omitempty"` // as in Binding.String
	State   string `json:"state"`
	ANA     string `json:"ana,omitempty"`

	Transport    string `json:"transport,omitempty"`
	CNTLID       *int   `json:"cntlid,omitempty"`
	Queues       int    `json:"queues,omitempty"`       // I/O queues
	QueueDepth   int    `json:"queueDepth,omitempty"`   // commands each
	KeepAliveTMO int    `json:"keepAliveTMO,omitempty"` // seconds
	HdrDigest    bool   `json:"hdrDigest,omitempty"`
	DataDigest   bool   `json:"dataDigest,omitempty"`
	Reason       string `json:"reason,omitempty"` // why it is not live
}

// Volume states.
const (
	VolumeLive       = "live"       // I/O works
	VolumeConnecting = "connecting" // attached, no path at the moment
	VolumeDead       = "dead"       // recorded, but what held it is gone
	VolumeUnknown    = "unknown"    // what holds it does not answer
	VolumeAttaching  = "attaching"  // an attach is under way, or was cut short
	VolumeDetaching  = "detaching"  // a detach is under way, or was cut short
	VolumeDetached   = "detached"
	VolumePlanned    = "planned" // --check: would be attached
)

// Volume is one attachment in results.
type Volume struct {
	Name     string `json:"name"`
	Device   string `json:"device"`
	Size     int64  `json:"size"` // bytes
	UUID     string `json:"uuid,omitempty"`
	NGUID    string `json:"nguid,omitempty"`
	EUI64    string `json:"eui64,omitempty"`
	Protocol string `json:"protocol"`
	Driver   string `json:"driver"`
	Target   string `json:"target"` // NQN or IQN
	Paths    []Path `json:"paths"`

	NSID      uint32   `json:"nsid,omitempty"`
	BlockSize int      `json:"blockSize,omitempty"`
	ReadOnly  bool     `json:"readOnly,omitempty"`
	Frontend  string   `json:"frontend,omitempty"`
	State     string   `json:"state"`
	Changed   *bool    `json:"changed,omitempty"`  // by this call
	Degraded  bool     `json:"degraded,omitempty"` // fewer paths than asked for
	Missing   []string `json:"missing,omitempty"`  // those paths
	DataLost  string   `json:"dataLost,omitempty"` // "possible" after a forced detach that could not flush
	HostNQN   string   `json:"hostNQN,omitempty"`
	HostID    string   `json:"hostID,omitempty"`
	Clients   []Client `json:"clients,omitempty"` // who has the device open
	Agent     *Agent   `json:"agent,omitempty"`
	URL       string   `json:"url,omitempty"` // as asked for
	Since     string   `json:"since,omitempty"`
	Warning   string   `json:"warning,omitempty"`
	Plan      []string `json:"plan,omitempty"` // --check: what would be done
}

// DataLostPossible is the value of Volume.DataLost.
const DataLostPossible = "possible"

// SocketDevice is the device string of a volume shown on a unix socket: an NBD URI, whose slashes stay readable.
func SocketDevice(path string) string {
	return "nbd+unix:///?socket=" + strings.NewReplacer("%2F", "/", "+", "%20").Replace(url.QueryEscape(path))
}

// Client is a process that has the device open.
type Client struct {
	PID     int    `json:"pid"`
	UID     int    `json:"uid"`
	Command string `json:"command,omitempty"`
}

// Agent is the background process behind a volume of the user driver.
type Agent struct {
	Name       string `json:"name"`
	PID        int    `json:"pid,omitempty"`
	Supervisor string `json:"supervisor,omitempty"` // who restarts it: "monitor", "none"
	MonitorPID int    `json:"monitorPID,omitempty"`
	Log        string `json:"log,omitempty"`
}

// State of a Record: what its owner was doing.
type State string

const (
	StateAttaching State = "attaching" // recorded before acting
	StateAttached  State = "attached"
	StateDetaching State = "detaching"
)

// Record is what a host remembers of an attachment.
type Record struct {
	SchemaVersion int        `json:"schemaVersion"`
	Name          string     `json:"name"`
	State         State      `json:"state"`
	Force         bool       `json:"force,omitempty"` // detaching: the caller accepted loss
	Spec          Spec       `json:"spec"`            // as asked for
	Identity      Identity   `json:"identity"`        // of the volume, from the device
	Driver        string     `json:"driver"`
	Frontend      string     `json:"frontend"`
	Device        string     `json:"device"`
	Agent         string     `json:"agent,omitempty"` // user driver: which agent
	Paths         []PathSpec `json:"paths"`           // made by this attachment
	Since         time.Time  `json:"since"`
}

// volume is the record as a result, without what only the driver knows.
func (r *Record) volume() Volume {
	v := Volume{
		Name: r.Name, Device: r.Device, Size: r.Identity.Size, BlockSize: r.Identity.BlockSize, NSID: r.Identity.NSID,
		Protocol: string(r.Spec.Target.Protocol), Driver: r.Driver, Frontend: r.Frontend, Target: r.Spec.Target.Name,
		ReadOnly: r.Spec.ReadOnly, HostNQN: string(r.Spec.HostNQN), URL: r.Spec.Target.String(), Paths: []Path{},
	}
	if !r.Spec.HostID.IsZero() {
		v.HostID = r.Spec.HostID.String()
	}
	if !r.Since.IsZero() {
		v.Since = r.Since.UTC().Format(time.RFC3339)
	}
	if !r.Identity.UUID.IsZero() {
		v.UUID = r.Identity.UUID.String()
	}
	if !r.Identity.NGUID.IsZero() {
		v.NGUID = r.Identity.NGUID.String()
	}
	if !r.Identity.EUI64.IsZero() {
		v.EUI64 = r.Identity.EUI64.String()
	}
	if r.Agent != "" {
		v.Agent = &Agent{Name: r.Agent}
	}
	return v
}

func (r *Record) validate() error {
	if r.SchemaVersion != SchemaVersion {
		return usagef("schemaVersion %d: this hawser knows %d", r.SchemaVersion, SchemaVersion)
	}
	if err := ValidName(r.Name); err != nil {
		return err
	}
	switch r.State {
	case StateAttaching, StateAttached, StateDetaching:
	default:
		return usagef("state %s is unknown", quote(string(r.State)))
	}
	if r.Driver == "" || r.Device == "" {
		return usagef("driver or device is missing")
	}
	if r.Agent != "" {
		if err := ValidName(r.Agent); err != nil {
			return err
		}
	}
	if r.Identity.Size < 0 || r.Identity.BlockSize < 0 {
		return usagef("size is negative")
	}
	return r.Spec.Validate()
}
