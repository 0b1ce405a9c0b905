package nbd

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hawser.dev/hawser/attach/frontend"
	"hawser.dev/hawser/attach/frontend/frontendtest"
)

// tool runs a program that somebody else wrote against the server.
func tool(t *testing.T, pkg, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing: install the Debian package %s", name, pkg)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin") // nbdsh needs Debian's Python
	cmd.WaitDelay = time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// uri is how clients name the export.
func (e *export) uri() string {
	if e.addr.Network() == "unix" {
		return "nbd+unix:///?socket=" + e.addr.String()
	}
	return "nbd://" + e.addr.String()
}

const toolSize = 32 << 20

// everySocket runs a test against a volume that completes in random order.
func everySocket(t *testing.T, info frontend.Info, f func(*testing.T, *export, *frontendtest.Volume)) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			checkLeaks(t)
			v := frontendtest.NewVolume(t, info, frontendtest.Shuffle(2))
			f(t, serve(t, network, v, Options{}), v)
		})
	}
}

func TestNbdinfo(t *testing.T) {
	everySocket(t, testInfo(toolSize), func(t *testing.T, e *export, _ *frontendtest.Volume) {
		text := tool(t, "libnbd-bin", "nbdinfo", e.uri())
		for _, want := range []string{
			"newstyle-fixed without TLS, using structured packets", "export-size: 33554432 (32M)",
			"is_read_only: false", "can_cache: false", "can_df: true", "can_fast_zero: false", "can_flush: true", "can_fua: true",
			"can_multi_conn: true", "can_trim: true", "can_zero: true", "is_rotational: false",
			"block_size_minimum: 512", "block_size_preferred: 16384", "block_size_maximum: 33554432",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		var doc struct {
			Exports []map[string]any `json:"exports"`
		}
		if err := json.Unmarshal([]byte(tool(t, "libnbd-bin", "nbdinfo", "--json", "--list", e.uri())), &doc); err != nil {
			t.Fatal(err)
		}
		if len(doc.Exports) != 1 {
			t.Fatalf("%d exports", len(doc.Exports))
		}
		for key, want := range map[string]any{
			"export-name": "vol-1", "description": "a volume of the tests", "export-size": float64(toolSize),
			"can_flush": true, "can_multi_conn": true, "block_size_preferred": float64(16384), "can_block_status_payload": nil,
		} {
			if got := doc.Exports[0][key]; got != want {
				t.Errorf("%s: %v, want %v", key, got, want)
			}
		}
	})
}

// A read-only volume of large blocks that can do nothing else.
func TestNbdinfoPlain(t *testing.T) {
	info := frontend.Info{Size: 1 << 20, BlockSize: 4096, MaxTransfer: 64 << 10, ReadOnly: true, Name: "plain"}
	everySocket(t, info, func(t *testing.T, e *export, _ *frontendtest.Volume) {
		text := tool(t, "libnbd-bin", "nbdinfo", e.uri())
		for _, want := range []string{
			"is_read_only: true", "can_flush: false", "can_fua: false", "can_trim: false", "can_zero: false",
			"block_size_minimum: 4096", "block_size_preferred: 4096", "block_size_maximum: 65536",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
	})
}

func TestNbdcopy(t *testing.T) {
	everySocket(t, testInfo(toolSize), func(t *testing.T, e *export, v *frontendtest.Volume) {
		dir := t.TempDir()
		src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
		want := pattern(1, toolSize)
		clear(want[8<<20 : 16<<20]) // holes become zeroings
		if err := os.WriteFile(src, want, 0o600); err != nil {
			t.Fatal(err)
		}
		tool(t, "libnbd-bin", "nbdcopy", "--flush", "--connections=4", "--requests=32", src, e.uri())
		if !bytes.Equal(v.Durable(), want) {
			t.Error("the volume is not the file")
		}
		tool(t, "libnbd-bin", "nbdcopy", "--connections=4", "--request-size=1048576", e.uri(), dst)
		if got, err := os.ReadFile(dst); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the file is not the volume: %v", err)
		}
	})
}

func TestQemuIO(t *testing.T) {
	everySocket(t, testInfo(toolSize), func(t *testing.T, e *export, v *frontendtest.Volume) {
		out := tool(t, "qemu-utils", "qemu-io", "-f", "raw", "-d", "unmap",
			"-c", "write -P 0x5a 0 1M",
			"-c", "write -f -P 0xa5 1M 64k", // FUA
			"-c", "write -z 64k 64k", // zeroes, no hole
			"-c", "write -z -u 128k 64k", // zeroes, may unmap
			"-c", "discard 256k 64k",
			"-c", "aio_write -P 0x11 2M 4M", "-c", "aio_write -P 0x22 8M 8M", "-c", "aio_flush",
			"-c", "read -P 0x5a 0 64k", "-c", "read -P 0 64k 128k", "-c", "read -P 0x5a 192k 64k",
			"-c", "read -P 0xa5 1M 64k", "-c", "read -P 0x11 2M 4M", "-c", "read -P 0x22 8M 8M",
			"-c", "read -P 0 30M 100", // unaligned: qemu goes by the minimum block size
			"-c", "write -P 0x33 31457281 3", "-c", "read -P 0x33 31457281 3",
			"-c", "flush", e.uri())
		if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
			t.Error(out)
		}
		if !bytes.Equal(v.Durable(), v.Bytes()) {
			t.Error("not all of it durable after a flush")
		}
		s := v.Stats()
		if s.FUA == 0 || s.NoHole == 0 || s.Ops[frontend.OpTrim] == 0 || s.Ops[frontend.OpWriteZeroes] < 2 || s.Ops[frontend.OpFlush] == 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Errors of the volume and of the size reach qemu as what they are.
func TestQemuIOErrors(t *testing.T) {
	checkLeaks(t)
	v := newVolume(t, frontendtest.Shuffle(1), frontendtest.Fail(func(r *frontend.Request) error {
		if r.Op == frontend.OpWrite {
			return fmt.Errorf("backing file: %w", os.NewSyscallError("write", syscall.ENOSPC))
		}
		return nil
	}))
	e := serve(t, "unix", v, Options{})
	path, err := exec.LookPath("qemu-io")
	if err != nil {
		t.Fatal("qemu-io is missing: install the Debian package qemu-utils")
	}
	out, err := exec.CommandContext(t.Context(), path, "-f", "raw", "-c", "write 0 4k", "-c", "read 0 4k", e.uri()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "write failed: No space left on device") || !strings.Contains(string(out), "read 4096/4096") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestQemuImg(t *testing.T) {
	everySocket(t, testInfo(toolSize), func(t *testing.T, e *export, v *frontendtest.Volume) {
		dir := t.TempDir()
		src, qcow := filepath.Join(dir, "src"), filepath.Join(dir, "dst.qcow2")
		want := pattern(2, toolSize)
		clear(want[4<<20 : 20<<20])
		if err := os.WriteFile(src, want, 0o600); err != nil {
			t.Fatal(err)
		}
		tool(t, "qemu-utils", "qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", src, e.uri())
		if !bytes.Equal(v.Durable(), want) {
			t.Error("the volume is not the file")
		}
		tool(t, "qemu-utils", "qemu-img", "convert", "-f", "raw", "-O", "qcow2", e.uri(), qcow)
		tool(t, "qemu-utils", "qemu-img", "compare", "-f", "raw", "-F", "qcow2", src, qcow)
		tool(t, "qemu-utils", "qemu-img", "compare", "-f", "raw", "-F", "raw", src, e.uri())
	})
}

func TestFio(t *testing.T) {
	everySocket(t, testInfo(toolSize), func(t *testing.T, e *export, _ *frontendtest.Volume) {
		uri := e.uri()
		if e.addr.Network() == "unix" {
			uri = "nbd+unix:///vol-1?socket=" + e.addr.String()
		}
		out := tool(t, "fio", "fio", "--name=v", "--ioengine=nbd", "--uri="+uri, "--size=32M", "--io_size=16M",
			"--rw=randwrite", "--bsrange=4k-256k", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
			"--fsync=64", "--randseed=7", "--verify_state_save=0", "--output-format=json")
		var doc struct {
			Jobs []struct {
				Error int
				Read  struct{ IO_bytes int64 }
				Write struct{ IO_bytes int64 }
			}
		}
		if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &doc); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if j := doc.Jobs[0]; j.Error != 0 || j.Write.IO_bytes < 16<<20 || j.Read.IO_bytes == 0 {
			t.Errorf("%+v", j)
		}
	})
}

// libnbd's own checks of every reply, for what the tools don't send.
func TestNbdsh(t *testing.T) {
	everySocket(t, testInfo(toolSize), func(t *testing.T, e *export, v *frontendtest.Volume) {
		v.Fill(pattern(3, toolSize))
		tool(t, "python3-libnbd", "nbdsh", "-u", e.uri(), "-c", `
import errno
assert h.get_protocol() == "newstyle-fixed" and h.get_structured_replies_negotiated()
whole = h.pread(1 << 20, 4096)
chunks = []
def chunk(buf, offset, status, error):
    assert status == nbd.READ_DATA and error.value == 0
    chunks.append((offset, len(buf)))
assert h.pread_structured(1 << 20, 4096, chunk, nbd.CMD_FLAG_DF) == whole
assert chunks == [(4096, 1 << 20)]

# From here on libnbd may not refuse what the server has to.
h.set_strict_mode(0)
def refused(want, f, *args):
    try:
        f(*args)
    except nbd.Error as ex:
        assert ex.errnum == want, (want, str(ex))
    else:
        assert False, (want, f, args)
size = h.get_size()
refused(errno.EINVAL, h.pread, 512, size)
refused(errno.EINVAL, h.pread, 100, 1)
refused(errno.ENOSPC, h.pwrite, bytes(512), size)
refused(errno.ENOSPC, h.zero, 512, size)
refused(errno.EINVAL, h.trim, 512, size)
refused(errno.EINVAL, h.cache, 512, 0)
refused(errno.EINVAL, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
refused(errno.EINVAL, h.block_status, 512, 0, lambda *a: 0)

# Many at once, out of order.
bufs = [nbd.Buffer(4096) for i in range(200)]
cookies = [h.aio_pread(b, i * 4096) for i, b in enumerate(bufs)]
while h.aio_in_flight() > 0:
    h.poll(-1)
for c in cookies:
    assert h.aio_command_completed(c)
assert b"".join(bytes(b.to_bytearray()) for b in bufs)[4096:] == whole[:199 * 4096]
h.pwrite(b"x" * 4096, 0, nbd.CMD_FLAG_FUA)
h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
h.flush()
h.shutdown()
`)
		if !bytes.Equal(v.Durable(), v.Bytes()) || v.Bytes()[0] != 'x' {
			t.Error("what was written with FUA is not durable")
		}
	})
}

// nbd-client is the reference implementation's; without the kernel's driver it
// can list.
func TestNbdClientList(t *testing.T) {
	checkLeaks(t)
	e := serve(t, "tcp", newVolume(t), Options{})
	host, port, _ := net.SplitHostPort(e.addr.String())
	if out := tool(t, "nbd-client", "nbd-client", "-l", host, port); !strings.Contains(out, "vol-1") {
		t.Errorf("%s", out)
	}
}

var update = flag.Bool("update", false, "record testdata anew from the tools")

// TestGoldens replays handshakes of real clients, recorded by a proxy between
// them and a server they were content with, and wants the same bytes back.
func TestGoldens(t *testing.T) {
	for name, run := range map[string]func(*testing.T, *export){
		"nbdinfo":      func(t *testing.T, e *export) { tool(t, "libnbd-bin", "nbdinfo", "--json", e.uri()) },
		"nbdinfo-list": func(t *testing.T, e *export) { tool(t, "libnbd-bin", "nbdinfo", "--list", e.uri()) },
		"nbdcopy":      func(t *testing.T, e *export) { tool(t, "libnbd-bin", "nbdcopy", "-C", "1", e.uri(), "null:") },
		"qemu-io": func(t *testing.T, e *export) {
			tool(t, "qemu-utils", "qemu-io", "-f", "raw", "-c", "read 0 512", e.uri())
		},
		"nbd-client": func(t *testing.T, e *export) {
			host, port, _ := net.SplitHostPort(e.addr.String())
			tool(t, "nbd-client", "nbd-client", "-l", host, port)
		},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			path := filepath.Join("testdata", name+".txt")
			if *update {
				p := newRecorder(t, serve(t, "tcp", newVolume(t), Options{}))
				run(t, &export{tb: t, addr: p.ln.Addr()})
				if err := os.WriteFile(path, p.text(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var c *client
			for line := range strings.Lines(string(b)) {
				who, digits, _ := strings.Cut(strings.TrimSpace(line), " ")
				want, err := hex.DecodeString(digits)
				if err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				switch who {
				case "connect":
					c = serve(t, "tcp", newVolume(t), Options{}).connect()
				case "C":
					c.write(want)
				case "S":
					if got := c.read(len(want)); !bytes.Equal(got, want) {
						t.Fatalf("got  %x\nwant %x", got, want)
					}
				}
			}
		})
	}
}

// recorder is a proxy that writes down who said what until the first command.
type recorder struct {
	ln    net.Listener
	mu    sync.Mutex
	lines []string // "connect", "C hex", "S hex"
	live  bool
	conns sync.WaitGroup
}

func newRecorder(t *testing.T, e *export) *recorder {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &recorder{ln: ln}
	p.conns.Go(func() {
		for {
			down, err := ln.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial(e.addr.Network(), e.addr.String())
			if err != nil {
				t.Error(err)
				down.Close()
				return
			}
			p.mu.Lock()
			p.lines, p.live = append(p.lines, "connect "), true
			p.mu.Unlock()
			p.conns.Go(func() { p.copy("C ", up, down) })
			p.conns.Go(func() { p.copy("S ", down, up) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.conns.Wait()
	})
	return p
}

func (p *recorder) copy(who string, to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		if bytes.HasPrefix(buf[:n], []byte{0x25, 0x60, 0x95, 0x13}) {
			p.live = false
		}
		if p.live && n > 0 {
			if last := &p.lines[len(p.lines)-1]; strings.HasPrefix(*last, who) {
				*last += hex.EncodeToString(buf[:n])
			} else {
				p.lines = append(p.lines, who+hex.EncodeToString(buf[:n]))
			}
		}
		p.mu.Unlock()
		if n > 0 {
			to.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

func (p *recorder) text() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return []byte(strings.Join(p.lines, "\n") + "\n")
}
