package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"hawser.dev/hawser/nvme"
)

// fileDriver attaches by making a file, so that what it did outlives the process that asked for it.
type fileDriver struct {
	dir  string
	hook func(point string) error // called at each point; may fail, or not return

	mu       sync.Mutex
	attaches int
}

func (d *fileDriver) at(point string) error {
	if d.hook == nil {
		return nil
	}
	return d.hook(point)
}

func (d *fileDriver) path(r *Record) string { return filepath.Join(d.dir, r.Name) }
func (d *fileDriver) Name() string          { return DriverUser }

func (d *fileDriver) Check(spec *Spec, paths []PathSpec) error {
	if spec.Options.TLS || len(paths) > 2 {
		return &Error{Cause: CauseUnsupported, Err: errors.New("--tls or too many paths")}
	}
	return nil
}

func (d *fileDriver) Prepare(r *Record, others []*Record) error {
	r.Frontend, r.Device = FrontendSocket, SocketDevice(d.path(r))
	return d.at("prepare")
}

func (d *fileDriver) Attach(ctx context.Context, r *Record) (Status, error) {
	if err := d.at("attach begins"); err != nil {
		return Status{}, err
	}
	d.mu.Lock()
	d.attaches++
	d.mu.Unlock()
	b, err := json.Marshal(r)
	if err != nil {
		return Status{}, err
	}
	if err := os.WriteFile(d.path(r), b, 0o600); err != nil {
		return Status{}, err
	}
	if err := d.at("attach done"); err != nil {
		os.Remove(d.path(r))
		return Status{}, err
	}
	return d.Status(ctx, r)
}

func (d *fileDriver) Detach(ctx context.Context, r *Record, opts DetachOptions) (DetachResult, error) {
	if err := d.at("detach begins"); err != nil && !opts.Force {
		return DetachResult{}, err
	}
	if err := os.Remove(d.path(r)); errors.Is(err, fs.ErrNotExist) {
		return DetachResult{}, ErrNotAttached
	} else if err != nil {
		return DetachResult{}, err
	}
	return DetachResult{}, d.at("detach done")
}

func (d *fileDriver) Status(_ context.Context, r *Record) (Status, error) {
	b, err := os.ReadFile(d.path(r))
	if errors.Is(err, fs.ErrNotExist) {
		return Status{}, ErrNotAttached
	}
	var held Record
	if err == nil {
		err = json.Unmarshal(b, &held)
	}
	if err != nil {
		return Status{}, err
	}
	st := Status{State: VolumeLive, Identity: held.Identity}
	for _, p := range held.Paths {
		st.Paths = append(st.Paths, Path{Portal: p.Portal.String(), State: PathLive})
	}
	return st, nil
}

func (d *fileDriver) Sweep([]*Record) {}

// volumes is a Prober that knows what the target has.
type volumes []Identity

func (v volumes) Volumes(context.Context, *Spec) ([]Identity, error) { return v, nil }

// noProber fails a test that asks the target again.
type noProber struct{ t *testing.T }

func (p noProber) Volumes(context.Context, *Spec) ([]Identity, error) {
	p.t.Error("the target was asked")
	return nil, errors.New("asked")
}

var (
	id1 = Identity{NSID: 1, UUID: nvme.UUID{1}, NGUID: nvme.NGUID{1}, Size: 1 << 30, BlockSize: 512}
	id2 = Identity{NSID: 2, UUID: nvme.UUID{2}, NGUID: nvme.NGUID{2}, Size: 1 << 31, BlockSize: 512}
	id3 = Identity{NSID: 3, Size: 1 << 20, BlockSize: 512} // without an identifier
)

func testManager(t testing.TB, prober Prober) (*Manager, *fileDriver) {
	d := &fileDriver{dir: t.TempDir()}
	return &Manager{Store: testStore(t), Drivers: []Driver{d}, Prober: prober, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, d
}

func (m *Manager) mustAttach(t testing.TB, spec Spec, changed bool) Volume {
	t.Helper()
	v, err := m.Attach(t.Context(), spec)
	if err != nil {
		t.Fatalf("attach %s: %v", spec.Target, err)
	}
	if *v.Changed != changed || v.State != VolumeLive {
		t.Fatalf("attach %s: changed %v, %s", spec.Target, *v.Changed, v.State)
	}
	return v
}

func selector(t testing.TB, s string) Selector {
	t.Helper()
	sel, err := ParseSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return sel
}

// left checks what is on record, and that the driver has the same.
func left(t testing.TB, m *Manager, d *fileDriver, names ...string) {
	t.Helper()
	records, err := m.Store.List()
	if err != nil {
		t.Error(err)
	}
	var have []string
	for _, r := range records {
		have = append(have, r.Name)
		if r.State != StateAttached {
			t.Errorf("%s is left %s", r.Name, r.State)
		}
	}
	slices.Sort(names)
	if !slices.Equal(have, names) {
		t.Errorf("records of %q, want %q", have, names)
	}
	files, err := os.ReadDir(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	have = nil
	for _, f := range files {
		have = append(have, f.Name())
	}
	if !slices.Equal(have, names) {
		t.Errorf("the driver has %q, want %q", have, names)
	}
}

func TestLifeOfAVolume(t *testing.T) {
	m, d := testManager(t, volumes{id1})
	spec := testSpec(t, "nvme://192.0.2.10/"+testNQN)
	planned, err := m.Check(t.Context(), spec)
	if err != nil || !*planned.Changed || planned.State != VolumePlanned || planned.Name != id1.Name() || len(planned.Plan) == 0 {
		t.Fatalf("%+v, %v", planned, err)
	}
	if _, err := os.Stat(m.Store.Dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Error("--check made the state folder")
	}
	v := m.mustAttach(t, spec, true)
	if v.Name != id1.Name() || v.UUID != id1.Name() || v.Size != id1.Size || v.Driver != DriverUser || v.Target != testNQN || len(v.Paths) != 1 {
		t.Errorf("%+v", v)
	}

	// Again, in every way of saying the same.
	m.Prober = noProber{t}
	for _, url := range []string{"nvme://192.0.2.10/" + testNQN, "nvme://192.0.2.10:4420/" + testNQN, "nvme://192.0.2.10/" + testNQN + "#" + id1.Name(),
		"nvme://192.0.2.10/" + testNQN + "#" + id1.NGUID.String()} {
		m.mustAttach(t, testSpec(t, url), false)
		if v, err := m.Check(t.Context(), testSpec(t, url)); err != nil || *v.Changed {
			t.Errorf("check %s: %v, %v", url, v, err)
		}
	}
	m.Prober = volumes{id1}
	m.mustAttach(t, testSpec(t, "nvme://192.0.2.10/"+testNQN+"#nsid=1"), false)
	if d.attaches != 1 {
		t.Errorf("%d attaches", d.attaches)
	}
	left(t, m, d, id1.Name())

	if list, err := m.List(t.Context()); err != nil || len(list) != 1 || list[0].State != VolumeLive {
		t.Errorf("%+v, %v", list, err)
	}
	for _, s := range []string{v.Name, v.Device, id1.NGUID.String(), "nvme://192.0.2.10/" + testNQN, d.dir + "/" + v.Name} {
		if got, err := m.Show(t.Context(), selector(t, s)); err != nil || got.Name != v.Name {
			t.Errorf("show %s: %+v, %v", s, got, err)
		}
	}
	if v, err := m.Detach(t.Context(), selector(t, v.Name), DetachOptions{}, true); err != nil || !*v.Changed {
		t.Errorf("%+v, %v", v, err)
	}
	left(t, m, d, id1.Name())
	if v, err := m.Detach(t.Context(), selector(t, "nvme://192.0.2.10/"+testNQN), DetachOptions{}, false); err != nil || !*v.Changed || v.State != VolumeDetached {
		t.Errorf("%+v, %v", v, err)
	}
	left(t, m, d)
	if v, err := m.Detach(t.Context(), selector(t, "nvme://192.0.2.10/"+testNQN), DetachOptions{}, false); err != nil || *v.Changed {
		t.Errorf("again: %+v, %v", v, err)
	}
	for _, s := range []string{v.Name, "/dev/nvme9n1", v.Device} {
		if _, err := m.Detach(t.Context(), selector(t, s), DetachOptions{}, false); CauseOf(err) != CauseNotFound {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestWhichVolume(t *testing.T) {
	base := "nvme://192.0.2.10/" + testNQN
	for _, tt := range []struct {
		has   volumes
		ns    string
		name  string
		want  string // name of the volume
		cause Cause
		text  string
	}{
		{has: volumes{id1, id2}, ns: "", cause: CauseUsage, text: "2 namespaces"},
		{has: volumes{id1, id2}, ns: "#" + id2.Name(), want: id2.Name()},
		{has: volumes{id1, id2}, ns: "#nsid=2", want: id2.Name()},
		{has: volumes{id1, id2}, ns: "#nsid=7", cause: CauseNotFound, text: "no namespace nsid=7"},
		{has: volumes{id1, id2}, ns: "#" + testUUID, cause: CauseNotFound, text: testUUID},
		{has: volumes{}, ns: "", cause: CauseNotFound, text: "no namespace for this host"},
		{has: volumes{id3}, ns: "", cause: CauseUsage, text: "no UUID, NGUID or EUI-64"},
		{has: volumes{id3}, ns: "", name: "bare", want: "bare"},
		{has: volumes{id1, id1}, ns: "#" + id1.Name(), cause: CauseFailed, text: "2 namespaces with the identifier"},
		{has: volumes{id1}, name: testUUID, cause: CauseUsage, text: "identifier of another volume"},
		{has: volumes{id1}, name: id1.Name(), want: id1.Name()},
	} {
		m, d := testManager(t, tt.has)
		spec := testSpec(t, base+tt.ns)
		spec.Name = tt.name
		v, err := m.Attach(t.Context(), spec)
		if tt.want != "" {
			if err != nil || v.Name != tt.want {
				t.Errorf("%v: %+v, %v", tt, v, err)
			}
			continue
		}
		if CauseOf(err) != tt.cause || err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%q of %d: %v, want cause %d, %q", tt.ns, len(tt.has), err, tt.cause, tt.text)
		}
		left(t, m, d)
	}
}

func TestConflicts(t *testing.T) {
	m, d := testManager(t, volumes{id1})
	spec := testSpec(t, "nvme://192.0.2.10/"+testNQN+"#"+id1.Name())
	spec.Name = "a"
	spec.Options.HdrDigest = true
	m.mustAttach(t, spec, true)
	plain := testSpec(t, "nvme://192.0.2.10/"+testNQN+"#"+id1.Name())
	m.mustAttach(t, plain, false) // what is not asked for may be any way

	for name, tt := range map[string]struct {
		change func(*Spec)
		cause  Cause
		text   string
	}{
		"another name":      {func(s *Spec) { s.Name = "b" }, CauseInUse, "attached as a"},
		"another option":    {func(s *Spec) { s.Options.DataDigest = true }, CauseInUse, "--data-digest"},
		"another timeout":   {func(s *Spec) { s.Options.KeepAliveTMO = ptr(9) }, CauseInUse, "--keep-alive-tmo"},
		"read-only":         {func(s *Spec) { s.ReadOnly = true }, CauseInUse, "--read-only"},
		"another host":      {func(s *Spec) { s.HostNQN = testNQN; s.Name = "a" }, CauseInUse, "taken"},
		"unsupported":       {func(s *Spec) { s.Options.TLS = true }, CauseUnsupported, "--tls"},
		"kernel":            {func(s *Spec) { s.Driver = DriverKernel }, CauseUnsupported, "--driver kernel"},
		"more than allowed": {func(s *Spec) { s.Portals = []Portal{mustPortal(t, "192.0.2.11"), mustPortal(t, "192.0.2.12")} }, CauseUnsupported, "paths"},
	} {
		s := plain
		tt.change(&s)
		for _, do := range []func(context.Context, Spec) (Volume, error){m.Check, m.Attach} {
			if _, err := do(t.Context(), s); CauseOf(err) != tt.cause || err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%s: %v, want cause %d, %q", name, err, tt.cause, tt.text)
			}
		}
	}
	m.Prober = volumes{id2}
	other := testSpec(t, "nvme://192.0.2.10/nqn.2026-01.org.example:vol2")
	other.Name = "a"
	if _, err := m.Attach(t.Context(), other); CauseOf(err) != CauseInUse {
		t.Errorf("name taken: %v", err)
	}
	left(t, m, d, "a")
}

// A second portal of a volume that is attached is a missing path: it is added, and only it.
func TestMissingPathIsAdded(t *testing.T) {
	m, d := testManager(t, volumes{id1})
	m.mustAttach(t, testSpec(t, "nvme://192.0.2.10/"+testNQN), true)
	v := m.mustAttach(t, testSpec(t, "nvme://192.0.2.11/"+testNQN), true)
	if len(v.Paths) != 2 {
		t.Errorf("%+v", v.Paths)
	}
	both := testSpec(t, "nvme://192.0.2.10/"+testNQN)
	both.Portals = []Portal{mustPortal(t, "192.0.2.11")}
	m.mustAttach(t, both, false)
	// The same portal by another binding is another path.
	bound := testSpec(t, "nvme://192.0.2.10/"+testNQN)
	bound.Bindings = []Binding{mustBinding(t, "eth1")}
	if _, err := m.Attach(t.Context(), bound); CauseOf(err) != CauseUnsupported {
		t.Errorf("a third path: %v", err)
	}
	left(t, m, d, id1.Name())
}

func TestHostNamesAreLookedUp(t *testing.T) {
	m, _ := testManager(t, volumes{id1})
	m.Resolve = func(_ context.Context, host string) ([]netip.Addr, error) {
		if host == "storage.example" {
			return []netip.Addr{netip.MustParseAddr("192.0.2.99"), netip.MustParseAddr("::ffff:192.0.2.10")}, nil
		}
		return nil, errors.New("no such host")
	}
	m.mustAttach(t, testSpec(t, "nvme://storage.example/"+testNQN), true)
	m.mustAttach(t, testSpec(t, "nvme://192.0.2.10/"+testNQN), false)
	m.mustAttach(t, testSpec(t, "nvme://elsewhere.example/"+testNQN), true) // another path
	if v, err := m.Detach(t.Context(), selector(t, "nvme://192.0.2.10/"+testNQN), DetachOptions{}, false); err != nil || !*v.Changed {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestDetachOfOneOfSeveral(t *testing.T) {
	m, d := testManager(t, volumes{id1, id2})
	base := "nvme://192.0.2.10/" + testNQN
	m.mustAttach(t, testSpec(t, base+"#nsid=1"), true)
	m.mustAttach(t, testSpec(t, base+"#nsid=2"), true)
	if _, err := m.Detach(t.Context(), selector(t, base), DetachOptions{}, false); CauseOf(err) != CauseUsage || !strings.Contains(err.Error(), "2 volumes") {
		t.Errorf("got %v", err)
	}
	// Another portal or another host's attachment is not meant.
	for _, sel := range []Selector{selector(t, "nvme://192.0.2.77/"+testNQN), {Text: base, Target: ptr(testSpec(t, base).Target), HostNQN: testNQN}} {
		if v, err := m.Detach(t.Context(), sel, DetachOptions{}, false); err != nil || *v.Changed {
			t.Errorf("%s: %+v, %v", sel.Text, v, err)
		}
	}
	if _, err := m.Detach(t.Context(), selector(t, base+"#"+id2.Name()), DetachOptions{}, false); err != nil {
		t.Fatal(err)
	}
	left(t, m, d, id1.Name())
}

func TestFailureLeavesNothing(t *testing.T) {
	boom := &Error{Cause: CauseUnreachable, Err: errors.New("boom")}
	for _, point := range []string{"prepare", "attach begins", "attach done"} {
		m, d := testManager(t, volumes{id1})
		d.hook = func(p string) error {
			if p == point {
				return boom
			}
			return nil
		}
		if _, err := m.Attach(t.Context(), testSpec(t, "nvme://192.0.2.10/"+testNQN)); CauseOf(err) != CauseUnreachable {
			t.Errorf("%s: %v", point, err)
		}
		left(t, m, d)
	}
	// A detach that is refused changes nothing.
	m, d := testManager(t, volumes{id1})
	v := m.mustAttach(t, testSpec(t, "nvme://192.0.2.10/"+testNQN), true)
	d.hook = func(string) error { return InUse(v.Name, []Client{{PID: 7, Command: "qemu"}}) }
	if _, err := m.Detach(t.Context(), selector(t, v.Name), DetachOptions{}, false); CauseOf(err) != CauseInUse || !strings.Contains(err.Error(), "clients connected: 1 (process 7 qemu)") {
		t.Errorf("got %v", err)
	}
	left(t, m, d, v.Name)
}

// What the device says counts, also when it is attached again after what held it died.
func TestIdentityThatChanged(t *testing.T) {
	m, d := testManager(t, volumes{id1})
	v := m.mustAttach(t, testSpec(t, "nvme://192.0.2.10/"+testNQN), true)
	if err := os.Remove(filepath.Join(d.dir, v.Name)); err != nil {
		t.Fatal(err)
	}
	if list, err := m.List(t.Context()); err != nil || list[0].State != VolumeDead || list[0].Warning == "" {
		t.Errorf("%+v, %v", list, err)
	}
	d.hook = func(p string) error {
		if p == "attach done" { // another volume by the same name
			r, err := m.Store.Get(v.Name)
			if err != nil {
				return err
			}
			r.Identity = id2
			b, _ := json.Marshal(r)
			return os.WriteFile(filepath.Join(d.dir, v.Name), b, 0o600)
		}
		return nil
	}
	if _, err := m.Attach(t.Context(), testSpec(t, "nvme://192.0.2.10/"+testNQN)); CauseOf(err) != CauseInUse {
		t.Errorf("got %v", err)
	}
	d.hook = nil
	m.mustAttach(t, testSpec(t, "nvme://192.0.2.10/"+testNQN), true)
	left(t, m, d, v.Name)
}

// waiting is a driver whose path comes back during an attach.
type waiting struct {
	*fileDriver
	path    string // its state until then
	clients []Client
}

func (w *waiting) Attach(ctx context.Context, r *Record) (Status, error) {
	st, err := w.fileDriver.Attach(ctx, r)
	if err == nil {
		w.path = PathLive
	}
	return st, err
}

func (w *waiting) Status(ctx context.Context, r *Record) (Status, error) {
	st, err := w.fileDriver.Status(ctx, r)
	if err == nil && w.path != PathLive {
		st.State, st.Clients = VolumeConnecting, w.clients
		for i := range st.Paths {
			st.Paths[i].State = w.path
		}
	}
	return st, err
}

// An attach of what is attached waits for its path. When that fails, or is killed, the volume stays as it was.
func TestAttachDuringAnOutage(t *testing.T) {
	m, d := testManager(t, volumes{id1})
	spec := testSpec(t, "nvme://192.0.2.10/"+testNQN)
	v := m.mustAttach(t, spec, true)
	w := &waiting{fileDriver: d}
	m.Drivers = []Driver{w}
	boom := errors.New("boom")
	for _, c := range []struct {
		path    string
		changes bool
	}{{PathConnecting, false}, {PathDead, true}} {
		w.path = c.path
		d.hook = func(string) error {
			if r, err := m.Store.Get(v.Name); err != nil || r.State != StateAttached {
				t.Errorf("%s: on record as %+v, %v", c.path, r, err)
			}
			return boom
		}
		if _, err := m.Attach(t.Context(), spec); !errors.Is(err, boom) {
			t.Errorf("%s: %v", c.path, err)
		}
		left(t, m, d, v.Name)
		d.hook = nil
		p, err := m.Check(t.Context(), spec)
		if err != nil || *p.Changed != c.changes || len(p.Plan) > 0 != c.changes {
			t.Errorf("%s: %+v, %v", c.path, p, err)
		}
		m.mustAttach(t, spec, c.changes)
	}

	// An attach that was killed after the device was there, and used, before it was on record.
	r, err := m.Store.Get(v.Name)
	if err != nil {
		t.Fatal(err)
	}
	r.State = StateAttaching
	if err := m.Store.Put(r); err != nil {
		t.Fatal(err)
	}
	w.path, w.clients = PathConnecting, []Client{{PID: 7}}
	m.Recover(t.Context())
	left(t, m, d, v.Name)
	w.clients = nil
	if err := m.Store.Put(r); err != nil {
		t.Fatal(err)
	}
	m.Recover(t.Context())
	left(t, m, d)
}

// However many ask at once, in whatever words, one attaches and the others find it.
func TestManyAttachesAtOnce(t *testing.T) {
	m, d := testManager(t, volumes{id1})
	const n = 16
	changed := make(chan bool, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			url := "nvme://192.0.2.10/" + testNQN
			if i%2 == 0 {
				url += "#" + id1.Name()
			}
			// Each as a process of its own would: nothing shared but the folder.
			store, err := NewStore(m.Store.Dir())
			if err != nil {
				t.Error(err)
				return
			}
			defer store.Close()
			own := &Manager{Store: store, Drivers: m.Drivers, Prober: m.Prober}
			v, err := own.Attach(t.Context(), testSpec(t, url))
			if err != nil {
				t.Error(err)
				return
			}
			changed <- *v.Changed
		})
	}
	wg.Wait()
	close(changed)
	made := 0
	for c := range changed {
		if c {
			made++
		}
	}
	if made != 1 || d.attaches != 1 {
		t.Errorf("%d say they attached, %d did", made, d.attaches)
	}
	left(t, m, d, id1.Name())

	// Under names of their own only one can have it.
	m, d = testManager(t, volumes{id1})
	won := make(chan string, n)
	for i := range n {
		wg.Go(func() {
			spec := testSpec(t, "nvme://192.0.2.10/"+testNQN)
			spec.Name = fmt.Sprintf("v%d", i)
			if _, err := m.Attach(t.Context(), spec); err == nil {
				won <- spec.Name
			} else if CauseOf(err) != CauseInUse {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	left(t, m, d, <-won)
}

// TestKilled has a process killed at every point of an attach and of a detach. The next call must finish or clean up.
func TestKilled(t *testing.T) {
	points := []string{"prepare", "attach begins", "attach done", "detach begins", "detach done"}
	if verb := os.Getenv("HAWSER_TEST_VERB"); verb != "" {
		store, err := NewStore(os.Getenv("HAWSER_TEST_STORE"))
		if err != nil {
			t.Fatal(err)
		}
		d := &fileDriver{dir: os.Getenv("HAWSER_TEST_DEVICES")}
		d.hook = func(p string) error {
			if p == os.Getenv("HAWSER_TEST_POINT") {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
			return nil
		}
		m := &Manager{Store: store, Drivers: []Driver{d}, Prober: volumes{id1}}
		if verb == "attach" {
			_, err = m.Attach(t.Context(), testSpec(t, "nvme://192.0.2.10/"+testNQN))
		} else {
			_, err = m.Detach(t.Context(), selector(t, id1.Name()), DetachOptions{}, false)
		}
		t.Fatalf("it lives: %v", err)
	}
	for _, point := range points {
		for _, next := range []string{"attach", "detach", "another"} {
			t.Run(point+" then "+next, func(t *testing.T) {
				m, d := testManager(t, volumes{id1})
				verb, _, _ := strings.Cut(point, " ")
				if verb == "detach" {
					m.mustAttach(t, testSpec(t, "nvme://192.0.2.10/"+testNQN), true)
				} else {
					verb = "attach"
				}
				cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
				cmd.Env = append(os.Environ(), "HAWSER_TEST_VERB="+verb, "HAWSER_TEST_POINT="+point, "HAWSER_TEST_STORE="+m.Store.Dir(), "HAWSER_TEST_DEVICES="+d.dir)
				out, err := cmd.CombinedOutput()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("%v\n%s", err, out)
				}
				if list, err := m.List(t.Context()); err != nil {
					t.Errorf("list: %+v, %v", list, err)
				}
				switch next {
				case "attach":
					v, err := m.Attach(t.Context(), testSpec(t, "nvme://192.0.2.10/"+testNQN))
					if err != nil || v.State != VolumeLive {
						t.Errorf("%+v, %v", v, err)
					}
					left(t, m, d, id1.Name())
				case "detach":
					v, err := m.Detach(t.Context(), selector(t, "nvme://192.0.2.10/"+testNQN), DetachOptions{}, false)
					if err != nil || v.State != VolumeDetached {
						t.Errorf("%+v, %v", v, err)
					}
					left(t, m, d)
				case "another":
					m.Prober = volumes{id2}
					m.mustAttach(t, testSpec(t, "nvme://192.0.2.10/nqn.2026-01.org.example:vol2"), true)
					if point == "attach done" { // it was complete
						left(t, m, d, id1.Name(), id2.Name())
					} else {
						left(t, m, d, id2.Name())
					}
				}
			})
		}
	}
}

func TestListNeverHangs(t *testing.T) {
	m, d := testManager(t, volumes{id1})
	m.mustAttach(t, testSpec(t, "nvme://192.0.2.10/"+testNQN), true)
	m.Drivers = []Driver{silent{d}}
	list, err := m.List(t.Context())
	if err != nil || len(list) != 1 || list[0].State != VolumeUnknown || list[0].Warning == "" {
		t.Errorf("%+v, %v", list, err)
	}
}

// silent never answers a look.
type silent struct{ Driver }

func (silent) Status(ctx context.Context, _ *Record) (Status, error) {
	<-ctx.Done()
	return Status{}, ctx.Err()
}
