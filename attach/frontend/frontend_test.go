package frontend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"testing"
)

func TestErrno(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{syscall.ENOSPC, syscall.ENOSPC},
		{fmt.Errorf("write: %w", &os.PathError{Op: "write", Path: "x", Err: syscall.EROFS}), syscall.EROFS},
		{fs.ErrPermission, syscall.EPERM},
		{errors.ErrUnsupported, syscall.EOPNOTSUPP},
		{context.DeadlineExceeded, syscall.ETIMEDOUT},
		{context.Canceled, syscall.EIO},
		{errors.New("something"), syscall.EIO},
		{syscall.Errno(0), syscall.EIO}, // an error all the same
	} {
		if got := Errno(tt.err); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Info{Size: 1 << 20, BlockSize: 512, MaxTransfer: 512}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Info){
		"block size 0":         func(i *Info) { i.BlockSize = 0 },
		"negative block size":  func(i *Info) { i.BlockSize = -512 },
		"block size 768":       func(i *Info) { i.BlockSize = 768 },
		"block size 128 KiB":   func(i *Info) { i.BlockSize = 128 << 10 },
		"negative size":        func(i *Info) { i.Size = -1 },
		"negative optimal I/O": func(i *Info) { i.OptimalIO = -1 },
		"negative transfer":    func(i *Info) { i.MaxTransfer = -1 },
		"transfer of 256":      func(i *Info) { i.MaxTransfer = 256 },
	} {
		bad := good
		change(&bad)
		if bad.Validate() == nil {
			t.Errorf("%s is valid", name)
		}
	}
}

func TestOp(t *testing.T) {
	for op, want := range map[Op]struct {
		name   string
		writes bool
	}{
		OpRead: {"read", false}, OpWrite: {"write", true}, OpFlush: {"flush", false},
		OpTrim: {"trim", true}, OpWriteZeroes: {"write zeroes", true}, 9: {"operation 9", false},
	} {
		if op.String() != want.name || op.Writes() != want.writes {
			t.Errorf("%v, writes: %v; want %v", op, op.Writes(), want)
		}
	}
}
