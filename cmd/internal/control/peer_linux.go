package control

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Peer is the process at the other end of a unix socket when it connected (or began to listen).
type Peer struct{ PID, UID int }

// PeerOf asks the kernel who is at the other end of c (SO_PEERCRED, unix(7)).
func PeerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err == nil {
		err = os.NewSyscallError("getsockopt SO_PEERCRED", sockErr)
	}
	if err != nil {
		return Peer{}, err
	}
	return Peer{PID: int(cred.Pid), UID: int(cred.Uid)}, nil
}

// allow lets the same user and root talk to each other.
func (p Peer) allow(self int) error {
	if p.UID == 0 || p.UID == self {
		return nil
	}
	return &Error{Code: 8, Message: fmt.Sprintf("process %d of user %d may not talk to a process of user %d", p.PID, p.UID, self), Hint: "run the command as the same user or as root"}
}
