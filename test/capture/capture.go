// Package capture records NVMe/TCP connections PDU by PDU and keeps the records as text.
//
// A record has one line for each PDU in the order in which they passed: its direction, "H>C" or "C>H", and its bytes in
// hex, where 00x4064 stands for 4064 bytes of zero. Lines that begin with # and empty lines mean nothing.
package capture

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// MaxPDU bounds the PLEN of a PDU, in bytes, whether recorded or read from text.
const MaxPDU = 4 << 20

// headerSize is the length of the common header, whose last four bytes are PLEN (NVMe/TCP Transport 1.0, 3.6.1).
const headerSize = 8

// PDU is one recorded PDU.
type PDU struct {
	FromHost bool
	Bytes    []byte // header, digests, padding and data as they were on the wire
}

func (p PDU) String() string {
	dir := "C>H"
	if p.FromHost {
		dir = "H>C"
	}
	return fmt.Sprintf("%s type %02xh, %d bytes", dir, p.Bytes[0], len(p.Bytes))
}

// Command returns the submission queue entry of a command capsule.
func (p PDU) Command() (sqe []byte, ok bool) {
	if !p.FromHost || len(p.Bytes) < 72 || p.Bytes[0] != 0x04 {
		return nil, false
	}
	return p.Bytes[8:72], true
}

// AppendText appends the PDU's line.
func (p PDU) AppendText(b []byte) []byte {
	if p.FromHost {
		b = append(b, "H>C"...)
	} else {
		b = append(b, "C>H"...)
	}
	const shortestRun = 8
	run := func(at int) int {
		n := 1
		for at+n < len(p.Bytes) && p.Bytes[at+n] == p.Bytes[at] {
			n++
		}
		return n
	}
	for at := 0; at < len(p.Bytes); {
		b = append(b, ' ')
		if n := run(at); n >= shortestRun {
			b = fmt.Appendf(b, "%02xx%d", p.Bytes[at], n)
			at += n
			continue
		}
		for at < len(p.Bytes) && run(at) < shortestRun {
			b = hex.AppendEncode(b, p.Bytes[at:at+1])
			at++
		}
	}
	return append(b, '\n')
}

// Parse reads a record. Each of its PDUs is as long as its own PLEN says.
func Parse(r io.Reader) ([]PDU, error) {
	var pdus []PDU
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 2*MaxPDU+1024)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		p, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		pdus = append(pdus, p)
	}
	return pdus, sc.Err()
}

func parseLine(line string) (PDU, error) {
	fields := strings.Fields(line)
	p := PDU{FromHost: fields[0] == "H>C"}
	if !p.FromHost && fields[0] != "C>H" {
		return p, fmt.Errorf("direction %q is neither H>C nor C>H", fields[0])
	}
	for _, f := range fields[1:] {
		digits, count, repeated := strings.Cut(f, "x")
		b, err := hex.DecodeString(digits)
		if err != nil {
			return p, err
		}
		if repeated {
			n, err := strconv.Atoi(count)
			if err != nil || n < 1 || len(b) != 1 || len(p.Bytes)+n > MaxPDU {
				return p, fmt.Errorf("%q is not one byte and how often it stands", f)
			}
			b = bytes.Repeat(b, n)
		}
		p.Bytes = append(p.Bytes, b...)
	}
	if len(p.Bytes) < headerSize {
		return p, errors.New("shorter than the common header")
	}
	if plen := binary.LittleEndian.Uint32(p.Bytes[4:]); uint64(plen) != uint64(len(p.Bytes)) {
		return p, fmt.Errorf("%d bytes, but PLEN is %d", len(p.Bytes), plen)
	}
	return p, nil
}

// readPDU reads one PDU off a connection.
func readPDU(r io.Reader) ([]byte, error) {
	b := make([]byte, headerSize)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	plen := binary.LittleEndian.Uint32(b[4:])
	if plen < headerSize || plen > MaxPDU {
		return nil, fmt.Errorf("PDU of type %02xh: PLEN %d", b[0], plen)
	}
	b = append(b, make([]byte, plen-headerSize)...)
	_, err := io.ReadFull(r, b[headerSize:])
	return b, err
}
