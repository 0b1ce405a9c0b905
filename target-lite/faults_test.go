package targetlite_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"hawser.dev/hawser/nvme"
	"hawser.dev/hawser/nvme/nvmetest"
	"hawser.dev/hawser/nvme/wire"
	targetlite "hawser.dev/hawser/target-lite"
	"hawser.dev/hawser/target-lite/backend"
)

// faulty is a backend that fails as it is told.
type faulty struct {
	backend.Backend
	err atomic.Pointer[error]
}

func (f *faulty) Submit(r *backend.Request) bool {
	if err := f.err.Load(); err != nil {
		r.Err = *err
		return true
	}
	return f.Backend.Submit(r)
}

func TestBackendErrors(t *testing.T) {
	b := &faulty{Backend: null(t, "faulty")}
	srv := serve(t, one(targetlite.Namespace{Backend: b}))
	h := nvmetest.ConnectAdmin(t, srv.addr.String(), nvmetest.HostOptions{SubNQN: subNQN})
	q := h.ConnectIO(1)
	p := make([]byte, 4096)
	read, write := wire.ReadCmd(1, 0, 8, 0), wire.WriteCmd(1, 0, 8, 0)
	for _, c := range []struct {
		err         error
		read, write nvme.Status
		dnr         bool
	}{
		{syscall.EIO, nvme.StatusUnrecoveredRead, nvme.StatusWriteFault, false},
		{syscall.ENOSPC, nvme.StatusCapacityExceeded, nvme.StatusCapacityExceeded, true},
		{backend.ErrShrunk, nvme.StatusLBAOutOfRange, nvme.StatusLBAOutOfRange, true},
		{backend.ErrVanished, nvme.StatusNamespaceNotReady, nvme.StatusNamespaceNotReady, true},
		{syscall.EROFS, nvme.StatusNamespaceWriteProtected, nvme.StatusNamespaceWriteProtected, true},
		{fmt.Errorf("lost: %w", syscall.EIO), nvme.StatusUnrecoveredRead, nvme.StatusWriteFault, false},
		{syscall.ENOMEM, nvme.StatusInternalError, nvme.StatusInternalError, false},
		{bytes.ErrTooLarge, nvme.StatusInternalError, nvme.StatusInternalError, false},
	} {
		b.err.Store(&c.err)
		r, data := q.Do(read, nil, 4096)
		w, _ := q.Do(write, p, 0)
		if r.Status.Code() != c.read || w.Status.Code() != c.write || r.Status.DNR() != c.dnr || w.Status.DNR() != c.dnr || len(data) != 0 {
			t.Errorf("%v: read %v with %d bytes, write %v", c.err, r.Status, len(data), w.Status)
		}
	}
	b.err.Store(nil)
	q.Must(read, nil, 4096)
	_, log := h.Must(wire.GetLogPage{LID: wire.LogSMART, NSID: wire.NSIDAll, Length: 512}.Command(), nil, 512)
	var smart wire.SMARTLog
	if err := smart.Parse(log); err != nil || smart.MediaErrors.Lo != 16 || smart.HostReads.Lo != 9 || smart.HostWrites.Lo != 8 || smart.DataUnitsRead.Lo != 1 || smart.ErrorLogEntries.Lo != 16 {
		t.Errorf("SMART log %+v, %v", smart, err)
	}
}

func TestFileShrinks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	srv := serve(t, one(targetlite.Namespace{Backend: open(t, path, backend.Options{Size: 1 << 20})}))
	q := nvmetest.ConnectAdmin(t, srv.addr.String(), nvmetest.HostOptions{SubNQN: subNQN}).ConnectIO(1)
	p := pattern(4096, 1)
	q.Must(wire.WriteCmd(1, 0, 8, 0), p, 0)
	if err := os.Truncate(path, 8192); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cmd wire.Command
		out []byte
		n   int
	}{{wire.ReadCmd(1, 16, 8, 0), nil, 4096}, {wire.WriteCmd(1, 16, 8, 0), p, 0}, {wire.WriteZeroesCmd(1, 16, 8, 0), nil, 0}} {
		if got, _ := q.Do(c.cmd, c.out, c.n); got.Status.Code() != nvme.StatusLBAOutOfRange {
			t.Errorf("%s beyond the end: %v", wire.CommandName(&c.cmd, false), got.Status)
		}
	}
	q.Must(wire.ReadCmd(1, 0, 8, 0), nil, 4096)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []wire.Command{wire.WriteCmd(1, 0, 8, 0), wire.FlushCmd(1)} {
		var out []byte
		if cmd.Opcode == wire.OpWrite {
			out = p
		}
		if got, _ := q.Do(cmd, out, 0); got.Status.Code() != nvme.StatusNamespaceNotReady {
			t.Errorf("%s of a deleted file: %v", wire.CommandName(&cmd, false), got.Status)
		}
	}
}

// spy notes what a backend is asked for.
type spy struct {
	backend.Backend
	mu  sync.Mutex
	ops []backend.Request
}

func (s *spy) Submit(r *backend.Request) bool {
	s.mu.Lock()
	s.ops = append(s.ops, backend.Request{Op: r.Op, FUA: r.FUA, MayUnmap: r.MayUnmap, Offset: r.Offset, Length: r.Length})
	s.mu.Unlock()
	return s.Backend.Submit(r)
}

func (s *spy) take() []backend.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	ops := s.ops
	s.ops = nil
	return ops
}

// Durability is asked for when the host asks for it: FUA, Flush, a write cache switched off, shutdown.
func TestDurability(t *testing.T) {
	file := func() *spy {
		return &spy{Backend: open(t, filepath.Join(t.TempDir(), "f"), backend.Options{Size: 1 << 20})}
	}
	a, b, m := file(), file(), &spy{Backend: memory(t, "durable", 1<<20)}
	srv := serve(t, one(targetlite.Namespace{Backend: a}, targetlite.Namespace{Backend: b}, targetlite.Namespace{Backend: m}))
	h := nvmetest.ConnectAdmin(t, srv.addr.String(), nvmetest.HostOptions{SubNQN: subNQN})
	q := h.ConnectIO(1)
	p := make([]byte, 4096)
	expect := func(name string, s *spy, want ...backend.Request) {
		t.Helper()
		if got := s.take(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	write := backend.Request{Op: backend.OpWrite, Length: 4096}
	fua := backend.Request{Op: backend.OpWrite, FUA: true, Length: 4096}
	flush := backend.Request{Op: backend.OpFlush}
	q.Must(wire.WriteCmd(1, 0, 8, 0), p, 0)
	expect("write", a, write)
	q.Must(wire.WriteCmd(1, 0, 8, wire.ControlFUA), p, 0)
	expect("write with FUA", a, fua)
	q.Must(wire.FlushCmd(1), nil, 0)
	expect("flush", a, flush)
	q.Must(wire.FlushCmd(wire.NSIDAll), nil, 0)
	expect("flush of all", a, flush)
	expect("flush of all", b, flush)
	expect("flush of all, no cache", m)
	q.Must(wire.WriteZeroesCmd(1, 8, 16, wire.ControlDEAC), nil, 0)
	expect("write zeroes", a, backend.Request{Op: backend.OpWriteZeroes, MayUnmap: true, Offset: 4096, Length: 8192})
	h.Must(wire.SetFeaturesCmd(wire.FeatureVolatileWriteCache, 0, 0), nil, 0)
	q.Must(wire.WriteCmd(1, 0, 8, 0), p, 0)
	expect("write without cache", a, fua)
	h.Must(wire.PropertySetCmd(wire.PropertyCC, 4, uint64((wire.CCIOEntries|wire.CCEnable).WithSHN(wire.CCSHNNormal))), nil, 0)
	eventually(t, func() bool { return wire.CSTS(h.Property(wire.PropertyCSTS, 4)).ShutdownComplete() })
	expect("shutdown", a, flush)
	expect("shutdown", b, flush)
	expect("shutdown", m)
}
