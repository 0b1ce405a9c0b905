package nbd

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"
	"unicode/utf8"

	"hawser.dev/hawser/attach/frontend"
)

const (
	maxString     = 4096     // bytes of any string: "Conventions"
	maxOptionData = 16 << 10 // bytes of option data that are looked at
	maxOptionSkip = 1 << 20  // bytes of option data that are skipped; more ends the session
	maxOptions    = 64       // options in one handshake
	maxPayload    = 32 << 20 // bytes of one read or write: "Size constraints"
	clientFlags   = flagFixedNewstyle | flagNoZeroes
)

// limits are the size constraints of an export, in bytes.
type limits struct {
	minimum, preferred, maximum uint32
}

func limitsOf(i frontend.Info) limits {
	l := limits{minimum: uint32(i.BlockSize), maximum: maxPayload}
	if 0 < i.MaxTransfer && i.MaxTransfer < maxPayload {
		l.maximum = uint32(i.MaxTransfer) &^ (l.minimum - 1)
	}
	l.preferred = max(4096, l.minimum)
	if o := i.OptimalIO; int64(l.minimum) <= o && 512 <= o && o <= maxPayload && bits.OnesCount64(uint64(o)) == 1 {
		l.preferred = uint32(o)
	}
	for l.preferred > l.maximum { // it "MUST be at least as large as the preferred block size"
		l.preferred /= 2
	}
	return l
}

// exportSize leaves out a last part of a block, which no request could reach.
func exportSize(i frontend.Info) int64 { return i.Size &^ int64(i.BlockSize-1) }

// phase is where a session stands after an option.
type phase uint8

const (
	haggling phase = iota
	transmission
	hangup
)

// negotiation is the server's side of option haggling, without the I/O.
type negotiation struct {
	name string
	info frontend.Info // one snapshot: INFO and GO must agree

	fixed, noZeroes bool // what the client's flags say
	structured      bool
	options         int

	// enter is asked when the client would enter the transmission phase; false
	// says that the server is shutting down.
	enter func() bool
	out   []byte // replies, to be sent and emptied by the caller
}

func (n *negotiation) greet() {
	n.out = binary.BigEndian.AppendUint64(n.out, magicInit)
	n.out = binary.BigEndian.AppendUint64(n.out, magicOption)
	n.out = binary.BigEndian.AppendUint16(n.out, flagFixedNewstyle|flagNoZeroes)
}

// setFlags takes the client flags; one we don't know ends the session.
func (n *negotiation) setFlags(f uint32) error {
	if f&^clientFlags != 0 {
		return fmt.Errorf("unknown client flags %#x", f&^clientFlags)
	}
	n.fixed, n.noZeroes = f&flagFixedNewstyle != 0, f&flagNoZeroes != 0
	return nil
}

func (n *negotiation) transmissionFlags() uint16 {
	// There is one volume behind all connections, so a flush on any covers all.
	f := uint16(flagHasFlags | flagMultiConn)
	for _, c := range []struct {
		on   bool
		flag uint16
	}{
		{n.info.ReadOnly, flagReadOnly},
		{n.info.CanFlush, flagFlush},
		{n.info.CanFUA, flagFUA},
		{n.info.CanTrim && !n.info.ReadOnly, flagTrim},
		{n.info.CanWriteZeroes && !n.info.ReadOnly, flagWriteZeroes},
		{n.structured, flagDF},
	} {
		if c.on {
			f |= c.flag
		}
	}
	return f
}

// admit judges an option by its header alone. A nonzero skip says that the
// data is to be dropped because the option was already answered.
func (n *negotiation) admit(o option) (skip uint32, err error) {
	if n.options++; n.options > maxOptions {
		return 0, fmt.Errorf("more than %d options", maxOptions)
	}
	if !n.fixed && o.Type != optExportName {
		return 0, fmt.Errorf("%v from a client that didn't negotiate fixed newstyle", o.Type)
	}
	if o.Length > maxOptionSkip || o.Type == optExportName && o.Length > maxString {
		return 0, fmt.Errorf("%v with %d bytes of data", o.Type, o.Length)
	}
	if o.Length > maxOptionData {
		n.fail(o.Type, repErrTooBig, fmt.Sprintf("%d bytes of data are more than %d", o.Length, maxOptionData))
		return o.Length, nil
	}
	return 0, nil
}

// option handles one option and appends the answer to n.out.
func (n *negotiation) option(t optType, data []byte) (phase, error) {
	switch t {
	case optExportName:
		if !n.serves(string(data)) {
			return hangup, fmt.Errorf("no export %q, this is %q", data, n.name)
		}
		if !n.enter() {
			return hangup, errShutdown
		}
		n.out = binary.BigEndian.AppendUint64(n.out, uint64(exportSize(n.info)))
		n.out = binary.BigEndian.AppendUint16(n.out, n.transmissionFlags())
		if !n.noZeroes {
			n.out = append(n.out, make([]byte, 124)...)
		}
		return transmission, nil

	case optAbort:
		n.reply(t, repAck, nil)
		return hangup, nil

	case optList:
		if len(data) > 0 {
			n.fail(t, repErrInvalid, "it takes no data")
			break
		}
		b := binary.BigEndian.AppendUint32(nil, uint32(len(n.name)))
		n.reply(t, repServer, append(append(b, n.name...), n.description()...))
		n.reply(t, repAck, nil)

	case optInfo, optGo:
		var q exportQuery
		if err := q.Parse(data); err != nil {
			n.fail(t, repErrInvalid, err.Error())
			break
		}
		if !n.serves(q.Name) {
			n.fail(t, repErrUnknown, fmt.Sprintf("no export %q, this is %q", q.Name, n.name))
			break
		}
		if t == optGo && !n.enter() {
			n.fail(t, repErrShutdown, errShutdown.Error())
			break
		}
		n.describe(t, q.Want)
		n.reply(t, repAck, nil)
		if t == optGo {
			return transmission, nil
		}

	case optStructuredReply:
		if len(data) > 0 {
			n.fail(t, repErrInvalid, "it takes no data")
			break
		}
		n.structured = true
		n.reply(t, repAck, nil)

	default: // TLS, metadata contexts and extended headers are not offered
		n.fail(t, repErrUnsup, fmt.Sprintf("%v is not supported", t))
	}
	return haggling, nil
}

// serves says whether name is this export's; the empty name is the default export.
func (n *negotiation) serves(name string) bool { return name == "" || name == n.name }

func (n *negotiation) description() string { return clip(n.info.Description, maxString) }

// describe sends what is known of the export. Name and description only go to
// those who asked; the size constraints to all, because they are enforced.
func (n *negotiation) describe(t optType, want uint64) {
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(exportSize(n.info)))
	n.reply(t, repInfo, binary.BigEndian.AppendUint16(b, n.transmissionFlags()))

	if want&(1<<infoName) != 0 {
		n.reply(t, repInfo, append(binary.BigEndian.AppendUint16(nil, infoName), n.name...))
	}
	if want&(1<<infoDescription) != 0 && n.info.Description != "" {
		n.reply(t, repInfo, append(binary.BigEndian.AppendUint16(nil, infoDescription), n.description()...))
	}

	l := limitsOf(n.info)
	b = binary.BigEndian.AppendUint16(b[:0], infoBlockSize)
	b = binary.BigEndian.AppendUint32(b, l.minimum)
	b = binary.BigEndian.AppendUint32(b, l.preferred)
	n.reply(t, repInfo, binary.BigEndian.AppendUint32(b, l.maximum))
}

func (n *negotiation) reply(o optType, t repType, data []byte) {
	n.out = optReply{Option: o, Type: t, Length: uint32(len(data))}.AppendTo(n.out)
	n.out = append(n.out, data...)
}

func (n *negotiation) fail(o optType, t repType, why string) {
	n.reply(o, t, []byte(clip(why, 512)))
}

// clip makes a string that the protocol allows out of any: valid UTF-8, no
// NUL, at most limit bytes.
func clip(s string, limit int) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}

// handshake runs the negotiation over c until the transmission phase begins.
// It returns nil, hangup if the client left in order.
func (c *conn) handshake() (phase, error) {
	n := negotiation{name: c.srv.opts.ExportName, info: c.srv.Info(), enter: func() bool { return c.srv.enter(c) }}
	n.greet()
	if err := c.sendAll(&n.out); err != nil {
		return hangup, err
	}
	b, err := c.take(4)
	if err != nil {
		return hangup, err
	}
	if err := n.setFlags(binary.BigEndian.Uint32(b)); err != nil {
		return hangup, err
	}
	for {
		if b, err = c.take(optionSize); err != nil {
			return hangup, err
		}
		var o option
		if err := o.Parse(b); err != nil {
			return hangup, err
		}
		skip, err := n.admit(o)
		if err != nil {
			return hangup, err
		}
		at := haggling
		if skip > 0 {
			err = c.discard(int(skip))
		} else if b, err = c.take(int(o.Length)); err == nil {
			at, err = n.option(o.Type, b)
		}
		if err == nil {
			err = c.sendAll(&n.out)
		}
		if err != nil {
			return hangup, err
		}
		if at != haggling {
			c.accept(&n)
			return at, nil
		}
	}
}

// take returns the next n bytes from the client; they stay valid until the next read.
func (c *conn) take(n int) ([]byte, error) {
	for c.w-c.r < n {
		if err := c.read(nil, len(c.buf)); err != nil {
			return nil, err
		}
	}
	c.r += n
	return c.buf[c.r-n : c.r], nil
}

func (c *conn) discard(n int) error {
	for n > 0 {
		k := min(n, len(c.buf)/2)
		if _, err := c.take(k); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

func (c *conn) sendAll(b *[]byte) error {
	_, err := c.nc.Write(*b)
	*b = (*b)[:0]
	return err
}
