package backend

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// file is a regular file, read and written through the page cache.
type file struct {
	info    Info
	f       *os.File
	fd      int
	workers workers

	// What the file system turned out not to do.
	noReadNowait, noWriteNowait, noPunch, noZeroRange atomic.Bool
	// A failed write-back has dropped pages, and the kernel tells only one caller of fdatasync: no flush may say
	// success after that.
	lost atomic.Pointer[error]
}

func createFile(path string, o Options) (_ Backend, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		err = openError(path, err)
		err.(*Error).Op = "create"
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(path)
		}
	}()
	if err := f.Truncate(o.Size); err != nil {
		return nil, &Error{"create", path, fmt.Errorf("size %d: %w", o.Size, errno(err))}
	}
	// A flush of the file promises nothing if its name can be lost.
	if err := syncDir(filepath.Dir(path)); err != nil {
		return nil, &Error{"create", path, err}
	}
	return newFile(f, path, o)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // a file system without the notion
		return err
	}
	return nil
}

func openFile(path string, o Options) (_ Backend, err error) {
	flag := os.O_RDWR
	if o.ReadOnly {
		flag = os.O_RDONLY
	}
	// O_NONBLOCK: should the path have become a FIFO, open must not wait for its other end.
	f, err := os.OpenFile(path, flag|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ETXTBSY) {
		return nil, inUse(path, "it is being executed, or a swap file")
	}
	if err != nil {
		return nil, openError(path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	return newFile(f, path, o)
}

// newFile locks and checks f. The lock comes first: what is found out then holds.
func newFile(f *os.File, path string, o Options) (Backend, error) {
	if err := lock(f, path, o, true); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	fd := int(f.Fd())
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, openError(path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, invalid(path, "it is no longer a regular file")
	}
	if why := fileHeld("/", &st); why != "" {
		return nil, inUse(path, why)
	}
	bs := int64(blockSize(o))
	switch {
	case st.Size == 0 && o.Size != 0 && !o.ReadOnly:
		if err := unix.Ftruncate(fd, o.Size); err != nil {
			return nil, &Error{"create", path, fmt.Errorf("size %d: %w", o.Size, err)}
		}
		st.Size = o.Size
	case st.Size == 0:
		return nil, invalid(path, "the file is empty; add size=, for example size=1G")
	case o.Size != 0 && o.Size != st.Size:
		return nil, invalid(path, "the file has %d bytes, size= says %d; leave size= out, or change the file with truncate", st.Size, o.Size)
	case st.Size%bs != 0:
		return nil, invalid(path, "its %d bytes are not a multiple of the block size %d; change that with truncate, or use another block=", st.Size, bs)
	}
	b := &file{f: f, fd: fd}
	b.info = Info{
		Size: st.Size, BlockSize: int(bs), PhysicalBlock: max(int(bs), 4096),
		VolatileCache: true, CanWriteZeroes: true, DeallocateZeroes: true,
		OptimalIO: int64(st.Blksize), DiscardGranularity: int64(st.Blksize),
		ReadOnly: o.ReadOnly, Identity: fileIdentity("/", path, fd, &st),
	}
	// Beyond the end there is nothing to lose: the file system says whether it can.
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	b.info.CanDeallocate = !o.ReadOnly && unix.Fallocate(fd, punch, st.Size, bs) == nil
	b.noPunch.Store(!b.info.CanDeallocate)
	b.workers.init(b.do, o.Threads)
	return b, nil
}

func (b *file) Info() Info { return b.info }

func (b *file) Submit(r *Request) bool {
	if r.Err = r.check(b.info.Size, b.info.ReadOnly); r.Err != nil {
		return true
	}
	r.done = 0
	switch {
	case r.Length == 0 && r.Op != OpFlush:
		return true
	case r.Op == OpRead && !b.noReadNowait.Load():
		n, err := preadv2(b.fd, r.Data, r.Offset, unix.RWF_NOWAIT)
		if n == len(r.Data) {
			return true
		}
		r.done = max(n, 0)
		if err == unix.EOPNOTSUPP {
			b.noReadNowait.Store(true)
		}
	case r.Op == OpWrite && !r.FUA && !b.noWriteNowait.Load():
		if r.Err = b.changed(r.Offset + r.Length); r.Err != nil {
			return true
		}
		n, err := pwritev2(b.fd, r.Data, r.Offset, unix.RWF_NOWAIT)
		if n == len(r.Data) {
			return true
		}
		r.done = max(n, 0)
		if err == unix.EOPNOTSUPP {
			b.noWriteNowait.Store(true)
		}
	}
	return !b.workers.submit(r)
}

func (b *file) do(r *Request) error {
	if r.Op == OpRead {
		return readFull(b.fd, r)
	}
	if err := b.changed(r.Offset + r.Length); err != nil {
		return err
	}
	switch r.Op {
	case OpWrite:
		return b.write(r)
	case OpFlush:
		return b.flush()
	case OpWriteZeroes:
		if err := b.zero(r); err != nil || !r.FUA {
			return err
		}
		return b.flush()
	case OpDeallocate:
		_, err := b.punch(r)
		return err
	}
	return unix.EINVAL
}

// changed reports what became of the file since it was opened. A write at or beyond the end of a file that was cut
// off would let it grow again, with zeroes where its data was.
func (b *file) changed(end int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(b.fd, &st); err != nil {
		return err
	}
	switch {
	case st.Nlink == 0:
		return ErrVanished
	case st.Size < end:
		return ErrShrunk
	}
	return nil
}

func readFull(fd int, r *Request) error {
	for r.done < len(r.Data) {
		n, err := preadv2(fd, r.Data[r.done:], r.Offset+int64(r.done), 0)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return ErrShrunk
		default:
			r.done += n
		}
	}
	return nil
}

// writeFull writes what is left of r; flags apply to each system call.
func writeFull(fd int, r *Request, flags int) error {
	for r.done < len(r.Data) {
		n, err := pwritev2(fd, r.Data[r.done:], r.Offset+int64(r.done), flags)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return unix.EIO
		default:
			r.done += n
		}
	}
	return nil
}

func (b *file) write(r *Request) error {
	if !r.FUA {
		return writeFull(b.fd, r, 0)
	}
	if p := b.lost.Load(); p != nil {
		return *p
	}
	err := writeFull(b.fd, r, unix.RWF_DSYNC)
	if err == unix.EOPNOTSUPP {
		if err = writeFull(b.fd, r, 0); err == nil {
			err = b.flush()
		}
	}
	if err == unix.EIO {
		b.remember(err)
	}
	return err
}

func (b *file) flush() error {
	if p := b.lost.Load(); p != nil {
		return *p
	}
	err := retryIntr(func() error { return unix.Fdatasync(b.fd) })
	if err != nil {
		b.remember(err)
	}
	// Another flush may have been told of the failure in the meantime, in place of this one.
	if p := b.lost.Load(); p != nil {
		return *p
	}
	return nil
}

func (b *file) remember(err error) {
	err = fmt.Errorf("writing back to the file failed, data was lost: %w", err)
	b.lost.CompareAndSwap(nil, &err)
}

func (b *file) zero(r *Request) error {
	if r.MayUnmap {
		if done, err := b.punch(r); done {
			return err
		}
	}
	if !b.noZeroRange.Load() {
		const mode = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
		err := retryIntr(func() error { return unix.Fallocate(b.fd, mode, r.Offset, r.Length) })
		if err != unix.EOPNOTSUPP {
			return err
		}
		b.noZeroRange.Store(true)
	}
	return writeZeroes(b.fd, r)
}

// punch deallocates the blocks of r; it reports false where the file system can't.
func (b *file) punch(r *Request) (bool, error) {
	if b.noPunch.Load() {
		return false, nil
	}
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	err := retryIntr(func() error { return unix.Fallocate(b.fd, mode, r.Offset, r.Length) })
	if err == unix.EOPNOTSUPP {
		b.noPunch.Store(true)
		return false, nil
	}
	return true, err
}

var zeroes [256 << 10]byte

// writeZeroes writes them the long way.
func writeZeroes(fd int, r *Request) error {
	for off, end := r.Offset, r.Offset+r.Length; off < end; {
		n, err := pwritev2(fd, zeroes[:min(end-off, int64(len(zeroes)))], off, 0)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return unix.EIO
		default:
			off += int64(n)
		}
	}
	return nil
}

func (b *file) Close() error {
	b.workers.close()
	var err error
	if !b.info.ReadOnly {
		err = unix.Fdatasync(b.fd)
	}
	return errors.Join(err, b.f.Close())
}

// preadv2 and pwritev2 carry one buffer each. n is what the call returned, 0 on error.
func preadv2(fd int, p []byte, off int64, flags int) (n int, err error) {
	iov := [1][]byte{p}
	n, err = unix.Preadv2(fd, iov[:], off, flags)
	return max(n, 0), err
}

func pwritev2(fd int, p []byte, off int64, flags int) (n int, err error) {
	iov := [1][]byte{p}
	n, err = unix.Pwritev2(fd, iov[:], off, flags)
	return max(n, 0), err
}

func errno(err error) error {
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}
