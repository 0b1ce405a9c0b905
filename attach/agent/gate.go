package agent

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"hawser.dev/hawser/attach"
)

// maxSocketPath is the longest path a unix socket can have (sun_path of unix(7), less its NUL).
const maxSocketPath = 107

// A gate is the listening socket of an attachment. To a server that is shut down it looks closed, and can be opened for the
// next one: between the two, clients wait in the kernel's queue. It knows who is connected.
type gate struct {
	*net.UnixListener
	path   string
	peerOf func(*net.UnixConn) (attach.Client, error)

	mu    sync.Mutex
	conns map[*gateConn]attach.Client
	left  chan struct{} // closed and replaced whenever a client leaves
}

type gateConn struct {
	*net.UnixConn
	gate *gate
}

// CheckSocketPath says whether a unix socket can be at path.
func CheckSocketPath(path string) error {
	if len(path) > maxSocketPath {
		return &attach.Error{Cause: attach.CauseUsage, Err: fmt.Errorf("socket %s: its path has %d bytes, a unix socket's can have %d", path, len(path), maxSocketPath),
			Hint: "use a shorter state folder, or a shorter --name"}
	}
	return nil
}

// listen makes the socket, mode 0600, in a folder of mode 0700. A dead one in its place is removed.
func listen(path string, peerOf func(*net.UnixConn) (attach.Client, error)) (*gate, error) {
	if err := CheckSocketPath(path); err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, &attach.Error{Cause: attach.CauseInUse, Err: fmt.Errorf("socket %s: another process listens there", path)}
	}
	if err := RemoveSocket(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return &gate{UnixListener: l, path: path, peerOf: peerOf, conns: map[*gateConn]attach.Client{}, left: make(chan struct{})}, nil
}

// RemoveSocket removes the socket at path, if there is one, and nothing else than a socket.
func RemoveSocket(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is not a socket: remove it", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, syscall.ENOENT) {
		return err
	}
	return nil
}

func (g *gate) Accept() (net.Conn, error) {
	c, err := g.AcceptUnix()
	if err != nil {
		return nil, err
	}
	client, err := g.peerOf(c)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("%w: %w", syscall.ECONNABORTED, err) // this one is lost, the next may be good
	}
	gc := &gateConn{UnixConn: c, gate: g}
	g.mu.Lock()
	g.conns[gc] = client
	g.mu.Unlock()
	return gc, nil
}

func (c *gateConn) Close() error {
	c.gate.mu.Lock()
	if _, open := c.gate.conns[c]; open {
		delete(c.gate.conns, c)
		close(c.gate.left)
		c.gate.left = make(chan struct{})
	}
	c.gate.mu.Unlock()
	return c.UnixConn.Close()
}

// inUse is a channel that is closed when a client leaves, nil when none is connected.
func (g *gate) inUse() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.conns) == 0 {
		return nil
	}
	return g.left
}

// Close ends Accept and leaves the socket as it is.
func (g *gate) Close() error { return g.SetDeadline(time.Unix(1, 0)) }

// open makes Accept work again.
func (g *gate) open() { g.SetDeadline(time.Time{}) }

// remove ends the socket: whoever still waits for it is turned away.
func (g *gate) remove() {
	os.Remove(g.path)
	g.UnixListener.Close()
}

// clients lists who is connected.
func (g *gate) clients() []attach.Client {
	g.mu.Lock()
	clients := make([]attach.Client, 0, len(g.conns))
	for _, c := range g.conns {
		clients = append(clients, c)
	}
	g.mu.Unlock()
	for i := range clients {
		clients[i].Command = commandOf(clients[i].PID)
	}
	slices.SortFunc(clients, func(a, b attach.Client) int { return cmp.Compare(a.PID, b.PID) })
	return clients
}

// alignedBlock is n bytes aligned as frontend.Request wants them.
func alignedBlock(n int) []byte {
	const align = 4096
	b := make([]byte, n+align)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (align - 1)
	return b[skip : skip+n : skip+n]
}
