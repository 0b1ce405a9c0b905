package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// errnoShrunk is what Linux's own target takes for a request beyond the end.
const errnoShrunk = unix.EREMOTEIO

func openPath(ctx context.Context, path string, o Options) (Backend, error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if o.Size == 0 {
			return nil, &Error{"open", path, fmt.Errorf("%w; add size=, for example size=1G, to create it", fs.ErrNotExist)}
		}
		return createFile(path, o)
	case err != nil:
		return nil, openError(path, err)
	case st.Mode().IsRegular():
		return openFile(path, o)
	case st.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice:
		return openBlock(ctx, path, o)
	}
	return nil, invalid(path, "it is neither a regular file nor a block device (%s)", st.Mode().Type())
}

// openError takes the path out of an error of package os: Error has it.
func openError(path string, err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return &Error{Op: "open", Path: path, Err: err}
}

func inUse(path, why string) error {
	return &Error{Op: "open", Path: path, Err: fmt.Errorf("%w: %s", ErrInUse, why)}
}

// lock takes the locks that exclude other servers and virtual machines: flock, and for files the open file
// description locks that qemu looks at.
func lock(f *os.File, path string, o Options, ofd bool) error {
	how, typ := unix.LOCK_EX, int16(unix.F_WRLCK)
	why := "another process has it locked; stop that one, or give shared to every server that exports it"
	if o.Shared {
		how, typ = unix.LOCK_SH, unix.F_RDLCK
		why = "another process has it locked for itself; stop that one, or make it say shared too"
	}
	if o.ReadOnly {
		typ = unix.F_RDLCK
	}
	fd := int(f.Fd())
	if err := retryIntr(func() error { return unix.Flock(fd, how|unix.LOCK_NB) }); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return inUse(path, why)
		}
		return &Error{"lock", path, err}
	}
	if !ofd {
		return nil
	}
	err := retryIntr(func() error { return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ}) })
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return inUse(path, why)
	}
	return nil // a file system without such locks still has flock's
}

// lockPatiently is lock for a device node, which udev locks for a moment whenever it looks at the device.
func lockPatiently(ctx context.Context, f *os.File, path string, o Options) error {
	return patiently(ctx, func() (bool, error) {
		err := lock(f, path, o, false)
		return errors.Is(err, ErrInUse), err
	})
}

// patiently calls try for as long as it says again, for at most two seconds: neither flock nor O_EXCL can be waited for
// with a bound.
func patiently(ctx context.Context, try func() (again bool, err error)) error {
	const rounds, pause = 40, 50 * time.Millisecond
	t := time.NewTicker(pause)
	defer t.Stop()
	for i := 1; ; i++ {
		again, err := try()
		if i == rounds || !again {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-t.C:
		}
	}
}

func retryIntr(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
