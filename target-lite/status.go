package targetlite

import (
	"time"

	"hawser.dev/hawser/nvme"
)

// Status is what a Server exports, and to whom, at one moment.
type Status struct {
	Portals     []string           `json:"portals"` // ADDR:PORT, as bound
	Subsystems  []SubsystemStatus  `json:"subsystems"`
	Connections int                `json:"connections"`
	Pending     int                `json:"pending"`   // of them, before Connect
	Discovery   []ControllerStatus `json:"discovery"` // discovery controllers
	Draining    bool               `json:"draining"`
	Started     time.Time          `json:"started"`
}

// SubsystemStatus is one subsystem in a Status.
type SubsystemStatus struct {
	NQN          nvme.NQN           `json:"nqn"`
	Serial       string             `json:"serial"`
	Model        string             `json:"model"`
	AllowAnyHost bool               `json:"allowAnyHost"`
	Hosts        []nvme.NQN         `json:"hosts"`
	Namespaces   []NamespaceStatus  `json:"namespaces"`
	Controllers  []ControllerStatus `json:"controllers"`
}

// NamespaceStatus is one namespace in a Status.
type NamespaceStatus struct {
	NSID       uint32     `json:"nsid"`
	Backing    string     `json:"backing"` // what it was opened from
	Size       int64      `json:"size"`    // bytes
	BlockSize  int        `json:"blockSize"`
	UUID       nvme.UUID  `json:"uuid"`
	NGUID      nvme.NGUID `json:"nguid"`
	ReadOnly   bool       `json:"readOnly"`
	Reads      uint64     `json:"reads"` // commands since the start
	Writes     uint64     `json:"writes"`
	ReadBytes  uint64     `json:"readBytes"`
	WriteBytes uint64     `json:"writeBytes"`
	Errors     uint64     `json:"errors"` // of the medium
}

// ControllerStatus is one controller, which is one host's association.
type ControllerStatus struct {
	CNTLID  uint16        `json:"cntlid"`
	HostNQN nvme.NQN      `json:"hostNQN"`
	HostID  nvme.UUID     `json:"hostID"`
	Portal  string        `json:"portal"`  // local address
	Address string        `json:"address"` // the host's
	Queues  int           `json:"queues"`  // I/O queues connected
	State   string        `json:"state"`   // connecting, live, shutdown, failed
	KATO    time.Duration `json:"kato"`    // 0: no keep alive
	Since   time.Time     `json:"since"`
}
