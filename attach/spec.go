package attach

import (
	"fmt"
	"strings"

	"hawser.dev/hawser/nvme"
)

// SchemaVersion is the version of Spec, Record and Result. Within a version no field is lost or renamed.
const SchemaVersion = 1

// Drivers and frontends by name.
const (
	DriverAuto   = "auto"
	DriverKernel = "kernel" // nvme-fabrics or open-iscsi
	DriverUser   = "user"   // the pure-Go initiator in an agent

	FrontendAuto   = "auto"
	FrontendSocket = "socket" // an NBD server on a unix socket
	FrontendUblk   = "ublk"   // /dev/ublkbN; refused as unsupported
	FrontendNBD    = "nbd"    // /dev/nbdN; refused as unsupported
)

// Spec says what shall be attached and how: it is what flags fill and what a record holds.
// Secrets are in it only as references to where they are.
type Spec struct {
	SchemaVersion int       `json:"schemaVersion" yaml:"schemaVersion"`
	Name          string    `json:"name,omitempty" yaml:"name,omitempty"` // empty: the volume's identifier
	Target        Target    `json:"target" yaml:"target"`
	Portals       []Portal  `json:"portals,omitempty" yaml:"portals,omitempty"`   // further ones of the same volume
	Bindings      []Binding `json:"bindings,omitempty" yaml:"bindings,omitempty"` // each portal is reached by each of them; none: as the routes say
	MinPaths      int       `json:"minPaths,omitempty" yaml:"minPaths,omitempty"` // 0 means 1
	Driver        string    `json:"driver,omitempty" yaml:"driver,omitempty"`     // empty means auto
	Frontend      string    `json:"frontend,omitempty" yaml:"frontend,omitempty"` // empty means auto
	ReadOnly      bool      `json:"readOnly,omitempty" yaml:"readOnly,omitempty"`

	HostNQN nvme.NQN  `json:"hostNQN,omitempty" yaml:"hostNQN,omitempty"`
	HostID  nvme.UUID `json:"hostID,omitzero" yaml:"hostID,omitempty"`

	Options Options `json:"options,omitzero" yaml:"options,omitempty"`
}

// Options tune the paths. A nil or zero field was not asked for. The names are those of the nvme-fabrics options.
type Options struct {
	NrIOQueues    int  `json:"nrIOQueues,omitempty" yaml:"nrIOQueues,omitempty"`
	NrWriteQueues int  `json:"nrWriteQueues,omitempty" yaml:"nrWriteQueues,omitempty"`
	NrPollQueues  int  `json:"nrPollQueues,omitempty" yaml:"nrPollQueues,omitempty"`
	QueueSize     int  `json:"queueSize,omitempty" yaml:"queueSize,omitempty"`           // commands per I/O queue
	KeepAliveTMO  *int `json:"keepAliveTMO,omitempty" yaml:"keepAliveTMO,omitempty"`     // seconds
	Reconnect     *int `json:"reconnectDelay,omitempty" yaml:"reconnectDelay,omitempty"` // seconds
	CtrlLossTMO   *int `json:"ctrlLossTMO,omitempty" yaml:"ctrlLossTMO,omitempty"`       // seconds, below 0: for ever
	FastIOFailTMO *int `json:"fastIOFailTMO,omitempty" yaml:"fastIOFailTMO,omitempty"`   // seconds, below 0: off
	TOS           *int `json:"tos,omitempty" yaml:"tos,omitempty"`
	HdrDigest     bool `json:"hdrDigest,omitempty" yaml:"hdrDigest,omitempty"`
	DataDigest    bool `json:"dataDigest,omitempty" yaml:"dataDigest,omitempty"`
	DisableSQFlow bool `json:"disableSQFlow,omitempty" yaml:"disableSQFlow,omitempty"`
	DuplicateConn bool `json:"duplicateConnect,omitempty" yaml:"duplicateConnect,omitempty"`

	TLS              bool      `json:"tls,omitempty" yaml:"tls,omitempty"`
	DHCHAPSecret     SecretRef `json:"dhchapSecret,omitzero" yaml:"dhchapSecret,omitempty"`
	DHCHAPCtrlSecret SecretRef `json:"dhchapCtrlSecret,omitzero" yaml:"dhchapCtrlSecret,omitempty"`
}

// SecretRef says where a secret is: @FILE. It never holds the secret.
type SecretRef struct{ File string }

// ParseSecretRef reads @FILE; a literal is refused, and not repeated in the error.
func ParseSecretRef(s string) (SecretRef, error) {
	file, ok := strings.CutPrefix(s, "@")
	if !ok {
		return SecretRef{}, usagef("a secret on the command line is seen by everybody: put it in a file of mode 0600 and write @FILE")
	}
	if file == "" || strings.ContainsRune(file, 0) {
		return SecretRef{}, usagef("the name of the file is missing after @")
	}
	return SecretRef{File: file}, nil
}

func (r SecretRef) String() string {
	if r.File == "" {
		return ""
	}
	return "@" + r.File
}

func (r SecretRef) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r *SecretRef) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*r = SecretRef{}
		return nil
	}
	*r, err = ParseSecretRef(string(b))
	return err
}

// A PathSpec is one path asked for.
type PathSpec struct {
	Portal  Portal  `json:"portal" yaml:"portal"`
	Binding Binding `json:"binding,omitzero" yaml:"binding,omitempty"`
}

func (p PathSpec) String() string {
	if p.Binding == (Binding{}) {
		return p.Portal.String()
	}
	return p.Portal.String() + " by " + p.Binding.String()
}

// Equal reports whether both are the same path: portal by number, binding whole.
func (p PathSpec) Equal(q PathSpec) bool { return p.Portal.Equal(q.Portal) && p.Binding == q.Binding }

// Paths are the paths asked for: every portal by every binding. Ports are filled in.
func (s *Spec) Paths() []PathSpec {
	bindings := s.Bindings
	if len(bindings) == 0 {
		bindings = []Binding{{}}
	}
	var paths []PathSpec
	for _, portal := range append([]Portal{s.Target.Portal}, s.Portals...) {
		for _, b := range bindings {
			paths = append(paths, PathSpec{Portal: portal.WithPort(), Binding: b})
		}
	}
	return paths
}

// Limits of what a Spec may hold.
const (
	maxPaths     = 256
	maxQueues    = 65535
	minQueueSize = 16 // as nvme-fabrics has it
	maxQueueSize = 1024
)

// Validate checks a Spec by itself. The error is of CauseUsage and names the flag, the value and the remedy.
func (s *Spec) Validate() error {
	if s.SchemaVersion != SchemaVersion {
		return usagef("schemaVersion %d: this hawser knows %d", s.SchemaVersion, SchemaVersion)
	}
	if s.Name != "" {
		if err := ValidName(s.Name); err != nil {
			return fmt.Errorf("--name: %w", err)
		}
	}
	if s.Target.Name == "" {
		return usagef("the target is missing: give its URL, or --transport, --traddr and --nqn")
	}
	if s.Target.Protocol == NVMe {
		if err := nvme.NQN(s.Target.Name).Validate(); err != nil {
			return usagef("--nqn: %w", err)
		}
	}
	for i, p := range s.Portals {
		if p.Protocol != s.Target.Protocol || p.Transport != s.Target.Transport {
			return usagef("--portal %s: it is of another kind than the target %s: all paths of a volume use one protocol and transport", p, s.Target)
		}
		for _, q := range append([]Portal{s.Target.Portal}, s.Portals[:i]...) {
			if p.Equal(q) {
				return usagef("--portal %s: it is given twice: give each portal once", p)
			}
		}
	}
	for i, b := range s.Bindings {
		if b == (Binding{}) {
			return usagef("--bind: it is empty: write IFACE, ADDRESS or IFACE/ADDRESS")
		}
		for _, c := range s.Bindings[:i] {
			if b == c {
				return usagef("--bind %s: it is given twice: give each binding once", b)
			}
		}
	}
	paths := (1 + len(s.Portals)) * max(1, len(s.Bindings))
	if paths > maxPaths {
		return usagef("--portal and --bind make %d paths: at most %d are possible", paths, maxPaths)
	}
	if s.MinPaths < 0 || s.MinPaths > paths {
		return usagef("--min-paths %d: %d asked for by --portal and --bind: give a number from 1 to %d", s.MinPaths, paths, paths)
	}
	switch s.Driver {
	case "", DriverAuto, DriverKernel, DriverUser:
	default:
		return usagef("--driver %s: must be one of auto, kernel, user", quote(s.Driver))
	}
	switch s.Frontend {
	case "", FrontendAuto, FrontendSocket:
	case FrontendUblk, FrontendNBD:
		return &Error{Cause: CauseUnsupported, Err: fmt.Errorf("--frontend %s: this hawser cannot show volumes so", s.Frontend),
			Hint: "use --frontend socket, an NBD server on a unix socket"}
	default:
		return usagef("--frontend %s: must be one of auto, socket", quote(s.Frontend))
	}
	if s.HostNQN != "" {
		if err := s.HostNQN.Validate(); err != nil {
			return usagef("--hostnqn: %w", err)
		}
		if s.HostNQN.Discovery() {
			return usagef("--hostnqn %s: this is the name of discovery services, not of a host", s.HostNQN)
		}
	}
	return s.Options.validate()
}

func (o *Options) validate() error {
	within := func(flag string, v, low, high int) error {
		if v < low || v > high {
			return usagef("--%s %d: must be from %d to %d", flag, v, low, high)
		}
		return nil
	}
	const maxSeconds = 1<<31 - 1
	for _, c := range []struct {
		flag      string
		v         *int
		low, high int
	}{
		{"nr-io-queues", given(o.NrIOQueues), 1, maxQueues},
		{"nr-write-queues", given(o.NrWriteQueues), 1, maxQueues},
		{"nr-poll-queues", given(o.NrPollQueues), 1, maxQueues},
		{"queue-size", given(o.QueueSize), minQueueSize, maxQueueSize},
		// KATO is 32 bits of milliseconds on the wire.
		{"keep-alive-tmo", o.KeepAliveTMO, 0, 1<<32/1000 - 1},
		{"reconnect-delay", o.Reconnect, 1, maxSeconds},
		{"ctrl-loss-tmo", o.CtrlLossTMO, -1, maxSeconds},
		{"fast-io-fail-tmo", o.FastIOFailTMO, -1, maxSeconds},
		{"tos", o.TOS, 0, 255},
	} {
		if c.v == nil {
			continue
		}
		if err := within(c.flag, *c.v, c.low, c.high); err != nil {
			return err
		}
	}
	if !o.DHCHAPCtrlSecret.isZero() && o.DHCHAPSecret.isZero() {
		return usagef("--dhchap-ctrl-secret: the controller is asked to authenticate only where the host does: give --dhchap-secret too")
	}
	return nil
}

func (r SecretRef) isZero() bool { return r.File == "" }

func given(v int) *int {
	if v == 0 {
		return nil
	}
	return &v
}

// MaxNameLen bounds the name of a volume in bytes, so that a socket named after it fits into an address.
const MaxNameLen = 63

// ValidName checks the name of a volume: 1 to 63 characters of a-z A-Z 0-9 . _ : -, the first a letter or digit.
// Such a name is safe as the name of a file. The error is of CauseUsage.
func ValidName(name string) error {
	ok := name != "" && len(name) <= MaxNameLen && isAlnum(rune(name[0])) &&
		strings.IndexFunc(name, func(r rune) bool { return !isAlnum(r) && !strings.ContainsRune("._:-", r) }) < 0
	if !ok {
		return usagef("name %s: use 1 to %d characters of a-z A-Z 0-9 . _ : -, the first a letter or digit", quote(name), MaxNameLen)
	}
	return nil
}
