package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"hawser.dev/hawser/attach/frontend"
)

// Everything on the wire is big-endian. Source of all of it: the NBD project's
// doc/proto.md, "Values".

const (
	magicInit       uint64 = 0x4e42444d41474943 // NBDMAGIC
	magicOption     uint64 = 0x49484156454f5054 // IHAVEOPT
	magicOptReply   uint64 = 0x0003e889045565a9
	magicRequest    uint32 = 0x25609513
	magicReply      uint32 = 0x67446698
	magicStructured uint32 = 0x668e33ef
)

// Handshake flags and, the same bits, the client's.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Transmission flags.
const (
	flagHasFlags    = 1 << 0
	flagReadOnly    = 1 << 1
	flagFlush       = 1 << 2
	flagFUA         = 1 << 3
	flagTrim        = 1 << 5
	flagWriteZeroes = 1 << 6
	flagDF          = 1 << 7
	flagMultiConn   = 1 << 8
)

type optType uint32

const (
	optExportName      optType = 1
	optAbort           optType = 2
	optList            optType = 3
	optStartTLS        optType = 5
	optInfo            optType = 6
	optGo              optType = 7
	optStructuredReply optType = 8
	optListMeta        optType = 9
	optSetMeta         optType = 10
	optExtendedHeaders optType = 11
)

func (o optType) String() string {
	names := [...]string{1: "EXPORT_NAME", 2: "ABORT", 3: "LIST", 5: "STARTTLS", 6: "INFO", 7: "GO",
		8: "STRUCTURED_REPLY", 9: "LIST_META_CONTEXT", 10: "SET_META_CONTEXT", 11: "EXTENDED_HEADERS"}
	if int64(o) < int64(len(names)) && names[o] != "" {
		return "NBD_OPT_" + names[o]
	}
	return fmt.Sprintf("option %d", uint32(o))
}

type repType uint32

const (
	repAck         repType = 1
	repServer      repType = 2
	repInfo        repType = 3
	repErrUnsup    repType = 1<<31 + 1
	repErrInvalid  repType = 1<<31 + 3
	repErrUnknown  repType = 1<<31 + 6
	repErrShutdown repType = 1<<31 + 7
	repErrTooBig   repType = 1<<31 + 9
)

const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

type cmdType uint16

const (
	cmdRead        cmdType = 0
	cmdWrite       cmdType = 1
	cmdDisc        cmdType = 2
	cmdFlush       cmdType = 3
	cmdTrim        cmdType = 4
	cmdWriteZeroes cmdType = 6
)

// Command flags.
const (
	cmdFlagFUA    = 1 << 0
	cmdFlagNoHole = 1 << 1
	cmdFlagDF     = 1 << 2
)

const (
	chunkDone = 1 << 0 // the one structured reply flag

	chunkOffsetData = 1
	chunkError      = 1<<15 + 1
)

// errno is an error value of a reply: "Error values".
type errno uint32

const (
	errnoPerm     errno = 1
	errnoIO       errno = 5
	errnoNoMem    errno = 12
	errnoInval    errno = 22
	errnoNoSpc    errno = 28
	errnoOverflow errno = 75
	errnoShutdown errno = 108
)

// refusal is an error of the server's own, told to the client as it is.
type refusal struct {
	errno errno
	text  string
}

func (r *refusal) Error() string { return r.text }

// errnoOf gives the value for a request's error. ENOTSUP is no answer to
// anything but a fast zeroing, which is not offered.
func errnoOf(err error) errno {
	var r *refusal
	if errors.As(err, &r) {
		return r.errno
	}
	switch frontend.Errno(err) {
	case syscall.EPERM, syscall.EACCES, syscall.EROFS:
		return errnoPerm
	case syscall.ENOMEM:
		return errnoNoMem
	case syscall.EINVAL, syscall.EOPNOTSUPP:
		return errnoInval
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return errnoNoSpc
	case syscall.ESHUTDOWN:
		return errnoShutdown
	}
	return errnoIO
}

var errShort = errors.New("truncated")

// option is the header of an option: "Newstyle negotiation".
type option struct {
	Type   optType
	Length uint32 // bytes of data that follow
}

const optionSize = 16

func (o option) AppendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(o.Type))
	return binary.BigEndian.AppendUint32(b, o.Length)
}

func (o *option) Parse(b []byte) error {
	if len(b) < optionSize {
		return errShort
	}
	if m := binary.BigEndian.Uint64(b); m != magicOption {
		return fmt.Errorf("option magic %#016x, want %#016x", m, magicOption)
	}
	o.Type = optType(binary.BigEndian.Uint32(b[8:]))
	o.Length = binary.BigEndian.Uint32(b[12:])
	return nil
}

// optReply is the header of a reply to an option: "Fixed newstyle negotiation".
type optReply struct {
	Option optType
	Type   repType
	Length uint32 // bytes of data that follow
}

const optReplySize = 20

func (r optReply) AppendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOptReply)
	b = binary.BigEndian.AppendUint32(b, uint32(r.Option))
	b = binary.BigEndian.AppendUint32(b, uint32(r.Type))
	return binary.BigEndian.AppendUint32(b, r.Length)
}

func (r *optReply) Parse(b []byte) error {
	if len(b) < optReplySize {
		return errShort
	}
	if m := binary.BigEndian.Uint64(b); m != magicOptReply {
		return fmt.Errorf("option reply magic %#016x, want %#016x", m, magicOptReply)
	}
	r.Option = optType(binary.BigEndian.Uint32(b[8:]))
	r.Type = repType(binary.BigEndian.Uint32(b[12:]))
	r.Length = binary.BigEndian.Uint32(b[16:])
	return nil
}

// exportQuery is the data of NBD_OPT_INFO and NBD_OPT_GO.
type exportQuery struct {
	Name string
	Want uint64 // bit N: information type N was asked for
}

func (q *exportQuery) Parse(b []byte) error {
	if len(b) < 6 {
		return errShort
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-6) {
		return fmt.Errorf("export name of %d bytes in %d bytes of data", n, len(b))
	}
	if n > maxString {
		return fmt.Errorf("export name of %d bytes is longer than %d", n, maxString)
	}
	name, rest := b[4:4+n], b[4+n:]
	if count := int(binary.BigEndian.Uint16(rest)); len(rest)-2 != 2*count {
		return fmt.Errorf("%d information requests in %d bytes", count, len(rest)-2)
	}
	q.Name, q.Want = string(name), 0
	for rest = rest[2:]; len(rest) > 0; rest = rest[2:] {
		if t := binary.BigEndian.Uint16(rest); t < 64 {
			q.Want |= 1 << t
		}
	}
	return nil
}

// request is the header of a command: "Request message".
type request struct {
	Flags  uint16
	Type   cmdType
	Cookie uint64
	Offset uint64
	Length uint32
}

const requestSize = 28

func (r request) AppendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, magicRequest)
	b = binary.BigEndian.AppendUint16(b, r.Flags)
	b = binary.BigEndian.AppendUint16(b, uint16(r.Type))
	b = binary.BigEndian.AppendUint64(b, r.Cookie)
	b = binary.BigEndian.AppendUint64(b, r.Offset)
	return binary.BigEndian.AppendUint32(b, r.Length)
}

func (r *request) Parse(b []byte) error {
	if len(b) < requestSize {
		return errShort
	}
	if m := binary.BigEndian.Uint32(b); m != magicRequest {
		return fmt.Errorf("request magic %#08x, want %#08x", m, magicRequest)
	}
	r.Flags = binary.BigEndian.Uint16(b[4:])
	r.Type = cmdType(binary.BigEndian.Uint16(b[6:]))
	r.Cookie = binary.BigEndian.Uint64(b[8:])
	r.Offset = binary.BigEndian.Uint64(b[16:])
	r.Length = binary.BigEndian.Uint32(b[24:])
	return nil
}

// simpleReply is the header of a "Simple reply message".
type simpleReply struct {
	Error  errno
	Cookie uint64
}

const simpleReplySize = 16

func (r simpleReply) AppendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, magicReply)
	b = binary.BigEndian.AppendUint32(b, uint32(r.Error))
	return binary.BigEndian.AppendUint64(b, r.Cookie)
}

func (r *simpleReply) Parse(b []byte) error {
	if len(b) < simpleReplySize {
		return errShort
	}
	if m := binary.BigEndian.Uint32(b); m != magicReply {
		return fmt.Errorf("simple reply magic %#08x, want %#08x", m, magicReply)
	}
	r.Error = errno(binary.BigEndian.Uint32(b[4:]))
	r.Cookie = binary.BigEndian.Uint64(b[8:])
	return nil
}

// chunk is the header of a "Structured reply chunk message".
type chunk struct {
	Flags, Type uint16
	Cookie      uint64
	Length      uint32 // bytes of payload that follow
}

const chunkSize = 20

func (c chunk) AppendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, magicStructured)
	b = binary.BigEndian.AppendUint16(b, c.Flags)
	b = binary.BigEndian.AppendUint16(b, c.Type)
	b = binary.BigEndian.AppendUint64(b, c.Cookie)
	return binary.BigEndian.AppendUint32(b, c.Length)
}

func (c *chunk) Parse(b []byte) error {
	if len(b) < chunkSize {
		return errShort
	}
	if m := binary.BigEndian.Uint32(b); m != magicStructured {
		return fmt.Errorf("structured reply magic %#08x, want %#08x", m, magicStructured)
	}
	c.Flags = binary.BigEndian.Uint16(b[4:])
	c.Type = binary.BigEndian.Uint16(b[6:])
	c.Cookie = binary.BigEndian.Uint64(b[8:])
	c.Length = binary.BigEndian.Uint32(b[16:])
	return nil
}
