// Package exit holds the one table of exit codes, and says which of them an error ends with.
package exit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// A Code is a process exit status.
type Code int

const (
	OK          Code = 0
	Failed      Code = 1
	Usage       Code = 2
	Partial     Code = 3
	Auth        Code = 4
	NotFound    Code = 5
	Unreachable Code = 6
	Unsupported Code = 7
	Permission  Code = 8
	InUse       Code = 9
	Interrupted Code = 130
)

// An Entry is one row of the table.
type Entry struct {
	Code    Code
	Meaning string // in a few words
	Causes  string // what leads there
}

// Table lists every exit code there is, in order.
func Table() []Entry {
	return []Entry{
		{OK, "done, or already so", "also with fewer paths than possible, but at least --min-paths"},
		{Failed, "failed", "whatever has no code of its own"},
		{Usage, "usage", "a name, URL, option value or pair of options that cannot be; a port in use; a host ID used with another NQN"},
		{Partial, "partly done", "of several things asked, some succeeded"},
		{Auth, "authentication", "key missing or refused, host not allowed by the target"},
		{NotFound, "not found", "unknown NQN, IQN, LUN, volume or name"},
		{Unreachable, "timeout or unreachable", "refused, reset, no route, no answer, a flush that failed or did not finish"},
		{Unsupported, "not supported", "a feature that the kernel or the target lacks, or a missing tool"},
		{Permission, "permission", "not root where root is needed"},
		{InUse, "in use, or not ours", "holders, another's controllers, a device already exported, an identity that changed"},
		{Interrupted, "interrupted", "by SIGINT or SIGTERM"},
	}
}

// String gives the meaning that the table has for the code.
func (c Code) String() string {
	for _, e := range Table() {
		if e.Code == c {
			return e.Meaning
		}
	}
	return "exit code " + strconv.Itoa(int(c))
}

// An Error is an error that knows its exit code and, where there is one, the remedy.
type Error struct {
	Code Code
	Err  error
	Hint string // what to do, one line; empty when Err says it
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// A coder is an error of a package that knows its exit code without knowing this one.
type coder interface {
	Exit() (code int, hint string)
}

// New gives err a code and a hint; a nil err stays nil.
func New(code Code, err error, hint string) error {
	if err == nil {
		return nil
	}
	return &Error{Code: code, Err: err, Hint: hint}
}

// Errorf makes an error with a code, formatted as by fmt.Errorf.
func Errorf(code Code, format string, args ...any) error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...)}
}

// Usagef makes an error of usage, formatted as by fmt.Errorf.
func Usagef(format string, args ...any) error { return Errorf(Usage, format, args...) }

// WithHint adds a remedy to err, whose code stays what it was. A hint that is there already stays.
func WithHint(err error, hint string) error {
	if err == nil || Hint(err) != "" {
		return err
	}
	return &Error{Code: CodeOf(err), Err: err, Hint: hint}
}

// Hint returns the outermost remedy found in err; where there is none, that for a resource that ran out.
func Hint(err error) (hint string) {
	walk(err, func(e error) bool {
		switch x := e.(type) {
		case *Error:
			hint = x.Hint
		case coder:
			_, hint = x.Exit()
		}
		return hint != ""
	})
	if hint == "" {
		hint = exhausted(err)
	}
	return hint
}

// exhausted is the remedy where the system has no more of something, empty for any other error.
func exhausted(err error) string {
	var call *os.SyscallError
	inotify := errors.As(err, &call) && strings.HasPrefix(call.Syscall, "inotify")
	switch {
	case inotify && errors.Is(err, syscall.EMFILE):
		return "this user has too many inotify instances: raise the limit, 'sysctl fs.inotify.max_user_instances' shows it"
	case inotify && errors.Is(err, syscall.ENOSPC):
		return "there are too many inotify watches: raise the limit, 'sysctl fs.inotify.max_user_watches' shows it"
	case errors.Is(err, syscall.ENOSPC):
		return "the file system is full: free some space there ('df -h' and 'df -i' show what is left)"
	case errors.Is(err, syscall.EDQUOT):
		return "the quota is used up: free some space there ('quota' shows what is left)"
	case errors.Is(err, syscall.EMFILE):
		return "too many files are open in this process: raise the limit, 'ulimit -n' shows it (LimitNOFILE= of a systemd unit)"
	case errors.Is(err, syscall.ENFILE):
		return "too many files are open on this machine: raise the limit, 'sysctl fs.file-max' shows it"
	}
	return ""
}

// CodeOf returns the exit code for err. An Error decides for all that it wraps; of several joined errors
// one in use comes first, then the first that has a code.
func CodeOf(err error) Code {
	if err == nil {
		return OK
	}
	if c, ok := find(err); ok {
		return c
	}
	return Failed
}

// A remote error was given its code by the process that met it (control.Error).
type remote interface {
	Exit() (code int, hint string)
}

func find(err error) (Code, bool) {
	switch x := err.(type) {
	case *Error:
		return x.Code, true
	case coder:
		code, _ := x.Exit()
		return Code(code), true
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		first, found := Failed, false
		for _, e := range many.Unwrap() {
			c, ok := find(e)
			switch {
			case !ok:
			case c == InUse:
				return InUse, true
			case !found:
				first, found = c, true
			}
		}
		return first, found
	}
	if c, ok := known(err); ok {
		return c, true
	}
	if inner := errors.Unwrap(err); inner != nil {
		return find(inner)
	}
	return Failed, false
}

// known maps errors of the standard library and errnos, looking at err itself only.
func known(err error) (Code, bool) {
	switch err {
	case context.Canceled:
		return Interrupted, true
	case context.DeadlineExceeded, os.ErrDeadlineExceeded:
		return Unreachable, true
	case os.ErrPermission:
		return Permission, true
	}
	var errno syscall.Errno
	if errno, _ = err.(syscall.Errno); errno != 0 {
		switch errno {
		case syscall.EPERM, syscall.EACCES:
			return Permission, true
		case syscall.EBUSY, syscall.ETXTBSY:
			return InUse, true
		case syscall.EADDRINUSE, syscall.EADDRNOTAVAIL:
			return Usage, true
		case syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE, syscall.ETIMEDOUT,
			syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN:
			return Unreachable, true
		case syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EAFNOSUPPORT, syscall.EPROTONOSUPPORT:
			return Unsupported, true
		}
		return Failed, false
	}
	if _, ok := err.(*net.DNSError); ok {
		return Unreachable, true
	}
	return Failed, false
}

func walk(err error, visit func(error) (stop bool)) bool {
	if err == nil {
		return false
	}
	if visit(err) {
		return true
	}
	switch x := err.(type) {
	case interface{ Unwrap() []error }:
		for _, e := range x.Unwrap() {
			if walk(e, visit) {
				return true
			}
		}
	case interface{ Unwrap() error }:
		return walk(x.Unwrap(), visit)
	}
	return false
}

const annotation = "hawser_exit_codes"

// Document records which codes a command can end with, beside 0, 1, 2 and 130 which every command can; its help lists them.
func Document(cmd *cobra.Command, codes ...Code) {
	all := append([]Code{OK, Failed, Usage, Interrupted}, codes...)
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	texts := make([]string, 0, len(all))
	for i, c := range all {
		if i == 0 || c != all[i-1] {
			texts = append(texts, strconv.Itoa(int(c)))
		}
	}
	if cmd.Annotations == nil {
		cmd.Annotations = make(map[string]string)
	}
	cmd.Annotations[annotation] = strings.Join(texts, ",")
}

// Documented returns the codes recorded by Document, nil if there are none.
func Documented(cmd *cobra.Command) []Code {
	var codes []Code
	for _, text := range strings.Split(cmd.Annotations[annotation], ",") {
		if n, err := strconv.Atoi(text); err == nil {
			codes = append(codes, Code(n))
		}
	}
	return codes
}
