package attach

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"hawser.dev/hawser/nvme"
)

// Protocol is the family of block storage protocols a target speaks.
type Protocol string

const (
	NVMe  Protocol = "nvme"
	ISCSI Protocol = "iscsi"
)

const defaultISCSIPort = "3260"

// Portal is a transport address and service. Written as HOST[:PORT] it means NVMe/TCP; other kinds carry their scheme:
// nvme+rdma://HOST[:PORT], nvme+fc://ADDRESS, nvme+loop://, iscsi://HOST[:PORT].
type Portal struct {
	Protocol Protocol
	nvme.Addr
}

// Target names a volume, or all volumes of a subsystem, by URL:
//
//	nvme://HOST[:PORT]/NQN[#NAMESPACE]   also nvme+tcp, nvme+rdma, nvme+fc, nvme+loop (which has no HOST)
//	iscsi://HOST[:PORT]/IQN[/LUN]
//
// In a name the characters # / ? % are percent-encoded. An IPv6 address stands in brackets, its scope after % or %25.
type Target struct {
	Portal
	Name      string       // NQN or IQN
	Namespace NamespaceRef // NVMe; zero for the only one
	LUN       *uint64      // iSCSI; nil for the only one
}

// NamespaceRef says which namespace of a subsystem is meant. At most one field is set; the zero value means the only one.
type NamespaceRef struct {
	UUID  nvme.UUID
	NGUID nvme.NGUID
	EUI64 nvme.EUI64
	NSID  uint32
}

// IsZero reports whether r means the only namespace.
func (r NamespaceRef) IsZero() bool { return r == NamespaceRef{} }

// String is the form that ParseNamespaceRef reads, empty for the zero value.
func (r NamespaceRef) String() string {
	switch {
	case !r.UUID.IsZero():
		return r.UUID.String()
	case !r.NGUID.IsZero():
		return r.NGUID.String()
	case !r.EUI64.IsZero():
		return r.EUI64.String()
	case r.NSID != 0:
		return "nsid=" + strconv.FormatUint(uint64(r.NSID), 10)
	}
	return ""
}

// ParseNamespaceRef reads a UUID (36 characters in groups), an NGUID (32 hexadecimal digits), an EUI-64 (16) or nsid=N.
func ParseNamespaceRef(s string) (r NamespaceRef, err error) {
	bad := func(why string) (NamespaceRef, error) {
		return NamespaceRef{}, usagef("namespace %s: %s; give a UUID, an NGUID (32 hexadecimal digits), an EUI-64 (16) or nsid=N", quote(s), why)
	}
	if n, ok := strings.CutPrefix(s, "nsid="); ok {
		v, err := strconv.ParseUint(n, 10, 32)
		if err != nil || v == 0 || v >= 0xffffffff || n[0] == '+' {
			return bad("a namespace ID is a number from 1 to 4294967294")
		}
		return NamespaceRef{NSID: uint32(v)}, nil
	}
	switch len(s) {
	case 36:
		r.UUID, err = nvme.ParseUUID(s)
	case 32:
		r.NGUID, err = nvme.ParseNGUID(s)
	case 16:
		r.EUI64, err = nvme.ParseEUI64(s)
	default:
		return bad("it is none of the forms there are")
	}
	if err != nil {
		return bad(err.Error())
	}
	if r.IsZero() {
		return bad("an identifier of zeroes is none")
	}
	return r, nil
}

// DefaultPort is the port a portal of this kind has when none is given; empty where there are no ports.
func (p Portal) DefaultPort() string {
	switch {
	case p.Protocol == ISCSI:
		return defaultISCSIPort
	case p.Transport == nvme.TransportTCP, p.Transport == nvme.TransportRDMA:
		return nvme.DefaultIOPort
	}
	return ""
}

// WithPort is the portal with its default port filled in where it has none.
func (p Portal) WithPort() Portal {
	if p.Service == "" {
		p.Service = p.DefaultPort()
	}
	return p
}

// Equal reports whether both are the same portal: addresses are compared as numbers, names without regard to case, a missing
// port is the default one. A name and the address it resolves to are not equal here.
func (p Portal) Equal(q Portal) bool {
	p, q = p.WithPort(), q.WithPort()
	if p.Protocol != q.Protocol || p.Transport != q.Transport || p.Service != q.Service {
		return false
	}
	a, errA := netip.ParseAddr(p.Host)
	b, errB := netip.ParseAddr(q.Host)
	if errA == nil && errB == nil {
		return a.Unmap() == b.Unmap()
	}
	return strings.EqualFold(p.Host, q.Host)
}

func withHost(p Portal, host string) nvme.Addr {
	p.Host = host
	return p.Addr
}

func (p Portal) scheme() string {
	switch {
	case p.Protocol == ISCSI:
		return "iscsi"
	case p.Transport == nvme.TransportTCP:
		return "nvme"
	}
	return "nvme+" + string(p.Transport)
}

// String is the form that ParsePortal reads.
func (p Portal) String() string {
	if p.Protocol == NVMe && p.Transport == nvme.TransportTCP {
		return p.Addr.String()
	}
	return p.scheme() + "://" + p.authority()
}

// authority is the address as it stands in a URL: a scope's % is written %25 (RFC 6874).
func (p Portal) authority() string {
	if p.Transport == nvme.TransportFC {
		return p.Host
	}
	a := p.Addr
	a.Host = strings.Replace(a.Host, "%", "%25", 1)
	return a.String()
}

// String is the URL, in the form that ParseTarget reads.
func (t Target) String() string {
	var b strings.Builder
	b.WriteString(t.scheme())
	b.WriteString("://")
	b.WriteString(t.authority())
	b.WriteByte('/')
	b.WriteString(escapeName(t.Name))
	if t.LUN != nil {
		b.WriteByte('/')
		b.WriteString(strconv.FormatUint(*t.LUN, 10))
	}
	if !t.Namespace.IsZero() {
		b.WriteByte('#')
		b.WriteString(t.Namespace.String())
	}
	return b.String()
}

const reserved = "#/?%"

func escapeName(s string) string {
	if !strings.ContainsAny(s, reserved) {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(reserved, s[i]) >= 0 {
			fmt.Fprintf(&b, "%%%02X", s[i])
		} else {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func unescape(s string) (string, error) {
	if !strings.Contains(s, "%") {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if len(s) < i+3 {
			return "", fmt.Errorf("%q is cut short: write %% as %%25", s[i:])
		}
		c, err := hex.DecodeString(s[i+1 : i+3])
		if err != nil {
			return "", fmt.Errorf("%q is not a percent-encoded character: write %% as %%25", s[i:i+3])
		}
		b.Write(c)
		i += 2
	}
	return b.String(), nil
}

// quote shows what a person typed, or a peer sent, within one line of bounded length.
func quote(s string) string {
	const most = 120
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strconv.Quote(s)
}

// maxURL is more than any valid target can need: a name of 223 bytes, each of them encoded, a host name and a namespace.
const maxURL = 2048

// ParseTarget reads a target's URL. The error is of CauseUsage and names the value and the remedy.
func ParseTarget(s string) (Target, error) {
	t, err := parseTarget(s)
	if err != nil {
		return Target{}, usagef("target %s: %w", quote(s), err)
	}
	return t, nil
}

func parseTarget(s string) (t Target, err error) {
	if len(s) > maxURL || !utf8.ValidString(s) {
		return t, fmt.Errorf("it is no URL of UTF-8 text of at most %d bytes", maxURL)
	}
	if t.Portal, s, err = cutScheme(s); err != nil {
		return t, err
	}
	if t.Protocol == "" {
		return t, fmt.Errorf("the scheme is missing: write nvme://HOST[:PORT]/NQN[#NAMESPACE] or iscsi://HOST[:PORT]/IQN[/LUN]")
	}
	authority, path, slash := strings.Cut(s, "/")
	if err := t.parseAuthority(authority, true); err != nil {
		return t, err
	}
	path, fragment, hash := strings.Cut(path, "#")
	if !slash || path == "" {
		return t, fmt.Errorf("the name of the %s is missing: write %s://%s/%s", t.nameOf(), t.scheme(), authority, strings.ToUpper(t.nameForm()))
	}
	if strings.Contains(path, "?") {
		return t, fmt.Errorf("%q begins a query, which has no meaning here: write ? in a name as %%3F", path[strings.Index(path, "?"):])
	}
	name, rest, more := strings.Cut(path, "/")
	if t.Name, err = unescape(name); err != nil {
		return t, err
	}
	if t.Protocol == ISCSI {
		if hash {
			return t, fmt.Errorf("iSCSI has no namespaces: write the LUN as /%s", fragment)
		}
		if more {
			lun, err := parseLUN(rest)
			if err != nil {
				return t, err
			}
			t.LUN = &lun
		}
		return t, validIQN(t.Name)
	}
	if more {
		return t, fmt.Errorf("%q follows the NQN: write / in an NQN as %%2F, and a namespace after #", "/"+rest)
	}
	nqn, err := nvme.ParseNQN(t.Name)
	if err != nil {
		return t, err
	}
	if nqn.Discovery() {
		return t, fmt.Errorf("a discovery subsystem has no volumes: hawser discover %s lists what it knows of", t.Portal)
	}
	if hash {
		if fragment, err = unescape(fragment); err != nil {
			return t, err
		}
		if t.Namespace, err = ParseNamespaceRef(fragment); err != nil {
			return t, err
		}
	}
	return t, nil
}

func (t Target) nameOf() string {
	if t.Protocol == ISCSI {
		return "target"
	}
	return "subsystem"
}

func (t Target) nameForm() string {
	if t.Protocol == ISCSI {
		return "iqn"
	}
	return "nqn"
}

// ParsePortal reads a portal; a bare address means NVMe/TCP. The error is of CauseUsage and names the value and the remedy.
func ParsePortal(s string) (Portal, error) {
	p, err := parsePortal(s)
	if err != nil {
		return Portal{}, usagef("portal %s: %w", quote(s), err)
	}
	return p, nil
}

func parsePortal(s string) (Portal, error) {
	if len(s) > maxURL || !utf8.ValidString(s) {
		return Portal{}, fmt.Errorf("it is no address of UTF-8 text of at most %d bytes", maxURL)
	}
	p, rest, err := cutScheme(s)
	if err != nil {
		return p, err
	}
	url := p.Protocol != ""
	if !url {
		p = Portal{Protocol: NVMe, Addr: nvme.Addr{Transport: nvme.TransportTCP}}
	}
	authority, path, _ := strings.Cut(rest, "/")
	if path != "" {
		return p, fmt.Errorf("%q follows the address: a portal is HOST[:PORT] alone", "/"+path)
	}
	return p, p.parseAuthority(authority, url)
}

// cutScheme takes the scheme off; the protocol is empty where there is none.
func cutScheme(s string) (p Portal, rest string, err error) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return p, s, nil
	}
	switch scheme = strings.ToLower(scheme); scheme {
	case "iscsi":
		return Portal{Protocol: ISCSI, Addr: nvme.Addr{Transport: nvme.TransportTCP}}, rest, nil
	case "nvme", "nvme+tcp":
		return Portal{Protocol: NVMe, Addr: nvme.Addr{Transport: nvme.TransportTCP}}, rest, nil
	case "nvme+rdma", "nvme+fc", "nvme+loop":
		return Portal{Protocol: NVMe, Addr: nvme.Addr{Transport: nvme.Transport(strings.TrimPrefix(scheme, "nvme+"))}}, rest, nil
	}
	return p, "", fmt.Errorf("unknown scheme %q: use nvme, nvme+tcp, nvme+rdma, nvme+fc, nvme+loop or iscsi", scheme)
}

// parseAuthority reads HOST[:PORT]; in a URL the scope's % may be written %25.
func (p *Portal) parseAuthority(s string, url bool) (err error) {
	switch {
	case p.Transport == nvme.TransportLoop:
		if s != "" {
			return fmt.Errorf("loop has no address: write nvme+loop:///NQN")
		}
		return nil
	case s == "":
		return fmt.Errorf("the address is missing")
	case strings.Contains(s, "@"):
		return fmt.Errorf("credentials have no place in an address: use --dhchap-secret @FILE, or --chap-user and --chap-secret @FILE")
	case p.Transport == nvme.TransportFC:
		if strings.IndexFunc(s, func(r rune) bool { return !isAlnum(r) && r != ':' && r != '-' }) >= 0 {
			return fmt.Errorf("%q is no Fibre Channel address: write nn-0xWWNN:pn-0xWWPN", s)
		}
		p.Host = strings.ToLower(s)
		return nil
	}
	host, port, hasPort := s, "", false
	if inner, ok := strings.CutPrefix(s, "["); ok {
		var after string
		if host, after, ok = strings.Cut(inner, "]"); !ok {
			return fmt.Errorf("%q lacks its closing bracket", s)
		}
		if after != "" {
			if port, hasPort = strings.CutPrefix(after, ":"); !hasPort {
				return fmt.Errorf("%q after the address is not a port: write [ADDRESS]:PORT", after)
			}
		}
		if url {
			if addr, zone, ok := strings.Cut(host, "%25"); ok && zone != "" {
				host = addr + "%" + zone
			}
		}
		a, err := netip.ParseAddr(host)
		if err != nil || !a.Is6() {
			return fmt.Errorf("%q is no IPv6 address", host)
		}
		if z := a.Zone(); z != "" && !validInterface(z) {
			return fmt.Errorf("scope %q is no name of an interface", z)
		}
		p.Host = a.String()
	} else {
		host, port, hasPort = strings.Cut(s, ":")
		if a, err := netip.ParseAddr(s); err == nil && a.Is6() {
			return fmt.Errorf("an IPv6 address stands in brackets: write [%s]", s)
		}
		if a, err := netip.ParseAddr(host); err == nil {
			p.Host = a.String()
		} else if !validHostName(host) {
			return fmt.Errorf("%q is neither an IP address nor a host name", host)
		} else {
			p.Host = strings.ToLower(host)
		}
	}
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || port[0] == '+' {
			return fmt.Errorf("port %q is not a number from 1 to 65535", port)
		}
		p.Service = strconv.FormatUint(n, 10)
	}
	return nil
}

func isAlnum(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// validHostName accepts what a resolver can look up. A last label of digits alone would be a misspelt IPv4 address.
func validHostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	last := ""
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.IndexFunc(label, func(r rune) bool { return !isAlnum(r) && r != '-' && r != '_' }) >= 0 {
			return false
		}
		last = label
	}
	return strings.IndexFunc(last, func(r rune) bool { return r < '0' || r > '9' }) >= 0
}

// validInterface accepts what Linux accepts as the name of an interface (dev_valid_name), and printable at that.
func validInterface(s string) bool {
	if s == "" || len(s) > 15 || s == "." || s == ".." {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/:%[]?#@,\"", r) }) < 0
}

// validIQN checks a name by RFC 3720 3.2.6.3: iqn., eui. or naa. and no more than 223 bytes.
func validIQN(s string) error {
	ok := len(s) <= 223 && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '/' }) < 0
	switch {
	case strings.HasPrefix(s, "iqn."):
		ok = ok && len(s) > len("iqn.2000-01.")
	case strings.HasPrefix(s, "eui."), strings.HasPrefix(s, "naa."):
		_, err := hex.DecodeString(s[4:])
		ok = ok && err == nil && (len(s) == 4+16 || len(s) == 4+32 && s[0] == 'n')
	default:
		ok = false
	}
	if !ok {
		return fmt.Errorf("invalid iSCSI name %s: use iqn.YYYY-MM.REVERSE.DOMAIN:NAME, eui. and 16, or naa. and 16 or 32 hexadecimal digits", quote(s))
	}
	return nil
}

func parseLUN(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || s[0] == '+' {
		return 0, fmt.Errorf("LUN %q is not a number", s)
	}
	return n, nil
}

func (p Portal) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

func (p *Portal) UnmarshalText(b []byte) (err error) {
	*p, err = ParsePortal(string(b))
	return err
}

func (t Target) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

func (t *Target) UnmarshalText(b []byte) (err error) {
	*t, err = ParseTarget(string(b))
	return err
}

// Binding is the local side of a path: the interface it leaves by, the source address, both or neither.
// It is written IFACE, ADDRESS or IFACE/ADDRESS.
type Binding struct {
	Interface string
	Source    netip.Addr
}

func (b Binding) String() string {
	switch {
	case !b.Source.IsValid():
		return b.Interface
	case b.Interface == "":
		return b.Source.String()
	}
	return b.Interface + "/" + b.Source.String()
}

// ParseBinding reads a binding. The error is of CauseUsage.
func ParseBinding(s string) (b Binding, err error) {
	iface, addr, both := strings.Cut(s, "/")
	if !both {
		if a, err := netip.ParseAddr(s); err == nil {
			return Binding{Source: a.Unmap()}, nil
		}
	} else if b.Source, err = netip.ParseAddr(addr); err != nil {
		return Binding{}, usagef("binding %s: %s is no address; write IFACE, ADDRESS or IFACE/ADDRESS", quote(s), quote(addr))
	}
	b.Source = b.Source.Unmap()
	if !validInterface(iface) {
		return Binding{}, usagef("binding %s: %s is neither an address nor the name of an interface; write IFACE, ADDRESS or IFACE/ADDRESS", quote(s), quote(iface))
	}
	b.Interface = iface
	return b, nil
}

func (b Binding) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

func (b *Binding) UnmarshalText(text []byte) (err error) {
	if len(text) == 0 {
		*b = Binding{}
		return nil
	}
	*b, err = ParseBinding(string(text))
	return err
}
