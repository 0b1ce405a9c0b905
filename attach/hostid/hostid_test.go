package hostid

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hawser.dev/hawser/nvme"
)

const (
	uuidA = "0f5c9b6e-8d0b-4b57-9d5c-2a4b6d1c7e01"
	uuidB = "7c1de2aa-3b44-4f01-8a77-5e6f70819202"
	nqnA  = "nqn.2014-08.org.nvmexpress:uuid:" + uuidA
	nqnX  = "nqn.2026-01.org.example:host-x"
)

// tree writes files below a fresh root; a Store for the user uid looks there.
func tree(t *testing.T, uid int, files map[string]string) *Store {
	t.Helper()
	s := New(uid, func(key string) (string, bool) {
		v, ok := map[string]string{"HOME": "/home/u"}[key]
		return v, ok
	})
	s.Root = t.TempDir()
	for name, text := range files {
		path := filepath.Join(s.Root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestLoad(t *testing.T) {
	const (
		etcNQN = "/etc/nvme/hostnqn"
		etcID  = "/etc/nvme/hostid"
		own    = "/home/u/.local/state/hawser/"
		dmi    = "/sys/class/dmi/id/product_uuid"
	)
	for _, tc := range []struct {
		name    string
		uid     int
		files   map[string]string
		nqn, id string // id "" : any, but the same twice
		source  string
	}{
		{"both files", 0, map[string]string{etcNQN: nqnX + "\n", etcID: uuidB + "\n"}, nqnX, uuidB, etcNQN},
		{"files that differ", 0, map[string]string{etcNQN: nqnA, etcID: uuidB}, nqnA, uuidB, etcNQN},
		{"NQN alone", 0, map[string]string{etcNQN: nqnA, dmi: uuidB}, nqnA, uuidA, etcNQN},
		{"NQN alone, of another form", 0, map[string]string{etcNQN: nqnX}, nqnX, "", etcNQN},
		{"ID alone", 0, map[string]string{etcID: uuidA}, nqnA, uuidA, "made from the host ID"},
		{"empty files, DMI", 0, map[string]string{etcNQN: "\n", etcID: "", dmi: uuidA + "\n"}, nqnA, uuidA, "machine UUID"},
		{"DMI is root's", 1000, map[string]string{dmi: uuidA, "/etc/machine-id": strings.Repeat("a1", 16)}, "", "", "/etc/machine-id"},
		{"DMI of one digit", 0, map[string]string{dmi: "ffffffff-ffff-ffff-ffff-ffffffffffff", "/etc/machine-id": strings.Repeat("a1", 16)}, "", "", "/etc/machine-id"},
		{"user has the machine's", 1000, map[string]string{etcNQN: nqnX, etcID: uuidB}, nqnX, uuidB, etcNQN},
		{"user has an own one", 1000, map[string]string{etcNQN: nqnX, etcID: uuidB, own + "hostnqn": nqnA}, nqnA, uuidA, own + "hostnqn"},
		{"boot ID", 1000, map[string]string{"/etc/machine-id": "uninitialized\n", "/proc/sys/kernel/random/boot_id": uuidB}, "", "", "boot ID"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := tree(t, tc.uid, tc.files)
			i, err := s.Load()
			if err != nil {
				t.Fatal(err)
			}
			if tc.nqn != "" && string(i.NQN) != tc.nqn || tc.id != "" && i.ID.String() != tc.id || !strings.Contains(i.NQNSource, tc.source) {
				t.Errorf("got %+v", i)
			}
			if i.NQN.Validate() != nil || i.ID.IsZero() {
				t.Errorf("not valid: %+v", i)
			}
			if again, err := s.Load(); err != nil || again != i {
				t.Errorf("second time %+v, %v", again, err)
			}
			if i.Permanent == strings.Contains(tc.source, "boot") {
				t.Errorf("Permanent is %v", i.Permanent)
			}
		})
	}
}

// Two users and two machines are never one.
func TestDerivedDiffer(t *testing.T) {
	seen := make(map[nvme.UUID]bool)
	for _, id := range []string{strings.Repeat("a1", 16), strings.Repeat("b2", 16)} {
		for _, uid := range []int{0, 1000, 1001} {
			i, err := tree(t, uid, map[string]string{"/etc/machine-id": id + "\n"}).Load()
			if err != nil || seen[i.ID] || i.ID[6]>>4 != 8 || i.ID[8]>>6 != 2 || !i.Consistent() {
				t.Errorf("%s, %d: %+v, %v", id, uid, i, err)
			}
			seen[i.ID] = true
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	for _, tc := range []struct{ file, text, want string }{
		{"/etc/nvme/hostnqn", "host1", "read /etc/nvme/hostnqn: "},
		{"/etc/nvme/hostnqn", string(nvme.DiscoveryNQN), "discovery"},
		{"/etc/nvme/hostnqn", strings.Repeat("x", 5000), "longer than 4096 bytes"},
		{"/etc/nvme/hostid", "12", "read /etc/nvme/hostid: "},
		{"/etc/nvme/hostid", "00000000-0000-0000-0000-000000000000", "zero"},
	} {
		s := tree(t, 0, map[string]string{tc.file: tc.text})
		_, err := s.Load()
		if typed := (*Error)(nil); !errors.As(err, &typed) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%.20q: %v", tc.text, err)
		}
		if _, found, err := s.Check(); err != nil || len(found) != 1 || !found[0].Problem {
			t.Errorf("%.20q: Check: %v %v", tc.text, found, err)
		}
	}
	if i, err := tree(t, 0, nil).Load(); err == nil {
		t.Errorf("a machine without any name is %+v", i)
	}
}

func TestCreate(t *testing.T) {
	s := tree(t, 1000, map[string]string{"/etc/machine-id": strings.Repeat("a1", 16)})
	derived, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	if _, changed, err := s.Create("", nvme.UUID{}, false, true); err != nil || !changed {
		t.Fatalf("plan: %v %v", changed, err)
	}
	if _, err := os.Stat(filepath.Join(s.Root, s.Dir)); err == nil {
		t.Fatal("the plan wrote something")
	}
	made, changed, err := s.Create("", nvme.UUID{}, false, false)
	if err != nil || !changed || made.NQN != derived.NQN || made.ID != derived.ID {
		t.Fatalf("%+v %v %v, want what Load said: %+v", made, changed, err, derived)
	}
	loaded, err := s.Load()
	if err != nil || loaded != made {
		t.Fatalf("%+v %v, want %+v", loaded, err, made)
	}
	if _, changed, err := s.Create("", nvme.UUID{}, false, false); err != nil || changed {
		t.Fatalf("second time: %v %v", changed, err)
	}
	other := nvme.NQN(nqnX)
	if _, _, err := s.Create(other, nvme.UUID{}, false, false); !errors.As(err, new(*ExistsError)) {
		t.Fatalf("another NQN: %v", err)
	}
	if i, changed, err := s.Create(other, nvme.UUID{}, true, false); err != nil || !changed || i.NQN != other {
		t.Fatalf("by force: %+v %v %v", i, changed, err)
	}
	names, err := filepath.Glob(filepath.Join(s.Root, s.Dir, "*"))
	if err != nil || len(names) != 2 {
		t.Errorf("files left: %v %v", names, err)
	}

	// A broken file is replaced by force only.
	if err := os.WriteFile(filepath.Join(s.Root, s.Dir, "hostnqn"), []byte("junk"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Create(nvme.NQN(nqnA), nvme.UUID{}, false, false); err == nil {
		t.Error("a broken file was replaced")
	}
	if i, changed, err := s.Create(nvme.NQN(nqnA), nvme.UUID{}, true, false); err != nil || !changed || i.ID.String() != uuidA {
		t.Errorf("%+v %v %v", i, changed, err)
	}

	// Without a lasting name of the machine a random one is made.
	s = tree(t, 0, map[string]string{"/proc/sys/kernel/random/boot_id": uuidB})
	was, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	if i, changed, err := s.Create("", nvme.UUID{}, false, false); err != nil || !changed || i.ID == was.ID || !i.Permanent || i.ID[6]>>4 != 4 {
		t.Errorf("%+v %v %v", i, changed, err)
	}
	nowhere := &Store{Root: s.Root, UID: 1000}
	if _, _, err := nowhere.Create(other, nvme.UUID{}, false, false); err == nil {
		t.Error("created without a place for it")
	}
}

func TestCheck(t *testing.T) {
	base := map[string]string{"/etc/nvme/hostnqn": nqnA, "/etc/nvme/hostid": uuidA}
	for _, tc := range []struct {
		name     string
		more     map[string]string
		problems []string
		remarks  int
	}{
		{name: "fine", more: map[string]string{"/sys/class/nvme/nvme0/hostnqn": nqnA, "/sys/class/nvme/nvme0/hostid": uuidA, "/sys/class/nvme/nvme1/model": "local"}},
		{name: "pair differs", more: map[string]string{"/etc/nvme/hostid": uuidB}, remarks: 1},
		{name: "ID used with another NQN", more: map[string]string{"/sys/class/nvme/nvme3/hostnqn": nqnX + "\n", "/sys/class/nvme/nvme3/hostid": uuidA + "\n"},
			problems: []string{"nvme3 is connected with host ID " + uuidA + " but host NQN " + nqnX}},
		{name: "NQN used with another ID", more: map[string]string{"/sys/class/nvme/nvme3/hostnqn": nqnA, "/sys/class/nvme/nvme3/hostid": uuidB},
			problems: []string{"nvme3 is connected with host NQN " + nqnA}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := make(map[string]string)
			for _, m := range []map[string]string{base, tc.more} {
				for k, v := range m {
					files[k] = v
				}
			}
			_, found, err := tree(t, 0, files).Check()
			if err != nil {
				t.Fatal(err)
			}
			var problems []string
			for _, f := range found {
				if f.Problem {
					problems = append(problems, f.What)
				}
			}
			if len(problems) != len(tc.problems) || len(found)-len(problems) != tc.remarks {
				t.Fatalf("found %+v", found)
			}
			for n, want := range tc.problems {
				if !strings.HasPrefix(problems[n], want) {
					t.Errorf("got %q, want %q", problems[n], want)
				}
			}
		})
	}
}

// Whatever is in the files, there is a valid identity or an error that names a file.
func FuzzLoad(f *testing.F) {
	f.Add(nqnA, uuidA, strings.Repeat("a1", 16))
	f.Add(nqnX+"\r\n", "", "")
	f.Add("", "\x00", "uninitialized")
	f.Fuzz(func(t *testing.T, nqn, id, machine string) {
		s := tree(t, 1000, map[string]string{"/etc/nvme/hostnqn": nqn, "/etc/nvme/hostid": id, "/etc/machine-id": machine})
		i, err := s.Load()
		if err != nil {
			if !errors.As(err, new(*Error)) {
				t.Errorf("untyped: %v", err)
			}
			return
		}
		if ValidHost(i.NQN) != nil || i.ID.IsZero() || i.NQNSource == "" || i.IDSource == "" {
			t.Errorf("%+v", i)
		}
	})
}
