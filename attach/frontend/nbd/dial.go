package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"syscall"
	"time"
)

// Client uses an export over one connection, a command at a time: enough to prove that an export works.
type Client struct {
	nc        net.Conn
	size      int64
	blockSize int
	flags     uint16

	mu     sync.Mutex
	cookie uint64
	err    error // the connection is out of step
}

// maxReply bounds an option reply that the client reads, in bytes.
const maxReply = 64 << 10

// Dial connects to the export on a unix socket and enters the transmission phase. name "" is the default export.
func Dial(ctx context.Context, path, name string) (*Client, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, &Error{"dial", err}
	}
	c := &Client{nc: nc, blockSize: 1}
	end := c.within(ctx)
	err = c.handshake(name)
	if err = end(err); err != nil {
		nc.Close()
		return nil, &Error{"handshake with " + path, err}
	}
	return c, nil
}

// within makes reads and writes end with ctx; the function it returns undoes that and puts ctx's error in place of the socket's.
func (c *Client) within(ctx context.Context) func(error) error {
	stop := context.AfterFunc(ctx, func() { c.nc.SetDeadline(time.Unix(1, 0)) })
	return func(err error) error {
		if !stop() && err != nil {
			return context.Cause(ctx)
		}
		return err
	}
}

func (c *Client) read(n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(c.nc, b)
	return b, err
}

func (c *Client) handshake(name string) error {
	b, err := c.read(18)
	if err != nil {
		return err
	}
	if binary.BigEndian.Uint64(b) != magicInit || binary.BigEndian.Uint64(b[8:]) != magicOption {
		return errors.New("what listens there is no NBD server of the newstyle")
	}
	flags := binary.BigEndian.Uint16(b[16:])
	if flags&flagFixedNewstyle == 0 {
		return errors.New("the server does not speak fixed newstyle")
	}
	if len(name) > maxString {
		return fmt.Errorf("export name of %d bytes is longer than %d", len(name), maxString)
	}
	msg := binary.BigEndian.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes)))
	msg = option{optGo, uint32(4 + len(name) + 4)}.AppendTo(msg)
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(name)))
	msg = append(msg, name...)
	msg = append(msg, 0, 1, 0, infoBlockSize)
	if _, err := c.nc.Write(msg); err != nil {
		return err
	}
	exported := false
	for {
		if b, err = c.read(optReplySize); err != nil {
			return err
		}
		var r optReply
		if err := r.Parse(b); err != nil {
			return err
		}
		if r.Option != optGo || r.Length > maxReply {
			return fmt.Errorf("answer of %d bytes to %v", r.Length, r.Option)
		}
		if b, err = c.read(int(r.Length)); err != nil {
			return err
		}
		switch {
		case r.Type == repAck && exported:
			return nil
		case r.Type == repAck:
			return errors.New("the server names no size")
		case r.Type == repInfo && len(b) == 12 && binary.BigEndian.Uint16(b) == infoExport:
			size := binary.BigEndian.Uint64(b[2:])
			if size > math.MaxInt64 {
				return fmt.Errorf("size %d is beyond any", size)
			}
			c.size, c.flags, exported = int64(size), binary.BigEndian.Uint16(b[10:]), true
		case r.Type == repInfo && len(b) == 14 && binary.BigEndian.Uint16(b) == infoBlockSize:
			n := binary.BigEndian.Uint32(b[2:])
			if n == 0 || n > 64<<10 || n&(n-1) != 0 {
				return fmt.Errorf("block size %d is not a power of two up to 65536", n)
			}
			c.blockSize = int(n)
		case r.Type>>31 != 0:
			return fmt.Errorf("the server refuses the export: %.200q (%#x)", b, uint32(r.Type))
		}
	}
}

// Size of the export in bytes.
func (c *Client) Size() int64 { return c.size }

// BlockSize is the smallest unit of offsets and lengths in bytes.
func (c *Client) BlockSize() int { return c.blockSize }

// ReadAt fills b from off.
func (c *Client) ReadAt(ctx context.Context, b []byte, off int64) error {
	return c.do(ctx, cmdRead, b, off)
}

// WriteAt writes b at off.
func (c *Client) WriteAt(ctx context.Context, b []byte, off int64) error {
	return c.do(ctx, cmdWrite, b, off)
}

// Flush makes what was written durable; where the server never caches it does nothing.
func (c *Client) Flush(ctx context.Context) error {
	if c.flags&flagFlush == 0 {
		return nil
	}
	return c.do(ctx, cmdFlush, nil, 0)
}

func (c *Client) do(ctx context.Context, t cmdType, b []byte, off int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return &Error{"use", c.err}
	}
	if int64(len(b)) > math.MaxUint32 {
		return &Error{"use", fmt.Errorf("%d bytes in one command", len(b))}
	}
	end := c.within(ctx)
	c.cookie++
	e, err := c.command(request{Type: t, Cookie: c.cookie, Offset: uint64(off), Length: uint32(len(b))}, b)
	if err = end(err); err != nil {
		c.err = err
		c.nc.Close()
		return &Error{"use", err}
	}
	if e != 0 {
		return &Error{fmt.Sprintf("command %d at %d", t, off), syscall.Errno(e)}
	}
	return nil
}

func (c *Client) command(q request, b []byte) (errno, error) {
	bufs := net.Buffers{q.AppendTo(nil)}
	if q.Type == cmdWrite {
		bufs = append(bufs, b)
	}
	if _, err := bufs.WriteTo(c.nc); err != nil {
		return 0, err
	}
	h, err := c.read(simpleReplySize)
	if err != nil {
		return 0, err
	}
	var r simpleReply
	if err := r.Parse(h); err != nil {
		return 0, err
	}
	if r.Cookie != q.Cookie {
		return 0, fmt.Errorf("reply to command %d, not %d", r.Cookie, q.Cookie)
	}
	if q.Type == cmdRead && r.Error == 0 {
		_, err = io.ReadFull(c.nc, b)
	}
	return r.Error, err
}

// Close ends the session as the protocol wants it.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = net.ErrClosed
		c.nc.SetWriteDeadline(time.Now().Add(time.Second))
		c.nc.Write(request{Type: cmdDisc, Cookie: c.cookie + 1}.AppendTo(nil))
	}
	return c.nc.Close()
}
