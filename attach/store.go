package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxRecord bounds the size of a record's file in bytes.
const maxRecord = 1 << 20

const (
	recordsDir = "records"
	locksDir   = "locks"
	storeLock  = "store" // no name's: those have an ending
)

// Store keeps the records of one host in a folder of its own:
//
//	records/NAME.json   one for each attachment, replaced whole
//	locks/NAME.lock     held by whoever is changing that attachment
//	locks/store         held for moments, to look at all records and add one
//
// Locks are flock(2): the kernel lets go of them when their holder dies, whatever it died of.
type Store struct {
	dir string

	mu   sync.Mutex
	root *os.Root // nil until something is written
}

// DefaultDir is where the records of the calling user are: /run/hawser for root, else $XDG_RUNTIME_DIR/hawser, else
// hawser-UID in the folder for temporary files.
func DefaultDir(getenv func(string) string) string {
	if os.Geteuid() == 0 {
		return "/run/hawser"
	}
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "hawser")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("hawser-%d", os.Geteuid()))
}

// NewStore returns the store in dir. The folder is made, mode 0700, when something is first written.
func NewStore(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return &Store{dir: dir}, nil
}

// Dir is the store's folder.
func (s *Store) Dir() string { return s.dir }

// Close lets go of the folder.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.root == nil {
		return nil
	}
	err := s.root.Close()
	s.root = nil
	return err
}

// open returns the folder, checked to be the caller's own and closed to others. Without create, a missing one is fs.ErrNotExist.
func (s *Store) open(create bool) (*os.Root, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.root != nil {
		return s.root, nil
	}
	root, err := openPrivate(s.dir, create)
	if err != nil {
		return nil, err
	}
	if create {
		for _, d := range []string{recordsDir, locksDir} {
			if err := root.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				root.Close()
				return nil, storeError(s.dir, err)
			}
		}
		s.root = root
	}
	return root, nil
}

func storeError(name string, err error) error {
	cause := CauseFailed
	if errors.Is(err, fs.ErrPermission) {
		cause = CausePermission
	}
	return &Error{Op: "state folder", Name: name, Cause: cause, Err: err}
}

func openPrivate(dir string, create bool) (*os.Root, error) {
	if create {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return nil, storeError(dir, err)
		}
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, storeError(dir, err)
		}
	}
	// Not through a symbolic link: in a folder for temporary files anybody could have put one here.
	fi, err := os.Lstat(dir)
	if err != nil {
		return nil, storeError(dir, err)
	}
	if !fi.IsDir() {
		return nil, storeError(dir, fmt.Errorf("%w: it is no folder", fs.ErrPermission))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, storeError(dir, err)
	}
	opened, err := root.Stat(".")
	if err == nil && !os.SameFile(fi, opened) {
		err = fmt.Errorf("%w: it was replaced while it was opened", fs.ErrPermission)
	}
	if err == nil {
		if st := opened.Sys().(*syscall.Stat_t); int(st.Uid) != os.Geteuid() {
			err = fmt.Errorf("%w: it belongs to user %d, not to you: remove it or use a folder of your own", fs.ErrPermission, st.Uid)
		} else if perm := opened.Mode().Perm(); perm&0o077 != 0 {
			err = fmt.Errorf("%w: it has mode %04o, open to others: chmod 0700 %s", fs.ErrPermission, perm, dir)
		}
	}
	if err != nil {
		root.Close()
		return nil, storeError(dir, err)
	}
	return root, nil
}

// read returns the folder for reading, nil when there is none yet, and what ends the use of it.
func (s *Store) read() (*os.Root, func(), error) {
	root, err := s.open(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, func() {}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	kept := root == s.root
	s.mu.Unlock()
	if kept {
		return root, func() {}, nil
	}
	return root, func() { root.Close() }, nil
}

// Get returns the record of a name; fs.ErrNotExist when there is none. A record that cannot be understood is an error that
// names its file.
func (s *Store) Get(name string) (*Record, error) {
	if err := ValidName(name); err != nil {
		return nil, err
	}
	root, done, err := s.read()
	if err != nil {
		return nil, err
	}
	defer done()
	if root == nil {
		return nil, fs.ErrNotExist
	}
	return s.get(root, name)
}

func (s *Store) get(root *os.Root, name string) (*Record, error) {
	path := recordPath(name)
	f, err := root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // whatever it is, opening it waits for nobody
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := readRecord(f)
	if err == nil && r.Name != name {
		err = fmt.Errorf("it is of %s", quote(r.Name))
	}
	if err != nil {
		file := filepath.Join(s.dir, path)
		return nil, &Error{Op: "record", Name: file, Cause: CauseFailed, Err: fmt.Errorf("it cannot be understood: %w", err),
			Hint: "look at what is attached, then remove " + file}
	}
	return r, nil
}

func readRecord(f *os.File) (*Record, error) {
	if fi, err := f.Stat(); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, errors.New("it is no file")
	}
	return decodeRecord(f)
}

func decodeRecord(r io.Reader) (*Record, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxRecord+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxRecord {
		return nil, fmt.Errorf("it is longer than %d bytes", maxRecord)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var rec Record
	if err := dec.Decode(&rec); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("something follows its end")
	}
	if err := rec.validate(); err != nil {
		return nil, err
	}
	return &rec, nil
}

// List returns all records by name. Those that cannot be understood are left out and make the error, joined.
func (s *Store) List() ([]*Record, error) {
	root, done, err := s.read()
	if err != nil {
		return nil, err
	}
	defer done()
	if root == nil {
		return nil, nil
	}
	d, err := root.Open(recordsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	files, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	var records []*Record
	var bad []error
	for _, file := range files {
		name, ok := strings.CutSuffix(file, ".json")
		if !ok || ValidName(name) != nil {
			continue // a file being written
		}
		r, err := s.get(root, name)
		switch {
		case err == nil:
			records = append(records, r)
		case !errors.Is(err, fs.ErrNotExist): // detached in between
			bad = append(bad, err)
		}
	}
	return records, errors.Join(bad...)
}

func recordPath(name string) string { return filepath.Join(recordsDir, name+".json") }

// Put writes a record whole, and durable, or not at all.
func (s *Store) Put(r *Record) error {
	if err := r.validate(); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if len(b) > maxRecord {
		return fmt.Errorf("record of %s: %d bytes, at most %d are allowed", r.Name, len(b), maxRecord)
	}
	root, err := s.open(true)
	if err != nil {
		return err
	}
	path := recordPath(r.Name)
	// The leading dot keeps it apart from every name. Its writer holds the lock of the name, so a leftover is nobody's.
	temp := filepath.Join(recordsDir, "."+r.Name)
	if err := writeSynced(root, temp, append(b, '\n')); err != nil {
		root.Remove(temp)
		return storeError(s.dir, err)
	}
	if err := root.Rename(temp, path); err != nil {
		root.Remove(temp)
		return storeError(s.dir, err)
	}
	return s.syncRecords(root)
}

func writeSynced(root *os.Root, path string, b []byte) error {
	f, err := root.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (s *Store) syncRecords(root *os.Root) error {
	d, err := root.Open(recordsDir)
	if err != nil {
		return storeError(s.dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return storeError(s.dir, err)
	}
	return nil
}

// Delete removes a record; none there is no error.
func (s *Store) Delete(name string) error {
	if err := ValidName(name); err != nil {
		return err
	}
	root, err := s.open(true)
	if err != nil {
		return err
	}
	if err := root.Remove(recordPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return storeError(s.dir, err)
	}
	return s.syncRecords(root)
}

// Sweep removes what writers and holders of locks left behind when they died: halves of records, and files of locks.
func (s *Store) Sweep() {
	root, done, err := s.read()
	if err != nil || root == nil {
		return
	}
	defer done()
	for _, f := range names(root, locksDir) {
		if f == storeLock {
			continue
		}
		if l, err := s.lock(context.Background(), f, true, true); err == nil {
			l.Unlock()
		}
	}
	for _, f := range names(root, recordsDir) {
		name, half := strings.CutPrefix(f, ".")
		if !half {
			continue
		}
		if l, err := s.TryLock(name); err == nil {
			root.Remove(filepath.Join(recordsDir, f))
			l.Unlock()
		}
	}
}

func names(root *os.Root, dir string) []string {
	d, err := root.Open(dir)
	if err != nil {
		return nil
	}
	defer d.Close()
	files, _ := d.Readdirnames(-1)
	return files
}

// ErrLocked is returned by TryLock when somebody holds the lock.
var ErrLocked = errors.New("another hawser is at work on it")

// Lock is held until Unlock, or until the process ends.
type Lock struct {
	f    *os.File
	root *os.Root
	path string // removed with the lock; empty if it stays
}

// Lock takes the lock of a volume's name, waiting for whoever holds it until ctx ends.
func (s *Store) Lock(ctx context.Context, name string) (*Lock, error) {
	return s.lockName(ctx, name, false)
}

// TryLock is Lock that does not wait.
func (s *Store) TryLock(name string) (*Lock, error) {
	return s.lockName(context.Background(), name, true)
}

func (s *Store) lockName(ctx context.Context, name string, try bool) (*Lock, error) {
	if err := ValidName(name); err != nil {
		return nil, err
	}
	return s.lock(ctx, name+".lock", true, try)
}

// LockAll takes the lock that is held while all records are looked at and one is added. Whoever holds a name's lock too
// has taken that first.
func (s *Store) LockAll(ctx context.Context) (*Lock, error) {
	return s.lock(ctx, storeLock, false, false)
}

// LockAgent takes the lock of an agent's name, under which it is started.
func (s *Store) LockAgent(ctx context.Context, name string) (*Lock, error) {
	return s.lockAgent(ctx, name, false)
}

// TryLockAgent is LockAgent that does not wait.
func (s *Store) TryLockAgent(name string) (*Lock, error) {
	return s.lockAgent(context.Background(), name, true)
}

func (s *Store) lockAgent(ctx context.Context, name string, try bool) (*Lock, error) {
	if err := ValidName(name); err != nil {
		return nil, err
	}
	return s.lock(ctx, name+".agent", true, try)
}

func (s *Store) lock(ctx context.Context, file string, remove, try bool) (*Lock, error) {
	root, err := s.open(true)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(locksDir, file)
	for {
		f, err := root.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, storeError(s.dir, err)
		}
		if err := LockFile(ctx, f, try); err != nil {
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return nil, ErrLocked
			}
			if ctx.Err() != nil {
				return nil, &Error{Op: "lock", Name: strings.TrimSuffix(file, ".lock"), Cause: CauseUnreachable,
					Err: fmt.Errorf("%w: %w", ErrLocked, ctx.Err()), Hint: "wait for it, or allow more by --timeout"}
			}
			return nil, storeError(s.dir, err)
		}
		// The one before may have removed the file on letting go of it: then this is a lock on nothing.
		held, err1 := f.Stat()
		named, err2 := root.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(held, named) {
			l := &Lock{f: f, root: root}
			if remove {
				l.path = path
			}
			return l, nil
		}
		f.Close()
		if err1 != nil || err2 != nil && !errors.Is(err2, fs.ErrNotExist) {
			return nil, storeError(s.dir, errors.Join(err1, err2))
		}
	}
}

// LockFile takes an exclusive flock(2) on f, and closes f when it fails. With try it does not wait, and the error of a lock
// that is held is EWOULDBLOCK. The system call cannot be interrupted: when ctx ends first it is left behind, to let go of the
// lock as soon as it gets it.
func LockFile(ctx context.Context, f *os.File, try bool) error {
	err := retryEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err == nil {
		return nil
	}
	if try || !errors.Is(err, syscall.EWOULDBLOCK) {
		f.Close()
		return err
	}
	got := make(chan error, 1)
	go func() {
		got <- retryEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX) })
	}()
	select {
	case err = <-got:
		if err != nil {
			f.Close()
		}
		return err
	case <-ctx.Done():
		go func() {
			<-got
			f.Close()
		}()
		return ctx.Err()
	}
}

func retryEINTR(f func() error) error {
	for {
		if err := f(); err != syscall.EINTR {
			return err
		}
	}
}

// Unlock lets go of the lock.
func (l *Lock) Unlock() error {
	if l.path != "" {
		// Before letting go: whoever waits sees that the file is gone and makes a new one.
		if err := l.root.Remove(l.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.f.Close()
			return err
		}
	}
	return l.f.Close()
}
