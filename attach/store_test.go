package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hawser.dev/hawser/nvme"
)

func testStore(t testing.TB) *Store {
	t.Helper()
	s, err := NewStore(filepath.Join(t.TempDir(), "hawser"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func testRecord(t testing.TB, name string) *Record {
	return &Record{
		SchemaVersion: SchemaVersion, Name: name, State: StateAttached, Spec: fullSpec(t),
		Identity: Identity{NSID: 1, UUID: nvme.UUID{9}, Size: 1 << 30, BlockSize: 512},
		Driver:   DriverUser, Frontend: FrontendSocket, Device: SocketDevice("/run/hawser/sockets/" + name), Agent: "1",
		Since: time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC),
	}
}

func TestStore(t *testing.T) {
	s := testStore(t)
	if all, err := s.List(); len(all) != 0 || err != nil {
		t.Errorf("empty store: %v, %v", all, err)
	}
	if _, err := s.Get("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty store: %v", err)
	}
	if _, err := os.Stat(s.Dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Error("looking made the folder")
	}
	want := testRecord(t, "a")
	for range 2 {
		if err := s.Put(want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Get("a")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(Binding{})); d != "" {
		t.Error(d)
	}
	if err := s.Put(testRecord(t, "b")); err != nil {
		t.Fatal(err)
	}
	if all, err := s.List(); len(all) != 2 || all[0].Name != "a" || all[1].Name != "b" || err != nil {
		t.Errorf("%v, %v", all, err)
	}
	for range 2 { // none there is no error
		if err := s.Delete("a"); err != nil {
			t.Fatal(err)
		}
	}
	if all, _ := s.List(); len(all) != 1 {
		t.Errorf("%v", all)
	}
	for path, mode := range map[string]fs.FileMode{".": 0o700, "records": 0o700, "locks": 0o700, "records/b.json": 0o600} {
		if fi, err := os.Stat(filepath.Join(s.Dir(), path)); err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, fi.Mode(), err)
		}
	}
	if err := s.Put(&Record{Name: "x"}); err == nil {
		t.Error("a record that is none was written")
	}
	for _, name := range []string{"../a", "", ".b", "a/b"} {
		if _, err := s.Get(name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Get %q: %v", name, err)
		}
		if err := s.Delete(name); err == nil {
			t.Errorf("Delete %q", name)
		}
		if _, err := s.TryLock(name); err == nil {
			t.Errorf("TryLock %q", name)
		}
	}
}

func TestStoreFolderMustBePrivate(t *testing.T) {
	t.Run("open to others", func(t *testing.T) {
		s := testStore(t)
		if err := os.Mkdir(s.Dir(), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{s.Put(testRecord(t, "a")), second(s.List())} {
			if CauseOf(err) != CausePermission || !strings.Contains(err.Error(), "chmod 0700") {
				t.Errorf("got %v", err)
			}
		}
	})
	t.Run("symbolic link", func(t *testing.T) {
		s := testStore(t)
		if err := os.Symlink(t.TempDir(), s.Dir()); err != nil {
			t.Fatal(err)
		}
		if err := s.Put(testRecord(t, "a")); CauseOf(err) != CausePermission {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another user's", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("only root can give a folder away")
		}
		s := testStore(t)
		if err := os.Mkdir(s.Dir(), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(s.Dir(), 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if err := s.Put(testRecord(t, "a")); CauseOf(err) != CausePermission || !strings.Contains(err.Error(), "user 65534") {
			t.Errorf("got %v", err)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestCorruptRecords(t *testing.T) {
	s := testStore(t)
	if err := s.Put(testRecord(t, "good")); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(s.Dir(), "records", "good.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"empty":     nil,
		"truncated": good[:len(good)/2],
		"other":     good, // a copy: it is good's
		"newer":     bytes.Replace(good, []byte(`"schemaVersion": 1`), []byte(`"schemaVersion": 2`), 1),
		"unknown":   bytes.Replace(good, []byte(`"state"`), []byte(`"estate"`), 1),
		"tail":      append(bytes.Clone(good), "{}"...),
		"huge":      bytes.Repeat([]byte(" "), maxRecord+1),
	} {
		path := filepath.Join(s.Dir(), "records", name+".json")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := s.Get(name)
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v does not name %s", name, err, path)
		}
		all, err := s.List()
		if len(all) != 1 || all[0].Name != "good" || err == nil {
			t.Errorf("%s: the good record is hidden: %v, %v", name, all, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	// What a writer that was killed leaves is no record.
	if err := os.WriteFile(filepath.Join(s.Dir(), "records", ".half"), good[:10], 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := s.List(); len(all) != 1 || err != nil {
		t.Errorf("%v, %v", all, err)
	}
}

// A reader sees the old record or the new one, whatever the writer is at.
func TestPutIsAtomic(t *testing.T) {
	s := testStore(t)
	r := testRecord(t, "a")
	if err := s.Put(r); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		defer close(done)
		for i := range 200 {
			w := *r
			w.Identity.Size = int64(i+1) << 20
			if err := s.Put(&w); err != nil {
				done <- err
				return
			}
		}
	}()
	for {
		got, err := s.Get("a")
		if err != nil || got.Identity.Size == 0 {
			t.Fatalf("%+v, %v", got, err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
		}
	}
}

func TestLocks(t *testing.T) {
	s := testStore(t)
	l, err := s.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.TryLock("a"); !errors.Is(err, ErrLocked) {
		t.Errorf("taken twice: %v", err)
	}
	other, err := s.TryLock("b")
	if err != nil {
		t.Fatalf("another name: %v", err)
	}
	if err := other.Unlock(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Lock(ctx, "a"); CauseOf(err) != CauseUnreachable || !errors.Is(err, ErrLocked) {
		t.Errorf("waiting in vain: %v", err)
	}
	got := make(chan *Lock, 1)
	go func() {
		l, err := s.Lock(t.Context(), "a")
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := (<-got).Unlock(); err != nil {
		t.Fatal(err)
	}
	if files, _ := os.ReadDir(filepath.Join(s.Dir(), "locks")); len(files) > 1 {
		t.Errorf("lock files stay: %v", files)
	}
}

// The file of a lock is removed on letting go; nobody may end up with a lock on a file that is gone.
func TestLockExcludes(t *testing.T) {
	s := testStore(t)
	var wg sync.WaitGroup
	inside := make(chan struct{}, 1)
	for range 8 {
		wg.Go(func() {
			for range 50 {
				l, err := s.Lock(t.Context(), "a")
				if err != nil {
					t.Error(err)
					return
				}
				select {
				case inside <- struct{}{}:
				default:
					t.Error("two hold the lock")
				}
				<-inside
				if err := l.Unlock(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// What died holding a lock or writing a record is swept up; what is held stays.
func TestSweep(t *testing.T) {
	s := testStore(t)
	s.Sweep() // nothing there yet
	if err := s.Put(testRecord(t, "a")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"locks/dead.lock", "locks/3.agent", "records/.half", "records/.held"} {
		if err := os.WriteFile(filepath.Join(s.Dir(), path), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := s.TryLock("held")
	if err != nil {
		t.Fatal(err)
	}
	s.Sweep()
	for path, stays := range map[string]bool{"locks/dead.lock": false, "locks/3.agent": false, "records/.half": false, "locks/half.lock": false,
		"records/.held": true, "locks/held.lock": true, "records/a.json": true} {
		if _, err := os.Stat(filepath.Join(s.Dir(), path)); (err == nil) != stays {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	s.Sweep()
	if _, err := os.Stat(filepath.Join(s.Dir(), "records/.held")); err == nil {
		t.Error("records/.held stays")
	}
}

func TestSocketDevice(t *testing.T) {
	for path, want := range map[string]string{
		"/run/hawser/sockets/a:b": "nbd+unix:///?socket=/run/hawser/sockets/a%3Ab",
		"/tmp/a b&c+d%/s":         "nbd+unix:///?socket=/tmp/a%20b%26c%2Bd%25/s",
	} {
		if got := SocketDevice(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func FuzzRecord(f *testing.F) {
	b, err := json.Marshal(testRecord(f, "a"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"schemaVersion":1,"name":"a","state":"attached","driver":"user","device":"d","spec":{"schemaVersion":1,"target":"nvme://h/` + testNQN + `"}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		r2, err := decodeRecord(bytes.NewReader(again))
		if err != nil {
			t.Fatalf("%s does not come back: %v", again, err)
		}
		if fmt.Sprint(r.Spec.Target, r.Name, r.State, r.Paths) != fmt.Sprint(r2.Spec.Target, r2.Name, r2.State, r2.Paths) {
			t.Errorf("%+v became %+v", r, r2)
		}
		r.volume()
	})
}

// What is no file keeps nobody waiting.
func TestRecordThatIsNoFile(t *testing.T) {
	s := testStore(t)
	if err := s.Put(testRecord(t, "good")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(s.Dir(), "records", "fifo.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	records, err := s.List()
	if len(records) != 1 || err == nil || !strings.Contains(err.Error(), "fifo.json: it cannot be understood: it is no file") {
		t.Errorf("%d records, %v", len(records), err)
	}
}
