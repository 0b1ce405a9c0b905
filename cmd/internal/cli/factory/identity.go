package factory

import (
	"errors"

	"github.com/spf13/cobra"

	"hawser.dev/hawser/attach/hostid"
	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/nvme"
)

// HostFlags are the flags --hostnqn and --hostid, zero where they are not given.
type HostFlags struct {
	NQN nvme.NQN
	ID  nvme.UUID
}

// AddFlags defines them, with the letters that nvme-cli gives them.
func (h *HostFlags) AddFlags(cmd *cobra.Command) {
	cmd.Flags().VarP((*hostNQN)(&h.NQN), "hostnqn", "q", "the host `NQN` (else what 'hawser host show' prints)")
	cmd.Flags().VarP((*hostID)(&h.ID), "hostid", "I", "the host ID, a `UUID`")
}

// Identity returns the identity to show to targets: the flags', completed, or the host's.
func (h *HostFlags) Identity(f *Factory) (hostid.Identity, error) {
	i, err := f.HostIDs().With(h.NQN, h.ID)
	return i, exit.WithHint(err, "'hawser host check' says more; --hostnqn and --hostid do without the files")
}

type hostNQN nvme.NQN

func (v *hostNQN) String() string { return string(*v) }
func (v *hostNQN) Type() string   { return "NQN" }

func (v *hostNQN) Set(s string) error {
	nqn, err := nvme.ParseNQN(s)
	if err == nil {
		err = hostid.ValidHost(nqn)
	}
	*v = hostNQN(nqn)
	return err
}

type hostID nvme.UUID

func (v *hostID) Type() string { return "UUID" }

func (v *hostID) String() string {
	if id := nvme.UUID(*v); !id.IsZero() {
		return id.String()
	}
	return ""
}

func (v *hostID) Set(s string) error {
	id, err := nvme.ParseUUID(s)
	if err == nil && id.IsZero() {
		err = errors.New("a host ID of zero is not allowed")
	}
	*v = hostID(id)
	return err
}
