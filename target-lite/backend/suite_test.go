//go:build linux

package backend

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

const testSize = 8 << 20

// opener is one kind of backend under test.
type opener struct {
	name string
	open func(t *testing.T, o Options) Backend
}

func openers() []opener {
	path := func(p func(t *testing.T) string) func(*testing.T, Options) Backend {
		return func(t *testing.T, o Options) Backend { return mustOpen(t, p(t), o) }
	}
	return []opener{
		{"mem", func(t *testing.T, o Options) Backend {
			o.Size = testSize
			return mustOpen(t, "mem:test", o)
		}},
		{"file", path(func(t *testing.T) string { return newTestFile(t, t.TempDir()) })},
		{"tmpfs", path(func(t *testing.T) string { return newTestFile(t, mountTmpfs(t, "64m")) })},
		{"block", path(func(t *testing.T) string { return newLoop(t) })},
		{"block4k", path(func(t *testing.T) string { return newLoop(t, "--sector-size", "4096") })},
	}
}

func mustOpen(t *testing.T, spec string, o Options) Backend {
	t.Helper()
	b, err := Open(context.Background(), spec, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

func newTestFile(t *testing.T, dir string) string {
	t.Helper()
	p := filepath.Join(dir, "backing")
	if err := os.WriteFile(p, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(p, testSize); err != nil {
		t.Fatal(err)
	}
	return p
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for loop devices and mounts")
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func newLoop(t *testing.T, args ...string) string {
	t.Helper()
	needRoot(t)
	file := newTestFile(t, t.TempDir())
	dev := run(t, "losetup", append(args, "--find", "--show", file)...)
	t.Cleanup(func() { run(t, "losetup", "--detach", dev) })
	return dev
}

func mountTmpfs(t *testing.T, size string) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := syscall.Mount("hawser-test", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// do runs one request and waits for it.
func do(b Backend, r *Request) error {
	done := make(chan struct{})
	r.Done = func(*Request) { close(done) }
	if b.Submit(r) {
		return r.Err
	}
	if k, ok := b.(Kicker); ok {
		k.Kick()
	}
	<-done
	return r.Err
}

func write(b Backend, off int64, p []byte) error {
	return do(b, &Request{Op: OpWrite, Offset: off, Length: int64(len(p)), Data: p})
}

func read(b Backend, off int64, p []byte) error {
	return do(b, &Request{Op: OpRead, Offset: off, Length: int64(len(p)), Data: p})
}

func pattern(n int, seed uint64) []byte {
	p := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	rng.Read(p)
	return p
}

func TestBackends(t *testing.T) {
	for _, o := range openers() {
		t.Run(o.name, func(t *testing.T) {
			t.Run("info", func(t *testing.T) { testInfo(t, o.open(t, Options{})) })
			t.Run("model", func(t *testing.T) { testModel(t, o.open(t, Options{})) })
			t.Run("bounds", func(t *testing.T) { testBounds(t, o.open(t, Options{})) })
			t.Run("concurrent", func(t *testing.T) { testConcurrent(t, o.open(t, Options{})) })
			t.Run("shared threads", func(t *testing.T) { testConcurrent(t, o.open(t, Options{Threads: NewThreads(1)})) })
			t.Run("read only", func(t *testing.T) { testReadOnly(t, o.open(t, Options{ReadOnly: true})) })
			t.Run("4096", func(t *testing.T) { testInfo(t, o.open(t, Options{BlockSize: 4096})) })
		})
	}
}

func testInfo(t *testing.T, b Backend) {
	i := b.Info()
	if i.Size != testSize || i.BlockSize != 512 && i.BlockSize != 4096 || i.PhysicalBlock < i.BlockSize || i.Identity == "" || !i.CanWriteZeroes {
		t.Errorf("info = %+v", i)
	}
	if i2 := b.Info(); i2 != i {
		t.Errorf("info changed: %+v, then %+v", i, i2)
	}
}

// testModel runs random operations against the backend and a slice, and compares.
func testModel(t *testing.T, b Backend) {
	info := b.Info()
	bs := int64(info.BlockSize)
	model := make([]byte, info.Size)
	rng := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, 3<<20)
	for i := range 400 {
		blocks := 1 + rng.Int64N(64)
		if i%40 == 0 {
			blocks = 1 + rng.Int64N(int64(len(buf))/bs)
		}
		n := blocks * bs
		r := &Request{Offset: rng.Int64N((info.Size-n)/bs+1) * bs, Length: n}
		part := model[r.Offset : r.Offset+n]
		switch k := rng.IntN(8); k {
		case 0, 1, 2:
			r.Op, r.Data, r.FUA = OpWrite, pattern(int(n), uint64(i)), k == 0
			copy(part, r.Data)
		case 3:
			r.Op, r.MayUnmap, r.FUA = OpWriteZeroes, rng.IntN(2) == 0, rng.IntN(2) == 0
			clear(part)
		case 4:
			if !info.DeallocateZeroes {
				continue
			}
			r.Op = OpDeallocate
			clear(part)
		case 5:
			r.Op, r.Offset, r.Length = OpFlush, 0, 0
		default:
			r.Op, r.Data = OpRead, buf[:n]
		}
		if err := do(b, r); err != nil {
			t.Fatalf("step %d: %v at %d+%d: %v", i, r.Op, r.Offset, r.Length, err)
		}
		if r.Op == OpRead && !bytes.Equal(r.Data, part) {
			t.Fatalf("step %d: read at %d+%d differs", i, r.Offset, n)
		}
	}
	all := make([]byte, info.Size)
	if err := read(b, 0, all); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(all, model) {
		t.Fatal("contents differ at the end")
	}
	if err := do(b, &Request{Op: OpDeallocate, Offset: bs, Length: info.Size - bs}); err != nil {
		t.Errorf("deallocate: %v", err)
	}
}

func testBounds(t *testing.T, b Backend) {
	size, bs := b.Info().Size, int64(b.Info().BlockSize)
	const maxInt = int64(^uint64(0) >> 1)
	for _, op := range []Op{OpRead, OpWrite, OpWriteZeroes, OpDeallocate} {
		for _, c := range [][2]int64{{size, bs}, {size - bs, 2 * bs}, {-bs, bs}, {0, -bs}, {maxInt - bs + 1, bs}, {bs, maxInt}, {0, size + bs}} {
			r := &Request{Op: op, Offset: c[0], Length: c[1]}
			if op <= OpWrite && c[1] > 0 && c[1] < 1<<20 {
				r.Data = make([]byte, c[1])
			}
			if err := do(b, r); !errors.Is(err, syscall.EINVAL) {
				t.Errorf("%v at %d+%d: %v, want EINVAL", op, c[0], c[1], err)
			}
		}
	}
	if err := do(b, &Request{Op: OpRead, Length: 2 * bs, Data: make([]byte, bs)}); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("short buffer: %v, want EINVAL", err)
	}
	if err := do(b, &Request{Op: OpRead, Offset: size}); err != nil {
		t.Errorf("empty read at the end: %v", err)
	}
	if err := write(b, size-bs, pattern(int(bs), 9)); err != nil {
		t.Errorf("last block: %v", err)
	}
}

// testConcurrent keeps many requests in flight from several goroutines, each in a part of its own.
func testConcurrent(t *testing.T, b Backend) {
	const parts, depth = 4, 32
	bs := int64(b.Info().BlockSize)
	var wg sync.WaitGroup
	for p := range int64(parts) {
		wg.Go(func() {
			base := p * testSize / parts
			var inflight sync.WaitGroup
			reqs := make([]Request, depth)
			for i := range reqs {
				inflight.Add(1)
				reqs[i] = Request{Op: OpWrite, Offset: base + int64(i)*bs, Length: bs, Data: pattern(int(bs), uint64(p)<<8|uint64(i)),
					FUA: i%8 == 0, Done: func(*Request) { inflight.Done() }}
				if b.Submit(&reqs[i]) {
					inflight.Done()
				}
			}
			inflight.Wait()
			got := make([]byte, bs)
			for i := range reqs {
				if reqs[i].Err != nil {
					t.Errorf("write %d: %v", i, reqs[i].Err)
				}
				if err := read(b, reqs[i].Offset, got); err != nil || !bytes.Equal(got, reqs[i].Data) {
					t.Errorf("part %d block %d: %v, or other data", p, i, err)
				}
			}
			if err := do(b, &Request{Op: OpFlush}); err != nil {
				t.Errorf("flush: %v", err)
			}
		})
	}
	wg.Wait()
}

func testReadOnly(t *testing.T, b Backend) {
	if !b.Info().ReadOnly {
		t.Error("Info().ReadOnly is false")
	}
	bs := int64(b.Info().BlockSize)
	for _, op := range []Op{OpWrite, OpWriteZeroes, OpDeallocate} {
		if err := do(b, &Request{Op: op, Length: bs, Data: make([]byte, bs)}); !errors.Is(err, syscall.EROFS) {
			t.Errorf("%v: %v, want EROFS", op, err)
		}
	}
	if err := read(b, 0, make([]byte, bs)); err != nil {
		t.Error(err)
	}
}

func TestNull(t *testing.T) {
	b := mustOpen(t, "null:n", Options{Size: 1 << 50, BlockSize: 4096})
	p := pattern(4096, 1)
	if err := write(b, 1<<50-4096, p); err != nil {
		t.Fatal(err)
	}
	if err := read(b, 1<<50-4096, p); err != nil || !bytes.Equal(p, make([]byte, 4096)) {
		t.Errorf("read: %v, or not zeroes: nothing of another request's buffer may come back", err)
	}
	testBounds(t, b)
}

func TestMemoryGivesPagesBack(t *testing.T) {
	b := mustOpen(t, "mem:m", Options{Size: 64 << 20}).(*memory)
	p := pattern(32<<20, 1)
	if err := write(b, 0, p); err != nil {
		t.Fatal(err)
	}
	before := resident(t)
	if err := do(b, &Request{Op: OpDeallocate, Length: 32 << 20}); err != nil {
		t.Fatal(err)
	}
	if after := resident(t); before-after < 24<<20 {
		t.Errorf("resident %d before, %d after deallocating 32 MiB", before, after)
	}
	if err := read(b, 0, p); err != nil || !bytes.Equal(p, make([]byte, len(p))) {
		t.Errorf("read: %v, or not zeroes", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	odd := filepath.Join(dir, "odd")
	os.WriteFile(odd, make([]byte, 1000), 0o600)
	small := filepath.Join(dir, "small")
	os.WriteFile(small, make([]byte, 1536), 0o600)
	empty := filepath.Join(dir, "empty")
	os.WriteFile(empty, nil, 0o600)
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		spec string
		o    Options
		want error
		text string
	}{
		{"", Options{}, ErrInvalid, "empty"},
		{"mem:", Options{Size: 512}, ErrInvalid, "mem:NAME"},
		{"mem:a/b", Options{Size: 512}, ErrInvalid, "a/b"},
		{"mem:a", Options{}, ErrInvalid, "size="},
		{"mem:a", Options{Size: 1 << 60}, ErrInvalid, "memory"},
		{"mem:a", Options{Size: 512, Shared: true}, ErrInvalid, "shared"},
		{"null:a", Options{}, ErrInvalid, "size="},
		{"null:a", Options{Size: 100}, ErrInvalid, "multiple of the block size 512"},
		{"null:a", Options{Size: -512}, ErrInvalid, "-512"},
		{"null:a", Options{Size: 4096, BlockSize: 1024}, ErrInvalid, "1024"},
		{filepath.Join(dir, "none"), Options{}, os.ErrNotExist, "size="},
		{filepath.Join(dir, "no/dir"), Options{Size: 512}, os.ErrNotExist, "no/dir"},
		{dir, Options{}, ErrInvalid, "regular file"},
		{fifo, Options{}, ErrInvalid, "regular file"},
		{"/dev/null", Options{}, ErrInvalid, "regular file"},
		{odd, Options{}, ErrInvalid, "1000"},
		{small, Options{BlockSize: 4096}, ErrInvalid, "4096"},
		{small, Options{Size: 1024}, ErrInvalid, "1536"},
		{empty, Options{}, ErrInvalid, "size="},
	} {
		b, err := Open(context.Background(), c.spec, c.o)
		if err == nil {
			b.Close()
			t.Errorf("Open(%q, %+v) succeeded", c.spec, c.o)
			continue
		}
		var e *Error
		if !errors.Is(err, c.want) || !errors.As(err, &e) || !strings.Contains(err.Error(), c.text) || strings.Count(err.Error(), "\n") > 0 {
			t.Errorf("Open(%q, %+v): %v; want %v, naming %q", c.spec, c.o, err, c.want, c.text)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "none")); err == nil {
		t.Error("a refused Open left a file behind")
	}
}
