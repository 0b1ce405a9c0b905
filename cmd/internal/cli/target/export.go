package target

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"hawser.dev/hawser/cmd/internal/cli/exit"
	"hawser.dev/hawser/cmd/internal/cli/size"
	"hawser.dev/hawser/nvme"
)

// An export is one value of --export.
type export struct {
	path   string // or mem:NAME, null:NAME
	nqn    nvme.NQN
	nsid   uint32
	uuid   nvme.UUID
	block  int
	size   int64
	shared bool
}

const exportForm = "PATH[,nqn=NQN][,nsid=N][,uuid=UUID][,block=512|4096][,size=SIZE][,shared]"

// parseExport reads one value of --export. A comma in the path is written \, .
func parseExport(s string) (e export, err error) {
	fields := splitCommas(s)
	e.path = fields[0]
	if e.path == "" {
		return e, errors.New("the path is missing; the form is " + exportForm)
	}
	seen := make(map[string]bool)
	for _, field := range fields[1:] {
		key, value, hasValue := strings.Cut(field, "=")
		if seen[key] {
			return e, fmt.Errorf("%s is given twice", key)
		}
		seen[key] = true
		if hasValue == (key == "shared") {
			return e, fmt.Errorf("%q: the form is %s", field, exportForm)
		}
		switch key {
		case "nqn":
			if e.nqn, err = nvme.ParseNQN(value); err == nil && e.nqn.Discovery() {
				err = fmt.Errorf("nqn=%s names the discovery service, which every portal has already", value)
			}
		case "nsid":
			n, parseErr := strconv.ParseUint(value, 10, 32)
			if parseErr != nil || n == 0 || n >= 0xffffffff {
				err = fmt.Errorf("nsid=%s: a namespace ID is a number from 1 to 4294967294", value)
			}
			e.nsid = uint32(n)
		case "uuid":
			if e.uuid, err = nvme.ParseUUID(value); err == nil && e.uuid.IsZero() {
				err = fmt.Errorf("uuid=%s: a UUID of zero is none", value)
			}
		case "block":
			switch value {
			case "512", "4096":
				e.block, _ = strconv.Atoi(value)
			default:
				err = fmt.Errorf("block=%s: blocks have 512 or 4096 bytes", value)
			}
		case "size":
			if e.size, err = size.Parse(value); err == nil && e.size == 0 {
				err = errors.New("nothing cannot be exported")
			}
			if err != nil {
				err = fmt.Errorf("size=%s: %w", value, err)
			}
		case "shared":
			e.shared = true
		default:
			err = fmt.Errorf("unknown option %q; the form is %s", key, exportForm)
		}
		if err != nil {
			return e, err
		}
	}
	return e, nil
}

// splitCommas splits at commas that no backslash stands before. A backslash elsewhere stands for itself.
func splitCommas(s string) []string {
	var fields []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == ',':
			b.WriteByte(',')
			i++
		case s[i] == ',':
			fields = append(fields, b.String())
			b.Reset()
		default:
			b.WriteByte(s[i])
		}
	}
	return append(fields, b.String())
}

// parseExports reads all values of --export and checks them against each other.
func parseExports(values []string) ([]export, error) {
	type space struct {
		nqn  nvme.NQN
		nsid uint32
	}
	paths, spaces, uuids := make(map[string]string), make(map[space]string), make(map[nvme.UUID]string)
	exports := make([]export, 0, len(values))
	for _, v := range values {
		e, err := parseExport(v)
		if err != nil {
			return nil, exit.Usagef("--export %s: %w", strconv.Quote(v), err)
		}
		if other, dup := paths[filepath.Clean(e.path)]; dup {
			return nil, exit.Usagef("--export %q and --export %q are the same: one backing is one namespace", other, v)
		}
		paths[filepath.Clean(e.path)] = v
		if e.nqn != "" && e.nsid != 0 {
			if other, dup := spaces[space{e.nqn, e.nsid}]; dup {
				return nil, exit.Usagef("--export %q and --export %q: namespace ID %d is used twice in %s", other, v, e.nsid, e.nqn)
			}
			spaces[space{e.nqn, e.nsid}] = v
		}
		if !e.uuid.IsZero() {
			if other, dup := uuids[e.uuid]; dup {
				return nil, exit.Usagef("--export %q and --export %q have the same UUID", other, v)
			}
			uuids[e.uuid] = v
		}
		exports = append(exports, e)
	}
	return exports, nil
}

// parseListen reads one value of --listen: ADDR[:PORT], an IPv6 address in brackets.
func parseListen(s string) (nvme.Addr, error) {
	a := nvme.Addr{Transport: nvme.TransportTCP, Service: nvme.DefaultIOPort}
	host, rest := s, ""
	switch {
	case strings.HasPrefix(s, "["):
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return a, errors.New("']' is missing")
		}
		host, rest = s[1:end], s[end+1:]
	case strings.Count(s, ":") > 1:
		return a, errors.New("an IPv6 address stands in brackets: [ADDR] or [ADDR]:PORT")
	default:
		if i := strings.IndexByte(s, ':'); i >= 0 {
			host, rest = s[:i], s[i:]
		}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return a, errors.New("ADDR must be an address of this host, as a number; 0.0.0.0 or [::] means all of them")
	}
	if bracketed := strings.HasPrefix(s, "["); bracketed != addr.Is6() {
		return a, errors.New("IPv6 addresses stand in brackets, IPv4 addresses do not")
	}
	a.Host = addr.String()
	if rest != "" {
		port, err := strconv.ParseUint(strings.TrimPrefix(rest, ":"), 10, 16)
		if err != nil || rest[0] != ':' {
			return a, errors.New("PORT must be a number from 1 to 65535, or 0 for any free port")
		}
		a.Service = strconv.FormatUint(port, 10)
	}
	return a, nil
}

func parseListens(values []string) ([]nvme.Addr, error) {
	var portals []nvme.Addr
	for _, v := range values {
		a, err := parseListen(v)
		if err != nil {
			return nil, exit.Usagef("--listen %q: %w", v, err)
		}
		if a.Service != "0" && slices.Contains(portals, a) {
			return nil, exit.Usagef("--listen %q: %s is listed already", v, a)
		}
		portals = append(portals, a)
	}
	return portals, nil
}

// parseHosts reads the values of --host.
func parseHosts(values []string) ([]nvme.NQN, error) {
	var hosts []nvme.NQN
	for _, v := range values {
		nqn, err := nvme.ParseNQN(v)
		if err == nil && nqn.Discovery() {
			err = fmt.Errorf("%q names the discovery service, not a host", v)
		}
		if err != nil {
			return nil, exit.Usagef("--host: %w", err)
		}
		if !slices.Contains(hosts, nqn) {
			hosts = append(hosts, nqn)
		}
	}
	return hosts, nil
}
