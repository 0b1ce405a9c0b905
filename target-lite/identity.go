package targetlite

import (
	"crypto/sha256"
	"encoding/hex"

	"hawser.dev/hawser/nvme"
)

// derive hashes a backend's identity for one purpose, so that its UUID tells nothing of its NGUID.
func derive(purpose, identity string) [32]byte {
	return sha256.Sum256([]byte("hawser " + purpose + "\x00" + identity))
}

func deriveUUID(purpose, identity string) nvme.UUID {
	h := derive(purpose, identity)
	u := nvme.UUID(h[:16])
	u[6] = u[6]&0x0f | 0x80 // version 8: custom (RFC 9562, 5.8)
	u[8] = u[8]&0x3f | 0x80
	return u
}

// NamespaceUUID returns the UUID that a namespace has if none is given: the same wherever and whenever a backing with
// that identity (backend.Info) is exported, under any NQN.
func NamespaceUUID(identity string) nvme.UUID { return deriveUUID("namespace uuid", identity) }

// NamespaceNGUID returns the NGUID that a namespace has if none is given.
func NamespaceNGUID(identity string) nvme.NGUID {
	h := derive("namespace nguid", identity)
	n := nvme.NGUID(h[:16])
	n[8] = n[8]&^1 | 2 // where the OUI is: locally administered, so nobody's
	return n
}

// DefaultNQN returns the NQN of a subsystem that exports nothing but the backing with that identity.
func DefaultNQN(identity string) nvme.NQN { return nvme.UUIDNQN(deriveUUID("subsystem nqn", identity)) }

// deriveSerial returns 20 characters.
func deriveSerial(identity string) string {
	h := derive("serial number", identity)
	return hex.EncodeToString(h[:10])
}
