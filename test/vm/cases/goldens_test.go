//go:build vm

package cases

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hawser.dev/hawser/test/capture"
	"hawser.dev/hawser/test/vm/guest"
)

// goldenBudget bounds the size in bytes of all records of one kernel.
const goldenBudget = 150 << 10

// TestGoldens records the kernel's host and nvme-cli talking to the kernel's target, both directions, one file for each
// scenario and queue. The records that nvme/wire is tested with are made by
//
//	go test -tags vm ./test/vm/cases -run TestGoldens -out nvme/wire/testdata
func TestGoldens(t *testing.T) {
	// What udev's rules read from a new device would be most of the record.
	guest.Run(t, "udevadm", "control", "--stop-exec-queue")
	defer guest.Run(t, "udevadm", "control", "--start-exec-queue")
	const (
		fabrics, identify, getLog, keepAlive, aer = 0x7f, 0x06, 0x02, 0x18, 0x0c
		write, read, flush, compare, zeroes, dsm  = 0x01, 0x02, 0x00, 0x05, 0x08, 0x09
	)
	const nqn = "nqn.2026-01.dev.hawser:golden"
	io := func(t *testing.T, g *golden) {
		dev := g.connect(t)
		data := filepath.Join(t.TempDir(), "data")
		// Each block has a byte of its own, which keeps the record short and shows a block in the wrong place.
		var pattern []byte
		for i := range 64 {
			pattern = append(pattern, bytes.Repeat([]byte{byte(i + 1)}, 512)...)
		}
		if err := os.WriteFile(data, pattern, 0o600); err != nil {
			t.Fatal(err)
		}
		nvme := func(verb string, args ...string) guest.Result {
			t.Helper()
			return guest.Try(t, "nvme", append([]string{verb, dev, "--namespace-id=1"}, args...)...)
		}
		ok := func(r guest.Result) {
			t.Helper()
			if r.Code != 0 {
				t.Errorf("exit status %d: %s%s", r.Code, r.Stdout, r.Stderr)
			}
		}
		transfer := func(verb string, block, blocks int, args ...string) guest.Result {
			t.Helper()
			return guest.Try(t, "nvme", append([]string{verb, dev, "-s", strconv.Itoa(block), "-c", strconv.Itoa(blocks - 1),
				"-z", strconv.Itoa(blocks * 512), "-d", data}, args...)...)
		}
		ok(transfer("write", 8, 1))
		ok(transfer("write", 16, 8))
		ok(transfer("write", 64, 64)) // more than the capsule holds: R2T
		ok(transfer("write", 16, 8, "--force-unit-access"))
		ok(transfer("read", 16, 8))
		ok(transfer("read", 64, 64))
		ok(nvme("flush"))
		ok(nvme("write-zeroes", "-s", "16", "-c", "7"))
		ok(nvme("dsm", "-d", "-s", "64,80", "-b", "8,8"))
		if r := transfer("compare", 64, 8); r.Code == 0 {
			t.Error("nvmet has no Compare, and yet it succeeded")
		}
		// A passthrough read is not checked by the kernel's host.
		if r := nvme("io-passthru", "-o", "2", "--cdw10=0xfffffff0", "--cdw12=7", "-l", "4096", "-r"); r.Code == 0 {
			t.Error("a read beyond the end succeeded")
		}
	}
	ioHas := map[byte]int{write: 4, read: 3, flush: 1, zeroes: 1, dsm: 1, compare: 1, fabrics: 1}
	for _, s := range []struct {
		name    string
		options []string
		do      func(t *testing.T, g *golden)
		admin   map[byte]int // the least commands of each opcode on the admin queue
		io      map[byte]int // and on the I/O queue
	}{
		{"connect", nil, func(t *testing.T, g *golden) { g.connect(t) }, map[byte]int{fabrics: 7, identify: 4, aer: 1}, map[byte]int{fabrics: 1, read: 1}},
		{"connect-header-digest", []string{"--hdr-digest"}, func(t *testing.T, g *golden) { g.connect(t) }, map[byte]int{fabrics: 7}, map[byte]int{read: 1}},
		{"connect-data-digest", []string{"--data-digest"}, func(t *testing.T, g *golden) { g.connect(t) }, map[byte]int{fabrics: 7}, map[byte]int{read: 1}},
		{"io", nil, io, nil, ioHas},
		{"io-digests", []string{"--hdr-digest", "--data-digest"}, io, nil, ioHas},
		{"admin", nil, func(t *testing.T, g *golden) {
			dev := g.connect(t)
			for _, verb := range []string{"id-ctrl", "id-ns", "ns-descs", "list-ns", "nvm-id-ctrl", "smart-log", "error-log", "fw-log",
				"changed-ns-list-log", "ana-log"} {
				guest.Run(t, "nvme", verb, dev)
			}
			guest.Run(t, "nvme", "effects-log", dev, "--csi=0")
			for _, feature := range []string{"2", "4", "7", "8", "11", "15"} {
				guest.Try(t, "nvme", "get-feature", dev, "-f", feature) // some of them are refused, which is recorded too
			}
			if r := guest.Try(t, "nvme", "admin-passthru", dev, "-o", "6", "--cdw10=0x7f", "-l", "4096", "-r"); r.Code == 0 {
				t.Error("Identify with CNS 7Fh succeeded")
			}
		}, map[byte]int{identify: 9, getLog: 6, 0x0a: 6}, nil},
		{"discovery", nil, func(t *testing.T, g *golden) {
			if r := guest.NVMe(t, "discover", g.target); r.Code != 0 {
				t.Fatalf("nvme discover: %s%s", r.Stdout, r.Stderr)
			}
		}, map[byte]int{getLog: 2, identify: 1}, nil},
		{"keep-alive", []string{"--keep-alive-tmo=2"}, func(t *testing.T, g *golden) {
			g.connect(t)
			g.wait(t, "a keep-alive", func(conns []*capture.Conn) bool { return conns[0].Commands(keepAlive) > 0 })
		}, map[byte]int{keepAlive: 1}, nil},
		{"event", nil, func(t *testing.T, g *golden) {
			g.connect(t)
			if err := os.Truncate(g.file, 16<<20); err != nil {
				t.Fatal(err)
			}
			guest.Run(t, "losetup", "--set-capacity", g.loop)
			revalidate := filepath.Join("/sys/kernel/config/nvmet/subsystems", nqn, "namespaces/1/revalidate_size")
			if err := os.WriteFile(revalidate, []byte("1"), 0o644); err != nil {
				t.Fatal(err)
			}
			g.wait(t, "the namespace to be looked at again", func(conns []*capture.Conn) bool { return conns[0].Commands(aer) > 1 })
			guest.WaitFor(t, "the new size", func() bool { return guest.Size(t, guest.Namespace(nqn, 1)) == 16<<20 })
		}, map[byte]int{aer: 2, getLog: 2}, nil},
		{"connect-refused", nil, func(t *testing.T, g *golden) {
			if r := guest.NVMe(t, "connect", g.target, "-n", nqn+":nobody"); r.Code == 0 {
				t.Error("a subsystem that does not exist was connected")
			}
		}, map[byte]int{fabrics: 1}, nil},
	} {
		t.Run(s.name, func(t *testing.T) {
			file := guest.File(t, "disk", 8<<20)
			loop := guest.Loop(t, file, 512) // a file's blocks would be as long as its file system's
			target := guest.NVMET(t, "127.0.0.1", guest.Export{Path: loop, NQN: nqn, UUID: "6ba7b810-9dad-41d1-80b4-00c04fd430c8"})
			proxy, err := capture.NewProxy("127.0.0.1", target.Addr())
			if err != nil {
				t.Fatal(err)
			}
			g := &golden{nqn: nqn, options: s.options, proxy: proxy, file: file, loop: loop,
				target: &guest.Target{Host: "127.0.0.1", Port: strconv.Itoa(proxy.Addr().Port)}}
			// What the scenario connected is disconnected before the record is complete.
			t.Run("record", func(t *testing.T) { s.do(t, g) })
			for _, c := range proxy.Close() {
				has := s.io
				if c.QID() == 0 {
					has = s.admin
				}
				for opcode, least := range has {
					if n := c.Commands(opcode); n < least {
						t.Errorf("queue %d has %d commands of opcode %02xh, want %d at least", c.QID(), n, opcode, least)
					}
				}
				g.save(t, s.name, c)
			}
		})
	}
	files, _ := filepath.Glob(filepath.Join(guest.Out, "*.pdus"))
	total := int64(0)
	for _, f := range files {
		total += guest.Size(t, f)
	}
	if total > goldenBudget {
		t.Errorf("the records are %d bytes, more than %d", total, goldenBudget)
	}
}

type golden struct {
	nqn     string
	options []string
	proxy   *capture.Proxy
	target  *guest.Target
	file    string // backs the namespace
	loop    string // through this device
}

func (g *golden) connect(t *testing.T) (device string) {
	t.Helper()
	return guest.Connect(t, g.target, g.nqn, append([]string{"--nr-io-queues=1", "--queue-size=16"}, g.options...)...)
}

func (g *golden) wait(t *testing.T, what string, cond func([]*capture.Conn) bool) {
	t.Helper()
	stop, done := g.proxy.WaitFor(cond)
	defer stop()
	select {
	case <-done:
	case <-time.After(guest.Deadline):
		t.Fatalf("waited %v for %s", guest.Deadline, what)
	}
}

func (g *golden) save(t *testing.T, name string, c *capture.Conn) {
	t.Helper()
	uname, err := exec.Command("uname", "-r").Output()
	if err != nil {
		t.Fatal(err)
	}
	version := strings.Fields(guest.Run(t, "nvme", "version"))
	text := fmt.Appendf(nil, "# Linux %s, host and target, and nvme-cli %s: %s, queue %d\n",
		strings.TrimSpace(string(uname)), version[2], strings.Join(append([]string{name}, g.options...), " "), c.QID())
	for _, p := range c.PDUs() {
		text = p.AppendText(text)
	}
	if back, err := capture.Parse(bytes.NewReader(text)); err != nil || len(back) != len(c.PDUs()) {
		t.Errorf("the record does not read back: %d of %d PDUs, %v", len(back), len(c.PDUs()), err)
	}
	if err := os.MkdirAll(guest.Out, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(guest.Out, fmt.Sprintf("%s-q%d.pdus", name, c.QID()))
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
}
