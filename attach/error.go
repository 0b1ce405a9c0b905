package attach

import "fmt"

// Cause classifies a failure. Its number is the exit code a command ends with.
type Cause int

const (
	CauseFailed      Cause = 1
	CauseUsage       Cause = 2 // a value, or a pair of values, that cannot be
	CauseAuth        Cause = 4 // key or host refused
	CauseNotFound    Cause = 5 // no such volume, name or subsystem
	CauseUnreachable Cause = 6 // no answer in time
	CauseUnsupported Cause = 7 // the driver, kernel or target lacks a feature
	CausePermission  Cause = 8
	CauseInUse       Cause = 9 // holders, another's, or an identity that changed
)

// Error is the error of this package and its drivers: what was done, on what, why it failed, and the remedy.
type Error struct {
	Op    string // "attach", "detach", "record", …; empty where Err says it
	Name  string // volume, target or path concerned; may be empty
	Cause Cause
	Err   error
	Hint  string // one line; may be empty
}

func (e *Error) Error() string {
	s := e.Err.Error()
	if e.Name != "" {
		s = e.Name + ": " + s
	}
	if e.Op != "" {
		s = e.Op + " " + s
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Exit gives the exit code and the remedy.
func (e *Error) Exit() (code int, hint string) { return int(e.Cause), e.Hint }

func usagef(format string, args ...any) error {
	return &Error{Cause: CauseUsage, Err: fmt.Errorf(format, args...)}
}
