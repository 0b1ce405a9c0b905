package frontendtest

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

// CheckLeaks fails the test if, when it has ended and all that was cleaned up
// that was registered after this call, goroutines are left that run code of a
// package whose path contains pkg.
func CheckLeaks(tb testing.TB, pkg string) {
	tb.Helper()
	before := goroutines(pkg)
	tb.Cleanup(func() {
		deadline := time.Now().Add(10 * time.Second)
		for {
			var left []string
			for id, stack := range goroutines(pkg) {
				if _, ok := before[id]; !ok {
					left = append(left, stack)
				}
			}
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				tb.Errorf("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// goroutines gives the stacks that mention pkg, by goroutine, but for the caller's.
func goroutines(pkg string) map[string]string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	found := map[string]string{}
	for i, g := range strings.Split(string(buf), "\n\n") {
		id, _, _ := strings.Cut(g, " [")
		if i > 0 && strings.Contains(g, pkg) && !strings.Contains(g, "testing.tRunner") {
			found[id] = g
		}
	}
	return found
}
