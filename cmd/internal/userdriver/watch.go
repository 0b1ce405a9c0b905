package userdriver

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// watchGone returns a channel that is closed when the file at path is not there any more (inotify(7) on its folder: a folder
// itself is not reported as deleted while a file that was in it is open, as an agent's log is).
func watchGone(path string) (gone <-chan struct{}, stop func(), err error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, nil, os.NewSyscallError("inotify_init1", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_ONLYDIR); err != nil {
		f.Close()
		return nil, nil, os.NewSyscallError("inotify_add_watch "+filepath.Dir(path), err)
	}
	ch := make(chan struct{})
	go func() {
		var b [4096]byte
		for {
			// Subscribed first, then looked: what happens in between is in the next read.
			if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
				close(ch)
				return
			}
			if _, err := f.Read(b[:]); err != nil {
				return // stopped
			}
		}
	}()
	return ch, func() { f.Close() }, nil
}
