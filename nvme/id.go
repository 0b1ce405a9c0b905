package nvme

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
)

// UUID is a UUID (RFC 9562) in the byte order of its text, which is also the order NVMe sends it in.
type UUID [16]byte

// NGUID is a Namespace Globally Unique Identifier: a big-endian byte string.
type NGUID [16]byte

// EUI64 is an IEEE Extended Unique Identifier: a big-endian byte string.
type EUI64 [8]byte

// NewUUID returns a random (version 4) UUID.
func NewUUID() UUID {
	var u UUID
	rand.Read(u[:]) // never fails (crypto/rand)
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}

// ParseUUID reads the 8-4-4-4-12 form; the digits may be of either case.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	if !decodeUUID(&u, s) {
		return UUID{}, fmt.Errorf("invalid UUID %q: want hexadecimal digits in groups of 8-4-4-4-12", s)
	}
	return u, nil
}

// ParseNGUID reads 32 hexadecimal digits, plain or in the groups of a UUID.
func ParseNGUID(s string) (NGUID, error) {
	var n NGUID
	if !decodeHex(n[:], s) && !decodeUUID((*UUID)(&n), s) {
		return NGUID{}, fmt.Errorf("invalid NGUID %q: want 32 hexadecimal digits", s)
	}
	return n, nil
}

// ParseEUI64 reads 16 hexadecimal digits.
func ParseEUI64(s string) (EUI64, error) {
	var e EUI64
	if !decodeHex(e[:], s) {
		return EUI64{}, fmt.Errorf("invalid EUI-64 %q: want 16 hexadecimal digits", s)
	}
	return e, nil
}

func decodeHex(dst []byte, s string) bool {
	if len(s) != 2*len(dst) {
		return false
	}
	_, err := hex.Decode(dst, []byte(s))
	return err == nil
}

func decodeUUID(u *UUID, s string) bool {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return false
	}
	return decodeHex(u[:], strings.ReplaceAll(s, "-", ""))
}

// String returns the 8-4-4-4-12 form in lower case.
func (u UUID) String() string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// String returns 32 hexadecimal digits in lower case.
func (n NGUID) String() string { return hex.EncodeToString(n[:]) }

// String returns 16 hexadecimal digits in lower case.
func (e EUI64) String() string { return hex.EncodeToString(e[:]) }

// IsZero reports whether the identifier is all zeros, which on the wire means that there is none.
func (u UUID) IsZero() bool  { return u == UUID{} }
func (n NGUID) IsZero() bool { return n == NGUID{} }
func (e EUI64) IsZero() bool { return e == EUI64{} }

// MarshalText returns String, or nothing for a zero identifier.
func (u UUID) MarshalText() ([]byte, error)  { return marshalID(u.IsZero(), u.String()) }
func (n NGUID) MarshalText() ([]byte, error) { return marshalID(n.IsZero(), n.String()) }
func (e EUI64) MarshalText() ([]byte, error) { return marshalID(e.IsZero(), e.String()) }

// UnmarshalText reads what MarshalText writes.
func (u *UUID) UnmarshalText(b []byte) error  { return unmarshalID(u, ParseUUID, b) }
func (n *NGUID) UnmarshalText(b []byte) error { return unmarshalID(n, ParseNGUID, b) }
func (e *EUI64) UnmarshalText(b []byte) error { return unmarshalID(e, ParseEUI64, b) }

func marshalID(zero bool, s string) ([]byte, error) {
	if zero {
		return []byte{}, nil
	}
	return []byte(s), nil
}

func unmarshalID[T any](dst *T, parse func(string) (T, error), b []byte) error {
	if len(b) == 0 {
		*dst = *new(T)
		return nil
	}
	v, err := parse(string(b))
	if err != nil {
		return err
	}
	*dst = v
	return nil
}
