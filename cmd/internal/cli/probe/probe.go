// Package probe is 'hawser probe'.
package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/attach/hostid"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/initiator"
	"hawser.dev/hawser/cmd/internal/cli/output"
	"hawser.dev/hawser/cmd/internal/cli/size"
	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
)

type options struct {
	spec    attach.Spec
	target  initiator.TargetFlags
	portals []string
	binds   initiator.BindFlags
	flags   initiator.Flags
	count   int
}

// New returns the command.
func New(f *factory.Factory) *cobra.Command {
	opts := &options{}
	cmd := &cobra.Command{
		Use:   "probe TARGET",
		Short: "Say whether this host can talk to a target, and if not, why",
		Long: `Goes through what an attach would do, step by step and on every path, with hawser's own initiator: TCP connect, the NVMe/TCP
handshake (ICReq), Connect with this host's NQN, initialisation of the controller, and a read of the volume's first block. It
says which step failed and why, and how long a round trip takes. It changes nothing on either side.`,
		Example: `  hawser probe nvme://192.0.2.10/nqn.2026-01.org.example:vol1
  hawser probe nvme://192.0.2.10/nqn.2026-01.org.example:vol1 --portal 198.51.100.10 --bind eth1 --bind eth2 -o json`,
		Args: factory.AtMost("TARGET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := opts.complete(cmd, args); err != nil {
				return err
			}
			return run(cmd.Context(), f, opts)
		},
	}
	cmd.Flags().StringArrayVar(&opts.portals, "portal", nil, "probe this further `PORTAL` of the target too; repeatable")
	opts.target.AddFlags(cmd)
	opts.target.Complete(f, cmd, &opts.flags.HostFlags)
	opts.binds.AddFlags(cmd)
	cmd.Flags().IntVar(&opts.count, "count", 10, "measure this `NUMBER` of round trips on each path")
	opts.flags.AddFlags(cmd, 10*time.Second)
	exit.Document(cmd, exit.Partial, exit.Auth, exit.NotFound, exit.Unreachable, exit.Unsupported, exit.Permission, exit.InUse)
	return cmd
}

func (o *options) complete(cmd *cobra.Command, args []string) error {
	targets, err := o.target.Targets(cmd, args)
	if err != nil {
		return err
	}
	o.spec = attach.Spec{SchemaVersion: attach.SchemaVersion, Target: targets[0], HostNQN: o.flags.NQN, HostID: o.flags.ID}
	if o.spec.Bindings, err = o.binds.Bindings(cmd); err != nil {
		return err
	}
	for _, p := range o.portals {
		portal, err := attach.ParsePortal(p)
		if err != nil {
			return fmt.Errorf("--portal: %w", err)
		}
		o.spec.Portals = append(o.spec.Portals, portal)
	}
	if o.count < 1 || o.count > 10000 {
		return exit.Usagef("--count %d: must be from 1 to 10000", o.count)
	}
	if err := initiator.Supported(o.spec.Target.Portal); err != nil {
		return err
	}
	return o.spec.Validate()
}

// Probed is what 'probe' prints.
type Probed struct {
	output.Header
	OK      bool      `json:"ok"`
	Target  nvme.NQN  `json:"target"`
	HostNQN nvme.NQN  `json:"hostNQN"`
	HostID  nvme.UUID `json:"hostID"`
	Paths   []Path    `json:"paths"`
}

// Path is one portal, by one binding.
type Path struct {
	Portal     string            `json:"portal"`
	Binding    string            `json:"binding,omitempty"`
	Local      string            `json:"local,omitempty"`  // addresses of the TCP connection
	Remote     string            `json:"remote,omitempty"` //
	OK         bool              `json:"ok"`
	Steps      []Step            `json:"steps"`
	RoundTrip  *RoundTrip        `json:"roundTrip,omitempty"`
	Controller *Controller       `json:"controller,omitempty"`
	Volumes    []Volume          `json:"volumes,omitempty"`
	Error      *output.ErrorBody `json:"error,omitempty"`
}

// Step is one exchange with the target.
type Step struct {
	Name         string  `json:"name"` // tcp, icreq, connect, initialise, read
	OK           bool    `json:"ok"`
	Milliseconds float64 `json:"milliseconds"`
}

// RoundTrip is how long Keep Alive commands took.
type RoundTrip struct {
	Count  int     `json:"count"`
	Min    float64 `json:"minMilliseconds"`
	Median float64 `json:"medianMilliseconds"`
	Max    float64 `json:"maxMilliseconds"`
}

// Controller is what answered.
type Controller struct {
	CNTLID      uint16 `json:"cntlid"`
	Model       string `json:"model"`
	Serial      string `json:"serial"`
	Firmware    string `json:"firmware"`
	Version     string `json:"version"` // of the specification
	Queues      int    `json:"queues"`  // I/O queues
	QueueDepth  int    `json:"queueDepth"`
	MaxTransfer int    `json:"maxTransfer"` // bytes
}

// Volume is a namespace that this host may use.
type Volume struct {
	NSID      uint32     `json:"nsid"`
	UUID      nvme.UUID  `json:"uuid,omitzero"`
	NGUID     nvme.NGUID `json:"nguid,omitzero"`
	EUI64     nvme.EUI64 `json:"eui64,omitzero"`
	Size      int64      `json:"size"`      // bytes
	BlockSize int        `json:"blockSize"` // bytes
	ReadOnly  bool       `json:"readOnly,omitempty"`
}

type line struct {
	output.Header
	Path
}

func run(ctx context.Context, f *factory.Factory, opts *options) error {
	base, who, err := opts.flags.Options(f)
	if err != nil {
		return err
	}
	ctx, cancel := opts.flags.Timeout.Context(ctx)
	defer cancel()
	doc := Probed{OK: true, Target: nvme.NQN(opts.spec.Target.Name), HostNQN: who.NQN, HostID: who.ID}
	var errs []error
	progress := f.IO.StartProgress("probing")
	for _, p := range opts.spec.Paths() {
		progress.Set("probing %s", p)
		path, err := probe(ctx, p, opts, base, who)
		doc.Paths = append(doc.Paths, path)
		if err != nil {
			errs = append(errs, err)
			doc.OK = false
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			break
		}
	}
	progress.Done()
	lines := make([]output.Document, len(doc.Paths))
	for i, p := range doc.Paths {
		lines[i] = line{Path: p}
	}
	if err := f.Printer().Print(output.View{Doc: doc, Lines: lines, Text: func(t *output.Text) error { return text(t, doc) }}); err != nil {
		return err
	}
	err = errors.Join(errs...)
	if len(errs) > 0 && len(errs) < len(doc.Paths) {
		err = exit.New(exit.Partial, err, exit.Hint(err))
	}
	return err
}

// probe tries one path.
func probe(ctx context.Context, p attach.PathSpec, opts *options, o host.Options, who hostid.Identity) (path Path, err error) {
	path = Path{Portal: p.Portal.String(), Binding: p.Binding.String(), Steps: []Step{}}
	defer func() {
		err = initiator.Explain(ctx, err, who.NQN)
		path.OK, path.Error = err == nil, initiator.Body(err)
	}()
	nqn := nvme.NQN(opts.spec.Target.Name)
	watch := &trace{bind: p.Binding}
	o.Dial = watch.dial
	c, err := host.Connect(ctx, p.Portal.Addr, nqn, o)
	path.Steps = watch.steps(err)
	if watch.local != nil {
		path.Local, path.Remote = watch.local.String(), watch.remote.String()
	}
	if err != nil {
		return path, err
	}
	// A target that does not answer the farewell has been probed all the same.
	defer c.Close(ctx)

	id := c.Identify()
	path.Controller = &Controller{
		CNTLID: c.ID(), Model: id.MN, Serial: id.SN, Firmware: id.FR, Version: c.Version().String(), MaxTransfer: c.MaxTransfer(),
	}
	path.Controller.Queues, path.Controller.QueueDepth = c.Queues()
	if c.KeepAlive() > 0 {
		if path.RoundTrip, err = roundTrips(ctx, c, opts.count); err != nil {
			return path, err
		}
	}
	if nqn.Discovery() {
		return path, nil
	}
	namespaces, err := c.Namespaces(ctx)
	if err != nil {
		return path, err
	}
	ref := opts.spec.Target.Namespace
	found := false
	for _, ns := range namespaces {
		if !identity(ns).Is(ref) {
			continue
		}
		found = true
		path.Volumes = append(path.Volumes, Volume{
			NSID: ns.NSID, UUID: ns.UUID, NGUID: ns.NGUID, EUI64: ns.EUI64, Size: ns.Size, BlockSize: ns.BlockSize, ReadOnly: ns.ReadOnly,
		})
		start := time.Now()
		err := read(ctx, c, ns)
		path.Steps = append(path.Steps, Step{Name: stepRead, OK: err == nil, Milliseconds: ms(time.Since(start))})
		if err != nil {
			return path, fmt.Errorf("read of namespace %d at %s: %w", ns.NSID, path.Portal, err)
		}
	}
	switch {
	case !found && !ref.IsZero():
		return path, exit.New(exit.NotFound, fmt.Errorf("%s has no namespace %s at %s", nqn, ref, path.Portal),
			"the same TARGET without #NAMESPACE lists those there are")
	case !found:
		return path, exit.New(exit.NotFound, fmt.Errorf("%s has no namespace for this host at %s", nqn, path.Portal), "")
	}
	return path, nil
}

func roundTrips(ctx context.Context, c *host.Controller, n int) (*RoundTrip, error) {
	times := make([]time.Duration, n)
	for i := range times {
		var err error
		if times[i], err = c.Ping(ctx); err != nil {
			return nil, err
		}
	}
	slices.Sort(times)
	return &RoundTrip{Count: n, Min: ms(times[0]), Median: ms(times[n/2]), Max: ms(times[n-1])}, nil
}

// read reads the first block, and returns early when ctx ends.
func read(ctx context.Context, c *host.Controller, info host.NamespaceInfo) error {
	ns, err := c.Open(ctx, info.NSID)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	ns.Submit(&host.IO{
		Op: host.OpRead, Length: int64(info.BlockSize), Data: make([]byte, info.BlockSize),
		Done: func(io *host.IO) { done <- io.Err },
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func identity(ns host.NamespaceInfo) attach.Identity {
	return attach.Identity{NSID: ns.NSID, UUID: ns.UUID, NGUID: ns.NGUID, EUI64: ns.EUI64, Size: ns.Size, BlockSize: ns.BlockSize}
}

// refused says whether err is the target's answer to Connect.
func refused(err error) bool {
	var status *nvme.StatusError
	return errors.Is(err, host.ErrAuthRequired) || errors.As(err, &status) && status.Op == "connect"
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

var stepNames = map[string]string{
	stepTCP: "TCP connect", stepICReq: "handshake", stepConnect: "Connect", stepInitialise: "initialise", stepRead: "read",
}

func text(t *output.Text, doc Probed) error {
	for i, p := range doc.Paths {
		if i > 0 {
			t.Printf("\n")
		}
		title := p.Portal
		if p.Binding != "" {
			title = p.Binding + " → " + p.Portal
		}
		t.Printf("%s\n", t.Bold(t.Safe(title)))
		for _, s := range p.Steps {
			word := t.Good("ok")
			if !s.OK {
				word = t.Bad("failed")
			}
			t.Printf("  %-12s %s  %.3f ms\n", stepNames[s.Name], word, s.Milliseconds)
		}
		if r := p.RoundTrip; r != nil {
			t.Printf("  round trip   %.3f ms median, %.3f to %.3f ms, %d of them\n", r.Median, r.Min, r.Max, r.Count)
		}
		if c := p.Controller; c != nil {
			t.Printf("  controller   %d, %s, serial %s, NVMe %s, %d I/O queues of %d, %s a command\n", c.CNTLID, t.Safe(strings.TrimSpace(c.Model)),
				t.Safe(strings.TrimSpace(c.Serial)), c.Version, c.Queues, c.QueueDepth, size.Format(int64(c.MaxTransfer)))
		}
		for _, v := range p.Volumes {
			id := attach.Identity{NSID: v.NSID, UUID: v.UUID, NGUID: v.NGUID, EUI64: v.EUI64}
			t.Printf("  volume       %s, %s in blocks of %d\n", id, size.Format(v.Size), v.BlockSize)
		}
	}
	return nil
}
