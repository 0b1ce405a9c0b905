//go:build !linux

package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
)

const errnoShrunk = syscall.EIO

// file is a regular file by the means that every system has: blocks can't be deallocated, and there is no lock that
// keeps other programs out.
type file struct {
	info    Info
	f       *os.File
	workers workers
}

func openPath(_ context.Context, path string, o Options) (_ Backend, err error) {
	flag := os.O_RDWR
	if o.ReadOnly {
		flag = os.O_RDONLY
	}
	st, err := os.Stat(path)
	created := errors.Is(err, fs.ErrNotExist) && o.Size > 0
	switch {
	case created:
		flag |= os.O_CREATE | os.O_EXCL
	case err != nil:
		return nil, &Error{"open", path, err}
	case !st.Mode().IsRegular():
		return nil, &Error{"open", path, fmt.Errorf("%w on %s: only regular files can be exported", errors.ErrUnsupported, runtime.GOOS)}
	}
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, &Error{"open", path, err}
	}
	defer func() {
		if err != nil {
			f.Close()
			if created {
				os.Remove(path)
			}
		}
	}()
	size := o.Size
	if !created {
		size = st.Size()
	}
	bs := int64(blockSize(o))
	switch {
	case created:
		if err := f.Truncate(size); err != nil {
			return nil, &Error{"create", path, err}
		}
	case size == 0:
		return nil, invalid(path, "the file is empty")
	case o.Size != 0 && o.Size != size:
		return nil, invalid(path, "the file has %d bytes, size= says %d; leave size= out", size, o.Size)
	case size%bs != 0:
		return nil, invalid(path, "its %d bytes are not a multiple of the block size %d", size, bs)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, &Error{"open", path, err}
	}
	b := &file{f: f, info: Info{
		Size: size, BlockSize: int(bs), PhysicalBlock: max(int(bs), 4096), VolatileCache: true, CanWriteZeroes: true,
		OptimalIO: 4096, ReadOnly: o.ReadOnly, Identity: "path:" + machineID("/") + ":" + abs,
	}}
	b.workers.init(b.do, o.Threads)
	return b, nil
}

func (b *file) Info() Info { return b.info }

func (b *file) Submit(r *Request) bool {
	if r.Err = r.check(b.info.Size, b.info.ReadOnly); r.Err != nil || r.Length == 0 && r.Op != OpFlush {
		return true
	}
	return !b.workers.submit(r)
}

func (b *file) do(r *Request) error {
	var err error
	switch r.Op {
	case OpRead:
		_, err = b.f.ReadAt(r.Data, r.Offset)
		if errors.Is(err, io.EOF) {
			err = ErrShrunk
		}
		return err
	case OpWrite:
		_, err = b.f.WriteAt(r.Data, r.Offset)
	case OpWriteZeroes:
		zeroes := make([]byte, min(r.Length, 256<<10))
		for off, end := r.Offset, r.Offset+r.Length; off < end && err == nil; off += int64(len(zeroes)) {
			_, err = b.f.WriteAt(zeroes[:min(int64(len(zeroes)), end-off)], off)
		}
	}
	if err == nil && (r.Op == OpFlush || r.FUA) {
		err = b.f.Sync()
	}
	return err
}

func (b *file) Close() error {
	b.workers.close()
	return b.f.Close()
}

func machineID(string) string {
	name, _ := os.Hostname()
	return name
}

func physicalMemory() int64 { return 0 }

func mapMemory(size int) ([]byte, error) {
	if size < 0 {
		return nil, syscall.ENOMEM
	}
	return make([]byte, size), nil
}

func unmapMemory([]byte) error { return nil }

func zeroMemory(mem []byte, from, to int, _ bool) error {
	clear(mem[from:to])
	return nil
}
