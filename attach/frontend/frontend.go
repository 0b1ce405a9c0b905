// Package frontend is what stands between a volume and the ways of showing it
// to others: an NBD socket, /dev/nbdN, /dev/ublkbN. A frontend knows nothing of
// the volume but this asynchronous contract; a volume knows nothing of who asks.
package frontend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"syscall"
)

// Op is what a Request asks for.
type Op uint8

const (
	OpRead        Op = iota // fill Data from Offset
	OpWrite                 // write Data at Offset
	OpFlush                 // make every write that completed before this was submitted durable; Offset and Length are 0
	OpTrim                  // the range is no longer needed; its contents are undefined afterwards
	OpWriteZeroes           // the range reads as zeroes afterwards
)

func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	case OpTrim:
		return "trim"
	case OpWriteZeroes:
		return "write zeroes"
	}
	return fmt.Sprintf("operation %d", uint8(o))
}

// Writes reports whether the operation changes what the volume holds.
func (o Op) Writes() bool { return o == OpWrite || o == OpTrim || o == OpWriteZeroes }

// Request is one operation on a volume. A frontend reuses it once it is done.
//
// From Submit until Done the Request and Data belong to the volume; from Done
// on it touches neither. Frontends submit only what Info allows: whole blocks
// within Size, nothing that Info says the volume can't, Data of at most
// MaxTransfer bytes. Trims and zeroings may be of any length up to 4 GiB.
type Request struct {
	Op             Op
	Offset, Length int64  // bytes
	Data           []byte // reads and writes: exactly Length bytes, 4096-byte aligned
	FUA            bool   // writes and zeroings: durable before Done
	NoHole         bool   // zeroings: the range must stay allocated
	Err            error  // set by the volume before Done; Errno says how frontends read it

	Done func(*Request) // called exactly once, from any goroutine, also within Submit; doesn't block
	Next *Request       // the volume's, for its lists
	User any            // the frontend's
}

// Info is what a volume is and can do.
type Info struct {
	Size        int64 // bytes
	BlockSize   int   // smallest unit of Offset and Length in bytes; a power of two, 1 to 65536
	OptimalIO   int64 // bytes that are best read or written at once; 0 if unknown
	MaxTransfer int64 // most bytes of one read or write; 0 for no limit

	ReadOnly       bool
	CanFlush       bool // false where nothing is ever cached
	CanFUA         bool
	CanTrim        bool
	CanWriteZeroes bool

	Name        string // identifier of the volume; the export's name
	Description string // for people
}

// Validate checks that a frontend can show such a volume.
func (i Info) Validate() error {
	switch {
	case i.BlockSize < 1 || i.BlockSize > 64<<10 || bits.OnesCount(uint(i.BlockSize)) != 1:
		return fmt.Errorf("volume %q: block size %d is not a power of two from 1 to 65536", i.Name, i.BlockSize)
	case i.Size < 0:
		return fmt.Errorf("volume %q: size %d is negative", i.Name, i.Size)
	case i.OptimalIO < 0:
		return fmt.Errorf("volume %q: optimal I/O size %d is negative", i.Name, i.OptimalIO)
	case i.MaxTransfer < 0 || i.MaxTransfer > 0 && i.MaxTransfer < int64(i.BlockSize):
		return fmt.Errorf("volume %q: largest transfer of %d bytes is less than a block of %d", i.Name, i.MaxTransfer, i.BlockSize)
	}
	return nil
}

// Volume is an asynchronous block volume.
type Volume interface {
	Info() Info
	// Submit takes requests and doesn't wait for them; they may complete in any
	// order. Any goroutine may call it, several at once. The slice is the
	// caller's again when Submit returns.
	Submit(reqs ...*Request)
}

// Errno is how frontends tell a request's error to those who can be told
// nothing else: the errno that err wraps, or the nearest one; EIO by default.
func Errno(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno) && errno != 0:
		return errno
	case errors.Is(err, fs.ErrPermission):
		return syscall.EPERM
	case errors.Is(err, errors.ErrUnsupported):
		return syscall.EOPNOTSUPP
	case errors.Is(err, context.DeadlineExceeded):
		return syscall.ETIMEDOUT
	}
	return syscall.EIO
}
