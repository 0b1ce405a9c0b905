//go:build vm

package cases

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"hawser.dev/hawser/test/capture"
	"hawser.dev/hawser/test/vm/guest"
)

// eachTarget runs a case of the kernel's host against hawser's target and, unless the run is short, against the
// kernel's, which shows that what the case asks for can be had.
func eachTarget(t *testing.T, f func(t *testing.T, start guest.Starter)) {
	t.Run("hawser", func(t *testing.T) { f(t, guest.Hawser) })
	if !testing.Short() {
		t.Run("nvmet", func(t *testing.T) { f(t, guest.NVMET) })
	}
}

// testNQN is a subsystem's name of the test's own.
func testNQN(t *testing.T) string {
	return "nqn.2026-01.dev.hawser:" + strings.ToLower(strings.NewReplacer("/", ".", "_", "-", "#", "-").Replace(t.Name()))
}

const uuid = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"

// verify writes and reads back random blocks of 4 KiB to 1 MiB all over a device with fio, or through its nbd engine.
func verify(t *testing.T, device string, more ...string) {
	t.Helper()
	args := []string{"--ioengine=libaio", "--filename=" + device, "--direct=1", "--allow_file_create=0"}
	if strings.HasPrefix(device, "nbd+unix:") {
		args = []string{"--ioengine=nbd", "--uri=" + device} // in this order: the engine brings the option
	}
	size := "16m"
	if !testing.Short() {
		size = "96m"
	}
	guest.Run(t, "fio", slices.Concat([]string{"--name=verify"}, args, []string{"--thread", "--rw=randwrite", "--bsrange=4k-1m",
		"--blockalign=4k", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--size=" + size,
		"--output-format=terse"}, more)...)
}

func TestDiscover(t *testing.T) {
	eachTarget(t, func(t *testing.T, start guest.Starter) {
		guest.Modprobe(t, "nvme-tcp")
		for _, host := range []string{"127.0.0.1", "::1"} {
			var exports []guest.Export
			var want []string
			for i := range 3 {
				nqn := fmt.Sprintf("%s.%d", testNQN(t), i)
				exports = append(exports, guest.Export{Path: guest.File(t, "disk", 8<<20), NQN: nqn})
				want = append(want, nqn)
			}
			target := start(t, host, exports...)
			type record struct{ TrType, AdrFam, SubType, TrAddr, TrSvcID, SubNQN string }
			r := guest.NVMe(t, "discover", target, "-o", "json")
			if r.Code != 0 {
				t.Fatalf("nvme discover: exit status %d\n%s%s", r.Code, r.Stdout, r.Stderr)
			}
			log := decode[struct{ Records []record }](t, r.Stdout)
			var got []string
			for _, rec := range log.Records {
				family := map[string]string{"127.0.0.1": "ipv4", "::1": "ipv6"}[host]
				if rec.TrType != "tcp" || rec.AdrFam != family || rec.TrAddr != host || rec.TrSvcID != target.Port {
					t.Errorf("record of %s: %s %s %s %s", rec.SubNQN, rec.TrType, rec.AdrFam, rec.TrAddr, rec.TrSvcID)
				}
				if rec.SubType == "nvme subsystem" {
					got = append(got, rec.SubNQN)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("offered: %q, want %q", got, want)
			}
		}
	})
}

var digests = []struct {
	name   string
	flags  []string
	digest byte // DGST of ICReq and ICResp: bit 0 header, bit 1 data
}{
	{"none", nil, 0},
	{"header", []string{"--hdr-digest"}, 1},
	{"data", []string{"--data-digest"}, 2},
	{"both", []string{"--hdr-digest", "--data-digest"}, 3},
}

// TestDigests writes and verifies with each choice of digests, and looks at the wire to see them in force.
func TestDigests(t *testing.T) {
	eachTarget(t, func(t *testing.T, start guest.Starter) {
		for _, d := range digests {
			t.Run(d.name, func(t *testing.T) {
				nqn := testNQN(t)
				target := start(t, "127.0.0.1", guest.Export{Path: guest.File(t, "disk", 256<<20), NQN: nqn})
				verify(t, guest.Connect(t, target, nqn, d.flags...))
				guest.Disconnect(t, nqn)

				proxy, err := capture.NewProxy("127.0.0.1", target.Addr())
				if err != nil {
					t.Fatal(err)
				}
				seen := &guest.Target{Host: "127.0.0.1", Port: strconv.Itoa(proxy.Addr().Port)}
				guest.Connect(t, seen, nqn, append([]string{"--nr-io-queues=1"}, d.flags...)...)
				guest.Disconnect(t, nqn)
				for _, c := range proxy.Close() {
					pdus := c.PDUs()
					if len(pdus) < 4 {
						t.Fatalf("queue %d: %d PDUs", c.QID(), len(pdus))
					}
					for _, ic := range pdus[:2] { // ICReq and ICResp: DGST is byte 11
						if ic.Bytes[11] != d.digest {
							t.Errorf("queue %d: %v has DGST %02xh, want %02xh", c.QID(), ic, ic.Bytes[11], d.digest)
						}
					}
					for _, p := range pdus[2:] {
						if header := p.Bytes[1]&1 != 0; header != (d.digest&1 != 0) {
							t.Errorf("queue %d: %v: header digest %v", c.QID(), p, header)
						}
					}
				}
			})
		}
	})
}

func TestBlockSizes(t *testing.T) {
	for _, block := range []int{512, 4096} {
		t.Run(strconv.Itoa(block), func(t *testing.T) {
			nqn := testNQN(t)
			file := guest.File(t, "disk", 256<<20)
			target := guest.Hawser(t, "127.0.0.1", guest.Export{Path: file, NQN: nqn, UUID: uuid, Block: block})
			dev := guest.Connect(t, target, nqn)
			for name, want := range map[string]string{"queue/logical_block_size": strconv.Itoa(block), "uuid": uuid, "wwid": "uuid." + uuid} {
				if got := guest.Attr(t, dev, name); got != want {
					t.Errorf("%s of %s: %s, want %s", name, dev, got, want)
				}
			}
			if got := guest.Size(t, dev); got != 256<<20 {
				t.Errorf("%d bytes, want %d", got, 256<<20)
			}
			verify(t, dev)
			// What the host wrote last is what the file has.
			guest.Run(t, "dd", "if=/dev/urandom", "of="+dev, "bs=1M", "count=8", "oflag=direct", "conv=fsync")
			guest.Run(t, "cmp", "--bytes=8388608", dev, file)
		})
	}
}

func TestFileSystems(t *testing.T) {
	eachTarget(t, func(t *testing.T, start guest.Starter) {
		for name, tools := range map[string]struct{ mkfs, fsck []string }{
			"ext4": {[]string{"mkfs.ext4", "-q", "-F"}, []string{"fsck.ext4", "-f", "-n"}},
			"xfs":  {[]string{"mkfs.xfs", "-q", "-f"}, []string{"xfs_repair", "-n"}},
		} {
			t.Run(name, func(t *testing.T) {
				nqn := testNQN(t)
				target := start(t, "127.0.0.1", guest.Export{Path: guest.File(t, "disk", 512<<20), NQN: nqn})
				dev := guest.Connect(t, target, nqn)
				guest.Run(t, tools.mkfs[0], append(tools.mkfs[1:], dev)...)
				dir := t.TempDir()
				mount(t, dev, dir)
				guest.Run(t, "cp", "-a", "/usr/sbin", "/etc", dir)
				guest.Run(t, "umount", dir)
				guest.Run(t, tools.fsck[0], append(tools.fsck[1:], dev)...)

				// What was written is there for the next connection too.
				guest.Disconnect(t, nqn)
				dev = guest.Connect(t, target, nqn)
				mount(t, dev, dir)
				guest.Run(t, "diff", "-r", "--no-dereference", "/usr/sbin", dir+"/sbin")
				guest.Run(t, "diff", "-r", "--no-dereference", "/etc", dir+"/etc")
				guest.Run(t, "umount", dir)
			})
		}
	})
}

func mount(t *testing.T, dev, dir string) {
	t.Helper()
	guest.Run(t, "mount", dev, dir)
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) }) // does nothing after the case's own umount
}

// TestTrim sees the space of a removed file given back to the file behind the volume.
func TestTrim(t *testing.T) {
	eachTarget(t, func(t *testing.T, start guest.Starter) {
		nqn := testNQN(t)
		file := guest.File(t, "disk", 256<<20)
		target := start(t, "127.0.0.1", guest.Export{Path: file, NQN: nqn})
		dev := guest.Connect(t, target, nqn)
		guest.Run(t, "mkfs.ext4", "-q", "-F", dev)
		dir := t.TempDir()
		mount(t, dev, dir)
		guest.Run(t, "dd", "if=/dev/urandom", "of="+dir+"/big", "bs=1M", "count=64", "conv=fsync")
		full := allocated(t, file)
		if full < 64<<20 {
			t.Fatalf("64 MiB were written and the file takes %d bytes", full)
		}
		if err := os.Remove(dir + "/big"); err != nil {
			t.Fatal(err)
		}
		guest.Run(t, "sync", "-f", dir)
		guest.Run(t, "fstrim", "-v", dir)
		if got := allocated(t, file); got > full-60<<20 {
			t.Errorf("the file takes %d bytes after fstrim, %d before", got, full)
		}
		guest.Run(t, "umount", dir)
		guest.Run(t, "fsck.ext4", "-f", "-n", dev)
	})
}

// allocated is how many bytes of a file's disk it takes.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestLocalDrive exports the guest's own NVMe drive.
func TestLocalDrive(t *testing.T) {
	nqn := testNQN(t)
	local := guest.LocalNVMe(t)
	export := guest.Export{Path: local, NQN: nqn}
	target := guest.Hawser(t, "127.0.0.1", export)
	dev := guest.Connect(t, target, nqn)
	if dev == local {
		t.Fatalf("the volume is the drive itself, %s", dev)
	}
	if got, want := guest.Size(t, dev), guest.Size(t, local); got != want {
		t.Errorf("%d bytes, the drive has %d", got, want)
	}
	verify(t, dev)
	guest.Run(t, "dd", "if=/dev/urandom", "of="+dev, "bs=1M", "count=8", "oflag=direct", "conv=fsync")
	guest.DropCache(t, local)
	guest.Run(t, "cmp", "--bytes=8388608", dev, local)
	guest.Run(t, "blkdiscard", "-f", "-l", "8388608", dev)

	// What is exported is nobody else's.
	if r := guest.Try(t, "mount", local, t.TempDir()); r.Code == 0 {
		t.Error("the exported drive could be mounted")
	}
	serve := func(path string, more string) guest.Result {
		return guest.Try(t, "hawser", "target", "serve", "--listen", "127.0.0.1:0", "--allow-any-host",
			"--control", guest.ControlSocket(t), "--export", path+more)
	}
	if r := serve(local, ""); r.Code != 9 || !strings.Contains(r.Stderr, local) {
		t.Errorf("a second export of %s: exit status %d, want 9: %s", local, r.Code, r.Stderr)
	}
	guest.Disconnect(t, nqn)
	if err := target.Stop(); err != nil {
		t.Error(err)
	}

	// And a drive in use is not exported.
	guest.Run(t, "mkfs.ext4", "-q", "-F", local)
	dir := t.TempDir()
	mount(t, local, dir)
	for _, more := range []string{"", ",shared"} {
		if r := serve(local, more); r.Code != 9 || !strings.Contains(r.Stderr, local) {
			t.Errorf("the export of mounted %s%s: exit status %d, want 9: %s", local, more, r.Code, r.Stderr)
		}
	}
	guest.Run(t, "umount", dir)
}

// TestConnectRounds connects and disconnects a hundred times and compares what the target holds before and after.
func TestConnectRounds(t *testing.T) {
	nqn := testNQN(t)
	target := guest.Hawser(t, "127.0.0.1", guest.Export{Path: guest.File(t, "disk", 64<<20), NQN: nqn})
	round := func() {
		guest.Connect(t, target, nqn)
		guest.Disconnect(t, nqn)
	}
	const warm, rounds = 10, 100
	for range warm {
		round()
	}
	before := guest.Stat(t, target.PID)
	for range rounds {
		round()
	}
	var after guest.Process
	guest.WaitFor(t, "the target to close its descriptors", func() bool {
		after = guest.Stat(t, target.PID)
		return after.FDs <= before.FDs
	})
	t.Logf("before %+v, after %+v", before, after)
	// Each round has at least two queues of 128 KiB of buffers and more: a leak of any would be tens of MiB.
	const slack = 12 << 20
	if after.RSS > before.RSS+slack {
		t.Errorf("%d bytes resident after %d rounds, %d before", after.RSS, rounds, before.RSS)
	}
	if after.Threads > before.Threads+4 {
		t.Errorf("%d threads after %d rounds, %d before", after.Threads, rounds, before.Threads)
	}
}

func TestIPv6(t *testing.T) {
	eachTarget(t, func(t *testing.T, start guest.Starter) {
		nqn := testNQN(t)
		target := start(t, "::1", guest.Export{Path: guest.File(t, "disk", 256<<20), NQN: nqn})
		verify(t, guest.Connect(t, target, nqn, "--hdr-digest", "--data-digest"))
	})
}

// TestNamespaces connects to one subsystem of several namespaces and one of another.
func TestNamespaces(t *testing.T) {
	eachTarget(t, func(t *testing.T, start guest.Starter) {
		nqn := testNQN(t)
		sizes := map[int]int64{1: 16 << 20, 2: 24 << 20, 7: 32 << 20}
		exports := []guest.Export{{Path: guest.File(t, "disk", 8<<20), NQN: nqn + ".other"}}
		for _, nsid := range []int{1, 2, 7} {
			exports = append(exports, guest.Export{Path: guest.File(t, "disk", sizes[nsid]), NQN: nqn, NSID: nsid})
		}
		target := start(t, "127.0.0.1", exports...)
		other := guest.Connect(t, target, nqn+".other")
		guest.Connect(t, target, nqn)
		guest.WaitFor(t, "three namespaces", func() bool { return guest.Namespace(nqn, 2) != "" && guest.Namespace(nqn, 7) != "" })
		for nsid, size := range sizes {
			dev := guest.Namespace(nqn, nsid)
			if got := guest.Size(t, dev); got != size {
				t.Errorf("namespace %d: %d bytes, want %d", nsid, got, size)
			}
			// Each has a pattern of its own, which must not show up in another.
			if err := os.WriteFile(dev, bytes.Repeat([]byte{byte(nsid)}, 1<<20), 0); err != nil {
				t.Error(err)
			}
		}
		for nsid := range sizes {
			dev := guest.Namespace(nqn, nsid)
			guest.DropCache(t, dev)
			f, err := os.Open(dev)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 1<<20)
			_, err = f.ReadAt(got, 0)
			f.Close()
			if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(nsid)}, 1<<20)) {
				t.Errorf("namespace %d has another's data, or none: %x…, %v", nsid, got[:16], err)
			}
		}
		if got := guest.Size(t, other); got != 8<<20 {
			t.Errorf("the other subsystem's: %d bytes", got)
		}
	})
}

// TestHostNotAllowed has the kernel's host refused by name.
func TestHostNotAllowed(t *testing.T) {
	guest.Modprobe(t, "nvme-tcp")
	nqn := testNQN(t)
	target := guest.HawserArgs(t, "127.0.0.1", "--host", "nqn.2026-01.dev.hawser:friend",
		"--export", guest.File(t, "disk", 8<<20)+",nqn="+nqn)
	if r := guest.NVMe(t, "connect", target, "-n", nqn); r.Code == 0 {
		guest.Disconnect(t, nqn)
		t.Error("a host that is not listed was let in")
	}
	r := guest.NVMe(t, "discover", target)
	if strings.Contains(r.Stdout, nqn) {
		t.Errorf("a host that is not listed is shown the subsystem:\n%s", r.Stdout)
	}
	friend := []string{"-t", "tcp", "-a", target.Host, "-s", target.Port, "--hostnqn=nqn.2026-01.dev.hawser:friend",
		"--hostid=5e0fa1f2-43f0-4f0e-9d6a-6f5d7fd3c002"}
	guest.Run(t, "nvme", append([]string{"connect", "-n", nqn}, friend...)...)
	guest.Disconnect(t, nqn)
	if out := guest.Run(t, "nvme", append([]string{"discover"}, friend...)...); !strings.Contains(out, nqn) {
		t.Errorf("the listed host is not shown the subsystem:\n%s", out)
	}
}

// TestFullDisk runs the file system behind a volume out of space.
func TestFullDisk(t *testing.T) {
	eachTarget(t, func(t *testing.T, start guest.Starter) {
		dir := t.TempDir()
		guest.Run(t, "mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", dir)
		t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
		nqn := testNQN(t)
		file := filepath.Join(dir, "disk")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, 64<<20); err != nil {
			t.Fatal(err)
		}
		target := start(t, "127.0.0.1", guest.Export{Path: file, NQN: nqn})
		dev := guest.Connect(t, target, nqn)
		r := guest.Try(t, "dd", "if=/dev/zero", "of="+dev, "bs=1M", "count=32", "oflag=direct")
		if r.Code == 0 || !strings.Contains(r.Stderr, "No space left on device") {
			t.Errorf("32 MiB to a disk with 8 MiB: exit status %d, %s", r.Code, r.Stderr)
		}
		// What fitted in can still be read.
		guest.Run(t, "dd", "if="+dev, "of=/dev/null", "bs=1M", "count=4", "iflag=direct")
	})
}

// TestTerminate ends the target while a host is connected and writing.
func TestTerminate(t *testing.T) {
	nqn := testNQN(t)
	target := guest.Hawser(t, "127.0.0.1", guest.Export{Path: guest.File(t, "disk", 64<<20), NQN: nqn})
	dev := guest.Connect(t, target, nqn, "--ctrl-loss-tmo=5", "--reconnect-delay=1")
	guest.Run(t, "dd", "if=/dev/urandom", "of="+dev, "bs=1M", "count=16", "oflag=direct")
	if err := target.Stop(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}
