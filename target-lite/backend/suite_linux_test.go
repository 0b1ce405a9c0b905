package backend

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func resident(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n * int64(os.Getpagesize())
}

func refused(t *testing.T, spec string, o Options, text string) {
	t.Helper()
	b, err := Open(context.Background(), spec, o)
	if err == nil {
		b.Close()
		t.Errorf("Open(%s) succeeded", spec)
	} else if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), text) {
		t.Errorf("Open(%s): %v; want ErrInUse, saying %q", spec, err, text)
	}
}

func TestLocks(t *testing.T) {
	paths := map[string]string{"file": newTestFile(t, t.TempDir())}
	if os.Geteuid() == 0 {
		paths["block"] = newLoop(t)
	}
	ctx := context.Background()
	for name, p := range paths {
		t.Run(name, func(t *testing.T) {
			b, err := Open(ctx, p, Options{})
			if err != nil {
				t.Fatal(err)
			}
			refused(t, p, Options{}, "another process")
			refused(t, p, Options{Shared: true}, "another process")
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			s1 := mustOpen(t, p, Options{Shared: true})
			s2 := mustOpen(t, p, Options{Shared: true})
			refused(t, p, Options{}, "shared")
			want := pattern(4096, 1)
			if err := do(s1, &Request{Op: OpWrite, Length: 4096, Data: want, FUA: true}); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 4096)
			if err := read(s2, 0, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("what one server wrote the other does not read (%v)", err)
			}
			if s1.Info().Identity != s2.Info().Identity {
				t.Error("two identities of one backing")
			}
		})
	}
}

func TestHeld(t *testing.T) {
	needRoot(t)
	dev := newLoop(t)
	backing := readAttr("/sys/block", filepath.Base(dev), "loop/backing_file")
	refused(t, backing, Options{}, dev)

	run(t, "mkfs.ext4", "-q", dev)
	dir := t.TempDir()
	run(t, "mount", dev, dir)
	defer run(t, "umount", dir)
	refused(t, dev, Options{}, "mounted on "+dir)
	refused(t, dev, Options{Shared: true}, "mounted on "+dir)
}

func TestBlockSizes(t *testing.T) {
	dev := newLoop(t, "--sector-size", "4096")
	_, err := Open(context.Background(), dev, Options{BlockSize: 512})
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "4096") {
		t.Errorf("512-byte blocks on a device of 4096: %v", err)
	}
	if b := mustOpen(t, dev, Options{}); b.Info().BlockSize != 4096 {
		t.Errorf("default block size %d", b.Info().BlockSize)
	}
}

func TestFileShrinksAndVanishes(t *testing.T) {
	p := newTestFile(t, t.TempDir())
	b := mustOpen(t, p, Options{})
	if err := write(b, 0, pattern(4096, 1)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(p, 1<<20); err != nil {
		t.Fatal(err)
	}
	for _, op := range []Op{OpRead, OpWrite, OpWriteZeroes, OpDeallocate} {
		err := do(b, &Request{Op: op, Offset: 1<<20 - 4096, Length: 8192, Data: make([]byte, 8192)})
		if !errors.Is(err, ErrShrunk) || !errors.Is(err, syscall.EREMOTEIO) {
			t.Errorf("%v across the new end: %v", op, err)
		}
	}
	if st, _ := os.Stat(p); st.Size() != 1<<20 {
		t.Errorf("the file grew to %d again", st.Size())
	}
	if err := write(b, 0, pattern(4096, 2)); err != nil {
		t.Errorf("write before the new end: %v", err)
	}
	if err := os.Remove(p); err != nil {
		t.Fatal(err)
	}
	for _, op := range []Op{OpWrite, OpWriteZeroes, OpDeallocate, OpFlush} {
		if err := do(b, &Request{Op: op, Length: 4096, Data: make([]byte, 4096)}); !errors.Is(err, ErrVanished) || !errors.Is(err, syscall.ENODEV) {
			t.Errorf("%v after the file is gone: %v", op, err)
		}
	}
	got := make([]byte, 4096)
	if err := read(b, 0, got); err != nil || !bytes.Equal(got, pattern(4096, 2)) {
		t.Errorf("what is left can't be read: %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	dir := mountTmpfs(t, "2m")
	b, err := Open(context.Background(), filepath.Join(dir, "f"), Options{Size: testSize})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := write(b, 0, make([]byte, 4<<20)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write: %v, want ENOSPC", err)
	}
	if err := do(b, &Request{Op: OpWriteZeroes, Offset: 4 << 20, Length: 4 << 20}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write zeroes: %v, want ENOSPC", err)
	}
}

func TestLoopDetached(t *testing.T) {
	needRoot(t)
	file := newTestFile(t, t.TempDir())
	dev := run(t, "losetup", "--find", "--show", file)
	b := mustOpen(t, dev, Options{})
	os.Truncate(file, 1<<20)
	run(t, "losetup", "--set-capacity", dev)
	for _, op := range []Op{OpRead, OpWrite} {
		if err := do(b, &Request{Op: op, Offset: 4 << 20, Length: 4096, Data: make([]byte, 4096)}); !errors.Is(err, ErrShrunk) {
			t.Errorf("%v beyond the end of a device that shrank: %v", op, err)
		}
	}
	run(t, "losetup", "--detach", dev) // takes place when the backend closes
}

func TestUnalignedBuffer(t *testing.T) {
	b := mustOpen(t, newLoop(t), Options{})
	want := pattern(8192+1, 3)[1:]
	if err := write(b, 512, want); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8192+3)[3:]
	if err := read(b, 512, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read: %v, or other data", err)
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	p := newTestFile(t, dir)
	id := func(p string) string {
		t.Helper()
		b, err := Open(context.Background(), p, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		return b.Info().Identity
	}
	first := id(p)
	if id(p) != first {
		t.Error("another identity at the second open")
	}
	link := filepath.Join(dir, "link")
	os.Symlink(p, link)
	if id(link) != first {
		t.Error("another identity through a link")
	}
	var sfs unix.Statfs_t
	unix.Statfs(dir, &sfs)
	if sfs.Type == unix.EXT4_SUPER_MAGIC || sfs.Type == unix.XFS_SUPER_MAGIC {
		if !strings.HasPrefix(first, "file:") {
			t.Errorf("identity %q on a file system with a UUID", first)
		}
		moved := filepath.Join(dir, "moved")
		os.Rename(p, moved)
		if id(moved) != first {
			t.Error("another identity after a rename")
		}
		os.Rename(moved, p)
	}
	os.Remove(p)
	other := newTestFile(t, dir) // likely the same inode number
	if strings.HasPrefix(first, "file:") && id(other) == first {
		t.Error("a new file has the identity of the one before")
	}
}

// The identities that sysfs gives, on a tree of the shape the kernel has.
func TestBlockIdentity(t *testing.T) {
	for _, c := range []struct {
		name, want string
		files      map[string]string
	}{
		{"nvme", "wwid:eui.0025385b71b00a3c", map[string]string{"wwid": "eui.0025385b71b00a3c\n"}},
		{"scsi", "wwid:t10.ATA QEMU 1", map[string]string{"device/wwid": "t10.ATA     QEMU    1 \n"}},
		{"virtio", "serial:abc", map[string]string{"serial": "abc"}},
		{"dm", "dm:LVM-x", map[string]string{"dm/uuid": "LVM-x\n", "wwid": ""}},
	} {
		root := t.TempDir()
		dir := filepath.Join(root, "sys/devices/virtual/block/x")
		part := filepath.Join(dir, "x1")
		os.MkdirAll(part, 0o755)
		os.WriteFile(filepath.Join(part, "partition"), []byte("1\n"), 0o644)
		for name, text := range c.files {
			os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755)
			os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
		}
		os.MkdirAll(filepath.Join(root, "sys/dev/block"), 0o755)
		os.Symlink("../../devices/virtual/block/x", filepath.Join(root, "sys/dev/block/259:0"))
		os.Symlink("../../devices/virtual/block/x/x1", filepath.Join(root, "sys/dev/block/259:1"))
		if got := blockIdentity(root, "/dev/x", unix.Mkdev(259, 0)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if got := blockIdentity(root, "/dev/x1", unix.Mkdev(259, 1)); got != c.want+"-part1" {
			t.Errorf("%s partition: %q", c.name, got)
		}
	}
}

func TestBlockHeldSays(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "sys/devices/block/x")
	os.MkdirAll(filepath.Join(dir, "x1/holders/dm-3"), 0o755)
	os.MkdirAll(filepath.Join(root, "sys/dev/block"), 0o755)
	os.MkdirAll(filepath.Join(root, "proc/self"), 0o755)
	os.Symlink("../../devices/block/x", filepath.Join(root, "sys/dev/block/8:0"))
	os.WriteFile(filepath.Join(dir, "dev"), []byte("8:0\n"), 0o644)
	os.WriteFile(filepath.Join(dir, "x1/partition"), []byte("1\n"), 0o644)
	os.WriteFile(filepath.Join(dir, "x1/dev"), []byte("8:1\n"), 0o644)
	os.WriteFile(filepath.Join(root, "proc/self/mountinfo"), []byte(
		"29 1 259:1 / / rw - ext4 /dev/vda rw\n30 29 8:0 / /mnt/with\\040space rw,relatime shared:1 - xfs /dev/x rw\n"), 0o644)
	want := "x is mounted on /mnt/with space; x1 is held by dm-3"
	if got := blockHeld(root, unix.Mkdev(8, 0)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
