//go:build vm

package cases

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hawser.dev/hawser/test/vm/guest"
)

// attached is what `hawser attach -o json` says of its one volume.
type attached struct {
	Changed bool
	Volumes []struct {
		Name, Device, UUID, Target, Protocol, Driver string
		Size                                         int64
		Paths                                        []struct{ Portal, State string }
	}
}

// attach attaches a target's volume by hawser's own initiator; the test's end detaches it.
func attach(t *testing.T, target *guest.Target, nqn string, args ...string) attached {
	t.Helper()
	url := "nvme://" + target.Addr() + "/" + nqn
	a := decode[attached](t, guest.Run(t, "hawser", append([]string{"attach", url, "--driver", "user", "-o", "json"}, args...)...))
	if len(a.Volumes) != 1 || !strings.HasPrefix(a.Volumes[0].Device, "nbd+unix:///?socket=") {
		t.Fatalf("attached: %+v", a)
	}
	t.Cleanup(func() {
		if r := guest.Try(t, "hawser", "detach", url, "--force"); r.Code != 0 {
			t.Errorf("hawser detach %s: exit status %d: %s", url, r.Code, r.Stderr)
		}
	})
	return a
}

// TestInitiator has hawser's initiator write to the kernel's target, and reads the backing device.
func TestInitiator(t *testing.T) {
	const size = 32 << 20
	for _, inline := range []int{1024, 4096, 16384} {
		for _, block := range []int{512, 4096} {
			for _, d := range digests {
				// In a short run one size of capsule gets every choice of digests, the others none and both by turns.
				if testing.Short() && (inline != 4096 || block != 512) && d.name != map[int]string{512: "none", 4096: "both"}[block] {
					continue
				}
				t.Run(fmt.Sprintf("inline-%d/block-%d/digest-%s", inline, block, d.name), func(t *testing.T) {
					nqn := testNQN(t)
					backing := guest.Loop(t, guest.File(t, "disk", size), block)
					target := guest.NVMETInline(t, "127.0.0.1", inline, guest.Export{Path: backing, NQN: nqn, UUID: uuid})
					v := attach(t, target, nqn, d.flags...).Volumes[0]
					if v.Size != size || v.UUID != uuid || v.Driver != "user" || v.Target != nqn {
						t.Errorf("attached: %+v", v)
					}
					info := decode[struct {
						Exports []struct {
							Size         int64 `json:"export-size"`
							BlockMinimum int   `json:"block_size_minimum"`
						}
					}](t, guest.Run(t, "nbdinfo", "--json", v.Device))
					if len(info.Exports) != 1 || info.Exports[0].Size != size || info.Exports[0].BlockMinimum != block {
						t.Errorf("nbdinfo: %+v", info)
					}
					verify(t, v.Device)

					// A copy with a hole in it, which is written as zeroes, must be what the backing device has in the end.
					source := filepath.Join(t.TempDir(), "source")
					data := make([]byte, 6<<20)
					rand.NewChaCha8([32]byte{}).Read(data)
					write(t, source, data, 2<<20, 4<<20, size)
					guest.Run(t, "nbdcopy", "--flush", source, v.Device)
					guest.DropCache(t, backing)
					guest.Run(t, "cmp", source, backing)
					back := filepath.Join(t.TempDir(), "back")
					guest.Run(t, "nbdcopy", v.Device, back)
					guest.Run(t, "cmp", source, back)
				})
			}
		}
	}
}

// write writes data to a new file of size bytes, leaving out what is between holeStart and holeEnd.
func write(t *testing.T, path string, data []byte, holeStart, holeEnd, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data[:holeStart], 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(data[holeEnd:], holeEnd); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

// TestInitiatorNoInline has no in-capsule data at all, which the kernel's target can't do.
func TestInitiatorNoInline(t *testing.T) {
	nqn := testNQN(t)
	file := guest.File(t, "disk", 64<<20)
	target := guest.HawserArgs(t, "127.0.0.1", "--allow-any-host", "--in-capsule", "0", "--export", file+",nqn="+nqn)
	verify(t, attach(t, target, nqn).Volumes[0].Device, "--size=16m")
}

// TestInitiatorVerbs walks through the verbs of a volume of the kernel's target.
func TestInitiatorVerbs(t *testing.T) {
	nqn := testNQN(t)
	target := guest.NVMET(t, "127.0.0.1", guest.Export{Path: guest.Loop(t, guest.File(t, "disk", 64<<20), 512), NQN: nqn, UUID: uuid})
	url := "nvme://" + target.Addr() + "/" + nqn

	if out := guest.Run(t, "hawser", "discover", target.Addr(), "-o", "json"); !strings.Contains(out, `"`+nqn+`"`) {
		t.Errorf("discover does not show %s:\n%s", nqn, out)
	}
	guest.Run(t, "hawser", "probe", url)
	if r := guest.Try(t, "hawser", "probe", url+".nobody"); r.Code != 5 {
		t.Errorf("probe of an unknown NQN: exit status %d, want 5: %s", r.Code, r.Stderr)
	}
	if a := attach(t, target, nqn, "--name", "vm"); !a.Changed {
		t.Error("the first attach changed nothing")
	}
	if a := decode[attached](t, guest.Run(t, "hawser", "attach", url, "--driver", "user", "--name", "vm", "-o", "json")); a.Changed {
		t.Error("the second attach changed something")
	}
	list := decode[attached](t, guest.Run(t, "hawser", "list", "-o", "json"))
	if len(list.Volumes) != 1 || list.Volumes[0].Name != "vm" || list.Volumes[0].Target != nqn ||
		!slices.ContainsFunc(list.Volumes[0].Paths, func(p struct{ Portal, State string }) bool { return p.Portal == target.Addr() && p.State == "live" }) {
		t.Errorf("list: %+v", list)
	}
	// The guest's own drive is no volume of ours, by whatever name it is called.
	local := guest.LocalNVMe(t)
	if r := guest.Try(t, "hawser", "detach", local); r.Code == 0 || guest.Size(t, local) == 0 {
		t.Errorf("detach of the local drive: exit status %d: %s", r.Code, r.Stderr)
	}
	if r := guest.Try(t, "hawser", "show", local); r.Code != 5 {
		t.Errorf("show of the local drive: exit status %d, want 5: %s", r.Code, r.Stderr)
	}
	guest.Run(t, "hawser", "detach", "vm")
	if list := decode[attached](t, guest.Run(t, "hawser", "list", "-o", "json")); len(list.Volumes) != 0 {
		t.Errorf("list after detach: %+v", list)
	}
}
