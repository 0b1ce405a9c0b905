// Package show is 'hawser show'.
package show

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/attach"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/factory"
	"hawser.dev/hawser/cmd/internal/cli/output"
	"hawser.dev/hawser/cmd/internal/cli/volume"
)

// Document is what 'show' prints: one volume, in the shape that all verbs print volumes in.
type Document struct {
	output.Header
	Volumes []attach.Volume `json:"volumes"`
}

// New returns the command.
func New(f *factory.Factory) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show VOLUME",
		Short: "Show all of one volume",
		Long: `Shows an attached volume: its identifiers, its paths with their queues and timeouts, who has the device open, and the process
behind it. VOLUME is a name or an identifier, a device, or the URL of a target.`,
		Example: `  hawser show data
  hawser show nvme://192.0.2.10/nqn.2026-01.org.example:vol1 -o yaml`,
		Args:              factory.ExactArgs("VOLUME"),
		RunE:              func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), f, args[0]) },
		ValidArgsFunction: volume.Complete(f),
	}
	exit.Document(cmd, exit.NotFound, exit.Permission)
	return cmd
}

func run(ctx context.Context, f *factory.Factory, arg string) error {
	sel, err := attach.ParseSelector(arg)
	if err != nil {
		return err
	}
	m, err := volume.NewManager(f)
	if err != nil {
		return err
	}
	v, err := m.Show(ctx, sel)
	if err != nil {
		return err
	}
	return f.Printer().Print(output.View{Doc: Document{Volumes: []attach.Volume{v}}, Text: func(t *output.Text) error { return text(t, v) }})
}

func text(t *output.Text, v attach.Volume) error {
	fields := [][2]string{{"name", v.Name}, {"state", volume.State(t, v)}, {"device", v.Device}, {"size", fmt.Sprintf("%s (%d bytes)", volume.Size(v), v.Size)}}
	add := func(name, value string) {
		if value != "" {
			fields = append(fields, [2]string{name, value})
		}
	}
	add("warning", v.Warning)
	if v.BlockSize > 0 {
		add("block size", strconv.Itoa(v.BlockSize))
	}
	if v.ReadOnly {
		add("access", "read-only")
	}
	add("uuid", v.UUID)
	add("nguid", v.NGUID)
	add("eui64", v.EUI64)
	if v.NSID > 0 {
		add("nsid", strconv.FormatUint(uint64(v.NSID), 10))
	}
	add("target", v.Target)
	add("asked for", v.URL)
	add("host NQN", v.HostNQN)
	add("host ID", v.HostID)
	add("driver", v.Driver+", frontend "+v.Frontend)
	if a := v.Agent; a != nil {
		add("agent", agent(a))
		add("log", a.Log)
	}
	add("since", v.Since)
	t.Fields(fields...)

	t.Printf("\n")
	rows := make([][]string, len(v.Paths))
	for i, p := range v.Paths {
		queues, keepAlive := "-", "-"
		if p.Queues > 0 {
			queues = fmt.Sprintf("%d × %d", p.Queues, p.QueueDepth)
		}
		if p.KeepAliveTMO > 0 {
			keepAlive = fmt.Sprintf("%d s", p.KeepAliveTMO)
		}
		var digests []string
		if p.HdrDigest {
			digests = append(digests, "header")
		}
		if p.DataDigest {
			digests = append(digests, "data")
		}
		state := t.Warn(p.State)
		if p.State == attach.PathLive {
			state = t.Good(p.State)
		}
		rows[i] = []string{p.Portal, dash(p.Binding), state, dash(p.ANA), queues, keepAlive, dash(strings.Join(digests, ", ")), p.Reason}
	}
	if err := t.Table([]string{"PATH", "BINDING", "STATE", "ANA", "QUEUES", "KEEP-ALIVE", "DIGESTS", ""}, rows); err != nil {
		return err
	}
	if len(v.Clients) == 0 {
		return nil
	}
	t.Printf("\n")
	rows = make([][]string, len(v.Clients))
	for i, c := range v.Clients {
		rows[i] = []string{strconv.Itoa(c.PID), strconv.Itoa(c.UID), dash(c.Command)}
	}
	return t.Table([]string{"USED BY PID", "UID", "COMMAND"}, rows)
}

// agent says which process it is, and who starts it again when it dies.
func agent(a *attach.Agent) string {
	s := a.Name
	if a.PID > 0 {
		s += fmt.Sprintf(", process %d", a.PID)
	}
	switch a.Supervisor {
	case "monitor":
		s += fmt.Sprintf(", in a session of its own under monitor %d", a.MonitorPID)
	case "none":
		s += ", its monitor is gone: nobody restarts it"
	}
	return s
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
