package tcp

import (
	"errors"
	"fmt"

	"hawser.dev/hawser/nvme/wire"
)

// Error is what ended a queue pair. FES is non-zero when a rule of the
// protocol was broken; Remote tells that the peer found it and sent a
// Terminate Connection Request.
type Error struct {
	Op     string // "handshake", "receive", "send", "timeout", …
	FES    uint16 // Fatal Error Status, NVMe/TCP section 3.6.2.4
	FEI    uint32 // Fatal Error Information: a byte offset for FES 01h and 06h
	Remote bool
	Err    error

	header []byte // of the offending PDU, echoed in the TermReq
}

func (e *Error) Error() string {
	switch {
	case e.Remote:
		return fmt.Sprintf("nvme/tcp: %s: peer ended the connection: %s", e.Op, fesName(e.FES, e.FEI))
	case e.FES != 0:
		return fmt.Sprintf("nvme/tcp: %s: %v (%s)", e.Op, e.Err, fesName(e.FES, e.FEI))
	}
	return fmt.Sprintf("nvme/tcp: %s: %v", e.Op, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

func fesName(fes uint16, fei uint32) string {
	if fes == wire.FESInvalidHeader || fes == wire.FESUnsupportedParam {
		return fmt.Sprintf("%s at byte %d", wire.FESString(fes), fei)
	}
	return wire.FESString(fes)
}

// Reasons that are the same for every connection.
var (
	// ErrClosed is the reason of a queue pair closed by its own side.
	ErrClosed = errors.New("queue closed")
	// ErrPeerClosed is the reason of a connection that the peer closed while commands were open.
	ErrPeerClosed = errors.New("connection closed by peer")
	// ErrTimeout is the reason of a queue pair given up because a command or the handshake took too long.
	ErrTimeout = errors.New("timeout")
	// ErrDataDigest says that the data of a read was damaged on the way; the connection lives on.
	ErrDataDigest = errors.New("data digest mismatch")
)

func opError(op string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Op: op, Err: err}
}
