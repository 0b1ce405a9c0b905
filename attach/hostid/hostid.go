// Package hostid knows the identity that this host shows to NVMe targets: the host NQN and the host ID.
//
// The files /etc/nvme/hostnqn and /etc/nvme/hostid are honoured as nvme-cli does. A user who is not root may have a pair of
// their own; where there are no files the identity is derived from the machine, the same at every call.
package hostid

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"hawser.dev/hawser/nvme"
)

// SystemDir holds the identity of the machine.
const SystemDir = "/etc/nvme"

const (
	nqnFile = "hostnqn"
	idFile  = "hostid"

	maxFile = 4096 // bytes; a longer identity file is refused
)

// An Identity is a host NQN with its host ID. Targets and kernels want the pair to be one to one.
type Identity struct {
	NQN nvme.NQN
	ID  nvme.UUID

	NQNSource string // where the NQN comes from: a file, or words
	IDSource  string
	Permanent bool // false: derived from what a new boot or a new installation changes
}

// Consistent says whether the NQN is of the uuid form and names the host ID, or is of another form.
func (i Identity) Consistent() bool {
	id, ok := uuidOf(i.NQN)
	return !ok || id == i.ID
}

// An Error says which file or source of the identity is at fault.
type Error struct {
	Op   string // "read", "write"
	Path string
	Err  error
}

func (e *Error) Error() string { return e.Op + " " + e.Path + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// ExistsError is returned by Create where files hold another identity than the one asked for.
type ExistsError struct{ Have, Want Identity }

func (e *ExistsError) Error() string {
	if e.Have.NQN != e.Want.NQN {
		return fmt.Sprintf("host NQN is %s already, not %s", e.Have.NQN, e.Want.NQN)
	}
	return fmt.Sprintf("host ID is %s already, not %s", e.Have.ID, e.Want.ID)
}

// A Store finds the identity of a user on this machine.
type Store struct {
	Root string // stands for / ; empty is /
	Dir  string // where this user's files are: SystemDir for root
	UID  int
}

// New returns the Store for a user: root's files are in SystemDir, those of others in $XDG_STATE_HOME/hawser or
// ~/.local/state/hawser.
func New(uid int, lookupEnv func(string) (string, bool)) *Store {
	s := &Store{Dir: SystemDir, UID: uid}
	if uid != 0 {
		s.Dir = ""
		if v, _ := lookupEnv("XDG_STATE_HOME"); filepath.IsAbs(v) {
			s.Dir = filepath.Join(v, "hawser")
		} else if v, _ := lookupEnv("HOME"); filepath.IsAbs(v) {
			s.Dir = filepath.Join(v, ".local", "state", "hawser")
		}
	}
	return s
}

// Load returns the identity to use: the user's files, else the machine's files, else, for root, the machine's UUID as
// nvme-cli takes it, else one derived from the machine ID. It writes nothing.
func (s *Store) Load() (Identity, error) {
	for _, dir := range s.dirs() {
		i, found, err := s.files(dir)
		if err != nil {
			return Identity{}, err
		}
		if found {
			return s.complete(i)
		}
	}
	id, source, permanent, err := s.machine()
	if err != nil {
		return Identity{}, err
	}
	return Identity{NQN: nvme.UUIDNQN(id), ID: id, NQNSource: source, IDSource: source, Permanent: permanent}, nil
}

// With returns the identity with the parts replaced that are not zero; of a lone part the other one is made.
func (s *Store) With(nqn nvme.NQN, id nvme.UUID) (Identity, error) {
	if nqn == "" && id.IsZero() {
		return s.Load()
	}
	if nqn != "" {
		if err := ValidHost(nqn); err != nil {
			return Identity{}, err
		}
	}
	return s.complete(Identity{NQN: nqn, ID: id, NQNSource: "given", IDSource: "given", Permanent: true})
}

func (s *Store) dirs() []string {
	if s.Dir == "" || s.Dir == SystemDir {
		return []string{SystemDir}
	}
	return []string{s.Dir, SystemDir}
}

// files reads the pair in a directory; a part that is not there stays zero.
func (s *Store) files(dir string) (i Identity, found bool, err error) {
	if text, path, err := s.line(dir, nqnFile); err != nil {
		return i, false, err
	} else if text != "" {
		if i.NQN, err = nvme.ParseNQN(text); err == nil {
			err = ValidHost(i.NQN)
		}
		if err != nil {
			return i, false, &Error{"read", path, err}
		}
		i.NQNSource = path
	}
	if text, path, err := s.line(dir, idFile); err != nil {
		return i, false, err
	} else if text != "" {
		if i.ID, err = nvme.ParseUUID(text); err == nil && i.ID.IsZero() {
			err = errors.New("a host ID of zero is not allowed")
		}
		if err != nil {
			return i, false, &Error{"read", path, err}
		}
		i.IDSource = path
	}
	i.Permanent = true
	return i, i.NQNSource != "" || i.IDSource != "", nil
}

// complete makes the missing part of a pair from the other, as nvme-cli does.
func (s *Store) complete(i Identity) (Identity, error) {
	switch {
	case i.NQN == "":
		i.NQN, i.NQNSource = nvme.UUIDNQN(i.ID), "made from the host ID"
	case i.ID.IsZero():
		if id, ok := uuidOf(i.NQN); ok {
			i.ID, i.IDSource = id, "made from the host NQN"
			break
		}
		i.ID, i.IDSource = derive("hostnqn", string(i.NQN)), "derived from the host NQN"
	}
	return i, nil
}

// machine returns what identifies this machine, or this boot of it, and this user.
func (s *Store) machine() (id nvme.UUID, source string, permanent bool, err error) {
	if s.UID == 0 {
		// libnvme asks DMI, then the device tree. Boards without a UUID of their own report one digit throughout.
		for _, path := range []string{"/sys/class/dmi/id/product_uuid", "/proc/device-tree/ibm,partition-uuid"} {
			text, _, err := s.line(filepath.Split(path))
			if err != nil {
				continue
			}
			if id, err := nvme.ParseUUID(strings.TrimRight(text, "\x00")); err == nil && !uniform(id) {
				return id, "machine UUID (" + path + ")", true, nil
			}
		}
	}
	uid := strconv.Itoa(s.UID)
	if text, _, err := s.line("/etc", "machine-id"); err == nil && len(text) == 32 && strings.Trim(text, "0123456789abcdef") == "" {
		return derive("machine-id", text, uid), "derived from /etc/machine-id", true, nil
	}
	text, path, err := s.line("/proc/sys/kernel/random", "boot_id")
	if err != nil {
		return id, "", false, err
	}
	if text == "" {
		return id, "", false, &Error{"read", path, errors.New("nothing identifies this machine: /etc/machine-id is missing as well")}
	}
	// Containers share the boot ID; most of them have a host name of their own.
	host, err := os.Hostname()
	if err != nil {
		return id, "", false, fmt.Errorf("host name: %w", err)
	}
	return derive("boot-id", text, host, uid), "derived from the boot ID: the next boot changes it", false, nil
}

// line reads a file of one line. A file that is missing, empty, or not for this user to read is "".
func (s *Store) line(dir, name string) (text, path string, err error) {
	path = filepath.Join(dir, name)
	f, err := os.Open(filepath.Join(s.Root, path))
	if errors.Is(err, fs.ErrNotExist) || s.UID != 0 && errors.Is(err, fs.ErrPermission) {
		return "", path, nil
	}
	if err != nil {
		return "", path, &Error{"read", path, cause(err)}
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", path, &Error{"read", path, cause(err)}
	}
	if len(b) > maxFile {
		return "", path, &Error{"read", path, fmt.Errorf("longer than %d bytes", maxFile)}
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return string(bytes.TrimSpace(line)), path, nil
}

// Create makes the identity permanent in the user's directory: nqn and id as given, what is not given as it is now. It
// returns changed false where the files already say so, and an *ExistsError where they say something else, unless force is set.
// With plan it writes nothing.
func (s *Store) Create(nqn nvme.NQN, id nvme.UUID, force, plan bool) (i Identity, changed bool, err error) {
	var have Identity
	for _, dir := range s.dirs() {
		var found bool
		if have, found, err = s.files(dir); err != nil && !force {
			return Identity{}, false, err
		}
		if found && err == nil {
			break
		}
		have = Identity{}
	}
	asked := nqn != "" || !id.IsZero()
	switch {
	case asked:
		i, err = s.With(nqn, id)
	case have.NQN != "" || !have.ID.IsZero():
		i, err = s.complete(have)
	default:
		if i, err = s.Load(); err != nil || !i.Permanent {
			i, err = s.With("", nvme.NewUUID())
		}
	}
	if err != nil {
		return Identity{}, false, err
	}
	if have.NQN == i.NQN && have.ID == i.ID {
		return have, false, nil
	}
	if s.Dir == "" {
		return Identity{}, false, errors.New("no place to keep the identity: neither XDG_STATE_HOME nor HOME is set to an absolute path")
	}
	// Only what the user's own files say stands in the way; a user may differ from the machine.
	own, _, err := s.files(s.Dir)
	if err == nil && !force && (own.NQN != "" && own.NQN != i.NQN || !own.ID.IsZero() && own.ID != i.ID) {
		return Identity{}, false, &ExistsError{Have: own, Want: i}
	}
	i.NQNSource, i.IDSource, i.Permanent = filepath.Join(s.Dir, nqnFile), filepath.Join(s.Dir, idFile), true
	if plan {
		return i, true, nil
	}
	if err := os.MkdirAll(filepath.Join(s.Root, s.Dir), 0o755); err != nil {
		return Identity{}, false, &Error{"write", s.Dir, cause(err)}
	}
	if err := s.write(i.IDSource, i.ID.String()); err != nil {
		return Identity{}, false, err
	}
	if err := s.write(i.NQNSource, string(i.NQN)); err != nil {
		return Identity{}, false, err
	}
	return i, true, nil
}

// write replaces a file as a whole, and survives a loss of power.
func (s *Store) write(path, text string) (err error) {
	defer func() {
		if err != nil {
			err = &Error{"write", path, cause(err)}
		}
	}()
	full := filepath.Join(s.Root, path)
	f, err := os.CreateTemp(filepath.Dir(full), "."+filepath.Base(full)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone when it was renamed
	_, err = f.WriteString(text + "\n")
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), full); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(full))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// uuidOf returns the UUID in an NQN of the form nqn.2014-08.org.nvmexpress:uuid:UUID (NVMe Base 2.1, 4.7).
func uuidOf(nqn nvme.NQN) (nvme.UUID, bool) {
	text, ok := strings.CutPrefix(string(nqn), "nqn.2014-08.org.nvmexpress:uuid:")
	if !ok {
		return nvme.UUID{}, false
	}
	id, err := nvme.ParseUUID(text)
	return id, err == nil
}

// ValidHost checks an NQN as the name of a host.
func ValidHost(nqn nvme.NQN) error {
	if err := nqn.Validate(); err != nil {
		return err
	}
	if nqn.Discovery() {
		return &nvme.NQNError{NQN: string(nqn), Reason: "names the discovery service, not a host"}
	}
	return nil
}

// derive hashes parts to a UUID of version 8 (RFC 9562, 5.8).
func derive(kind string, parts ...string) (id nvme.UUID) {
	h := sha256.New()
	for _, p := range append([]string{"hawser host identity", kind}, parts...) {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p))))
		io.WriteString(h, p)
	}
	copy(id[:], h.Sum(nil))
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

func uniform(id nvme.UUID) bool {
	for _, b := range id {
		if b != id[0] {
			return false
		}
	}
	return true
}

// cause takes the path out of an error that Error says it in.
func cause(err error) error {
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		return p.Err
	}
	if l := (*os.LinkError)(nil); errors.As(err, &l) {
		return l.Err
	}
	return err
}
