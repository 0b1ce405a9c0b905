package hostid

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"

	"hawser.dev/hawser/nvme"
)

// A Finding is what Check has to say about the identity.
type Finding struct {
	Problem bool   // else a remark: it works, but an operator should know
	What    string // one line
	Remedy  string // one line, may be empty
}

// Check looks for what makes targets or the kernel refuse this host, or take it for another. A problem in the files
// is a Finding, not an error.
func (s *Store) Check() (Identity, []Finding, error) {
	i, err := s.Load()
	var file *Error
	if errors.As(err, &file) {
		return i, []Finding{{true, file.Error(), "mend the file, or 'hawser host create --force' writes it anew"}}, nil
	}
	if err != nil {
		return i, nil, err
	}
	var found []Finding
	if !i.Consistent() {
		found = append(found, Finding{false,
			fmt.Sprintf("host NQN and host ID name different UUIDs: %s, %s. This works as long as no other host has one of them", i.NQN, i.ID),
			"'hawser host create --force --hostnqn " + string(i.NQN) + "' makes the host ID follow the host NQN"})
	}
	if !i.Permanent {
		found = append(found, Finding{false, "the identity is " + i.NQNSource, "'hawser host create' makes one that lasts"})
	}
	controllers, err := s.controllers()
	if err != nil {
		return i, found, err
	}
	for _, c := range controllers {
		// nvmf_host_add (Linux drivers/nvme/host/fabrics.c) holds NQN and ID one to one over all connections.
		switch {
		case c.id == i.ID && c.nqn != i.NQN:
			found = append(found, Finding{true,
				fmt.Sprintf("%s is connected with host ID %s but host NQN %s: the kernel refuses %s", c.name, c.id, c.nqn, i.NQN),
				"use that host NQN, or disconnect it first"})
		case c.nqn == i.NQN && c.id != i.ID:
			found = append(found, Finding{true,
				fmt.Sprintf("%s is connected with host NQN %s but host ID %s: the kernel refuses %s", c.name, c.nqn, c.id, i.ID),
				"use that host ID, or disconnect it first"})
		}
	}
	return i, found, nil
}

type controller struct {
	name string
	nqn  nvme.NQN
	id   nvme.UUID
}

// controllers lists the kernel's fabrics controllers with the identity each one uses. One that goes away meanwhile is left out.
func (s *Store) controllers() ([]controller, error) {
	const class = "/sys/class/nvme"
	entries, err := os.ReadDir(filepath.Join(s.Root, class))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &Error{"read", class, cause(err)}
	}
	var list []controller
	for _, e := range entries {
		dir := filepath.Join(class, e.Name())
		nqn, _, err1 := s.line(dir, nqnFile)
		id, _, err2 := s.line(dir, idFile)
		if err1 != nil || err2 != nil || nqn == "" || id == "" {
			continue
		}
		c := controller{name: e.Name()}
		if c.nqn, err = nvme.ParseNQN(nqn); err != nil {
			continue
		}
		if c.id, err = nvme.ParseUUID(id); err == nil {
			list = append(list, c)
		}
	}
	sort.Slice(list, func(a, b int) bool { return list[a].name < list[b].name })
	return list, nil
}
