package userdriver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/attach/agent"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/initiator"
	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/host"
)

// Initiator connects to NVMe/TCP targets by nvme/host.
type Initiator struct{ Log *slog.Logger }

var (
	_ agent.Opener  = (*Initiator)(nil)
	_ attach.Prober = (*Initiator)(nil)
)

func (i *Initiator) log() *slog.Logger {
	if i.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return i.Log
}

// options are the host's for a path of spec.
func (i *Initiator) options(spec *attach.Spec, p attach.PathSpec) host.Options {
	o := host.Options{
		HostNQN: spec.HostNQN, HostID: spec.HostID,
		HeaderDigest: spec.Options.HdrDigest, DataDigest: spec.Options.DataDigest,
		Queues: spec.Options.NrIOQueues, QueueSize: spec.Options.QueueSize,
		Interface: p.Binding.Interface, Source: p.Binding.Source, Logger: i.log(),
	}
	if k := spec.Options.KeepAliveTMO; k != nil {
		if o.KeepAlive = time.Duration(*k) * time.Second; o.KeepAlive == 0 {
			o.KeepAlive = -1
		}
	}
	if t := spec.Options.TOS; t != nil {
		o.TOS = *t
	}
	return o
}

// Volumes lists the namespaces of a target by a controller with no more I/O queues than it must have.
func (i *Initiator) Volumes(ctx context.Context, spec *attach.Spec) ([]attach.Identity, error) {
	var failed error
	for _, p := range spec.Paths() {
		o := i.options(spec, p)
		o.Queues, o.QueueSize = 1, 0
		ids, err := volumes(ctx, p.Portal.Addr, nvme.NQN(spec.Target.Name), o)
		if err == nil {
			return ids, nil
		}
		failed = errors.Join(failed, classify(ctx, err, spec))
	}
	return nil, failed
}

func volumes(ctx context.Context, addr nvme.Addr, nqn nvme.NQN, o host.Options) (_ []attach.Identity, err error) {
	c, err := host.Connect(ctx, addr, nqn, o)
	if err != nil {
		return nil, err
	}
	defer c.Close(ctx)
	list, err := c.Namespaces(ctx)
	if err != nil {
		return nil, err
	}
	ids := make([]attach.Identity, len(list))
	for k := range list {
		ids[k] = identityOf(&list[k])
	}
	return ids, nil
}

// Open connects to the volume of r.
func (i *Initiator) Open(ctx context.Context, r *attach.Record) (agent.Opened, error) {
	if len(r.Paths) != 1 {
		return nil, fmt.Errorf("record of %s: %d paths, the user driver holds one", r.Name, len(r.Paths))
	}
	connect := func(ctx context.Context) (*host.Namespace, error) { return i.connect(ctx, r) }
	ns, err := connect(ctx)
	if err != nil {
		return nil, classify(ctx, err, &r.Spec)
	}
	return newVolume(r, ns, connect, i.log()), nil
}

// connect makes a controller and opens the namespace that the record identifies: first the one of the recorded ID, which is
// a hint, then whichever it is.
func (i *Initiator) connect(ctx context.Context, r *attach.Record) (_ *host.Namespace, err error) {
	p := r.Paths[0]
	c, err := host.Connect(ctx, p.Portal.Addr, nvme.NQN(r.Spec.Target.Name), i.options(&r.Spec, p))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.Close(ctx)
		}
	}()
	if r.Identity.NSID != 0 {
		if ns, err := c.Open(ctx, r.Identity.NSID); err == nil && identityOf(&ns.NamespaceInfo).Same(r.Identity) {
			return ns, nil
		}
	}
	list, err := c.Namespaces(ctx)
	if err != nil {
		return nil, err
	}
	for k := range list {
		if identityOf(&list[k]).Same(r.Identity) {
			return c.Open(ctx, list[k].NSID)
		}
	}
	for k := range list {
		if list[k].NSID == r.Identity.NSID {
			return nil, &attach.Error{Cause: attach.CauseInUse, Err: fmt.Errorf("namespace %d of %s is %s now, not %s", list[k].NSID, r.Spec.Target.Name, identityOf(&list[k]), r.Identity),
				Hint: "the target has changed what it shows: look at it before using either"}
		}
	}
	return nil, &attach.Error{Cause: attach.CauseNotFound, Err: fmt.Errorf("%s has no namespace %s", r.Spec.Target.Name, r.Identity)}
}

// classify gives an error of nvme/host its cause and remedy.
func classify(ctx context.Context, err error, spec *attach.Spec) error {
	if err == nil || errors.As(err, new(*attach.Error)) {
		return err
	}
	err = initiator.Explain(ctx, err, spec.HostNQN)
	return &attach.Error{Cause: attach.Cause(exit.CodeOf(err)), Err: err, Hint: exit.Hint(err)}
}
