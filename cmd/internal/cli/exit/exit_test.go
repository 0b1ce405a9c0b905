package exit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

type far struct{}

func (far) Error() string       { return "far" }
func (far) Exit() (int, string) { return 9, "look there" }

func TestCodeOf(t *testing.T) {
	dial := func(errno syscall.Errno) error {
		return &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)}
	}
	for _, tc := range []struct {
		err  error
		want Code
	}{
		{nil, OK},
		{errors.New("x"), Failed},
		{dial(syscall.ECONNREFUSED), Unreachable},
		{dial(syscall.ENETUNREACH), Unreachable},
		{&net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}, Usage},
		{fmt.Errorf("x: %w", &net.DNSError{IsNotFound: true}), Unreachable},
		{&net.DNSError{IsTimeout: true}, Unreachable},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}, Permission},
		{fmt.Errorf("x: %w", os.ErrPermission), Permission},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.EBUSY}, InUse},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT}, Failed},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), Unreachable},
		{fmt.Errorf("x: %w", os.ErrDeadlineExceeded), Unreachable},
		{fmt.Errorf("x: %w", context.Canceled), Interrupted},
		{syscall.EOPNOTSUPP, Unsupported},
		{New(NotFound, dial(syscall.ECONNREFUSED), ""), NotFound},
		{errors.Join(errors.New("x"), dial(syscall.ECONNREFUSED)), Unreachable},
		{errors.Join(Errorf(Auth, "a"), Errorf(NotFound, "b")), Auth},
		{fmt.Errorf("x: %w", errors.Join(Errorf(Auth, "a"), Errorf(InUse, "b"))), InUse},
		{fmt.Errorf("x: %w", far{}), InUse},
	} {
		if got := CodeOf(tc.err); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.err, got, tc.want)
		}
	}
}

func TestHint(t *testing.T) {
	base := errors.New("x")
	err := WithHint(base, "do this")
	if Hint(err) != "do this" || CodeOf(err) != Failed || !errors.Is(err, base) {
		t.Errorf("%+v", err)
	}
	if again := WithHint(fmt.Errorf("y: %w", err), "do that"); Hint(again) != "do this" {
		t.Errorf("the first hint was lost: %q", Hint(again))
	}
	if Hint(errors.Join(base, far{})) != "look there" {
		t.Error("no hint from a joined error")
	}
	if New(Usage, nil, "x") != nil || WithHint(nil, "x") != nil {
		t.Error("nil became an error")
	}
}

// What ran out is no secret: the hint says what to do about it, unless somebody knew better.
func TestHintExhausted(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{&fs.PathError{Op: "write", Path: "/run/hawser/records/v", Err: syscall.ENOSPC}, "file system is full"},
		{&fs.PathError{Op: "write", Path: "/x", Err: syscall.EDQUOT}, "quota"},
		{fmt.Errorf("x: %w", &fs.PathError{Op: "open", Path: "/x", Err: syscall.EMFILE}), "ulimit -n"},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.ENFILE)}, "fs.file-max"},
		{os.NewSyscallError("inotify_init1", syscall.EMFILE), "max_user_instances"},
		{os.NewSyscallError("inotify_add_watch /run", syscall.ENOSPC), "max_user_watches"},
		{errors.Join(errors.New("x"), &Error{Failed, syscall.ENOSPC, "do this"}), "do this"},
	} {
		if got := Hint(tc.err); !strings.Contains(got, tc.want) {
			t.Errorf("%v: %q, want %s", tc.err, got, tc.want)
		}
	}
	if got := Hint(syscall.EIO); got != "" {
		t.Errorf("EIO: %q", got)
	}
}

func TestTable(t *testing.T) {
	last := Code(-1)
	for _, e := range Table() {
		if e.Code <= last || e.Meaning == "" || e.Causes == "" || e.Code.String() != e.Meaning {
			t.Errorf("row %+v", e)
		}
		last = e.Code
	}
}
