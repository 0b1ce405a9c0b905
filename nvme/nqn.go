// Package nvme holds the names, addresses and status codes that every part of an NVMe over Fabrics host or
// controller shares. It does no I/O.
package nvme

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// NQN is an NVMe Qualified Name (NVM Express Base 2.0, 4.5). Two NQNs are the same when their bytes are: no case
// folding, no prefix matching. A value read from a peer may be any string; ParseNQN and Validate tell whether it is
// well formed.
type NQN string

// DiscoveryNQN is the well-known NQN of every discovery service.
const DiscoveryNQN NQN = "nqn.2014-08.org.nvmexpress.discovery"

// MaxNQNLen is the longest NQN in bytes. On the wire it sits in a 256-byte field that ends in at least one NUL.
const MaxNQNLen = 223

const uuidNQNPrefix = "nqn.2014-08.org.nvmexpress:uuid:"

// NQNError says why a string is not an NQN.
type NQNError struct {
	NQN    string
	Reason string
}

func (e *NQNError) Error() string {
	const maxShown = 80
	shown := e.NQN
	if len(shown) > maxShown {
		shown = shown[:maxShown] + "…"
	}
	return fmt.Sprintf("invalid NQN %q: %s; use nqn.YYYY-MM.REVERSE.DOMAIN:NAME or %sUUID", shown, e.Reason, uuidNQNPrefix)
}

// ParseNQN returns s as an NQN, or an *NQNError.
func ParseNQN(s string) (NQN, error) {
	if err := NQN(s).Validate(); err != nil {
		return "", err
	}
	return NQN(s), nil
}

// UUIDNQN returns the NQN that is made of a UUID alone.
func UUIDNQN(u UUID) NQN { return NQN(uuidNQNPrefix + u.String()) }

// Discovery reports whether n is the well-known discovery NQN.
func (n NQN) Discovery() bool { return n == DiscoveryNQN }

// Validate checks n against NVM Express Base 2.0, 4.5.1: at most 223 bytes of UTF-8, and either
// "nqn.yyyy-mm.reverse-domain:string", the UUID form, or the discovery NQN. The error is an *NQNError.
func (n NQN) Validate() error {
	if reason := n.invalid(); reason != "" {
		return &NQNError{NQN: string(n), Reason: reason}
	}
	return nil
}

func (n NQN) invalid() string {
	s := string(n)
	switch {
	case s == "":
		return "it is empty"
	case len(s) > MaxNQNLen:
		return fmt.Sprintf("%d bytes, at most %d are allowed", len(s), MaxNQNLen)
	case !utf8.ValidString(s):
		return "not valid UTF-8"
	case n == DiscoveryNQN:
		return ""
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Sprintf("unprintable character %U", r)
		}
	}
	if u, ok := strings.CutPrefix(s, uuidNQNPrefix); ok {
		if _, err := ParseUUID(u); err != nil {
			return "what follows uuid: is not a UUID"
		}
		return ""
	}
	rest, ok := strings.CutPrefix(s, "nqn.")
	if !ok {
		return `it does not begin with "nqn."`
	}
	if len(rest) < 8 || rest[7] != '.' || !validDate(rest[:7]) {
		return `"nqn." is not followed by a date yyyy-mm and a dot`
	}
	domain, name, ok := strings.Cut(rest[8:], ":")
	if !validDomain(domain) {
		return fmt.Sprintf("%q is not a reverse domain name", domain)
	}
	if !ok || name == "" {
		return "no colon and name after the domain"
	}
	return ""
}

// validDate reports whether s is yyyy-mm with a month from 01 to 12.
func validDate(s string) bool {
	for i := range len(s) {
		if i == 4 {
			if s[i] != '-' {
				return false
			}
		} else if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s[5:] >= "01" && s[5:] <= "12"
}

// validDomain reports whether s is made of host name labels (RFC 1123, 2.1).
func validDomain(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
				return false
			}
		}
	}
	return true
}
