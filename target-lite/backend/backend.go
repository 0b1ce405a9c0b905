// Package backend holds what a namespace can be backed by: a file, a block device, memory, or nothing. A backend takes
// requests asynchronously: it completes at once what can be done without blocking and hands the rest to a bounded
// pool of workers.
package backend

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// Op is what a Request asks for.
type Op uint8

const (
	OpRead Op = iota
	OpWrite
	OpFlush
	OpWriteZeroes
	OpDeallocate
)

func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	case OpWriteZeroes:
		return "write zeroes"
	case OpDeallocate:
		return "deallocate"
	}
	return fmt.Sprintf("op %d", uint8(o))
}

// Request is one operation. The caller owns it and may use it again once it is complete; Data belongs to the backend
// from Submit until then.
type Request struct {
	Op       Op
	FUA      bool  // a write is durable when it completes
	MayUnmap bool  // write zeroes may deallocate
	Offset   int64 // bytes, a multiple of the block size
	Length   int64 // bytes, a multiple of the block size; for read and write len(Data)
	Data     []byte
	Err      error          // the outcome: nil, or an error that wraps a syscall.Errno
	Done     func(*Request) // called once if Submit returned false, from any goroutine
	User     any

	next *Request
	done int // bytes of Data already transferred
}

// Info describes a backend. It does not change while the backend is open.
type Info struct {
	Size               int64 // bytes, a multiple of BlockSize
	BlockSize          int   // logical block: 512 or 4096
	PhysicalBlock      int   // bytes that are best written as one, at least BlockSize
	VolatileCache      bool  // completed writes are durable only after a flush
	CanDeallocate      bool
	DeallocateZeroes   bool // deallocated blocks read as zeroes
	CanWriteZeroes     bool // zeroes are written without carrying them
	OptimalIO          int64
	DiscardGranularity int64 // bytes; 0 unknown
	ReadOnly           bool
	// Identity names the backing thing, the same at every start: UUID, NGUID and serial number derive from it. See
	// Open for what it is made of.
	Identity string
}

// Backend is an open backing.
type Backend interface {
	Info() Info
	// Submit starts r. True: r is complete, r.Err is set and Done is not called. False: Done will be called once.
	// It does not block on storage, does not allocate when the work is done at once, and may be called by several
	// goroutines.
	Submit(r *Request) (done bool)
	// Close waits for the requests that were submitted, then lets the backing go.
	Close() error
}

// Kicker is a Backend that collects requests until the end of a batch.
type Kicker interface{ Kick() }

// Options say how to open a backing. The zero value is an exclusive, writable one of 512-byte blocks (of the
// device's own for a block device).
type Options struct {
	BlockSize int   // 512, 4096, or 0 for the default
	Size      int64 // bytes. Memory and null need it; a file that does not exist is created with it
	Shared    bool  // other servers may export the same file or device if they say so too
	ReadOnly  bool
	Threads   *Threads // bound on workers, shared by backends; nil: this backend's own of MaxWorkers
}

// Errors that Open wraps beside those of package os.
var (
	// ErrInvalid is a specification or option that cannot be.
	ErrInvalid = errors.New("invalid backing")
	// ErrInUse is a file or device that is mounted, held by a driver, used as swap, or exported by another server.
	ErrInUse = errors.New("in use")
)

// Error is the failure to open or use a backing.
type Error struct {
	Op   string // "open", "create", "read" …
	Path string // the specification
	Err  error
}

func (e *Error) Error() string { return e.Op + " " + e.Path + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// What a request's Err wraps when the backing is not what it was at Open.
var (
	// ErrShrunk is a request beyond the present end of a backing that became smaller.
	ErrShrunk error = &changedError{"the backing is smaller than it was when opened", errnoShrunk}
	// ErrVanished is a write to a file that was deleted or replaced: it would be lost with the file.
	ErrVanished error = &changedError{"the backing file was deleted or replaced", syscall.ENODEV}
	// ErrClosed is a request on a closed backend.
	ErrClosed error = &changedError{"the backend is closed", syscall.ENODEV}
)

type changedError struct {
	msg   string
	errno syscall.Errno
}

func (e *changedError) Error() string { return e.msg }
func (e *changedError) Unwrap() error { return e.errno }

func invalid(spec, format string, args ...any) error {
	return &Error{Op: "open", Path: spec, Err: fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))}
}

// Open opens spec: the path of a file or block device, mem:NAME or null:NAME.
//
// What is exported is locked. A block device is opened with O_EXCL, and with Options.Shared locked (flock) together
// with those that say the same; a file is locked (flock) alone or shared. A backing that is mounted, used as swap, held
// by another driver or locked by another server is refused with ErrInUse.
//
// Info.Identity, from which identifiers derive, is: for a file the UUID of its file system, its inode number and its
// time of birth (it survives renames and reboots, not a copy; a cloned file system carries it along), or, where the file
// system has no UUID, the machine's ID and the path; for a block device its WWID, serial number, DM or partition UUID,
// the identity of the file behind a loop device, else the machine's ID and the path; for mem and null the machine's ID
// and NAME.
func Open(ctx context.Context, spec string, o Options) (Backend, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	switch o.BlockSize {
	case 0, 512, 4096:
	default:
		return nil, invalid(spec, "block size %d, use 512 or 4096", o.BlockSize)
	}
	if bs := int64(blockSize(o)); o.Size < 0 || o.Size%bs != 0 {
		return nil, invalid(spec, "size %d is not a multiple of the block size %d", o.Size, bs)
	}
	if kind, name, ok := strings.Cut(spec, ":"); ok && (kind == "mem" || kind == "null") {
		return openVolatile(spec, kind, name, o)
	}
	if spec == "" {
		return nil, invalid(spec, "it is empty; use the path of a file or block device, mem:NAME or null:NAME")
	}
	return openPath(ctx, spec, o)
}

func openVolatile(spec, kind, name string, o Options) (Backend, error) {
	switch {
	case name == "" || strings.ContainsAny(name, "/\x00") || len(name) > 255:
		return nil, invalid(spec, "%q is not a name; use %s:NAME", name, kind)
	case o.Size == 0:
		return nil, invalid(spec, "no size; add size=, for example size=1G")
	case o.Shared:
		return nil, invalid(spec, "shared is for files and block devices: no other server can see this one")
	}
	if kind == "null" {
		return newNull(spec, o), nil
	}
	return newMemory(spec, o)
}

func blockSize(o Options) int {
	if o.BlockSize == 0 {
		return 512
	}
	return o.BlockSize
}

// check refuses a request that does not lie inside a backing of size bytes.
func (r *Request) check(size int64, readOnly bool) error {
	if r.Op == OpFlush {
		return nil
	}
	if r.Op != OpRead && readOnly {
		return syscall.EROFS
	}
	if r.Offset < 0 || r.Length < 0 || r.Length > size || r.Offset > size-r.Length {
		return syscall.EINVAL
	}
	if r.Op <= OpWrite && int64(len(r.Data)) != r.Length {
		return syscall.EINVAL
	}
	return nil
}
