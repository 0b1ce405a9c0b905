package target

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/output"
	"hawser.dev/hawser/cmd/internal/cli/size"
	"hawser.dev/hawser/cmd/internal/control"
	"hawser.dev/hawser/nvme"
	targetlite "hawser.dev/hawser/target-lite"
)

type listOptions struct {
	control string
	timeout factory.Timeout
}

func newList(f *factory.Factory) *cobra.Command {
	opts := &listOptions{}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List running targets, their volumes, and the hosts connected",
		Long: `Asks the targets of this user that run on this machine ('hawser target serve') what they export, and to whom. One that was
started with a --control of its own is asked by the same --control.`,
		Example: "  hawser target list\n  hawser target list -o json",
		Args:    factory.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return list(cmd.Context(), f, opts)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVar(&opts.control, "control", "", "ask the target at this unix `SOCKET`, and no other")
	opts.timeout.AddFlag(cmd, 5*time.Second)
	exit.Document(cmd, exit.Partial, exit.NotFound, exit.Unreachable, exit.Permission)
	return cmd
}

// Listed is what 'target list' prints.
type Listed struct {
	output.Header
	Targets []Target `json:"targets"`
}

// Target is one running target.
type Target struct {
	PID         int            `json:"pid"`
	Control     string         `json:"control"` // socket
	Started     time.Time      `json:"started"`
	Draining    bool           `json:"draining"`
	Connections int            `json:"connections"` // TCP
	Portals     []string       `json:"portals"`
	Volumes     []ListedVolume `json:"volumes"`
	Hosts       []Host         `json:"hosts"`
}

// ListedVolume is a volume and what was done with it since the start.
type ListedVolume struct {
	Volume
	AllowAnyHost bool       `json:"allowAnyHost"`
	AllowedHosts []nvme.NQN `json:"allowedHosts"`
	Reads        uint64     `json:"reads"`
	Writes       uint64     `json:"writes"`
	ReadBytes    uint64     `json:"readBytes"`
	WriteBytes   uint64     `json:"writeBytes"`
	Errors       uint64     `json:"errors"`
}

// Host is one host's connection to a subsystem: a controller.
type Host struct {
	Target           nvme.NQN  `json:"target"`
	HostNQN          nvme.NQN  `json:"hostNQN"`
	HostID           nvme.UUID `json:"hostID"`
	CNTLID           uint16    `json:"cntlid"`
	Portal           string    `json:"portal"`
	Address          string    `json:"address"` // the host's
	Queues           int       `json:"queues"`  // I/O queues
	State            string    `json:"state"`
	KeepAliveSeconds float64   `json:"keepAliveSeconds"` // 0 none
	Since            time.Time `json:"since"`
}

type listedLine struct {
	output.Header
	Target
}

func list(ctx context.Context, f *factory.Factory, opts *listOptions) error {
	sockets := []string{opts.control}
	if opts.control == "" {
		found, err := findSockets(socketDir(f))
		if err != nil {
			return err
		}
		sockets = sockets[:0]
		for _, pid := range slices.Sorted(maps.Keys(found)) {
			sockets = append(sockets, found[pid])
		}
	}
	ctx, cancel := opts.timeout.Context(ctx)
	defer cancel()
	doc := Listed{Targets: []Target{}}
	var failed []error
	for _, path := range sockets {
		t, err := ask(ctx, path)
		switch {
		case err == nil:
			doc.Targets = append(doc.Targets, t)
		case control.IsDown(err) && opts.control != "":
			return exit.New(exit.NotFound, fmt.Errorf("--control %s: no target answers there", path), "'hawser target list' without --control finds those that use the default")
		case control.IsDown(err):
			// What a target that was killed left behind.
		default:
			failed = append(failed, factory.Explain(ctx, err))
		}
	}
	if len(failed) > 0 && len(doc.Targets) == 0 {
		return errors.Join(failed...)
	}
	lines := make([]output.Document, len(doc.Targets))
	for i, t := range doc.Targets {
		lines[i] = listedLine{Target: t}
	}
	err := f.Printer().Print(output.View{Doc: doc, Lines: lines, Text: func(t *output.Text) error { return text(t, doc) }})
	if len(failed) > 0 {
		err = errors.Join(err, exit.New(exit.Partial, errors.Join(failed...), ""))
	}
	return err
}

func ask(ctx context.Context, path string) (Target, error) {
	c, err := control.Dial(ctx, path, service)
	if err != nil {
		return Target{}, err
	}
	defer c.Close()
	var st targetlite.Status
	if err := c.Call(ctx, "status", struct{}{}, &st); err != nil {
		return Target{}, err
	}
	t := Target{
		PID: c.Server().PID, Control: path, Started: st.Started, Draining: st.Draining, Connections: st.Connections,
		Portals: st.Portals, Volumes: []ListedVolume{}, Hosts: []Host{},
	}
	for _, sub := range st.Subsystems {
		for _, ns := range sub.Namespaces {
			t.Volumes = append(t.Volumes, ListedVolume{
				Volume: exported(st.Portals, sub.NQN, ns), AllowAnyHost: sub.AllowAnyHost, AllowedHosts: append([]nvme.NQN{}, sub.Hosts...),
				Reads: ns.Reads, Writes: ns.Writes, ReadBytes: ns.ReadBytes, WriteBytes: ns.WriteBytes, Errors: ns.Errors,
			})
		}
		for _, c := range sub.Controllers {
			t.Hosts = append(t.Hosts, host(sub.NQN, c))
		}
	}
	for _, c := range st.Discovery {
		t.Hosts = append(t.Hosts, host(nvme.DiscoveryNQN, c))
	}
	return t, nil
}

func host(nqn nvme.NQN, c targetlite.ControllerStatus) Host {
	return Host{
		Target: nqn, HostNQN: c.HostNQN, HostID: c.HostID, CNTLID: c.CNTLID, Portal: c.Portal, Address: c.Address,
		Queues: c.Queues, State: c.State, KeepAliveSeconds: c.KATO.Seconds(), Since: c.Since,
	}
}

func text(t *output.Text, doc Listed) error {
	if len(doc.Targets) == 0 {
		t.Printf("no target is running\n")
		return nil
	}
	var volumes, hosts [][]string
	for _, x := range doc.Targets {
		pid := strconv.Itoa(x.PID)
		for _, v := range x.Volumes {
			n := 0
			for _, h := range x.Hosts {
				if h.Target == v.Target {
					n++
				}
			}
			volumes = append(volumes, []string{pid, strings.Join(x.Portals, " "), string(v.Target), strconv.FormatUint(uint64(v.NSID), 10),
				size.Format(v.Size), v.Backing, strconv.Itoa(n)})
		}
		for _, h := range x.Hosts {
			state := t.Good(h.State)
			if h.State != "live" {
				state = t.Warn(h.State)
			}
			hosts = append(hosts, []string{pid, h.Address, h.Portal, string(h.HostNQN), string(h.Target), strconv.Itoa(h.Queues), state})
		}
	}
	if err := t.Table([]string{"PID", "PORTALS", "TARGET", "NSID", "SIZE", "BACKING", "HOSTS"}, volumes); err != nil || len(hosts) == 0 {
		return err
	}
	t.Printf("\n")
	return t.Table([]string{"PID", "HOST", "PORTAL", "HOST NQN", "TARGET", "QUEUES", "STATE"}, hosts)
}
