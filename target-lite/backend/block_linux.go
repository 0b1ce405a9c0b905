package backend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// block is a block device, read and written past the page cache.
type block struct {
	info    Info
	f       *os.File
	fd      int
	workers workers
}

// directAlign is an alignment of memory that every driver's direct I/O accepts.
const directAlign = 4096

func openBlock(ctx context.Context, path string, o Options) (_ Backend, err error) {
	flag := os.O_RDWR
	if o.ReadOnly {
		flag = os.O_RDONLY
	}
	if o.Size != 0 {
		return nil, invalid(path, "size= is for files and memory; a block device has its own")
	}
	f, err := claim(ctx, path, flag)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := lockPatiently(ctx, f, path, o); err != nil {
		return nil, err
	}
	if o.Shared {
		// The claim has shown that nobody holds the device; now it must not keep the other servers out.
		shared, err := os.OpenFile(path, flag|unix.O_DIRECT, 0)
		if err != nil {
			return nil, openError(path, err)
		}
		f.Close()
		f = shared
		if err := lockPatiently(ctx, f, path, o); err != nil {
			return nil, err
		}
	}
	b := &block{f: f, fd: int(f.Fd())}
	if err := b.inspect(path, o); err != nil {
		return nil, err
	}
	b.workers.init(b.do, o.Threads)
	return b, nil
}

// claim opens a device with O_EXCL, which fails while it is mounted, held or claimed by another server.
func claim(ctx context.Context, path string, flag int) (*os.File, error) {
	var f *os.File
	err := patiently(ctx, func() (again bool, err error) {
		f, err = os.OpenFile(path, flag|unix.O_EXCL|unix.O_DIRECT, 0)
		if !errors.Is(err, unix.EBUSY) {
			return false, err
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			if held := blockHeld("/", uint64(st.Rdev)); held != "" {
				return false, inUse(path, held)
			}
		}
		return true, inUse(path, "another process has it open for itself")
	})
	if err != nil && !errors.Is(err, ErrInUse) {
		err = openError(path, err)
	}
	return f, err
}

func (b *block) inspect(path string, o Options) error {
	var st unix.Stat_t
	var size uint64
	var logical, physical int32
	fail := func(what string, err error) error { return &Error{what, path, err} }
	if err := unix.Fstat(b.fd, &st); err != nil {
		return fail("stat", err)
	}
	if err := ioctl(b.fd, unix.BLKGETSIZE64, unsafe.Pointer(&size)); err != nil {
		return fail("BLKGETSIZE64", err)
	}
	if err := ioctl(b.fd, unix.BLKSSZGET, unsafe.Pointer(&logical)); err != nil {
		return fail("BLKSSZGET", err)
	}
	if err := ioctl(b.fd, unix.BLKPBSZGET, unsafe.Pointer(&physical)); err != nil {
		return fail("BLKPBSZGET", err)
	}
	bs := o.BlockSize
	if bs == 0 {
		bs = int(logical)
	}
	switch {
	case size == 0:
		return invalid(path, "the device has no medium (0 bytes)")
	case bs != 512 && bs != 4096:
		return invalid(path, "its block size %d is neither 512 nor 4096", bs)
	case bs < int(logical):
		return invalid(path, "block size %d is smaller than the device's %d; use block=%d", bs, logical, logical)
	case size%uint64(bs) != 0:
		return invalid(path, "its %d bytes are not a multiple of the block size %d; use block=%d", size, bs, logical)
	}
	rdev := uint64(st.Rdev)
	dir := deviceDir("/", rdev)
	queue := filepath.Join(dir, "queue")
	if _, err := os.Stat(queue); err != nil {
		queue = filepath.Join(dir, "..", "queue") // a partition
	}
	b.info = Info{
		Size: int64(size), BlockSize: bs, PhysicalBlock: max(bs, int(physical)),
		// What can't be known is taken for volatile: a needless flush costs less than lost data.
		VolatileCache:      readAttr(queue, "write_cache") != "write through",
		CanDeallocate:      readInt(queue, "discard_max_bytes") > 0,
		CanWriteZeroes:     true,
		OptimalIO:          readInt(queue, "optimal_io_size"),
		DiscardGranularity: readInt(queue, "discard_granularity"),
		ReadOnly:           o.ReadOnly,
		Identity:           blockIdentity("/", path, rdev),
	}
	return nil
}

func readInt(elem ...string) int64 {
	n, err := strconv.ParseInt(readAttr(elem...), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

func (b *block) Info() Info { return b.info }

func (b *block) Submit(r *Request) bool {
	if r.Err = r.check(b.info.Size, b.info.ReadOnly); r.Err != nil || r.Length == 0 && r.Op != OpFlush {
		return true
	}
	r.done = 0
	return !b.workers.submit(r)
}

func (b *block) do(r *Request) error {
	err := b.run(r)
	if err == nil {
		return nil
	}
	// The kernel says ENOSPC beyond the end and EIO for a device that is gone.
	var size uint64
	if e := ioctl(b.fd, unix.BLKGETSIZE64, unsafe.Pointer(&size)); e != nil || size == 0 {
		return fmt.Errorf("the device is gone (%w): %w", unix.ENODEV, err)
	}
	if int64(size) < r.Offset+r.Length {
		return ErrShrunk
	}
	return err
}

func (b *block) run(r *Request) error {
	switch r.Op {
	case OpRead:
		return aligned(r, func() error { return readFull(b.fd, r) })
	case OpWrite:
		flags := 0
		if r.FUA {
			flags = unix.RWF_DSYNC
		}
		return aligned(r, func() error { return writeFull(b.fd, r, flags) })
	case OpFlush:
		return retryIntr(func() error { return unix.Fdatasync(b.fd) })
	case OpWriteZeroes:
		if err := b.zero(r); err != nil || !r.FUA {
			return err
		}
		return retryIntr(func() error { return unix.Fdatasync(b.fd) })
	case OpDeallocate:
		if !b.info.CanDeallocate {
			return nil // advice
		}
		err := b.rangeIoctl(unix.BLKDISCARD, r)
		if err == unix.EOPNOTSUPP {
			return nil
		}
		return err
	}
	return unix.EINVAL
}

// aligned runs transfer with r.Data where direct I/O can use it.
func aligned(r *Request, transfer func() error) error {
	if uintptr(unsafe.Pointer(unsafe.SliceData(r.Data)))%directAlign == 0 {
		return transfer()
	}
	data := r.Data
	buf := make([]byte, len(data)+directAlign)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(buf))) % directAlign
	r.Data = buf[skip:][:len(data)]
	defer func() { r.Data = data }()
	if r.Op == OpWrite {
		copy(r.Data, data)
	}
	err := transfer()
	if r.Op == OpRead && err == nil {
		copy(data, r.Data)
	}
	return err
}

func (b *block) zero(r *Request) error {
	if !r.MayUnmap {
		// Unlike BLKZEROOUT this keeps the blocks allocated.
		err := retryIntr(func() error {
			return unix.Fallocate(b.fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, r.Offset, r.Length)
		})
		if err != unix.EOPNOTSUPP {
			return err
		}
	}
	return b.rangeIoctl(unix.BLKZEROOUT, r)
}

func (b *block) rangeIoctl(req uintptr, r *Request) error {
	arg := [2]uint64{uint64(r.Offset), uint64(r.Length)}
	return retryIntr(func() error { return ioctl(b.fd, req, unsafe.Pointer(&arg)) })
}

func (b *block) Close() error {
	b.workers.close()
	var err error
	if !b.info.ReadOnly {
		err = unix.Fdatasync(b.fd)
	}
	return errors.Join(err, b.f.Close())
}
