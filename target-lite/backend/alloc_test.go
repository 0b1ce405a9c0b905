//go:build linux && !race

package backend

import "testing"

// What completes at once takes no memory.
func TestNoAllocations(t *testing.T) {
	for name, b := range map[string]Backend{
		"mem":  mustOpen(t, "mem:a", Options{Size: testSize}),
		"null": mustOpen(t, "null:a", Options{Size: testSize}),
		"file": mustOpen(t, newTestFile(t, t.TempDir()), Options{}),
	} {
		p := make([]byte, 4096)
		if err := write(b, 0, p); err != nil {
			t.Fatal(err)
		}
		r := &Request{Op: OpRead, Length: 4096, Data: p, Done: func(*Request) { t.Error("not done at once") }}
		if n := testing.AllocsPerRun(1000, func() {
			if !b.Submit(r) || r.Err != nil {
				t.Fatal("not done at once, or failed", r.Err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations per read", name, n)
		}
	}
	b := mustOpen(t, newTestFile(t, t.TempDir()), Options{})
	done := make(chan struct{}, 1)
	r := &Request{Op: OpWrite, Length: 4096, Data: make([]byte, 4096), Done: func(*Request) { done <- struct{}{} }}
	if n := testing.AllocsPerRun(1000, func() {
		if !b.Submit(r) {
			<-done
		}
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}); n != 0 {
		t.Errorf("file: %v allocations per write", n)
	}
}
